//! A `mesh.json` for programs that only read it, where the registry itself is elsewhere.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_shared::atomic_file;
use mesh_shared::registry::{Node, Registry};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::state::State;
use crate::state::problems::About;

/// Changes that come one after the other are written together.
const GATHER: Duration = Duration::from_millis(200);
/// For everyone to read.
const MODE: u32 = 0o644;

/// Replaces the file whenever the mesh changed, and once a heartbeat interval for the stamps, for as long as the daemon
/// runs. Until the registry was read, what is there stays.
pub async fn run(state: Arc<State>, path: PathBuf) {
    let mut views = state.views();
    let mut written: Option<Registry> = None;
    loop {
        if let Some(mut registry) = exported(&state)
            && written.as_ref().is_none_or(|written| written.nodes != registry.nodes)
        {
            registry.updated_at = State::now().epoch_ms;
            let (target, writer, content) = (path.clone(), state.local().clone(), registry.to_json());
            // It may be on a mount that hangs.
            let writing =
                spawn_blocking(move || atomic_file::replace(&target, writer.as_str(), &content, MODE)).await;
            match writing.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(()) => {
                    written = Some(registry);
                    state.solved(&About::Export);
                }
                Err(error) => {
                    let sentence = format!("cannot write registryd.store.export {}: {error}", path.display());
                    state.problem(About::Export, sentence);
                }
            }
        }
        sleep(GATHER).await;
        let interval = state.config.mesh.heartbeat_interval;
        // In silence, the stamps alone.
        if let Ok(Err(_)) = timeout(interval, views.changed()).await {
            return;
        }
    }
}

/// The mesh as a registry file shows it.
fn exported(state: &State) -> Option<Registry> {
    state.read(|inner, now| {
        inner.has_view().then(|| {
            let mut registry = Registry::empty();
            for (name, member) in inner.members.members() {
                let node = inner.members.shown(name, member, now);
                let taken = node.id.is_empty() || registry.nodes.contains_key(&node.id);
                let id = if taken { name.to_string() } else { node.id.clone() };
                registry.nodes.insert(id.clone(), Node { id, ..node }.into());
            }
            registry
        })
    })
}

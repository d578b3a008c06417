//! Sessions: which node a caller stays on.
//!
//! **A session that the caller names** (`x-mesh-session`) goes by rendezvous hashing ([`rank()`]): each node has a rank for it, and the
//! highest wins. A node that leaves moves its own sessions and no others; one that comes takes those for which it ranks
//! highest, and no others move; one that is ejected for a while gets its sessions back. A ring such as ketama is
//! more costly and less stable: it is rebuilt with each change, it also moves sessions between nodes that stayed, and pingora's
//! hashes socket addresses, so that a node with a new address would lose its sessions. An agent lives on few nodes, so
//! that ranking them all costs nothing.
//!
//! **A session that the agent's server hands out** (`mcp-session-id`) exists on the node that issued it, and nowhere else.
//! It is remembered with that node, also after a restart, and that node is asked first even while it is ejected. If it is gone, another node gets the
//! request and answers 404, as the server of an unknown session must; a client then begins a new session (Model Context
//! Protocol, Transports, Session Management). An error of the sidecar's own would leave it with a session that is dead.

mod issued;
mod journal;
mod rank;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mesh_shared::{AgentName, NodeName};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use issued::{Issued, Key};
use journal::Journal;

pub use rank::rank;

/// An answer or a request waits for the disk no longer than this.
const DISK_LIMIT: Duration = Duration::from_secs(1);
/// Threads that may wait for the disk.
const DISK_THREADS: usize = 4;

/// The sessions that servers handed out, with the nodes that did.
pub struct Sessions {
    issued: Arc<Mutex<Issued>>,
    journal: Arc<Journal>,
    disk: Arc<Semaphore>,
    /// Whether it has been said that the journal cannot be used.
    told: AtomicBool,
}

impl Sessions {
    /// Those that were remembered in `state_dir`.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            issued: Arc::new(Mutex::new(Issued::new(Instant::now()))),
            journal: Arc::new(Journal::new(state_dir)),
            disk: Arc::new(Semaphore::new(DISK_THREADS)),
            told: AtomicBool::new(false),
        }
    }

    /// The node that issued the session, if that is known.
    pub async fn issuer(&self, agent: &AgentName, id: &[u8]) -> Option<NodeName> {
        let key = Key::new(agent, id);
        let known = self.issued.lock().issuer(&key, Instant::now());
        if known.is_some() {
            return known;
        }
        // An earlier process may have seen it, or the one that this one replaces right now.
        let issued = self.issued.clone();
        self.with_journal(move |journal| {
            journal.news(|key, node| {
                issued.lock().remember(key, &node, Instant::now());
            })
        })
        .await;
        self.issued.lock().issuer(&key, Instant::now())
    }

    /// Remembers that `node` issued the session, before the caller knows it.
    pub async fn remember(&self, agent: &AgentName, id: &[u8], node: &NodeName) {
        let key = Key::new(agent, id);
        if self.issued.lock().remember(key, node, Instant::now()) {
            let node = node.clone();
            self.with_journal(move |journal| journal.append(key, &node)).await;
        }
    }

    async fn with_journal(&self, work: impl FnOnce(&Journal) -> io::Result<()> + Send + 'static) {
        let (disk, journal) = (self.disk.clone(), self.journal.clone());
        let done = timeout(DISK_LIMIT, async move {
            // It goes with the work, which cannot be called off.
            let thread = disk.acquire_owned().await.map_err(io::Error::other)?;
            let work = move || {
                let _thread = thread;
                work(&journal)
            };
            spawn_blocking(work).await.map_err(io::Error::other)?
        });
        let result = done.await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)));
        match result {
            Ok(()) => self.told.store(false, Ordering::Relaxed),
            Err(error) if !self.told.swap(true, Ordering::Relaxed) => tracing::warn!(
                target: "Mesh",
                "cannot use {}: {error}; which node issued a session would be unknown after a restart (proxy.state_dir)",
                self.journal.path().display()
            ),
            Err(_) => {}
        }
    }
}

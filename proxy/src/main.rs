//! `mesh-proxy`: the sidecar's command line.

use std::process::ExitCode;

use mesh_proxy::upkeep::files;
use mesh_shared::config::Config;
use mesh_shared::confinement::Confinement;
use mesh_shared::{certificate, check, daemon};

/// Fragments less and is faster than the system's under many small requests.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A thread of jemalloc's own gives back what is free: by themselves, workers do so only while they have much to do. Their
/// caches hold what the requests of one turn of their loops need; with jemalloc's sizes they overflow, and are emptied and filled
/// again with each turn.
#[cfg(feature = "jemalloc")]
#[allow(unsafe_code, reason = "jemalloc finds its options by this name")]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_OPTIONS: &[u8; 75] =
    b"background_thread:true,tcache_nslots_small_max:1000,lg_tcache_nslots_mul:4\0";

fn main() -> ExitCode {
    daemon::main(&daemon::MESH_PROXY, check::mesh_proxy, needs, run)
}

/// What the process may do once it runs: keep its state, renew its certificate, make its sockets, and start what is in
/// its place at an upgrade.
fn needs(config: &Config) -> Confinement {
    let mut needs = Confinement::default().writing_replaceable(&config.proxy.state_dir);
    for socket in config.proxy.outbound.listeners.iter().filter_map(|listener| listener.listen.socket_path())
    {
        needs = needs.writing(socket.parent().unwrap_or(socket));
    }
    if config.proxy.admin.socket_is_named {
        let socket = &config.proxy.admin.socket;
        needs = needs.writing(socket.parent().unwrap_or(socket));
    }
    for folder in files::folders(config) {
        needs = needs.writing(&folder);
    }
    needs.running_programs()
}

fn run(config: Config) -> ExitCode {
    if let Some(exposure) = certificate::exposure(&config.mesh.tls.key_path) {
        tracing::warn!(target: "Mesh", "{exposure}");
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(target: "Mesh", "cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(mesh_proxy::app::run(config));
    // Without waiting for file operations that may hang.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(target: "Mesh", "cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

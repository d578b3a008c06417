//! `mesh-proxy`: the sidecar's command line.

use std::process::ExitCode;

use mesh_shared::config::Config;
use mesh_shared::{certificate, check, daemon};

/// Fragments less and is faster than the system's under many small requests.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let about = "Sidecar that terminates and originates the mesh's mutual TLS";
    daemon::main("mesh-proxy", about, check::mesh_proxy, run)
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

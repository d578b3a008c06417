//! `mesh-proxy`: the sidecar's command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mesh_shared::certificate::{self, Outcome};
use mesh_shared::config::{self, Config};

/// Fragments less and is faster than the system's under many small requests.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Sidecar that terminates and originates the mesh's mutual TLS.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, short, env = config::PATH_VARIABLE, default_value = config::DEFAULT_PATH, global = true)]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run (the default).
    Run,
    /// Validate configuration, certificate and key without starting.
    Check,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("mesh-proxy: {error}");
            return ExitCode::from(config::EXIT_CODE);
        }
    };
    match arguments.command.unwrap_or(Command::Run) {
        Command::Check => check(&config),
        Command::Run => run(config),
    }
}

fn check(config: &Config) -> ExitCode {
    let checks = certificate::check(config, true);
    for check in &checks {
        println!("{check}");
    }
    let failed = checks.iter().any(|check| check.outcome == Outcome::Failed);
    ExitCode::from(u8::from(failed))
}

fn run(config: Config) -> ExitCode {
    mesh_shared::logging::init();
    for warning in &config.warnings {
        tracing::warn!(target: "Mesh", "{warning}");
    }
    if !config.mesh.enabled {
        tracing::error!(target: "Mesh", "mesh.enabled is false, so there is nothing to do; set it to true");
        return ExitCode::from(config::EXIT_CODE);
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

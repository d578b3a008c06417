//! `registryd`: the registry daemon of one node.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mesh_shared::certificate::{self, Outcome};
use mesh_shared::config::{self, Config};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Keeps this node in the mesh's registry: heartbeats, mesh.json, discovery, names.
#[derive(Debug, Parser)]
#[command(name = "registryd", version, args_conflicts_with_subcommands = true)]
struct Cli {
    /// The configuration file
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the configuration and the certificate without starting
    Check,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let path = cli
        .config
        .or_else(|| std::env::var_os(config::PATH_VARIABLE).map(PathBuf::from))
        .unwrap_or_else(|| config::DEFAULT_PATH.into());
    let config = match Config::load(&path) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(config::EXIT_CODE);
        }
    };
    match cli.command {
        Some(Command::Check) => check(&config),
        None => {
            mesh_shared::logging::init();
            registryd::app::run(config)
        }
    }
}

fn check(config: &Config) -> ExitCode {
    let checks = certificate::check(config, false);
    for check in &checks {
        println!("{check}");
    }
    ExitCode::from(u8::from(checks.iter().any(|check| check.outcome == Outcome::Failed)))
}

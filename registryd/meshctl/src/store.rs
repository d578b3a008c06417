//! `meshctl store migrate`: moves a mesh between mesh.json and etcd while it runs.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use mesh_shared::NodeName;
use registryd::backend::bridge::{Bridge, Progress};
use registryd::backend::file::Store;
use serde_json::json;

use crate::output::{print, print_json_line};
use crate::{Failure, Global};

/// How often both sides are brought up to date.
const PAUSE: Duration = Duration::from_millis(500);

/// Arguments of `meshctl store`.
#[derive(Debug, Args)]
pub struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Keep mesh.json and etcd in step until every live node uses the new store
    ///
    /// Start it on a host that can reach both (registryd.store.etcd in its configuration, with a user that may write all
    /// keys), then change registryd.store.kind on one node after the other and restart its registryd. The command exits
    /// when all have moved; until then, both stores show every live node as online.
    Migrate {
        /// The store to move to
        #[arg(long, value_name = "STORE")]
        to: Target,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    Etcd,
    File,
}

/// Runs the bridge until all nodes have moved.
///
/// # Errors
/// There is no configuration, or none of how etcd is reached.
pub async fn run(args: StoreArgs, global: &Global) -> Result<ExitCode, Failure> {
    let StoreCommand::Migrate { to } = args.command;
    let missing = "name a configuration with registryd.store.etcd (--config)";
    let config = global.config()?.ok_or_else(|| Failure::Usage(missing.into()))?;
    let etcd = config.registryd.store.etcd.ok_or_else(|| Failure::Usage(missing.into()))?;
    let store = Store::new(config.mesh.registry_path(), &config.mesh.node_name);
    let mut bridge = Bridge::new(store, etcd, config.mesh.stale_threshold);
    let mut shown = None;
    loop {
        match bridge.round().await {
            Ok(progress) => {
                let (moved, left) = match to {
                    Target::Etcd => (&progress.in_etcd, &progress.in_file),
                    Target::File => (&progress.in_file, &progress.in_etcd),
                };
                let done = left.is_empty() && !moved.is_empty();
                if shown.as_ref() != Some(&progress) {
                    match global.json {
                        true => print_json_line(&json!({"moved": moved, "left": left, "done": done}))?,
                        false => print(&sentence(moved, left))?,
                    }
                    shown = Some(Progress::clone(&progress));
                }
                if done {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            Err(error) => eprintln!("meshctl: {error}; trying again"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn sentence(moved: &[NodeName], left: &[NodeName]) -> String {
    let all = moved.len() + left.len();
    if left.is_empty() && !moved.is_empty() {
        return format!("all {all} nodes have moved\n");
    }
    let names: Vec<&str> = left.iter().map(NodeName::as_str).collect();
    format!(
        "{} of {all} nodes have moved; still to change registryd.store.kind and restart registryd on: {}\n",
        moved.len(),
        names.join(", ")
    )
}

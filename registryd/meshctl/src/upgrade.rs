//! `meshctl upgrade`: the sidecar of this host is replaced by the program that is in its place now.

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use mesh_shared::local_api::{DaemonStatus, STATUS, SidecarReport};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::output::{print, print_json};
use crate::{Failure, Global};
use mesh_client::ClientError;

/// How often registryd is asked whether the new process reports.
const LOOK: Duration = Duration::from_millis(100);
/// The name of the program, as the system shows it for each process.
const PROGRAM: &str = "mesh-proxy";

/// Arguments of `meshctl upgrade`.
#[derive(Debug, Args)]
pub struct UpgradeArgs {
    /// How long to wait for the new process, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

/// Asks the sidecar to hand over to a new process, and waits until that one serves.
///
/// # Errors
/// There is no sidecar that could be asked, or the new process does not come to work; the one before then continues.
pub async fn run(args: UpgradeArgs, global: &Global) -> Result<ExitCode, Failure> {
    let before = report(global).await?.ok_or_else(|| {
        Failure::Said(
            "mesh-proxy does not report to registryd; if it runs, ask it by hand: \
             sudo systemctl kill --kill-whom=main --signal=USR2 mesh-proxy, or kill -USR2 <its process id>"
                .into(),
        )
    })?;
    if before.draining {
        return Err(Failure::Said("mesh-proxy was told to stop already".into()));
    }
    let old = before.pid;
    let pid = old.and_then(|pid| Pid::from_raw(pid.try_into().ok()?)).ok_or_else(|| {
        Failure::Said("this mesh-proxy is too old to be upgraded while it runs; restart it".into())
    })?;
    answers_to_usr2(pid)?;
    kill_process(pid, Signal::USR2).map_err(|error| {
        Failure::Said(format!("cannot signal mesh-proxy (process {pid}): {error}; try sudo"))
    })?;
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    while Instant::now() < deadline {
        sleep(LOOK).await;
        let now = match report(global).await {
            Ok(now) => now,
            // It may be restarted meanwhile.
            Err(Failure::Client(ClientError::Unreachable { .. })) => continue,
            Err(error) => return Err(error),
        };
        let Some(now) = now else { continue };
        if now.pid != old && !now.draining {
            return told(global, old, now.pid);
        }
        if let Some(failed) =
            now.failed_upgrade.filter(|failed| Some(failed) != before.failed_upgrade.as_ref())
        {
            let reason = failed.reason;
            return Err(Failure::Said(format!("{reason}; process {pid} continues as before")));
        }
    }
    Err(Failure::Said(format!(
        "no new mesh-proxy reports after {} s; see its log (journalctl -u mesh-proxy)",
        args.timeout
    )))
}

fn told(global: &Global, old: Option<u32>, new: Option<u32>) -> Result<ExitCode, Failure> {
    let number = Option::unwrap_or_default;
    match global.json {
        true => print_json(&json!({ "old": old, "new": new }))?,
        false => print(&format!(
            "process {} serves now; process {} finishes its requests, then exits\n",
            number(new),
            number(old)
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn report(global: &Global) -> Result<Option<SidecarReport>, Failure> {
    let status: DaemonStatus = global.registryd()?.read(STATUS).await?;
    Ok(status.sidecar)
}

/// The process id is the sidecar's own word, and in a container it counts in a namespace of its own. A process that
/// does not answer to SIGUSR2 would be ended by it.
fn answers_to_usr2(pid: Pid) -> Result<(), Failure> {
    let not_it = |why: String| {
        Failure::Said(format!(
            "process {pid} is not the mesh-proxy that reports ({why}); does it run in a container? \
             Then send SIGUSR2 to it there"
        ))
    };
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).map_err(|error| not_it(error.to_string()))?;
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let name = field("Name:");
    if name != PROGRAM {
        return Err(not_it(format!("it is {name}")));
    }
    let caught = u64::from_str_radix(field("SigCgt:"), 16).unwrap_or_default();
    match caught & (1 << (Signal::USR2.as_raw() - 1)) {
        0 => Err(Failure::Said(format!("process {pid} does not take upgrades yet; is it still starting?"))),
        _ => Ok(()),
    }
}

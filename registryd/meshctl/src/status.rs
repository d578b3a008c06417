//! `meshctl status`: is this node well?

use std::process::ExitCode;

use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use mesh_shared::local_api::{DaemonStatus, STATUS, StatusChange};
use mesh_shared::registry::Status;
use rustls::pki_types::UnixTime;
use serde::Serialize;
use serde_json::json;

use crate::output::{Colour, day, duration, one_line, paint, print, print_json};
use crate::repeat::{Show, shown};
use crate::{Failure, Global, card};

/// A certificate that ends within so many days is a problem, unless it is renewed by itself.
const CERTIFICATE_DAYS: i64 = 14;

/// Arguments of `meshctl status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    show: Show,
    #[command(subcommand)]
    change: Option<Change>,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Announce that this node is being updated (it takes no tasks by agent name), or is back.
    ///
    /// It stays `updating` until it is set to `online`, even if registryd or the host is restarted.
    Set {
        /// The status of this node from now on
        status: Wanted,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Wanted {
    Online,
    Updating,
}

/// Shows or changes this node's state.
///
/// # Errors
/// registryd cannot be reached or refuses the change.
pub async fn run(args: StatusArgs, global: &Global) -> Result<ExitCode, Failure> {
    match args.change {
        Some(Change::Set { status }) => {
            let status = match status {
                Wanted::Online => Status::Online,
                Wanted::Updating => Status::Updating,
            };
            set(status, global).await?;
            match global.json {
                true => print_json(&json!({ "status": status }))?,
                false => print(&format!("this node is {} from now on\n", status.as_str()))?,
            }
            Ok(ExitCode::SUCCESS)
        }
        None => show(args.show, global).await,
    }
}

/// Makes this node `online` or `updating`; it stays that until the next change.
///
/// # Errors
/// registryd cannot be reached or refuses the change.
pub async fn set(status: Status, global: &Global) -> Result<(), Failure> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let body = json!(StatusChange { status }).to_string();
    let daemon = global.registryd()?;
    let answer = daemon.send(Method::PUT, STATUS, headers, Bytes::from(body)).await?;
    daemon.accepted(STATUS, answer)?;
    Ok(())
}

/// This node's state, as it is shown.
#[derive(Serialize)]
struct Seen {
    /// With all problems that were found.
    #[serde(flatten)]
    status: DaemonStatus,
    ok: bool,
    warnings: Vec<String>,
}

async fn show(show: Show, global: &Global) -> Result<ExitCode, Failure> {
    let daemon = global.registryd()?;
    let read = async || {
        let mut status: DaemonStatus = daemon.read(STATUS).await?;
        status.problems = problems(&status, UnixTime::now());
        let warnings = match global.config() {
            // Agents are not asked for their cards every second.
            Ok(Some(config)) if !show.watch => card::warnings(&config).await,
            // registryd told how things are.
            _ => Vec::new(),
        };
        Ok(Seen { ok: status.problems.is_empty(), status, warnings })
    };
    let text = |seen: &Seen| {
        let mut text = describe(&seen.status, UnixTime::now(), show.wide);
        for warning in &seen.warnings {
            text.push_str(&format!("{} {}\n", paint(Colour::Yellow, "warning:   "), one_line(warning)));
        }
        text
    };
    match shown(show, global.json, read, text).await {
        Ok(seen) => Ok(if seen.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        Err(Failure::Client(error)) if global.json => {
            print_json(&json!({ "ok": false, "problems": [error.to_string()] }))?;
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error),
    }
}

/// What an operator should look at, each in a sentence.
pub fn problems(status: &DaemonStatus, now: UnixTime) -> Vec<String> {
    let mut problems = status.problems.clone();
    match &status.sidecar {
        None => problems.push(
            "mesh-proxy does not report to registryd, so no requests pass \
             (systemctl status mesh-proxy; both need the same configuration file)"
                .into(),
        ),
        Some(sidecar) => {
            let days = days_left(sidecar.certificate_not_after, now);
            if days < 0 || (days < CERTIFICATE_DAYS && !sidecar.renews) {
                problems.push(match days {
                    ..0 => "the certificate has expired: meshctl ca renew".into(),
                    _ => format!("the certificate ends in {days} days: meshctl ca renew"),
                });
            }
            // registryd may say the same in its own words.
            if sidecar.backend_up == Some(false) && !problems.iter().any(|each| each.contains("backend")) {
                problems.push(
                    "the agent's server (proxy.backend.address) does not answer: start the agent".into(),
                );
            }
            problems.extend(sidecar.trust_problems.iter().map(|problem| format!("mesh-proxy: {problem}")));
            if let Some(failed) = &sidecar.failed_upgrade {
                let reason = &failed.reason;
                problems.push(format!("mesh-proxy's upgrade failed, and it continues as before: {reason}"));
            }
        }
    }
    problems
}

fn days_left(not_after: i64, now: UnixTime) -> i64 {
    (not_after - now.as_secs() as i64).div_euclid(86_400)
}

fn describe(status: &DaemonStatus, now: UnixTime, wide: bool) -> String {
    let mut lines = vec![
        ("node", format!("{} (registryd {})", status.node, status.version)),
        ("status", status.status.as_str().into()),
        ("registry", format!("{}: {} nodes, {} online", status.registry_path, status.nodes, status.online)),
        ("discovery", status.discovery.clone()),
        (
            "heartbeat",
            status
                .last_heartbeat_age_ms
                .map_or_else(|| "none yet".into(), |age| format!("{} ago", duration(age))),
        ),
    ];
    match &status.sidecar {
        None => lines.push(("sidecar", "away".into())),
        Some(sidecar) => {
            let draining = if sidecar.draining { " (stopping: it finishes its requests)" } else { "" };
            let (inbound, outbound) = (sidecar.inbound, sidecar.outbound);
            lines.push(("sidecar", format!("inbound {inbound}, outbound {outbound}{draining}")));
            let backend = match sidecar.backend_up {
                Some(true) => "answers",
                Some(false) => "does not answer",
                None => "not asked yet",
            };
            lines.push(("backend", backend.into()));
            let ends = sidecar.certificate_not_after;
            lines.push(("certificate", format!("until {} ({} days)", day(ends), days_left(ends, now))));
            if wide {
                lines.push((
                    "renewal",
                    if sidecar.renews { "by itself" } else { "by hand (meshctl ca renew)" }.into(),
                ));
                let ends = |ends| format!("until {} ({} days)", day(ends), days_left(ends, now));
                lines.push(("revocation", sidecar.crl_ends.map_or_else(|| "no list".into(), ends)));
                lines.push(("process", sidecar.pid.map_or_else(|| "not told".into(), |pid| pid.to_string())));
                let down = match sidecar.agents_down.as_slice() {
                    [] => "none".into(),
                    agents => agents.join(", "),
                };
                lines.push(("agents down", down));
            }
        }
    }
    // Addresses and names of agents come from other programs.
    let mut text: String =
        lines.iter().map(|(key, value)| format!("{key:<12}{}\n", one_line(value))).collect();
    match status.problems.as_slice() {
        [] => text.push_str(&format!("{:<12}{}\n", "problems", paint(Colour::Green, "none"))),
        problems => {
            for problem in problems {
                text.push_str(&format!("{} {}\n", paint(Colour::Red, "problem:   "), one_line(problem)));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use mesh_shared::local_api::{FailedUpgrade, SidecarReport};

    use super::*;

    #[test]
    fn what_is_wrong_is_said() {
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_000_000));
        let mut status = DaemonStatus {
            node: "ct110".parse().unwrap(),
            status: Status::Online,
            version: "0".into(),
            registry_path: String::new(),
            discovery: "none".into(),
            nodes: 1,
            online: 1,
            problems: Vec::new(),
            sidecar: Some(SidecarReport {
                inbound: ([0, 0, 0, 0], 3000).into(),
                outbound: ([127, 0, 0, 1], 3001).into(),
                backend_up: Some(true),
                agents_down: Vec::new(),
                certificate_not_after: 1_000_000 + 14 * 86_400,
                pid: Some(1),
                draining: false,
                renews: false,
                crl_ends: None,
                trust_problems: Vec::new(),
                failed_upgrade: None,
            }),
            last_heartbeat_age_ms: None,
            duplicates: Vec::new(),
        };
        assert!(problems(&status, now).is_empty());
        if let Some(sidecar) = &mut status.sidecar {
            sidecar.certificate_not_after -= 1;
            sidecar.backend_up = Some(false);
            sidecar.trust_problems = vec!["the revocation list of CN=x ends in 5 hours".into()];
            sidecar.failed_upgrade = Some(FailedUpgrade { count: 1, reason: "no such file".into() });
        }
        let said = problems(&status, now);
        assert!(said[0].contains("ends in 13 days") && said[1].contains("backend"), "{said:?}");
        assert!(said[2].contains("ends in 5 hours"), "{said:?}");
        assert!(said[3].contains("upgrade failed, and it continues as before: no such file"), "{said:?}");
        if let Some(sidecar) = &mut status.sidecar {
            sidecar.renews = true;
        }
        assert!(!problems(&status, now)[0].contains("ends in 13 days"));
        status.sidecar = None;
        assert!(problems(&status, now)[0].contains("mesh-proxy does not report"));
    }
}

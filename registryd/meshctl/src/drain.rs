//! `meshctl drain` and `meshctl undrain`: a node that is going to be serviced gets no new tasks, and finishes those in flight.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use mesh_shared::live::{Direction, LiveUpdate};
use mesh_shared::registry::Status;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use crate::live::Feed;
use crate::output::{duration, print, print_json_line};
use crate::status::set;
use crate::{Failure, Global, time};

/// The longest `--timeout`.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);
/// How often it is said what is waited for, where that does not change.
const AGAIN: Duration = Duration::from_secs(10);
/// After this time without a heartbeat of its own configuration, others know: the default of `mesh.heartbeat_interval_ms`.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// The exit code where something is still in flight.
const STILL_IN_FLIGHT: u8 = 3;

const NOTES: &str = "\
Requests that name this node itself, not an agent, still come, and --wait waits for them as well. It waits until nothing of
other nodes has been in flight for one heartbeat, since that long may pass until all of them know.

Exit codes: 0 drained (without --wait: announced); 3 something is still in flight when --timeout is over, and the node
stays updating; 1 a daemon of this host cannot be asked: with --wait, nothing was changed then.";

/// Arguments of `meshctl drain`.
#[derive(Debug, Args)]
#[command(after_help = NOTES)]
pub struct DrainArgs {
    /// Wait until no request of another node is in flight, and show those that are
    #[arg(long)]
    wait: bool,
    /// How long to wait, as in 90s, 10m or 2h
    #[arg(long, value_name = "TIME", requires = "wait", default_value = "10m", value_parser = |text: &str| time(text, LONGEST))]
    timeout: Duration,
}

/// Announces that this node takes no new tasks, and waits for those that it has if asked to.
///
/// # Errors
/// registryd cannot be reached, or with `--wait` mesh-proxy.
pub async fn run(args: DrainArgs, global: &Global) -> Result<ExitCode, Failure> {
    if !args.wait {
        set(Status::Updating, global).await?;
        return told(global, Status::Updating);
    }
    // Before anything is changed.
    let mut feed = Feed::open(None, global).await?;
    let heartbeat = global.config()?.map_or(HEARTBEAT, |config| config.mesh.heartbeat_interval);
    set(Status::Updating, global).await?;
    told(global, Status::Updating)?;
    let (begun, mut quiet_since) = (Instant::now(), None);
    let end = begun + args.timeout;
    let mut last: Option<(Instant, Waiting)> = None;
    loop {
        let waiting = match timeout_at(end, feed.next_or_again()).await {
            Ok(update) => Waiting::for_inbound(&update),
            Err(_) => {
                let what = last.map(|(_, waiting)| waiting).unwrap_or_default();
                return given_up(global, &what, args.timeout);
            }
        };
        let now = Instant::now();
        match waiting.total {
            0 => {
                let since = *quiet_since.get_or_insert(now);
                if now - since >= heartbeat {
                    return drained(global, begun);
                }
            }
            _ => quiet_since = None,
        }
        if last.as_ref().is_none_or(|(at, before)| *before != waiting || now - *at >= AGAIN) {
            tell(global, &waiting, heartbeat)?;
            last = Some((now, waiting));
        }
    }
}

/// Announces that this node takes tasks again.
///
/// # Errors
/// registryd cannot be reached or refuses.
pub async fn undo(global: &Global) -> Result<ExitCode, Failure> {
    set(Status::Online, global).await?;
    told(global, Status::Online)
}

fn told(global: &Global, status: Status) -> Result<ExitCode, Failure> {
    match (global.json, status) {
        (true, _) => print_json_line(&json!({ "status": status }))?,
        (_, Status::Updating) => {
            print("this node is now updating: other nodes send it no new tasks until meshctl undrain\n")?;
        }
        _ => print("this node takes tasks again\n")?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What other nodes sent and is not done yet.
#[derive(Debug, Default, PartialEq, Eq)]
struct Waiting {
    total: u64,
    /// By caller and agent.
    by: BTreeMap<(String, String), usize>,
}

impl Waiting {
    fn for_inbound(update: &LiveUpdate) -> Self {
        let inbound = update.in_flight.iter().filter(|exchange| exchange.direction == Direction::Inbound);
        let mut by = BTreeMap::new();
        for exchange in inbound.filter(|exchange| !exchange.routine) {
            let agent = exchange.agent.as_ref().map(ToString::to_string).unwrap_or_default();
            *by.entry((exchange.peer.clone().unwrap_or_default(), agent)).or_default() += 1;
        }
        let shown = by.values().sum::<usize>() as u64;
        // Those that a line has no room for may be of any kind.
        let untold = update.in_flight_total.saturating_sub(update.in_flight.len() as u64);
        Self { total: shown + untold, by }
    }

    fn text(&self) -> String {
        let each = self.by.iter().map(|((peer, agent), count)| match agent.as_str() {
            "" => format!("{count} of {peer}"),
            agent => format!("{count} of {peer} for {agent}"),
        });
        let each: Vec<_> = each.collect();
        format!("{} in flight ({})", self.total, each.join(", "))
    }
}

fn tell(global: &Global, waiting: &Waiting, heartbeat: Duration) -> Result<(), Failure> {
    if global.json {
        let of = waiting
            .by
            .iter()
            .map(|((peer, agent), count)| json!({ "peer": peer, "agent": agent, "inFlight": count }));
        return Ok(print_json_line(&json!({ "inFlight": waiting.total, "of": of.collect::<Vec<_>>() }))?);
    }
    Ok(print(&match waiting.total {
        0 => format!("nothing in flight; waiting {} until all nodes know\n", time_text(heartbeat)),
        _ => format!("waiting for {}\n", waiting.text()),
    })?)
}

fn drained(global: &Global, begun: Instant) -> Result<ExitCode, Failure> {
    let took = begun.elapsed();
    match global.json {
        true => print_json_line(&json!({ "drained": true, "inFlight": 0 }))?,
        false => print(&format!("drained after {}\n", time_text(took)))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn given_up(global: &Global, waiting: &Waiting, limit: Duration) -> Result<ExitCode, Failure> {
    match global.json {
        true => print_json_line(&json!({ "drained": false, "inFlight": waiting.total }))?,
        false => {
            let what = match waiting.total {
                0 => "nothing is in flight, but not for long enough".into(),
                _ => waiting.text(),
            };
            eprintln!("meshctl: not drained after {}: {what}; the node stays updating", time_text(limit));
        }
    }
    Ok(ExitCode::from(STILL_IN_FLIGHT))
}

fn time_text(time: Duration) -> String {
    duration(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn only_what_peers_sent_is_waited_for() {
        let exchange = |direction: &str, agent: Option<&str>, routine: bool| -> Value {
            json!({
                "id": 1, "direction": direction, "peer": "ct111", "agent": agent, "method": "GET", "path": "/", "beganMs": 1,
                "bytesIn": 0, "bytesOut": 0, "attempts": 0, "routine": routine,
            })
        };
        let waiting = |total: usize, in_flight: &[Value]| {
            let update = json!({
                "atMs": 1, "node": "ct110", "version": "0", "inFlight": in_flight, "inFlightTotal": total, "ended": [],
                "endedOmitted": 0,
            });
            Waiting::for_inbound(&serde_json::from_value(update).unwrap())
        };
        let others = [exchange("outbound", None, false), exchange("inbound", None, true)];
        assert_eq!(waiting(2, &others).total, 0);
        let ours = ["grok", "opus", "grok"].map(|agent| exchange("inbound", Some(agent), false));
        let found = waiting(4, &[&ours[..], &[exchange("inbound", None, false)]].concat());
        assert_eq!(found.text(), "4 in flight (1 of ct111, 2 of ct111 for grok, 1 of ct111 for opus)");
        assert_eq!(waiting(9, &ours).total, 9);
    }
}

//! `meshctl tap`: access lines of a sidecar as they come, metadata only.

use std::net::IpAddr;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use mesh_shared::live::{Direction, EndedExchange, Refusal};
use mesh_shared::name::NodeName;
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::time::{Instant, timeout_at};

use crate::live::{Feed, agent, failed_means, other_end};
use crate::output::{Colour, duration, is_terminal, paint, print, print_json_line};
use crate::{Failure, Global, node_name, time};

/// The longest `--for`.
const LONGEST: Duration = Duration::from_secs(86_400);

const NOTES: &str = concat!(
    failed_means!(),
    "

Connections of peers that were refused before they made a request (bad, expired or revoked certificates, proxy.policy, limits)
are shown as well, by the address that they came from. As in the log, of each reason the first eight in ten seconds are shown,
the others counted.

Exit code 0 when --count or --for is over, 1 when the sidecar cannot be asked or does not permit it."
);

/// Arguments of `meshctl tap`.
#[derive(Debug, Args)]
#[command(after_help = NOTES)]
pub struct TapArgs {
    /// The node to look at, as in ct111 [default: this one]
    #[arg(long, value_name = "NODE", value_parser = node_name)]
    node: Option<NodeName>,
    #[command(flatten)]
    filter: Filter,
    /// Exit after this number of lines
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Exit after this time, as in 30s, 5m or 1h
    #[arg(long = "for", value_name = "TIME", value_parser = |text: &str| time(text, LONGEST))]
    limit: Option<Duration>,
}

/// Which lines are shown: those that all of these match.
#[derive(Debug, Args)]
struct Filter {
    /// Only requests from peers to the node's agents (in), or from the node's programs to peers (out)
    #[arg(long, value_enum)]
    direction: Option<Way>,
    /// Only this caller (the name in its certificate) or called node; for a refused connection, also its address
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
    /// Only this called or calling agent
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
    /// Only paths that begin with this
    #[arg(long, value_name = "PREFIX")]
    path: Option<String>,
    /// Only this status or class of statuses, as in 404 or 5xx; none: no answer began
    #[arg(long, value_name = "STATUS")]
    status: Option<StatusFilter>,
    /// Only requests that failed, and refused connections
    #[arg(long)]
    errors: bool,
    /// Only connections of peers that were refused before there was a request
    #[arg(long)]
    refused: bool,
    /// Include requests that sidecars and registries exchange by themselves, such as pings and joins
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    In,
    Out,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StatusFilter {
    /// No answer began.
    None,
    /// The first digit.
    Class(u16),
    Exactly(u16),
}

impl FromStr for StatusFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let class =
            |text: &str| text.strip_suffix("xx")?.parse().ok().filter(|class| (1..=5).contains(class));
        let status = text.parse().ok().filter(|status| (100..=599).contains(status));
        match (text, class(text), status) {
            ("none", ..) => Ok(Self::None),
            (_, Some(class), _) => Ok(Self::Class(class)),
            (_, _, Some(status)) => Ok(Self::Exactly(status)),
            _ => Err(format!("expected a status such as 404, a class such as 5xx, or none, found {text:?}")),
        }
    }
}

impl Filter {
    fn admits(&self, ended: &EndedExchange) -> bool {
        let exchange = &ended.exchange;
        let way = match exchange.direction {
            Direction::Inbound => Way::In,
            Direction::Outbound => Way::Out,
        };
        let acts_as = exchange.as_agent.as_deref().and_then(|identity| identity.split('@').next());
        let agents = [exchange.agent.as_ref().map(mesh_shared::AgentName::as_str), acts_as];
        let status = exchange.status;
        !self.refused
            && (self.all || !exchange.routine)
            && self.direction.is_none_or(|wanted| wanted == way)
            && self.peer.as_deref().is_none_or(|peer| other_end(exchange) == peer)
            && self.agent.as_deref().is_none_or(|agent| agents.contains(&Some(agent)))
            && self.path.as_deref().is_none_or(|prefix| exchange.path.starts_with(prefix))
            && self.status.is_none_or(|wanted| match wanted {
                StatusFilter::None => status.is_none(),
                StatusFilter::Class(class) => status.is_some_and(|status| status / 100 == class),
                StatusFilter::Exactly(exact) => status == Some(exact),
            })
            && (!self.errors || ended.failed())
    }

    /// A refused connection has neither agent nor path, and got no answer.
    fn admits_refusal(&self, refusal: &Refusal) -> bool {
        let is_peer = |wanted: &str| {
            refusal.peer.as_deref() == Some(wanted)
                || wanted.parse().is_ok_and(|ip: IpAddr| ip == refusal.address)
        };
        self.direction != Some(Way::Out)
            && self.peer.as_deref().is_none_or(is_peer)
            && self.agent.is_none()
            && self.path.is_none()
            && self.status.is_none_or(|wanted| wanted == StatusFilter::None)
    }
}

/// A line for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    /// Whose sidecar tells it.
    told_by: &'a NodeName,
    #[serde(flatten)]
    ended: &'a EndedExchange,
}

/// As [`Line`], of a connection that was refused.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RefusedLine<'a> {
    told_by: &'a NodeName,
    refused: &'a Refusal,
}

/// Shows what ends, until there is enough of it or somebody interrupts.
///
/// # Errors
/// The sidecar is away or does not permit it at the start.
pub async fn run(args: TapArgs, global: &Global) -> Result<ExitCode, Failure> {
    let end = args.limit.map(|limit| Instant::now() + limit);
    let mut feed = Feed::open(args.node.as_ref(), global).await?;
    if is_terminal() && !global.json {
        eprintln!("requests are shown when they have ended; Ctrl-C ends");
    }
    let mut left = args.count;
    loop {
        let update = match end {
            Some(end) => match timeout_at(end, feed.next_or_again()).await {
                Ok(update) => update,
                Err(_) => return Ok(ExitCode::SUCCESS),
            },
            None => feed.next_or_again().await,
        };
        let refused = update.refused.iter().filter(|refusal| args.filter.admits_refusal(refusal));
        let ended = update.ended.iter().filter(|ended| args.filter.admits(ended));
        for happened in refused.map(Happened::Refused).chain(ended.map(Happened::Ended)) {
            match (global.json, happened) {
                (true, Happened::Ended(ended)) => print_json_line(&Line { told_by: &update.node, ended })?,
                (true, Happened::Refused(refused)) => {
                    print_json_line(&RefusedLine { told_by: &update.node, refused })?;
                }
                (false, Happened::Ended(ended)) => print(&line(ended))?,
                (false, Happened::Refused(refusal)) => print(&refused_line(refusal))?,
            }
            if let Some(left) = &mut left {
                *left -= 1;
                if *left == 0 {
                    return Ok(ExitCode::SUCCESS);
                }
            }
        }
        if update.ended_omitted > 0 {
            eprintln!("meshctl: {} more have ended that are not shown", update.ended_omitted);
        }
        if update.refused_omitted > 0 {
            eprintln!("meshctl: {} more were refused that are not shown", update.refused_omitted);
        }
    }
}

/// What a line is about.
enum Happened<'a> {
    Ended(&'a EndedExchange),
    Refused(&'a Refusal),
}

/// The time of day in UTC.
fn time_of_day(epoch_ms: u64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(epoch_ms) * 1_000_000).ok();
    let format = format_description!("[hour]:[minute]:[second]");
    at.and_then(|at| at.format(format).ok()).unwrap_or_default()
}

/// For people: when and who was refused, and why.
fn refused_line(refusal: &Refusal) -> String {
    let Refusal { at_ms, address, peer, cause, reason, .. } = refusal;
    let who = match peer {
        Some(peer) => format!("{peer} {address}"),
        None => address.to_string(),
    };
    let (at, status) = (time_of_day(*at_ms), paint(Colour::Red, "---"));
    format!("{at}  in   {who:<24}  {status}  {:>8}  refused before a request, {cause}: {reason}\n", "")
}

/// For people: when it ended, which way and between whom it went, and what came of it.
fn line(ended: &EndedExchange) -> String {
    let exchange = &ended.exchange;
    let at = time_of_day(exchange.began_ms.saturating_add(ended.duration_ms));
    let (way, other) = (
        match exchange.direction {
            Direction::Inbound => "in ",
            Direction::Outbound => "out",
        },
        other_end(exchange),
    );
    let who = match agent(exchange) {
        "" => other.to_owned(),
        agent => format!("{other} {agent}"),
    };
    let status = exchange.status.map_or_else(|| "---".into(), |status| status.to_string());
    let status = match exchange.status {
        Some(..400) if ended.outcome == "complete" => paint(Colour::Green, &status),
        Some(400..500) => paint(Colour::Yellow, &status),
        _ => paint(Colour::Red, &status),
    };
    let mut text = format!(
        "{at}  {way}  {who:<24}  {status}  {:>8}  {} {}",
        duration(ended.duration_ms),
        exchange.method,
        exchange.path
    );
    if ended.outcome != "complete" && ended.outcome != "error" {
        text.push_str(&format!("  {}", ended.outcome));
    }
    if let Some(code) = &ended.code {
        text.push_str(&format!("  {code}"));
    }
    if let Some(reason) = &ended.reason {
        text.push_str(&format!(": {reason}"));
    }
    if ended.tries.len() > 1 {
        let tries = ended.tries.iter().map(|tried| match &tried.error {
            Some(error) => format!("{} ({error})", tried.node),
            None => tried.node.to_string(),
        });
        text.push_str(&format!("  tried {}", tries.collect::<Vec<_>>().join(", ")));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        filter: Filter,
    }

    fn ended() -> EndedExchange {
        serde_json::from_value(json!({
            "id": 1, "direction": "outbound", "asAgent": "opus@ct110", "node": "ct112", "agent": "grok", "method": "POST",
            "path": "/api/message", "beganMs": 1_000, "status": 502, "bytesIn": 0, "bytesOut": 0, "attempts": 2,
            "outcome": "error", "code": "peer_failed", "reason": "it broke", "durationMs": 1_500,
            "tries": [{"node": "ct111", "error": "peer_unreachable"}, {"node": "ct112", "error": "peer_failed"}],
        }))
        .unwrap()
    }

    #[test]
    fn a_line_is_shown_where_all_filters_match() {
        let admits = |ended: &EndedExchange, arguments: &str| {
            let arguments = ["tap"].into_iter().chain(arguments.split_whitespace());
            Cli::try_parse_from(arguments).unwrap().filter.admits(ended)
        };
        let mut line = ended();
        for matching in [
            "",
            "--direction out",
            "--peer ct112",
            "--agent grok",
            "--agent opus",
            "--path /api/",
            "--status 5xx",
            "--status 502",
            "--errors",
            "--errors --agent opus --status 5xx --direction out",
        ] {
            assert!(admits(&line, matching), "{matching}");
        }
        for other in
            ["--direction in", "--peer ct111", "--agent hermes", "--path /x", "--status 4xx", "--status none"]
        {
            assert!(!admits(&line, other), "{other}");
        }
        line.exchange.routine = true;
        assert!(!admits(&line, "") && admits(&line, "--all"));
        (line.exchange.routine, line.exchange.status, line.outcome) = (false, Some(200), "complete".into());
        line.code = None;
        assert!(!admits(&line, "--errors"));
        line.outcome = "cut_by_upstream".into();
        assert!(admits(&line, "--errors"));
        line.exchange.status = None;
        assert!(admits(&line, "--errors --status none"));
        line.outcome = "cut_by_caller".into();
        assert!(!admits(&line, "--errors") && !admits(&line, "--refused"));
        for bad in ["--status 6xx", "--status 99", "--status x", "--direction up"] {
            assert!(Cli::try_parse_from(["tap"].into_iter().chain(bad.split(' '))).is_err(), "{bad}");
        }
    }

    fn refusal() -> Refusal {
        serde_json::from_value(json!({
            "id": 1, "atMs": 2_500, "address": "192.168.10.112", "cause": "revoked", "reason": "certificate is revoked",
        }))
        .unwrap()
    }

    #[test]
    fn a_refused_connection_is_shown_where_all_filters_match() {
        let mut refused = refusal();
        refused.peer = Some("ct112".into());
        for (arguments, expected) in [
            ("", true),
            ("--refused --direction in", true),
            ("--errors --peer 192.168.10.112", true),
            ("--peer ct112 --status none", true),
            ("--direction out", false),
            ("--peer ct111", false),
            ("--peer 192.168.10.113", false),
            ("--agent grok", false),
            ("--path /", false),
            ("--status 4xx", false),
        ] {
            let cli = ["tap"].into_iter().chain(arguments.split_whitespace());
            let filter = Cli::try_parse_from(cli).unwrap().filter;
            assert_eq!(filter.admits_refusal(&refused), expected, "{arguments}");
        }
    }

    #[test]
    fn a_line_tells_what_came_of_it() {
        assert_eq!(
            refused_line(&refusal()),
            "00:00:02  in   192.168.10.112            ---            refused before a request, revoked: certificate is revoked\n"
        );
        assert_eq!(
            line(&ended()),
            "00:00:02  out  ct112 grok                502       1 s  POST /api/message  peer_failed: it broke  tried ct111 \
             (peer_unreachable), ct112 (peer_failed)\n"
        );
    }
}

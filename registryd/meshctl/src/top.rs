//! `meshctl top`: what is in flight at a sidecar, by peer and agent, with rates and times of the last minute.

use std::collections::{BTreeMap, VecDeque};
use std::process::ExitCode;

use clap::Args;
use mesh_shared::live::{LiveExchange, LiveUpdate, MAX_ENDED, Refusal};
use mesh_shared::name::NodeName;
use serde::Serialize;

use crate::live::{Feed, agent, failed_means, other_end};
use crate::output::{self, Cell, Colour, Table, counted, cut, duration, is_terminal, print, print_json_line};
use crate::{Failure, Global, node_name};

/// What rates and times are of.
const WINDOW_MS: u64 = 60_000;
/// Exchanges that are kept of it, at most: what sidecars tell in that time.
const MAX_PAST: usize = 60 * MAX_ENDED;
/// Lines of the screen that are not rows of the table.
const FRAME_LINES: usize = 4;

const NOTES: &str = concat!(
    "\
REQUESTS have no answer yet, STREAMS are answers that have begun. RATE, ERRORS, P50 and P95 are of what ended in the last
minute, or since top was started; ERRORS is the share that failed. ",
    failed_means!(),
    "
Connections of peers that were refused before they made a request are counted in the line above the table.

Exit code 1 when the sidecar cannot be asked or does not permit it."
);

/// Arguments of `meshctl top`.
#[derive(Debug, Args)]
#[command(after_help = NOTES)]
pub struct TopArgs {
    /// The node to look at, as in ct111 [default: this one]
    #[arg(long, value_name = "NODE", value_parser = node_name)]
    node: Option<NodeName>,
    /// Print one table and exit, as if stdout is not a terminal
    #[arg(long)]
    once: bool,
    /// Include requests that sidecars and registries exchange by themselves, such as pings and joins
    #[arg(long)]
    all: bool,
}

/// Draws the table each second, or once.
///
/// # Errors
/// The sidecar is away or does not permit it at the start.
pub async fn run(args: TopArgs, global: &Global) -> Result<ExitCode, Failure> {
    let mut feed = Feed::open(args.node.as_ref(), global).await?;
    let once = args.once || !(global.json || is_terminal());
    let mut minute = Minute::new(args.all);
    let mut first = true;
    loop {
        let update = feed.next_or_again().await;
        minute.note(&update);
        // The first line tells of nothing that has ended.
        let is_first = std::mem::take(&mut first);
        if once && is_first {
            continue;
        }
        let picture = minute.picture(&update);
        match global.json {
            true => print_json_line(&picture)?,
            // Everything at once, so that nothing flickers.
            false if once => print(&text(&picture, None))?,
            false => {
                let rows = output::terminal_height().map(|lines| lines.saturating_sub(FRAME_LINES).max(1));
                print(&format!("{}{}", output::clear(), text(&picture, rows)))?;
            }
        }
        if once {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// One row's exchanges: which way they go, with whom, and for which agent.
type Key = (&'static str, String, String);

/// What ended in the last minute, as far as it was told.
struct Minute {
    /// Also the routine ones.
    all: bool,
    since_ms: Option<u64>,
    ended: VecDeque<Past>,
    omitted: u64,
    /// Connections that were refused, by the line that told of them.
    refused: VecDeque<(u64, u64)>,
    last_refused: Option<Refusal>,
}

struct Past {
    at_ms: u64,
    key: Key,
    failed: bool,
    took_ms: u64,
}

/// What is shown at one moment.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Picture {
    at_ms: u64,
    node: NodeName,
    version: String,
    in_flight_total: u64,
    /// How many of them are in the rows or left out as routine; the others are not told.
    in_flight_told: usize,
    /// Exchanges that ended and are not in the rates.
    ended_omitted: u64,
    /// Connections of peers that were refused in the last minute, before there was a request.
    refused: u64,
    /// The last one of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_refused: Option<Refusal>,
    rows: Vec<Row>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    direction: &'static str,
    /// Inbound the peer that calls, outbound the node that is called; empty: none yet.
    peer: String,
    /// Empty: none is named.
    agent: String,
    /// In flight without an answer.
    requests: usize,
    /// In flight with one that has begun.
    streams: usize,
    /// The age of the oldest of both.
    oldest_ms: Option<u64>,
    ended: usize,
    per_second: f64,
    error_ratio: Option<f64>,
    p50_ms: Option<u64>,
    p95_ms: Option<u64>,
}

fn key(exchange: &LiveExchange) -> Key {
    (exchange.direction.as_str(), other_end(exchange).to_owned(), agent(exchange).to_owned())
}

impl Minute {
    fn new(all: bool) -> Self {
        Self {
            all,
            since_ms: None,
            ended: VecDeque::new(),
            omitted: 0,
            refused: VecDeque::new(),
            last_refused: None,
        }
    }

    fn note(&mut self, update: &LiveUpdate) {
        self.since_ms.get_or_insert(update.at_ms);
        self.omitted = self.omitted.saturating_add(update.ended_omitted);
        let shown = update.ended.iter().filter(|ended| self.all || !ended.exchange.routine);
        self.ended.extend(shown.map(|ended| Past {
            at_ms: update.at_ms,
            key: key(&ended.exchange),
            failed: ended.failed(),
            took_ms: ended.duration_ms,
        }));
        let begin = update.at_ms.saturating_sub(WINDOW_MS);
        // However the far clock goes.
        while self.ended.front().is_some_and(|past| past.at_ms < begin) || self.ended.len() > MAX_PAST {
            self.ended.pop_front();
        }
        let refused = (update.refused.len() as u64).saturating_add(update.refused_omitted);
        if refused > 0 {
            self.refused.push_back((update.at_ms, refused));
            self.last_refused = update.refused.last().cloned().or(self.last_refused.take());
        }
        while self.refused.front().is_some_and(|(at_ms, _)| *at_ms < begin) || self.refused.len() > MAX_PAST {
            self.refused.pop_front();
        }
        if self.refused.is_empty() {
            self.last_refused = None;
        }
    }

    fn picture(&self, update: &LiveUpdate) -> Picture {
        let seen_ms = update.at_ms.saturating_sub(self.since_ms.unwrap_or(update.at_ms));
        let seconds = seen_ms.clamp(1_000, WINDOW_MS) as f64 / 1_000.0;
        let mut rows: BTreeMap<&Key, (Row, Vec<u64>, usize)> = BTreeMap::new();
        let in_flight: Vec<_> = update
            .in_flight
            .iter()
            .filter(|exchange| self.all || !exchange.routine)
            .map(|exchange| (key(exchange), exchange))
            .collect();
        for (key, exchange) in &in_flight {
            let (row, ..) = rows.entry(key).or_default();
            match exchange.status {
                None => row.requests += 1,
                Some(_) => row.streams += 1,
            }
            row.oldest_ms = row.oldest_ms.max(Some(update.at_ms.saturating_sub(exchange.began_ms)));
        }
        for past in &self.ended {
            let (_, times, failures) = rows.entry(&past.key).or_default();
            times.push(past.took_ms);
            *failures += usize::from(past.failed);
        }
        let mut rows: Vec<Row> = rows
            .into_iter()
            .map(|((direction, peer, agent), (row, mut times, failures))| {
                times.sort_unstable();
                let rank =
                    |percent: usize| times.get((times.len() * percent).div_ceil(100).max(1) - 1).copied();
                let ended = times.len();
                Row {
                    direction,
                    peer: peer.clone(),
                    agent: agent.clone(),
                    ended,
                    per_second: (ended as f64 / seconds * 10.0).round() / 10.0,
                    error_ratio: (ended > 0).then(|| failures as f64 / ended as f64),
                    p50_ms: rank(50),
                    p95_ms: rank(95),
                    ..row
                }
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse((row.requests + row.streams, row.ended)));
        Picture {
            at_ms: update.at_ms,
            node: update.node.clone(),
            version: update.version.clone(),
            in_flight_total: update.in_flight_total,
            in_flight_told: update.in_flight.len(),
            ended_omitted: self.omitted,
            refused: self.refused.iter().fold(0, |sum, (_, refused)| sum.saturating_add(*refused)),
            last_refused: self.last_refused.clone(),
            rows,
        }
    }
}

/// For people; at most so many `rows`.
fn text(picture: &Picture, rows: Option<usize>) -> String {
    let sum = |count: fn(&Row) -> usize| picture.rows.iter().map(count).sum::<usize>();
    let per_second: f64 = picture.rows.iter().map(|row| row.per_second).sum();
    let in_flight = format!(
        "{} and {} in flight",
        counted(sum(|row| row.requests), "request"),
        counted(sum(|row| row.streams), "stream")
    );
    let head = format!(
        "{} (mesh-proxy {}): {in_flight}, {per_second:.1} ended a second",
        picture.node, picture.version
    );
    let mut text = format!("{}\n", cut(&head));
    let mut remarks = Vec::new();
    if picture.refused > 0 {
        let last = picture.last_refused.as_ref();
        let last = last.map(|last| format!(", the last from {}: {}", last.address, last.reason));
        let (refused, last) = (picture.refused, last.unwrap_or_default());
        remarks.push(format!("refused in the last minute: {refused}{last}"));
    }
    if picture.in_flight_total > picture.in_flight_told as u64 {
        let (total, told) = (picture.in_flight_total, picture.in_flight_told);
        remarks.push(format!("{total} are in flight; the rows count the oldest {told}"));
    }
    if picture.ended_omitted > 0 {
        remarks.push(format!("{} that ended are not in the rates", picture.ended_omitted));
    }
    text.push_str(&format!("{}\n", cut(&remarks.join("; "))));
    let mut table =
        Table::new(["WAY", "PEER", "AGENT", "REQUESTS", "STREAMS", "OLDEST", "RATE", "ERRORS", "P50", "P95"]);
    let shown = rows.unwrap_or(picture.rows.len());
    for row in picture.rows.iter().take(shown) {
        let time = |ms: Option<u64>| Cell::from(ms.map(duration).unwrap_or_default());
        let errors = match row.error_ratio {
            None => Cell::from(""),
            Some(0.0) => Cell::from("0 %"),
            Some(ratio) => Cell::coloured(Colour::Red, format!("{:.1} %", ratio * 100.0)),
        };
        table.row([
            row.direction.into(),
            row.peer.as_str().into(),
            row.agent.as_str().into(),
            row.requests.to_string().into(),
            row.streams.to_string().into(),
            time(row.oldest_ms),
            format!("{:.1}/s", row.per_second).into(),
            errors,
            time(row.p50_ms),
            time(row.p95_ms),
        ]);
    }
    text.push_str(&table.render());
    if picture.rows.is_empty() {
        text.push_str("nothing is in flight, and nothing has ended in the last minute\n");
    }
    if picture.rows.len() > shown {
        text.push_str(&format!("and {} more\n", counted(picture.rows.len() - shown, "row")));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn exchange(id: u64, direction: &str, peer: &str, status: Option<u16>) -> Value {
        json!({
            "id": id, "direction": direction, "peer": peer, "agent": "grok", "method": "POST", "path": "/", "beganMs": 1_000,
            "status": status, "bytesIn": 0, "bytesOut": 0, "attempts": 0,
        })
    }

    fn ended(id: u64, took: u64, outcome: &str, status: u16) -> Value {
        let mut ended = exchange(id, "inbound", "ct111", Some(status));
        (ended["outcome"], ended["durationMs"]) = (outcome.into(), took.into());
        ended
    }

    fn update(at_ms: u64, in_flight: Vec<Value>, ended: Vec<Value>) -> LiveUpdate {
        let total = in_flight.len();
        serde_json::from_value(json!({
            "atMs": at_ms, "node": "ct110", "version": "0", "inFlight": in_flight, "inFlightTotal": total,
            "ended": ended, "endedOmitted": 0,
        }))
        .unwrap()
    }

    #[test]
    fn rows_are_by_peer_and_agent_and_rates_are_of_the_last_minute() {
        let mut minute = Minute::new(false);
        minute.note(&update(100_000, Vec::new(), Vec::new()));
        let mut routine = ended(9, 1, "complete", 200);
        routine["routine"] = true.into();
        let many = (1..=100).map(|n| ended(n, n, "complete", 200)).chain([routine]).collect();
        minute.note(&update(101_000, Vec::new(), many));
        let ends = vec![ended(200, 7, "error", 502), ended(201, 8, "cut_by_caller", 200)];
        let in_flight = vec![
            exchange(300, "inbound", "ct111", None),
            exchange(301, "inbound", "ct111", Some(200)),
            exchange(302, "inbound", "ct112", None),
        ];
        let last = update(110_000, in_flight, ends);
        minute.note(&last);
        let picture = minute.picture(&last);
        let row = &picture.rows[0];
        assert_eq!((row.peer.as_str(), row.requests, row.streams, row.ended), ("ct111", 1, 1, 102));
        assert_eq!((row.oldest_ms, row.p50_ms, row.p95_ms), (Some(109_000), Some(49), Some(95)));
        assert_eq!((row.per_second, row.error_ratio), (10.2, Some(1.0 / 102.0)));
        let row = &picture.rows[1];
        assert_eq!((row.peer.as_str(), row.requests, row.ended, row.p50_ms), ("ct112", 1, 0, None));
        let shown = text(&picture, Some(1));
        assert!(
            shown.starts_with(
                "ct110 (mesh-proxy 0): 2 requests and 1 stream in flight, 10.2 ended a second\n"
            )
        );
        assert!(shown.ends_with("and 1 row more\n") && shown.contains("1.0 %"), "{shown}");

        assert!(!shown.contains("refused"), "{shown}");
        let mut refusing = update(111_000, Vec::new(), Vec::new());
        refusing.refused_omitted = 2;
        refusing.refused = serde_json::from_value(json!([
            {"id": 1, "atMs": 110_500, "address": "192.168.10.112", "cause": "revoked", "reason": "certificate is revoked"},
        ]))
        .unwrap();
        minute.note(&refusing);
        let shown = text(&minute.picture(&refusing), None);
        let told = "refused in the last minute: 3, the last from 192.168.10.112: certificate is revoked";
        assert_eq!(shown.lines().nth(1), Some(told));

        let later = update(161_001, Vec::new(), Vec::new());
        minute.note(&later);
        let picture = minute.picture(&later);
        assert_eq!((picture.rows.len(), picture.rows[0].ended, picture.refused), (1, 2, 3));
        assert_eq!(picture.rows[0].error_ratio, Some(0.5));
    }
}

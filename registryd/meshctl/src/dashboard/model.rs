//! What the page shows: the mesh as registryd knows it, and what the sidecars' live views have told. Its size is bounded,
//! whatever the mesh does and other hosts tell. Clocks are passed in.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use mesh_shared::Identity;
use mesh_shared::live::{Direction, EndedExchange, LiveExchange, LiveUpdate, Refusal};
use mesh_shared::local_api::{AgentView, NodeView, SeenCertificates};
use mesh_shared::logging::Excerpt;
use mesh_shared::name::NodeName;
use mesh_shared::registry::Status;
use serde::Serialize;
use serde_json::{Value, json};

use crate::dashboard::history::{History, STEP_MS, STEPS};
use crate::live::tame;

/// Pairs of nodes with traffic between them; the one that has been silent for longest makes room.
const MAX_EDGES: usize = 2_000;
/// Exchanges that ended, kept to be looked at.
const MAX_REQUESTS: usize = 2_000;
/// Of them, those that failed; kept by themselves, so that many that went well do not displace them.
const MAX_FAILURES: usize = 300;
/// Refused connections that are kept: kinds of them, of one node and of all.
const MAX_REFUSED_OF_NODE: usize = 20;
const MAX_REFUSED: usize = 100;
/// Exchanges in flight kept of each node; all count.
const MAX_IN_FLIGHT_OF_NODE: usize = 100;
/// Exchanges in flight that are shown, the oldest.
const MAX_IN_FLIGHT_SHOWN: usize = 200;
/// Requests and failures that a page is told when it opens, each.
const MAX_AT_ONCE: usize = 150;
/// Requests that a page is told in one second, each.
const MAX_PER_TICK: usize = 60;
/// Nodes whose certificates are known.
const MAX_CERTIFICATES: usize = 5_000;
/// Changes of the mesh that are kept.
const MAX_CHANGES: usize = 100;
/// Most characters of a text that another host chose.
const MAX_CHARS: usize = 300;
/// An edge without traffic is shown for this long.
const EDGE_SHOWN_MS: u64 = 60_000;
/// Rates are means over so many seconds.
const RATE_SECONDS: usize = 5;

/// The time by this host's clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Since the start, ms; never goes back.
    pub ms: u64,
    /// Epoch, ms.
    pub epoch_ms: u64,
}

impl Now {
    fn step(self) -> u64 {
        self.ms / STEP_MS
    }
}

/// How it stands with something that tells the dashboard what it shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum Source {
    /// Nothing is known of it yet.
    Connecting,
    /// As many are read as can be at once.
    Waiting,
    /// It answers.
    Live,
    /// It is there, and will not tell this node.
    NotPermitted,
    /// It does not answer as it should.
    Away {
        /// Why, and what to do.
        detail: String,
    },
}

impl Source {
    /// It does not answer, for this reason.
    pub fn away(why: impl ToString) -> Self {
        Self::Away { detail: bounded(&why.to_string()) }
    }
}

/// Who tells.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Teller {
    /// The sidecar of this host.
    Own,
    /// Another node's.
    Peer(NodeName),
}

#[derive(Debug)]
struct Feed {
    source: Source,
    in_flight: Vec<LiveExchange>,
    in_flight_total: u64,
    at_ms: u64,
    omitted: u64,
    refused_omitted: u64,
}

#[derive(Debug, Default)]
struct Edge {
    history: History,
    requests: [u32; RATE_SECONDS],
    failures: [u32; RATE_SECONDS],
    in_flight: u32,
    used_ms: u64,
}

type Ends = (String, String);

/// Everything that is known.
#[derive(Debug)]
pub struct Model {
    own: Option<NodeName>,
    registry: Source,
    problems: Vec<String>,
    nodes: Vec<NodeView>,
    agents: Vec<AgentView>,
    certificate_ends: HashMap<NodeName, i64>,
    feeds: BTreeMap<Teller, Feed>,
    edges: HashMap<Ends, Edge>,
    total: History,
    requests: VecDeque<Row>,
    failures: VecDeque<Row>,
    /// The one that was seen last is the last.
    refused: Vec<Refused>,
    changes: VecDeque<Value>,
    /// Counts rows and changes.
    serial: u64,
    told: Told,
}

/// What the pages have been told.
#[derive(Debug, Default)]
struct Told {
    mesh: String,
    serial: u64,
}

/// An exchange that ended.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    #[serde(skip)]
    serial: u64,
    key: String,
    teller: String,
    from: String,
    to: String,
    /// When this host heard of it, epoch ms.
    seen_ms: u64,
    failed: bool,
    #[serde(flatten)]
    exchange: EndedExchange,
}

/// Connections that a sidecar refused for one reason, before there was a request: a peer that goes on trying is one row.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Refused {
    #[serde(skip)]
    serial: u64,
    key: String,
    teller: String,
    /// When this host heard of the last one, epoch ms.
    seen_ms: u64,
    /// How many of them were told one by one.
    count: u64,
    /// The last one.
    #[serde(flatten)]
    last: Refusal,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InFlight<'a> {
    key: String,
    teller: &'a str,
    from: String,
    to: String,
    age_ms: u64,
    #[serde(flatten)]
    exchange: &'a LiveExchange,
}

impl Model {
    /// Nothing but this node's name, where that is known.
    pub fn new(own: Option<NodeName>) -> Self {
        let feed = Feed::default();
        Self {
            own,
            registry: Source::Connecting,
            problems: Vec::new(),
            nodes: Vec::new(),
            agents: Vec::new(),
            certificate_ends: HashMap::new(),
            feeds: BTreeMap::from([(Teller::Own, feed)]),
            edges: HashMap::new(),
            total: History::default(),
            requests: VecDeque::new(),
            failures: VecDeque::new(),
            refused: Vec::new(),
            changes: VecDeque::new(),
            serial: 0,
            told: Told::default(),
        }
    }

    /// Takes what registryd says of the mesh.
    pub fn registry(&mut self, nodes: Vec<NodeView>, agents: Vec<AgentView>) {
        if let Some(own) = nodes.iter().find(|view| view.local).and_then(|view| view.node.node_name()) {
            self.own = Some(own);
        }
        (self.registry, self.nodes, self.agents) = (Source::Live, nodes, agents);
    }

    /// Notes that registryd does not answer. What it said last stays.
    pub fn registry_away(&mut self, why: impl ToString) {
        self.registry = Source::away(why);
    }

    /// Takes what registryd finds wrong with this node, and when its certificate ends.
    pub fn own_state(&mut self, node: NodeName, problems: &[String], certificate_ends: Option<i64>) {
        self.problems = problems.iter().take(10).map(|problem| bounded(problem)).collect();
        if let Some(ends) = certificate_ends {
            self.certificate_ends.insert(node.clone(), ends);
        }
        self.own = Some(node);
    }

    /// Takes what the sidecar saw of the nodes' certificates.
    pub fn certificates(&mut self, seen: SeenCertificates) {
        let own = self.own.as_ref().and_then(|own| self.certificate_ends.remove_entry(own));
        let seen = seen.nodes.into_iter().take(MAX_CERTIFICATES);
        self.certificate_ends = seen.map(|seen| (seen.node, seen.not_after)).chain(own).collect();
    }

    /// Takes a change of the mesh.
    pub fn change(&mut self, kind: &str, data: &str, now: Now) {
        let data: Value = serde_json::from_str(data).unwrap_or_default();
        let text = |key: &str| data[key].as_str().map(bounded);
        self.serial += 1;
        // Some events are the node itself, others name it.
        let node = text("node").or_else(|| text("name"));
        let at = data["at"].as_u64().unwrap_or(now.epoch_ms);
        self.changes.push_back(json!({
            "serial": self.serial, "kind": bounded(kind), "node": node, "status": text("status"), "atMs": at,
        }));
        keep(&mut self.changes, MAX_CHANGES);
    }

    /// Notes how it stands with a live view. One that is not live any more has nothing in flight.
    pub fn source(&mut self, teller: Teller, source: Source) {
        let live = source == Source::Live;
        let feed = self.feeds.entry(teller.clone()).or_default();
        feed.source = source;
        if !live {
            (feed.in_flight, feed.in_flight_total) = (Vec::new(), 0);
        }
    }

    /// Forgets a live view of a node that is gone.
    pub fn forget(&mut self, teller: &Teller) {
        self.feeds.remove(teller);
    }

    /// Whether a node's own live view is read.
    fn is_live(&self, node: &str) -> bool {
        self.feeds.iter().any(|(teller, feed)| feed.source == Source::Live && self.name_of(teller) == node)
    }

    fn name_of<'a>(&'a self, teller: &'a Teller) -> &'a str {
        match teller {
            Teller::Own => self.own.as_ref().map_or("", NodeName::as_str),
            Teller::Peer(node) => node.as_str(),
        }
    }

    /// Takes a line of a live view.
    pub fn update(&mut self, teller: Teller, mut update: LiveUpdate, now: Now) {
        match &teller {
            Teller::Own => self.own = Some(update.node.clone()),
            Teller::Peer(node) if *node != update.node => {
                let detail = format!("the live view of {node} says that it is {}'s", update.node);
                return self.source(teller, Source::away(detail));
            }
            Teller::Peer(_) => {}
        }
        update.in_flight.retain(|exchange| !exchange.routine);
        tame(&mut update, MAX_CHARS);
        let name = update.node.as_str();
        for ended in update.ended.into_iter().filter(|ended| !ended.exchange.routine) {
            self.ended(name, ended, now);
        }
        for refusal in update.refused {
            self.refused(name, refusal, now);
        }
        let feed = self.feeds.entry(teller).or_default();
        feed.source = Source::Live;
        feed.omitted = feed.omitted.saturating_add(update.ended_omitted);
        feed.refused_omitted = feed.refused_omitted.saturating_add(update.refused_omitted);
        feed.in_flight_total = update.in_flight_total.max(update.in_flight.len() as u64);
        (feed.in_flight, feed.at_ms) = (update.in_flight, update.at_ms);
    }

    fn ended(&mut self, teller: &str, mut ended: EndedExchange, now: Now) {
        ended.tries.truncate(mesh_shared::live::MAX_TRIES);
        let (from, to) = ends(teller, &ended.exchange);
        let failed = ended.failed();
        // Where both sidecars tell of an exchange, the caller's counts: it knows how long the caller waited.
        if ended.exchange.direction == Direction::Outbound || !self.is_live(&from) {
            let latency = ended.first_byte_ms.unwrap_or(ended.duration_ms);
            self.total.record(now.step(), latency, failed);
            if !to.is_empty() {
                let edge = self.edge((from.clone(), to.clone()), now);
                edge.history.record(now.step(), latency, failed);
                edge.requests[0] = edge.requests[0].saturating_add(1);
                edge.failures[0] = edge.failures[0].saturating_add(u32::from(failed));
            }
        }
        self.serial += 1;
        let row = Row {
            serial: self.serial,
            key: key(teller, &ended.exchange),
            teller: teller.into(),
            from,
            to,
            seen_ms: now.epoch_ms,
            failed,
            exchange: ended,
        };
        if failed {
            self.failures.push_back(row.clone());
            keep(&mut self.failures, MAX_FAILURES);
        }
        self.requests.push_back(row);
        keep(&mut self.requests, MAX_REQUESTS);
    }

    fn refused(&mut self, teller: &str, refusal: Refusal, now: Now) {
        // From wherever it comes: addresses may be many.
        let key = format!("{teller}/{}/{}", refusal.peer.as_deref().unwrap_or_default(), refusal.reason);
        let known = self.refused.iter().position(|each| each.key == key);
        let count = known.map_or(0, |at| self.refused.remove(at).count) + 1;
        let of_teller = |each: &Refused| each.teller == teller;
        let full = self.refused.iter().filter(|each| of_teller(each)).count() >= MAX_REFUSED_OF_NODE;
        let oldest = match full {
            true => self.refused.iter().position(of_teller),
            false => (self.refused.len() >= MAX_REFUSED).then_some(0),
        };
        oldest.map(|oldest| self.refused.remove(oldest));
        self.serial += 1;
        let (serial, seen_ms) = (self.serial, now.epoch_ms);
        self.refused.push(Refused { serial, key, teller: teller.into(), seen_ms, count, last: refusal });
    }

    fn edge(&mut self, ends: Ends, now: Now) -> &mut Edge {
        if self.edges.len() >= MAX_EDGES && !self.edges.contains_key(&ends) {
            let oldest = self.edges.iter().min_by_key(|(_, edge)| edge.used_ms).map(|(ends, _)| ends.clone());
            oldest.map(|oldest| self.edges.remove(&oldest));
        }
        let edge = self.edges.entry(ends).or_default();
        edge.used_ms = now.ms;
        edge
    }

    /// What all pages are told in this second; ends it.
    pub fn tick(&mut self, now: Now) -> String {
        self.count_in_flight(now);
        let mut text = String::new();
        let mesh = self.mesh().to_string();
        if mesh != self.told.mesh {
            event(&mut text, "mesh", &mesh);
            self.told.mesh = mesh;
        }
        let news = |rows: &VecDeque<Row>| -> Vec<Value> {
            let new = rows.iter().rev().take_while(|row| row.serial > self.told.serial).take(MAX_PER_TICK);
            new.map(|row| json!(row)).collect()
        };
        let (requests, failures) = (news(&self.requests), news(&self.failures));
        if !requests.is_empty() {
            event(&mut text, "requests", &json!({ "requests": requests, "failures": failures }).to_string());
        }
        let refused: Vec<_> = self.refused.iter().filter(|each| each.serial > self.told.serial).collect();
        if !refused.is_empty() {
            event(&mut text, "refused", &json!(refused).to_string());
        }
        let changes: Vec<_> =
            self.changes.iter().filter(|change| change["serial"].as_u64() > Some(self.told.serial)).collect();
        if !changes.is_empty() {
            event(&mut text, "changes", &json!(changes).to_string());
        }
        self.told.serial = self.serial;
        event(&mut text, "live", &self.live(now).to_string());
        for edge in self.edges.values_mut() {
            edge.requests.rotate_right(1);
            edge.failures.rotate_right(1);
            (edge.requests[0], edge.failures[0]) = (0, 0);
        }
        let oldest = now.step().saturating_sub(STEPS);
        self.edges.retain(|_, edge| edge.used_ms / STEP_MS >= oldest);
        text
    }

    /// What a page is told when it opens.
    pub fn snapshot(&self, now: Now) -> String {
        let mut text = String::new();
        event(&mut text, "mesh", &self.mesh().to_string());
        let series = json!({ "stepMs": STEP_MS, "steps": STEPS, "step": now.step(), "points": self.total.points(now.step()) });
        event(&mut text, "series", &series.to_string());
        let last = |rows: &VecDeque<Row>| -> Vec<Value> {
            rows.iter().rev().take(MAX_AT_ONCE).map(|row| json!(row)).collect()
        };
        let rows = json!({ "requests": last(&self.requests), "failures": last(&self.failures) });
        event(&mut text, "requests", &rows.to_string());
        event(&mut text, "refused", &json!(self.refused).to_string());
        event(&mut text, "changes", &json!(self.changes).to_string());
        event(&mut text, "live", &self.live(now).to_string());
        text
    }

    fn mesh(&self) -> Value {
        let nodes: Vec<Value> = self
            .nodes
            .iter()
            .map(|view| {
                let node = &view.node;
                let name = node.node_name();
                let teller = match view.local {
                    true => Some(Teller::Own),
                    false => name.clone().map(Teller::Peer),
                };
                let feed = teller.and_then(|teller| self.feeds.get(&teller)).map(|feed| &feed.source);
                let list = |list: &[String]| -> Vec<String> {
                    list.iter().take(50).map(|text| bounded(text)).collect()
                };
                json!({
                    "name": bounded(&node.name), "status": node.status, "local": view.local,
                    "agents": list(&node.agents), "host": bounded(&node.host), "port": node.port,
                    "version": bounded(&node.version), "models": list(&node.models),
                    "capabilities": list(&node.capabilities),
                    // Of one that lives it moves with each heartbeat.
                    "lastSeenMs": (node.status == Status::Offline).then_some(node.last_seen),
                    "certificateEnds": name.and_then(|name| self.certificate_ends.get(&name).copied()),
                    "feed": feed,
                })
            })
            .collect();
        let agents: Vec<Value> = self
            .agents
            .iter()
            .map(|agent| json!({ "name": bounded(&agent.name), "nodes": agent.nodes }))
            .collect();
        json!({
            "node": self.own, "version": env!("CARGO_PKG_VERSION"), "nodes": nodes, "agents": agents,
            "registry": self.registry, "sidecar": self.feeds.get(&Teller::Own).map(|feed| &feed.source),
            "problems": self.problems,
        })
    }

    fn count_in_flight(&mut self, now: Now) {
        self.edges.values_mut().for_each(|edge| edge.in_flight = 0);
        let mut found: HashMap<Ends, u32> = HashMap::new();
        for (teller, feed) in &self.feeds {
            let name = self.name_of(teller);
            for exchange in &feed.in_flight {
                let ends = ends(name, exchange);
                let counts = exchange.direction == Direction::Outbound || !self.is_live(&ends.0);
                if counts && !ends.1.is_empty() {
                    *found.entry(ends).or_default() += 1;
                }
            }
        }
        for (ends, count) in found {
            self.edge(ends, now).in_flight = count;
        }
        for feed in self.feeds.values_mut() {
            feed.in_flight.truncate(MAX_IN_FLIGHT_OF_NODE);
        }
    }

    fn live(&self, now: Now) -> Value {
        let (mut rate, mut failure_rate) = (0.0, 0.0);
        let mut edges = Vec::new();
        for ((from, to), edge) in &self.edges {
            let mean =
                |counts: &[u32; RATE_SECONDS]| f64::from(counts.iter().sum::<u32>()) / RATE_SECONDS as f64;
            let (requests, failures) = (mean(&edge.requests), mean(&edge.failures));
            (rate, failure_rate) = (rate + requests, failure_rate + failures);
            if edge.in_flight > 0 || edge.used_ms + EDGE_SHOWN_MS > now.ms {
                edges.push(json!({
                    "from": from, "to": to, "rate": requests, "failures": failures, "inFlight": edge.in_flight,
                }));
            }
        }
        let mut in_flight: Vec<InFlight<'_>> = Vec::new();
        let (mut total, mut omitted, mut refused_omitted) = (0_u64, 0_u64, 0_u64);
        for (teller, feed) in &self.feeds {
            let teller = self.name_of(teller);
            total = total.saturating_add(feed.in_flight_total);
            omitted = omitted.saturating_add(feed.omitted);
            refused_omitted = refused_omitted.saturating_add(feed.refused_omitted);
            in_flight.extend(feed.in_flight.iter().map(|exchange| {
                let (from, to) = ends(teller, exchange);
                let age_ms = feed.at_ms.saturating_sub(exchange.began_ms);
                InFlight { key: key(teller, exchange), teller, from, to, age_ms, exchange }
            }));
        }
        in_flight.sort_by_key(|shown| std::cmp::Reverse(shown.age_ms));
        in_flight.truncate(MAX_IN_FLIGHT_SHOWN);
        let step = now.step();
        json!({
            "atMs": now.epoch_ms, "step": step, "point": self.total.points(step).last().filter(|point| point.step == step),
            "rate": rate, "failureRate": failure_rate, "edges": edges, "inFlight": in_flight, "inFlightTotal": total,
            "omitted": omitted, "refusedOmitted": refused_omitted,
        })
    }

    /// The last minutes of the traffic from and to a node.
    pub fn series(&self, node: &str, now: Now) -> Value {
        let mut sum = History::default();
        for ((from, to), edge) in &self.edges {
            if from == node || to == node {
                sum.add(&edge.history);
            }
        }
        json!({ "stepMs": STEP_MS, "steps": STEPS, "step": now.step(), "points": sum.points(now.step()) })
    }

    /// All that is kept of a trace, in flight and ended, as it began.
    pub fn trace(&self, id: &str) -> Value {
        let mut seen = HashSet::new();
        let of_trace = |exchange: &LiveExchange| exchange.trace_id.as_deref() == Some(id);
        let rows = self.requests.iter().chain(&self.failures);
        let ended: Vec<_> =
            rows.filter(|row| of_trace(&row.exchange.exchange) && seen.insert(row.key.as_str())).collect();
        let mut in_flight = Vec::new();
        for (teller, feed) in &self.feeds {
            let teller = self.name_of(teller);
            for exchange in feed.in_flight.iter().filter(|exchange| of_trace(exchange)) {
                let (from, to) = ends(teller, exchange);
                let age_ms = feed.at_ms.saturating_sub(exchange.began_ms);
                in_flight.push(InFlight { key: key(teller, exchange), teller, from, to, age_ms, exchange });
            }
        }
        json!({ "ended": ended, "inFlight": in_flight })
    }
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            source: Source::Connecting,
            in_flight: Vec::new(),
            in_flight_total: 0,
            at_ms: 0,
            omitted: 0,
            refused_omitted: 0,
        }
    }
}

/// From which node to which; the latter is empty where none was chosen.
fn ends(teller: &str, exchange: &LiveExchange) -> Ends {
    match exchange.direction {
        Direction::Outbound => {
            (teller.into(), exchange.node.as_ref().map_or_else(String::new, NodeName::to_string))
        }
        Direction::Inbound => {
            let peer = exchange.peer.as_deref().unwrap_or_default();
            let identity = peer.parse::<Identity>().ok();
            let node = identity.as_ref().and_then(Identity::node).map(NodeName::to_string);
            (node.unwrap_or_else(|| peer.into()), teller.into())
        }
    }
}

/// Two sidecars count alike, and one again after a restart.
fn key(teller: &str, exchange: &LiveExchange) -> String {
    format!("{teller}/{}/{}", exchange.began_ms, exchange.id)
}

/// What another host chose: not too long, and without characters that cannot be seen or change the direction of writing.
fn bounded(text: &str) -> String {
    Excerpt { text, max_chars: MAX_CHARS }.to_string()
}

fn keep<T>(all: &mut VecDeque<T>, most: usize) {
    while all.len() > most {
        all.pop_front();
    }
}

/// Adds a server-sent event. JSON without indentation has no line breaks.
fn event(text: &mut String, name: &str, data: &str) {
    for part in ["event: ", name, "\ndata: ", data, "\n\n"] {
        text.push_str(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Now = Now { ms: 0, epoch_ms: 1_700_000_000_000 };

    fn exchange(id: u64, more: Value) -> Value {
        let mut exchange = json!({
            "id": id, "direction": "outbound", "node": "ct111", "agent": "grok", "method": "POST", "path": "/api/message",
            "traceId": "4bf92f3577b34da6a3ce929d0e0e4736", "beganMs": START.epoch_ms, "bytesIn": 1, "bytesOut": 2,
            "attempts": 1, "outcome": "complete", "status": 200, "durationMs": 40, "firstByteMs": 8,
        });
        for (key, value) in more.as_object().unwrap() {
            exchange[key] = value.clone();
        }
        exchange
    }

    fn update(node: &str, in_flight: Vec<Value>, ended: Vec<Value>) -> LiveUpdate {
        let update = json!({
            "atMs": START.epoch_ms + 5_000, "node": node, "version": "1", "inFlight": in_flight,
            "inFlightTotal": in_flight.len(), "ended": ended, "endedOmitted": 0,
        });
        serde_json::from_value(update).unwrap()
    }

    fn peer(node: &str) -> Teller {
        Teller::Peer(node.parse().unwrap())
    }

    fn told(text: &str, name: &str) -> Value {
        let data = text.split(&format!("event: {name}\ndata: ")).nth(1).unwrap();
        serde_json::from_str(data.split("\n\n").next().unwrap()).unwrap()
    }

    #[test]
    fn what_both_sidecars_tell_of_counts_once_and_is_kept_twice() {
        let mut model = Model::new(None);
        let called = json!({ "direction": "inbound", "peer": "opus@ct110", "node": null });
        model.update(
            Teller::Own,
            update("ct110", vec![exchange(3, json!({}))], vec![exchange(1, json!({}))]),
            START,
        );
        let inbound = vec![exchange(1, called.clone())];
        model.update(
            peer("ct111"),
            update("ct111", vec![exchange(4, called.clone())], inbound.clone()),
            START,
        );
        let live = told(&model.tick(START), "live");
        assert_eq!(
            live["edges"],
            json!([{"from": "ct110", "to": "ct111", "rate": 0.2, "failures": 0.0, "inFlight": 1}])
        );
        assert_eq!(live["inFlight"].as_array().unwrap().len(), 2);
        assert_eq!((&live["inFlight"][0]["ageMs"], &live["point"]["requests"]), (&json!(5_000), &json!(1)));
        let trace = model.trace("4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(trace["ended"].as_array().unwrap().len(), 2);
        assert_eq!(model.series("ct111", START)["points"][0]["requests"], 1);

        // Of a caller that is not read, the called one's account counts.
        model.source(Teller::Own, Source::away("gone"));
        model.update(peer("ct111"), update("ct111", vec![], inbound), START);
        let live = told(&model.tick(START), "live");
        assert_eq!((&live["inFlightTotal"], &live["point"]["requests"]), (&json!(0), &json!(2)));
    }

    fn refusing(node: &str, reasons: impl IntoIterator<Item = String>) -> LiveUpdate {
        let mut update = update(node, vec![], vec![]);
        let refused = reasons.into_iter().enumerate().map(|(id, reason)| {
            json!({ "id": id, "atMs": 1, "address": format!("10.0.0.{}", id % 250), "cause": "revoked", "reason": reason })
        });
        update.refused = serde_json::from_value(refused.collect()).unwrap();
        update
    }

    #[test]
    fn refusals_that_are_alike_are_one_row_and_a_flood_displaces_nothing_else() {
        let mut model = Model::new(None);
        model.update(Teller::Own, update("ct110", vec![], vec![exchange(1, json!({ "code": "x" }))]), START);
        let alike = |text: &str, count| std::iter::repeat_n(text.to_owned(), count);
        model.update(peer("ct111"), refusing("ct111", alike("certificate is revoked", 3)), START);
        let told = told(&model.tick(START), "refused");
        assert_eq!(told.as_array().unwrap().len(), 1);
        let row = &told[0];
        assert_eq!(
            (&row["teller"], &row["count"], &row["address"]),
            (&json!("ct111"), &json!(3), &json!("10.0.0.2"))
        );
        assert_eq!((&row["cause"], &row["reason"]), (&json!("revoked"), &json!("certificate is revoked")));
        assert!(!model.tick(START).contains("event: refused"), "it is not told again");
        // Many kinds at one node displace those of no other.
        for round in 0..100 {
            let reasons = (0..100).map(|i| format!("{round} {i} {}", "x".repeat(10_000)));
            model.update(Teller::Own, refusing("ct110", reasons), START);
        }
        let of = |node: &str| model.refused.iter().filter(|each| each.teller == node).count();
        assert_eq!((of("ct110"), of("ct111"), model.failures.len()), (MAX_REFUSED_OF_NODE, 1, 1));
        assert!(model.snapshot(START).len() < 100_000);
        for node in 0..20 {
            let name = format!("ct{}", 200 + node);
            model.update(peer(&name), refusing(&name, (0..30).map(|i| i.to_string())), START);
        }
        assert_eq!(model.refused.len(), MAX_REFUSED);
    }

    #[test]
    fn nobody_speaks_for_another_node() {
        let mut model = Model::new(None);
        model.update(peer("ct111"), update("ct112", vec![], vec![exchange(1, json!({}))]), START);
        assert!(model.requests.is_empty());
        let Source::Away { detail } = &model.feeds[&peer("ct111")].source else { panic!("it is read") };
        assert_eq!(detail, "the live view of ct111 says that it is ct112's");
    }

    #[test]
    fn its_size_is_bounded_whatever_others_tell() {
        let mut model = Model::new(None);
        let long = "x".repeat(10_000);
        for round in 0..30 {
            let now = Now { ms: round * 1_000, epoch_ms: START.epoch_ms + round * 1_000 };
            let ended = (0..100).map(|i| {
                let id = round * 100 + i;
                let peer = format!("device:{id}");
                exchange(id, json!({ "direction": "inbound", "peer": peer, "path": long, "reason": long, "code": "x" }))
            });
            let in_flight = (0..500).map(|i| exchange(i, json!({}))).collect();
            model.update(Teller::Own, update("ct110", in_flight, ended.collect()), now);
            model.change("joined", &format!("{{\"node\":\"{long}\"}}"), now);
            model.tick(now);
        }
        assert_eq!(
            (model.edges.len(), model.requests.len(), model.failures.len()),
            (MAX_EDGES, MAX_REQUESTS, MAX_FAILURES)
        );
        let row = &model.failures[0].exchange;
        assert!(row.exchange.path.len() < 400 && row.reason.as_ref().unwrap().len() < 400);
        assert_eq!(model.feeds[&Teller::Own].in_flight.len(), MAX_IN_FLIGHT_OF_NODE);
        let snapshot = model.snapshot(START);
        assert_eq!(told(&snapshot, "live")["inFlightTotal"], 500);
        assert!(snapshot.len() < 1_000_000, "{}", snapshot.len());
        // Edges without traffic are forgotten with their history.
        let later = Now { ms: 1_000 * STEP_MS, epoch_ms: START.epoch_ms };
        model.source(Teller::Own, Source::away("gone"));
        model.tick(later);
        assert_eq!(model.edges.len(), 0);
    }
}

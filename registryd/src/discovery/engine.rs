//! Asking: whom, when, and what to make of the answers.
//!
//! In touch are: the seed or the static peers, every interval, with backoff while they are away; where there is no
//! such peer that answers, the nodes that are online, so that the mesh holds together without it, and a few that are
//! not, so that its parts find each other again; and, once, any node that somebody else spoke of, or that has been
//! silent for suspiciously long.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_shared::NodeName;
use mesh_shared::config::{Discovery, Mesh};
use mesh_shared::registry::{Node, Status};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Candidate, Sighting, seed, static_peers};
use crate::jitter;
use crate::membership::{Hearsay, admission};
use crate::peer_client::{AskError, PeerClient};
use crate::state::problems::About;
use crate::state::{Counters, State, Wanted};

/// Most nodes in touch each round where no configured peer answers. A message reaches 16 × 16 nodes in two rounds.
const FAN_OUT: usize = 16;
/// Of nodes that are offline, asked each round where no configured peer answers.
const LOST: usize = 4;
/// Most nodes from hearsay that wait to be asked; and most of them from one peer.
const MAX_HEARD: usize = 1000;
const MAX_HEARD_FROM: usize = 250;
/// Most announced addresses of a node that are dialled.
const MAX_ANNOUNCED: usize = 8;
/// Most announced names that are kept although nobody has answered to them yet.
const MAX_STRANGERS: usize = 256;
/// How often a node that was merely heard of is asked before it is forgotten.
const HEARD_ATTEMPTS: u32 = 3;
/// The first wait after a failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest wait for a configured peer that is away, if the interval is not longer.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// A node to ask.
#[derive(Debug)]
struct Target {
    candidate: Candidate,
    why: Why,
    /// Who spoke of it.
    from: Option<NodeName>,
    at: Instant,
    failures: u32,
    running: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The configuration names it.
    Configured,
    /// It was seen or somebody spoke of it; `offline` where they said that it left.
    Heard { offline: bool },
    /// A member, to stay in touch or because it is silent.
    Member,
}

impl Why {
    /// Questions under way at once. Each kind has places of its own, so that none waits for slow ones of another.
    fn places(self) -> usize {
        match self {
            Self::Configured => 8,
            Self::Heard { .. } | Self::Member => 4,
        }
    }

    fn is_kind_of(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

struct Engine {
    state: Arc<State>,
    client: PeerClient,
    targets: BTreeMap<NodeName, Target>,
    questions: JoinSet<(NodeName, Result<Vec<Node>, AskError>)>,
    interval: Duration,
    round_at: Instant,
}

/// Finds nodes and stays in touch with them, for as long as the daemon runs.
pub async fn run(state: Arc<State>, client: PeerClient, mut sightings: mpsc::Receiver<Sighting>) {
    let mesh = &state.config.mesh;
    let configured = configured(mesh);
    let interval = mesh.heartbeat_interval;
    let mut engine = Engine {
        client,
        targets: BTreeMap::new(),
        questions: JoinSet::new(),
        interval,
        round_at: Instant::now() + interval,
        state,
    };
    for candidate in configured {
        engine.want(candidate, Why::Configured, None);
    }
    loop {
        engine.ask_due();
        let next = engine.next();
        tokio::select! {
            Some(done) = engine.questions.join_next() => {
                if let Ok((name, outcome)) = done {
                    engine.answered(&name, outcome);
                }
            }
            Some(sighting) = sightings.recv() => match sighting {
                Sighting::Found(candidate) => {
                    engine.announced(&candidate.name, candidate.addresses.clone());
                    engine.want(candidate, Why::Heard { offline: false }, None);
                }
                Sighting::Goodbye(name) => {
                    engine.check_goodbye(name.clone());
                    engine.announced(&name, Vec::new());
                }
            },
            () = sleep_until(next) => {
                if Instant::now() >= engine.round_at {
                    engine.round();
                }
            }
        }
    }
}

/// The peers that the configuration names, the seed first.
fn configured(mesh: &Mesh) -> Vec<Candidate> {
    let seed = match &mesh.discovery {
        Some(Discovery::Seed(seed)) => seed::candidate(seed, &mesh.peers, &mesh.node_name),
        Some(Discovery::Static | Discovery::Mdns) | None => None,
    };
    let mut all: Vec<Candidate> = seed.into_iter().collect();
    for peer in static_peers::candidates(mesh) {
        if !all.iter().any(|candidate| candidate.name == peer.name) {
            all.push(peer);
        }
    }
    all
}

/// Who hears of a goodbye: all whom the configuration names, since others ask them, then some of the others.
fn to_be_told(configured: Vec<Candidate>, others: Vec<Candidate>) -> Vec<Candidate> {
    let mut told = configured;
    for other in others {
        if told.len() < FAN_OUT && !told.iter().any(|candidate| candidate.name == other.name) {
            told.push(other);
        }
    }
    told
}

/// Tells the nodes in touch that this one leaves, waiting no longer than `limit`.
pub async fn farewell(state: &State, client: &PeerClient, limit: Duration) {
    if state.config.mesh.discovery.is_none() {
        return;
    }
    let own = state.own_node();
    let mut goodbyes = JoinSet::new();
    let others = members(state, |status| status != Status::Offline, FAN_OUT);
    for candidate in to_be_told(configured(&state.config.mesh), others) {
        let (client, own) = (client.clone(), own.clone());
        goodbyes.spawn(async move { client.exchange(&candidate, &own).await.is_ok() });
    }
    let _ = timeout(limit, async { while goodbyes.join_next().await.is_some() {} }).await;
}

/// Some of the other members in such a state, by chance.
fn members(state: &State, wanted: impl Fn(Status) -> bool, most: usize) -> Vec<Candidate> {
    let mut members: Vec<Candidate> = state.read(|inner, _| {
        let others = inner.members.members().iter().filter(|(name, member)| {
            *name != state.local() && member.node.heartbeats() && wanted(member.status)
        });
        others.map(|(name, member)| of_member(name, &member.node)).collect()
    });
    members.sort_by_cached_key(|_| (jitter::unit() * 1e9) as u64);
    members.truncate(most);
    members
}

fn of_member(name: &NodeName, node: &Node) -> Candidate {
    Candidate { name: name.clone(), host: node.host.clone(), addresses: Vec::new(), port: node.port }
}

impl Engine {
    fn want(&mut self, candidate: Candidate, why: Why, from: Option<NodeName>) {
        let name = candidate.name.clone();
        if name == *self.state.local() {
            return;
        }
        if let Some(target) = self.targets.get_mut(&name) {
            // Who is to be asked for news anyway is not asked as a mere member, or a goodbye would never be settled.
            let keeps = matches!(target.why, Why::Heard { .. }) && why == Why::Member;
            if target.why != Why::Configured && !keeps {
                (target.candidate, target.why, target.from) = (candidate, why, from);
            }
            return;
        }
        if matches!(why, Why::Heard { .. }) {
            let heard = self.targets.values().filter(|target| target.why.is_kind_of(why));
            let sources: Vec<_> = heard.map(|target| &target.from).collect();
            let from_there = sources.iter().filter(|source| from.is_some() && **source == &from).count();
            if sources.len() >= MAX_HEARD || from_there >= MAX_HEARD_FROM {
                return;
            }
        }
        if why == Why::Configured {
            self.publish(&candidate, true, false, false);
        }
        // Spread, so that a restarted mesh does not ask in step.
        let at = Instant::now() + FIRST_RETRY.min(self.interval).mul_f64(jitter::unit() / 5.0);
        self.targets.insert(name, Target { candidate, why, from, at, failures: 0, running: false });
    }

    /// Once an interval: stay in touch with members where no configured peer does it, and ask the silent ones.
    fn round(&mut self) {
        self.round_at = Instant::now() + jitter::heartbeat(self.interval);
        let in_touch = |target: &Target| target.why == Why::Configured && target.failures == 0;
        let needed = match self.state.config.mesh.discovery {
            Some(Discovery::Seed(_)) => {
                !self.targets.values().any(in_touch) && self.state.config.mesh.discovery != self.own_seed()
            }
            Some(Discovery::Mdns) => true,
            Some(Discovery::Static) | None => false,
        };
        let mut known = Vec::new();
        if needed {
            known.extend(members(&self.state, |status| status != Status::Offline, FAN_OUT));
            // The other part of a mesh that fell in two is all offline here, as this one is there.
            known.extend(members(&self.state, |status| status == Status::Offline, LOST));
        }
        let silent = self.state.read(|inner, now| {
            let mut nodes = inner.members.silent(now);
            nodes.sort_by_cached_key(|_| (jitter::unit() * 1e9) as u64);
            let nodes = nodes.into_iter().take(FAN_OUT);
            let all = inner.members.members();
            nodes
                .filter_map(|name| all.get(&name).map(|member| of_member(&name, &member.node)))
                .collect::<Vec<_>>()
        });
        for candidate in known.into_iter().chain(silent) {
            self.want(candidate, Why::Member, None);
        }
    }

    /// The discovery of the seed node itself: it has nobody to ask, everybody comes to it.
    fn own_seed(&self) -> Option<Discovery> {
        let discovery = self.state.config.mesh.discovery.clone();
        discovery.filter(
            |discovery| matches!(discovery, Discovery::Seed(seed) if seed.node == *self.state.local()),
        )
    }

    fn next(&self) -> Instant {
        let waiting = self.waiting().map(|(_, target, _)| target.at).min();
        waiting.map_or(self.round_at, |at| at.min(self.round_at))
    }

    /// Those to be asked now or later of whose kind there is a place, each with how many of its kind from its source
    /// are being asked.
    fn waiting(&self) -> impl Iterator<Item = (&NodeName, &Target, usize)> {
        let running: Vec<&Target> = self.targets.values().filter(|target| target.running).collect();
        self.targets.iter().filter(|(_, target)| !target.running).filter_map(move |(name, target)| {
            let alike = || running.iter().filter(|other| other.why.is_kind_of(target.why));
            (alike().count() < target.why.places())
                .then(|| (name, target, alike().filter(|other| other.from == target.from).count()))
        })
    }

    /// Who is asked next: of each kind who has waited longest, of hearsay first where least of the same source is
    /// being asked. What one peer makes up can then delay what others say, not keep it back.
    fn due(&self) -> Option<NodeName> {
        let now = Instant::now();
        let due = self.waiting().filter(|(_, target, _)| target.at <= now);
        due.min_by_key(|(_, target, alike)| (*alike, target.at)).map(|(name, ..)| name.clone())
    }

    fn ask_due(&mut self) {
        while let Some(name) = self.due() {
            let Some(target) = self.targets.get_mut(&name) else { return };
            target.running = true;
            let candidate = target.candidate.clone();
            // The registry's own idea of the endpoint comes first; what was claimed is tried when that fails.
            let by_claim = target.failures % 2 == 1;
            let configured = target.why == Why::Configured;
            self.publish(&candidate, configured, true, by_claim);
            let (client, own) = (self.client.clone(), self.state.own_node());
            self.questions.spawn(async move {
                let outcome = client.exchange(&candidate, &own).await;
                (candidate.name, outcome)
            });
        }
    }

    /// Lets the sidecar route to a candidate.
    fn publish(&self, candidate: &Candidate, configured: bool, asking: bool, by_claim: bool) {
        self.state.with(|inner, _| {
            let wanted = Wanted { candidate: candidate.clone(), configured, asking, by_claim };
            let name = &candidate.name;
            let held = match asking || configured {
                true => inner.candidates.insert(name.clone(), wanted.clone()),
                false => inner.candidates.remove(name),
            };
            if held.as_ref() != Some(&wanted) {
                inner.touch(name);
            }
        });
    }

    fn answered(&mut self, name: &NodeName, outcome: Result<Vec<Node>, AskError>) {
        let Some(target) = self.targets.get_mut(name) else { return };
        target.running = false;
        let (why, candidate) = (target.why, target.candidate.clone());
        let failures = match &outcome {
            Ok(_) => 0,
            Err(_) => target.failures + 1,
        };
        let first_failure = failures == 1;
        target.failures = failures;
        target.at = Instant::now()
            + match failures {
                0 => jitter::heartbeat(self.interval),
                n => jitter::backoff(n, FIRST_RETRY.min(self.interval), LONGEST_RETRY.max(self.interval)),
            };
        let wait = target.at.saturating_duration_since(Instant::now());
        self.publish(&candidate, why == Why::Configured, false, false);
        let own_sidecar = matches!(outcome, Err(AskError::NoSidecar { .. }));
        // Its sidecar answers for a registryd that is away: so it is there.
        let there = outcome.as_ref().is_err_and(AskError::only_registryd_is_away);
        Counters::add(&self.state.counters.syncs);
        match &outcome {
            Ok(_) => self.state.with(|inner, now| inner.members.answered(name, now)),
            Err(error) => {
                Counters::add(&self.state.counters.sync_errors);
                if error.tells_of_the_peer() && !there {
                    self.state.with(|inner, now| inner.members.unanswered(name, now));
                }
            }
        }
        match outcome {
            Ok(nodes) => {
                if why == Why::Configured {
                    self.state.solved(&About::Peer(name.clone()));
                }
                self.learn(name, nodes);
            }
            Err(error) if why == Why::Configured => {
                let seconds = wait.as_secs_f32().ceil();
                if first_failure {
                    // Whoever else is known stands in for it now, not an interval later.
                    self.round_at = Instant::now();
                    tracing::warn!(target: "Discovery", "{error}; trying again in {seconds} s node={name}");
                }
                self.state.with(|inner, _| {
                    let sentence = format!("{}: {error}", name.mesh_host());
                    inner.problems.state_quietly(About::Peer(name.clone()), sentence);
                });
            }
            Err(error) => tracing::debug!(target: "Discovery", "{error} node={name}"),
        }
        // An own sidecar that is not there yet says nothing about the node.
        let finished = match why {
            Why::Configured => false,
            Why::Member => true,
            Why::Heard { .. } => failures == 0 || (failures >= HEARD_ATTEMPTS && !own_sidecar),
        };
        if !finished {
            return;
        }
        self.targets.remove(name);
        if failures > 0 && !there && why == (Why::Heard { offline: true }) {
            self.state.with(|inner, _| inner.members.gone(name));
        }
    }

    /// Takes in what a verified node says: of itself, and of others.
    fn learn(&mut self, peer: &NodeName, nodes: Vec<Node>) {
        let mut heard = Vec::new();
        let loopback = self.state.is_on_loopback();
        let unlisted = self.state.with(|inner, now| {
            let mut unlisted = false;
            for node in nodes {
                let Some(name) = node.node_name() else { continue };
                let taken = inner.among_others(loopback, |others| admission::check(&name, &node, others));
                if let Err(reason) = taken {
                    tracing::debug!(target: "Discovery", "an entry from {peer} is not accepted: {reason} node={name}");
                    continue;
                }
                if name == *peer {
                    match inner.members.hear_itself(&name, node, now) {
                        Ok(news) => unlisted |= news,
                        Err(reason) => tracing::debug!(
                            target: "Discovery",
                            "what {peer} publishes of itself is not accepted: {reason} node={name}"
                        ),
                    }
                } else if inner.members.hear_of(&name, &node, now) == Hearsay::Ask {
                    heard.push((of_member(&name, &node), node.status == Status::Offline));
                }
            }
            unlisted
        });
        if unlisted {
            tracing::debug!(target: "Discovery", "{peer} publishes something new of itself node={peer}");
            self.state.write_wanted.notify_one();
        }
        for (candidate, offline) in heard {
            self.want(candidate, Why::Heard { offline }, Some(peer.clone()));
        }
    }

    /// Keeps what a node announces for dialling; a registered address comes first, and the certificate decides.
    fn announced(&self, name: &NodeName, mut addresses: Vec<IpAddr>) {
        addresses.truncate(MAX_ANNOUNCED);
        self.state.with(|inner, _| {
            // Of names that nobody has answered to, no more than some are kept.
            let (members, announced) = (inner.members.members(), &inner.announced);
            let strangers = || announced.keys().filter(|name| !members.contains_key(*name));
            if !members.contains_key(name)
                && !announced.contains_key(name)
                && strangers().count() >= MAX_STRANGERS
            {
                let oldest = strangers().next().cloned();
                oldest.map(|name| inner.announced.remove(&name));
            }
            let before = match addresses.is_empty() {
                true => inner.announced.remove(name),
                false => inner.announced.insert(name.clone(), addresses.clone()),
            };
            if before.unwrap_or_default() != addresses {
                inner.touch(name);
            }
        });
    }

    /// A goodbye on the network is not authenticated: the node is asked, and believed if it answers.
    fn check_goodbye(&mut self, name: NodeName) {
        let member = self
            .state
            .read(|inner, _| inner.members.members().get(&name).map(|member| of_member(&name, &member.node)));
        if let Some(candidate) = member {
            self.want(candidate, Why::Heard { offline: true }, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_shared::config::Config;

    use super::*;
    use crate::state::own_claims;

    const HEARD: Why = Why::Heard { offline: false };

    fn engine() -> Engine {
        let config = Config::parse("mesh: {enabled: true, node_name: ct110, tls: true}").unwrap();
        let own = own_claims(&config);
        Engine {
            client: PeerClient::new(config.proxy.outbound.listen),
            targets: BTreeMap::new(),
            questions: JoinSet::new(),
            interval: Duration::from_secs(30),
            round_at: Instant::now(),
            state: Arc::new(State::new(Arc::new(config), own)),
        }
    }

    fn candidate(name: &str) -> Candidate {
        Candidate { name: name.parse().unwrap(), host: "10.0.0.1".into(), addresses: Vec::new(), port: 3000 }
    }

    /// Wants the node, due since so many seconds.
    fn want(engine: &mut Engine, name: &str, why: Why, from: Option<&str>, due_s: u64) {
        let candidate = candidate(name);
        let target = candidate.name.clone();
        engine.want(candidate, why, from.map(|from| from.parse().unwrap()));
        if let Some(target) = engine.targets.get_mut(&target) {
            target.at = Instant::now() - Duration::from_secs(due_s);
        }
    }

    /// Whom it asks now, in this order, if nobody answers.
    fn asked(engine: &mut Engine) -> Vec<String> {
        let mut asked = Vec::new();
        while let Some(name) = engine.due() {
            engine.targets.get_mut(&name).unwrap().running = true;
            asked.push(name.to_string());
        }
        asked
    }

    #[test]
    fn slow_ones_keep_nobody_waiting_who_has_waited_longer() {
        let mut engine = engine();
        for i in 10..30 {
            want(&mut engine, &format!("ct2{i}"), Why::Configured, None, i);
        }
        // By time, not by name.
        let first = asked(&mut engine);
        assert_eq!(first, ["ct229", "ct228", "ct227", "ct226", "ct225", "ct224", "ct223", "ct222"]);
        // They were slow, and are due again.
        for name in &first {
            engine.targets.get_mut(name.as_str()).unwrap().running = false;
            engine.targets.get_mut(name.as_str()).unwrap().at = Instant::now();
        }
        assert_eq!(asked(&mut engine)[0], "ct221");
        // Other kinds have places of their own.
        want(&mut engine, "ct300", Why::Member, None, 1);
        want(&mut engine, "ct301", HEARD, Some("ct111"), 1);
        assert_eq!(asked(&mut engine), ["ct300", "ct301"]);
    }

    #[test]
    fn a_goodbye_goes_to_whom_the_configuration_names_first() {
        let named = |name: String| Candidate {
            name: name.parse().unwrap(),
            host: "10.0.0.1".into(),
            addresses: Vec::new(),
            port: 3000,
        };
        let seed = vec![named("seed".into())];
        let others = (0..40).map(|i| named(format!("ct{i}"))).chain(seed.clone()).collect();
        let told = to_be_told(seed, others);
        assert_eq!((told.len(), told[0].name.as_str()), (FAN_OUT, "seed"));
        assert_eq!(told.iter().filter(|candidate| candidate.name.as_str() == "seed").count(), 1);
    }

    #[test]
    fn what_one_peer_makes_up_keeps_no_other_word_back() {
        let mut engine = engine();
        for i in 0..2 * MAX_HEARD {
            want(&mut engine, &format!("x{i}"), HEARD, Some("ct666"), 60);
        }
        assert_eq!(engine.targets.len(), MAX_HEARD_FROM);
        want(&mut engine, "ct151", HEARD, Some("ct111"), 1);
        want(&mut engine, "ct152", HEARD, Some("ct112"), 1);
        let asked = asked(&mut engine);
        assert_eq!(asked.len(), HEARD.places());
        for name in ["ct151", "ct152"] {
            assert!(asked.iter().any(|asked| asked == name), "{asked:?}");
        }
    }
}

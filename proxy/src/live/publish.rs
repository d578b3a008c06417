//! What readers of the live view are told: the only place where its text is made. It runs on the thread that carries no
//! requests.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use mesh_shared::NodeName;
use mesh_shared::live::{
    Direction, EndedExchange, LiveExchange, LiveUpdate, MAX_METHOD_CHARS, MAX_PATH_CHARS, MAX_REASON_CHARS,
    Refusal, Try,
};
use mesh_shared::local_api::{CERTIFICATES, EVENTS, NODES, ROSTER_AGENTS};
use mesh_shared::logging::Excerpt;
use tokio::time::{MissedTickBehavior, interval_at};

use crate::access_log::shown_target;
use crate::live::feed::{FEEDS, Missed};
use crate::live::refused::{REFUSED, Refused};
use crate::live::{Ended, Facts, LIVE, Who};
use crate::mesh_api;

/// How often readers get a line.
const EVERY: Duration = Duration::from_secs(1);

/// Tells readers, whenever there are some, what the sidecar of `node` carries.
pub async fn publish(node: NodeName) {
    loop {
        FEEDS.came.notified().await;
        let start = tokio::time::Instant::now() + EVERY;
        let mut tick = interval_at(start, EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut read = greet(&node);
        while read {
            read = tokio::select! {
                () = FEEDS.came.notified() => greet(&node),
                _ = tick.tick() => tell(&node),
            };
        }
    }
}

/// The first line, for those who have had none.
fn greet(node: &NodeName) -> bool {
    let mut line = None;
    FEEDS.tell(true, Missed::default(), |_| {
        line.get_or_insert_with(|| json(&update(node, News::default()))).clone()
    })
}

/// The next line for everybody.
fn tell(node: &NodeName) -> bool {
    let (ended, ended_omitted) = LIVE.take_ended();
    let (refused, refused_omitted) = REFUSED.take();
    let lost =
        Missed { ended: ended.len() as u64 + ended_omitted, refused: refused.len() as u64 + refused_omitted };
    let update = update(node, News { ended, ended_omitted, refused, refused_omitted });
    let usual = json(&update);
    FEEDS.tell(false, lost, |missed| match missed == Missed::default() {
        true => usual.clone(),
        false => json(&LiveUpdate {
            ended_omitted: ended_omitted + missed.ended,
            refused_omitted: refused_omitted + missed.refused,
            ..update.clone()
        }),
    })
}

/// What happened since the line before.
#[derive(Default)]
struct News {
    ended: Vec<Ended>,
    ended_omitted: u64,
    refused: Vec<Refused>,
    refused_omitted: u64,
}

fn json(update: &LiveUpdate) -> Bytes {
    // Texts and numbers cannot fail to serialize.
    let mut line = serde_json::to_vec(update).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

fn update(node: &NodeName, news: News) -> LiveUpdate {
    let clock = Clock::now();
    let (in_flight, total) = LIVE.in_flight();
    LiveUpdate {
        at_ms: clock.epoch_ms(clock.instant),
        node: node.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        in_flight: in_flight.iter().map(|facts| exchange(facts, &clock)).collect(),
        in_flight_total: total as u64,
        ended: news.ended.into_iter().map(|ended| ended_exchange(ended, &clock)).collect(),
        ended_omitted: news.ended_omitted,
        refused: news.refused.into_iter().map(|refused| refusal(refused, &clock)).collect(),
        refused_omitted: news.refused_omitted,
    }
}

/// The same moment on both clocks.
struct Clock {
    instant: Instant,
    since_epoch: Duration,
}

impl Clock {
    fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { instant: Instant::now(), since_epoch }
    }

    fn epoch_ms(&self, at: Instant) -> u64 {
        ms(self.since_epoch.saturating_sub(self.instant.saturating_duration_since(at)))
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn exchange(facts: &Facts, clock: &Clock) -> LiveExchange {
    let (direction, peer, as_agent) = match &facts.who {
        Who::Peer(peer) => (Direction::Inbound, Some(peer.name().to_owned()), None),
        Who::Program(agent) => {
            (Direction::Outbound, None, agent.as_ref().map(|agent| agent.identity.clone()))
        }
    };
    let target = shown_target(&facts.method, &facts.uri);
    LiveExchange {
        id: facts.id,
        direction,
        peer,
        as_agent,
        node: facts.node.clone(),
        agent: facts.agent.clone(),
        method: Excerpt { text: facts.method.as_str(), max_chars: MAX_METHOD_CHARS }.to_string(),
        path: Excerpt { text: target, max_chars: MAX_PATH_CHARS }.to_string(),
        trace_id: Some(facts.trace.to_string()),
        began_ms: clock.epoch_ms(facts.started),
        status: facts.status,
        bytes_in: facts.bytes_in,
        bytes_out: facts.bytes_out,
        attempts: facts.attempts,
        routine: is_routine(facts),
    }
}

/// Whether sidecars, registries and those who look after them exchange it by themselves.
fn is_routine(facts: &Facts) -> bool {
    let path = facts.uri.path();
    let of_registry = || {
        matches!(facts.who, Who::Program(_))
            && facts.node.is_none()
            && facts.agent.is_none()
            && [NODES, ROSTER_AGENTS, EVENTS, CERTIFICATES].contains(&path)
    };
    mesh_api::is_path_of_mesh(path) || of_registry()
}

fn ended_exchange(ended: Ended, clock: &Clock) -> EndedExchange {
    let tries = ended.tries.0.into_iter();
    EndedExchange {
        exchange: exchange(&ended.facts, clock),
        outcome: ended.outcome.as_str().to_owned(),
        code: ended.code,
        reason: ended.reason.as_deref().map(reason),
        duration_ms: ms(ended.took),
        first_byte_ms: ended.first_byte.map(ms),
        connect_ms: ended.connect.map(ms),
        tries: tries.map(|tried| Try { node: tried.node, error: tried.error.map(str::to_owned) }).collect(),
    }
}

fn refusal(refused: Refused, clock: &Clock) -> Refusal {
    Refusal {
        id: refused.id,
        at_ms: clock.epoch_ms(refused.at),
        address: refused.address,
        peer: refused.peer.map(|peer| peer.name().to_owned()),
        cause: refused.cause.to_owned(),
        reason: reason(&refused.reason),
    }
}

fn reason(text: &str) -> String {
    Excerpt { text, max_chars: MAX_REASON_CHARS }.to_string()
}

//! Registration of a peer, bound to the identity in its certificate.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderValue, header};
use hyper::body::{Body, Incoming};
use mesh_shared::NodeName;
use mesh_shared::local_api::JoinAnswer;
use mesh_shared::logging::{Excerpt, Quoted};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::answer::{self, Answer, read_bytes, refusal};
use super::{WRITE_LIMIT, query};
use crate::backend::Backend;
use crate::membership::admission::{self, MAX_BODY_BYTES, Refusal};
use crate::state::{Counters, State};

/// Joins that are read or written at once: of all peers, and of one.
const AT_ONCE: usize = 16;
const AT_ONCE_PER_PEER: u32 = 4;
/// Joins of one peer: how many in a row, and then how many a second. A node joins once in each heartbeat interval.
const BURST: f64 = 200.0;
const PER_SECOND: f64 = 100.0;
/// One that brings news, which has to be written, counts as so many.
const NEWS: f64 = 20.0;
/// Peers whose joins are counted.
const PEERS: usize = 4096;
/// How long a body may take.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// Who may join now.
#[derive(Debug)]
pub(super) struct Gate {
    at_once: Semaphore,
    peers: Mutex<HashMap<NodeName, Account>>,
}

#[derive(Debug)]
struct Account {
    left: f64,
    at: Instant,
    under_way: u32,
}

/// A join under way.
struct Pass<'g> {
    gate: &'g Gate,
    peer: NodeName,
    _permit: SemaphorePermit<'g>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { at_once: Semaphore::new(AT_ONCE), peers: Mutex::default() }
    }

    /// Lets a peer in; the error says what there is too much of.
    fn pass(&self, peer: &NodeName, now: Instant) -> Result<Pass<'_>, &'static str> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= PEERS && !peers.contains_key(peer) {
            peers.retain(|_, account| account.under_way > 0 || account.refilled(now) < BURST);
            if peers.len() >= PEERS {
                return Err("too many nodes join at once");
            }
        }
        let account = peers.entry(peer.clone()).or_insert(Account { left: BURST, at: now, under_way: 0 });
        (account.left, account.at) = (account.refilled(now), now);
        if account.left < 1.0 {
            return Err("this node joins too often");
        }
        account.left -= 1.0;
        if account.under_way >= AT_ONCE_PER_PEER {
            return Err("this node has other joins under way");
        }
        let permit = self.at_once.try_acquire().map_err(|_| "too many nodes join at once")?;
        account.under_way += 1;
        Ok(Pass { gate: self, peer: peer.clone(), _permit: permit })
    }
}

impl Pass<'_> {
    /// Notes that this join brings news.
    fn brings_news(&self) {
        let mut peers = self.gate.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = peers.get_mut(&self.peer) {
            account.left -= NEWS - 1.0;
        }
    }
}

impl Account {
    fn refilled(&self, now: Instant) -> f64 {
        (self.left + now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND).min(BURST)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut peers = self.gate.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = peers.get_mut(&self.peer) {
            account.under_way = account.under_way.saturating_sub(1);
        }
    }
}

/// Judges and enters a join; acknowledged only once a new registration is in the registry. Who asks is looked at
/// before anything is read.
pub(super) async fn answer(
    body: &mut Incoming,
    peer: Option<&str>,
    gate: &Gate,
    state: &Arc<State>,
    backend: &Backend,
) -> Answer {
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return refusal(413, "body_too_large", format!("a join has at most {MAX_BODY_BYTES} bytes"));
    }
    let name = match admission::registrant(peer) {
        Ok(name) => name,
        Err(reason) => return refused(&reason, peer, state),
    };
    let pass = match gate.pass(&name, Instant::now()) {
        Ok(pass) => pass,
        Err(why) => {
            Counters::add(&state.counters.joins_refused);
            let mut answer = refusal(429, "too_many_joins", format!("{why}; join again in a second"));
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            return answer;
        }
    };
    let body = match read_bytes(body, MAX_BODY_BYTES, BODY_LIMIT).await {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    let loopback = state.is_on_loopback();
    let entered = state.with(|inner, now| {
        let node = inner.among_others(loopback, |others| admission::admit(&body, &name, others))?;
        let news = inner.members.hear_itself(&name, node, now)?;
        let listed = inner.members.members().get(&name).is_none_or(|member| member.listed);
        Ok(news || (!listed && name != *state.local()))
    });
    let unwritten = match entered {
        Ok(unwritten) => unwritten,
        Err(reason) => return refused(&reason, peer, state),
    };
    Counters::add(&state.counters.joins);
    if unwritten {
        pass.brings_news();
        let failure = match tokio::time::timeout(WRITE_LIMIT, backend.register()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some("the storage does not answer".into()),
        };
        if let Some(failure) = failure {
            let detail = format!(
                "{name} is known here now, but not registered for good yet: {failure}; join again later"
            );
            return refusal(503, "registry_unavailable", detail);
        }
    }
    answer::json(&JoinAnswer { status: "ok".into(), nodes: query::registry_nodes(state) })
}

fn refused(reason: &Refusal, peer: Option<&str>, state: &State) -> Answer {
    Counters::add(&state.counters.joins_refused);
    let sentence = reason.to_string();
    let cn = Quoted { text: peer.unwrap_or("-"), max_chars: 80 }.to_string();
    // A plain name needs no quotes.
    let cn = match peer.unwrap_or("-") {
        plain if plain.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._@:".contains(&byte)) => {
            plain.to_owned()
        }
        _ => cn,
    };
    let shown = Excerpt { text: &sentence, max_chars: 400 };
    tracing::warn!(target: "Registry", "join refused: {shown} peer.cn={cn}");
    refusal(reason.status(), reason.code(), sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_joins_too_often_waits_and_keeps_nobody_else_out() {
        let gate = Gate::new();
        let (peer, other): (NodeName, NodeName) = ("ct111".parse().unwrap(), "ct112".parse().unwrap());
        let now = Instant::now();
        let held: Vec<_> = (0..AT_ONCE_PER_PEER).map(|_| gate.pass(&peer, now).ok()).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(gate.pass(&peer, now).is_err() && gate.pass(&other, now).is_ok());
        drop(held);
        let passed = (0..1000).filter(|_| gate.pass(&peer, now).is_ok()).count();
        assert!(passed < BURST as usize);
        assert!(gate.pass(&other, now).is_ok());
        assert!(gate.pass(&peer, now + Duration::from_secs(1)).is_ok());
    }
}

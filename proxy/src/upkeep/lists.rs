//! Revocation lists travel from node to node: whoever learns of a newer one, from its files, the CA or a peer, pushes it to
//! several others at once, and each node asks one other now and then, so that none is missed.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, IF_NONE_MATCH};
use http::{Method, Request, StatusCode};
use mesh_shared::NodeName;
use mesh_shared::local_api::CRL;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::metrics::{ListVerdict, ListWay, METRICS};
use crate::roster::store::RosterStore;
use crate::tls::credentials::CredentialStore;
use crate::tls::revocation::{Lists, MAX_BYTES, MEDIA_TYPE, Shared, TAKEN};
use crate::upkeep::requests::{Answer, AskError, Requests};

/// How many peers get a newer list at once. Each passes it on to as many, so all of a large mesh have it in a few steps.
const FAN_OUT: usize = 8;
/// Requests of this kind under way at most.
const MOST: usize = 4 * FAN_OUT;
/// How often a peer is asked at most, however short heartbeats are: what is urgent is pushed.
const SHORTEST: Duration = Duration::from_secs(10);
/// How many peers are asked until one answers.
const TRIES: usize = 3;
/// For how long a peer is left alone that knows nothing of lists (RivetOS, an older sidecar) or refuses.
const LEFT_ALONE: Duration = Duration::from_secs(3600);
/// The same where one of the two does not accept the other one's certificate, which new files may change.
const DISTRUSTED: Duration = Duration::from_secs(300);

/// The exchange of lists with peers.
pub struct ListExchange {
    lists: Arc<Lists>,
    credentials: Arc<CredentialStore>,
    roster: Arc<RosterStore>,
    requests: Arc<Requests>,
    left_alone: Mutex<HashMap<NodeName, Instant>>,
    under_way: Arc<Semaphore>,
}

impl ListExchange {
    /// Nothing is sent yet.
    pub fn new(
        lists: Arc<Lists>,
        credentials: Arc<CredentialStore>,
        roster: Arc<RosterStore>,
        requests: Arc<Requests>,
    ) -> Arc<Self> {
        let (left_alone, under_way) = (Mutex::default(), Arc::new(Semaphore::new(MOST)));
        Arc::new(Self { lists, credentials, roster, requests, left_alone, under_way })
    }

    /// Pushes each newer list, and asks a peer once in each `period`; for ever.
    pub async fn follow(self: Arc<Self>, period: Duration) {
        let mut replaced = self.credentials.replacements();
        let period = period.max(SHORTEST);
        // Not all that start together ask together.
        let mut ticks = interval_at(Instant::now() + period + random_part(period), period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What was known before this run was passed on then.
        let mut pushed = self.lists.remembered().clone();
        loop {
            let shared = self.credentials.load().lists.clone();
            let peers = if shared.tag == pushed { Vec::new() } else { self.peers() };
            // While nobody is known, the next turn tries again.
            if !peers.is_empty() {
                pushed = shared.tag.clone();
            }
            for peer in peers.into_iter().take(FAN_OUT) {
                let (exchange, shared) = (self.clone(), shared.clone());
                self.begin(async move { exchange.push(&peer, shared).await });
            }
            tokio::select! {
                changed = replaced.changed() => if changed.is_err() {
                    return;
                },
                _ = ticks.tick() => {
                    let exchange = self.clone();
                    self.begin(async move { exchange.pull().await });
                }
            }
        }
    }

    /// Runs in the background, unless too much does already: whoever is slow is asked again later.
    fn begin(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Ok(place) = self.under_way.clone().try_acquire_owned() {
            tokio::spawn(async move {
                let _place = place;
                work.await;
            });
        }
    }

    /// The peers to turn to, in random order.
    fn peers(&self) -> Vec<NodeName> {
        let mut peers = self.roster.others();
        {
            let left_alone = &mut *self.left_alone.lock();
            let now = Instant::now();
            left_alone.retain(|_, until| *until > now);
            peers.retain(|peer| !left_alone.contains_key(peer));
        }
        let random = RandomState::new();
        peers.sort_by_cached_key(|peer| random.hash_one(peer));
        peers
    }

    async fn push(&self, peer: &NodeName, shared: Shared) {
        let request = Request::builder().method(Method::POST).uri(CRL).header(CONTENT_TYPE, MEDIA_TYPE);
        let Ok(request) = request.body(shared.pem) else { return };
        // What it answers beyond the status is of no interest; a little, so that the connection stays usable.
        let taken = |answer: &Answer| answer.body.starts_with(TAKEN);
        self.heard(peer, self.requests.ask(peer, request, 64 << 10).await, taken);
    }

    /// Takes what another node has that is newer, and gives it what is newer here.
    async fn pull(&self) {
        for peer in self.peers().into_iter().take(TRIES) {
            let shared = self.credentials.load().lists.clone();
            let request = Request::builder().uri(CRL).header(IF_NONE_MATCH, &shared.tag);
            let Ok(request) = request.body(Bytes::new()) else { return };
            let answer = self.requests.ask(&peer, request, MAX_BYTES).await;
            let lists =
                |answer: &Answer| answer.headers.get(CONTENT_TYPE).is_some_and(|media| *media == MEDIA_TYPE);
            let Some(answer) = self.heard(&peer, answer, lists) else { continue };
            if answer.status == StatusCode::OK {
                let verdicts = self.offer(&peer, answer.body).await;
                if verdicts.contains(&ListVerdict::Older) || (verdicts.is_empty() && !shared.pem.is_empty()) {
                    self.push(&peer, shared).await;
                }
            }
            return;
        }
    }

    async fn offer(&self, peer: &NodeName, body: Bytes) -> Vec<ListVerdict> {
        let (lists, bundle) = (self.lists.clone(), self.credentials.load().bundle().clone());
        let judged = spawn_blocking(move || lists.offer(&String::from_utf8_lossy(&body), &bundle)).await;
        let verdicts = match judged {
            Ok(Ok(verdicts)) => verdicts,
            Ok(Err(error)) => {
                tracing::debug!(target: "Mesh", "revocation lists of {peer} cannot be read: {error}");
                vec![ListVerdict::Unreadable]
            }
            // One that panicked has said so already.
            Err(_) => Vec::new(),
        };
        for verdict in &verdicts {
            METRICS.list_offered(ListWay::Pulled, *verdict);
        }
        verdicts
    }

    /// The answer of a peer that exchanges lists; `is_ours` tells its 200 from that of an agent which says yes to
    /// everything. Others are left alone for a while.
    fn heard(
        &self,
        peer: &NodeName,
        answer: Result<Answer, AskError>,
        is_ours: impl Fn(&Answer) -> bool,
    ) -> Option<Answer> {
        let (pause, why) = match answer {
            Ok(answer) => match answer.status.as_u16() {
                304 => return Some(answer),
                200 if is_ours(&answer) => return Some(answer),
                // It has much to do, or something of it is away.
                429 | 500.. => return None,
                status => (LEFT_ALONE, format!("it answers {status} on {CRL}")),
            },
            Err(error) if error.is_distrust() => (DISTRUSTED, error.to_string()),
            Err(error) => {
                tracing::debug!(target: "Mesh", "cannot exchange revocation lists with {peer}: {error}");
                return None;
            }
        };
        tracing::debug!(target: "Mesh", "exchanging no revocation lists with {peer} for a while: {why}");
        self.left_alone.lock().insert(peer.clone(), Instant::now() + pause);
        None
    }
}

/// A random part of a time.
fn random_part(period: Duration) -> Duration {
    period.mul_f64((RandomState::new().hash_one(()) % 1000) as f64 / 1000.0)
}

//! This node's certificate is renewed at half its life: a new key, a certificate for it from the CA, a trial, and only then
//! the files are replaced. While the CA cannot be reached, nothing changes; once that becomes urgent, the operator is warned.
//!
//! What the CA publishes for all nodes, its certificates and its revocation lists, is fetched here as well.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use http::{Request, StatusCode};
use mesh_shared::certificate::{self, Leaf, TrustBundle};
use mesh_shared::config::Config;
use mesh_shared::enrolment::{BUNDLE_PATH, Bundle, RENEW_PATH, Renewed};
use mesh_shared::local_api::Problem;
use rustls::pki_types::UnixTime;
use rustls::sign::CertifiedKey;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::error::ProxyError;
use crate::metrics::{ListVerdict, ListWay, METRICS, Renewal as Outcome};
use crate::roster::store::RosterStore;
use crate::tls::credentials::CredentialStore;
use crate::tls::revocation::Lists;
use crate::upkeep::ca::Ca;
use crate::upkeep::files::{self, LeafFiles};
use crate::upkeep::requests::AskError;
use crate::upkeep::signing::{Wanted, chain_pem};
use crate::upkeep::trial;

/// How often it is looked whether there is something to do, at most and at least.
const LOOKS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// After how many seconds an attempt is repeated, at first and at last; in the last hours of a certificate sooner.
const RETRIES: (i64, i64) = (10, 3600);
/// The least time between attempts, in seconds.
const SOONEST: i64 = 5;
/// How long the new files may take to be used.
const IN_USE: Duration = Duration::from_secs(30);

/// What is renewed, and with whom.
pub struct Renewal {
    config: Arc<Config>,
    ca: Ca,
    files: LeafFiles,
    credentials: Arc<CredentialStore>,
    lists: Arc<Lists>,
    roster: Arc<RosterStore>,
}

/// What is known of earlier attempts.
#[derive(Default)]
struct Attempts {
    /// The end of the certificate that these are about, epoch seconds.
    of: i64,
    /// When the next one is due, epoch seconds.
    due: i64,
    failed: u32,
    wanted: Option<Arc<Wanted>>,
    /// That of the bundle that was fetched.
    tag: Option<HeaderValue>,
}

/// An attempt that failed.
struct Failure {
    outcome: Outcome,
    /// In words.
    reason: String,
}

impl Failure {
    fn new(outcome: Outcome, reason: impl ToString) -> Self {
        Self { outcome, reason: reason.to_string() }
    }
}

impl Renewal {
    /// As configured; `None`: certificates are renewed by others.
    pub fn new(
        config: Arc<Config>,
        ca: Option<Ca>,
        credentials: Arc<CredentialStore>,
        lists: Arc<Lists>,
        roster: Arc<RosterStore>,
    ) -> Option<Self> {
        let files = LeafFiles::new(&config.mesh.tls.cert_path, &config.mesh.tls.key_path);
        Some(Self { ca: ca?, files, config, credentials, lists, roster })
    }

    /// Fetches what the CA publishes in each heartbeat, and renews when it is due; for ever.
    pub async fn follow(self) {
        let mut looks = interval(self.config.mesh.heartbeat_interval.clamp(LOOKS.0, LOOKS.1));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut attempts = Attempts::default();
        loop {
            looks.tick().await;
            if self.fetch(&mut attempts).await {
                // With other CA certificates, the files are read first.
                continue;
            }
            self.renew_if_due(&mut attempts).await;
        }
    }

    /// Takes what the CA publishes, if it is news. True if the trust bundle was replaced.
    async fn fetch(&self, attempts: &mut Attempts) -> bool {
        let mut request = Request::get(BUNDLE_PATH);
        if let Some(tag) = &attempts.tag {
            request = request.header(IF_NONE_MATCH, tag);
        }
        let Ok(request) = request.body(Bytes::new()) else { return false };
        let answer = match self.ca.ask(request).await {
            Ok(answer) if answer.status == StatusCode::OK => answer,
            Ok(answer) => {
                if answer.status != StatusCode::NOT_MODIFIED {
                    tracing::debug!(target: "Mesh", "the CA's node answers {} on {BUNDLE_PATH}", answer.status);
                }
                return false;
            }
            Err(error) => {
                tracing::debug!(target: "Mesh", "cannot fetch what the CA publishes: {error}");
                return false;
            }
        };
        let bundle: Bundle = match serde_json::from_slice(&answer.body) {
            Ok(bundle) => bundle,
            Err(error) => {
                tracing::warn!(target: "Mesh", "what the CA of {} publishes cannot be read: {error}", self.ca.node());
                return false;
            }
        };
        let news = self.take_chain(bundle.chain).await;
        let trusted = news.clone().unwrap_or_else(|| self.credentials.load().bundle().clone());
        let all_known = self.take_lists(bundle.crl, trusted).await;
        // Fetched once more, where lists may have come too early to be kept.
        attempts.tag = answer.headers.get(ETAG).filter(|_| news.is_none() && all_known).cloned();
        news.is_some()
    }

    /// Offers the CA's lists. False if there is one of a CA that is not trusted.
    async fn take_lists(&self, crl: String, bundle: Arc<TrustBundle>) -> bool {
        if crl.is_empty() {
            return true;
        }
        let lists = self.lists.clone();
        let offered = spawn_blocking(move || lists.offer(&crl, &bundle)).await;
        match offered {
            Ok(Ok(verdicts)) => {
                verdicts.iter().for_each(|verdict| METRICS.list_offered(ListWay::Ca, *verdict));
                !verdicts.contains(&ListVerdict::UnknownIssuer)
            }
            Ok(Err(error)) => {
                METRICS.list_offered(ListWay::Ca, ListVerdict::Unreadable);
                tracing::warn!(target: "Mesh", "the CA's revocation lists cannot be read: {error}");
                true
            }
            // One that panicked has said so already.
            Err(_) => true,
        }
    }

    /// Writes the CA's certificates into the trust bundle's file where they differ; then gives them.
    async fn take_chain(&self, chain: String) -> Option<Arc<TrustBundle>> {
        const ABOUT: &str = "trust bundle";
        let (path, node) = (self.config.mesh.tls.ca_path.clone(), self.config.mesh.node_name.clone());
        let used = self.credentials.load_full();
        let taken = spawn_blocking(move || {
            let located = certificate::located(&chain).map_err(|error| error.to_string())?;
            let bundle = TrustBundle::of(&path, &located).map_err(|error| error.to_string())?;
            let certificates = |bundle: &TrustBundle| {
                let mut all: Vec<_> = bundle.anchors().iter().map(|anchor| anchor.der.clone()).collect();
                all.sort_by(|one, other| one.as_ref().cmp(other.as_ref()));
                all
            };
            if certificates(&bundle) == certificates(used.bundle()) {
                return Ok(None);
            }
            let bundle = Arc::new(bundle);
            used.fits(&node, bundle.clone()).map_err(|error| {
                format!("with them, peers would not accept the certificate in use: {error}")
            })?;
            let text: String = located.into_iter().map(|located| located.pem).collect();
            files::replace_bundle(&path, &text).map_err(|error| error.to_string())?;
            Ok::<_, String>(Some(bundle))
        });
        match taken.await {
            Ok(Ok(news)) => {
                self.credentials.note(ABOUT, None);
                if news.is_some() {
                    tracing::info!(target: "Mesh", "the CA's certificates have changed; the trust bundle was replaced");
                    self.credentials.look();
                }
                news
            }
            Ok(Err(reason)) => {
                let ca = self.ca.node();
                let path = self.config.mesh.tls.ca_path.display();
                let text = format!(
                    "the CA of {ca} publishes certificates that differ from those in {path}, and they are not adopted: {reason}"
                );
                if self.credentials.note(ABOUT, Some(text.clone())) {
                    tracing::warn!(target: "Mesh", "{text}");
                }
                None
            }
            Err(_) => None,
        }
    }

    async fn renew_if_due(&self, attempts: &mut Attempts) {
        let used = self.credentials.load_full();
        let (leaf, now) = (used.leaf(), now());
        if attempts.of != leaf.not_after {
            let tag = attempts.tag.take();
            *attempts = Attempts { of: leaf.not_after, due: half_life(leaf), tag, ..Attempts::default() };
            METRICS.set_next_renewal(attempts.due);
            self.tell(None);
        }
        if now < attempts.due {
            return;
        }
        match self.renew(used.key(), leaf, attempts).await {
            Ok(()) => {
                METRICS.renewal(Outcome::Renewed);
                tracing::info!(target: "Mesh", "this node's certificate was renewed, with a new key");
                self.credentials.look();
                self.used(leaf.not_after).await;
            }
            Err(Failure { outcome, reason }) => {
                METRICS.renewal(outcome);
                if matches!(outcome, Outcome::Refused | Outcome::Invalid) {
                    // With another key the next time.
                    attempts.wanted = None;
                }
                attempts.failed += 1;
                let wait = pause(attempts.failed, leaf.not_after - now);
                attempts.due = now + wait;
                METRICS.set_next_renewal(attempts.due);
                let left = leaf.not_after - now;
                let meanwhile = match left {
                    ..=0 => "peers refuse it until it is",
                    _ => "until then everything keeps working",
                };
                let text = format!(
                    "this node's certificate {}, and cannot be renewed: {reason}; {meanwhile} (deploy/docs/certificates.md)",
                    when(left)
                );
                match matters(leaf, now) || matches!(outcome, Outcome::Files) {
                    true => self.tell(Some(text)),
                    false => tracing::info!(target: "Mesh", "{text}; the next attempt is in {wait} s"),
                }
            }
        }
    }

    /// Tells what an operator has to know; the same matter once.
    fn tell(&self, text: Option<String>) {
        if self.credentials.note("renewal", text.clone())
            && let Some(text) = text
        {
            tracing::warn!(target: "Mesh", "{text}");
        }
    }

    async fn renew(
        &self,
        used: &Arc<CertifiedKey>,
        leaf: &Leaf,
        attempts: &mut Attempts,
    ) -> Result<(), Failure> {
        self.files.are_ours().map_err(|error| Failure::new(Outcome::Files, error))?;
        let wanted = match &attempts.wanted {
            Some(wanted) => wanted.clone(),
            None => {
                let (used, leaf) = (used.clone(), leaf.clone());
                let made = spawn_blocking(move || Wanted::new(&used, &leaf)).await;
                let made = made.map_err(|error| Failure::new(Outcome::Invalid, error))?;
                Arc::new(made.map_err(|error| Failure::new(Outcome::Invalid, error))?)
            }
        };
        attempts.wanted = Some(wanted.clone());
        let renewed = self.ask(&wanted).await?;
        self.take_lists(renewed.crl, self.credentials.load().bundle().clone()).await;
        let made = wanted.answered(&renewed.certificate, leaf);
        let made = Arc::new(made.map_err(|error| Failure::new(Outcome::Invalid, error))?);
        // As peers would judge it, by what they trust now.
        let node = &self.config.mesh.node_name;
        let fresh = self.credentials.load_full().with_leaf(node, made.clone());
        let fresh = fresh.map_err(|error| Failure::new(Outcome::Invalid, error))?;
        let route = self.roster.node(self.ca.node());
        let route = route.map_err(|error| Failure::new(Outcome::Unreachable, error))?;
        trial::accepted(&route, fresh).await.map_err(|reason| {
            let node = self.ca.node();
            Failure::new(Outcome::NotAccepted, format!("the new certificate was tried with {node}: {reason}"))
        })?;
        let files = self.files.clone();
        let written = spawn_blocking(move || files.replace(&chain_pem(&made), &wanted.key)).await;
        let written = written.map_err(|error| Failure::new(Outcome::Files, error))?;
        written.map_err(|error| Failure::new(Outcome::Files, error))
    }

    async fn ask(&self, wanted: &Wanted) -> Result<Renewed, Failure> {
        let invalid = |error: &dyn std::fmt::Display| Failure::new(Outcome::Invalid, error);
        let body = serde_json::to_vec(wanted.request()).map_err(|error| invalid(&error))?;
        let request = Request::post(RENEW_PATH).header(CONTENT_TYPE, "application/json").body(body.into());
        let answer = match self.ca.ask(request.map_err(|error| invalid(&error))?).await {
            Ok(answer) => answer,
            Err(AskError::Unsent(error @ (ProxyError::NoCaHere | ProxyError::CaUnavailable { .. }))) => {
                return Err(Failure::new(Outcome::Unavailable, error));
            }
            Err(error) => return Err(Failure::new(Outcome::Unreachable, error)),
        };
        if answer.status.is_success() {
            return serde_json::from_slice(&answer.body).map_err(|error| invalid(&error));
        }
        let outcome = match answer.status.as_u16() {
            403 => Outcome::Refused,
            429 => Outcome::TooSoon,
            _ => Outcome::Unavailable,
        };
        let said = serde_json::from_slice::<Problem>(&answer.body).map_or_else(
            |_| format!("it answers {}", answer.status),
            // A peer's words are shown as far as they can be a part of a line.
            |problem| problem.detail.chars().filter(|letter| !letter.is_control()).take(300).collect(),
        );
        Err(Failure::new(outcome, format!("the CA of {} says: {said}", self.ca.node())))
    }

    /// Waits until the new files are used and a peer has accepted them; then those from before the last ones go.
    async fn used(&self, old_end: i64) {
        let in_use = async {
            while self.credentials.load().leaf().not_after == old_end {
                sleep(Duration::from_millis(100)).await;
            }
        };
        if timeout(IN_USE, in_use).await.is_ok() && self.ca.answers().await {
            let files = self.files.clone();
            // One that panicked has said so already.
            let _ = spawn_blocking(move || files.tidy()).await;
        }
    }
}

fn now() -> i64 {
    i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX)
}

/// When a certificate is to be renewed, epoch seconds: about half way, so that not all of a mesh come at once.
fn half_life(leaf: &Leaf) -> i64 {
    let life = leaf.not_after.saturating_sub(leaf.not_before).max(0);
    leaf.not_before + life / 2 + random_part(life / 20)
}

/// Whether it is time to tell that the certificate was not renewed.
fn matters(leaf: &Leaf, now: i64) -> bool {
    let life = leaf.not_after.saturating_sub(leaf.not_before);
    leaf.not_after.saturating_sub(now) < life / 3
}

/// How many seconds to wait after so many attempts, with so many seconds left.
fn pause(failed: u32, left: i64) -> i64 {
    let doubled = RETRIES.0.saturating_mul(1 << failed.saturating_sub(1).min(10)).min(RETRIES.1);
    let pause = doubled.min(left / 20).max(SOONEST);
    pause + random_part(pause / 4)
}

fn random_part(seconds: i64) -> i64 {
    let random = RandomState::new().hash_one(()) % (1 << 32);
    i64::try_from(random).unwrap_or_default() % seconds.max(1)
}

fn when(left: i64) -> String {
    match left {
        ..=0 => "has ended".into(),
        1..7_200 => format!("ends in {} minutes", left / 60),
        7_200..172_800 => format!("ends in {} hours", left / 3_600),
        _ => format!("ends in {} days", left / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_become_rare_and_more_frequent_towards_the_end() {
        let between = |failed, left, least: i64, most: i64| {
            let pause = pause(failed, left);
            assert!((least..=most).contains(&pause), "{failed} {left}: {pause}");
        };
        between(1, 1_000_000, 10, 12);
        between(3, 1_000_000, 40, 50);
        between(40, 1_000_000, 3_600, 4_500);
        between(40, 2_000, 100, 125);
        between(40, -5, 5, 6);
    }
}

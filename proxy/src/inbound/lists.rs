//! `/api/mesh/crl`: peers ask for this node's revocation lists, and send theirs.
//!
//! A list is signed by a CA, so any peer may send one. What a hostile one can cost is bounded: one request of it at a
//! time, some a second, of a size that is read within seconds; and judging takes turns, away from the threads that carry
//! requests.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use mesh_shared::root_cause;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::error::ProxyError;
use crate::http::body::{RequestBody, ResponseBody};
use crate::metrics::{ListVerdict, ListWay, METRICS};
use crate::rate::Rate;
use crate::tls::credentials::CredentialStore;
use crate::tls::revocation::{Lists, MAX_BYTES, MEDIA_TYPE, TAKEN};
use crate::tls::verify::PeerIdentity;

/// How often a peer may send lists in a second.
const PER_SECOND: u32 = 4;
/// How long it may take to send them.
const ARRIVAL: Duration = Duration::from_secs(10);
/// Senders that are distinguished.
const MAX_SENDERS: usize = 1000;
/// How many judge lists at once.
static JUDGES: Semaphore = Semaphore::const_new(2);

/// What all threads share of it.
pub struct ListsApi {
    lists: Arc<Lists>,
    credentials: Arc<CredentialStore>,
    senders: Mutex<HashMap<String, Sender>>,
    rate: Rate,
    begun: Instant,
}

#[derive(Default)]
struct Sender {
    /// See [`Rate::take`].
    due: u64,
    sends: bool,
}

/// The one request of a peer that sends lists, until it is dropped.
struct Turn<'a> {
    api: &'a ListsApi,
    peer: &'a str,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(sender) = self.api.senders.lock().get_mut(self.peer) {
            sender.sends = false;
        }
    }
}

impl ListsApi {
    /// Nobody has sent anything yet.
    pub fn new(lists: Arc<Lists>, credentials: Arc<CredentialStore>) -> Self {
        let (senders, rate, begun) = (Mutex::default(), Rate::new(PER_SECOND), Instant::now());
        Self { lists, credentials, senders, rate, begun }
    }

    /// Answers GET, HEAD and POST.
    ///
    /// # Errors
    /// Lists that come too often, are too large, or cannot be read.
    pub async fn answer(
        &self,
        peer: &PeerIdentity,
        request: &Parts,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        match request.method {
            Method::POST => {
                let taken = self.take(peer.name(), body).await?;
                let answer = [TAKEN, taken.to_string().as_bytes(), b"}"].concat();
                let mut response = Response::new(ResponseBody::full(answer));
                let media = HeaderValue::from_static("application/json");
                response.headers_mut().insert(CONTENT_TYPE, media);
                Ok(response)
            }
            _ => Ok(self.give(request)),
        }
    }

    fn give(&self, request: &Parts) -> Response<ResponseBody> {
        let shared = self.credentials.load().lists.clone();
        let has = request.headers.get_all(IF_NONE_MATCH).iter().any(|tag| *tag == shared.tag);
        let mut response = Response::new(match has {
            true => ResponseBody::full(Bytes::new()),
            false => ResponseBody::full(shared.pem),
        });
        if has {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        let headers = response.headers_mut();
        headers.insert(ETAG, shared.tag);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }

    /// How many of the lists that a peer sends are news.
    async fn take(&self, peer: &str, body: RequestBody) -> Result<usize, ProxyError> {
        let _turn = self.turn(peer)?;
        let too_large = || ProxyError::ListsTooLarge { limit_bytes: MAX_BYTES };
        if body.announced() > MAX_BYTES as u64 {
            return Err(too_large());
        }
        let unreadable = |reason: String| {
            METRICS.list_offered(ListWay::Pushed, ListVerdict::Unreadable);
            ProxyError::BadRequest(format!("its revocation lists cannot be read: {reason}"))
        };
        let body = match timeout(ARRIVAL, Limited::new(body, MAX_BYTES).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large()),
            Ok(Err(error)) => return Err(unreadable(root_cause(&*error).to_string())),
            Err(_) => return Err(ProxyError::BodyTooSlow { limit_ms: ARRIVAL.as_millis() }),
        };
        let (known, bundle) = {
            let credentials = self.credentials.load();
            (credentials.lists.pem == body, credentials.bundle().clone())
        };
        if known {
            METRICS.list_offered(ListWay::Pushed, ListVerdict::Known);
            return Ok(0);
        }
        // Never closed.
        let _judge = JUDGES.acquire().await;
        let lists = self.lists.clone();
        let judged = spawn_blocking(move || lists.offer(&String::from_utf8_lossy(&body), &bundle)).await;
        let verdicts = judged
            .map_err(|error| unreadable(error.to_string()))?
            .map_err(|error| unreadable(error.to_string()))?;
        for verdict in &verdicts {
            METRICS.list_offered(ListWay::Pushed, *verdict);
        }
        Ok(verdicts.into_iter().filter(|verdict| *verdict == ListVerdict::Taken).count())
    }

    /// Lets one request of a peer pass at a time, and not too many.
    fn turn<'a>(&'a self, peer: &'a str) -> Result<Turn<'a>, ProxyError> {
        let refused = || {
            METRICS.list_offered(ListWay::Pushed, ListVerdict::Limited);
            ProxyError::ListsTooOften { peer: peer.into() }
        };
        let now = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let senders = &mut *self.senders.lock();
        if senders.len() >= MAX_SENDERS && !senders.contains_key(peer) {
            senders.retain(|_, sender| sender.sends || sender.due > now);
            if senders.len() >= MAX_SENDERS {
                return Err(refused());
            }
        }
        let sender = senders.entry(peer.into()).or_default();
        match (sender.sends, self.rate.take(sender.due, now)) {
            (false, Some(due)) => *sender = Sender { due, sends: true },
            _ => return Err(refused()),
        }
        Ok(Turn { api: self, peer })
    }
}

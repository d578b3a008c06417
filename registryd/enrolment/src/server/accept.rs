//! The enrolment port: connections of hosts that nobody knows yet. One request each, within a deadline; where there are
//! too many, the oldest makes room.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_shared::enrolment::{ENROL_PATH, ENROLMENT_REFUSED};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use super::Office;
use super::enrolling::Outcome;
use super::http::{Answer, json, not_found, problem, read, unavailable};
use super::limits::{Failures, Origin};

/// Most connections at once, and of one address.
const MOST: usize = 256;
const MOST_OF_ONE: usize = 16;
/// Requests that are judged at once; the others wait, so that a flood takes neither all processors nor all threads.
const JUDGED: usize = 4;
/// How long a handshake may take, and everything after it.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
const REQUEST_LIMIT: Duration = Duration::from_secs(20);
/// When a request that is refused gets its answer, so that its time tells nothing of the reason.
const REFUSED_AFTER: Duration = Duration::from_millis(300);
/// How long to wait where the system has no descriptor for another connection.
const FULL_PAUSE: Duration = Duration::from_millis(100);

/// Connections under way, the oldest first.
#[derive(Default)]
struct Places(VecDeque<(tokio::task::Id, Origin, AbortHandle)>);

impl Places {
    /// Whether there is room for one more from there. The oldest of all may have had to go for it.
    fn make_room(&mut self, origin: Origin) -> bool {
        if self.0.iter().filter(|(_, other, _)| *other == origin).count() >= MOST_OF_ONE {
            return false;
        }
        if self.0.len() >= MOST
            && let Some((_, _, oldest)) = self.0.pop_front()
        {
            oldest.abort();
        }
        true
    }
}

pub(super) async fn run(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    office: Arc<Office>,
    mut stopped: watch::Receiver<bool>,
) {
    let (acceptor, failures) = (TlsAcceptor::from(tls), Arc::<Mutex<Failures>>::default());
    let judging = Arc::new(Semaphore::new(JUDGED));
    let (mut places, mut connections) = (Places::default(), JoinSet::new());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next_with_id() => {
                let id = match ended {
                    Ok((id, ())) => id,
                    Err(error) => error.id(),
                };
                places.0.retain(|(place, ..)| *place != id);
                continue;
            }
            _ = stopped.changed() => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(target: "Enrolment", "cannot accept a connection: {error}");
                sleep(FULL_PAUSE).await;
                continue;
            }
        };
        let origin = Origin::from(address.ip());
        let allowed = failures.lock().unwrap_or_else(PoisonError::into_inner).allow(origin, Instant::now());
        if !allowed || !places.make_room(origin) {
            // Closed before anything is read.
            continue;
        }
        let (office, failures, judging) = (office.clone(), failures.clone(), judging.clone());
        let visitor = Visitor { address, office, failures, judging };
        let handle = connections.spawn(connection(acceptor.clone(), stream, visitor));
        places.0.push_back((handle.id(), origin, handle));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Who is connected, and what it is answered from.
#[derive(Clone)]
struct Visitor {
    address: SocketAddr,
    office: Arc<Office>,
    failures: Arc<Mutex<Failures>>,
    judging: Arc<Semaphore>,
}

async fn connection(acceptor: TlsAcceptor, stream: TcpStream, visitor: Visitor) {
    let address = visitor.address;
    let stream = match timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(target: "Enrolment", "no TLS connection from={address}: {error}");
            return;
        }
        Err(_) => return,
    };
    let service = service_fn(move |request| {
        let visitor = visitor.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(request, visitor).await) }
    });
    let mut http = http1::Builder::new();
    http.keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_LIMIT)
        .max_buf_size(64 * 1024);
    // Whoever is too slow gets no answer, and whatever else breaks is the other side's to see.
    let _ = timeout(REQUEST_LIMIT, http.serve_connection(TokioIo::new(stream), service)).await;
}

async fn answer(request: Request<Incoming>, visitor: Visitor) -> Answer {
    let Visitor { address, office, failures, judging } = visitor;
    if (request.method(), request.uri().path()) != (&Method::POST, ENROL_PATH) {
        return not_found();
    }
    let refused_at = tokio::time::Instant::now() + REFUSED_AFTER;
    let body = read(request.into_body()).await;
    let from = address.ip().to_canonical().to_string();
    let turn = judging.acquire_owned().await;
    // The folder may be on a mount that is slow.
    let outcome = tokio::task::spawn_blocking(move || {
        // Kept until it is done, also where nobody waits for it any more.
        let _turn = turn;
        office.enrol(body.as_deref(), &from)
    });
    let outcome = outcome.await;
    match outcome {
        Ok(Outcome::Enrolled(enrolled)) => json(&*enrolled),
        Ok(Outcome::Refused) => {
            let origin = Origin::from(address.ip());
            failures.lock().unwrap_or_else(PoisonError::into_inner).failed(origin, Instant::now());
            sleep_until(refused_at).await;
            problem(
                StatusCode::FORBIDDEN,
                ENROLMENT_REFUSED,
                "Not let in",
                "the CA does not take this token and request; its log says why (journalctl -u mesh-ca on its host)",
            )
        }
        Ok(Outcome::Unavailable) | Err(_) => unavailable(),
    }
}

//! The unix socket, on which the sidecar of this host forwards what members of the mesh ask.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ETAG, HeaderValue, IF_NONE_MATCH, RETRY_AFTER};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_ca::{hex, sha256};
use mesh_shared::enrolment::{BUNDLE_PATH, RENEW_PATH, RENEWAL_REFUSED, RENEWAL_TOO_SOON};
use mesh_shared::local_api::PEER_CN;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Office;
use super::http::{Answer, json, not_found, problem, read, unavailable};
use super::renewing::NotRenewed;

/// Most connections at once; more wait.
const MOST: usize = 64;
/// How long a connection may stay without a request, and how long it may last.
const HEADER_LIMIT: Duration = Duration::from_secs(30);
const LIFE: Duration = Duration::from_secs(600);
/// How long to wait where the system has no descriptor for another connection.
const FULL_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn run(listener: UnixListener, office: Arc<Office>, mut stopped: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MOST));
    let mut connections = JoinSet::new();
    loop {
        let accept = async {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accept => accepted,
            Some(_) = connections.join_next() => continue,
            _ = stopped.changed() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (office, stopped) = (office.clone(), stopped.clone());
                connections.spawn(async move {
                    connection(stream, office, stopped).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(target: "Enrolment", "cannot accept a connection on the socket: {error}");
                sleep(FULL_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: UnixStream, office: Arc<Office>, mut stopped: watch::Receiver<bool>) {
    let service = service_fn(move |request| {
        let office = office.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(request, office).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    let mut served = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let whole = async {
        tokio::select! {
            ended = served.as_mut() => return ended,
            _ = stopped.changed() => served.as_mut().graceful_shutdown(),
        }
        served.await
    };
    // What breaks is the sidecar's to see.
    let _ = timeout(LIFE, whole).await;
}

async fn answer(request: Request<Incoming>, office: Arc<Office>) -> Answer {
    match (request.method(), request.uri().path()) {
        (&Method::POST, RENEW_PATH) => renew(request, office).await,
        (&Method::GET, BUNDLE_PATH) => bundle(request, office).await,
        _ => not_found(),
    }
}

async fn renew(request: Request<Incoming>, office: Arc<Office>) -> Answer {
    let refused = |detail: &str| problem(StatusCode::FORBIDDEN, RENEWAL_REFUSED, "Not renewed", detail);
    let mut peers = request.headers().get_all(PEER_CN).iter();
    let peer = match (peers.next().map(HeaderValue::to_str), peers.next()) {
        (Some(Ok(peer)), None) => peer.to_owned(),
        _ => return refused("the sidecar did not say who asks"),
    };
    let body = read(request.into_body()).await;
    // The folder may be on a mount that is slow.
    match tokio::task::spawn_blocking(move || office.renew(&peer, body.as_deref())).await {
        Ok(Ok(renewed)) => json(&renewed),
        Ok(Err(NotRenewed::Refused(reason))) => refused(&reason),
        Ok(Err(NotRenewed::TooSoon(wait))) => {
            let seconds = wait.as_secs() + 1;
            let detail = format!(
                "too early: this identity has renewed too often, or the CA's certificates have just changed; the next time in {seconds} s"
            );
            let mut answer =
                problem(StatusCode::TOO_MANY_REQUESTS, RENEWAL_TOO_SOON, "Too early to renew", &detail);
            answer.headers_mut().insert(RETRY_AFTER, seconds.into());
            answer
        }
        Ok(Err(NotRenewed::Unavailable)) | Err(_) => unavailable(),
    }
}

async fn bundle(request: Request<Incoming>, office: Arc<Office>) -> Answer {
    let Ok(Ok(bundle)) = tokio::task::spawn_blocking(move || office.bundle()).await else {
        return unavailable();
    };
    let mut answer = json(&bundle);
    let digest = sha256(format!("{}\n{}", bundle.chain, bundle.crl).as_bytes());
    let tag = format!("\"{}\"", hex(&digest[..16]));
    let known = request.headers().get(IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    if known.is_some_and(|tags| tags.split(',').any(|known| known.trim() == tag)) {
        answer = Answer::default();
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
    }
    if let Ok(tag) = HeaderValue::try_from(tag) {
        answer.headers_mut().insert(ETAG, tag);
    }
    answer
}

//! An agent's server, and the protocol used to talk to it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use http::header::{HOST, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::Body;
use http_body_util::Either;
use mesh_shared::config::{self, AgentServer, Limits, Protocol};
use mesh_shared::root_cause;

use crate::error::{BoxError, ProxyError};
use crate::http::body::RequestBody;
use crate::http::h2::in_flight::{InFlight, SendError};
use crate::http::headers::{absolute, is_grpc};
use crate::http::incoming::{self, Incoming};
use crate::http::replay::{Replay, Source, once_more};
use crate::inbound::backend::agent_slots::AgentSlots;
use crate::inbound::backend::connections::{AgentBody, Connections, Lent, Unanswered};
use crate::inbound::backend::dial::Dialer;
use crate::inbound::backend::shared::{DialError, SharedConnections, StreamSlot};
use crate::io::link::Link;
use crate::upstream::retry;

/// How often a request is sent at most on HTTP/2 connections that end before they take it.
const ATTEMPTS: usize = 3;
/// How long a request whose body is too large to be sent again waits, where it is not known what the server speaks: one
/// that speaks HTTP/2 only says at once that it does not understand HTTP/1.1.
const FINDS_OUT: Duration = Duration::from_millis(500);

/// One worker's way to an agent's server.
pub struct Server {
    address: Arc<str>,
    /// What a program of this host says in `Host` to it.
    host: Option<HeaderValue>,
    protocol: Protocol,
    /// A [`Found`].
    found: AtomicU8,
    http1: Arc<Connections>,
    http2: Arc<SharedConnections>,
    /// What it is given at once.
    pub slots: Arc<AgentSlots>,
}

/// What a server turned out to speak.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Found {
    /// Nothing is known: it has not answered yet, or may be another one by now.
    Nothing,
    /// HTTP/1.1, and perhaps HTTP/2 as well.
    Http1,
    /// HTTP/2 only.
    Http2,
}

/// What a request goes out on, until its answer has passed.
pub enum Carrier {
    /// A connection of its own.
    Http1(Lent),
    /// A stream of a shared connection.
    Http2(StreamSlot),
}

/// The answer's head and what brings the rest.
pub type Answered = (Response<Incoming>, Carrier);

/// A request that can be sent by either protocol.
struct Message {
    /// In origin form.
    parts: Parts,
    source: Source,
}

/// Why there is no answer.
enum Failure {
    /// Of the request nothing was processed: the server does not speak what it was spoken to in.
    OtherProtocol(ProxyError),
    /// Nothing else can be tried.
    Final(ProxyError),
}

impl Server {
    /// Nothing is connected yet.
    pub fn new(
        server: &AgentServer,
        backend: &config::Backend,
        limits: &Limits,
        slots: Arc<AgentSlots>,
    ) -> Self {
        let dialer = Arc::new(Dialer::new(server.address.clone()));
        Self {
            address: server.address.to_string().into(),
            host: server.address.host().try_into().ok(),
            protocol: server.protocol,
            found: AtomicU8::new(Found::Nothing as u8),
            http1: Arc::new(Connections::new(dialer.clone(), limits)),
            http2: Arc::new(SharedConnections::new(dialer, backend, limits)),
            slots,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// What a program of this host says in `Host` to it.
    pub fn host(&self) -> Option<&HeaderValue> {
        self.host.as_ref()
    }

    /// Sends a request in origin form.
    ///
    /// # Errors
    /// The server does not listen, or failed before it answered.
    pub async fn send(&self, request: Request<RequestBody>) -> Result<Answered, ProxyError> {
        // What is rare is boxed, so that each request's future is small.
        if self.takes_http2(request.headers()) {
            return Box::pin(self.send_anew(request, true)).await;
        }
        let mut request = request.map(Either::Left);
        while let Some(mut connection) = self.http1.waiting() {
            let again = reads_again(&request);
            match connection.send(request).await {
                Ok(response) => return Ok((incoming::parsed(response), Carrier::Http1(connection))),
                // The agent closed it just then.
                Err(Unanswered { untouched: Some(untouched), .. }) => request = untouched,
                // It broke under the request, perhaps through the fault of the one before. Reading twice does no harm
                // (RFC 9110, section 9.2.2).
                Err(Unanswered { error, .. }) => {
                    let again = again.filter(|_| is_lost(&error));
                    let failed = self.failed(&error);
                    let Some(again) = again else { return Err(failed) };
                    return match Box::pin(self.send_anew(*again, false)).await {
                        // The agent may have begun with the first one.
                        Err(ProxyError::BackendUnreachable { .. }) => Err(failed),
                        outcome => outcome,
                    };
                }
            }
        }
        match request.into_parts() {
            (parts, Either::Left(body)) => {
                Box::pin(self.send_anew(Request::from_parts(parts, body), false)).await
            }
            // Nothing is kept on connections that wait.
            (_, Either::Right(_)) => Err(failure(&self.address, "it was sent before")),
        }
    }

    fn found(&self, found: Found) {
        self.found.store(found as u8, Ordering::Relaxed);
    }

    fn has_found(&self, found: Found) -> bool {
        self.found.load(Ordering::Relaxed) == found as u8
    }

    /// Whether a request goes by HTTP/2.
    fn takes_http2(&self, headers: &HeaderMap) -> bool {
        let http2 = match self.protocol {
            Protocol::Http1 => false,
            Protocol::H2c => true,
            Protocol::Auto => self.has_found(Found::Http2) || is_grpc(headers),
        };
        http2 && !headers.contains_key(UPGRADE)
    }

    /// Sends a request on a new HTTP/1.1 connection, or by HTTP/2; where it may find out which, by the one after the
    /// other.
    async fn send_anew(
        &self,
        request: Request<RequestBody>,
        mut http2: bool,
    ) -> Result<Answered, ProxyError> {
        let finds_out = self.protocol == Protocol::Auto;
        if !finds_out && !http2 {
            let mut connection = self.connect(false).await?;
            return match connection.send(request.map(Either::Left)).await {
                Ok(response) => Ok((incoming::parsed(response), Carrier::Http1(connection))),
                Err(Unanswered { error, .. }) => Err(self.failed(&error)),
            };
        }
        let (parts, body) = request.into_parts();
        let upgrades = parts.headers.contains_key(UPGRADE);
        let message = Message { parts, source: Source::new(body) };
        let mut may_change = finds_out && !upgrades;
        loop {
            let outcome = match http2 {
                true => self.send_by_http2(&message).await,
                false => self.send_by_http1(&message).await,
            };
            let error = match outcome {
                Ok(answered) => return Ok(answered),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::OtherProtocol(error)) => error,
            };
            if finds_out {
                self.found(if http2 { Found::Nothing } else { Found::Http2 });
            }
            if !may_change || !message.source.can_repeat() {
                return Err(error);
            }
            (http2, may_change) = (!http2, false);
        }
    }

    async fn connect(&self, looks: bool) -> Result<Lent, ProxyError> {
        self.http1.connect(looks).await.map_err(|error| {
            self.found(Found::Nothing);
            let reason = root_cause(&*error).to_string();
            ProxyError::BackendUnreachable { address: self.address.to_string(), reason }
        })
    }

    /// On a new connection, on which the server may turn out to speak HTTP/2 only.
    async fn send_by_http1(&self, message: &Message) -> Result<Answered, Failure> {
        let mut connection = self.connect(true).await.map_err(Failure::Final)?;
        let patience = self.has_found(Found::Nothing).then_some(FINDS_OUT);
        match connection.send(message.for_http1(patience)).await {
            Ok(response) => {
                self.found(Found::Http1);
                Ok((incoming::parsed(response), Carrier::Http1(connection)))
            }
            Err(Unanswered { error, .. }) if connection.speaks_http2() => {
                Err(Failure::OtherProtocol(self.failed(&error)))
            }
            Err(Unanswered { error, .. }) => {
                self.found(Found::Nothing);
                Err(Failure::Final(self.failed(&error)))
            }
        }
    }

    async fn send_by_http2(&self, message: &Message) -> Result<Answered, Failure> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (sender, link, slot) = self.http2.stream().await.map_err(|error| {
                let is_other = matches!(error, DialError::Unsettled(_));
                let told = error.told(&self.address, self.http2.patience());
                if is_other { Failure::OtherProtocol(told) } else { Failure::Final(told) }
            })?;
            let request = message.for_http2(&link);
            let (answer, slot) = InFlight::send(sender, link, request, slot).await;
            let SendError { error, untouched } = match answer {
                Ok(response) => return Ok((response, Carrier::Http2(slot))),
                Err(error) => error,
            };
            // Its connection ended, as that of a server does that starts again.
            let is_unprocessed = untouched || retry::unprocessed(&error).is_some();
            if !is_unprocessed || attempt == ATTEMPTS || !message.source.can_repeat() {
                return Err(Failure::Final(failure(&self.address, root_cause(&error).to_string())));
            }
        }
    }

    fn failed(&self, error: &BoxError) -> ProxyError {
        failure(&self.address, root_cause(&**error).to_string())
    }
}

/// The error for a server that took the request and did not answer as it should.
pub fn failure(address: &str, reason: impl Into<String>) -> ProxyError {
    ProxyError::BackendFailed { address: address.into(), reason: reason.into() }
}

impl Message {
    /// `patience`: how long it waits before it can no longer be sent again.
    fn for_http1(&self, patience: Option<Duration>) -> Request<AgentBody> {
        // Nothing is reset on HTTP/1.1.
        let body = self.source.attempt(&Arc::default()).patient(patience);
        let mut request = once_more(&self.parts, Either::Right(body));
        *request.uri_mut() = self.parts.uri.clone();
        request
    }

    fn for_http2(&self, link: &Arc<Link>) -> Request<Replay> {
        let mut request = once_more(&self.parts, self.source.attempt(link));
        // It may have been on an HTTP/1.1 connection that ended.
        request.headers_mut().remove(TRANSFER_ENCODING);
        let path = self.parts.uri.path_and_query().cloned();
        // A host is checked before; without one, HTTP/2 makes do with the path.
        let host = self.parts.headers.get(HOST).map(|host| Authority::try_from(host.as_bytes()));
        match host {
            Some(Ok(authority)) => {
                *request.uri_mut() = absolute(Scheme::HTTP, authority, path);
                request.headers_mut().remove(HOST);
            }
            _ => *request.uri_mut() = self.parts.uri.clone(),
        }
        request
    }
}

/// The request once more, if it only reads and has no body.
fn reads_again(request: &Request<AgentBody>) -> Option<Box<Request<RequestBody>>> {
    let only_reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let Either::Left(body) = request.body() else { return None };
    if !only_reads || !body.is_end_stream() {
        return None;
    }
    let mut again = Request::new(body.none_again());
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    Some(Box::new(again))
}

/// Whether the connection ended, and nothing was wrong with what came on it.
fn is_lost(error: &BoxError) -> bool {
    let Some(error) = error.downcast_ref::<hyper::Error>() else { return false };
    let mut causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let lost = |error: &io::Error| {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
    };
    error.is_incomplete_message() || causes.any(|cause| cause.downcast_ref::<io::Error>().is_some_and(lost))
}

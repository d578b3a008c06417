//! A request and its answer as one value, from the head of the request until the last byte of the answer has passed.
//!
//! Both pipelines begin one, note on it what happens, and give it the outcome. It ends exactly once, at the latest
//! on drop: then it writes the access line, the metrics and the span, and gives back every slot that it holds.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{CONNECTION, EXPECT, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use mesh_telemetry::{Recorder, TraceContext, recorder};
use smallvec::SmallVec;
use tokio::time::{Instant, timeout_at};

use crate::access_log::{Account, Subject};
use crate::caller::Connection;
use crate::drain;
use crate::error::{ProxyError, Sent};
use crate::http::body::{Ending, RequestBody, ResponseBody, Traffic};
use crate::http::deadline;
use crate::http::h1;
use crate::http::headers::MESH_ERROR;
use crate::http::incoming::Incoming;
use crate::http::interim::Interim;
use crate::http::pace::Allowance;
use crate::http::problem::{self, Form};
use crate::http::upgrade::Upgrade;
use crate::live::{LIVE, Place, Tries};
use crate::metrics::{Held, METRICS, PeerMetrics, Side};
use crate::span;
use crate::upstream::Attempt;

/// A request and its answer.
pub struct Exchange {
    account: Account,
    connection: Arc<Connection>,
    /// Where it is counted.
    counters: Arc<PeerMetrics>,
    /// Where it was sent.
    tries: Tries,
    /// Where it is shown.
    place: Option<Place>,
    deadline: Option<Deadline>,
    rules: Rules,
    /// What the exchange occupies: slots of connections, of the agent, of peers.
    held: SmallVec<[Box<dyn Any + Send>; 2]>,
    _in_flight: Held,
    _stream: Option<Held>,
    _under_way: drain::Held,
    version: Version,
    /// How the caller reads errors.
    form: Form,
    /// Whether its answer ends like any other, with the connection still speaking HTTP.
    answers: bool,
}

/// What the messages of an exchange must keep to.
#[derive(Clone, Copy)]
pub struct Rules {
    /// Largest request body.
    pub max_body_bytes: u64,
    /// Largest head of a request.
    pub max_header_bytes: usize,
    /// How slowly the body may come.
    pub body: Allowance,
    /// Silence after which an answer is given up.
    pub stream_idle: Option<Duration>,
}

impl Rules {
    /// As configured.
    pub fn new(proxy: &mesh_shared::config::Proxy) -> Self {
        Self {
            max_body_bytes: proxy.limits.max_body_bytes,
            max_header_bytes: proxy.limits.max_header_bytes as usize,
            body: Allowance {
                waiting: proxy.timeouts.body,
                bytes_per_second: proxy.limits.min_body_bytes_per_second,
            },
            stream_idle: proxy.timeouts.stream_idle,
        }
    }
}

#[derive(Clone, Copy)]
struct Deadline {
    at: Instant,
    allowed: Duration,
}

impl Exchange {
    /// Begins with the head of a request.
    pub fn begin(
        connection: &Arc<Connection>,
        request: &Request<Incoming>,
        interim: Arc<Interim>,
        subject: Subject,
        rules: Rules,
    ) -> Self {
        connection.progress.asks();
        let traffic = Traffic::new(interim);
        if request.body().is_end_stream() {
            traffic.request.end(Ending::Complete);
        }
        Self {
            account: Account::new(
                request.method().clone(),
                request.uri().clone(),
                TraceContext::read(request.headers(), recorder().map(Recorder::sampler)),
                subject,
                Arc::new(traffic),
            ),
            connection: connection.clone(),
            counters: connection.counters.clone(),
            tries: Tries::default(),
            place: None,
            deadline: None,
            rules,
            held: SmallVec::new(),
            _in_flight: METRICS.request(connection.caller.direction()),
            _stream: (request.version() == Version::HTTP_2)
                .then(|| METRICS.stream(connection.caller.direction(), Side::Downstream)),
            _under_way: connection.drain.request(),
            version: request.version(),
            form: Form::of(request.headers()),
            answers: false,
        }
    }

    /// The body of the request, held to what is allowed and noted here.
    pub fn body(&self, incoming: Incoming, version: Version) -> RequestBody {
        let traffic = self.account.traffic.clone();
        let max_bytes = self.max_body_bytes();
        RequestBody::new(incoming, version, traffic, max_bytes, &self.connection.drains)
            .paced(self.rules.body)
    }

    /// A gRPC call may last for ever, and its messages have a limit of their own at whoever reads them. What waits here is
    /// bounded by the windows of HTTP/2, and by what is kept for a repeat ([`crate::http::replay`]).
    fn max_body_bytes(&self) -> u64 {
        match self.form {
            Form::Grpc => u64::MAX,
            Form::Problem => self.rules.max_body_bytes,
        }
    }

    /// Lets a head pass that is not larger than is allowed. hyper may have read twice as much at once.
    ///
    /// # Errors
    /// One that is.
    pub fn check_head(&self, request: &http::request::Parts) -> Result<(), ProxyError> {
        match h1::head_bytes(request) > self.rules.max_header_bytes {
            true => Err(ProxyError::HeadersTooLarge { most: h1::MAX_HEADERS }),
            false => Ok(()),
        }
    }

    /// Lets a body pass that does not announce more than is allowed.
    ///
    /// # Errors
    /// One that does. Nothing of it is read.
    pub fn check_size(&self, body: &RequestBody) -> Result<(), ProxyError> {
        let limit_bytes = self.max_body_bytes();
        if body.announced() > limit_bytes { Err(ProxyError::BodyTooLarge { limit_bytes }) } else { Ok(()) }
    }

    /// What the access line will say.
    pub fn account(&mut self) -> &mut Account {
        &mut self.account
    }

    /// Shows it among those in flight, once it is known whom it is for.
    pub fn show(&mut self) {
        self.place.get_or_insert_with(|| LIVE.enter(&self.connection.caller, &self.account));
    }

    /// Notes where it is sent, and how that fails.
    pub fn tried(&mut self, attempt: Attempt<'_>) {
        match attempt {
            Attempt::To(endpoint) => {
                self.account.attempts += 1;
                self.account.node = Some(endpoint.node().clone());
                self.counters = endpoint.counters().clone();
                self.tries.begin(endpoint.node());
            }
            Attempt::AgentAway => self.tries.failed("backend_unreachable"),
            Attempt::Failed(error) => {
                self.tries.failed(error.kind().code);
                if !matches!(error, ProxyError::AgentNotCertified { .. }) {
                    return;
                }
                // Nothing was sent there.
                self.account.attempts -= 1;
                if self.account.attempts == 0 {
                    self.account.node = None;
                    self.counters = self.connection.counters.clone();
                }
            }
        }
        if let Some(place) = &self.place {
            place.sent_to(self.account.node.as_ref(), self.account.attempts);
        }
    }

    /// Keeps `slot` until the exchange has ended.
    pub fn hold(&mut self, slot: impl Any + Send) {
        self.held.push(Box::new(slot));
    }

    /// An HTTP/1.1 client learns from its answer that the connection ends with it.
    fn is_http1(&self) -> bool {
        self.version <= Version::HTTP_11
    }

    fn sent(&self) -> Sent {
        match self.account.traffic.sent.load(Ordering::Relaxed) {
            true => Sent::Perhaps,
            false => Sent::Nothing,
        }
    }

    /// Reads how long the caller allows.
    ///
    /// # Errors
    /// A value that is not a time.
    pub fn read_deadline<B>(&mut self, request: &Request<B>) -> Result<(), ProxyError> {
        if let Some(allowed) = deadline::read(request.headers())? {
            let begun = Instant::from_std(self.account.started);
            // As good as none.
            self.deadline = begun.checked_add(allowed).map(|at| Deadline { at, allowed });
        }
        Ok(())
    }

    /// Leaves `Expect` to the next hop where the caller waits for what it asks for (RFC 9110, section 10.1.1).
    pub fn pass_expectation(&self, headers: &mut HeaderMap) {
        if !self.account.traffic.interim.expects() {
            headers.remove(EXPECT);
        }
    }

    /// Tells the next hop what is left of the time that the caller allows.
    pub fn pass_deadline(&self, headers: &mut HeaderMap) {
        if let Some(deadline) = self.deadline {
            deadline::pass_on(headers, deadline.at.saturating_duration_since(Instant::now()));
        }
    }

    /// Tells the next hop which trace the exchange belongs to.
    pub fn pass_trace(&self, headers: &mut HeaderMap) {
        self.account.trace.pass_on(headers);
    }

    /// The answer to the caller. The exchange goes along with its body and ends with it.
    fn answer(
        mut self: Box<Self>,
        outcome: Result<Response<ResponseBody>, ProxyError>,
    ) -> Response<ResponseBody> {
        let mut response = match outcome {
            Ok(response) => response,
            Err(error) => {
                let cause = self.cause(error);
                self.problem(cause)
            }
        };
        if self.is_http1() {
            // By this, hyper tells a caller of HTTP/1.0 whether its connection is kept.
            *response.version_mut() = Version::HTTP_11;
        }
        // A caller that was never told to send the body cannot use the connection again (RFC 9110, section 10.1.1).
        let interim = &self.account.traffic.interim;
        let unsent = interim.expects() && !interim.continues();
        if self.is_http1() && (unsent || self.connection.drain.has_begun()) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        // What follows a CONNECT that is granted may be anything.
        self.answers = self.account.method != Method::CONNECT || !response.status().is_success();
        self.answered(response.status());
        self.account.traffic.answered.store(true, Ordering::Relaxed);
        self.account.traffic.interim.answered();
        if self.account.method == Method::HEAD {
            // Its body is not sent, whatever the head says of it.
            self.account.traffic.answer.end(Ending::Complete);
        }
        let (traffic, idle) = (self.account.traffic.clone(), self.rules.stream_idle);
        // An error that says that the time is over comes when it is.
        let deadline = self
            .deadline
            .map(|deadline| deadline.at)
            .filter(|_| !response.headers().contains_key(MESH_ERROR));
        response.map(|body| body.watched(traffic, self, deadline, idle))
    }

    fn answered(&mut self, status: StatusCode) {
        self.account.answered(status);
        if let Some(place) = &self.place {
            place.answered(status.as_u16());
        }
    }

    /// The exchange continues as a tunnel; what it is told at the end is how many bytes went each way.
    fn switched(mut self: Box<Self>) -> impl FnOnce(std::io::Result<(u64, u64)>) + Send + 'static {
        self.answered(StatusCode::SWITCHING_PROTOCOLS);
        move |ended| {
            let traffic = &self.account.traffic;
            match ended {
                Ok((up, down)) => {
                    traffic.request.passed(up);
                    traffic.answer.passed(down);
                    traffic.answer.end(Ending::Complete);
                }
                Err(_) => traffic.answer.end(Ending::SourceFailed),
            }
        }
    }

    /// What the request's own body did wrong comes before what followed from it: whoever was to read the body only sees
    /// that it broke off.
    pub fn cause(&self, error: ProxyError) -> ProxyError {
        let passage = &self.account.traffic.request;
        match passage.ending() {
            Some(Ending::TooLarge) => ProxyError::BodyTooLarge { limit_bytes: self.rules.max_body_bytes },
            Some(Ending::TooSlow) => {
                ProxyError::BodyTooSlow { limit_ms: self.rules.body.waiting.as_millis() }
            }
            Some(Ending::SourceFailed) => {
                let reason = passage.reason().unwrap_or("it broke off");
                ProxyError::BadRequest(format!("its body cannot be read: {reason}"))
            }
            _ => error,
        }
    }

    /// What tells of an upload over HTTP/2 that comes to its end before its `error` is told, as long as it keeps coming.
    /// Many clients cannot read an answer while they send: Node.js gives up where much waits to be sent. gRPC's can, and
    /// may send for ever; and where time was what ran out, the caller is not to wait longer.
    fn upload(&self, error: &ProxyError) -> Option<Arc<Traffic>> {
        let in_time = !matches!(error, ProxyError::DeadlineExceeded { .. } | ProxyError::BodyTooSlow { .. });
        let traffic = &self.account.traffic;
        let waits = !self.is_http1()
            && self.form == Form::Problem
            && in_time
            && traffic.request.ending() != Some(Ending::Complete);
        waits.then(|| traffic.clone())
    }

    /// An error as the caller sees it.
    fn problem(&mut self, error: ProxyError) -> Response<ResponseBody> {
        METRICS.error(error.kind().code);
        let response = problem::answer(&error, self.form).map(ResponseBody::full);
        self.account.failed(error);
        response
    }
}

/// Gives the caller its answer, and the exchange to whatever carries the rest of it: the answer's body, or the tunnel
/// that the next hop agreed to.
pub async fn finish(
    exchange: Box<Exchange>,
    connection: &Connection,
    upgrade: Option<Upgrade>,
    outcome: Result<Response<ResponseBody>, ProxyError>,
) -> Response<ResponseBody> {
    match (outcome, upgrade) {
        (Ok(mut response), Some(upgrade)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            upgrade.join(&mut response, &connection.tunnel, exchange.switched());
            response
        }
        (outcome, _) => {
            if let Some(upload) = outcome.as_ref().err().and_then(|error| exchange.upload(error)) {
                let end = exchange.deadline.map(|deadline| deadline.at);
                // Rarely needed: boxed, so that each request's future is small.
                Box::pin(upload.rest.read(end)).await;
            }
            exchange.answer(outcome)
        }
    }
}

/// Lets `answer` run for as long as the caller allows; what is under way when the time is over is given up.
///
/// # Errors
/// Those of `answer`, and [`ProxyError::DeadlineExceeded`].
pub async fn within_deadline<T>(
    exchange: &mut Exchange,
    answer: impl AsyncFnOnce(&mut Exchange) -> Result<T, ProxyError>,
) -> Result<T, ProxyError> {
    let Some(deadline) = exchange.deadline else { return answer(exchange).await };
    match timeout_at(deadline.at, answer(exchange)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ProxyError::DeadlineExceeded {
            limit_ms: deadline.allowed.as_millis(),
            sent: exchange.sent(),
        }),
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.account.traffic.interim.over();
        self.held.clear();
        if self.answers {
            if self.account.traffic.request.ending() != Some(Ending::Complete) {
                self.connection.progress.leaves_unread();
            }
            self.connection.progress.answers();
        }
        let end = self.account.end(self.connection.why_cut());
        self.counters.ended(self.account.agent_name(), &end.figures);
        self.account.write(&self.connection.caller, &end);
        if let Some(recorder) = recorder()
            && self.account.trace.recorded
            && !self.account.routine
        {
            recorder.record(span::of(&self.account, &self.connection.caller, self.version, &end));
        }
        LIVE.leave(self.place.take(), &self.connection.caller, &self.account, &self.tries, end);
    }
}

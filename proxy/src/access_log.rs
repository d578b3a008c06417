//! The record of an exchange, and the one line that it becomes when the exchange has ended.

pub mod delegation;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, StatusCode, Uri};
use mesh_shared::logging::{Excerpt, Record};
use mesh_shared::{AgentName, NodeName};
use mesh_telemetry::TraceContext;
use tracing::Level;

use crate::access_log::delegation::DelegationScanner;
use crate::caller::Caller;
use crate::error::{Kind, ProxyError};
use crate::http::body::{Ending, Tap, Traffic};
use crate::metrics::{Ended, Outcome};

/// What the lines of each direction begin with.
const INBOUND: &str = "AgentChannel";
const OUTBOUND: &str = "Outbound";

/// What is known of an exchange.
pub struct Account {
    /// When its head had come.
    pub started: Instant,
    /// Its method.
    pub method: Method,
    /// Its target, without a prefix that names the destination.
    pub uri: Uri,
    /// The trace that it belongs to.
    pub trace: TraceContext,
    /// The agent that it is for, where it names one.
    pub agent: Option<AgentName>,
    /// The node that it was sent to, or last tried.
    pub node: Option<NodeName>,
    /// How often it was sent or tried.
    pub attempts: u32,
    /// How long it waited for a new connection, where it did.
    pub connect: Option<Duration>,
    /// The code of an error that the far sidecar made.
    pub far_code: Option<HeaderValue>,
    /// Whether it is one that sidecars send each other in each heartbeat, and nothing came of it: a line at level debug only.
    pub routine: bool,
    /// What passed of the bodies.
    pub traffic: Arc<Traffic>,
    subject: Subject,
    status: Option<StatusCode>,
    first_byte: Option<Duration>,
    failure: Option<ProxyError>,
}

/// What a request is about.
pub enum Subject {
    /// Anything.
    Request,
    /// A task for the agent `to`.
    Delegation {
        /// The agent.
        to: String,
        /// Looks for who delegates what in the body that passes.
        scanner: Arc<Mutex<DelegationScanner>>,
        /// Characters of the task to show.
        preview_chars: usize,
    },
}

impl Subject {
    /// A task for the agent `to`, of which the line shows `preview_chars` characters.
    pub fn delegation(to: String, preview_chars: usize) -> Self {
        let scanner = Arc::new(Mutex::new(DelegationScanner::new(preview_chars)));
        Self::Delegation { to, scanner, preview_chars }
    }
}

/// The end of an exchange.
pub struct End {
    /// For the metrics.
    pub figures: Ended,
    /// Why the answer did not pass whole, where that is known.
    pub reason: Option<String>,
}

impl Account {
    /// Begins when the head of a request has come.
    pub fn new(
        method: Method,
        uri: Uri,
        trace: TraceContext,
        subject: Subject,
        traffic: Arc<Traffic>,
    ) -> Self {
        Self {
            started: Instant::now(),
            method,
            uri,
            trace,
            agent: None,
            node: None,
            attempts: 0,
            routine: false,
            connect: None,
            far_code: None,
            traffic,
            subject,
            status: None,
            first_byte: None,
            failure: None,
        }
    }

    /// What must see the request's body, if anything.
    pub fn tap(&self) -> Option<Tap> {
        match &self.subject {
            Subject::Request => None,
            Subject::Delegation { scanner, .. } => {
                let scanner = scanner.clone();
                Some(Box::new(move |data| {
                    scanner.lock().unwrap_or_else(PoisonError::into_inner).feed(data);
                }))
            }
        }
    }

    /// Notes that the head of the answer is there.
    pub fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
        self.first_byte = Some(self.started.elapsed());
    }

    /// Notes that the answer is an error of this sidecar.
    pub fn failed(&mut self, error: ProxyError) {
        self.failure = Some(error);
    }

    /// The status of the answer, once it has begun.
    pub fn status(&self) -> Option<u16> {
        self.status.map(|status| status.as_u16())
    }

    /// The error of this sidecar that is the answer.
    pub fn failure(&self) -> Option<&ProxyError> {
        self.failure.as_ref()
    }

    /// The code of the error that is the answer, where a sidecar made it.
    pub fn code(&self) -> Option<&str> {
        self.failure.as_ref().map(|error| error.kind().code).or_else(|| self.far_code())
    }

    fn far_code(&self) -> Option<&str> {
        let is_code = |code: &&str| {
            (1..=64).contains(&code.len())
                && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        self.far_code.as_ref()?.to_str().ok().filter(is_code)
    }

    /// The agent that is counted; empty where none is known.
    pub fn agent_name(&self) -> &str {
        self.agent.as_ref().map_or("", AgentName::as_str)
    }

    /// How the exchange ended, and by whom, as of now. `cut`: why this sidecar ended the connection, if it did.
    pub fn end(&self, cut: Option<&'static str>) -> End {
        let answer = &self.traffic.answer;
        let gone = || cut.map_or((Outcome::CutByCaller, None), |why| (Outcome::CutBySidecar, Some(why)));
        let (outcome, reason) = match (self.status, answer.ending()) {
            (None, _) => gone(),
            (Some(_), Some(Ending::Complete)) if self.failure.is_some() => (Outcome::Error, None),
            (Some(_), Some(Ending::Complete)) => (Outcome::Complete, None),
            (Some(_), Some(Ending::SourceFailed)) => (Outcome::CutByUpstream, answer.reason()),
            (Some(_), Some(Ending::Deadline)) => {
                (Outcome::CutBySidecar, Some("the time that the request allows is over"))
            }
            (Some(_), Some(Ending::Idle)) => {
                (Outcome::CutBySidecar, Some("the answer was silent for too long"))
            }
            (Some(_), _) => gone(),
        };
        End {
            figures: Ended {
                status: self.status(),
                outcome,
                took: self.started.elapsed(),
                first_byte: self.first_byte,
                bytes_in: self.traffic.request.bytes(),
                bytes_out: answer.bytes(),
                trace: self.trace.recorded.then_some(self.trace.trace_id),
            },
            reason: reason.map(str::to_owned),
        }
    }

    /// Writes the access line.
    pub fn write(&self, caller: &Caller, end: &End) {
        let ms = |time: Duration| time.as_millis() as u64;
        let Ended { status, outcome, took, first_byte, bytes_in, bytes_out, .. } = end.figures;
        let (duration_ms, first_byte_ms, connect_ms) = (ms(took), first_byte.map(ms), self.connect.map(ms));
        let path = Path(shown_target(&self.method, &self.uri));
        let method = Excerpt { text: self.method.as_str(), max_chars: 32 };
        if self.routine && !tracing::enabled!(target: INBOUND, Level::DEBUG) {
            return;
        }
        let line = match caller {
            Caller::Peer(peer) if tracing::enabled!(target: INBOUND, Level::INFO) => {
                let peer = peer.name();
                match &self.subject {
                    Subject::Request => {
                        Record::begin(INBOUND, format_args!("Request peer.cn={peer} {method} {path}"))
                    }
                    Subject::Delegation { to, scanner, preview_chars } => {
                        let found = scanner.lock().unwrap_or_else(PoisonError::into_inner);
                        // Anything but a name could pass for another part of the line.
                        let from = found.from_agent().filter(|from| from.parse::<AgentName>().is_ok());
                        let from = from.unwrap_or("unknown");
                        let text = if *preview_chars == 0 { "" } else { found.message().unwrap_or_default() };
                        let task = Task { text, max_chars: *preview_chars };
                        let message =
                            format_args!("Received mesh delegation peer.cn={peer} from {from} → {to}{task}");
                        Record::begin(INBOUND, message)
                    }
                }
            }
            Caller::Program(_) if tracing::enabled!(target: OUTBOUND, Level::INFO) => {
                Record::begin(OUTBOUND, format_args!("Request {method} {path}"))
            }
            _ => None,
        };
        let Some(mut line) = line else { return };
        if line.has_details() {
            if let Caller::Peer(peer) = caller {
                line.detail("peer.cn", peer.name());
            }
            line.detail("method", &method.to_string());
            line.detail("path", &path.to_string());
        }
        line.number("status", status.map(u64::from));
        line.number("duration_ms", duration_ms);
        line.text("code", self.code());
        match caller {
            Caller::Peer(_) => {
                if let Some(error) = &self.failure {
                    line.text("error", &*format!("{}: {error}", error.kind().code));
                }
                line.text("agent", self.agent.as_ref().map(AgentName::as_str));
                line.number("bytes_in", bytes_in);
                line.number("bytes_out", bytes_out);
                line.number("first_byte_ms", first_byte_ms);
            }
            Caller::Program(program) => {
                line.text("agent", self.agent.as_ref().map(AgentName::as_str));
                line.text("node", self.node.as_ref().map(NodeName::as_str));
                line.text("caller", program.address.as_deref());
                line.text("as_agent", program.acts_as.as_ref().map(|agent| agent.identity.as_str()));
                line.number("bytes_in", bytes_in);
                line.number("bytes_out", bytes_out);
                line.number("connect_ms", connect_ms);
                line.number("first_byte_ms", first_byte_ms);
                line.number("attempts", u64::from(self.attempts));
            }
        }
        line.text("ended", outcome.as_str());
        line.text("reason", end.reason.as_deref());
        self.trace.trace_id.with_digits(|trace_id| line.text("trace_id", trace_id));
        line.end();
    }
}

/// Writes a line for what is not a request, and was refused with `error` before there was an exchange.
pub fn write_refusal(caller: &Caller, error: &ProxyError) {
    let &Kind { status, code, .. } = error.kind();
    let line = match caller {
        Caller::Peer(peer) if tracing::enabled!(target: INBOUND, Level::INFO) => {
            Record::begin(INBOUND, format_args!("Refused a malformed request peer.cn={}", peer.name()))
        }
        Caller::Program(_) if tracing::enabled!(target: OUTBOUND, Level::INFO) => {
            Record::begin(OUTBOUND, format_args!("Refused a malformed request"))
        }
        _ => None,
    };
    let Some(mut line) = line else { return };
    if let Caller::Peer(peer) = caller {
        line.detail("peer.cn", peer.name());
    }
    line.number("status", u64::from(status.as_u16()));
    line.text("code", code);
    line.text("error", &*format!("{code}: {error}"));
    if let Caller::Program(program) = caller {
        line.text("caller", program.address.as_deref());
        line.text("as_agent", program.acts_as.as_ref().map(|agent| agent.identity.as_str()));
    }
    line.end();
}

/// What is shown of a request's target: where a tunnel leads, else the path without the query.
pub fn shown_target<'u>(method: &Method, uri: &'u Uri) -> &'u str {
    match uri.authority() {
        Some(tunnel) if method == Method::CONNECT => tunnel.as_str(),
        _ => uri.path(),
    }
}

/// A path in which nothing can pass for another part of the line.
struct Path<'a>(&'a str);

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = Excerpt { text: self.0, max_chars: 200 };
        if memchr::memchr(b'=', self.0.as_bytes()).is_none() {
            return write!(f, "{shown}");
        }
        f.write_str(&shown.to_string().replace('=', "%3D"))
    }
}

/// The beginning of a task, as in the reference document; quoted where it could pass for another part of the line.
struct Task<'a> {
    text: &'a str,
    max_chars: usize,
}

impl std::fmt::Display for Task<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.text.is_empty() {
            return Ok(());
        }
        let shown = Excerpt { text: self.text, max_chars: self.max_chars };
        if memchr::memchr2(b'=', b'"', self.text.as_bytes()).is_none() {
            return write!(f, ": {shown}");
        }
        let quoted = shown.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('=', "\\=");
        write!(f, ": \"{quoted}\"")
    }
}

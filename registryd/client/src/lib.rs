//! HTTP to the daemons of this host: registryd's unix socket, mesh-proxy's outbound port and unix socket, and agents' own
//! servers.
//! One request on a connection of its own, which ends with the answer.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_shared::local_api::Problem;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// How long registryd may take to answer a question, which it does from memory.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// How long anything else may take that is not a stream: registryd writes a change before it answers, and a sidecar has
/// other nodes to ask.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest answer that is read whole.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// One of the daemons, by where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Daemon {
    /// registryd, on its unix socket.
    Registryd(PathBuf),
    /// mesh-proxy, on its outbound port.
    Sidecar(SocketAddr),
    /// mesh-proxy, on its own unix socket.
    Admin(PathBuf),
    /// An agent's own server.
    Agent(SocketAddr),
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registryd(path) => write!(f, "registryd on {}", path.display()),
            Self::Sidecar(address) => write!(f, "mesh-proxy on {address}"),
            Self::Admin(path) => write!(f, "mesh-proxy on {}", path.display()),
            Self::Agent(address) => write!(f, "the agent on {address}"),
        }
    }
}

/// Why a daemon gave no usable answer.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it, and the fields are its parts
pub enum ClientError {
    #[error("cannot reach {daemon}: {source} ({})", advice(daemon, source))]
    Unreachable { daemon: Daemon, source: io::Error },
    #[error("{daemon} accepts connections but does not answer within {} s; see its log", limit.as_secs())]
    Timeout { daemon: Daemon, limit: Duration },
    #[error("{daemon}: the connection broke ({source}); see its log")]
    Broken { daemon: Daemon, source: hyper::Error },
    #[error("{daemon} broke off its answer to {path} ({reason})")]
    Cut { daemon: Daemon, path: String, reason: String },
    #[error("{daemon} answered {path} with more than {max_bytes} bytes, which is more than is read")]
    TooLarge { daemon: Daemon, path: String, max_bytes: usize },
    #[error("{daemon} answered {path} with {what}; are meshctl and the daemon of the same version?")]
    Unexpected { daemon: Daemon, path: String, what: String },
    /// The daemon itself says what is wrong.
    #[error("{}", .0.detail)]
    Problem(Box<Problem>),
}

fn advice(daemon: &Daemon, error: &io::Error) -> &'static str {
    match (daemon, error.kind()) {
        (_, ErrorKind::PermissionDenied) => {
            "not allowed: use sudo, or join the group that owns the socket (mesh)"
        }
        (Daemon::Registryd(_), _) => "is it running? systemctl status registryd",
        (Daemon::Sidecar(_) | Daemon::Admin(_), _) => "is it running? systemctl status mesh-proxy",
        (Daemon::Agent(_), _) => "is it running?",
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The problem document, if the answer is one.
    pub fn problem(&self) -> Option<Problem> {
        let kind = self.headers.get(CONTENT_TYPE)?.to_str().ok()?;
        match kind.starts_with("application/problem+json") {
            true => serde_json::from_slice(&self.body).ok(),
            false => None,
        }
    }
}

impl Daemon {
    /// Sends a request on a connection of its own; the body of the answer is left to the caller.
    ///
    /// # Errors
    /// No connection, or no answer's head in time.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let limit = self.patience(&method);
        self.in_time(limit, self.request(method, path, headers, body)).await
    }

    /// Asks for what has no end; the body of the answer is left to the caller.
    ///
    /// # Errors
    /// As [`Daemon::open`], and what the daemon refuses.
    pub async fn follow(&self, path: &str, headers: HeaderMap) -> Result<Incoming, ClientError> {
        let answer = self.open(Method::GET, path, headers, Bytes::new()).await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer.into_body());
        }
        let refused = self.in_time(ANSWER_TIMEOUT, self.whole(path, answer, MAX_ANSWER_BYTES)).await?;
        self.accepted(path, refused).and(Err(self.unexpected(path, status.to_string())))
    }

    fn patience(&self, method: &Method) -> Duration {
        match (self, method) {
            (Self::Registryd(_), &Method::GET) => QUESTION_TIMEOUT,
            _ => ANSWER_TIMEOUT,
        }
    }

    async fn in_time<T>(
        &self,
        limit: Duration,
        exchange: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        timeout(limit, exchange).await.map_err(|_| ClientError::Timeout { daemon: self.clone(), limit })?
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let unreachable = |source| ClientError::Unreachable { daemon: self.clone(), source };
        let mut request = Request::new(Full::new(body));
        (*request.method_mut(), *request.headers_mut()) = (method, headers);
        *request.uri_mut() = path.parse().map_err(|error| self.unexpected(path, format!("{error}")))?;
        let host = match self {
            Self::Registryd(_) | Self::Admin(_) => "localhost".into(),
            Self::Sidecar(address) | Self::Agent(address) => address.to_string(),
        };
        if let Ok(host) = host.parse() {
            request.headers_mut().entry(HOST).or_insert(host);
        }
        match self {
            Self::Registryd(socket) | Self::Admin(socket) => {
                self.exchange(UnixStream::connect(socket).await.map_err(unreachable)?, request).await
            }
            Self::Sidecar(address) | Self::Agent(address) => {
                self.exchange(TcpStream::connect(address).await.map_err(unreachable)?, request).await
            }
        }
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, ClientError> {
        let broken = |source| ClientError::Broken { daemon: self.clone(), source };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends with the answer's body; what goes wrong shows up there.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(broken)
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// No whole answer in time. An answer with an error status is an answer.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, ClientError> {
        let limit = self.patience(&method);
        self.send_within(limit, MAX_ANSWER_BYTES, method, path, headers, body).await
    }

    /// As [`Self::send`], with limits of the caller's.
    ///
    /// # Errors
    /// As there, or an answer of more than `max_bytes`.
    pub async fn send_within(
        &self,
        limit: Duration,
        max_bytes: usize,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, ClientError> {
        let whole = async {
            let answer = self.request(method, path, headers, body).await?;
            self.whole(path, answer, max_bytes).await
        };
        self.in_time(limit, whole).await
    }

    async fn whole(
        &self,
        path: &str,
        answer: Response<Incoming>,
        max_bytes: usize,
    ) -> Result<Answer, ClientError> {
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, max_bytes).collect().await.map_err(|error| {
            let (daemon, path) = (self.clone(), path.to_owned());
            match error.is::<LengthLimitError>() {
                true => ClientError::TooLarge { daemon, path, max_bytes },
                false => ClientError::Cut { daemon, path, reason: error.to_string() },
            }
        })?;
        Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
    }

    /// Reads a JSON document.
    ///
    /// # Errors
    /// No answer, a problem, or a document of another shape.
    pub async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, http::HeaderValue::from_static("application/json"));
        let answer = self.send(Method::GET, path, headers, Bytes::new()).await?;
        let answer = self.accepted(path, answer)?;
        serde_json::from_slice(&answer.body)
            .map_err(|error| self.unexpected(path, format!("other JSON ({error})")))
    }

    /// Turns an answer with an error status into an error.
    ///
    /// # Errors
    /// The daemon's problem, or the bare status where it gave none.
    pub fn accepted(&self, path: &str, answer: Answer) -> Result<Answer, ClientError> {
        if answer.status.is_success() {
            return Ok(answer);
        }
        Err(match answer.problem() {
            Some(problem) => ClientError::Problem(Box::new(problem)),
            None => self.unexpected(path, answer.status.to_string()),
        })
    }

    /// An answer of another kind than expected.
    pub fn unexpected(&self, path: &str, what: String) -> ClientError {
        ClientError::Unexpected { daemon: self.clone(), path: path.into(), what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_absent_daemon_is_named_with_what_to_do() {
        let daemon = Daemon::Registryd("/nonexistent/registryd.sock".into());
        let error = daemon.read::<serde_json::Value>("/v1/status").await.unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot reach registryd on /nonexistent/registryd.sock: No such file or directory (os error 2) \
             (is it running? systemctl status registryd)"
        );
    }
}

//! The way to the CA's process on its unix socket, where there is one on this host: what peers ask the CA for passes
//! through, and this sidecar asks there itself.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderValue, TRANSFER_ENCODING};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use mesh_shared::config::Config;
use mesh_shared::enrolment::MAX_BODY_BYTES;
use mesh_shared::root_cause;
use tokio::time::timeout;

use crate::error::{BoxError, ProxyError};
use crate::http::body::RequestBody;
use crate::http::incoming;
use crate::local_socket;

/// What the CA is called in `Host`.
const NAME: &str = "mesh-ca";
/// How long the CA may take. It signs within milliseconds, but others may be before.
const ANSWER: Duration = Duration::from_secs(15);

/// The way to the CA.
pub struct CaLink {
    socket: PathBuf,
}

impl CaLink {
    /// The way to the configured socket. Nothing is connected yet, and there may be none.
    pub fn new(config: &Config) -> Self {
        Self { socket: config.proxy.ca_socket.clone() }
    }

    /// Asks the CA what a peer asked, on the same path. The peer's name is in the request, set by this sidecar.
    ///
    /// # Errors
    /// There is no CA on this host, or it does not answer.
    pub async fn pass(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Response<incoming::Incoming>, ProxyError> {
        let (mut parts, body) = request.into_parts();
        if body.announced() > MAX_BODY_BYTES as u64 {
            return Err(ProxyError::CaBodyTooLarge { limit_bytes: MAX_BODY_BYTES });
        }
        body.sent(true);
        body.interim().go_on();
        local_socket::redirect(&mut parts, NAME);
        // Whole, before it takes a place at the CA, which has few of them for all nodes.
        let whole = timeout(ANSWER, Limited::new(body, MAX_BODY_BYTES).collect()).await;
        let slow = ProxyError::BodyTooSlow { limit_ms: ANSWER.as_millis() };
        let body = match whole.map_err(|_| slow)? {
            Ok(body) => Full::new(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(ProxyError::CaBodyTooLarge { limit_bytes: MAX_BODY_BYTES });
            }
            Err(error) => return Err(ProxyError::BadRequest(root_cause(&*error).to_string())),
        };
        parts.headers.remove(TRANSFER_ENCODING);
        self.send(Request::from_parts(parts, body)).await.map(incoming::parsed)
    }

    /// Asks the CA.
    ///
    /// # Errors
    /// As [`CaLink::pass`].
    pub async fn send<B>(&self, mut request: Request<B>) -> Result<Response<Incoming>, ProxyError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        request.headers_mut().insert(HOST, HeaderValue::from_static(NAME));
        let unavailable = |reason: String| {
            let socket = self.socket.display().to_string();
            ProxyError::CaUnavailable { socket, reason }
        };
        match timeout(ANSWER, local_socket::exchange(&self.socket, request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => match error.downcast_ref::<io::Error>().map(io::Error::kind) {
                Some(io::ErrorKind::NotFound) => Err(ProxyError::NoCaHere),
                _ => Err(unavailable(root_cause(&*error).to_string())),
            },
            Err(_) => Err(unavailable(format!("no answer within {} s", ANSWER.as_secs()))),
        }
    }
}

//! `/v1/live` on the sidecar's own socket, for operators of this host: what this sidecar carries, or another one.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_shared::NodeName;
use mesh_shared::live::{CONTENT_TYPE as NDJSON, LOCAL_LIVE, MAX_CONNECTIONS, MESH_LIVE};
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::ProxyError;
use crate::http::body::{RequestBody, ResponseBody};
use crate::http::headers::MESH_ERROR;
use crate::http::problem::{self, Form, RETRYABLE};
use crate::listener::run_to_end;
use crate::live::feed;
use crate::metrics::{Direction, METRICS};
use crate::upstream::{Target, Upstream};

/// Until a request's header block is complete.
const HEADER_LIMIT: Duration = Duration::from_secs(30);
/// How long another node may take until it begins to tell.
const FAR_LIMIT: Duration = Duration::from_secs(15);
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// What this node carries, line by line, for a reader on this side.
///
/// # Errors
/// There are as many readers as there may be.
pub fn answer(side: Direction) -> Result<Response<ResponseBody>, ProxyError> {
    let (lines, reading) = feed::open(side)?;
    let mut response = Response::new(ResponseBody::fed(lines, reading));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The sidecar's own socket.
pub struct OwnSocket {
    node: NodeName,
    /// The way to other nodes, with this node's certificate.
    upstream: Arc<Upstream>,
    places: Semaphore,
}

impl OwnSocket {
    /// What answers for the sidecar of `node`.
    pub fn new(node: NodeName, upstream: Arc<Upstream>) -> Self {
        Self { node, upstream, places: Semaphore::new(MAX_CONNECTIONS) }
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let answer = match wanted(request.method(), request.uri()) {
            Ok(None) => answer(Direction::Outbound),
            Ok(Some(node)) if node == self.node => answer(Direction::Outbound),
            Ok(Some(node)) => self.far(node).await,
            Err(error) => Err(error),
        };
        answer.unwrap_or_else(|error| {
            METRICS.error(error.kind().code);
            problem::answer(&error, Form::Problem).map(ResponseBody::full)
        })
    }

    /// What another node carries, as its sidecar tells it, or that one's refusal.
    async fn far(&self, node: NodeName) -> Result<Response<ResponseBody>, ProxyError> {
        let mut request = Request::new(RequestBody::own(Bytes::new()));
        *request.uri_mut() = Uri::from_static(MESH_LIVE);
        let late = || ProxyError::PeerTimeout {
            node: node.clone(),
            limit_ms: FAR_LIMIT.as_millis(),
            addresses: "its inbound port".into(),
        };
        let sent =
            timeout(FAR_LIMIT, self.upstream.send(Target::own_path(node.clone()), request, |_| {})).await;
        let delivered = sent.map_err(|_| late())??;
        let (far, body) = delivered.response.into_parts();
        let told = far.status == StatusCode::OK && is(&far.headers, NDJSON);
        if !told && !is(&far.headers, "application/problem+json") {
            return Err(ProxyError::LiveUnknown(node));
        }
        let body = ResponseBody::passing(body);
        let mut response =
            Response::new(body.watched(Arc::default(), Box::new(delivered.slot.of_stream()), None, None));
        *response.status_mut() = far.status;
        for name in [CONTENT_TYPE, MESH_ERROR, RETRYABLE] {
            if let Some(value) = far.headers.get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        Ok(response)
    }
}

/// The node that is asked for by name, if one is.
///
/// # Errors
/// Something else is asked for.
fn wanted(method: &Method, uri: &Uri) -> Result<Option<NodeName>, ProxyError> {
    if uri.path() != LOCAL_LIVE {
        return Err(ProxyError::BadDestination(format!("there is only {LOCAL_LIVE} on this socket")));
    }
    if method != Method::GET {
        return Err(ProxyError::MethodNotAllowed { path: LOCAL_LIVE, allowed: "GET" });
    }
    let mut node = None;
    for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let name = pair.strip_prefix("node=").ok_or_else(|| {
            ProxyError::BadDestination(format!("{pair:?} is not known here; ?node=<node> is"))
        })?;
        let name = name.parse::<NodeName>();
        node = Some(name.map_err(|error| ProxyError::BadDestination(error.to_string()))?);
    }
    Ok(node)
}

fn is(headers: &HeaderMap, wanted: &str) -> bool {
    let media = headers.get(CONTENT_TYPE).and_then(|content| content.to_str().ok()).unwrap_or_default();
    media.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case(wanted))
}

#[async_trait]
impl ServerApp for OwnSocket {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        // One too many is closed without a word.
        let _place = self.places.try_acquire().ok()?;
        let this = self.clone();
        let service = service_fn(move |request| {
            let this = this.clone();
            async move { Ok::<_, Infallible>(this.respond(request).await) }
        });
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT).max_buf_size(MAX_HEADER_BYTES);
        let connection = http1.serve_connection(TokioIo::new(stream), service);
        // A reader that hangs up is nothing to report.
        let _ = run_to_end(connection, http1::Connection::graceful_shutdown, shutdown.clone()).await;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_asked_for_by_name() {
        let wanted = |target: &str| wanted(&Method::GET, &target.parse().unwrap()).ok();
        assert_eq!(wanted("/v1/live"), Some(None));
        assert_eq!(wanted("/v1/live?"), Some(None));
        assert_eq!(wanted("/v1/live?node=ct111"), Some(Some("ct111".parse().unwrap())));
        for bad in ["/v1/live?node=", "/v1/live?node=a/b", "/v1/live?nodes=ct111", "/v1/live?node", "/v1"] {
            assert_eq!(wanted(bad), None, "{bad}");
        }
        assert!(super::wanted(&Method::POST, &LOCAL_LIVE.parse().unwrap()).is_err());
    }
}

//! The local agent's server: plain HTTP/1.1 on loopback, over connections that are used again.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_shared::LoopbackAddr;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::error::ProxyError;
use crate::http::body::{RequestBody, root_cause};
use crate::http::headers::absolute;
use crate::tcp;
use crate::upstream::io::early_answer::EarlyAnswer;

/// Shorter than the keep-alive times of common agent servers (uvicorn and Node.js close after 5 s,
/// gunicorn after 2), so that no request is sent on a connection that the server is closing. A new
/// connection on loopback costs next to nothing.
const IDLE: Duration = Duration::from_millis(1500);
const CONNECT: Duration = Duration::from_secs(5);

/// A client for the one backend.
pub struct Backend {
    client: Client<Connector, RequestBody>,
    address: LoopbackAddr,
    authority: Authority,
}

impl Backend {
    /// A client for the server at `address`. Nothing is connected yet.
    pub fn new(address: LoopbackAddr) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(Connector(address.socket_addr()));
        // Only names the pool; the connector knows where to.
        Self { client, address, authority: Authority::from_static("backend") }
    }

    /// Sends a request whose `Host` and headers are as the backend should see them.
    ///
    /// # Errors
    /// The backend does not listen, or ended the connection before it answered.
    pub async fn send(&self, mut request: Request<RequestBody>) -> Result<Response<Incoming>, ProxyError> {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = absolute(Scheme::HTTP, self.authority.clone(), path);
        *request.version_mut() = Version::HTTP_11;
        self.client.request(request).await.map_err(|error| {
            let reason = root_cause(&error).to_string();
            match error.is_connect() {
                true => ProxyError::BackendUnreachable { address: self.address.to_string(), reason },
                false => self.failed(reason),
            }
        })
    }

    /// The error for a backend that took the request and did not answer as it should.
    pub fn failed(&self, reason: impl Into<String>) -> ProxyError {
        ProxyError::BackendFailed { address: self.address.to_string(), reason: reason.into() }
    }
}

/// Connects to the one address, whatever a URI says.
#[derive(Clone)]
struct Connector(SocketAddr);

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<EarlyAnswer<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let address = self.0;
        Box::pin(async move {
            let stream = timeout(CONNECT, TcpStream::connect(address)).await??;
            tcp::prepare(&stream)?;
            Ok(TokioIo::new(EarlyAnswer::new(stream)))
        })
    }
}

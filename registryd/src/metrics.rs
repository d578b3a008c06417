//! registryd's numbers over HTTP, where `registryd.metrics.listen` says so.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_shared::LoopbackAddr;
use tokio::net::TcpListener;

use crate::api;
use crate::connections::Connections;
use crate::state::State;

const HEADER_LIMIT: Duration = Duration::from_secs(10);

/// The listener is not available.
#[derive(Debug, thiserror::Error)]
#[error("registryd.metrics.listen: cannot listen on {address}: {source}; name a free port")]
pub struct MetricsError {
    address: LoopbackAddr,
    source: io::Error,
}

/// Opens the listener.
///
/// # Errors
/// The address is taken.
pub async fn bind(address: LoopbackAddr) -> Result<TcpListener, MetricsError> {
    let bound = TcpListener::bind(address.socket_addr()).await;
    let listener = bound.map_err(|source| MetricsError { address, source })?;
    if let Ok(bound) = listener.local_addr() {
        tracing::info!(target: "Registry", "metrics on http://{bound}/metrics");
    }
    Ok(listener)
}

/// Answers `GET /metrics`, for as long as the daemon runs.
pub async fn serve(listener: TcpListener, state: Arc<State>, most: usize) {
    let connections = Connections::new(most);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Some(place) = connections.place() else { continue };
        let state = state.clone();
        tokio::spawn(async move {
            let kept = place.clone();
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (state, busy) = (state.clone(), kept.busy());
                async move {
                    let asked = (request.method() == Method::GET, request.uri().path() == "/metrics");
                    Ok::<_, Infallible>(api::metrics_answer(&state, asked, busy))
                }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT).max_buf_size(16 * 1024);
            tokio::select! {
                _ = server.serve_connection(TokioIo::new(stream), service) => {}
                () = place.taken() => {}
            }
        });
    }
}

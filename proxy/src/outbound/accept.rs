//! Port 3001: a connection of one of this host's programs, from its first byte to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http::{Method, Request, Response};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_shared::config::Config;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::caller::{ActingAgent, Caller, Connection, Program};
use crate::downstream;
use crate::downstream::http1::Http1;
use crate::downstream::socket::Socket;
use crate::drain::Drain;
use crate::http::body::ResponseBody;
use crate::http::h1;
use crate::http::h2::server::{self, Server};
use crate::http::h2::tunnel;
use crate::http::headers::Writer;
use crate::http::incoming::Incoming;
use crate::http::interim::Interim;
use crate::io::preface;
use crate::io::readable::Readable;
use crate::listener::{Connections, linger_to_end, remote_address};
use crate::metrics::{Limit, METRICS};
use crate::outbound::destination::Destination;
use crate::outbound::pipeline::Pipeline;

/// What all outbound listeners share.
pub struct Outbound {
    pipeline: Pipeline,
    connections: Connections,
    drain: Drain,
    unread: Option<Duration>,
    /// Whether it was said already that all places are taken.
    full: AtomicBool,
    http1: Arc<http1::Builder>,
    http2: Server,
}

/// One outbound listener.
pub struct OutboundListener {
    /// The shared part.
    pub outbound: Arc<Outbound>,
    /// Where everything goes that comes in here; `None`: each request says where.
    pub only: Option<Destination>,
    /// Whom programs act as that come in here; `None`: the node.
    pub acts_as: Option<Arc<ActingAgent>>,
}

impl Outbound {
    /// The outbound side as configured, which gives each request to `pipeline`.
    pub fn new(config: &Config, pipeline: Pipeline, connections: Connections, drain: Drain) -> Self {
        let (limits, unread) = (&config.proxy.limits, config.proxy.timeouts.unread);
        let mut http1 = http1::Builder::new();
        // A program of this host may keep a connection for as long as it likes: the system tells when it is gone.
        // Small answers go out in one piece, which the system sends for less than a list of pieces.
        http1
            .header_read_timeout(None)
            .max_buf_size(limits.max_header_bytes as usize)
            .max_headers(h1::MAX_HEADERS)
            .writev(false);
        let http2 = Server::new(limits, unread, Writer::Sidecar);
        Self {
            pipeline,
            connections,
            drain,
            unread,
            full: AtomicBool::new(false),
            http1: http1.into(),
            http2,
        }
    }
}

#[async_trait]
impl ServerApp for OutboundListener {
    async fn process_new(self: &Arc<Self>, stream: Stream, _: &ShutdownWatch) -> Option<Stream> {
        let outbound = &self.outbound;
        let Some(_place) = outbound.connections.enter() else {
            METRICS.refused(Limit::LocalConnections);
            if !outbound.full.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    target: "Outbound",
                    "refusing connections: all {} slots are in use (proxy.limits.max_connections)",
                    outbound.connections.most()
                );
            }
            return None;
        };
        outbound.full.store(false, Ordering::Relaxed);
        let _slot = METRICS.slot(Limit::LocalConnections);
        let address = remote_address(&stream).map(|address| address.to_string().into());
        let caller = Caller::Program(Program { address, acts_as: self.acts_as.clone() });
        let from = Arc::new(Connection::new(caller, outbound.drain.clone()));
        self.serve(Socket::new(stream, outbound.unread), &from).await;
        from.tunnel.ended().await;
        None
    }
}

impl OutboundListener {
    /// Serves HTTP on a connection, or inside a tunnel.
    fn serve<I>(self: &Arc<Self>, io: I, from: &Arc<Connection>) -> impl Future<Output = ()> + Send + use<I>
    where
        I: AsyncRead + AsyncWrite + Readable + Unpin + Send + 'static,
    {
        let this = self.clone();
        let drain = this.outbound.drain.clone();
        let answer = {
            let (this, from) = (this.clone(), from.clone());
            move |request: Request<Incoming>, interim: Arc<Interim>| {
                let (this, from) = (this.clone(), from.clone());
                // Boxed, because it is some kilobytes and would be moved several times on its way to a task.
                Box::pin(async move {
                    match *request.method() {
                        Method::CONNECT => this.connect(&from, request, interim).await,
                        _ => {
                            let only = this.only.as_ref();
                            this.outbound.pipeline.handle(&from, only, request, interim).await
                        }
                    }
                })
            }
        };
        let from = from.clone();
        async move {
            let (http2, io) = tokio::select! {
                told = preface::is_http2(io) => match told {
                    Ok(told) => told,
                    Err(_) => return,
                },
                () = drain.lingered() => return,
            };
            let ended = if http2 {
                let connection = this.outbound.http2.serve(io, answer, None);
                linger_to_end(connection, server::Connection::graceful_shutdown, &drain).await
            } else {
                let http1 = this.outbound.http1.clone();
                let connection = downstream::serve_http1(http1, io, from, Writer::Sidecar, None, answer);
                linger_to_end(connection, Http1::graceful_shutdown, &drain).await.map_err(Into::into)
            };
            if let Err(error) = ended {
                tracing::debug!(target: "Outbound", "a local connection ended: {error}");
            }
        }
    }

    /// Answers a CONNECT, behind which a program speaks plain HTTP as on a listener that leads to one place.
    async fn connect(
        self: &Arc<Self>,
        from: &Arc<Connection>,
        mut request: Request<Incoming>,
        interim: Arc<Interim>,
    ) -> Response<ResponseBody> {
        let (http1, http2) = (hyper::upgrade::on(&mut request), tunnel::wanted(&mut request));
        let (response, destination) =
            self.outbound.pipeline.connect(from, self.only.as_ref(), request, interim).await;
        if let Some(destination) = destination {
            let (outbound, acts_as) = (self.outbound.clone(), self.acts_as.clone());
            let inside = Arc::new(Self { outbound, only: Some(destination), acts_as });
            let through = Arc::new(Connection::inside(from));
            from.tunnel.carry(async move {
                match http2 {
                    Some(tunnel) => match tunnel.await {
                        Some(tunnel) => {
                            // One stream of many: the connection's own socket does not notice that it stalls.
                            let socket = Socket::new(tunnel, inside.outbound.unread);
                            inside.serve(socket, &through).await;
                        }
                        None => return,
                    },
                    None => match http1.await {
                        // Its connection's own socket notices that it stalls.
                        Ok(tunnel) => inside.serve(Socket::new(TokioIo::new(tunnel), None), &through).await,
                        Err(_) => return,
                    },
                }
                through.tunnel.ended().await;
            });
        }
        response
    }
}

//! Connections that become WebSockets after `101 Switching Protocols` (RFC 6455): bytes both ways.
//!
//! No other change of protocol passes. In HTTP/2, say, which a server may offer to change to, requests would follow that
//! no sidecar sees, with any identity in them.

use std::io;
use std::sync::{Mutex, PoisonError};

use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::task::JoinSet;

use crate::http::body::ResponseBody;
use crate::http::headers;
use crate::http::incoming::Incoming;

/// Small, because such connections are many and mostly idle.
const BUFFER_BYTES: usize = 16 * 1024;

/// What one connection carries once it has left HTTP. It ends with this value.
#[derive(Default)]
pub struct Tunnel(Mutex<JoinSet<()>>);

impl Tunnel {
    /// Returns once nothing is carried any more; at once where the connection never left HTTP.
    pub async fn ended(&self) {
        let mut carried = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        while carried.join_next().await.is_some() {}
    }

    /// Carries something more.
    pub fn carry(&self, task: impl Future<Output = ()> + Send + 'static) {
        let carried = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // On HTTP/2 there may be any number of them.
        while carried.try_join_next().is_some() {}
        carried.spawn(task);
    }
}

/// A client's wish to make its connection a WebSocket.
pub struct Upgrade {
    downstream: OnUpgrade,
}

impl Upgrade {
    /// The wish, if the request has this one and nothing else. Without it the request is served as any other, and its
    /// `Upgrade` goes no further, as RFC 9110 allows.
    pub fn wanted(request: &mut Request<Incoming>) -> Option<Self> {
        let wanted = headers::name_websocket(request.headers())
            && request.method() == Method::GET
            && request.version() == Version::HTTP_11
            && request.body().is_end_stream();
        wanted.then(|| Self { downstream: hyper::upgrade::on(request) })
    }

    /// Passes the wish on to the next hop.
    pub fn ask(&self, headers: &mut HeaderMap) {
        headers::set_websocket(headers);
    }

    /// Whether the next hop's answer, as it arrived, changes the protocol only as it was `asked` to.
    ///
    /// # Errors
    /// What is wrong with it. What follows it must not be read.
    pub fn check<B>(asked: Option<&Self>, answer: &Response<B>) -> Result<(), &'static str> {
        match (answer.status() == StatusCode::SWITCHING_PROTOCOLS, asked) {
            (false, _) => Ok(()),
            (true, None) => Err("it changed the protocol (101) although nobody had asked it to"),
            (true, Some(_)) if headers::name_websocket(answer.headers()) => Ok(()),
            (true, Some(_)) => Err("it changed the protocol (101) to another one than websocket"),
        }
    }

    /// Once the next hop agreed, joins both sides in `tunnel` as soon as the client has the answer, until both have
    /// ended. Then `ended` is told how many bytes went up and down; it is only dropped where the client went away.
    pub fn join(
        self,
        response: &mut Response<ResponseBody>,
        tunnel: &Tunnel,
        ended: impl FnOnce(io::Result<(u64, u64)>) + Send + 'static,
    ) {
        let upstream = hyper::upgrade::on(&mut *response);
        headers::set_websocket(response.headers_mut());
        let downstream = self.downstream;
        tunnel.carry(async move {
            let Ok((downstream, upstream)) = tokio::try_join!(downstream, upstream) else { return };
            let (mut downstream, mut upstream) = (TokioIo::new(downstream), TokioIo::new(upstream));
            let carried =
                copy_bidirectional_with_sizes(&mut downstream, &mut upstream, BUFFER_BYTES, BUFFER_BYTES);
            ended(carried.await);
        });
    }
}

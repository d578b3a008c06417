//! Connections that leave HTTP after `101 Switching Protocols` (RFC 9110, section 7.8), such as WebSockets:
//! bytes both ways.

use std::io;
use std::sync::{Mutex, PoisonError};

use http::header::HeaderValue;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::task::JoinSet;

use crate::http::body::ResponseBody;
use crate::http::headers;

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

    fn carry(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
    }
}

/// A client's wish to change the protocol.
pub struct Upgrade {
    protocol: HeaderValue,
    downstream: OnUpgrade,
}

impl Upgrade {
    /// The wish, if the request has one.
    pub fn wanted(request: &mut Request<Incoming>) -> Option<Self> {
        let protocol = headers::wanted_upgrade(request.headers())?;
        Some(Self { protocol, downstream: hyper::upgrade::on(request) })
    }

    /// Passes the wish on to the next hop.
    pub fn ask(&self, headers: &mut HeaderMap) {
        headers::set_upgrade(headers, self.protocol.clone());
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
        headers::set_upgrade(response.headers_mut(), self.protocol);
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

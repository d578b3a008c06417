//! An accepted connection as pingora's applications take it. pingora's own stream has buffers of 64 KiB and 1460 bytes for as
//! long as the connection lasts; here whoever reads and writes has them ([`super::read_ahead`]).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::plain::Plain;

/// A connection that was accepted.
#[derive(Debug)]
pub struct Accepted {
    inner: Plain,
    /// From where, over TCP: IPv4 in its plain form.
    from: Option<SocketAddr>,
}

impl Accepted {
    /// One over TCP, on which small writes go out at once.
    pub fn tcp(stream: TcpStream, from: SocketAddr) -> Self {
        // A connection that is gone already shows with its first use.
        let _ = stream.set_nodelay(true);
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        Self { inner: Plain::Tcp(stream), from: Some(from) }
    }

    /// One on a unix socket.
    pub fn unix(stream: UnixStream) -> Self {
        Self { inner: Plain::Unix(stream), from: None }
    }

    /// Where it comes from; `None` on a unix socket.
    pub fn remote_address(&self) -> Option<SocketAddr> {
        self.from
    }

    fn fd(&self) -> RawFd {
        match &self.inner {
            Plain::Tcp(stream) => stream.as_raw_fd(),
            Plain::Unix(stream) => stream.as_raw_fd(),
        }
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

write_to_inner!(Accepted);

#[async_trait]
impl Shutdown for Accepted {
    async fn shutdown(&mut self) {
        // The other side may be gone.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Accepted {
    fn id(&self) -> UniqueIDType {
        self.fd()
    }
}

impl Ssl for Accepted {}

impl GetTimingDigest for Accepted {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Accepted {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Accepted {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(SocketDigest::from_raw_fd(self.fd()).into())
    }
}

impl Peek for Accepted {}

//! Connections to a server on this host: TCP on loopback, or a unix socket.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use mesh_shared::BackendAddr;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::tcp;

/// How long a connection may take, and an HTTP/2 server's first word on it.
pub const CONNECT: Duration = Duration::from_secs(5);

/// Where a server listens.
pub struct Dialer {
    address: BackendAddr,
    /// Which of its TCP addresses worked last.
    worked: AtomicUsize,
}

impl Dialer {
    /// Nothing is connected yet.
    pub fn new(address: BackendAddr) -> Self {
        Self { address, worked: AtomicUsize::new(0) }
    }

    /// A new connection. Of several addresses, the one that worked last is tried first.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn dial(&self) -> io::Result<LocalStream> {
        timeout(CONNECT, self.connect()).await?
    }

    async fn connect(&self) -> io::Result<LocalStream> {
        if let Some(path) = self.address.socket_path() {
            return Ok(LocalStream::Unix(UnixStream::connect(path).await?));
        }
        let worked = self.worked.load(Ordering::Relaxed);
        let count = self.address.socket_addrs().count();
        let mut failed = None;
        for attempt in 0..count {
            let at = (worked + attempt) % count;
            let Some(address) = self.address.socket_addrs().nth(at) else { continue };
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    tcp::prepare(&stream)?;
                    self.worked.store(at, Ordering::Relaxed);
                    return Ok(LocalStream::Tcp(stream));
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
    }
}

/// A connection to a server on this host.
pub enum LocalStream {
    /// On loopback.
    Tcp(TcpStream),
    /// On a unix socket.
    Unix(UnixStream),
}

/// Does the same with either kind.
macro_rules! either {
    ($self:ident, $stream:ident => $does:expr) => {
        match $self.get_mut() {
            LocalStream::Tcp(stream) => {
                let $stream = Pin::new(stream);
                $does
            }
            LocalStream::Unix(stream) => {
                let $stream = Pin::new(stream);
                $does
            }
        }
    };
}

impl AsyncRead for LocalStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(context, data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write_vectored(context, data))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(context))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn both_loopbacks_are_tried_and_the_one_that_worked_is_remembered() {
        let four = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = four.local_addr().unwrap().port();
        let Ok(six) = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await else { return };
        let dialer = Dialer::new(format!("localhost:{port}").parse().unwrap());
        let reached = async || match dialer.dial().await.unwrap() {
            LocalStream::Tcp(stream) => stream.peer_addr().unwrap(),
            LocalStream::Unix(_) => panic!("no unix socket was meant"),
        };
        assert!(reached().await.is_ipv4(), "IPv4 comes first");
        drop(four);
        assert!(reached().await.is_ipv6());
        let _four = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        assert!(reached().await.is_ipv6(), "what worked is remembered");
        drop(six);
        assert!(reached().await.is_ipv4());
    }
}

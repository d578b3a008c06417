//! Connections to a server on this host: TCP on loopback, or a unix socket.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_shared::BackendAddr;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::io::plain::Plain;
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
    pub async fn dial(&self) -> io::Result<Plain> {
        timeout(CONNECT, self.connect()).await?
    }

    async fn connect(&self) -> io::Result<Plain> {
        if let Some(path) = self.address.socket_path() {
            return Ok(Plain::Unix(UnixStream::connect(path).await?));
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
                    return Ok(Plain::Tcp(stream));
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
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
            Plain::Tcp(stream) => stream.peer_addr().unwrap(),
            Plain::Unix(_) => panic!("no unix socket was meant"),
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

//! Loopback addresses that belong to one test, so that every node can use the default ports.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

/// An address of 127.0.0.0/8 that no other test uses, in this process or another, while this value lives.
#[derive(Debug)]
pub struct Loopback {
    ip: Ipv4Addr,
    /// Being bound is the lock.
    _guard: TcpListener,
}

/// Listens on an address, even if a listener there was closed only just now: a process that another test forks
/// holds a copy until it executes its program.
///
/// # Panics
/// When somebody else keeps the address.
pub async fn listen(addr: SocketAddr) -> tokio::net::TcpListener {
    crate::eventually(&format!("{addr} is free"), async || match tokio::net::TcpListener::bind(addr).await {
        Ok(listener) => Some(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => None,
        Err(error) => panic!("{addr}: {error}"),
    })
    .await
}

/// Below the kernel's range for outgoing connections, above every port that nodes use.
const GUARD_PORT: u16 = 29_999;

impl Loopback {
    /// Takes an address.
    pub fn take() -> Self {
        loop {
            let bits = RandomState::new().hash_one(std::process::id()) as u32;
            let [_, a, b, c] = bits.to_be_bytes();
            // 127.0.x.y is left to people and to the demo.
            let ip = Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254));
            if let Ok(guard) = TcpListener::bind((ip, GUARD_PORT)) {
                return Self { ip, _guard: guard };
            }
        }
    }

    /// The address.
    pub fn ip(&self) -> IpAddr {
        self.ip.into()
    }

    /// The address with a port.
    pub fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(), port)
    }
}

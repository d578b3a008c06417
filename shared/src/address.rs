//! Addresses whose type says what they may reach.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// A socket address on this host's loopback interface, by construction.
///
/// Plain HTTP is spoken only to and from such addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoopbackAddr(SocketAddr);

/// Why a text is not a loopback address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No `address:port`.
    #[error("{0:?} is not an address and port such as 127.0.0.1:8080 or [::1]:8080")]
    Syntax(String),
    /// An address that other hosts could reach or that leaves this host.
    #[error("{0} is not a loopback address; plain HTTP stays on this host (use 127.0.0.1 or [::1])")]
    NotLoopback(SocketAddr),
}

impl LoopbackAddr {
    /// The address for a socket call.
    pub fn socket_addr(self) -> SocketAddr {
        self.0
    }

    /// `127.0.0.1:port`, for defaults.
    pub const fn v4(port: u16) -> Self {
        Self(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
    }
}

impl FromStr for LoopbackAddr {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        // The name is fixed to loopback by RFC 6761, section 6.3; it is not looked up.
        let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
        let addr: SocketAddr =
            numeric.as_deref().unwrap_or(text).parse().map_err(|_| AddressError::Syntax(text.into()))?;
        if !addr.ip().to_canonical().is_loopback() {
            return Err(AddressError::NotLoopback(addr));
        }
        Ok(Self(addr))
    }
}

impl fmt::Display for LoopbackAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An IP address or something that can be looked up; never a URL or `host:port`.
pub fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.parse::<IpAddr>().is_ok()
        || (text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_accepted() {
        for good in ["127.0.0.1:80", "127.9.8.7:1", "[::1]:80", "localhost:8080"] {
            assert!(good.parse::<LoopbackAddr>().is_ok(), "{good}");
        }
        for bad in ["0.0.0.0:80", "[::]:80", "192.168.0.1:80", "example.org:80", "127.0.0.1", ""] {
            assert!(bad.parse::<LoopbackAddr>().is_err(), "{bad}");
        }
    }
}

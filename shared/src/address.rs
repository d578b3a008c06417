//! Addresses whose type says what they may reach.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Longest path of a unix socket, in bytes: `sun_path` of unix(7) without its final NUL.
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

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
    /// A path that no socket can have, or that depends on the working directory.
    #[error(
        "{0:?} is not the path of a unix socket: it must be absolute and have at most {MAX_SOCKET_PATH_BYTES} bytes, \
         as in unix:/run/opus.sock"
    )]
    SocketPath(String),
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

/// Where an agent's server listens: on this host, by construction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BackendAddr {
    /// One loopback address.
    Tcp(LoopbackAddr),
    /// A port of `127.0.0.1` or of `::1`: servers that listen on `localhost` take the one or the other.
    Localhost(u16),
    /// A unix socket.
    Unix(PathBuf),
}

impl BackendAddr {
    /// `127.0.0.1:port`, for defaults.
    pub const fn v4(port: u16) -> Self {
        Self::Tcp(LoopbackAddr::v4(port))
    }

    /// The TCP addresses in the order in which they are tried; none for a unix socket.
    pub fn socket_addrs(&self) -> impl Iterator<Item = SocketAddr> + use<> {
        let (first, second) = match self {
            Self::Tcp(address) => (Some(address.socket_addr()), None),
            Self::Localhost(port) => (
                Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), *port)),
                Some(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), *port)),
            ),
            Self::Unix(_) => (None, None),
        };
        first.into_iter().chain(second)
    }

    /// What a program of this host says in `Host` to a server there.
    pub fn host(&self) -> String {
        match self {
            Self::Tcp(_) | Self::Localhost(_) => self.to_string(),
            Self::Unix(_) => "localhost".into(),
        }
    }

    /// The path of a unix socket.
    pub fn socket_path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp(_) | Self::Localhost(_) => None,
        }
    }
}

impl FromStr for BackendAddr {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path).map(Self::Unix);
        }
        // Said once for both: what is a port, and that the name is not looked up.
        let address: LoopbackAddr = text.parse()?;
        Ok(match text.starts_with("localhost:") {
            true => Self::Localhost(address.socket_addr().port()),
            false => Self::Tcp(address),
        })
    }
}

impl fmt::Display for BackendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Localhost(port) => write!(f, "localhost:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Where this host's programs come in: nobody else does, by construction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LocalAddr {
    /// One loopback address.
    Tcp(LoopbackAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl LocalAddr {
    /// The path of a unix socket.
    pub fn socket_path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp(_) => None,
        }
    }
}

impl FromStr for LocalAddr {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.strip_prefix("unix:") {
            Some(path) => socket_path(path).map(Self::Unix),
            None => text.parse().map(Self::Tcp),
        }
    }
}

impl fmt::Display for LocalAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A path at which a unix socket can be.
/// An absolute path that a unix socket can have.
///
/// # Errors
/// It is relative, or too long for unix(7).
pub fn socket_path(path: &str) -> Result<PathBuf, AddressError> {
    let is_path = path.starts_with('/') && path.len() <= MAX_SOCKET_PATH_BYTES && !path.contains('\0');
    if is_path { Ok(path.into()) } else { Err(AddressError::SocketPath(path.into())) }
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

/// Why no connection to another node is made to this address; `None`: it can be some host's.
///
/// What is in a registry is a claim, and a sidecar dials what stands there: an address that is nobody's, or that
/// means this host or its cloud's metadata service, is never a node's. `loopback` tells whether nodes can be on this
/// host's loopback, because this one is there too.
pub fn nobodys(address: IpAddr, loopback: bool) -> Option<&'static str> {
    const METADATA: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    ];
    let address = address.to_canonical();
    let reason = match address {
        IpAddr::V4(v4) => match v4.octets() {
            [0, ..] => Some("means this host, or none"),
            [224..=239, ..] => Some("is a multicast address"),
            [240..=255, ..] => Some("is not assigned to hosts"),
            [169, 254, ..] => Some("is link-local, as cloud metadata services are"),
            _ => None,
        },
        IpAddr::V6(v6) if v6.is_unspecified() => Some("means this host, or none"),
        IpAddr::V6(v6) if v6.is_multicast() => Some("is a multicast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Some("is link-local, which means nothing without an interface")
        }
        IpAddr::V6(_) => None,
    };
    match reason {
        None if METADATA.contains(&address) => Some("is that of a cloud's metadata service"),
        None if address.is_loopback() && !loopback => {
            Some("is this host's loopback, and this node is not there")
        }
        reason => reason,
    }
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

    #[test]
    fn a_backend_is_on_this_host_whatever_its_form() {
        let parsed = |text: &str| text.parse::<BackendAddr>();
        for text in ["127.0.0.1:8080", "[::1]:8080", "localhost:8080", "unix:/run/opus.sock"] {
            assert_eq!(parsed(text).map(|address| address.to_string()), Ok(text.into()));
        }
        let both: Vec<_> = parsed("localhost:80").unwrap().socket_addrs().collect();
        assert_eq!(both, ["127.0.0.1:80".parse().unwrap(), "[::1]:80".parse().unwrap()]);
        assert_eq!(parsed("unix:/a").unwrap().socket_addrs().count(), 0);
        for path in ["", "run/opus.sock", &format!("/{}", "a".repeat(MAX_SOCKET_PATH_BYTES))] {
            assert_eq!(parsed(&format!("unix:{path}")), Err(AddressError::SocketPath(path.into())));
        }
        for bad in ["10.0.0.1:80", "localhost:", "localhost:70000", "/run/opus.sock", "example.org:80"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_that_are_nobodys_are_told() {
        for nobody in [
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "169.254.169.254",
            "100.100.100.200",
            "::",
            "ff02::1",
            "fe80::1",
            "fd00:ec2::254",
            "::ffff:224.0.0.1",
            "::ffff:169.254.169.254",
        ] {
            assert!(nobodys(nobody.parse().unwrap(), true).is_some(), "{nobody}");
        }
        for host in ["10.0.0.1", "8.8.8.8", "fd00::110", "2001:db8::1", "100.64.0.1"] {
            assert_eq!(nobodys(host.parse().unwrap(), false), None, "{host}");
        }
        for loopback in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            let loopback = loopback.parse().unwrap();
            assert!(nobodys(loopback, false).is_some() && nobodys(loopback, true).is_none(), "{loopback}");
        }
    }
}

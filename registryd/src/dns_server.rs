//! registryd as a DNS server for `.mesh`: sockets and limits. What is answered is decided in [`zone`].
//!
//! An open port for datagrams with forged senders is a weapon; so answers are small (see
//! [`zone`]), nothing is recursive and no request can make the server wait.

pub mod answer;
pub mod feed;
pub mod zone;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;

use crate::connections::{Connections, Place};
use crate::state::{Counters, State};
use answer::{Transport, answer};
use zone::Zone;

/// The zone now; `None` until registryd has read its registry for the first time. It is changed in place, between two
/// answers.
pub type ZoneReceiver = watch::Receiver<Option<Zone>>;

/// How long a connection may be silent (RFC 7766, 6.2.3: a few seconds).
const IDLE_MAX: Duration = Duration::from_secs(5);
/// How long a connection may last in all, so that no client keeps its place for ever.
const LIFETIME_MAX: Duration = Duration::from_secs(60);
/// Pause after a socket error that may repeat at once, such as too many open files.
const ERROR_PAUSE: Duration = Duration::from_millis(100);
/// The multicast DNS port, see [`bind_udp`].
const MDNS_PORT: u16 = 5353;

/// `registryd.dns.listen` cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("registryd.dns.listen: cannot answer DNS on {address}/{transport}: {source}; {}", advice(.source))]
pub struct BindError {
    address: SocketAddr,
    transport: &'static str,
    source: io::Error,
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another DNS server (dnsmasq, systemd-resolved, a second registryd) has it, name another address or port"
        }
        io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE, or name a higher one",
        io::ErrorKind::AddrNotAvailable => "this host has no such address",
        _ => "name an address of this host and a free port, as in 127.0.0.1:5353",
    }
}

/// Bound sockets, UDP and TCP on the same address and port.
#[derive(Debug)]
pub struct DnsServer {
    udp: UdpSocket,
    tcp: TcpListener,
    address: SocketAddr,
}

impl DnsServer {
    /// Binds both sockets; with port 0 both get the same free port.
    ///
    /// # Errors
    /// Names the address, the transport, the key and what may be done.
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let fail = |transport| move |source| BindError { address, transport, source };
        // TCP first: it tells that another server has the port, which UDP on 5353 does not.
        let tcp = TcpListener::bind(address).await.map_err(fail("tcp"))?;
        let bound = tcp.local_addr().map_err(fail("tcp"))?;
        let udp = bind_udp(bound).map_err(fail("udp"))?;
        Ok(Self { udp, tcp, address: bound })
    }

    /// The address in use, with its real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the future is dropped.
    pub async fn run(self, zone: ZoneReceiver, state: Arc<State>, connections: usize) {
        tracing::info!(target: "DNS", "answering for .mesh on {} (UDP and TCP)", self.address);
        let zone = Zones { zone, state };
        tokio::join!(serve_udp(&self.udp, &zone), serve_tcp(&self.tcp, &zone, connections));
    }
}

/// On port 5353 the address is shared: multicast DNS (ours, or avahi) binds `0.0.0.0:5353`, and the two do not
/// meet, as the kernel gives datagrams for 127.0.0.1 to the socket that is bound to it. Elsewhere it is exclusive.
fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    if address.port() == MDNS_PORT {
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// What answers are made from, and where they are counted.
#[derive(Clone)]
struct Zones {
    zone: ZoneReceiver,
    state: Arc<State>,
}

fn reply(zones: &Zones, request: &[u8], transport: Transport) -> Option<Vec<u8>> {
    Counters::add(&zones.state.counters.dns_queries);
    answer(zones.zone.borrow().as_ref(), request, transport)
}

async fn serve_udp(socket: &UdpSocket, zone: &Zones) {
    // Requests are short; of a longer one the rest is cut off, which makes it malformed, and that is said.
    let mut request = [0; 4096];
    loop {
        let (length, client) = match socket.recv_from(&mut request).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(target: "DNS", "cannot receive over UDP: {error}");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        if let Some(reply) = reply(zone, &request[..length], Transport::Udp)
            && let Err(error) = socket.send_to(&reply, client).await
        {
            tracing::debug!(target: "DNS", "cannot answer {client}: {error}");
        }
    }
}

async fn serve_tcp(listener: &TcpListener, zone: &Zones, most: usize) {
    let places = Connections::new(most);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, client)) => {
                // Who has asked nothing for longest makes room.
                let Some(place) = places.place() else { continue };
                let zone = zone.clone();
                connections.spawn(async move {
                    let serving = tokio::time::timeout(LIFETIME_MAX, serve_connection(stream, &zone, &place));
                    tokio::select! {
                        served = serving => if let Ok(Err(error)) = served {
                            tracing::debug!(target: "DNS", "connection from {client} ended: {error}");
                        },
                        () = place.taken() => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(target: "DNS", "cannot accept a TCP connection: {error}");
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
}

/// Requests and answers one after the other, each with its length in front (RFC 1035, 4.2.2).
async fn serve_connection(mut stream: TcpStream, zone: &Zones, place: &Arc<Place>) -> io::Result<()> {
    let mut request = Vec::new();
    loop {
        let read = async {
            let length = stream.read_u16().await?;
            request.resize(length.into(), 0);
            stream.read_exact(&mut request).await
        };
        match tokio::time::timeout(IDLE_MAX, read).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        }
        let _busy = place.busy();
        let Some(reply) = reply(zone, &request, Transport::Tcp) else { return Ok(()) };
        // `encode` never makes more than 65535 bytes; one write, so that it is one segment.
        let mut framed = (reply.len() as u16).to_be_bytes().to_vec();
        framed.extend(reply);
        tokio::time::timeout(IDLE_MAX, stream.write_all(&framed)).await??;
    }
}

#[cfg(test)]
mod tests;

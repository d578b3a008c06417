//! What every TCP connection of the sidecar gets: a host that lost its power or its network says nothing, and a
//! connection to it would otherwise stay for ever.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// How long what was sent may stay unacknowledged, or unread, before the connection is given up.
const UNTAKEN: Duration = Duration::from_secs(300);

/// Probes after a minute of silence; given up after another one.
pub fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4)
}

/// Prepares a connection that was made from here.
///
/// # Errors
/// The connection is gone already.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&keepalive())?;
    socket.set_tcp_user_timeout(Some(UNTAKEN))
}

//! Timeouts of the sidecar's TCP connections: a host that lost its power or its network does not hold them for ever, while
//! one that merely reads late keeps them.
//!
//! - **Silence**: keepalive probes, on all connections (`SO_KEEPALIVE`). Accepted ones inherit them from the listener.
//! - **Data that is not acknowledged**: probes are not sent while data is under way; the system then gives up after its
//!   retransmissions, some 15 minutes. `TCP_USER_TIMEOUT` makes it sooner, but Linux also counts it for a peer that
//!   acknowledges everything and keeps its window closed (`tcp_probe_timer`), that is, for a body that is read late. So it
//!   is set only where somebody always reads:
//!   - connections to peers that speak h2, where flow control is HTTP's own and the sidecar takes everything from TCP;
//!   - not on http/1.1 connections, whose window closes when the far agent reads late;
//!   - not on loopback, whose ends cannot vanish without a word;
//!   - on connections of peers, accepted before it is known what they speak, only as long as an answer may stay unread
//!     (`proxy.timeouts.unread_ms`): closing the window is how a client leaves one unread. Pings notice h2 peers sooner.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// How long what was sent to a peer that always reads may stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(75);

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
pub fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&keepalive())
}

/// Prepares a connection to a peer further, once it is known whether it speaks h2.
pub fn prepare_peer(stream: &TcpStream, h2: bool) {
    if h2 {
        // A connection that is gone already shows with its first use.
        let _ = SockRef::from(stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    }
}

/// Prepares the socket that listens for peers; what it accepts inherits it. `unread` is how long an answer may stay
/// unread.
///
/// # Errors
/// A socket that is not TCP.
pub fn prepare_listener_for_peers(socket: &SockRef<'_>, unread: Option<Duration>) -> std::io::Result<()> {
    socket.set_tcp_user_timeout(unread)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn connected(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (dialled, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn only_those_who_always_read_have_a_limit() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let limit = |stream: &TcpStream| SockRef::from(stream).tcp_user_timeout().unwrap();
        let (dialled, accepted) = connected(&listener).await;
        prepare(&dialled).unwrap();
        assert_eq!((limit(&dialled), limit(&accepted)), (None, None));
        prepare_peer(&dialled, false);
        assert_eq!(limit(&dialled), None);
        prepare_peer(&dialled, true);
        assert_eq!(limit(&dialled), Some(UNACKNOWLEDGED));
        assert!(SockRef::from(&dialled).keepalive().unwrap());

        let unread = Some(Duration::from_secs(300));
        prepare_listener_for_peers(&SockRef::from(&listener), unread).unwrap();
        assert_eq!(limit(&connected(&listener).await.1), unread, "inherited");
    }

    /// Writes until nothing more goes, waits, and tells whether all that was written can then be read.
    async fn survives_a_late_reader(limit: Option<Duration>) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut dialled, mut accepted) = connected(&listener).await;
        prepare(&dialled).unwrap();
        SockRef::from(&dialled).set_tcp_user_timeout(limit).unwrap();
        let mut written = 0;
        while let Ok(Ok(bytes)) =
            tokio::time::timeout(Duration::from_millis(200), dialled.write(&[b'x'; 65_536])).await
        {
            written += bytes;
        }
        // Some probes of the closed window go out meanwhile.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let reading = async move {
            let mut read = 0;
            let mut buffer = vec![0; 65_536];
            while read < written {
                match accepted.read(&mut buffer).await {
                    Ok(bytes @ 1..) => read += bytes,
                    _ => return false,
                }
            }
            true
        };
        reading.await
    }

    #[tokio::test]
    async fn a_late_reader_keeps_its_connection_and_a_limit_would_end_it() {
        let (without, with) = tokio::join!(
            survives_a_late_reader(None),
            survives_a_late_reader(Some(Duration::from_millis(500)))
        );
        assert!(without, "read late, but whole");
        assert!(!with, "the reason why it is not set everywhere");
    }
}

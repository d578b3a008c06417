//! HTTP/2 between sidecars: windows that fill a fast link, and pings that notice a dead peer.

use std::time::Duration;

/// How much one stream may have under way (RFC 9113, section 6.9.2): a gigabit at 4 ms.
pub const STREAM_WINDOW_BYTES: u32 = 512 << 10;
/// Largest window (RFC 9113, section 6.9.1).
const MAX_WINDOW_BYTES: u32 = (1 << 31) - 1;

/// How much all of so many streams of a connection may have under way: as much as each of them may, so that those
/// that nobody reads never hold up the others.
pub fn connection_window_bytes(streams: u32) -> u32 {
    STREAM_WINDOW_BYTES.saturating_mul(streams).min(MAX_WINDOW_BYTES)
}

/// Four TLS records a frame.
pub const FRAME_BYTES: u32 = 64 * 1024;
/// A ping is sent after this silence.
pub const PING_INTERVAL: Duration = Duration::from_secs(20);
/// A connection whose ping is not answered within this is given up.
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The same on connections made from here while requests are under way, and with the first one after a pause: those that
/// wait on a host that was suspended are told soon, and others avoid it. Without requests, nothing is sent.
pub const CALLER_PING_INTERVAL: Duration = Duration::from_secs(4);
/// See [`CALLER_PING_INTERVAL`].
pub const CALLER_PING_TIMEOUT: Duration = Duration::from_secs(5);

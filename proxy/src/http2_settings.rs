//! HTTP/2 between sidecars: windows that fill a fast link, and pings that notice a dead peer.

use std::time::Duration;

/// How much one stream may have under way (RFC 9113, section 6.9.2).
pub const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// How much all streams of a connection may have under way.
pub const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Four TLS records a frame.
pub const FRAME_BYTES: u32 = 64 * 1024;
/// A ping is sent after this silence.
pub const PING_INTERVAL: Duration = Duration::from_secs(20);
/// A connection whose ping is not answered within this is given up.
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);

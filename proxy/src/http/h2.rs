//! HTTP/2 between sidecars: windows that fill a fast link and yet bound what a stalled request holds, pings that notice
//! a dead peer, and what can be told of a connection from the frames that come in.

pub mod client;
pub mod in_flight;
mod outgoing;
mod pings;
pub mod server;
pub mod shared;
pub mod tunnel;

use std::time::Duration;

/// How much of a request's body may be under way (RFC 9113, section 6.9.2): a gigabit at 1.5 ms. This much of each waits
/// in memory for an agent that does not read.
pub const REQUEST_WINDOW_BYTES: u32 = 192 << 10;
/// The same of an answer, and of a program that does not read: a gigabit at 2 ms. Less costs CPU, since whoever sends
/// stops more often.
pub const ANSWER_WINDOW_BYTES: u32 = 256 << 10;
/// Largest window (RFC 9113, section 6.9.1).
const MAX_WINDOW_BYTES: u32 = (1 << 31) - 1;

/// How much all of so many streams of a connection may have under way: as much as each of them may, `window_bytes`, so
/// that those that nobody reads never hold up the others.
pub fn connection_window_bytes(window_bytes: u32, streams: u32) -> u32 {
    window_bytes.saturating_mul(streams).min(MAX_WINDOW_BYTES)
}

/// Four TLS records a frame.
pub const FRAME_BYTES: u32 = 64 * 1024;
/// How much TLS encrypts before it goes out: a whole frame with its header, so that the last bytes of each are no system call and
/// no packet of their own. So much waits where a peer does not read.
pub const TLS_WRITE_BYTES: usize = FRAME_BYTES as usize + 1024;
/// How much of one stream waits to be sent, whatever the other side's windows are; a piece that was taken from the
/// source comes on top.
pub const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// A ping is sent after this silence.
pub const PING_INTERVAL: Duration = Duration::from_secs(20);
/// A connection whose ping is not answered within this is given up.
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The same on connections made from here while requests are under way, and with the first one after a pause: those that
/// wait on a host that was suspended are told soon, and others avoid it. Without requests, nothing is sent.
pub const CALLER_PING_INTERVAL: Duration = Duration::from_secs(4);
/// See [`CALLER_PING_INTERVAL`].
pub const CALLER_PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Streams that a client may have cancelled before the connection gets round to them. With h2's own 20 a burst of
/// cancelled requests ends the connection and everybody else's requests on it. What cancels cost is bounded by their
/// rate instead, see [`crate::downstream::watch`]; this is more than it lets pass at once.
pub const MAX_PENDING_RESET_STREAMS: usize = 5_000;

/// Streams that were reset from here are remembered for a while, so that what is still under way for them costs nothing.
pub const REMEMBERED_RESETS: usize = 1_000;
/// So many frames that belong to no stream, or break a stream's rules, end the connection: each makes a reset that waits
/// to be sent, and who does not read could have any number of them wait. Much more than a good client or server causes
/// in a connection's life.
pub const MAX_LOCAL_ERRORS: usize = 4_000;

const PREFACE_BYTES: u32 = 24;
const HEADER_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Follows the frames that a client sends (RFC 9113, section 4), as far as their headers tell. Pure; it takes anything,
/// what is not HTTP/2 is for the real parser to refuse.
#[derive(Debug)]
pub struct Frames {
    /// Bytes of the preface that are still to come.
    preface: u32,
    header: [u8; HEADER_BYTES],
    /// Bytes of the header that have come.
    header_bytes: usize,
    /// Bytes of the payload that are still to come.
    payload: u32,
    /// A block of headers began and its last frame has not ended.
    in_block: bool,
    block_ends: bool,
}

/// What came with some bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Came {
    /// Complete blocks of headers: requests, or their trailers.
    pub blocks: u32,
    /// Frames that carry nothing and still cost: cancels, pings, settings, priorities.
    pub control: u32,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            preface: PREFACE_BYTES,
            header: [0; HEADER_BYTES],
            header_bytes: 0,
            payload: 0,
            in_block: false,
            block_ends: false,
        }
    }
}

impl Frames {
    /// Takes the next bytes of the connection.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Came {
        let mut came = Came::default();
        skip(&mut self.preface, &mut bytes);
        while !bytes.is_empty() {
            if self.header_bytes < HEADER_BYTES {
                let taken = bytes.len().min(HEADER_BYTES - self.header_bytes);
                let (now, rest) = bytes.split_at(taken);
                self.header[self.header_bytes..][..taken].copy_from_slice(now);
                self.header_bytes += taken;
                bytes = rest;
                if self.header_bytes < HEADER_BYTES {
                    break;
                }
                self.begin(&mut came);
            }
            skip(&mut self.payload, &mut bytes);
            if self.payload == 0 {
                self.header_bytes = 0;
                if self.block_ends {
                    (self.in_block, self.block_ends) = (false, false);
                    came.blocks += 1;
                }
            }
        }
        came
    }

    fn begin(&mut self, came: &mut Came) {
        let [high, middle, low, kind, flags, ..] = self.header;
        self.payload = u32::from_be_bytes([0, high, middle, low]);
        match kind {
            HEADERS | CONTINUATION => {
                self.in_block = true;
                self.block_ends = flags & END_HEADERS != 0;
            }
            RST_STREAM | PING | SETTINGS | PRIORITY => came.control += 1,
            DATA if self.payload == 0 => came.control += u32::from(flags == 0),
            _ => {}
        }
    }

    /// Whether a block of headers, or a frame other than one of a body, has begun and is not complete.
    pub fn is_incomplete(&self) -> bool {
        let kind = (self.header_bytes > 3).then_some(self.header[3]);
        self.in_block
            || (self.preface > 0 && self.preface < PREFACE_BYTES)
            || (self.header_bytes > 0 && kind != Some(DATA))
    }
}

/// Moves `bytes` on by what is left to skip.
fn skip(left: &mut u32, bytes: &mut &[u8]) {
    let skipped = bytes.len().min(*left as usize);
    *left -= skipped as u32;
    *bytes = &bytes[skipped..];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.extend(payload);
        frame
    }

    fn connection() -> Vec<u8> {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, 0, &[]));
        bytes.extend(frame(HEADERS, END_HEADERS, b"first"));
        bytes.extend(frame(DATA, 0, &[7; 1000]));
        bytes.extend(frame(HEADERS, 0, b"second"));
        bytes.extend(frame(CONTINUATION, 0, b""));
        bytes.extend(frame(CONTINUATION, END_HEADERS, b"more"));
        bytes.extend(frame(RST_STREAM, 0, &[0; 4]));
        bytes
    }

    #[test]
    fn however_the_bytes_are_cut_the_frames_are_the_same() {
        let bytes = connection();
        for size in [1, 2, 5, 9, 24, 100, bytes.len()] {
            let (mut frames, mut total) = (Frames::default(), Came::default());
            for piece in bytes.chunks(size) {
                let came = frames.feed(piece);
                total.blocks += came.blocks;
                total.control += came.control;
            }
            assert_eq!(total, Came { blocks: 2, control: 2 }, "in pieces of {size}");
            assert!(!frames.is_incomplete());
        }
    }

    #[test]
    fn a_block_is_incomplete_until_its_last_frame_ends_and_a_body_never_is() {
        let mut frames = Frames::default();
        assert!(!frames.is_incomplete());
        frames.feed(b"PRI");
        assert!(frames.is_incomplete());
        frames.feed(&connection()[3..24]);
        assert!(!frames.is_incomplete());
        for bytes in [frame(HEADERS, 0, b"x"), frame(CONTINUATION, 0, b"y"), vec![0]] {
            frames.feed(&bytes);
            assert!(frames.is_incomplete());
        }
        frames.feed(&frame(CONTINUATION, END_HEADERS, b"z")[1..]);
        assert!(!frames.is_incomplete());
        frames.feed(&frame(DATA, 0, &[0; 50])[..20]);
        assert!(!frames.is_incomplete());
        frames.feed(&[0; 39]);
        frames.feed(&frame(HEADERS, END_HEADERS, &[0; 50])[..20]);
        assert!(frames.is_incomplete());
    }
}

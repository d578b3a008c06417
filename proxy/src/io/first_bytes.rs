//! Which protocol a server speaks, by its first bytes: an HTTP/2 server begins with SETTINGS whatever it is sent (RFC 9113,
//! section 3.4), or refuses with GOAWAY, and no HTTP/1.1 answer looks like that.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// The header of an HTTP/2 frame (RFC 9113, section 4.1).
const HEADER_BYTES: usize = 9;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

/// A connection whose first bytes are looked at, if anything is expected of them. What is not as expected is an error.
pub struct FirstBytes<S> {
    inner: S,
    looking: Option<Looking>,
}

struct Looking {
    /// Whether HTTP/2 is expected, or HTTP/1.1.
    http2: bool,
    is_other: Arc<AtomicBool>,
    bytes: [u8; HEADER_BYTES],
    came: usize,
    /// How many of the bytes were passed on; none as long as it is not known what they are.
    passed: usize,
    is_known: bool,
}

/// The first bytes were those of the other protocol.
#[derive(Debug, thiserror::Error)]
enum Surprise {
    #[error("it speaks HTTP/2, not HTTP/1.1")]
    Http2,
    #[error("it does not speak HTTP/2")]
    NotHttp2,
}

impl<S> FirstBytes<S> {
    /// A connection of which nothing is expected.
    pub fn any(inner: S) -> Self {
        Self { inner, looking: None }
    }

    /// A connection to a server that is expected to speak HTTP/2, or HTTP/1.1. The flag says whether it did otherwise.
    pub fn expect(inner: S, http2: bool) -> (Self, Arc<AtomicBool>) {
        let is_other: Arc<AtomicBool> = Arc::default();
        let looking = Looking {
            http2,
            is_other: is_other.clone(),
            bytes: [0; HEADER_BYTES],
            came: 0,
            passed: 0,
            is_known: false,
        };
        (Self { inner, looking: Some(looking) }, is_other)
    }
}

impl Looking {
    /// Reads until it is known what the bytes are.
    fn poll_known(
        &mut self,
        inner: Pin<&mut (impl AsyncRead + ?Sized)>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = inner;
        while !self.is_known {
            let before = self.came;
            let mut rest = ReadBuf::new(&mut self.bytes[before..]);
            ready!(inner.as_mut().poll_read(context, &mut rest))?;
            self.came += rest.filled().len();
            let is_http2 = match begins_http2(&self.bytes[..self.came]) {
                // The end came first.
                None if self.came == before => false,
                None => continue,
                Some(is_http2) => is_http2,
            };
            self.is_known = true;
            // A server that closes without a word may speak either.
            if is_http2 != self.http2 && self.came > 0 {
                self.is_other.store(true, Ordering::Relaxed);
                let surprise = if is_http2 { Surprise::Http2 } else { Surprise::NotHttp2 };
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, surprise)));
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Whether the first bytes of a connection are those of an HTTP/2 server; `None`: too few to tell. Pure.
fn begins_http2(bytes: &[u8]) -> Option<bool> {
    match *bytes {
        // Neither frame is as long as 64 KiB at this point (section 4.2).
        [first, ..] if first != 0 => Some(false),
        [_, _, _, kind, _, a, b, c, d] => {
            let stream = u32::from_be_bytes([a & 0x7f, b, c, d]);
            Some(matches!(kind, SETTINGS | GOAWAY) && stream == 0)
        }
        _ => None,
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FirstBytes<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(looking) = &mut this.looking else {
            return Pin::new(&mut this.inner).poll_read(context, buffer);
        };
        ready!(looking.poll_known(Pin::new(&mut this.inner), context))?;
        let passed = buffer.remaining().min(looking.came - looking.passed);
        buffer.put_slice(&looking.bytes[looking.passed..][..passed]);
        looking.passed += passed;
        if looking.passed < looking.came {
            return Poll::Ready(Ok(()));
        }
        this.looking = None;
        // What follows is there already, as a rule; a failure shows with the next read.
        if passed > 0 && buffer.remaining() > 0 {
            let _ = Pin::new(&mut this.inner).poll_read(context, buffer);
        }
        Poll::Ready(Ok(()))
    }
}

write_to_inner!(FirstBytes<S>, S);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const FRAME: &[u8] = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64";
    const REFUSAL: &[u8] = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01";
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    /// What is read, and whether it was the other protocol, where the bytes come in pieces of `size`.
    async fn read(bytes: &[u8], size: usize, http2: bool) -> (io::Result<Vec<u8>>, bool) {
        let (mut theirs, ours) = tokio::io::duplex(size);
        let (mut ours, is_other) = FirstBytes::expect(ours, http2);
        let bytes = bytes.to_vec();
        let writing = tokio::spawn(async move { theirs.write_all(&bytes).await });
        let mut all = Vec::new();
        let outcome = ours.read_to_end(&mut all).await.map(|_| all);
        drop(ours);
        let _ = writing.await.unwrap();
        (outcome, is_other.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn what_is_expected_passes_whole_and_the_other_protocol_is_told() {
        let odd = [0, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        for size in [1, 2, 8, 9, 10, 1000] {
            for (bytes, is_http2) in [
                (FRAME, true),
                (REFUSAL, true),
                (ANSWER, false),
                (&odd[..], false),
                (b"\0\0", false),
                (b"H", false),
            ] {
                let (passed, is_other) = read(bytes, size, is_http2).await;
                assert_eq!((passed.unwrap(), is_other), (bytes.to_vec(), false));
                let (failed, is_other) = read(bytes, size, !is_http2).await;
                assert!(failed.is_err() && is_other, "{bytes:?} in pieces of {size}");
            }
            for http2 in [true, false] {
                let (passed, is_other) = read(b"", size, http2).await;
                assert!(passed.unwrap().is_empty() && !is_other, "the end says nothing");
            }
        }
    }
}

//! Connections of which bytes that were read already are read once more.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};

use super::readable::Readable;

/// A connection with what is to be read before anything else.
pub struct Rewound<S> {
    inner: S,
    first: Bytes,
}

impl<S> Rewound<S> {
    /// Reads `first` before `inner`.
    pub fn new(inner: S, first: Bytes) -> Self {
        Self { inner, first }
    }

    /// Reads `bytes` once more, which were read last, and after which nothing is left of earlier ones.
    pub fn rewind(&mut self, bytes: Bytes) {
        self.first = bytes;
    }
}

impl<S: Readable> Readable for Rewound<S> {
    fn poll_readable(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() { self.inner.poll_readable(context) } else { Poll::Ready(Ok(())) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.first.is_empty() {
            return Pin::new(&mut this.inner).poll_read(context, buffer);
        }
        let taken = this.first.len().min(buffer.remaining());
        buffer.put_slice(&this.first[..taken]);
        this.first.advance(taken);
        if this.first.is_empty() {
            this.first = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

write_to_inner!(Rewound<S>, S);

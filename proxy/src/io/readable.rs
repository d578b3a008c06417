//! Waiting for the next bytes of a connection without a buffer for them.

use std::io;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::server::TlsStream;

/// A connection that can tell whether there is something to read.
pub trait Readable {
    /// Ready when there is something to read, or the end. A read may still find nothing, where all that came is for the
    /// layer below it.
    ///
    /// # Errors
    /// Of the connection.
    fn poll_readable(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl<S: Readable + AsyncRead + AsyncWrite + Unpin> Readable for TlsStream<S> {
    fn poll_readable(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        use std::io::BufRead;
        let (socket, session) = self.get_mut();
        match session.reader().fill_buf() {
            // What was decrypted and not taken yet.
            Ok(_) => Poll::Ready(Ok(())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.poll_readable(context),
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

//! Which version of HTTP a client speaks, by its first bytes: HTTP/2 begins with a preface that no HTTP/1.1 request looks
//! like (RFC 9113, section 3.4).

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::rewound::Rewound;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Waits for a client's first bytes. Whether they are those of HTTP/2.
///
/// # Errors
/// The connection broke.
pub async fn is_http2<S: AsyncRead + Unpin>(mut inner: S) -> io::Result<(bool, Rewound<S>)> {
    let (mut first, mut came) = ([0; PREFACE.len()], 0);
    while came < PREFACE.len() && PREFACE.starts_with(&first[..came]) {
        match inner.read(&mut first[came..]).await? {
            0 => break,
            read => came += read,
        }
    }
    Ok((first == *PREFACE, Rewound::new(inner, Bytes::copy_from_slice(&first[..came]))))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn the_version_is_told_and_every_byte_is_read_again() {
        let http2 = [&PREFACE[..], b"\0\0\0\x04"].concat();
        for (sent, expected) in [
            (&http2[..], true),
            (b"GET / HTTP/1.1\r\n\r\n", false),
            (b"PRI /x HTTP/1.1\r\n\r\n", false),
            (b"PRI * HTTP/2.0", false),
            (b"", false),
        ] {
            for piece in [1, 7, 100] {
                let (mut near, far) = tokio::io::duplex(1 << 10);
                let sent = sent.to_vec();
                let told = sent.clone();
                tokio::spawn(async move {
                    for bytes in sent.chunks(piece) {
                        near.write_all(bytes).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                });
                let (is_http2, mut rewound) = is_http2(far).await.unwrap();
                let mut read = Vec::new();
                rewound.read_to_end(&mut read).await.unwrap();
                assert_eq!((is_http2, read), (expected, told), "in pieces of {piece}");
            }
        }
    }
}

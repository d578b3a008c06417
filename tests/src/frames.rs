//! HTTP/2 frame by frame, with header values that no library would send (RFC 9113; RFC 7541, section 6.2.2).

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What a client sends first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames.
pub const DATA: u8 = 0;
/// Begins a stream, or ends it with trailers.
pub const HEADERS: u8 = 1;
/// Ends one stream.
pub const RST_STREAM: u8 = 3;
/// Settings, or their acknowledgement.
pub const SETTINGS: u8 = 4;
/// Asks for a sign of life, or gives it.
pub const PING: u8 = 6;
/// Ends a connection.
pub const GOAWAY: u8 = 7;
/// Lets more bytes come.
pub const WINDOW_UPDATE: u8 = 8;
/// Goes on with a block of headers.
pub const CONTINUATION: u8 = 9;
/// SETTINGS or a PING came.
pub const ACK: u8 = 1;
/// Nothing follows on the stream.
pub const END_STREAM: u8 = 1;
/// No CONTINUATION follows.
pub const END_HEADERS: u8 = 4;

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A block of header fields, each as a literal without indexing and without Huffman's code.
pub fn block(fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for part in [name, value] {
            integer(part.len(), &mut bytes);
            bytes.extend(part);
        }
    }
    bytes
}

/// An integer with a prefix of 7 bits (RFC 7541, section 5.1).
fn integer(value: usize, bytes: &mut Vec<u8>) {
    if value < 127 {
        return bytes.push(value as u8);
    }
    bytes.push(127);
    let mut rest = value - 127;
    while rest >= 128 {
        bytes.push((rest % 128 + 128) as u8);
        rest /= 128;
    }
    bytes.push(rest as u8);
}

/// What came back on one stream.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// All DATA.
    pub data: Vec<u8>,
    /// Whether it ended as it should.
    pub ended: bool,
    /// Whether it was reset.
    pub reset: bool,
}

/// Writes bytes, then reads until both streams have ended or the connection has.
pub async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> [Reply; 2] {
    let mut replies = [Reply::default(), Reply::default()];
    // The server may have closed already.
    let _ = stream.write_all(bytes).await;
    loop {
        let mut head = [0; 9];
        if replies.iter().all(|reply| reply.ended || reply.reset)
            || stream.read_exact(&mut head).await.is_err()
        {
            return replies;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        if stream.read_exact(&mut payload).await.is_err() {
            return replies;
        }
        let [kind, flags] = [head[3], head[4]];
        match kind {
            SETTINGS if flags & 1 == 0 => {
                let _ = stream.write_all(&frame(SETTINGS, 1, 0, b"")).await;
            }
            // With an error nothing more is answered; without one, what was accepted is.
            GOAWAY if payload[4..8] != [0; 4] => {
                replies.iter_mut().for_each(|reply| reply.reset |= !reply.ended);
            }
            _ => {}
        }
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let reply = match id {
            1 => &mut replies[0],
            3 => &mut replies[1],
            _ => continue,
        };
        match kind {
            DATA => reply.data.extend(&payload),
            RST_STREAM => reply.reset = true,
            _ => {}
        }
        reply.ended |= matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
    }
}

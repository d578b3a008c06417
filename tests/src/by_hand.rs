//! A peer that speaks HTTP/2 behind mutual TLS, and answers only what a test writes, frame by frame.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::server::TlsStream;

use crate::frames::{
    ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    block, frame,
};
use crate::loopback::{self, Loopback};
use crate::mesh::Mesh;
use crate::tls::PeerOptions;
use crate::within;

/// A node of the mesh whose sidecar is the test.
pub struct ByHand {
    asked: UnboundedReceiver<Asked>,
    connections: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
    _address: Loopback,
}

impl ByHand {
    /// Listens, and enters itself in the registry.
    pub async fn start(mesh: &Mesh, name: &str, agents: &[&str]) -> Self {
        let address = Loopback::take();
        let listener = loopback::listen(address.port(3000)).await;
        mesh.register(name, &address.ip().to_string(), 3000, agents);
        let acceptor = PeerOptions { alpn: vec!["h2"], ..PeerOptions::good(&mesh.ca, name) }.acceptor();
        let (give, asked) = mpsc::unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = connections.clone();
        let accepting = tokio::spawn(async move {
            // Aborts its tasks when it is dropped.
            let mut serving = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let connection = counter.fetch_add(1, Ordering::SeqCst) + 1;
                serving.spawn(serve(stream, connection, give.clone()));
            }
        });
        Self { asked, connections, accepting, _address: address }
    }

    /// The next request, as soon as its head has come.
    pub async fn asked(&mut self) -> Asked {
        within("a request to the peer", self.asked.recv()).await.unwrap()
    }

    /// How many connections were made to it.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A request on its stream.
pub struct Asked {
    /// The connection on which it came; the first is 1.
    pub connection: usize,
    /// Its stream.
    pub stream: u32,
    pieces: UnboundedReceiver<Bytes>,
    /// `None` closes the connection.
    write: UnboundedSender<Option<Vec<u8>>>,
}

impl Asked {
    /// The next piece of its body; `None` at the end, be it reset.
    pub async fn piece(&mut self) -> Option<Bytes> {
        within("a piece of the request", self.pieces.recv()).await
    }

    /// What is left of its body.
    pub async fn body(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        while let Some(piece) = self.piece().await {
            body.extend(piece);
        }
        body
    }

    /// Writes frames on its connection.
    pub fn write(&self, frames: Vec<u8>) {
        let _ = self.write.send(Some(frames));
    }

    /// Begins the answer: 200.
    pub fn begin_answer(&self) {
        let head = block(&[(b":status".to_vec(), b"200".to_vec())]);
        self.write(frame(HEADERS, END_HEADERS, self.stream, &head));
    }

    /// Answers 200 with this body.
    pub fn answer(&self, body: &str) {
        self.begin_answer();
        self.write(frame(DATA, END_STREAM, self.stream, body.as_bytes()));
    }

    /// Resets its stream with this code.
    pub fn reset(&self, code: u32) {
        self.write(frame(RST_STREAM, 0, self.stream, &code.to_be_bytes()));
    }

    /// Says that streams after `last` are not taken any more, and why.
    pub fn go_away(&self, last: u32, code: u32) {
        self.write(frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat()));
    }

    /// Closes its connection.
    pub fn close(&self) {
        let _ = self.write.send(None);
    }
}

/// Reads requests, acknowledges what must be, and writes what it is given.
async fn serve(stream: TlsStream<TcpStream>, connection: usize, give: UnboundedSender<Asked>) {
    let (mut read, mut written) = tokio::io::split(stream);
    let (write, mut to_write) = mpsc::unbounded_channel();
    // Windows as large as they can be.
    let _ = write.send(Some(frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff])));
    let _ = write.send(Some(frame(WINDOW_UPDATE, 0, 0, &(i32::MAX as u32 - 65_535).to_be_bytes())));
    let writing = async {
        while let Some(Some(bytes)) = to_write.recv().await {
            if written.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = written.shutdown().await;
    };
    let reading = async {
        read.read_exact(&mut [0; PREFACE.len()]).await.ok()?;
        let mut bodies: Vec<(u32, UnboundedSender<Bytes>)> = Vec::new();
        while let Some((kind, flags, stream, payload)) = next(&mut read).await {
            match kind {
                SETTINGS | PING if flags & ACK == 0 => {
                    let echo = if kind == PING { &payload[..] } else { b"" };
                    write.send(Some(frame(kind, ACK, 0, echo))).ok()?;
                }
                HEADERS if bodies.iter().all(|(open, _)| *open != stream) => {
                    let (body, pieces) = mpsc::unbounded_channel();
                    bodies.push((stream, body));
                    give.send(Asked { connection, stream, pieces, write: write.clone() }).ok()?;
                }
                DATA if !payload.is_empty() => {
                    let body = bodies.iter().find(|(open, _)| *open == stream);
                    body.map(|(_, body)| body.send(payload.into()));
                }
                _ => {}
            }
            if kind == RST_STREAM || (matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0) {
                bodies.retain(|(open, _)| *open != stream);
            }
        }
        Some(())
    };
    tokio::select! {
        () = writing => {}
        _ = reading => {}
    }
}

/// Kind, flags, stream and payload of the next frame.
async fn next(read: &mut ReadHalf<TlsStream<TcpStream>>) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    read.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    read.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

//! An agent that reads every byte as it comes, and as strictly as HTTP/1.1 can be read, so that a test sees what a
//! sidecar really sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};

use crate::loopback;
use crate::process::text;

/// A request as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// As sent.
    pub method: String,
    /// As sent.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Without its framing.
    pub body: Vec<u8>,
}

impl Seen {
    /// The values of all lines of this name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(each, _)| each == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// What a [`Recorder`] read.
#[derive(Debug, Default)]
pub struct Record {
    /// Whole requests, in the order in which they were complete.
    pub requests: Vec<Seen>,
    /// What is not HTTP/1.1 in its strictest form, and why.
    pub wrong: Vec<String>,
    /// Beginnings of requests whose connection ended.
    pub cut: Vec<String>,
}

/// Listens with plain HTTP/1.1, answers each request with `<method> <target>`, and keeps its connections.
pub struct Recorder {
    record: Arc<Mutex<Record>>,
    task: JoinHandle<()>,
}

impl Recorder {
    /// Listens on `addr`.
    pub async fn start(addr: SocketAddr) -> Self {
        let record: Arc<Mutex<Record>> = Arc::default();
        let listener = loopback::listen(addr).await;
        let shared = record.clone();
        let task = tokio::spawn(async move {
            // Aborts its tasks when it is dropped.
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                connections.spawn(serve(stream, shared.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { record, task }
    }

    /// What was read since the last call.
    pub fn take(&self) -> Record {
        std::mem::take(&mut *self.record.lock().unwrap())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, record: Arc<Mutex<Record>>) {
    let mut bytes = Vec::new();
    loop {
        match read_request(&bytes) {
            Ok(Some((request, length))) => {
                bytes.drain(..length);
                let answer = match request.method.as_str() {
                    "HEAD" => "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into(),
                    method => {
                        let body = format!("{method} {}", request.target);
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
                    }
                };
                record.lock().unwrap().requests.push(request);
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
            Ok(None) => match stream.read_buf(&mut bytes).await {
                Ok(1..) => {}
                _ if bytes.is_empty() => return,
                _ => return record.lock().unwrap().cut.push(text(&bytes)),
            },
            Err(wrong) => {
                return record.lock().unwrap().wrong.push(format!("{wrong}: {:?}", text(&bytes)));
            }
        }
    }
}

/// The first request in these bytes and its length; `None` while it is incomplete.
fn read_request(bytes: &[u8]) -> Result<Option<(Seen, usize)>, String> {
    let Some(head_end) = find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let mut lines = Vec::new();
    let mut rest = &bytes[..head_end];
    while let Some(end) = find(rest, b"\r\n") {
        lines.push(&rest[..end]);
        rest = &rest[end + 2..];
    }
    lines.push(rest);
    if lines.iter().any(|line| line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0))) {
        return Err("a bare CR, LF or NUL".into());
    }
    let first: Vec<&[u8]> = lines[0].split(|byte| *byte == b' ').collect();
    let [method, target, b"HTTP/1.1"] = first[..] else { return Err("no request line".into()) };
    if !is_token(method) || target.is_empty() || target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
        return Err("a wrong method or target".into());
    }
    let mut headers = Vec::new();
    for line in &lines[1..] {
        let colon = line.iter().position(|byte| *byte == b':').ok_or("a header without a colon")?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if !is_token(name) {
            return Err("a wrong header name".into());
        }
        headers.push((text(name).to_ascii_lowercase(), text(value)));
    }
    let mut seen = Seen { method: text(method), target: text(target), headers, body: Vec::new() };
    let body = &bytes[head_end + 4..];
    let length = match (&seen.all("content-length")[..], &seen.all("transfer-encoding")[..]) {
        ([], []) => 0,
        ([length], []) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            let length: usize = length.parse().map_err(|_| "a wrong Content-Length")?;
            if body.len() < length {
                return Ok(None);
            }
            seen.body = body[..length].to_vec();
            length
        }
        ([], ["chunked"]) => match read_chunks(body)? {
            Some((content, length)) => {
                seen.body = content;
                length
            }
            None => return Ok(None),
        },
        both => return Err(format!("two ways to find its end, or a wrong one: {both:?}")),
    };
    Ok(Some((seen, head_end + 4 + length)))
}

/// Chunks without extensions, in the form that hyper writes, and the trailers behind them.
fn read_chunks(body: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
    let (mut content, mut at) = (Vec::new(), 0);
    loop {
        let Some(end) = find(&body[at..], b"\r\n") else { return Ok(None) };
        let line = text(&body[at..at + end]);
        let size = usize::from_str_radix(&line, 16).map_err(|_| format!("a wrong chunk size {line:?}"))?;
        at += end + 2;
        if size == 0 {
            break;
        }
        if body.len() < at + size + 2 {
            return Ok(None);
        }
        content.extend_from_slice(&body[at..at + size]);
        if &body[at + size..at + size + 2] != b"\r\n" {
            return Err("a chunk without its end".into());
        }
        at += size + 2;
    }
    loop {
        let Some(end) = find(&body[at..], b"\r\n") else { return Ok(None) };
        at += end + 2;
        if end == 0 {
            return Ok(Some((content, at)));
        }
    }
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

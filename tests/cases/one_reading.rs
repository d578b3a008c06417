//! Malformed and smuggling requests, kept as data in `corpus/`: the agent reads exactly the request that was meant, or
//! nothing and the client is refused. What follows on the same connections is read as it was sent.

use std::collections::HashSet;

use mesh_tests::frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, Reply, SETTINGS, frame};
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::text;
use mesh_tests::recorder::{Recorder, Seen};
use mesh_tests::tls::Client;
use mesh_tests::{web, within};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

const HTTP1: &str = include_str!("corpus/http1.txt");
const HTTP2: &str = include_str!("corpus/http2.txt");

/// A request that follows on the client's own connection.
const AFTER: &str = "GET /after HTTP/1.1\r\nhost: ct111.mesh\r\nconnection: close\r\n\r\n";

/// A request of the corpus.
#[derive(Debug)]
struct Case {
    name: String,
    /// The only listener that gets it.
    only: Option<String>,
    /// Nothing follows: the client closes.
    closes: bool,
    /// What is sent, but for `AFTER`.
    bytes: Vec<u8>,
    expected: Expected,
}

#[derive(Debug)]
enum Expected {
    Refused(Option<u16>),
    Answered(String),
    Read(Meant),
}

/// A request as it was meant.
#[derive(Debug)]
struct Meant {
    method: String,
    target: String,
    body: Vec<u8>,
}

impl Meant {
    /// Whether it is what was read, and all of it.
    fn is(&self, read: &[Seen]) -> bool {
        let same = |seen: &Seen| {
            (&seen.method, &seen.target, &seen.body) == (&self.method, &self.target, &self.body)
        };
        matches!(read, [only] if same(only))
    }
}

/// Ends a judgement with what is wrong.
macro_rules! ensure {
    ($holds:expr, $($wrong:tt)*) => {
        if !$holds {
            return Err(format!($($wrong)*));
        }
    };
}

#[tokio::test]
async fn a_request_in_http_1_has_one_reading() {
    let site = Site::start().await;
    let cases = cases(HTTP1, http1_bytes);
    assert!(cases.len() >= 120, "{}", cases.len());
    let mut wrong = Vec::new();
    for (case, listener) in on_each_listener(&cases) {
        let answer = match listener {
            "inbound" => raw(case, site.inbound("http/1.1").await).await,
            _ => raw(case, site.outbound().await).await,
        };
        wrong.extend(site.judge_http1(case, listener, &answer).await.err().map(|wrong| {
            format!(
                "{} ({listener}): {wrong}\n  {:?}",
                case.name,
                answer.chars().take(500).collect::<String>()
            )
        }));
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[tokio::test]
async fn a_request_in_http_2_has_one_reading() {
    let site = Site::start().await;
    let mut settings = PREFACE.to_vec();
    settings.extend(frame(SETTINGS, 0, 0, b""));
    let after = [(":method", "GET"), (":scheme", "http"), (":authority", "ct111.mesh"), (":path", "/after")]
        .map(|(name, value)| (name.into(), value.into()));
    let after = frame(HEADERS, END_STREAM | END_HEADERS, 3, &frames::block(&after));
    let cases = cases(HTTP2, http2_bytes);
    let mut wrong = Vec::new();
    for (case, listener) in on_each_listener(&cases) {
        let bytes = [&settings[..], &case.bytes, &after].concat();
        let [answer, next] = match listener {
            "inbound" => within(&case.name, frames::exchange(site.inbound("h2").await, &bytes)).await,
            _ => within(&case.name, frames::exchange(site.outbound().await, &bytes)).await,
        };
        wrong.extend(
            site.judge_http2(case, listener, &answer, &next)
                .await
                .err()
                .map(|wrong| format!("{} ({listener}): {wrong}\n  {answer:?} {next:?}", case.name)),
        );
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn on_each_listener(cases: &[Case]) -> impl Iterator<Item = (&Case, &'static str)> {
    let listeners = |case| ["inbound", "outbound"].map(|listener| (case, listener));
    let given = |(case, listener): &(&Case, &str)| case.only.as_deref().is_none_or(|only| only == *listener);
    cases.iter().flat_map(listeners).filter(given)
}

/// Two sidecars, with an agent that reads every byte.
struct Site {
    mesh: Mesh,
    near: Node,
    far: Node,
    agent: Recorder,
}

impl Site {
    async fn start() -> Self {
        let mesh = Mesh::new();
        let mut far = mesh.node("ct111").prepare().await;
        let agent = Recorder::start(far.backend()).await;
        far.start_registryd().await;
        far.start_proxy().await;
        let near = mesh.start("ct110", "opus").await;
        near.reaches("ct111").await;
        Self { mesh, near, far, agent }
    }

    async fn inbound(&self, protocol: &str) -> impl AsyncRead + AsyncWrite + Unpin + use<> {
        let client = Client::new(&self.mesh.ca, &self.mesh.ca.node("ct112")).alpn(&[protocol]);
        client.connect(self.far.inbound(), "ct111").await.unwrap()
    }

    async fn outbound(&self) -> TcpStream {
        TcpStream::connect(self.near.outbound()).await.unwrap()
    }

    /// What the agent read, after others have used the connections between the sidecars and to it.
    async fn read(&self, listener: &str) -> Result<Vec<Seen>, String> {
        let mut record = self.agent.take();
        for _ in 0..2 {
            let answer = web::send(self.near.outbound(), web::get_with("http://ct111.mesh/probe", &[])).await;
            ensure!(answer.text() == "GET /probe", "the next one's answer is {}", answer.text());
        }
        let probes = self.agent.take();
        record.wrong.extend(probes.wrong);
        ensure!(record.wrong.is_empty(), "the agent got {:?}", record.wrong);
        // A request that nobody waited for may have come a moment later.
        let (probes, late): (Vec<_>, Vec<_>) =
            probes.requests.into_iter().partition(|seen| seen.target == "/probe");
        ensure!(probes.len() == 2, "the agent read the next one as {probes:?}");
        record.requests.extend(late);
        for seen in &record.requests {
            // What a program says to its sidecar is plain HTTP.
            let (peer, scheme) = if listener == "inbound" { ("ct112", "https") } else { ("ct110", "http") };
            for (name, value) in
                [("x-mesh-peer-cn", peer), ("x-forwarded-for", "127.0.0.1"), ("x-forwarded-proto", scheme)]
            {
                ensure!(seen.all(name) == [value], "{name}: {seen:?}");
            }
            ensure!(seen.all("upgrade").iter().all(|to| *to == "websocket"), "{seen:?}");
            ensure!(!seen.headers.iter().any(|(_, value)| value.contains("forged")), "{seen:?}");
            let names: HashSet<_> = seen.headers.iter().map(|(name, _)| name).collect();
            ensure!(names.len() == seen.headers.len() && names.contains(&"host".to_owned()), "{seen:?}");
        }
        Ok(record.requests)
    }

    async fn judge_http1(&self, case: &Case, listener: &str, answer: &str) -> Result<(), String> {
        let heads = answer.split("HTTP/1.").skip(1).filter_map(|head| head.get(2..5)?.parse().ok());
        let statuses: Vec<u16> = heads.filter(|status| *status != 100).collect();
        let mut read = self.read(listener).await?;
        let after = read.iter().position(|seen| seen.target == "/after").map(|at| read.remove(at));
        match after {
            Some(after) => {
                ensure!(after.method == "GET" && after.body.is_empty(), "what follows was read as {after:?}");
                ensure!(!case.closes && statuses.get(1) == Some(&200), "what follows: {statuses:?}");
            }
            None => {
                ensure!(statuses.get(1).is_none_or(|status| *status >= 400), "what follows: {statuses:?}")
            }
        }
        let first = statuses.first();
        match &case.expected {
            Expected::Refused(status) => {
                ensure!(read.is_empty(), "the agent read {read:?}");
                ensure!(first.is_none_or(|first| *first >= 400), "{statuses:?}");
                ensure!(status.is_none() || first == status.as_ref(), "{statuses:?}, not {status:?}");
            }
            Expected::Answered(part) => {
                ensure!(read.is_empty(), "the agent read {read:?}");
                ensure!(first == Some(&200) && answer.contains(part), "{statuses:?}");
            }
            Expected::Read(meant) => {
                ensure!(meant.is(&read), "the agent read {read:?}");
                ensure!(first == Some(&200), "{statuses:?}");
            }
        }
        Ok(())
    }

    async fn judge_http2(
        &self,
        case: &Case,
        listener: &str,
        answer: &Reply,
        next: &Reply,
    ) -> Result<(), String> {
        let mut read = self.read(listener).await?;
        let after = read.iter().position(|seen| seen.target == "/after").map(|at| read.remove(at));
        match after {
            Some(after) => {
                ensure!(after.method == "GET" && after.body.is_empty(), "what follows was read as {after:?}");
            }
            None => ensure!(!next.ended || next.reset, "what follows was answered and not read"),
        }
        if next.ended && !next.reset {
            ensure!(next.data == b"GET /after", "what follows got another answer");
        }
        let said = text(&answer.data);
        match &case.expected {
            Expected::Read(meant) => {
                ensure!(meant.is(&read), "the agent read {read:?}");
                let expected = format!("{} {}", meant.method, meant.target);
                ensure!(said == expected || meant.method == "HEAD", "another answer");
                ensure!(next.ended, "the connection did not go on");
            }
            Expected::Answered(part) => {
                ensure!(read.is_empty(), "the agent read {read:?}");
                ensure!(said.contains(part), "another answer");
            }
            Expected::Refused(_) => {
                ensure!(read.is_empty(), "the agent read {read:?}");
                let refused = said.is_empty() || said.contains("\"status\":4");
                ensure!(answer.reset || !answer.ended || refused, "it was answered");
            }
        }
        Ok(())
    }
}

async fn raw(case: &Case, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    let mut bytes = case.bytes.clone();
    if !case.closes {
        bytes.extend(AFTER.as_bytes());
    }
    // The server may have closed already.
    let _ = stream.write_all(&bytes).await;
    if case.closes {
        let _ = stream.shutdown().await;
    }
    let mut answer = Vec::new();
    let _ = within(&case.name, stream.read_to_end(&mut answer)).await;
    text(&answer)
}

fn cases(corpus: &str, bytes: fn(&str, &[&str]) -> Vec<u8>) -> Vec<Case> {
    let mut names = HashSet::new();
    let mut cases = Vec::new();
    for entry in corpus.split("\n\n") {
        let lines: Vec<&str> = entry.lines().filter(|line| !line.starts_with('#')).collect();
        let [name, lines @ .., expected] = &lines[..] else { continue };
        assert!(names.insert(*name), "two cases {name:?}");
        let expected = expected.strip_prefix("= ").unwrap_or_else(|| panic!("{name}: what is expected?"));
        let words: Vec<&str> = expected.splitn(3, ' ').collect();
        let expected = match words[..] {
            ["refused"] => Expected::Refused(None),
            ["refused", status] => Expected::Refused(Some(status.parse().unwrap())),
            ["answered", part] => Expected::Answered(part.into()),
            [method, target, ref body @ ..] => Expected::Read(Meant {
                method: text(&unescape(method)),
                target: text(&unescape(target)),
                body: body.first().map(|body| unescape(body)).unwrap_or_default(),
            }),
            _ => panic!("{name}: what is expected?"),
        };
        cases.push(Case {
            name: name.to_string(),
            only: lines.iter().find_map(|line| line.strip_prefix("@ ")).map(Into::into),
            closes: lines.iter().any(|line| line.starts_with('!')),
            bytes: bytes(name, lines),
            expected,
        });
    }
    cases
}

fn http1_bytes(name: &str, lines: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in lines {
        match line.split_at(1) {
            (">", rest) => {
                bytes.extend(unescape(rest.strip_prefix(' ').unwrap_or(rest)));
                bytes.extend(b"\r\n");
            }
            ("|", rest) => bytes.extend(unescape(rest.strip_prefix(' ').unwrap_or(rest))),
            ("@" | "!", _) => {}
            _ => panic!("{name}: {line}"),
        }
    }
    bytes
}

fn http2_bytes(name: &str, lines: &[&str]) -> Vec<u8> {
    let fields = |mark: &str| -> Vec<(Vec<u8>, Vec<u8>)> {
        let of = |line: &&str| {
            let (field, value) = line.strip_prefix(mark)?.strip_prefix(' ')?.split_once(" =").unwrap();
            Some((unescape(field), unescape(value.strip_prefix(' ').unwrap_or(value))))
        };
        lines.iter().filter_map(of).collect()
    };
    let (head, trailers) = (fields("h"), fields("t"));
    let data: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix('d')).collect();
    let end = |last: bool| if last { END_STREAM } else { 0 };
    let mut bytes = Vec::new();
    if !head.is_empty() {
        let block = frames::block(&head);
        // As large as every server takes them.
        let mut pieces = block.chunks(16_000).enumerate().peekable();
        while let Some((at, piece)) = pieces.next() {
            let whole = if pieces.peek().is_none() { END_HEADERS } else { 0 };
            let (kind, ended) = match at {
                0 => (HEADERS, end(data.is_empty() && trailers.is_empty())),
                _ => (frames::CONTINUATION, 0),
            };
            bytes.extend(frame(kind, whole | ended, 1, piece));
        }
    }
    for (at, piece) in data.iter().enumerate() {
        let last = at + 1 == data.len() && trailers.is_empty();
        bytes.extend(frame(DATA, end(last), 1, &unescape(piece.strip_prefix(' ').unwrap_or(piece))));
    }
    if !trailers.is_empty() {
        bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, &frames::block(&trailers)));
    }
    for line in lines.iter().filter_map(|line| line.strip_prefix("f ")) {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        let [kind, flags, stream, payload] = words[..] else { panic!("{name}: {line}") };
        let number = |text| u8::from_str_radix(text, 16).unwrap();
        bytes.extend(frame(number(kind), number(flags), number(stream).into(), &unescape(payload)));
    }
    bytes
}

/// Undoes `\r`, `\n`, `\t`, `\\`, `\xHH` and `{x*9}`.
fn unescape(escaped: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = escaped;
    while let Some(first) = rest.chars().next() {
        rest = &rest[first.len_utf8()..];
        match first {
            '\\' => {
                let (kind, tail) = rest.split_at(1);
                rest = tail;
                match kind {
                    "r" => bytes.push(b'\r'),
                    "n" => bytes.push(b'\n'),
                    "t" => bytes.push(b'\t'),
                    "x" => {
                        bytes.push(u8::from_str_radix(&rest[..2], 16).unwrap());
                        rest = &rest[2..];
                    }
                    _ => bytes.push(b'\\'),
                }
            }
            '{' if rest.contains('*') && rest.contains('}') => {
                let (repeated, tail) = rest.split_once('*').unwrap();
                let (times, tail) = tail.split_once('}').unwrap();
                bytes.extend(unescape(repeated).repeat(times.parse().unwrap()));
                rest = tail;
            }
            other => bytes.extend(other.to_string().bytes()),
        }
    }
    bytes
}

//! One peer takes whatever it can get, in every way that there is, while another one works: the other one is served, the
//! sidecar stays small, and nothing is left behind.

use std::time::Duration;

use http::{Method, Request, StatusCode};
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::tls::Client;
use mesh_tests::web::{self, Answer, Body};
use mesh_tests::{eventually, within};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::client::TlsStream;

const MIB: usize = 1 << 20;
/// What the sidecar may take, whatever comes.
const MAX_RESIDENT: usize = 200 * MIB;

/// A sidecar with an agent, and what it had open before anything came.
struct Target {
    node: Node,
    files: usize,
}

impl Target {
    async fn start(mesh: &Mesh, proxy: Value) -> Self {
        let plan = mesh.node("ct111").agent("grok").with(|config| {
            for (section, keys) in proxy.as_object().unwrap() {
                for (key, value) in keys.as_object().unwrap() {
                    config["proxy"][section][key] = value.clone();
                }
            }
        });
        let mut node = plan.prepare().await;
        node.start_proxy().await;
        // The first request makes what is kept for good.
        assert_eq!(node.get_from_peer(mesh, "ct112", "/x").await.status, 200);
        let mut target = Self { node, files: 0 };
        target.files = eventually("the connections of the first request are closed", async || {
            let before = target.open_files();
            tokio::time::sleep(Duration::from_secs(2)).await;
            (target.open_files() == before).then_some(before)
        })
        .await;
        target
    }

    fn pid(&self) -> u32 {
        self.node.proxy.as_ref().unwrap().pid()
    }

    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Checks that it is small.
    fn is_small(&self) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        println!("at most {} MiB", kib / 1024);
        assert!(kib * 1024 < MAX_RESIDENT, "{} MiB", kib / 1024);
    }

    /// Waits until everything that came is gone.
    async fn settles(&self) {
        eventually("no more files are open than before", async || {
            (self.open_files() <= self.files).then_some(())
        })
        .await;
        self.is_small();
    }

    async fn connect(&self, mesh: &Mesh, peer: &str, alpn: &str) -> TlsStream<TcpStream> {
        let client = Client::new(&mesh.ca, &mesh.ca.node(peer)).alpn(&[alpn]);
        client.connect(self.node.inbound(), "ct111").await.unwrap()
    }
}

/// A peer that sends one request after the other, on new connections and on one that it keeps.
struct Worker {
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
    done: watch::Receiver<usize>,
}

impl Worker {
    fn start(mesh: &Mesh, target: &Target) -> Self {
        let client = Client::new(&mesh.ca, &mesh.ca.node("ct112")).alpn(&["http/1.1"]);
        let (stop, stopped) = watch::channel(false);
        let (count, done) = watch::channel(0);
        let address = target.node.inbound();
        let task = tokio::spawn(async move {
            let mut kept = client.http(address, "ct111").await;
            while !*stopped.borrow() {
                let once = client.send(address, "ct111", get("/new").map(|_| web::empty())).await;
                assert_eq!(once.status, 200, "{}", once.text());
                let again = kept.send(get("/kept")).await;
                assert_eq!(again.status, 200, "{}", again.text());
                count.send_modify(|done| *done += 2);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self { task, stop, done }
    }

    /// Ends it after some more requests. All of them have been answered as they should.
    async fn was_served(mut self) {
        let enough = *self.done.borrow() + 10;
        // Fails when its task has ended, which says why.
        let _ = within("ten more requests", self.done.wait_for(|done| *done >= enough)).await;
        let _ = self.stop.send(true);
        within("the other peer's last request", self.task).await.unwrap();
        println!("{} requests of the other peer", *self.done.borrow());
    }
}

fn get(path: &str) -> Request<Body> {
    web::request(Method::GET, &format!("https://ct111.mesh{path}")).body(web::empty()).unwrap()
}

/// Frames of HTTP/2 (RFC 9113, section 4), as they are written.
mod frames {
    pub use mesh_tests::frames::{PREFACE, frame};

    /// Preface, and windows as large as they can be.
    pub fn opening() -> Vec<u8> {
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
        bytes.extend(frame(8, 0, 0, &(i32::MAX as u32 - 65_535).to_be_bytes()));
        bytes
    }

    pub fn get(stream: u32, path: &str) -> Vec<u8> {
        let mut block = vec![0x82, 0x87, 0x04, path.len() as u8];
        block.extend(path.bytes());
        block.extend([0x01, 10]);
        block.extend(b"ct111.mesh");
        frame(1, 0x5, stream, &block)
    }

    pub fn cancel(stream: u32) -> Vec<u8> {
        frame(3, 0, stream, &[0, 0, 0, 8])
    }
}

#[tokio::test]
async fn idle_connections() {
    let mesh = Mesh::new();
    let limits = json!({"limits": {"max_connections": 80, "max_connections_per_peer": 40}});
    let mut target = Target::start(&mesh, limits).await;
    let worker = Worker::start(&mesh, &target);
    let mut held = Vec::new();
    for number in 0..200 {
        let alpn = if number % 2 == 0 { "h2" } else { "http/1.1" };
        held.push(target.connect(&mesh, "ct150", alpn).await);
    }
    let line = ["WARN", "refusing connections, peer.cn=ct150 first: it has 40 already"];
    target.node.proxy().wait_log(&line).await;
    worker.was_served().await;
    assert_eq!(target.node.proxy().lines_with(&["refusing connections"]).len(), 1);
    drop(held);
    target.settles().await;
}

#[tokio::test]
async fn connections_that_say_nothing() {
    let mesh = Mesh::new();
    let limits = json!({"limits": {"max_handshakes": 40, "max_handshakes_per_address": 20}});
    let target = Target::start(&mesh, limits).await;
    let worker = Worker::start(&mesh, &target);
    let mut held = Vec::new();
    for _ in 0..150 {
        for address in ["127.0.0.7:0", "127.0.0.8:0"] {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(address.parse().unwrap()).unwrap();
            held.push(socket.connect(target.node.inbound()).await.unwrap());
        }
    }
    worker.was_served().await;
    // The oldest ones made room.
    let mut oldest = held.remove(0);
    within("the end of the oldest connection", oldest.read_u8()).await.unwrap_err();
    drop(held);
    target.settles().await;
}

#[tokio::test]
async fn requests_that_the_agent_does_not_answer() {
    let mesh = Mesh::new();
    let limits = json!({
        "backend": {"max_requests": 64, "max_queue": 64, "queue_ms": 500},
        "limits": {"max_requests_per_peer": 100},
    });
    let target = Target::start(&mesh, limits).await;
    let worker = Worker::start(&mesh, &target);
    let mut answers = JoinSet::new();
    for _ in 0..4 {
        let h2 = web::h2(target.connect(&mesh, "ct150", "h2").await).await;
        for _ in 0..120 {
            let mut h2 = h2.clone();
            answers.spawn(async move {
                h2.ready().await.unwrap();
                Answer::read(h2.send_request(get("/hang")).await.ok()?).await.ok()
            });
        }
    }
    // 56 of the 64 slots are for one peer alone; the others may wait, or are one too many.
    let mut codes = std::collections::HashMap::<String, usize>::new();
    while codes.values().sum::<usize>() < 480 - 56 {
        let answer = within("an answer", answers.join_next()).await.unwrap().unwrap().unwrap();
        *codes.entry(answer.header("x-mesh-error").unwrap().into()).or_default() += 1;
    }
    assert!(codes["too_many_requests"] > 100 && codes["agent_busy"] >= 44, "{codes:?}");
    let hanging = || target.node.agent().requests().iter().filter(|seen| seen.target == "/hang").count();
    assert_eq!(hanging(), 56);
    worker.was_served().await;
    // The rest is cancelled at the agent when the peer goes.
    drop(answers);
    for _ in 0..56 {
        target.node.agent().gone().await;
    }
    target.settles().await;
}

#[tokio::test]
async fn requests_without_a_pause() {
    let mesh = Mesh::new();
    let limits = json!({"limits": {"max_requests_per_second_per_peer": 5}});
    let target = Target::start(&mesh, limits).await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct150")).alpn(&["http/1.1"]);
    let mut connection = client.http(target.node.inbound(), "ct111").await;
    let mut served = 0;
    let refused = loop {
        let answer = connection.send(get("/x")).await;
        if answer.status != 200 {
            break answer;
        }
        served += 1;
        assert!(served < 2_000, "it is never refused");
    };
    assert!(served >= 10, "a burst of twice as many is allowed: {served}");
    let detail = refused.problem(429, "rate_limited");
    assert!(detail.contains("ct150 sends more than 5 requests a second"), "{detail}");
    assert!(refused.header("retry-after").is_some());
    // Another connection is no way around it, and has no burst of its own; another peer has a rate of its own.
    let mut connection = client.http(target.node.inbound(), "ct111").await;
    let mut served = 0;
    while connection.send(get("/x")).await.status == 200 {
        served += 1;
        assert!(served < 10, "another connection has a burst of its own");
    }
    assert_eq!(target.node.get_from_peer(&mesh, "ct112", "/x").await.status, 200);
}

#[tokio::test]
async fn connections_that_never_become_a_request() {
    let mesh = Mesh::new();
    let timeouts = json!({"timeouts": {"first_request_ms": 700, "header_ms": 700}});
    let mut target = Target::start(&mesh, timeouts).await;
    let worker = Worker::start(&mesh, &target);
    let slow_block = {
        let mut bytes = frames::opening();
        bytes.extend(endless_block(1));
        bytes
    };
    let openings: [(&str, Vec<u8>); 6] = [
        ("h2", Vec::new()),
        ("h2", frames::PREFACE[..10].to_vec()),
        ("h2", frames::opening()),
        ("h2", slow_block.clone()),
        ("http/1.1", Vec::new()),
        ("http/1.1", b"GET /x HTTP/1.1\r\nhost: x\r\nx-slow: ".to_vec()),
    ];
    let mut cut = JoinSet::new();
    for (alpn, opening) in openings {
        for _ in 0..5 {
            let mut stream = target.connect(&mesh, "ct150", alpn).await;
            let opening = opening.clone();
            cut.spawn(async move {
                stream.write_all(&opening).await.unwrap();
                ends(stream).await;
            });
        }
    }
    within("the end of all of them", async { while cut.join_next().await.is_some() {} }).await;
    // Also after a first request, on a connection that may be idle otherwise.
    let mut stream = target.connect(&mesh, "ct150", "h2").await;
    stream.write_all(&[frames::opening(), frames::get(1, "/x")].concat()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    stream.write_all(&endless_block(3)).await.unwrap();
    within("the end of a connection whose headers never end", ends(stream)).await;
    target.node.proxy().wait_log(&["WARN", "cutting off peer.cn=ct150", "proxy.timeouts.header_ms"]).await;
    target.node.proxy().wait_log(&["WARN", "cutting off peer.cn=ct150", "first_request_ms"]).await;
    worker.was_served().await;
    target.settles().await;
}

/// The beginning of a block of headers whose last frame never ends.
fn endless_block(stream: u32) -> Vec<u8> {
    let begins = frames::frame(1, 0, stream, &[0x82, 0x87]);
    [begins, frames::frame(9, 4, stream, &[0; 1000])[..9].to_vec()].concat()
}

/// Reads until the other side ends the connection, while it writes a byte now and then.
async fn ends(mut stream: TlsStream<TcpStream>) {
    let mut buffer = [0; 4096];
    loop {
        tokio::select! {
            read = stream.read(&mut buffer) => if !matches!(read, Ok(1..)) { return },
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                if stream.write_all(b"\0").await.is_err() || stream.flush().await.is_err() {
                    return;
                }
            }
        }
    }
}

#[tokio::test]
async fn bodies_of_a_byte_now_and_then() {
    let mesh = Mesh::new();
    let timing = json!({"timeouts": {"body_ms": 700}, "limits": {"min_body_bytes_per_second": 1000}});
    let target = Target::start(&mesh, timing).await;
    let worker = Worker::start(&mesh, &target);
    let slow = async |alpn: &str, path: &str| {
        let stream = target.connect(&mesh, "ct150", alpn).await;
        let (sender, body) = web::channel();
        let request = web::request(Method::POST, &format!("https://ct111.mesh{path}")).body(body).unwrap();
        let dribble = tokio::spawn(async move {
            for _ in 0..100 {
                if sender.send(web::piece("x")).is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let response = match alpn {
            "h2" => web::h2(stream).await.send_request(request).await.unwrap(),
            _ => web::Connection::over(stream).await.open(request).await.unwrap(),
        };
        (response, dribble)
    };
    for alpn in ["h2", "http/1.1"] {
        let mut answers = JoinSet::new();
        for _ in 0..20 {
            let (response, dribble) = slow(alpn, "/upload").await;
            answers.spawn(async move {
                let answer = within("the answer", Answer::read(response)).await.unwrap();
                dribble.abort();
                answer
            });
            if answers.len() == 2 {
                break;
            }
        }
        while let Some(answer) = answers.join_next().await {
            let detail = answer.unwrap().problem(408, "body_too_slow");
            assert!(detail.contains("proxy.timeouts.body_ms"), "{detail}");
        }
        // Where the answer has begun, both sides may take their time.
        let (response, _dribble) = slow(alpn, "/echo").await;
        let answer = within("the echo", Answer::read(response)).await.unwrap();
        assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 100));
    }
    worker.was_served().await;
    target.settles().await;
}

#[tokio::test]
async fn cancelled_requests() {
    let mesh = Mesh::new();
    let mut target = Target::start(&mesh, json!({})).await;
    let worker = Worker::start(&mesh, &target);
    // A burst of cancels harms nobody on the same connection.
    let mut stream = target.connect(&mesh, "ct150", "h2").await;
    let mut burst = [frames::opening(), frames::get(1, "/stream")].concat();
    for number in 1..=300 {
        burst.extend(frames::get(2 * number + 1, "/hang"));
        burst.extend(frames::cancel(2 * number + 1));
    }
    stream.write_all(&burst).await.unwrap();
    let events = target.node.agent().stream().await;
    events.send(web::piece("still here")).unwrap();
    let (mut got, mut buffer) = (Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&got).contains("still here") {
        let read = within("the stream beside them", stream.read(&mut buffer)).await.unwrap();
        assert!(read > 0, "the connection ended");
        got.extend_from_slice(&buffer[..read]);
    }
    // Without end they are an attack.
    let flood = async {
        for number in 301..100_000 {
            let stream_id = 2 * number + 1;
            let bytes = [frames::get(stream_id, "/hang"), frames::cancel(stream_id)].concat();
            if stream.write_all(&bytes).await.is_err() {
                return;
            }
            if number % 50 == 0 && stream.flush().await.is_err() {
                return;
            }
        }
        panic!("it is never cut");
    };
    within("the end of the connection", flood).await;
    target.node.proxy().wait_log(&["WARN", "cutting off peer.cn=ct150", "it cancels requests"]).await;
    worker.was_served().await;
    drop((stream, events));
    target.settles().await;
}

#[tokio::test]
async fn answers_that_nobody_reads() {
    let mesh = Mesh::new();
    let mut target = Target::start(&mesh, json!({"timeouts": {"unread_ms": 4_000}})).await;
    let worker = Worker::start(&mesh, &target);
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = target.connect(&mesh, "ct150", "h2").await;
        let mut bytes = frames::opening();
        for number in 0..250 {
            bytes.extend(frames::get(2 * number + 1, "/large"));
        }
        stream.write_all(&bytes).await.unwrap();
        held.push(stream);
    }
    for _ in 0..500 {
        let mut stream = target.connect(&mesh, "ct151", "http/1.1").await;
        stream.write_all(b"GET /large HTTP/1.1\r\nhost: ct111.mesh\r\n\r\n").await.unwrap();
        held.push(stream);
    }
    // Windows that are closed while the connection itself flows.
    let mut closed = target.connect(&mesh, "ct150", "h2").await;
    let mut bytes = frames::PREFACE.to_vec();
    bytes.extend(frames::frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]));
    bytes.extend(frames::get(1, "/large"));
    closed.write_all(&bytes).await.unwrap();
    target.node.proxy().wait_log(&["WARN", "cutting off peer.cn=ct150", "unread_ms"]).await;
    target.node.proxy().wait_log(&["WARN", "cutting off peer.cn=ct151", "unread_ms"]).await;
    // RST_STREAM for stream 1.
    let reset = frames::frame(3, 0, 1, &[])[3..].to_vec();
    let (mut got, mut buffer) = (Vec::new(), [0; 4096]);
    while !got.windows(reset.len()).any(|bytes| bytes == reset) {
        let read = within("the end of the answer that nobody takes", closed.read(&mut buffer)).await.unwrap();
        assert!(read > 0, "the connection ended");
        got.extend_from_slice(&buffer[..read]);
    }
    worker.was_served().await;
    target.is_small();
    drop((held, closed));
    target.settles().await;
}

/// Each is answered with a reset, and all of these wait for a peer that does not read.
#[tokio::test]
async fn frames_of_streams_that_are_over() {
    let mesh = Mesh::new();
    let target = Target::start(&mesh, json!({})).await;
    let worker = Worker::start(&mesh, &target);
    let mut stream = target.connect(&mesh, "ct150", "h2").await;
    // The streams before it are over with it (RFC 9113, section 5.1.1).
    stream.write_all(&[frames::opening(), frames::get(0x3fff_fff1, "/x")].concat()).await.unwrap();
    let flood = async {
        for first in (1..4_000_000).step_by(2_000) {
            let frames =
                (first..first + 2_000).step_by(2).flat_map(|number| frames::frame(0, 0, number, b"x"));
            if stream.write_all(&frames.collect::<Vec<_>>()).await.is_err() {
                return true;
            }
        }
        false
    };
    assert!(within("the end of the connection", flood).await, "two million of them are taken");
    drop(stream);
    worker.was_served().await;
    target.settles().await;
}

#[tokio::test]
async fn bodies_that_the_agent_does_not_read() {
    let mesh = Mesh::new();
    let target = Target::start(&mesh, json!({"backend": {"queue_ms": 60_000}})).await;
    let worker = Worker::start(&mesh, &target);
    let big = bytes::Bytes::from(vec![b'x'; 2 * MIB]);
    let mut uploads = JoinSet::new();
    for _ in 0..4 {
        let h2 = web::h2(target.connect(&mesh, "ct150", "h2").await).await;
        for _ in 0..200 {
            let (mut h2, big) = (h2.clone(), big.clone());
            uploads.spawn(async move {
                h2.ready().await.unwrap();
                let request =
                    web::request(Method::POST, "https://ct111.mesh/deaf").body(web::full(big)).unwrap();
                h2.send_request(request).await.map(|response| response.status())
            });
        }
    }
    // Those beyond slots and queue are told so, the rest waits.
    let refused = within("those that are refused", async {
        let mut refused = 0;
        while refused < 800 - 2 * 224 {
            let status = uploads.join_next().await.unwrap().unwrap().unwrap();
            assert_eq!(status, 503);
            refused += 1;
        }
        refused
    })
    .await;
    assert_eq!(refused, 352);
    worker.was_served().await;
    target.is_small();
    drop(uploads);
    target.settles().await;
}

#[tokio::test]
async fn event_streams_that_say_nothing() {
    let mesh = Mesh::new();
    let limits =
        json!({"backend": {"max_requests": 2, "max_queue": 2, "queue_ms": 300, "max_event_streams": 10}});
    let target = Target::start(&mesh, limits).await;
    let h2 = web::h2(target.connect(&mesh, "ct150", "h2").await).await;
    let open = async || h2.clone().send_request(get("/stream")).await.unwrap();
    let mut streams = Vec::new();
    let refused = loop {
        let response = open().await;
        if response.status() != 200 {
            break Answer::read(response).await.unwrap();
        }
        streams.push((response, target.node.agent().stream().await));
    };
    assert!((8..=10).contains(&streams.len()), "{}", streams.len());
    let detail = refused.problem(503, "agent_busy");
    assert!(detail.contains("proxy.backend.max_event_streams"), "{detail}");
    let worker = Worker::start(&mesh, &target);
    tokio::time::sleep(Duration::from_millis(500)).await;
    worker.was_served().await;
    // What is not an event stream takes a slot until its answer has ended, and others wait for it.
    let mut hanging = JoinSet::new();
    for _ in 0..2 {
        let mut h2 = h2.clone();
        hanging.spawn(async move { h2.send_request(get("/hang")).await });
    }
    eventually("both slots are taken", async || {
        let busy = target.node.get_from_peer(&mesh, "ct112", "/x").await;
        (busy.status == 503).then(|| busy.problem(503, "agent_busy"))
    })
    .await;
    let waits = tokio::spawn({
        let mut h2 = h2.clone();
        async move { h2.send_request(get("/waits")).await.unwrap().status() }
    });
    hanging.abort_all();
    let status = within("the request that waited", waits).await.unwrap();
    assert!(status == 200 || status == 503, "{status}");
    eventually("the slots are free again", async || {
        (target.node.get_from_peer(&mesh, "ct112", "/x").await.status == 200).then_some(())
    })
    .await;
    drop((streams, hanging, h2));
    target.settles().await;
}

#[tokio::test]
async fn a_peer_that_may_not_come_in_holds_nothing() {
    let mesh = Mesh::new();
    let limits = json!({"limits": {"max_connections": 8}, "policy": {"deny": ["ct150"]}});
    let mut target = Target::start(&mesh, limits).await;
    let worker = Worker::start(&mesh, &target);
    let mut held = Vec::new();
    for number in 0..40 {
        let alpn = if number % 2 == 0 { "h2" } else { "http/1.1" };
        held.push(target.connect(&mesh, "ct150", alpn).await);
    }
    target.node.proxy().wait_log(&["WARN", "refusing peer.cn=ct150", "proxy.policy"]).await;
    worker.was_served().await;
    // One that asks at once is told why, when the silent ones are gone.
    eventually("it is told why", async || {
        let client = Client::new(&mesh.ca, &mesh.ca.node("ct150")).alpn(&["http/1.1"]);
        let stream = client.connect(target.node.inbound(), "ct111").await.ok()?;
        let response = web::Connection::over(stream).await.open(get("/x")).await.ok()?;
        Some(Answer::read(response).await.unwrap().problem(403, "peer_not_allowed"))
    })
    .await;
    target.settles().await;
    assert_eq!(held.len(), 40);
}

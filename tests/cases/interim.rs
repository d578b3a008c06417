//! Interim answers (1xx; RFC 9110, section 15.2): the agent's own reach the caller, and the caller's body is not asked for
//! before the agent wants it.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::tls::Client;
use mesh_tests::{loopback, process, web, within};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

const HEAD: &str = "\r\n\r\n";

/// A connection that the test reads and writes.
struct Wire<S> {
    stream: S,
    read: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    fn new(stream: S) -> Self {
        Self { stream, read: Vec::new() }
    }

    async fn write(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// What comes up to and with `end`; `None`: the connection ends before.
    async fn read_to(&mut self, end: &str) -> Option<String> {
        loop {
            if let Some(at) = process::text(&self.read).find(end) {
                let rest = self.read.split_off(at + end.len());
                return Some(process::text(&std::mem::replace(&mut self.read, rest)));
            }
            if self.stream.read_buf(&mut self.read).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn until(&mut self, end: &str) -> String {
        within(end, self.read_to(end))
            .await
            .unwrap_or_else(|| panic!("closed: {}", process::text(&self.read)))
    }

    /// Nothing comes for a while.
    async fn is_silent(&mut self) {
        let came = timeout(Duration::from_millis(700), self.stream.read_buf(&mut self.read)).await;
        assert!(came.is_err(), "this came: {}", process::text(&self.read));
    }
}

/// The agent of ct111: each request with its head, on the connection on which it came.
struct ByHand {
    asked: mpsc::UnboundedReceiver<(String, Wire<TcpStream>)>,
    _serving: JoinSet<()>,
}

impl ByHand {
    async fn start(node: &Node) -> Self {
        let listener = loopback::listen(node.backend()).await;
        let (give, asked) = mpsc::unbounded_channel();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (give, mut wire) = (give.clone(), Wire::new(stream));
                connections.spawn(async move {
                    if let Some(head) = wire.read_to(HEAD).await {
                        let _ = give.send((head, wire));
                    }
                });
            }
        });
        Self { asked, _serving: serving }
    }

    async fn asked(&mut self) -> (String, Wire<TcpStream>) {
        within("a request", self.asked.recv()).await.unwrap()
    }
}

async fn start(mesh: &Mesh) -> (Node, Node, ByHand) {
    let mut far = mesh.node("ct111").prepare().await;
    let agent = ByHand::start(&far).await;
    far.start_registryd().await;
    far.start_proxy().await;
    let near = mesh.start("ct110", "opus").await;
    near.reaches("ct111").await;
    (near, far, agent)
}

const UPLOAD: &str =
    "POST /nodes/ct111/x HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
const EARLY: &str =
    "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\nx-mesh-peer-cn: forged\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn the_agent_says_when_the_upload_may_begin() {
    let mesh = Mesh::new();
    let (near, _far, mut agent) = start(&mesh).await;
    let mut caller = Wire::new(TcpStream::connect(near.outbound()).await.unwrap());
    for round in 0..2 {
        caller.write(UPLOAD).await;
        let (head, mut wire) = agent.asked().await;
        assert!(head.contains("expect: 100-continue\r\n"), "{head}");
        // Neither sidecar says it in the agent's place.
        caller.is_silent().await;
        wire.write("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(caller.until(HEAD).await, "HTTP/1.1 100 Continue\r\n\r\n", "round {round}");
        caller.write("hello").await;
        wire.until("hello").await;
        wire.write("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
        let head = caller.until(HEAD).await;
        assert!(head.starts_with("HTTP/1.1 200 ") && !head.contains("connection: close"), "{head}");
        caller.until("ok").await;
    }
}

#[tokio::test]
async fn an_agent_that_refuses_is_spared_the_upload() {
    let mesh = Mesh::new();
    let (near, _far, mut agent) = start(&mesh).await;
    let mut caller = Wire::new(TcpStream::connect(near.outbound()).await.unwrap());
    caller.write(UPLOAD).await;
    let (_, mut wire) = agent.asked().await;
    wire.write("HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno").await;
    let head = caller.until(HEAD).await;
    // The caller, which sends no body now, must not take the connection for the next request.
    assert!(head.starts_with("HTTP/1.1 413 ") && head.contains("connection: close\r\n"), "{head}");
    caller.until("no").await;
    assert!(within("the end", caller.read_to("any")).await.is_none());
    assert!(wire.read.is_empty(), "{}", process::text(&wire.read));
    // The sidecar's own refusals as well.
    let mut caller = Wire::new(TcpStream::connect(near.outbound()).await.unwrap());
    caller.write(&UPLOAD.replace("ct111", "ct199")).await;
    let head = caller.until(HEAD).await;
    assert!(head.starts_with("HTTP/1.1 404 ") && head.contains("connection: close\r\n"), "{head}");
}

#[tokio::test]
async fn an_agent_that_says_nothing_gets_the_upload_after_a_while() {
    let mesh = Mesh::new();
    let (near, _far, mut agent) = start(&mesh).await;
    let mut caller = Wire::new(TcpStream::connect(near.outbound()).await.unwrap());
    caller.write(UPLOAD).await;
    let (_, mut wire) = agent.asked().await;
    caller.until("HTTP/1.1 100 Continue\r\n\r\n").await;
    caller.write("hello").await;
    wire.until("hello").await;
    wire.write(OK).await;
    caller.until("ok").await;
}

#[tokio::test]
async fn early_hints_reach_every_kind_of_caller_before_the_answer() {
    let mesh = Mesh::new();
    let (near, far, mut agent) = start(&mesh).await;
    let check = |head: &str| {
        assert!(head.starts_with("HTTP/1.1 103 ") && head.contains("link: </style.css>"), "{head}");
        assert!(!head.contains("x-mesh-"), "{head}");
    };
    let hints = async |caller: &mut Wire<TcpStream>, agent: &mut ByHand, at_once: bool| {
        caller.write("GET /nodes/ct111/x HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        let (_, mut wire) = agent.asked().await;
        if at_once {
            wire.write(&[EARLY, EARLY, OK].concat()).await;
        } else {
            wire.write(EARLY).await;
            check(&caller.until(HEAD).await);
            wire.write(&[EARLY, OK].concat()).await;
        }
        if at_once {
            check(&caller.until(HEAD).await);
        }
        check(&caller.until(HEAD).await);
        let head = caller.until(HEAD).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        caller.until("ok").await;
    };
    let mut caller = Wire::new(TcpStream::connect(near.outbound()).await.unwrap());
    for at_once in [false, true, false, true] {
        hints(&mut caller, &mut agent, at_once).await;
    }
    // HTTP/1.0 knows nothing of them.
    caller.write("GET /nodes/ct111/x HTTP/1.0\r\nhost: localhost\r\n\r\n").await;
    let (_, mut wire) = agent.asked().await;
    wire.write(&[EARLY, OK].concat()).await;
    let head = caller.until(HEAD).await;
    assert!(head.starts_with("HTTP/1.0 200 "), "{head}");

    // A peer that speaks HTTP/1.1.
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct112")).alpn(&["http/1.1"]);
    let mut peer = Wire::new(client.connect(far.inbound(), "ct111").await.unwrap());
    peer.write("GET /x HTTP/1.1\r\nhost: ct111.mesh\r\n\r\n").await;
    let (_, mut wire) = agent.asked().await;
    wire.write(&[EARLY, OK].concat()).await;
    check(&peer.until(HEAD).await);
    assert!(peer.until(HEAD).await.starts_with("HTTP/1.1 200 "));

    // A program that speaks HTTP/2.
    let stream = TcpStream::connect(near.outbound()).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut sender = within("room for a request", sender.ready()).await.unwrap();
    let ask = Request::post("http://localhost/nodes/ct111/x").header("expect", "100-continue");
    let (mut answer, mut body) = sender.send_request(ask.body(()).unwrap(), false).unwrap();
    let (_, mut wire) = agent.asked().await;
    wire.write(EARLY).await;
    let early = async |answer: &mut h2::client::ResponseFuture| {
        let early = std::future::poll_fn(|context| answer.poll_informational(context));
        within("an interim answer", early).await.unwrap().unwrap().status()
    };
    assert_eq!(early(&mut answer).await, 103);
    wire.write("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(early(&mut answer).await, 100);
    body.send_data(Bytes::from_static(b"hello"), true).unwrap();
    wire.until("hello").await;
    wire.write(OK).await;
    assert_eq!(within("an answer", answer).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_program_that_never_waits_is_served_as_ever() {
    let mesh = Mesh::new();
    let (near, _far) = mesh.pair().await;
    let mut caller = Wire::new(TcpStream::connect(near.outbound()).await.unwrap());
    // The example agent's server says 100 when it reads the body, as most do.
    for _ in 0..3 {
        caller.write(&UPLOAD.replace("/x ", "/trailers ")).await;
        caller.write("hello").await;
        let head = caller.until(HEAD).await;
        let head = if head.starts_with("HTTP/1.1 100 ") { caller.until(HEAD).await } else { head };
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let body = caller.until(HEAD).await;
        assert!(body.contains("hello"), "{body}");
    }
    // registryd's answers need no body.
    let answer = web::send(
        near.outbound(),
        web::request(http::Method::GET, "/mesh/nodes")
            .header("expect", "100-continue")
            .body(web::empty())
            .unwrap(),
    )
    .await;
    assert_eq!(answer.status, 200);
}

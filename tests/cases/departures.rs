//! A caller that goes away before its answer is whole: the work behind ends at once, and nobody else's does.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, Request};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tests::agent::Example;
use mesh_tests::loopback;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::text;
use mesh_tests::tls::PeerOptions;
use mesh_tests::web::{self, Body};
use mesh_tests::{eventually, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// The work ends within a second; a busy machine gets more.
const AT_ONCE: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy)]
enum Caller {
    /// HTTP/1.1, with a connection for the request.
    Http1,
    /// HTTP/2, whose whole connection goes.
    Http2,
    /// HTTP/2, which resets the request's stream.
    Stream,
}

const CALLERS: [Caller; 3] = [Caller::Http1, Caller::Http2, Caller::Stream];

/// A request of a caller, which goes with it.
enum Call {
    Http1(TcpStream),
    Http2 {
        driving: JoinHandle<()>,
        sender: http2::SendRequest<Body>,
        answering: JoinHandle<Incoming>,
        closes: bool,
    },
}

impl Call {
    async fn begin(caller: Caller, outbound: SocketAddr, target: &str) -> Self {
        let mut stream = TcpStream::connect(outbound).await.unwrap();
        let closes = match caller {
            Caller::Http1 => {
                let head = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                return Self::Http1(stream);
            }
            Caller::Http2 => true,
            Caller::Stream => false,
        };
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        let driving = tokio::spawn(async move { drop(connection.await) });
        let request = get(target);
        let answer = sender.send_request(request);
        let answering = tokio::spawn(async move { answer.await.unwrap().into_body() });
        Self::Http2 { driving, sender, answering, closes }
    }

    /// Reads until this has come of the answer's body.
    async fn reads(&mut self, piece: &str) {
        match self {
            Self::Http1(stream) => {
                let mut read = Vec::new();
                while !read.windows(piece.len()).any(|bytes| bytes == piece.as_bytes()) {
                    let more = within("a piece of the answer", stream.read_buf(&mut read)).await.unwrap();
                    assert_ne!(more, 0, "the answer ended");
                }
            }
            Self::Http2 { answering, .. } => {
                let mut body = within("the answer", &mut *answering).await.unwrap();
                web::expect_data(&mut body, piece).await;
                *answering = tokio::spawn(async move { body });
            }
        }
    }

    /// Goes away. A connection that stays serves another request.
    async fn goes(self, other: &str) {
        match self {
            Self::Http1(stream) => drop(stream),
            Self::Http2 { driving, answering, closes: true, .. } => {
                driving.abort();
                answering.abort();
            }
            Self::Http2 { mut sender, answering, .. } => {
                answering.abort();
                drop(answering.await);
                assert_eq!(
                    within("another answer", sender.send_request(get(other))).await.unwrap().status(),
                    200
                );
            }
        }
    }
}

fn get(target: &str) -> Request<Body> {
    web::request(Method::GET, &format!("http://localhost{target}")).body(web::empty()).unwrap()
}

async fn at_once(what: &str, ending: impl Future<Output = ()>) {
    let ended = tokio::time::timeout(AT_ONCE, ending).await;
    assert!(ended.is_ok(), "{what} did not end within {AT_ONCE:?}");
}

/// Each kind of caller goes away before the answer of `far` and in the middle of it; another one stays.
async fn all_leave(node: &Node, name: &str, far: &Example) {
    let target = |path: &str| format!("/nodes/{name}{path}");
    let (staying, its_answer) =
        tokio::join!(web::open(node.outbound(), get(&target("/stream"))), far.stream());
    let mut staying = staying.unwrap();
    for caller in CALLERS {
        let before = far.requests().len();
        let call = Call::begin(caller, node.outbound(), &target("/hang")).await;
        eventually("the request arrives", async || (far.requests().len() > before).then_some(())).await;
        call.goes(&target("/x")).await;
        at_once(&format!("the work for {caller:?}, not answered yet,"), far.gone()).await;

        let mut call = Call::begin(caller, node.outbound(), &target("/stream")).await;
        let answer = far.stream().await;
        answer.send(web::piece("begun")).unwrap();
        call.reads("begun").await;
        call.goes(&target("/x")).await;
        at_once(&format!("the answer to {caller:?}"), answer.closed()).await;

        its_answer.send(web::piece("for you")).unwrap();
        web::expect_data(staying.body_mut(), "for you").await;
    }
    drop(its_answer);
    assert_eq!(web::next_data(staying.body_mut()).await, None);
}

#[tokio::test]
async fn the_far_agents_work_ends_with_its_caller() {
    let mesh = Mesh::new();
    let (node, far) = mesh.pair().await;
    all_leave(&node, "ct111", far.agent()).await;
}

#[tokio::test]
async fn so_does_the_work_of_a_peer_that_speaks_only_http_1_1() {
    let mesh = Mesh::new();
    let options = PeerOptions { alpn: vec!["http/1.1"], ..PeerOptions::good(&mesh.ca, "ct150") };
    let (peer, _address) = mesh.peer_with("ct150", &[], options).await;
    let node = mesh.start("ct110", "opus").await;
    node.reaches("ct150").await;
    all_leave(&node, "ct150", &peer.example).await;
}

#[tokio::test]
async fn a_caller_may_go_in_the_middle_of_its_own_request() {
    let mesh = Mesh::new();
    let mut far = mesh.node("ct111").prepare().await;
    let agent = loopback::listen(far.backend()).await;
    far.start_registryd().await;
    far.start_proxy().await;
    let node = mesh.start("ct110", "opus").await;
    node.reaches("ct111").await;
    for http2 in [false, true] {
        let stream = TcpStream::connect(node.outbound()).await.unwrap();
        let (sender, body) = web::channel();
        sender.send(web::piece("the beginning of a task")).unwrap();
        let request = web::request(Method::POST, "http://localhost/nodes/ct111/x");
        let request = request.header("host", "localhost").body(body).unwrap();
        let call = tokio::spawn(async move {
            match http2 {
                true => web::h2(stream).await.send_request(request).await.map(drop),
                false => web::Connection::over(stream).await.open(request).await.map(drop),
            }
        });
        let (mut at_agent, mut read) = within("the beginning of the task", async {
            let (mut at_agent, mut read) = (agent.accept().await.unwrap().0, Vec::new());
            while !text(&read).contains("the beginning of a task") {
                if at_agent.read_buf(&mut read).await.unwrap() == 0 {
                    // It was only to see whether the agent is there.
                    at_agent = agent.accept().await.unwrap().0;
                }
            }
            (at_agent, read)
        })
        .await;
        call.abort();
        at_once("the connection to the agent", async {
            read.clear();
            // Reset or ended, it is over; what came so far is not taken for the whole.
            let _ = at_agent.read_to_end(&mut read).await;
        })
        .await;
        assert_eq!(text(&read), "", "HTTP/2: {http2}");
        drop(sender);
    }
}

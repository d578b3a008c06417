//! Where this host's agents listen and what they speak: both loopbacks, unix sockets, a server for each agent, HTTP/2.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tests::agent::{Agent, Example};
use mesh_tests::mesh::{Mesh, Node, Plan};
use mesh_tests::recorder::Recorder;
use mesh_tests::tls::Client;
use mesh_tests::web::{self, Answer, Connection};
use mesh_tests::{eventually, loopback, process, within};
use serde_json::json;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{JoinHandle, JoinSet};

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> Box<dyn Stream> {
        match self {
            Self::Tcp(listener) => Box::new(listener.accept().await.unwrap().0),
            Self::Unix(listener) => Box::new(listener.accept().await.unwrap().0),
        }
    }
}

#[derive(Clone, Copy)]
enum Speaks {
    Http1,
    /// HTTP/2 and nothing else, so many requests at once on a connection.
    Http2(u32),
}

/// An example agent that listens anywhere and speaks one protocol.
struct Serving {
    example: Arc<Example>,
    task: JoinHandle<()>,
}

impl Serving {
    async fn tcp(address: SocketAddr, name: &str, speaks: Speaks) -> Self {
        Self::on(Listener::Tcp(loopback::listen(address).await), name, speaks)
    }

    fn unix(path: &Path, name: &str, speaks: Speaks) -> Self {
        let _ = std::fs::remove_file(path);
        Self::on(Listener::Unix(UnixListener::bind(path).unwrap()), name, speaks)
    }

    fn on(listener: Listener, name: &str, speaks: Speaks) -> Self {
        let example = Example::new(name);
        let shared = example.clone();
        let task = tokio::spawn(async move {
            // Aborts its tasks when it is dropped.
            let mut connections = JoinSet::new();
            loop {
                let io = TokioIo::new(listener.accept().await);
                shared.connected();
                let example = shared.clone();
                let service = service_fn(move |request| example.clone().answer(request));
                let served: Pin<Box<dyn Future<Output = ()> + Send>> = match speaks {
                    Speaks::Http1 => {
                        let connection = http1::Builder::new().serve_connection(io, service);
                        Box::pin(async move { drop(connection.with_upgrades().await) })
                    }
                    Speaks::Http2(most) => {
                        let mut server = http2::Builder::new(TokioExecutor::new());
                        let connection = server.max_concurrent_streams(most).serve_connection(io, service);
                        Box::pin(async move { drop(connection.await) })
                    }
                };
                connections.spawn(served);
            }
        });
        Self { example, task }
    }

    /// Ends it: afterwards its address is free and its connections are closed.
    async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A node whose sidecar runs alone, with this `proxy.backend`.
async fn sidecar(plan: Plan, backend: serde_json::Value) -> Node {
    let plan = plan.with(|config| {
        for (key, value) in backend.as_object().unwrap() {
            config["proxy"]["backend"][key] = value.clone();
        }
    });
    let mut node = plan.prepare().await;
    node.start_proxy().await;
    node
}

async fn post(node: &Node, mesh: &Mesh, target: &str, body: &str) -> Answer {
    let request = web::request(Method::POST, target).body(web::full(body.to_owned())).unwrap();
    node.from_peer(mesh, "ct111", request).await
}

#[tokio::test]
async fn an_agent_on_a_unix_socket_is_reached_and_may_come_later() {
    let mesh = Mesh::new();
    let socket = mesh.folder().join("opus.sock");
    let address = format!("unix:{}", socket.display());
    let node = sidecar(mesh.node("ct110"), json!({"address": address})).await;
    let checked = || process::text(&node.command("mesh-proxy").arg("check").output().unwrap().stdout);
    assert!(
        checked().contains(&format!("skip backend {address} is a unix socket: not there yet")),
        "{}",
        checked()
    );
    let detail = node.get_from_peer(&mesh, "ct111", "/x").await.problem(502, "backend_unreachable");
    assert!(detail.contains(&address), "{detail}");

    let agent = Serving::unix(&socket, "opus", Speaks::Http1);
    assert!(checked().contains(&format!("ok   backend {address} is a unix socket: this user can connect")));
    assert_eq!(node.get_from_peer(&mesh, "ct111", "/x").await.text(), "GET /x");
    assert_eq!(post(&node, &mesh, "/echo", "hello").await.text(), "hello");
    assert_eq!(agent.example.last().all("x-mesh-peer-cn"), ["ct111"]);
    agent.stop().await;
    let _agent = Serving::unix(&socket, "opus", Speaks::Http2(100));
    eventually("the agent is reached again", async || {
        (post(&node, &mesh, "/echo", "again").await.text() == "again").then_some(())
    })
    .await;
}

#[tokio::test]
async fn localhost_is_either_loopback() {
    let mesh = Mesh::new();
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let _agent = Serving::on(Listener::Tcp(listener), "opus", Speaks::Http1);
    let node = sidecar(mesh.node("ct110"), json!({"address": format!("localhost:{port}")})).await;
    assert_eq!(node.get_from_peer(&mesh, "ct111", "/x").await.header("x-agent"), Some("opus"));
}

#[tokio::test]
async fn each_agent_of_a_host_has_its_own_server_and_its_own_slots() {
    let mesh = Mesh::new();
    let one = mesh.start("ct110", "opus").await;
    let plan = mesh.node("ct111").agent("grok");
    let socket = mesh.folder().join("haiku.sock");
    let sonnet = SocketAddr::new(plan.ip(), 8081);
    let two = plan.with(|config| {
        config["registryd"]["agents"] = json!(["grok", "haiku", "sonnet"]);
        let backend = &mut config["proxy"]["backend"];
        backend["agents"] = json!({
            "haiku": {"address": format!("unix:{}", socket.display()), "protocol": "h2c"},
            "sonnet": {"address": sonnet.to_string()},
        });
        backend["max_requests"] = json!(1);
        backend["max_queue"] = json!(0);
    });
    let _haiku = Serving::unix(&socket, "haiku", Speaks::Http2(100));
    let sonnet = Serving::tcp(sonnet, "sonnet", Speaks::Http1).await;
    let _two = two.start().await;
    one.reaches("ct111").await;
    for agent in ["grok", "haiku", "sonnet"] {
        let target = format!("/agents/{agent}/x");
        eventually(&format!("{agent} is reached"), async || {
            (one.get(&target).await.header("x-agent") == Some(agent)).then_some(())
        })
        .await;
    }
    assert_eq!(one.get("/nodes/ct111/x").await.header("x-agent"), Some("grok"), "it comes first");

    let outbound = one.outbound();
    // Again, where the slot of the request before was not free yet.
    let hanging = tokio::spawn(async move {
        loop {
            drop(web::open(outbound, web::get_with("/agents/sonnet/hang", &[])).await);
        }
    });
    one.comes_to("/agents/sonnet/x", Some("agent_busy")).await;
    for agent in ["grok", "haiku"] {
        assert_eq!(one.get(&format!("/agents/{agent}/x")).await.header("x-agent"), Some(agent));
    }
    hanging.abort();
    sonnet.example.gone().await;
    one.comes_to("/agents/sonnet/x", None).await;
}

#[tokio::test]
async fn an_agent_that_speaks_http2_only_is_found_out_and_gets_each_request_once_and_whole() {
    let mesh = Mesh::new();
    for (name, protocol) in [("ct112", "auto"), ("ct113", "h2c")] {
        let node = sidecar(mesh.node(name), json!({"protocol": protocol})).await;
        let agent = Serving::tcp(node.backend(), "opus", Speaks::Http2(100)).await;
        let body = "x".repeat(40_000);
        for round in 1..=3 {
            let answer = post(&node, &mesh, "/echo", &body).await;
            assert!(answer.status == 200 && answer.text() == body, "{protocol}: {answer:?}");
            assert_eq!(agent.example.requests().len(), round, "{protocol}");
        }
        assert_eq!(node.get_from_peer(&mesh, "ct111", "/a?b").await.text(), "GET /a?b");
        let seen = agent.example.last();
        assert_eq!(seen.all("x-mesh-peer-cn"), ["ct111"]);
        assert!(seen.all("transfer-encoding").is_empty() && seen.all("connection").is_empty(), "{seen:?}");
        // One that finds out, one that is shared, and those with which the sidecar looks whether it is up.
        assert!(agent.example.connections() < 10, "{protocol}");
    }
}

#[tokio::test]
async fn a_large_body_comes_first_and_is_whole_whatever_the_agent_speaks() {
    let mesh = Mesh::new();
    let whole: Vec<u8> = (0..3 << 20).map(|i| (i / 1000) as u8).collect();
    for (name, announced, speaks) in [
        ("ct112", true, Speaks::Http2(100)),
        ("ct113", false, Speaks::Http2(100)),
        ("ct114", true, Speaks::Http1),
        ("ct115", false, Speaks::Http1),
    ] {
        let node = sidecar(mesh.node(name), json!({})).await;
        let agent = Serving::tcp(node.backend(), "opus", speaks).await;
        for _ in 0..3 {
            let (sender, unannounced) = web::channel();
            let body = match announced {
                true => web::full(whole.clone()),
                false => {
                    for piece in whole.chunks(50_000) {
                        sender.send(web::piece(piece.to_vec())).unwrap();
                    }
                    unannounced
                }
            };
            drop(sender);
            let request = web::request(Method::POST, "/echo").body(body).unwrap();
            let answer = node.from_peer(&mesh, "ct111", request).await;
            assert_eq!(answer.status, 200, "{name}: {}", answer.text());
            assert!(answer.body == whole, "{name}: another body came back");
        }
        assert_eq!(agent.example.requests().len(), 3, "{name}: each of them once");
    }
}

#[tokio::test]
async fn http1_is_never_tried_or_always_where_that_is_said() {
    let mesh = Mesh::new();
    let node = sidecar(mesh.node("ct112"), json!({"protocol": "http1"})).await;
    let _agent = Serving::tcp(node.backend(), "opus", Speaks::Http2(100)).await;
    node.get_from_peer(&mesh, "ct111", "/x").await.problem(502, "backend_failed");

    let node = sidecar(mesh.node("ct113"), json!({"protocol": "h2c"})).await;
    let _agent = Serving::tcp(node.backend(), "opus", Speaks::Http1).await;
    let detail = node.get_from_peer(&mesh, "ct111", "/x").await.problem(502, "backend_failed");
    // Either it is read that the answer is no HTTP/2, or the server closes first.
    assert!(!detail.is_empty());
    let request = web::get_with("/x", &[("connection", "upgrade"), ("upgrade", "websocket")]);
    let answer =
        Client::new(&mesh.ca, &mesh.ca.node("ct111")).http(node.inbound(), "ct113").await.open(request).await;
    assert_eq!(answer.unwrap().status(), 101, "an upgrade goes by HTTP/1.1");
}

#[tokio::test]
async fn an_agent_that_speaks_http1_notices_nothing() {
    let mesh = Mesh::new();
    let node = sidecar(mesh.node("ct110"), json!({"protocol": "auto"})).await;
    let agent = Recorder::start(node.backend()).await;
    for target in ["/a", "/b", "/c"] {
        assert_eq!(node.get_from_peer(&mesh, "ct111", target).await.text(), format!("GET {target}"));
        assert_eq!(post(&node, &mesh, target, "body").await.text(), format!("POST {target}"));
    }
    let record = agent.take();
    assert!(record.wrong.is_empty() && record.cut.is_empty(), "{record:?}");
    assert_eq!(record.requests.len(), 6);
    assert!(record.requests.iter().all(|seen| seen.method == "GET" || seen.body == b"body"), "{record:?}");
}

#[tokio::test]
async fn grpc_goes_by_http2_untold_with_its_trailers() {
    let mesh = Mesh::new();
    let node = sidecar(mesh.node("ct110"), json!({})).await;
    let agent = Serving::tcp(node.backend(), "opus", Speaks::Http2(100)).await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111")).alpn(&["h2"]);
    let mut h2 = web::h2(client.connect(node.inbound(), "ct110").await.unwrap()).await;
    let request = web::request(Method::POST, "https://ct110.mesh/trailers")
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers")
        .body(web::full("message"))
        .unwrap();
    let answer = within("answer", h2.send_request(request)).await.unwrap();
    let answer = Answer::read(answer).await.unwrap();
    assert_eq!(answer.text(), "message");
    assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
    let seen = agent.example.last();
    assert_eq!(seen.all("te"), ["trailers"]);
}

#[tokio::test]
async fn an_agent_may_be_replaced_by_one_that_speaks_the_other_protocol() {
    let mesh = Mesh::new();
    let node = sidecar(mesh.node("ct110"), json!({})).await;
    for (round, speaks) in
        [Speaks::Http1, Speaks::Http2(100), Speaks::Http1, Speaks::Http2(100)].into_iter().enumerate()
    {
        let agent = Serving::tcp(node.backend(), "opus", speaks).await;
        let body = format!("round {round}");
        // The first one may meet the end of a connection to the agent before.
        eventually(&body, async || (post(&node, &mesh, "/echo", &body).await.text() == body).then_some(()))
            .await;
        for _ in 0..3 {
            assert_eq!(post(&node, &mesh, "/echo", &body).await.text(), body);
        }
        agent.stop().await;
    }
}

#[tokio::test]
async fn no_more_is_sent_on_an_http2_connection_than_the_agent_allows() {
    let mesh = Mesh::new();
    let node = sidecar(mesh.node("ct110"), json!({"protocol": "h2c"})).await;
    let agent = Serving::tcp(node.backend(), "opus", Speaks::Http2(1)).await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111")).alpn(&["h2"]);
    let h2 = web::h2(client.connect(node.inbound(), "ct110").await.unwrap()).await;
    let mut asked = JoinSet::new();
    for _ in 0..17 {
        let mut h2 = h2.clone();
        asked.spawn(async move {
            h2.send_request(web::get_with("https://ct110.mesh/stream", &[])).await.unwrap()
        });
    }
    let mut streams = Vec::new();
    let mut answers = Vec::new();
    for _ in 0..16 {
        streams.push(agent.example.stream().await);
        answers.push(within("an answer", asked.join_next()).await.unwrap().unwrap());
    }
    assert!(answers.iter().all(|answer| answer.status() == 200));
    // With those by which the sidecar looks whether the agent is up.
    assert!(agent.example.connections() >= 16, "one for each request that the agent allows");
    assert_eq!(agent.example.requests().len(), 16, "the last one waits");
    drop(streams.pop());
    streams.push(agent.example.stream().await);
    answers.push(within("the last answer", asked.join_next()).await.unwrap().unwrap());
    assert_eq!(answers[16].status(), 200);
}

#[tokio::test]
async fn a_read_on_a_connection_that_breaks_is_sent_again_and_work_is_not() {
    let mesh = Mesh::new();
    let node = sidecar(mesh.node("ct110"), json!({})).await;
    let listener = loopback::listen(node.backend()).await;
    let resets = Arc::new(AtomicUsize::new(0));
    let counted = resets.clone();
    // Answers the first request on each connection and resets it with the second one.
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut head = [0; 4096];
                if let Ok(1..) = stream.read(&mut head).await {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                    if let Ok(1..) = stream.read(&mut head).await {
                        counted.fetch_add(1, Ordering::SeqCst);
                        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                    }
                }
            });
        }
    });
    let mut connection: Connection =
        Client::new(&mesh.ca, &mesh.ca.node("ct111")).http(node.inbound(), "ct110").await;
    while resets.load(Ordering::SeqCst) < 3 {
        for method in [Method::GET, Method::HEAD] {
            let answer = connection.send(web::request(method, "/x").body(web::empty()).unwrap()).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            // The connection to the agent is put back a moment after its answer.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    eventually("work meets a connection that breaks", async || {
        let answer = post(&node, &mesh, "/x", "").await;
        (answer.header("x-mesh-error") == Some("backend_failed")).then_some(())
    })
    .await;
    server.abort();
    let _ = server.await;
    let _agent = Agent::start(node.backend(), "opus").await;
    eventually("another agent is reached", async || {
        (node.get_from_peer(&mesh, "ct111", "/x").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_does_not_answer_is_named() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").agent("opus");
    let grok = SocketAddr::new(plan.ip(), 8081);
    let node = plan
        .with(|config| {
            config["registryd"]["agents"] = json!(["opus", "grok"]);
            config["proxy"]["backend"]["agents"] = json!({"grok": {"address": grok.to_string()}});
        })
        .start()
        .await;
    let told = async || node.local("/v1/status").await.unwrap().json();
    eventually("grok is named, and nobody else", async || {
        let status = told().await;
        let problems = status["problems"].to_string();
        (status["status"] == "degraded" && problems.contains("agent grok does not answer"))
            .then(|| assert!(!problems.contains("opus"), "{problems}"))
    })
    .await;
    eventually("others can read it", async || {
        (mesh.entry("ct110")?["metadata"]["mesh"]["agentsDown"] == json!(["grok"])).then_some(())
    })
    .await;
    let _grok = Serving::tcp(grok, "grok", Speaks::Http1).await;
    eventually("nothing is wrong", async || {
        let entry = mesh.entry("ct110")?;
        let well = entry["status"] == "online" && entry["metadata"]["mesh"].get("agentsDown").is_none();
        (well && told().await["problems"] == json!([])).then_some(())
    })
    .await;
}

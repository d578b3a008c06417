//! From agent to agent through both sidecars: delegations, streams, upgrades, large bodies, trailers.

use http::{Method, Request};
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::text;
use mesh_tests::web::{self, Answer};
use mesh_tests::{eventually, within};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_delegation_goes_from_opus_to_grok_and_back() {
    let mesh = Mesh::new();
    let (one, mut two) = mesh.pair().await;
    let task = json!({"fromAgent": "opus", "message": "Summarise the news", "waitForResponse": true, "timeoutMs": 60000});
    for target in ["/agents/grok/api/message", "/nodes/ct111/api/message", "http://ct111.mesh/api/message"] {
        let answer = one.post(target, &task).await;
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        assert_eq!(answer.json()["response"], "grok heard: Summarise the news");
        assert_eq!(answer.json()["agent"], "grok");
        let seen = two.agent().last();
        assert_eq!(
            (seen.target.as_str(), seen.all("x-mesh-peer-cn")),
            ("/api/message", vec!["ct110".to_owned()])
        );
    }
    two.proxy()
        .wait_log(&["INFO [AgentChannel] Received mesh delegation peer.cn=ct110 from opus → grok: Summarise the news status=200"])
        .await;
}

#[tokio::test]
async fn server_sent_events_arrive_chunk_by_chunk() {
    let mesh = Mesh::new();
    let (one, two) = mesh.pair().await;
    let request = web::request(Method::GET, "/agents/grok/stream").header("accept", "text/event-stream");
    let request = request.body(web::empty()).unwrap();
    let (response, stream) = tokio::join!(web::open(one.outbound(), request), two.agent().stream());
    let mut response = response.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    for i in 0..20 {
        let event = format!("id: {i}\ndata: {{\"token\": \"wörd\"}}\n\n");
        stream.send(web::piece(event.clone())).unwrap();
        // The next event is made only when this one has arrived.
        web::expect_data(response.body_mut(), &event).await;
    }
    drop(stream);
    assert_eq!(web::next_data(response.body_mut()).await, None);
}

#[tokio::test]
async fn a_reader_that_leaves_a_stream_ends_it_at_the_far_agent() {
    let mesh = Mesh::new();
    let (one, two) = mesh.pair().await;
    let request = web::request(Method::GET, "/nodes/ct111/stream").body(web::empty()).unwrap();
    let (response, stream) = tokio::join!(web::open(one.outbound(), request), two.agent().stream());
    drop(response);
    within("the far agent's stream closes", stream.closed()).await;
}

#[tokio::test]
async fn a_slow_upload_arrives_piece_by_piece() {
    let mesh = Mesh::new();
    let (one, two) = mesh.pair().await;
    let (sender, body) = web::channel();
    let request = web::request(Method::POST, "/nodes/ct111/upload").body(body).unwrap();
    let outbound = one.outbound();
    let exchange = tokio::spawn(async move { web::send(outbound, request).await });
    for i in 0..20 {
        let part = format!("part {i};");
        sender.send(web::piece(part.clone())).unwrap();
        assert_eq!(two.agent().upload().await.map(|data| text(&data)), Some(part));
    }
    drop(sender);
    assert_eq!(exchange.await.unwrap().text(), "uploaded");
}

#[tokio::test]
async fn a_body_streams_both_ways_at_once() {
    let mesh = Mesh::new();
    let (one, _two) = mesh.pair().await;
    let (sender, body) = web::channel();
    let request = web::request(Method::POST, "/nodes/ct111/echo").body(body).unwrap();
    sender.send(web::piece("0")).unwrap();
    let mut response = web::open(one.outbound(), request).await.unwrap();
    web::expect_data(response.body_mut(), "0").await;
    for part in ["one", "two", "three"] {
        sender.send(web::piece(part)).unwrap();
        web::expect_data(response.body_mut(), part).await;
    }
    drop(sender);
    assert_eq!(web::next_data(response.body_mut()).await, None);
}

#[tokio::test]
async fn ten_megabytes_pass_and_one_byte_more_does_not() {
    let mesh = Mesh::new();
    let (one, two) = mesh.pair().await;
    let limit = 10 * 1024 * 1024;
    let content: Vec<u8> = (0..limit).map(|i| (i % 249) as u8).collect();
    let request = web::request(Method::POST, "/nodes/ct111/echo").body(web::full(content.clone())).unwrap();
    let answer = web::send(one.outbound(), request).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body == content, "{} of {limit} bytes came back", answer.body.len());

    let seen = two.agent().requests().len();
    let request =
        web::request(Method::POST, "/nodes/ct111/echo").header("content-length", (limit + 1).to_string());
    let (_sender, body) = web::channel();
    web::send(one.outbound(), request.body(body).unwrap()).await.problem(413, "body_too_large");
    assert_eq!(two.agent().requests().len(), seen);
}

/// Asks for an upgrade; gives the stream behind the 101.
async fn websocket(node: &Node, target: &str) -> TcpStream {
    let mut stream = TcpStream::connect(node.outbound()).await.unwrap();
    let request = format!(
        "GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = within("head of the 101", web::read_head(&mut stream)).await.unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    for part in [
        "upgrade: websocket",
        "connection: upgrade",
        "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=",
        "sec-websocket-protocol: chat",
    ] {
        assert!(head.contains(part), "{part:?} is not in {head}");
    }
    stream
}

async fn say(stream: &mut TcpStream, what: &[u8]) {
    stream.write_all(what).await.unwrap();
    let mut answer = vec![0; what.len()];
    within("answer on the upgraded connection", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, what.to_ascii_uppercase());
}

#[tokio::test]
async fn a_websocket_upgrade_passes_end_to_end() {
    let mesh = Mesh::new();
    let (one, two) = mesh.pair().await;
    let mut first = websocket(&one, "/agents/grok/socket").await;
    let mut second = websocket(&one, "/nodes/ct111/socket?x").await;
    for part in [&b"hello"[..], b"a", &[b'z'; 70_000], b"bye"] {
        say(&mut first, part).await;
        say(&mut second, part).await;
    }
    let seen = two.agent().last();
    assert_eq!(seen.all("upgrade"), ["websocket"]);
    assert_eq!(seen.all("x-mesh-peer-cn"), ["ct110"]);
    assert_eq!(seen.all("sec-websocket-key"), ["dGhlIHNhbXBsZSBub25jZQ=="]);
    // Plain requests go on beside them.
    assert_eq!(one.get("/nodes/ct111/x").await.status, 200);
    first.shutdown().await.unwrap();
    let mut rest = Vec::new();
    within("end of the upgraded connection", first.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty());
    say(&mut second, b"still here").await;
}

#[tokio::test]
async fn an_upgrade_that_the_agent_declines_is_an_ordinary_answer() {
    let mesh = Mesh::new();
    let (one, two) = mesh.pair().await;
    let mut connection = web::Connection::over(TcpStream::connect(one.outbound()).await.unwrap()).await;
    let mut ask = async |target: &str| {
        let headers = [("connection", "upgrade"), ("upgrade", "websocket")];
        connection.send(web::get_with(target, &headers)).await
    };
    for status in [200, 426] {
        let answer = ask(&format!("/nodes/ct111/status/{status}")).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-agent")), (status, Some("grok")));
        assert_eq!(two.agent().last().all("upgrade"), ["websocket"]);
    }
    // The connection goes on with HTTP.
    ask("/nodes/ct199/x").await.problem(404, "unknown_node");
}

#[tokio::test]
async fn an_upgraded_connection_is_one_request_until_its_end() {
    let mesh = Mesh::new();
    let (one, mut two) = mesh.pair().await;
    let mut stream = websocket(&one, "/nodes/ct111/socket").await;
    say(&mut stream, b"hello").await;
    // Told to stop, the sidecars wait for it as for any other request.
    two.proxy().signal(libc::SIGTERM);
    two.proxy().wait_log(&["[Mesh] stopping"]).await;
    say(&mut stream, b"still here").await;
    assert!(two.proxy().lines_with(&["/socket"]).is_empty());
    stream.shutdown().await.unwrap();
    let line = two.proxy().wait_log(&["Request peer.cn=ct110 GET /socket status=101"]).await;
    assert!(line.contains("duration_ms="), "{line}");
    assert!(two.proxy().exited().await.success());
    assert!(two.proxy().lines_with(&["are cut off"]).is_empty());
}

#[tokio::test]
async fn requests_that_outlast_the_drain_time_are_cut_off() {
    let mesh = Mesh::new();
    let one = mesh.start("ct110", "opus").await;
    let plan =
        mesh.node("ct111").agent("grok").with(|config| config["proxy"]["timeouts"]["drain_ms"] = 300.into());
    let mut two = plan.start().await;
    one.reaches("ct111").await;
    let mut stream = websocket(&one, "/nodes/ct111/socket").await;
    say(&mut stream, b"hello").await;
    two.proxy().signal(libc::SIGTERM);
    two.proxy()
        .wait_log(&["WARN [Mesh]", "requests after 300 ms (proxy.timeouts.drain_ms); they are cut off"])
        .await;
    assert!(two.proxy().exited().await.success());
    let mut rest = Vec::new();
    // Reset or ended, it is over.
    let _ = within("end of the upgraded connection", stream.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
}

#[tokio::test]
async fn upgraded_connections_take_places_like_others() {
    let mesh = Mesh::new();
    let one = mesh.start("ct110", "opus").await;
    let plan = mesh.node("ct111").agent("grok");
    let plan = plan.with(|config| config["proxy"]["limits"] = serde_json::json!({"max_connections": 2}));
    let mut two = plan.start().await;
    one.reaches("ct111").await;
    // The ping's connection is kept, so one place is left.
    let mut stream = websocket(&one, "/nodes/ct111/socket").await;
    say(&mut stream, b"hello").await;
    let headers = [("connection", "upgrade"), ("upgrade", "websocket")];
    let refused = web::send(one.outbound(), web::get_with("/nodes/ct111/socket", &headers)).await;
    assert_eq!(refused.status, 502, "{}", refused.text());
    two.proxy()
        .wait_log(&[
            "WARN [AgentChannel] refusing connections",
            "all 2 slots are in use (proxy.limits.max_connections)",
        ])
        .await;
    stream.shutdown().await.unwrap();
    two.proxy().wait_log(&["GET /socket status=101"]).await;
    eventually("the place is free again", async || {
        let answer = web::send(one.outbound(), web::get_with("/nodes/ct111/status/426", &headers)).await;
        (answer.status == 426).then_some(())
    })
    .await;
}

#[tokio::test]
async fn grpc_like_calls_keep_their_trailers() {
    let mesh = Mesh::new();
    let (peer, _address) = mesh.peer("ct150", &[]).await;
    let node = mesh.start("ct110", "opus").await;
    node.reaches("ct150").await;
    // h2c from the agent, h2 to the peer, as gRPC needs it.
    let call = || {
        Request::builder()
            .method(Method::POST)
            .uri("http://ct150.mesh/trailers")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(web::full("\0\0\0\0\u{5}hello"))
            .unwrap()
    };
    let mut h2 = web::h2(TcpStream::connect(node.outbound()).await.unwrap()).await;
    let answer = Answer::read(h2.send_request(call()).await.unwrap()).await.unwrap();
    assert_eq!(answer.text(), "\0\0\0\0\u{5}hello");
    assert_eq!(answer.trailers.expect("trailers")["grpc-status"], "0");
    assert_eq!(answer.headers["content-type"], "application/grpc");
    assert_eq!(peer.example.last().all("te"), ["trailers"]);
    assert_eq!(peer.accepted().last().unwrap().alpn.as_deref(), Some("h2"));
}

#[tokio::test]
async fn trailers_of_an_http_1_1_agent_pass_both_sidecars() {
    let mesh = Mesh::new();
    let (one, _two) = mesh.pair().await;
    let request = web::request(Method::POST, "/nodes/ct111/trailers").header("te", "trailers");
    let answer = web::send(one.outbound(), request.body(web::full("hello")).unwrap()).await;
    assert_eq!(answer.text(), "hello");
    assert_eq!(answer.trailers.expect("trailers")["grpc-status"], "0");
}

#[tokio::test]
async fn bodiless_answers_pass_both_sidecars() {
    let mesh = Mesh::new();
    let (one, _two) = mesh.pair().await;
    let mut connection = web::Connection::over(TcpStream::connect(one.outbound()).await.unwrap()).await;
    for _ in 0..2 {
        for (method, target, status) in [
            (Method::HEAD, "/nodes/ct111/page", 200),
            (Method::GET, "/nodes/ct111/status/204", 204),
            (Method::GET, "/nodes/ct111/status/304", 304),
            (Method::GET, "/nodes/ct111/status/500", 500),
        ] {
            let answer = connection.send(web::request(method, target).body(web::empty()).unwrap()).await;
            assert_eq!((answer.status.as_u16(), answer.body.len()), (status, 0), "{target}");
        }
        let answer =
            connection.send(web::request(Method::GET, "/nodes/ct111/x").body(web::empty()).unwrap()).await;
        assert_eq!(answer.text(), "GET /x");
    }
}

#[tokio::test]
async fn an_agent_that_gives_up_cancels_at_the_far_agent() {
    let mesh = Mesh::new();
    let (one, two) = mesh.pair().await;
    let outbound = one.outbound();
    let request = tokio::spawn(async move { web::get(outbound, "/nodes/ct111/hang").await });
    eventually("the request arrives", async || {
        two.agent().requests().iter().any(|seen| seen.target == "/hang").then_some(())
    })
    .await;
    request.abort();
    two.agent().gone().await;
}

#[tokio::test]
async fn requests_in_flight_end_before_a_sidecar_that_was_told_to_stop() {
    let mesh = Mesh::new();
    let (one, mut two) = mesh.pair().await;
    let request = web::request(Method::GET, "/nodes/ct111/stream").body(web::empty()).unwrap();
    let (response, stream) = tokio::join!(web::open(one.outbound(), request), two.agent().stream());
    let mut response = response.unwrap();
    stream.send(web::piece("one")).unwrap();
    web::expect_data(response.body_mut(), "one").await;
    two.proxy().signal(libc::SIGTERM);
    two.proxy().wait_log(&["[Mesh] stopping"]).await;
    stream.send(web::piece("two")).unwrap();
    web::expect_data(response.body_mut(), "two").await;
    drop(stream);
    assert_eq!(web::next_data(response.body_mut()).await, None);
    assert!(two.proxy().exited().await.success());
}

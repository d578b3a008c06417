//! Connections of HTTP/1.1 that wait for their next request: what a sidecar gives back meanwhile is missed by nobody.

use std::time::Duration;

use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::tls::Client;
use mesh_tests::{process, web, within};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// Longer than requests of one client that is busy are apart.
const PAUSE: Duration = Duration::from_millis(1500);

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection of a peer and one of a program of the node's host, and the path under which the same agent is reached.
async fn connections(mesh: &Mesh, node: &Node) -> [(&'static str, Box<dyn Stream>); 2] {
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111")).alpn(&["http/1.1"]);
    let peer = client.connect(node.inbound(), "ct110").await.unwrap();
    let program = TcpStream::connect(node.outbound()).await.unwrap();
    [("", Box::new(peer)), ("/nodes/ct110", Box::new(program))]
}

/// The next answer's head and body; it says how long it is.
async fn answer(stream: &mut dyn Stream) -> (String, String) {
    within("an answer", async {
        let head = web::read_head(stream).await.expect("the head of an answer").to_lowercase();
        let length = head.split("content-length: ").nth(1).expect("a length");
        let length = length.split("\r\n").next().unwrap().parse().unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.expect("the body of an answer");
        (head, process::text(&body))
    })
    .await
}

async fn send(stream: &mut dyn Stream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

async fn get(stream: &mut dyn Stream, target: &str) -> (String, String) {
    send(stream, &format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
    answer(stream).await
}

#[tokio::test]
async fn the_next_request_may_come_at_any_time_and_in_any_pieces() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    node.reaches("ct110").await;
    for (at, mut stream) in connections(&mesh, &node).await {
        let stream = &mut *stream;
        for (number, pause) in [0, 0, 50, 1500, 0, 1500, 1500, 0].into_iter().enumerate() {
            sleep(Duration::from_millis(pause)).await;
            let (_, body) = get(stream, &format!("{at}/{number}")).await;
            assert_eq!(body, format!("GET /{number}"));
        }
        // Two requests at once, with the beginning of a third.
        let one = |name: &str| {
            format!("POST {at}/echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\n{name}")
        };
        let third = one("ccc");
        for split in [1, 10, third.len() - 1] {
            let (begin, rest) = third.split_at(split);
            send(stream, &(one("aaa") + &one("bbb") + begin)).await;
            for expected in ["aaa", "bbb"] {
                assert_eq!(answer(stream).await.1, expected);
            }
            sleep(PAUSE).await;
            send(stream, rest).await;
            assert_eq!(answer(stream).await.1, "ccc");
        }
        // And byte by byte after a pause.
        sleep(PAUSE).await;
        for byte in one("ddd").bytes() {
            stream.write_all(&[byte]).await.unwrap();
            sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(answer(stream).await.1, "ddd");
    }
}

#[tokio::test]
async fn what_is_left_of_a_body_is_never_read_as_a_request() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    node.reaches("ct110").await;
    let inside = "GET /inside HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let length = 2 * inside.len();
    for (at, mut stream) in connections(&mesh, &node).await {
        let stream = &mut *stream;
        get(stream, &format!("{at}/before")).await;
        // The agent answers without having read the body, and all of the answer has passed before the rest of it comes.
        let head =
            format!("POST {at}/status/200 HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n");
        send(stream, &(head + inside)).await;
        answer(stream).await;
        sleep(PAUSE).await;
        // It may have closed instead.
        let _ = stream.write_all(inside.as_bytes()).await;
        let next = format!("GET {at}/after HTTP/1.1\r\nhost: localhost\r\n\r\n");
        if stream.write_all(next.as_bytes()).await.is_ok() {
            let mut read = Vec::new();
            let _ = tokio::time::timeout(PAUSE, stream.read_to_end(&mut read)).await;
        }
        let seen: Vec<_> = node.agent().requests().into_iter().map(|seen| seen.target).collect();
        assert!(seen.iter().all(|target| target != "/inside"), "{seen:?}");
    }
}

#[tokio::test]
async fn it_still_can_become_a_websocket_and_a_broken_request_is_still_told() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    node.reaches("ct110").await;
    for (at, mut stream) in connections(&mesh, &node).await {
        let stream = &mut *stream;
        get(stream, &format!("{at}/before")).await;
        sleep(PAUSE).await;
        send(
            stream,
            &format!(
                "GET {at}/socket HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
            ),
        )
        .await;
        let head = within("the head of the 101", web::read_head(stream)).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        for word in ["first", "second"] {
            send(stream, word).await;
            let mut back = vec![0; word.len()];
            within("an echo", stream.read_exact(&mut back)).await.unwrap();
            assert_eq!(process::text(&back), word.to_uppercase());
            sleep(PAUSE).await;
        }
    }
    for (at, mut stream) in connections(&mesh, &node).await {
        let stream = &mut *stream;
        get(stream, &format!("{at}/before")).await;
        sleep(PAUSE).await;
        send(stream, "no HTTP at all\r\n\r\n").await;
        let (head, body) = answer(stream).await;
        assert!(head.starts_with("http/1.1 400 ") && body.contains("bad_request"), "{head}{body}");
    }
}

#[tokio::test]
async fn it_may_wait_for_as_long_as_it_likes_and_a_head_that_has_begun_may_not() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").agent("opus");
    let node = plan.with(|config| config["proxy"]["timeouts"] = json!({"header_ms": 500})).start().await;
    for (at, mut stream) in connections(&mesh, &node).await {
        for _ in 0..3 {
            get(&mut *stream, &format!("{at}/x")).await;
            get(&mut *stream, &format!("{at}/x")).await;
            sleep(PAUSE).await;
        }
        // Also where the last request had trailers, or was refused at once.
        let trailers = "POST {at}/echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\ntrailer: x-end\r\n\r\n\
                        3\r\nabc\r\n0\r\nx-end: 1\r\n\r\n";
        send(&mut *stream, &trailers.replace("{at}", at)).await;
        let mut read = Vec::new();
        within("an answer", async {
            while !read.ends_with(b"0\r\n\r\n") {
                read.push(stream.read_u8().await.expect("an answer"));
            }
        })
        .await;
        sleep(PAUSE).await;
        let refused = format!("GET {at}/x HTTP/1.1\r\nhost: localhost\r\ngrpc-timeout: never\r\n\r\n");
        send(&mut *stream, &refused).await;
        assert!(answer(&mut *stream).await.0.starts_with("http/1.1 400 "));
        sleep(PAUSE).await;
        get(&mut *stream, &format!("{at}/x")).await;
        if at.is_empty() {
            send(&mut *stream, "GET /x HTTP/1.1\r\nhost: ").await;
            let mut read = Vec::new();
            let _ = within("its end", stream.read_to_end(&mut read)).await;
            assert!(!process::text(&read).contains(" 200 "));
        }
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_the_rest_of_a_head() {
    for part in ["\r\n", "GET /x HT"] {
        let mesh = Mesh::new();
        let plan = mesh.node("ct110").agent("opus");
        let patient = plan
            .with(|config| config["proxy"]["timeouts"] = json!({"drain_ms": 600_000, "header_ms": 600_000}));
        let mut node = patient.start().await;
        node.reaches("ct110").await;
        let mut open = Vec::new();
        for (at, mut stream) in connections(&mesh, &node).await {
            get(&mut *stream, &format!("{at}/x")).await;
            sleep(PAUSE).await;
            send(&mut *stream, part).await;
            open.push(stream);
        }
        sleep(PAUSE).await;
        node.proxy().signal(libc::SIGTERM);
        assert!(within("its end", node.proxy().exited()).await.success());
    }
}

#[tokio::test]
async fn a_caller_of_http_1_0_is_told_that_its_connection_is_kept() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    node.reaches("ct110").await;
    for (at, mut stream) in connections(&mesh, &node).await {
        for _ in 0..2 {
            send(
                &mut *stream,
                &format!("GET {at}/x HTTP/1.0\r\nhost: localhost\r\nconnection: keep-alive\r\n\r\n"),
            )
            .await;
            let (head, body) = answer(&mut *stream).await;
            assert!(head.contains("connection: keep-alive\r\n"), "{head}");
            assert_eq!(body, "GET /x");
        }
    }
}

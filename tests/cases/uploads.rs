//! Uploads over HTTP/2 that are refused, and conversations that never end.

use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::tls::Client;
use mesh_tests::web::{self, Answer};
use mesh_tests::{DEADLINE, eventually, loopback, within};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const MIB: usize = 1 << 20;

fn one_mebibyte(config: &mut Value) {
    config["proxy"]["limits"]["max_body_bytes"] = json!(MIB);
}

async fn h2c(node: &Node) -> SendRequest<web::Body> {
    web::h2(TcpStream::connect(node.outbound()).await.unwrap()).await
}

/// Sends a request and reads its answer.
async fn ask(h2: &mut SendRequest<web::Body>, request: Request<web::Body>) -> Answer {
    within("an answer", async {
        h2.ready().await.unwrap();
        Answer::read(h2.send_request(request).await.unwrap()).await.unwrap()
    })
    .await
}

#[tokio::test]
async fn a_refused_upload_leaves_its_session_usable() {
    let mesh = Mesh::new();
    let mut far = mesh.node("ct111").agent("grok").with(one_mebibyte).start().await;
    let mut near = mesh.node("ct110").agent("opus").with(one_mebibyte).start().await;
    near.reaches("ct111").await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct112")).alpn(&["h2"]);
    let inbound = web::h2(client.connect(far.inbound(), "ct111").await.unwrap()).await;
    for (mut h2, prefix) in
        [(h2c(&near).await, "http://localhost/nodes/ct111"), (inbound, "https://ct111.mesh")]
    {
        for round in 0..6 {
            let (sender, unannounced) = web::channel();
            let body = match round % 2 {
                0 => web::full(vec![7; 12 * MIB]),
                _ => {
                    for _ in 0..12 {
                        sender.send(web::piece(vec![7; MIB])).unwrap();
                    }
                    unannounced
                }
            };
            drop(sender);
            let request = web::request(Method::POST, &format!("{prefix}/upload")).body(body).unwrap();
            ask(&mut h2, request).await.problem(413, "body_too_large");
            let request = web::request(Method::GET, &format!("{prefix}/after")).body(web::empty()).unwrap();
            assert_eq!(ask(&mut h2, request).await.status, 200, "{prefix}, round {round}");
        }
    }
    for node in [&mut near, &mut far] {
        node.proxy().wait_log(&["body_too_large"]).await;
        assert!(node.proxy().lines_with(&["peer_failed"]).is_empty(), "told as what it is not");
    }
}

#[tokio::test]
async fn a_limit_of_the_far_side_is_told_through_the_near_one() {
    let mesh = Mesh::new();
    let _far = mesh.node("ct111").agent("grok").with(one_mebibyte).start().await;
    let mut near = mesh.start("ct110", "opus").await;
    near.reaches("ct111").await;
    let mut h2 = h2c(&near).await;
    for _ in 0..4 {
        let request = web::request(Method::POST, "http://localhost/nodes/ct111/upload");
        ask(&mut h2, request.body(web::full(vec![7; 8 * MIB])).unwrap()).await.problem(413, "body_too_large");
        let request = web::request(Method::GET, "http://localhost/nodes/ct111/after").body(web::empty());
        assert_eq!(ask(&mut h2, request.unwrap()).await.status, 200);
    }
    near.proxy().wait_log(&["code=body_too_large"]).await;
    assert!(near.proxy().lines_with(&["peer_failed"]).is_empty());
}

#[tokio::test]
async fn nodejs_is_told_of_the_limit_and_goes_on() {
    let mesh = Mesh::new();
    let _far = mesh.start("ct111", "grok").await;
    let near = mesh.node("ct110").agent("opus").with(one_mebibyte).start().await;
    near.reaches("ct111").await;
    let mut command = Command::new("node");
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/cases/upload.js"))
        .arg(format!("http://{}", near.outbound()))
        .args(["/nodes/ct111/upload", "12000000", "/nodes/ct111/after", "6"]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert_eq!(mesh_tests::process::text(&output.stdout).trim(), "done");
}

#[tokio::test]
async fn curl_is_told_of_a_refusal_over_h2c() {
    let mesh = Mesh::new();
    let node = mesh.node("ct110").agent("opus").with(one_mebibyte).start().await;
    let file = mesh.folder().join("upload");
    for (bytes, header, status) in [(70_000, "origin: http://example.com", "403"), (12 * MIB, "x: y", "413")]
    {
        std::fs::write(&file, vec![b'x'; bytes]).unwrap();
        let mut curl = Command::new("curl");
        curl.args(["-s", "-m", "20", "--http2-prior-knowledge", "-w", "%{http_code}", "-H", "expect:"])
            .args(["-H", header, "-o", "/dev/null", "--data-binary"])
            .arg(format!("@{}", file.display()))
            .arg(format!("http://{}/nodes/ct110/x", node.outbound()));
        let output = tokio::task::spawn_blocking(move || curl.output().unwrap()).await.unwrap();
        let said = mesh_tests::process::text(&output.stdout);
        assert_eq!((said.as_str(), output.status.code()), (status, Some(0)));
    }
}

#[tokio::test]
async fn uploads_that_are_refused_and_never_end_take_few_places() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct111").agent("grok").with(one_mebibyte).prepare().await;
    node.start_proxy().await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct150")).alpn(&["h2"]);
    let mut h2 = web::h2(client.connect(node.inbound(), "ct111").await.unwrap()).await;
    let mut open = Vec::new();
    // More than a connection may have at once: those that are not read to their end are reset.
    for _ in 0..600 {
        let (sender, body) = web::channel();
        let request = web::request(Method::POST, "https://ct111.mesh/upload");
        let request = request.header("content-length", (2 * MIB).to_string()).body(body).unwrap();
        ask(&mut h2, request).await.problem(413, "body_too_large");
        open.push(sender);
    }
    assert_eq!(node.get_from_peer(&mesh, "ct112", "/x").await.status, 200);
}

/// A body without an end, and how much of it was taken.
struct Endless(Arc<AtomicU64>);

impl Body for Endless {
    type Data = Bytes;
    type Error = web::BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, web::BoxError>>> {
        static PIECE: [u8; 16 << 10] = [7; 16 << 10];
        self.0.fetch_add(PIECE.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&PIECE)))))
    }
}

#[tokio::test]
async fn of_a_refused_upload_no_more_is_read_than_a_bound() {
    // 64 MiB, what windows let come, and what the system keeps.
    const MOST: u64 = 100 << 20;
    let mesh = Mesh::new();
    let node = mesh.node("ct110").agent("opus").with(one_mebibyte).start().await;
    node.reaches("ct110").await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct112")).alpn(&["h2"]);
    let inbound = web::h2(client.connect(node.inbound(), "ct110").await.unwrap()).await;
    for (mut h2, prefix) in
        [(h2c(&node).await, "http://localhost/nodes/ct110"), (inbound, "https://ct110.mesh")]
    {
        let taken = Arc::new(AtomicU64::new(0));
        let request =
            web::request(Method::POST, &format!("{prefix}/upload")).body(Endless(taken.clone()).boxed());
        ask(&mut h2, request.unwrap()).await.problem(413, "body_too_large");
        let at_the_answer = taken.load(Ordering::Relaxed);
        assert!((1 << 20..MOST).contains(&at_the_answer), "{prefix}: {at_the_answer}");
        // The body is not dropped before its stream was reset.
        eventually("the upload is ended", async || (Arc::strong_count(&taken) == 1).then_some(())).await;
        let taken = taken.load(Ordering::Relaxed);
        assert!(taken < MOST, "{prefix}: {taken}");
        let request = web::request(Method::GET, &format!("{prefix}/after")).body(web::empty()).unwrap();
        assert_eq!(ask(&mut h2, request).await.status, 200, "{prefix}");
    }

    // On HTTP/1.1 the connection ends with it.
    let (mut answer, mut upload) = TcpStream::connect(node.outbound()).await.unwrap().into_split();
    upload
        .write_all(
            b"POST /nodes/ct110/upload HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n",
        )
        .await
        .unwrap();
    let sending = tokio::spawn(async move {
        let piece = [b"4000\r\n", &[b'x'; 0x4000][..], b"\r\n"].concat();
        let mut sent = 0;
        while upload.write_all(&piece).await.is_ok() {
            sent += piece.len() as u64;
        }
        sent
    });
    let mut told = vec![0; 12];
    within("the answer", answer.read_exact(&mut told)).await.unwrap();
    assert_eq!(told, b"HTTP/1.1 413");
    let sent = within("the end of the connection", sending).await.unwrap();
    assert!((1 << 20..MOST).contains(&sent), "{sent}");
}

#[tokio::test]
async fn a_refused_upload_that_stops_or_only_trickles_is_not_waited_for() {
    let mesh = Mesh::new();
    let node = mesh.node("ct110").agent("opus").with(one_mebibyte).start().await;
    let mut h2 = h2c(&node).await;
    let mut refused = Vec::new();
    for _ in 0..2 {
        let (sender, body) = web::channel();
        sender.send(web::piece("begin")).unwrap();
        let request = web::request(Method::POST, "http://localhost/nodes/ct110/upload");
        let request = request.header("content-length", (2 * MIB).to_string()).body(body).unwrap();
        ask(&mut h2, request).await.problem(413, "body_too_large");
        refused.push(sender);
    }
    let (trickling, stopped) = (refused.pop().unwrap(), refused.pop().unwrap());
    let trickle = async {
        // Once its stream is reset, nobody takes what is sent.
        while trickling.send(web::piece("x")).is_ok() {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    within("the upload that stopped is reset", stopped.closed()).await;
    assert!(!trickling.is_closed(), "the other one still came");
    tokio::time::timeout(DEADLINE * 2, trickle).await.expect("the upload that trickles is reset");
    let request = web::request(Method::GET, "http://localhost/nodes/ct110/after").body(web::empty());
    assert_eq!(ask(&mut h2, request.unwrap()).await.status, 200);
}

/// An agent that sends every byte back, in HTTP/1.1 and in HTTP/2.
async fn echo(node: &Node) -> tokio::task::AbortHandle {
    let listener = loopback::listen(node.backend()).await;
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let service = service_fn(async |request: Request<hyper::body::Incoming>| {
                    let media = request.headers().get("content-type").cloned();
                    let mut response = Response::new(request.into_body());
                    media.map(|media| response.headers_mut().insert("content-type", media));
                    Ok::<_, std::convert::Infallible>(response)
                });
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    serving.abort_handle()
}

#[tokio::test]
async fn a_conversation_is_longer_than_a_body_may_be() {
    let mesh = Mesh::new();
    let mut far = mesh.node("ct111").with(one_mebibyte).prepare().await;
    let agent = echo(&far).await;
    far.start_registryd().await;
    far.start_proxy().await;
    let near = mesh.node("ct110").agent("opus").with(one_mebibyte).start().await;
    near.reaches("ct111").await;
    for media in ["application/grpc", "application/octet-stream"] {
        let mut h2 = h2c(&near).await;
        let (sender, body) = web::channel();
        let request = web::request(Method::POST, "http://localhost/nodes/ct111/pkg.Service/Chat")
            .header("content-type", media)
            .header("te", "trailers");
        sender.send(web::piece("begin")).unwrap();
        let response = within("the head", h2.send_request(request.body(body).unwrap())).await.unwrap();
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        let mut left = 30 * MIB + 5;
        let piece = Bytes::from(vec![7; MIB / 16]);
        let sending = tokio::spawn(async move {
            for _ in 0..30 * 16 {
                sender.send(web::piece(piece.clone())).unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        while let Some(frame) = within("more of it", body.frame()).await {
            left -= frame.unwrap().into_data().unwrap_or_default().len();
        }
        assert_eq!(left, 0, "{media}");
        sending.await.unwrap();
    }
    agent.abort();
}

#[tokio::test]
async fn an_upload_without_an_end_is_still_limited_until_it_is_answered() {
    let mesh = Mesh::new();
    let _far = mesh.start("ct111", "grok").await;
    let mut near = mesh.node("ct110").agent("opus").with(one_mebibyte).start().await;
    near.reaches("ct111").await;
    let (sender, body) = web::channel();
    for _ in 0..3 {
        sender.send(web::piece(vec![7; MIB])).unwrap();
    }
    let request = web::request(Method::POST, "/nodes/ct111/upload").body(body).unwrap();
    web::send(near.outbound(), request).await.problem(413, "body_too_large");
    near.proxy().wait_log(&["INFO [Outbound] body_too_large"]).await;
    assert!(near.proxy().lines_with(&["peer_failed"]).is_empty());
}

//! Answers that come before the request was read: they arrive, although one side is still sending.
//!
//! The clients here write everything before they read, as simple HTTP libraries do.

use mesh_tests::mesh::Mesh;
use mesh_tests::tls::Client;
use mesh_tests::{process, within};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// A server that answers with `status` to the head of each request and closes with the body unread.
async fn refuses_early(listener: TcpListener, status: &'static str) -> AbortHandle {
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno");
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    serving.abort_handle()
}

/// Sends a whole request, then reads the answer's head and what comes with it.
async fn write_then_read(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    path: &str,
    bytes: usize,
) -> String {
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {bytes}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("the head is sent");
    let piece = vec![b'x'; 1 << 16];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(piece.len());
        stream.write_all(&piece[..now]).await.expect("the body can be sent to its end");
        left -= now;
    }
    let mut answer = Vec::new();
    within("an answer", async {
        while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
            let read = stream.read_buf(&mut answer).await.expect("an answer, no reset");
            assert_ne!(read, 0, "closed");
        }
    })
    .await;
    process::text(&answer)
}

#[tokio::test]
async fn an_agents_refusal_reaches_the_client_that_is_still_sending() {
    let mesh = Mesh::new();
    let mut far = mesh.node("ct111").prepare().await;
    let agent = refuses_early(TcpListener::bind(far.backend()).await.unwrap(), "401 Unauthorized").await;
    far.start_registryd().await;
    far.start_proxy().await;
    let near = mesh.start("ct110", "opus").await;
    near.reaches("ct111").await;
    for round in 0..20 {
        let stream = TcpStream::connect(near.outbound()).await.unwrap();
        let answer = write_then_read(stream, "/nodes/ct111/api/message", 4 << 20).await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "round {round}: {answer}");
        assert!(!answer.contains("x-mesh-error"), "{answer}");
    }
    agent.abort();
}

#[tokio::test]
async fn the_limit_is_told_to_clients_that_write_first() {
    let mesh = Mesh::new();
    let limits =
        |config: &mut serde_json::Value| config["proxy"]["limits"] = json!({"max_body_bytes": 100_000});
    let node = mesh.node("ct110").with(limits).agent("opus").start().await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111")).alpn(&["http/1.1"]);
    for round in 0..10 {
        let stream = TcpStream::connect(node.outbound()).await.unwrap();
        let answer = write_then_read(stream, "/nodes/ct110/x", 8 << 20).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "round {round}: {answer}");
        let stream = client.connect(node.inbound(), "ct110").await.unwrap();
        let answer = write_then_read(stream, "/x", 8 << 20).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "round {round}: {answer}");
    }
}

#[tokio::test]
async fn refusals_of_the_sidecar_reach_clients_that_write_first() {
    let mesh = Mesh::new();
    let denied = |config: &mut serde_json::Value| config["proxy"]["policy"] = json!({"deny": ["ct111"]});
    let node = mesh.node("ct110").with(denied).agent("opus").start().await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111")).alpn(&["http/1.1"]);
    let stream = client.connect(node.inbound(), "ct110").await.unwrap();
    let answer = write_then_read(stream, "/x", 8 << 20).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let stream = TcpStream::connect(node.outbound()).await.unwrap();
    let answer = write_then_read(stream, "/nodes/ct199/x", 8 << 20).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}

#[tokio::test]
async fn registryds_refusal_of_a_large_join_is_read_to_its_end() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111")).alpn(&["http/1.1"]);
    for round in 0..10 {
        let stream = tokio::net::UnixStream::connect(node.socket()).await.unwrap();
        let answer = write_then_read(stream, "/api/mesh/join", 2 << 20).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "round {round}: {answer}");
        // Also where nobody waits for a body.
        let stream = tokio::net::UnixStream::connect(node.socket()).await.unwrap();
        let answer = write_then_read(stream, "/nothing", 2 << 20).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "round {round}: {answer}");
        let stream = client.connect(node.inbound(), "ct110").await.unwrap();
        let answer = write_then_read(stream, "/api/mesh/join", 2 << 20).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "round {round}: {answer}");
        assert!(answer.contains("x-mesh-error: body_too_large"), "{answer}");
    }
}

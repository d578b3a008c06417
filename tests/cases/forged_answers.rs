//! What an agent's answer may not do: change the protocol unasked, or speak for a sidecar.

use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::tls::Client;
use mesh_tests::web;
use mesh_tests::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// A node whose agent gives this answer to every request, and tells what it is sent after the request's head, to the
/// end of the connection.
async fn answering(mesh: &Mesh, answer: &'static str) -> (Node, mpsc::UnboundedReceiver<usize>) {
    let mut node = mesh.node("ct111").prepare().await;
    let listener = TcpListener::bind(node.backend()).await.unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let _ = stream.write_all(answer.as_bytes()).await;
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
                let _ = tell.send(rest.len());
            });
        }
    });
    node.start_registryd().await;
    node.start_proxy().await;
    (node, told)
}

#[tokio::test]
async fn a_change_of_protocol_that_nobody_asked_for_is_an_error() {
    let websocket = [("connection", "upgrade"), ("upgrade", "websocket")];
    let h2c = [("connection", "upgrade, http2-settings"), ("upgrade", "h2c")];
    for (asked, answer) in [
        (&[][..], "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"),
        (&[][..], "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"),
        (&h2c[..], "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"),
        (&websocket[..], "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"),
        (&websocket[..], "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n"),
        (&websocket[..], "HTTP/1.1 101 Switching Protocols\r\n\r\n"),
        (
            &websocket[..],
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket, h2c\r\n\r\n",
        ),
    ] {
        let mesh = Mesh::new();
        let (node, mut told) = answering(&mesh, answer).await;
        let near = mesh.start("ct110", "opus").await;
        near.reaches("ct111").await;
        let from_peer = node.from_peer(&mesh, "ct112", web::get_with("/x", asked)).await;
        let through = web::send(near.outbound(), web::get_with("/nodes/ct111/x", asked)).await;
        for refused in [from_peer, through] {
            let detail = refused.problem(502, "backend_failed");
            assert!(detail.contains("101"), "{detail}");
            let sent = within("the agent's connection ends", told.recv()).await;
            assert_eq!(sent, Some(0), "{answer:?}: bytes went through");
        }
    }
}

#[tokio::test]
async fn an_agent_does_not_speak_for_a_sidecar() {
    let mesh = Mesh::new();
    let answer = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\nx-mesh-error: forged\r\n\
                  x.mesh.error: forged\r\nx-mesh-retryable: forged\r\nX_Mesh_Retryable: forged\r\n\
                  x-mesh-served-by: forged\r\nx-mesh-peer-cn: forged\r\nx-forwarded-for: forged\r\nx-agent: grok\r\n\r\n";
    let (node, _told) = answering(&mesh, answer).await;
    let near = mesh.start("ct110", "opus").await;
    near.reaches("ct111").await;
    let through = near.get("/nodes/ct111/x").await;
    assert_eq!(through.header("x-mesh-served-by"), Some("ct111"));
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct112")).alpn(&["h2"]);
    let mut h2 = web::h2(client.connect(node.inbound(), "ct111").await.unwrap()).await;
    let request = h2.send_request(web::get_with("https://ct111.mesh/x", &[]));
    let direct = within("the answer to a peer", request).await.unwrap();
    for headers in [&through.headers, direct.headers()] {
        assert_eq!(headers.get("x-agent").unwrap(), "grok");
        assert!(!format!("{headers:?}").contains("forged"), "{headers:?}");
    }
}

//! What the answer of an agent or a peer may not do: change the protocol unasked, or speak for a sidecar.

use mesh_tests::by_hand::ByHand;
use mesh_tests::frames::{self, DATA, END_HEADERS, HEADERS, frame};
use mesh_tests::loopback::Loopback;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::tls::{Client, PeerOptions};
use mesh_tests::web::{self, Answer};
use mesh_tests::within;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// Gives this answer to a request, and tells how much is sent after the request's head, to the end of the connection.
async fn answer_once(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: &str,
    tell: mpsc::UnboundedSender<usize>,
) {
    if web::read_head(&mut stream).await.is_none() {
        return;
    }
    let _ = stream.write_all(answer.as_bytes()).await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    let _ = tell.send(rest.len());
}

/// A node whose agent gives this answer to every request, and tells what it is sent after the request's head, to the
/// end of the connection.
async fn answering(mesh: &Mesh, answer: &'static str) -> (Node, mpsc::UnboundedReceiver<usize>) {
    let mut node = mesh.node("ct111").prepare().await;
    let listener = TcpListener::bind(node.backend()).await.unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_once(stream, answer, tell.clone()));
        }
    });
    node.start_registryd().await;
    node.start_proxy().await;
    (node, told)
}

type Headers = [(&'static str, &'static str)];

const WEBSOCKET: &Headers = &[("connection", "upgrade"), ("upgrade", "websocket")];
const H2C: &Headers = &[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")];

/// Changes of protocol that nobody asked for, with the headers of the requests that they answer.
const UNASKED: [(&Headers, &str); 7] = [
    (&[], "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"),
    (&[], "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"),
    (H2C, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"),
    (WEBSOCKET, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"),
    (WEBSOCKET, "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n"),
    (WEBSOCKET, "HTTP/1.1 101 Switching Protocols\r\n\r\n"),
    (WEBSOCKET, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket, h2c\r\n\r\n"),
];

#[tokio::test]
async fn a_change_of_protocol_that_nobody_asked_for_is_an_error() {
    for (asked, answer) in UNASKED {
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
async fn nor_does_a_peer_change_the_protocol() {
    let mesh = Mesh::new();
    let address = Loopback::take();
    let listener = TcpListener::bind(address.port(3000)).await.unwrap();
    let acceptor = PeerOptions { alpn: vec!["http/1.1"], ..PeerOptions::good(&mesh.ca, "ct150") }.acceptor();
    mesh.register("ct150", &address.ip().to_string(), 3000, &["scout"]);
    let (tell, mut told) = mpsc::unbounded_channel();
    let (choose, chosen) = watch::channel("");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = acceptor.accept(stream).await.unwrap();
            tokio::spawn(answer_once(stream, *chosen.borrow(), tell.clone()));
        }
    });
    let node = mesh.start("ct110", "opus").await;
    for (asked, answer) in UNASKED {
        choose.send_replace(answer);
        let http1 = web::send(node.outbound(), web::get_with("/agents/scout/x", asked)).await;
        // HTTP/2 has no such headers.
        let mut h2 = web::h2(TcpStream::connect(node.outbound()).await.unwrap()).await;
        let response = h2.send_request(web::get_with("http://ct150.mesh/x", &[]));
        let http2 = Answer::read(within("the answer", response).await.unwrap()).await.unwrap();
        for refused in [http1, http2] {
            let detail = refused.problem(502, "peer_failed");
            assert!(detail.contains("ct150") && detail.contains("101"), "{detail}");
            assert_eq!(refused.header("x-mesh-retryable"), Some("false"));
            assert_eq!(refused.header("upgrade"), None);
            let sent = within("the peer's connection ends", told.recv()).await;
            assert_eq!(sent, Some(0), "{answer:?}: bytes went through");
        }
    }
}

#[tokio::test]
async fn there_is_no_such_change_in_http_2() {
    let mesh = Mesh::new();
    let mut peer = ByHand::start(&mesh, "ct150", &["scout"]).await;
    let node = mesh.start("ct110", "opus").await;
    let outbound = node.outbound();
    let asking = tokio::spawn(async move { web::get(outbound, "/agents/scout/x").await });
    let asked = peer.asked().await;
    let head = [(b":status".to_vec(), b"101".to_vec())];
    asked.write(frame(HEADERS, END_HEADERS, asked.stream, &frames::block(&head)));
    asked.write(frame(DATA, 0, asked.stream, b"anything"));
    within("the answer", asking).await.unwrap().problem(502, "peer_failed");
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

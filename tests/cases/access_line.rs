//! One line for every accepted request; for a delegation it tells from whom, to whom, and what.

use http::Method;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::tls::Client;
use mesh_tests::web::{self, Answer};
use mesh_tests::within;
use serde_json::{Value, json};

const RECEIVED: &str = "INFO [AgentChannel] Received mesh delegation ";

async fn sidecar(mesh: &Mesh, log: Value) -> Node {
    let plan = mesh.node("ct110").agent("opus").with(|config| config["proxy"]["log"] = log);
    let mut node = plan.prepare().await;
    node.start_proxy().await;
    node
}

async fn delegate(mesh: &Mesh, node: &Node, agent: Option<&str>, body: String) -> Answer {
    let mut request = web::request(Method::POST, "/api/message").header("content-type", "application/json");
    if let Some(agent) = agent {
        request = request.header("x-mesh-agent", agent);
    }
    node.from_peer(mesh, "ct111", request.body(web::full(body)).unwrap()).await
}

fn task(from: &str, message: &str) -> String {
    json!({"fromAgent": from, "message": message, "waitForResponse": true}).to_string()
}

#[tokio::test]
async fn a_delegation_is_told_as_in_the_reference_document() {
    let mesh = Mesh::new();
    let mut node = sidecar(&mesh, json!({})).await;
    let answer = delegate(&mesh, &node, Some("opus"), task("grok", "Summarise the news")).await;
    assert_eq!(answer.json()["response"], "opus heard: Summarise the news");
    node.proxy()
        .wait_log(&["INFO [AgentChannel] Received mesh delegation peer.cn=ct111 from grok → opus: Summarise the news status=200 duration_ms="])
        .await;
    assert_eq!(node.proxy().lines_with(&["peer.cn=ct111"]).len(), 1, "more than one line for a request");
}

#[tokio::test]
async fn the_only_agent_of_a_node_is_named_even_if_the_request_does_not() {
    let mesh = Mesh::new();
    let mut node = mesh.start("ct110", "opus").await;
    delegate(&mesh, &node, None, task("grok", "hello")).await;
    node.proxy().wait_log(&[RECEIVED, "peer.cn=ct111 from grok → opus: hello"]).await;
}

#[tokio::test]
async fn the_task_is_cut_after_a_hundred_characters() {
    let mesh = Mesh::new();
    let mut node = sidecar(&mesh, json!({})).await;
    let long = "é".repeat(99) + "XYZ";
    delegate(&mesh, &node, Some("opus"), task("grok", &long)).await;
    let line = node.proxy().wait_log(&[RECEIVED]).await;
    assert!(line.contains(&("é".repeat(99) + "X...")) && !line.contains("XY"), "{line}");
}

#[tokio::test]
async fn the_length_is_configurable_and_zero_turns_it_off() {
    let mesh = Mesh::new();
    let mut node = sidecar(&mesh, json!({"task_preview_chars": 5})).await;
    delegate(&mesh, &node, Some("opus"), task("grok", "0123456789")).await;
    let line = node.proxy().wait_log(&[RECEIVED]).await;
    assert!(line.contains(": 01234... status=200"), "{line}");

    let mesh = Mesh::new();
    let mut node = sidecar(&mesh, json!({"task_preview_chars": 0})).await;
    delegate(&mesh, &node, Some("opus"), task("grok", "secret task")).await;
    let line = node.proxy().wait_log(&["[AgentChannel] ", "peer.cn=ct111", "status=200"]).await;
    assert!(!line.contains("secret"), "{line}");
}

#[tokio::test]
async fn no_text_of_a_request_can_forge_a_line() {
    let mesh = Mesh::new();
    let mut node = sidecar(&mesh, json!({})).await;
    let forged = "x\n2026 INFO [AgentChannel] forged peer.cn=root\r\u{1b}[31m\u{2028}\u{202e}";
    delegate(&mesh, &node, Some("opus"), task(forged, forged)).await;
    delegate(&mesh, &node, None, task("grok", forged)).await;
    let request =
        web::request(Method::GET, "/a%0aINFO%20[AgentChannel]%20forged").body(web::empty()).unwrap();
    node.from_peer(&mesh, "ct111", request).await;
    node.proxy().wait_log(&["GET /a%0aINFO"]).await;
    for line in node.proxy().log() {
        assert!(!line.contains(['\r', '\u{1b}', '\u{2028}', '\u{202e}']), "{line:?}");
        // Inside a line it may stand; none may begin with it.
        assert!(!line.starts_with("2026 INFO"), "{line:?}");
    }
    assert_eq!(node.proxy().lines_with(&["peer.cn=ct111"]).len(), 3);
    // What is no agent's name is not shown as one.
    delegate(&mesh, &node, None, task("x peer.cn=ct999 from root", "hello")).await;
    let line = node.proxy().wait_log(&[RECEIVED, ": hello"]).await;
    assert!(line.contains("peer.cn=ct111 from unknown → ") && !line.contains("ct999"), "{line}");
}

#[tokio::test]
async fn the_task_is_told_as_the_agent_reads_it() {
    let mesh = Mesh::new();
    let mut node = sidecar(&mesh, json!({})).await;
    let body = r#"{"fromAgent":"grok","message":"harmless","mess\u0061ge":"the real one"}"#;
    let answer =
        delegate(&mesh, &node, Some("opus"), r#"{"fromAgent":"grok","mess\u0061ge":"escaped"}"#.into()).await;
    assert_eq!(answer.json()["response"], "opus heard: escaped");
    node.proxy().wait_log(&[RECEIVED, "from grok → opus: escaped status=200"]).await;
    // The example agent refuses to have a field twice; most take the last.
    delegate(&mesh, &node, Some("opus"), body.into()).await;
    node.proxy().wait_log(&[RECEIVED, "from grok → opus: the real one status="]).await;
}

#[tokio::test]
async fn an_error_that_the_sidecar_makes_is_told_with_its_reason() {
    let mesh = Mesh::new();
    let mut node = sidecar(&mesh, json!({})).await;
    node.stop_agent().await;
    delegate(&mesh, &node, Some("opus"), task("grok", "hello")).await;
    let backend = node.backend();
    let reason = format!(
        "error=\"backend_unreachable: the agent behind this sidecar does not accept connections on {backend}"
    );
    node.proxy().wait_log(&[RECEIVED, " status=502 ", &reason]).await;
}

#[tokio::test]
async fn a_body_that_is_no_message_request_is_passed_on_and_told() {
    let mesh = Mesh::new();
    let mut node = sidecar(&mesh, json!({})).await;
    for body in ["", "no json", "[]", "{\"fromAgent\": 3}", "{\"message\": {\"a\": 1}}", "\u{0}\u{1}"] {
        let seen = node.proxy().log().len();
        delegate(&mesh, &node, Some("opus"), body.into()).await;
        node.proxy().wait_log_after(seen, &["[AgentChannel] ", "peer.cn=ct111"]).await;
    }
    assert_eq!(node.agent().requests().len(), 6);
}

#[tokio::test]
async fn looking_into_the_task_does_not_hold_the_body_back() {
    let mesh = Mesh::new();
    let mut node = sidecar(&mesh, json!({})).await;
    // The example agent reads a message as a whole, so the upload path stands in for a streaming agent.
    node.stop_agent().await;
    let listener = mesh_tests::loopback::listen(node.backend()).await;
    let mut connection = Client::new(&mesh.ca, &mesh.ca.node("ct111")).http(node.inbound(), "ct110").await;
    let (sender, body) = web::channel();
    let request = web::request(Method::POST, "/api/message").body(body).unwrap();
    let backend = async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        // The sidecar also connects just to see whether the backend is up; that connection brings nothing.
        let mut stream = loop {
            let (stream, _) = within("connection to the backend", listener.accept()).await.unwrap();
            if within("first bytes or end", stream.peek(&mut [0])).await.is_ok_and(|length| length > 0) {
                break stream;
            }
        };
        let mut got = String::new();
        let mut wait_for = async |part: &str| {
            while !got.contains(part) {
                let mut buffer = [0; 1024];
                let length = within("piece of the body", stream.read(&mut buffer)).await.unwrap();
                assert!(length > 0, "the body ended before {part:?}: {got}");
                got.push_str(&mesh_tests::process::text(&buffer[..length]));
            }
        };
        for part in ["{\"fromAgent\":\"grok\",", "\"message\":\"Sum", "marise\"}"] {
            sender.send(web::piece(part)).unwrap();
            wait_for(part).await;
        }
        drop(sender);
        wait_for("0\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        stream
    };
    let (response, _stream) = tokio::join!(within("answer", connection.open(request)), backend);
    assert_eq!(response.unwrap().status(), 200);
    node.proxy().wait_log(&[RECEIVED, "from grok → ", ": Summarise status=200"]).await;
}

#[tokio::test]
async fn a_request_that_the_peer_gives_up_has_its_line_too() {
    let mesh = Mesh::new();
    let mut node = sidecar(&mesh, json!({})).await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111"));
    let stream = client.connect(node.inbound(), "ct110").await.unwrap();
    let request = web::request(Method::GET, "/hang").body(web::empty()).unwrap();
    let task = tokio::spawn(async move { web::Connection::over(stream).await.open(request).await.map(drop) });
    mesh_tests::eventually("the request arrives", async || node.agent().requests().pop()).await;
    task.abort();
    node.agent().gone().await;
    node.proxy().wait_log(&["INFO [AgentChannel] Request peer.cn=ct111 GET /hang"]).await;
}

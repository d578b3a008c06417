//! Errors in the forms that clients can show: also where what comes is not HTTP, and to gRPC clients.

use std::sync::{Arc, Mutex};

use http::Method;
use hyper::body::Body as _;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::tls::Client;
use mesh_tests::web::{self, Answer};
use mesh_tests::{eventually, loopback, process, within};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection on which HTTP/1.1 is written byte by byte.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// To either listener of a node.
async fn connect(mesh: &Mesh, node: &Node, listener: &str) -> Box<dyn Stream> {
    match listener {
        "Outbound" => Box::new(TcpStream::connect(node.outbound()).await.unwrap()),
        _ => {
            let client = Client::new(&mesh.ca, &mesh.ca.node("ct112")).alpn(&["http/1.1"]);
            Box::new(client.connect(node.inbound(), "ct111").await.unwrap())
        }
    }
}

/// What comes until the server closes.
async fn rest(stream: &mut Box<dyn Stream>) -> String {
    let mut read = Vec::new();
    within("the end of the connection", stream.read_to_end(&mut read)).await.unwrap();
    process::text(&read)
}

/// Checks a whole answer that the sidecar made in place of its HTTP library.
fn is_problem(answer: &str, status: u16, code: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    for header in [
        format!("x-mesh-error: {code}"),
        "connection: close".into(),
        "content-type: application/problem+json".into(),
        "x-mesh-retryable: true".into(),
        format!("content-length: {}", body.len()),
    ] {
        assert!(head.lines().any(|line| line == header), "{header}: {answer}");
    }
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["code"], &body["status"]), (&json!(code), &json!(status)));
    assert_eq!(body["error"]["message"], body["detail"]);
}

const LISTENERS: [&str; 2] = ["AgentChannel", "Outbound"];

#[tokio::test]
async fn what_is_not_http_is_told_why_and_logged() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct111").agent("grok");
    let plan = plan.with(|config| config["proxy"]["limits"] = json!({"max_header_bytes": 100_000}));
    let mut node = plan.start().await;
    let many: String = (0..301).map(|i| format!("x-{i}: y\r\n")).collect();
    let large: String = (0..300).map(|i| format!("x-{i}: {}\r\n", "y".repeat(1000))).collect();
    for listener in LISTENERS {
        for (request, status, code) in [
            ("GET /a b HTTP/1.1\r\nhost: ct111.mesh\r\n\r\n".into(), 400, "bad_request"),
            ("GET / HTTP/3.7\r\nhost: ct111.mesh\r\n\r\n".into(), 400, "bad_request"),
            ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".into(), 400, "bad_request"),
            (format!("GET / HTTP/1.1\r\nhost: ct111.mesh\r\n{many}\r\n"), 431, "headers_too_large"),
            (format!("GET / HTTP/1.1\r\nhost: ct111.mesh\r\n{large}\r\n"), 431, "headers_too_large"),
            (
                format!("GET /{} HTTP/1.1\r\nhost: ct111.mesh\r\n\r\n", "z".repeat(70_000)),
                414,
                "uri_too_long",
            ),
        ] {
            let skip = node.proxy().log().len();
            let mut stream = connect(&mesh, &node, listener).await;
            let _ = stream.write_all(request.as_bytes()).await;
            is_problem(&rest(&mut stream).await, status, code);
            let status = format!("status={status}");
            let line = ["INFO", listener, "Refused a malformed request", &status, &format!("code={code}")];
            let line = node.proxy().wait_log_after(skip, &line).await;
            assert!(line.contains("peer.cn=ct112") == (listener == "AgentChannel"), "{line}");
        }
    }
    assert!(node.agent().requests().is_empty());
}

#[tokio::test]
async fn after_good_requests_a_bad_one_is_told_too_and_no_answer_of_the_agent_is_touched() {
    let mesh = Mesh::new();
    let node = mesh.start("ct111", "grok").await;
    node.reaches("ct111").await;
    let bad = "BAD \x01\r\n\r\n";
    for listener in LISTENERS {
        // The agent's answer looks just like what an HTTP library says by itself.
        let good = "GET /status/400 HTTP/1.1\r\nhost: ct111.mesh\r\n\r\n";
        let mut stream = connect(&mesh, &node, listener).await;
        for _ in 0..3 {
            stream.write_all(good.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                assert_ne!(within("an answer", stream.read_buf(&mut answer)).await.unwrap(), 0);
            }
            let answer = process::text(&answer);
            assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("x-agent: grok"), "{answer}");
            assert!(!answer.contains("x-mesh-error"), "{answer}");
        }
        stream.write_all(bad.as_bytes()).await.unwrap();
        is_problem(&rest(&mut stream).await, 400, "bad_request");

        // All of it at once.
        let mut stream = connect(&mesh, &node, listener).await;
        stream.write_all([good, good, bad].concat().as_bytes()).await.unwrap();
        let answers = rest(&mut stream).await;
        let at = answers.match_indices("HTTP/1.1 400 ").map(|(at, _)| at).collect::<Vec<_>>();
        assert_eq!(at.len(), 3, "{answers}");
        assert!(!answers[..at[2]].contains("x-mesh-error"), "{answers}");
        is_problem(&answers[at[2]..], 400, "bad_request");
    }
}

#[tokio::test]
async fn many_small_headers_pass_both_ways() {
    let mesh = Mesh::new();
    let (near, far) = mesh.pair().await;
    for count in [101, 250] {
        let mut request = web::request(Method::GET, &format!("/nodes/ct111/many/{count}"));
        for i in 0..count {
            request = request.header(format!("x-small-{i}"), "s");
        }
        let answer = web::send(near.outbound(), request.body(web::empty()).unwrap()).await;
        assert_eq!(answer.status, 200, "{count}: {}", answer.text());
        let few = |headers: &http::HeaderMap, name: &str| {
            headers.keys().filter(|key| key.as_str().starts_with(name)).count()
        };
        assert_eq!(few(&answer.headers, "x-many-"), count);
        assert_eq!(few(&far.agent().last().headers, "x-small-"), count);
        let mut request = web::request(Method::GET, &format!("/many/{count}"));
        for i in 0..count {
            request = request.header(format!("x-small-{i}"), "s");
        }
        let client = Client::new(&mesh.ca, &mesh.ca.node("ct112")).alpn(&["http/1.1"]);
        let answer = client.send(far.inbound(), "ct111", request.body(web::empty()).unwrap()).await;
        assert_eq!((answer.status.as_u16(), few(&answer.headers, "x-many-")), (200, count));
    }
}

/// So many lines of headers.
fn lines(name: &str, count: usize) -> String {
    (0..count).map(|i| format!("{name}-{i}: s\r\n")).collect()
}

/// Neither the caller nor the agent uses an HTTP library here, which might have a limit of its own.
#[tokio::test]
async fn a_message_may_have_300_headers_both_ways() {
    let mesh = Mesh::new();
    let mut far = mesh.node("ct111").prepare().await;
    let listener = loopback::listen(far.backend()).await;
    let seen: Arc<Mutex<String>> = Arc::default();
    let shared = seen.clone();
    let agent = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let Some(head) = web::read_head(&mut stream).await else { continue };
            let count: usize = head.split(['/', ' ']).find_map(|part| part.parse().ok()).unwrap();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n{}\r\nok",
                lines("x-many", count - 2)
            );
            *shared.lock().unwrap() = head;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    far.start_registryd().await;
    far.start_proxy().await;
    let near = mesh.start("ct110", "opus").await;
    near.reaches("ct111").await;
    for count in [101, 128, 256, 299, 300] {
        let head = format!("GET /{count} HTTP/1.1\r\nhost: ct111.mesh\r\nconnection: close\r\n");
        let request = head + &lines("x-small", count - 2) + "\r\n";
        let answer = web::raw(near.outbound(), request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok"), "{count}: {answer}");
        assert_eq!(answer.matches("x-many-").count(), count - 2);
        assert_eq!(seen.lock().unwrap().matches("x-small-").count(), count - 2);
    }
    agent.abort();
}

#[tokio::test]
async fn a_grpc_client_is_told_in_its_own_way() {
    let mesh = Mesh::new();
    let denied = |config: &mut Value| {
        config["proxy"]["policy"] = json!({"deny": ["ct112"]});
        config["proxy"]["limits"] = json!({"max_body_bytes": 1000});
    };
    let mut node = mesh.node("ct110").agent("opus").with(denied).start().await;
    node.reaches("ct110").await;
    let ask = async |mut h2: hyper::client::conn::http2::SendRequest<web::Body>, path: &str, media: &str| {
        let request = web::request(Method::POST, &format!("http://localhost{path}"))
            .header("content-type", media)
            .header("te", "trailers");
        let (_open, body) = web::channel();
        let response = within("an answer", h2.send_request(request.body(body).unwrap())).await.unwrap();
        let ended = response.body().is_end_stream();
        (Answer::read(response).await.unwrap(), ended)
    };
    let outbound = async || web::h2(TcpStream::connect(node.outbound()).await.unwrap()).await;
    for media in ["application/grpc", "application/grpc+proto"] {
        for (path, status, code, said) in [
            ("/nodes/ct199/pkg.Service/Call", "14", "unknown_node", "no node ct199 is registered"),
            ("/agents/nobody/pkg.Service/Call", "14", "unknown_agent", "no node hosts an agent nobody"),
            ("/nodes/%C3%A4/pkg.Service/Call", "3", "bad_destination", ""),
        ] {
            let (answer, ended) = ask(outbound().await, path, media).await;
            assert_eq!(
                (answer.status.as_u16(), answer.header("grpc-status")),
                (200, Some(status)),
                "{answer:?}"
            );
            assert!(answer.header("grpc-message").unwrap().contains(said), "{answer:?}");
            assert_eq!(answer.header("content-type"), Some("application/grpc"));
            assert_eq!(answer.header("x-mesh-error"), Some(code));
            assert_eq!(answer.header("x-mesh-retryable"), Some("true"));
            assert!(ended && answer.body.is_empty() && answer.trailers.is_none(), "{answer:?}");
        }
    }
    let line = node.proxy().wait_log(&["INFO [Outbound] Request POST", "code=unknown_node"]).await;
    assert!(line.contains("status=200") && line.contains("ended=error"), "{line}");
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct112")).alpn(&["h2"]);
    let peer = web::h2(client.connect(node.inbound(), "ct110").await.unwrap()).await;
    let (answer, ended) = ask(peer, "/pkg.Service/Call", "application/grpc").await;
    assert_eq!(
        (answer.header("grpc-status"), answer.header("x-mesh-error")),
        (Some("7"), Some("peer_not_allowed"))
    );
    assert!(ended);
    // gRPC-Web is no gRPC.
    let outbound = web::h2(TcpStream::connect(node.outbound()).await.unwrap()).await;
    let (answer, _) = ask(outbound, "/nodes/ct199/x", "application/grpc-web+proto").await;
    answer.problem(404, "unknown_node");
}

#[tokio::test]
async fn a_grpc_client_is_told_that_an_agent_is_busy_and_that_it_asked_for_too_much() {
    let mesh = Mesh::new();
    let limited = |config: &mut Value| {
        config["proxy"]["backend"]["max_requests"] = json!(1);
        config["proxy"]["backend"]["max_queue"] = json!(0);
        config["proxy"]["limits"] = json!({"max_body_bytes": 1000, "max_requests_per_second_per_peer": 1, "max_header_bytes": 20_000});
    };
    let far = mesh.node("ct111").agent("grok").with(limited).start().await;
    let near = mesh.node("ct110").agent("opus").with(limited).start().await;
    near.reaches("ct111").await;
    let call = |target: &str| {
        let request = web::request(Method::POST, target).header("content-type", "application/grpc");
        request.header("te", "trailers")
    };
    let check = |answer: &Answer, status: &str, code: &str| {
        assert_eq!(
            (answer.status.as_u16(), answer.header("grpc-status"), answer.header("x-mesh-error")),
            (200, Some(status), Some(code)),
            "{answer:?}"
        );
        assert_eq!(answer.header("content-type"), Some("application/grpc"));
        assert!(answer.header("grpc-message").is_some_and(|message| message.len() > 15), "{answer:?}");
        assert!(answer.body.is_empty() && answer.trailers.is_none(), "{answer:?}");
    };

    // A peer that asks for more than it may have in a second.
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct112")).alpn(&["h2"]);
    let mut peer = web::h2(client.connect(far.inbound(), "ct111").await.unwrap()).await;
    let answer = eventually("the limit is met", async || {
        let request = call("https://ct111.mesh/pkg.Service/Call").body(web::empty()).unwrap();
        peer.ready().await.unwrap();
        let answer = Answer::read(peer.send_request(request).await.unwrap()).await.unwrap();
        (answer.header("x-mesh-error") == Some("rate_limited")).then_some(answer)
    })
    .await;
    check(&answer, "8", "rate_limited");

    // The head is larger than allowed.
    let large = call("/nodes/ct111/pkg.Service/Call").header("x-large", "x".repeat(21_000));
    let answer = web::send(near.outbound(), large.body(web::empty()).unwrap()).await;
    check(&answer, "3", "headers_too_large");

    // The agent's only place is taken. Told by the far side, it passes the near one.
    let outbound = near.outbound();
    let hanging = tokio::spawn(async move {
        loop {
            drop(web::open(outbound, web::get_with("/nodes/ct111/hang", &[])).await);
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    });
    let answer = eventually("the agent is busy", async || {
        let mut h2 = web::h2(TcpStream::connect(near.outbound()).await.unwrap()).await;
        let request =
            call("http://localhost/nodes/ct111/pkg.Service/Call").body(web::full("message")).unwrap();
        let response = h2.send_request(request).await.unwrap();
        let ended = response.body().is_end_stream();
        let answer = Answer::read(response).await.unwrap();
        (ended && answer.header("x-mesh-error") == Some("agent_busy")).then_some(answer)
    })
    .await;
    check(&answer, "14", "agent_busy");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.header("x-mesh-retryable"), Some("true"));
    hanging.abort();
}

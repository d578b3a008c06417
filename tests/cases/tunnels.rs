//! CONNECT: programs that open a tunnel through their proxy for every host, and speak plain HTTP inside.

use http::{Method, Request};
use hyper_util::rt::TokioIo;
use mesh_tests::frames::{self, PING, PREFACE, SETTINGS, frame};
use mesh_tests::loopback::Loopback;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::web::{self, Answer, Connection};
use mesh_tests::{eventually, process, within};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn connect_to(target: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n")
}

/// The head of an answer; `None` where the connection ends first.
async fn try_head(stream: &mut TcpStream) -> Option<String> {
    within("the head of an answer", web::read_head(stream)).await
}

async fn head(stream: &mut TcpStream) -> String {
    try_head(stream).await.expect("the connection ended before its answer")
}

/// A tunnel to `target`.
async fn tunnel(node: &Node, target: &str) -> TcpStream {
    let mut stream = TcpStream::connect(node.outbound()).await.unwrap();
    stream.write_all(connect_to(target).as_bytes()).await.unwrap();
    let head = head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{target}: {head}");
    assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{target}: {head}");
    stream
}

async fn ended(mut stream: TcpStream) -> String {
    let mut rest = Vec::new();
    let _ = within("the end of the tunnel", stream.read_to_end(&mut rest)).await;
    process::text(&rest)
}

#[tokio::test]
async fn http1_http2_and_websockets_pass_a_tunnel_to_a_node_or_an_agent() {
    let mesh = Mesh::new();
    let (mut one, two) = mesh.pair().await;
    for target in ["ct111.mesh:80", "CT111.mesh:3000", "grok.agent.mesh:80"] {
        let mut http1 = Connection::over(tunnel(&one, target).await).await;
        // Whatever a path looks like, it is the agent's.
        for path in ["/a?b", "/nodes/ct110/x", "/mesh/nodes"] {
            let request = web::get_with(path, &[("host", target)]);
            let answer = http1.send(request).await;
            assert_eq!((answer.text(), answer.header("x-agent")), (format!("GET {path}"), Some("grok")));
        }
        let echo = web::request(Method::POST, "/echo").body(web::full(vec![b'x'; 1 << 20])).unwrap();
        assert_eq!(http1.send(echo).await.body.len(), 1 << 20);

        let mut http2 = web::h2(tunnel(&one, target).await).await;
        for path in ["/c", "/d"] {
            http2.ready().await.unwrap();
            let request = web::get_with(&format!("http://{target}{path}"), &[]);
            let answer = within("an answer", http2.send_request(request)).await.unwrap();
            assert_eq!(Answer::read(answer).await.unwrap().text(), format!("GET {path}"));
        }

        let mut stream = tunnel(&one, target).await;
        let ask =
            "GET /socket HTTP/1.1\r\nhost: ct111.mesh\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(ask.replace("ct111.mesh", target).as_bytes()).await.unwrap();
        let switched = head(&mut stream).await;
        assert!(switched.starts_with("HTTP/1.1 101 "), "{target}: {switched}");
        for said in ["hello", "again", "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"] {
            stream.write_all(said.as_bytes()).await.unwrap();
            let mut heard = vec![0; said.len()];
            within("what comes back", stream.read_exact(&mut heard)).await.unwrap();
            assert_eq!(process::text(&heard), said.to_uppercase());
        }
    }
    assert_eq!(two.agent().last().all("x-mesh-peer-cn"), ["ct110"]);
    one.proxy().wait_log(&["[Outbound] Request CONNECT grok.agent.mesh:80 status=200"]).await;
    one.proxy().wait_log(&["[Outbound] Request GET /a", "status=200", "node=ct111"]).await;
}

#[tokio::test]
async fn a_stream_of_http2_may_be_a_tunnel_as_well() {
    let mesh = Mesh::new();
    let (one, _two) = mesh.pair().await;
    let mut h2 = web::h2(TcpStream::connect(one.outbound()).await.unwrap()).await;
    let ask = |target| Request::connect(target).body(web::empty()).unwrap();
    let refused = within("an answer", h2.send_request(ask("ct111.mesh:443"))).await.unwrap();
    Answer::read(refused).await.unwrap().problem(400, "bad_destination");
    for _ in 0..2 {
        let answer = within("an answer", h2.send_request(ask("grok.agent.mesh:80"))).await.unwrap();
        assert_eq!(answer.status(), 200);
        let tunnel = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
        let mut inside = Connection::over(tunnel).await;
        for path in ["/a", "/b"] {
            assert_eq!(inside.send(web::get_with(path, &[])).await.text(), format!("GET {path}"));
        }
    }
    // The others go on.
    let answer =
        within("an answer", h2.send_request(web::get_with("http://ct111.mesh/c", &[]))).await.unwrap();
    assert_eq!(Answer::read(answer).await.unwrap().text(), "GET /c");
}

#[tokio::test]
async fn a_tunnel_of_http2_that_stalls_is_given_up() {
    let mesh = Mesh::new();
    let soon = |config: &mut serde_json::Value| config["proxy"]["timeouts"] = json!({"unread_ms": 2000});
    let (mut one, _two) =
        tokio::join!(mesh.node("ct110").with(soon).agent("opus").start(), mesh.start("ct111", "grok"));
    one.reaches("ct111").await;
    let stream = TcpStream::connect(one.outbound()).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut sender = within("room for a request", sender.ready()).await.unwrap();
    let ask = Request::connect("ct111.mesh:80").body(()).unwrap();
    let (answer, mut inside) = sender.send_request(ask, false).unwrap();
    let answer = within("an answer", answer).await.unwrap();
    assert_eq!(answer.status(), 200);
    // Nobody takes the answer, which is larger than the window.
    inside.send_data("GET /large HTTP/1.1\r\nhost: ct111.mesh\r\n\r\n".into(), false).unwrap();
    one.proxy().wait_log(&["[Outbound] Request GET /large", "ended=cut_by_caller"]).await;
    // The connection is well.
    let mut sender = within("room for a request", sender.ready()).await.unwrap();
    let ask = Request::get("http://ct111.mesh/x").body(()).unwrap();
    let (next, _) = sender.send_request(ask, true).unwrap();
    assert_eq!(within("an answer", next).await.unwrap().status(), 200);
    drop(answer);
}

#[tokio::test]
async fn what_could_be_a_body_or_a_tunnels_first_bytes_is_refused() {
    let mesh = Mesh::new();
    let (one, two) = mesh.pair().await;
    let hidden = "GET /hidden HTTP/1.1\r\nhost: ct111.mesh\r\nconnection: close\r\n\r\n";
    let length = format!("content-length: {}\r\n\r\n{hidden}", hidden.len());
    let chunked = format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    for framed in [length, chunked] {
        let head = "CONNECT ct111.mesh:80 HTTP/1.1\r\nhost: ct111.mesh:80\r\nconnection: close\r\n";
        let told = web::raw(one.outbound(), (head.to_owned() + &framed).as_bytes()).await;
        assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("CONNECT request with a body"), "{told}");
        assert_eq!(told.matches("HTTP/1.1 ").count(), 1, "{told}");
    }
    for target in ["ct111.mesh", "http://ct111.mesh/", "http://ct111.mesh:80/x"] {
        let head = format!("CONNECT {target} HTTP/1.1\r\nhost: ct111.mesh\r\nconnection: close\r\n\r\n");
        let told = web::raw(one.outbound(), head.as_bytes()).await;
        assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("a host and a port"), "{told}");
    }
    assert!(two.agent().requests().is_empty());
    // Without content it is one all the same, and old clients have no Host.
    for head in ["HTTP/1.1\r\nhost: ct111.mesh\r\ncontent-length: 0\r\n", "HTTP/1.0\r\n"] {
        let request = format!("CONNECT ct111.mesh:80 {head}\r\n{}", hidden.replace("hidden", "shown"));
        let told = web::raw(one.outbound(), request.as_bytes()).await;
        assert!(told.contains(" 200 OK") && told.ends_with("GET /shown"), "{told}");
    }
}

#[tokio::test]
async fn what_is_sent_before_the_200_is_not_lost() {
    let mesh = Mesh::new();
    let (one, _two) = mesh.pair().await;
    let request = "GET /early HTTP/1.1\r\nhost: ct111.mesh\r\nconnection: close\r\n\r\n";
    let told = web::raw(one.outbound(), (connect_to("ct111.mesh:80") + request).as_bytes()).await;
    let (tunnel, answer) = told.split_once("\r\n\r\n").unwrap();
    assert!(tunnel.starts_with("HTTP/1.1 200 "), "{told}");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("GET /early"), "{told}");

    let ping = frame(PING, 0, 0, b"12345678");
    let mut stream = TcpStream::connect(one.outbound()).await.unwrap();
    let early =
        [connect_to("ct111.mesh:80").as_bytes(), PREFACE, &frame(SETTINGS, 0, 0, &[]), &ping].concat();
    stream.write_all(&early).await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 200 "));
    let pong = frame(PING, frames::ACK, 0, b"12345678");
    let mut came = Vec::new();
    while !came.windows(pong.len()).any(|bytes| bytes == pong) {
        assert_ne!(within("the answer to PING", stream.read_buf(&mut came)).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_tunnel_elsewhere_is_refused_with_what_to_do_and_the_connection_goes_on() {
    let mesh = Mesh::new();
    let own = Loopback::take();
    let plan = mesh.node("ct110").agent("opus").with(|config| {
        config["proxy"]["outbound"]["listeners"] =
            json!([{"listen": own.port(3111).to_string(), "node": "ct111"}]);
    });
    let (one, _two) = tokio::join!(plan.start(), mesh.start("ct111", "grok"));
    one.reaches("ct111").await;
    let mut kept = TcpStream::connect(one.outbound()).await.unwrap();
    for (target, status, code, told) in [
        ("example.org:80", 403, "not_in_mesh", "example.org"),
        ("ct111.mesh:443", 400, "bad_destination", "http://"),
        ("grok.agent.mesh:443", 400, "bad_destination", "http://"),
        ("ct111.mesh:22", 400, "bad_destination", "http://ct111.mesh/"),
        ("127.0.0.1:80", 400, "bad_destination", "no_proxy"),
    ] {
        kept.write_all(connect_to(target).as_bytes()).await.unwrap();
        let head = head(&mut kept).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{target}: {head}");
        assert!(head.contains(&format!("x-mesh-error: {code}")), "{target}: {head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        within("the body", kept.read_exact(&mut body)).await.unwrap();
        let body = process::text(&body);
        assert!(body.contains(told), "{target}: {body}");
    }
    // What is no HTTP is told as anywhere.
    kept.write_all(b"BAD \x01\r\n\r\n").await.unwrap();
    let told = ended(kept).await;
    assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("x-mesh-error: bad_request"), "{told}");

    let page = web::request(Method::CONNECT, "ct111.mesh:80").header("host", "ct111.mesh:80");
    let page = page.header("origin", "https://evil.example").body(web::empty()).unwrap();
    web::send(one.outbound(), page).await.problem(403, "browser_request");

    // A listener that leads to one place has tunnels there only.
    for (target, status) in [("ct110.mesh:80", "400"), ("ct111.mesh:80", "200")] {
        let mut stream = TcpStream::connect(own.port(3111)).await.unwrap();
        stream.write_all(connect_to(target).as_bytes()).await.unwrap();
        let head = head(&mut stream).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{target}: {head}");
    }
}

#[tokio::test]
async fn a_tunnel_holds_its_connections_place_until_all_in_it_has_ended() {
    let mesh = Mesh::new();
    let limits = json!({"max_connections": 1});
    let plan = mesh.node("ct110").agent("opus").with(|config| config["proxy"]["limits"] = limits);
    let (one, _two) = tokio::join!(plan.start(), mesh.start("ct111", "grok"));
    let ask = "GET /socket HTTP/1.1\r\nhost: ct111.mesh\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    // Once ct111 is known, and the place is free of those who asked before.
    let mut stream = eventually("a WebSocket in a tunnel", async || {
        let mut stream = TcpStream::connect(one.outbound()).await.unwrap();
        stream.write_all((connect_to("ct111.mesh:80") + ask).as_bytes()).await.ok()?;
        try_head(&mut stream).await?;
        try_head(&mut stream).await.filter(|head| head.starts_with("HTTP/1.1 101 ")).map(|_| stream)
    })
    .await;
    for _ in 0..3 {
        let mut other = TcpStream::connect(one.outbound()).await.unwrap();
        assert!(matches!(within("the end", other.read(&mut [0])).await, Ok(0) | Err(_)), "it got a place");
    }
    stream.write_all(b"still").await.unwrap();
    let mut heard = [0; 5];
    within("what comes back", stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"STILL");
    drop(stream);
    eventually("the place is free again", async || {
        let mut other = TcpStream::connect(one.outbound()).await.unwrap();
        let _ = other.write_all(b"GET /nodes/ct111/x HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        let mut status = [0; 12];
        other.read_exact(&mut status).await.ok().filter(|_| &status == b"HTTP/1.1 200")
    })
    .await;
}

#[tokio::test]
async fn inside_a_tunnel_nothing_else_is_reached_and_no_one_else_spoken_for() {
    let mesh = Mesh::new();
    let (mut one, two) = mesh.pair().await;
    for target in ["ct111.mesh:80", "grok.agent.mesh:80"] {
        let mut inside = Connection::over(tunnel(&one, target).await).await;
        for (place, status, code) in [
            ("http://ct110.mesh/x", 400, "bad_destination"),
            ("http://opus.agent.mesh/x", 400, "bad_destination"),
            ("http://example.org/x", 403, "not_in_mesh"),
        ] {
            inside.send(web::get_with(place, &[])).await.problem(status, code);
        }
        let page = [("host", target), ("origin", "https://evil.example")];
        inside.send(web::get_with("/x", &page)).await.problem(403, "browser_request");

        let smuggled = [
            ("host", target),
            ("x-mesh-peer-cn", "ct999"),
            ("x_mesh_peer_cn", "ct999"),
            ("x-mesh-node", "ct999"),
            ("x-mesh-scheme", "ct999"),
            ("x-mesh-served-by", "ct999"),
            ("x-forwarded-client-cert", "Subject=\"CN=ct999\""),
            ("x-forwarded-for", "ct999"),
            ("x-forwarded-prefix", "/nodes/ct999"),
            ("forwarded", "for=ct999"),
            ("x-kept", "1"),
        ];
        assert_eq!(inside.send(web::get_with("/x", &smuggled)).await.status, 200);
        let seen = two.agent().last();
        assert_eq!(seen.all("x-mesh-peer-cn"), ["ct110"]);
        assert_eq!(seen.all("x-kept"), ["1"]);
        assert!(!format!("{:?}", seen.headers).contains("ct999"), "{:?}", seen.headers);
        if target.starts_with("grok") {
            let other = [("host", target), ("x-mesh-agent", "opus")];
            assert_eq!(inside.send(web::get_with("/x", &other)).await.status, 200);
            assert_eq!(two.agent().last().all("x-mesh-agent"), ["grok"], "not the tunnel's agent");
        }

        // Nor is there a tunnel in a tunnel: a thousand of them would be more than a thread's stack bears.
        for place in ["ct110.mesh:80", target] {
            let mut stream = tunnel(&one, target).await;
            stream.write_all(connect_to(place).as_bytes()).await.unwrap();
            let head = head(&mut stream).await;
            assert!(head.starts_with("HTTP/1.1 400 ") && head.contains("bad_destination"), "{head}");
        }

        let skip = one.proxy().log().len();
        let mut stream = tunnel(&one, target).await;
        stream.write_all(b"GET /a b HTTP/1.1\r\nhost: ct111.mesh\r\n\r\n").await.unwrap();
        let told = ended(stream).await;
        assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("\"code\":\"bad_request\""), "{told}");
        one.proxy()
            .wait_log_after(skip, &["Outbound", "Refused a malformed request", "code=bad_request"])
            .await;
    }
}

#[tokio::test]
async fn an_idle_tunnel_stays_and_one_that_is_half_closed_ends_with_its_request() {
    let mesh = Mesh::new();
    // None of these times is a local program's.
    let short = json!({"header_ms": 50, "first_request_ms": 50, "body_ms": 50, "pool_idle_ms": 50, "drain_ms": 20_000});
    let plan = mesh.node("ct110").agent("opus").with(|config| config["proxy"]["timeouts"] = short);
    let (mut one, two) = tokio::join!(plan.start(), mesh.start("ct111", "grok"));
    one.reaches("ct111").await;
    let idle = tunnel(&one, "ct111.mesh:80").await;
    let mut used = Connection::over(tunnel(&one, "ct111.mesh:80").await).await;
    assert_eq!(used.send(web::get_with("/x", &[])).await.status, 200);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(used.send(web::get_with("/x", &[])).await.status, 200);
    assert_eq!(Connection::over(idle).await.send(web::get_with("/x", &[])).await.status, 200);

    let mut stream = tunnel(&one, "ct111.mesh:80").await;
    stream.shutdown().await.unwrap();
    assert_eq!(ended(stream).await, "");
    // As on any connection, whoever half-closes is taken for gone.
    let mut stream = tunnel(&one, "ct111.mesh:80").await;
    stream.write_all(b"GET /hang HTTP/1.1\r\nhost: ct111.mesh\r\n\r\n").await.unwrap();
    one.comes_to("/nodes/ct111/x", None).await;
    stream.shutdown().await.unwrap();
    two.agent().gone().await;
    ended(stream).await;

    // What is under way in a tunnel ends before the sidecar does; tunnels in which nothing is do not hold it up.
    let idle = tunnel(&one, "ct111.mesh:80").await;
    let mut inside = Connection::over(tunnel(&one, "grok.agent.mesh:80").await).await;
    let (answer, task) = tokio::join!(inside.open(web::get_with("/stream", &[])), two.agent().stream());
    let mut answer = answer.unwrap().into_body();
    one.proxy().signal(libc::SIGTERM);
    one.proxy().wait_log(&["[Mesh] stopping; 0 inbound and 1 outbound requests finish first"]).await;
    ended(idle).await;
    task.send(web::piece("done")).unwrap();
    drop(task);
    web::expect_data(&mut answer, "done").await;
    assert!(web::next_data(&mut answer).await.is_none());
    assert!(one.proxy().exited().await.success());
    assert!(one.proxy().lines_with(&["are cut off"]).is_empty());
}

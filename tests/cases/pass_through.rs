//! Everything that is not the sidecar's own goes to the backend as it came, with the verified identity.

use std::time::Duration;

use http::{Method, StatusCode};
use mesh_tests::ca::Spec;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::tls::Client;
use mesh_tests::web::{self, Answer};
use mesh_tests::{eventually, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A node whose sidecar runs alone, with an agent behind it.
async fn sidecar(mesh: &Mesh) -> Node {
    let mut node = mesh.node("ct110").agent("opus").prepare().await;
    node.start_proxy().await;
    node
}

#[tokio::test]
async fn any_method_path_and_query_reaches_the_backend_unchanged() {
    let mesh = Mesh::new();
    let node = sidecar(&mesh).await;
    for target in [
        "/",
        "/a/b?c=d&e=%2F%20",
        "/api/message2",
        "/api/mesh/other",
        "//double//slash",
        "/nodes/ct111/x",
        "/%7Euser/ä".trim_end_matches('ä'),
        "/?q",
    ] {
        let answer = node.get_from_peer(&mesh, "ct111", target).await;
        assert_eq!(answer.text(), format!("GET {target}"));
        assert_eq!(answer.header("x-agent"), Some("opus"), "a header of the backend's was lost");
    }
    for method in [Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS, Method::POST] {
        let request = web::request(method.clone(), "/x").body(web::full("body")).unwrap();
        assert_eq!(node.from_peer(&mesh, "ct111", request).await.text(), format!("{method} /x"));
    }
    for code in [200, 404, 418, 500, 503] {
        let answer = node.get_from_peer(&mesh, "ct111", &format!("/status/{code}")).await;
        assert_eq!(answer.status.as_u16(), code);
        assert_eq!(answer.header("x-mesh-error"), None, "the backend's own error was changed");
    }
}

#[tokio::test]
async fn the_backend_is_told_the_verified_identity_and_only_that() {
    let mesh = Mesh::new();
    let node = sidecar(&mesh).await;
    let spoofed = || {
        web::request(Method::GET, "/headers")
            .header("x-mesh-peer-cn", "ct999")
            .header("X-Mesh-Peer-CN", "root")
            .header("x-forwarded-client-cert", "Subject=\"CN=ct999\"")
            .header("x-forwarded-for", "10.9.9.9")
            // CGI and WSGI servers take them for the same.
            .header("x_mesh_peer_cn", "ct999")
            .header("X-Mesh_Peer-CN", "ct999")
            .header("x_forwarded_client_cert", "Subject=\"CN=ct999\"")
            .header("x-real-header", "kept")
    };
    let http1 = spoofed().body(web::empty()).unwrap();
    assert_eq!(node.from_peer(&mesh, "ct111", http1).await.status, 200);
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111")).alpn(&["h2"]);
    let mut h2 = web::h2(client.connect(node.inbound(), "ct110").await.unwrap()).await;
    let request = spoofed().uri("https://ct110.mesh/headers").body(web::empty()).unwrap();
    assert_eq!(h2.send_request(request).await.unwrap().status(), 200);

    let requests = node.agent().requests();
    assert_eq!(requests.len(), 2);
    for seen in requests {
        assert_eq!(seen.all("x-mesh-peer-cn"), ["ct111"]);
        let certificate = seen.all("x-forwarded-client-cert");
        assert_eq!(certificate.len(), 1);
        assert!(certificate[0].contains("Subject=\"CN=ct111\""), "{certificate:?}");
        assert!(!format!("{:?}", seen.headers).contains("ct999"), "{:?}", seen.headers);
        assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(seen.all("x-real-header"), ["kept"]);
    }
}

#[tokio::test]
async fn no_identity_comes_in_by_trailers_and_no_error_goes_out_by_them() {
    let mesh = Mesh::new();
    let (one, two) = mesh.pair().await;
    let chunked = "transfer-encoding: chunked\r\nte: trailers\r\ntrailer: x-mesh-peer-cn, x-checksum\r\n\r\n\
                   5\r\nhello\r\n0\r\nx-mesh-peer-cn: ct999\r\nx_mesh_peer_cn: ct999\r\nx-checksum: 7\r\n\r\n";
    let request = format!("POST /trailers HTTP/1.1\r\nhost: ct111.mesh\r\nconnection: close\r\n{chunked}");
    let direct = Client::new(&mesh.ca, &mesh.ca.node("ct112"));
    let stream = direct.connect(two.inbound(), "ct111").await.unwrap();
    let direct = web::raw_on(stream, request.as_bytes()).await;
    let through = web::raw(one.outbound(), request.as_bytes()).await;
    for answer in [direct, through] {
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("hello"), "{answer}");
        assert!(!answer.contains("forged"), "{answer}");
    }
    let trailers = two.agent().trailers();
    assert_eq!(trailers.len(), 2);
    for trailers in trailers {
        assert_eq!(trailers.get("x-checksum").unwrap(), "7");
        assert!(!format!("{trailers:?}").contains("ct999"), "{trailers:?}");
    }
}

#[tokio::test]
async fn what_http_2_says_differently_is_said_the_http_1_way() {
    let mesh = Mesh::new();
    let node = sidecar(&mesh).await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111")).alpn(&["h2"]);
    let mut h2 = web::h2(client.connect(node.inbound(), "ct110").await.unwrap()).await;
    let request = web::request(Method::GET, "https://ct110.mesh/headers")
        .header("host", "CT110.MESH")
        .header("cookie", "a=1")
        .header("cookie", "b=2");
    assert_eq!(h2.send_request(request.body(web::empty()).unwrap()).await.unwrap().status(), 200);
    let seen = node.agent().last();
    assert_eq!(seen.all("x-forwarded-host"), ["ct110.mesh"], "`:authority` counts");
    assert_eq!(seen.all("host"), [node.backend().to_string()]);
    assert_eq!(seen.all("cookie"), ["a=1; b=2"]);
}

#[tokio::test]
async fn every_kind_of_identity_is_passed_on() {
    let mesh = Mesh::new();
    let node = sidecar(&mesh).await;
    for (cn, shown) in
        [("ct111.mesh", "ct111"), ("opus@ct111", "opus@ct111"), ("device:phone", "device:phone")]
    {
        let identity = mesh.ca.issue(&Spec { cn: Some(cn.into()), ..Spec::node("ct111") });
        let request = web::request(Method::GET, "/").body(web::empty()).unwrap();
        Client::new(&mesh.ca, &identity).send(node.inbound(), "ct110", request).await;
        assert_eq!(node.agent().last().all("x-mesh-peer-cn"), [shown]);
    }
}

#[tokio::test]
async fn hop_by_hop_headers_stay_on_their_hop() {
    let mesh = Mesh::new();
    let node = sidecar(&mesh).await;
    let request = web::request(Method::GET, "/x")
        .header("connection", "x-secret-hop, keep-alive")
        .header("x-secret-hop", "1")
        .header("keep-alive", "timeout=5")
        .header("proxy-authorization", "Basic eDp5")
        .header("te", "gzip")
        .body(web::empty())
        .unwrap();
    assert_eq!(node.from_peer(&mesh, "ct111", request).await.status, 200);
    let seen = node.agent().last();
    for name in ["x-secret-hop", "keep-alive", "proxy-authorization"] {
        assert!(seen.all(name).is_empty(), "{name} was passed on: {:?}", seen.headers);
    }
}

#[tokio::test]
async fn an_upload_reaches_the_backend_piece_by_piece() {
    let mesh = Mesh::new();
    let node = sidecar(&mesh).await;
    let mut connection = Client::new(&mesh.ca, &mesh.ca.node("ct111")).http(node.inbound(), "ct110").await;
    let (sender, body) = web::channel();
    let request = web::request(Method::POST, "/upload").body(body).unwrap();
    let exchange = connection.open(request);
    let feed = async {
        for part in ["one", "two", "three"] {
            sender.send(web::piece(part)).unwrap();
            // The next piece is sent only when this one has arrived.
            assert_eq!(node.agent().upload().await.as_deref(), Some(part.as_bytes()));
        }
        drop(sender);
        assert_eq!(node.agent().upload().await, None);
    };
    let (response, ()) = tokio::join!(within("answer to the upload", exchange), feed);
    assert_eq!(Answer::read(response.unwrap()).await.unwrap().text(), "uploaded");
}

#[tokio::test]
async fn an_answer_reaches_the_peer_piece_by_piece() {
    let mesh = Mesh::new();
    let node = sidecar(&mesh).await;
    for protocol in ["http/1.1", "h2"] {
        let client = Client::new(&mesh.ca, &mesh.ca.node("ct111")).alpn(&[protocol]);
        let stream = client.connect(node.inbound(), "ct110").await.unwrap();
        let request = web::request(Method::GET, "https://ct110.mesh/stream").body(web::empty()).unwrap();
        let open = async {
            match protocol {
                "h2" => web::h2(stream).await.send_request(request).await.unwrap(),
                _ => web::Connection::over(stream).await.open(request).await.unwrap(),
            }
        };
        let (mut response, sender) = tokio::join!(within("head of the answer", open), node.agent().stream());
        for part in ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"] {
            sender.send(web::piece(part)).unwrap();
            web::expect_data(response.body_mut(), part).await;
        }
        drop(sender);
        assert_eq!(web::next_data(response.body_mut()).await, None);
    }
}

#[tokio::test]
async fn answers_without_a_body_stay_without() {
    let mesh = Mesh::new();
    let node = sidecar(&mesh).await;
    let identity = mesh.ca.node("ct111");
    // On one connection, so that a stray body would break the next exchange.
    let mut connection = Client::new(&mesh.ca, &identity).http(node.inbound(), "ct110").await;
    for _ in 0..2 {
        for (method, target, status) in [
            (Method::HEAD, "/some/page", StatusCode::OK),
            (Method::GET, "/status/204", StatusCode::NO_CONTENT),
            (Method::GET, "/status/304", StatusCode::NOT_MODIFIED),
            (Method::DELETE, "/status/204", StatusCode::NO_CONTENT),
        ] {
            let answer = connection.send(web::request(method, target).body(web::empty()).unwrap()).await;
            assert_eq!((answer.status, answer.body.len()), (status, 0), "{target}");
        }
        let answer = connection.send(web::request(Method::GET, "/whole").body(web::empty()).unwrap()).await;
        assert_eq!(answer.text(), "GET /whole");
    }
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it() {
    let mesh = Mesh::new();
    let node = sidecar(&mesh).await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111"));
    let mut stream = client.connect(node.inbound(), "ct110").await.unwrap();
    stream
        .write_all(b"POST /trailers HTTP/1.1\r\nhost: ct110.mesh\r\nexpect: 100-continue\r\ncontent-length: 5\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut interim = [0; 25];
    within("100 Continue", stream.read_exact(&mut interim)).await.unwrap();
    assert_eq!(mesh_tests::process::text(&interim), "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut answer = Vec::new();
    let _ = within("the answer", stream.read_to_end(&mut answer)).await;
    let answer = mesh_tests::process::text(&answer);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("hello"), "{answer}");
}

#[tokio::test]
async fn a_peer_that_goes_away_cancels_its_request() {
    let mesh = Mesh::new();
    let node = sidecar(&mesh).await;
    for protocol in ["http/1.1", "h2"] {
        let client = Client::new(&mesh.ca, &mesh.ca.node("ct111")).alpn(&[protocol]);
        let stream = client.connect(node.inbound(), "ct110").await.unwrap();
        let request = web::request(Method::GET, "https://ct110.mesh/hang").body(web::empty()).unwrap();
        let task = tokio::spawn(async move {
            match protocol {
                "h2" => web::h2(stream).await.send_request(request).await,
                _ => web::Connection::over(stream).await.open(request).await,
            }
        });
        let before = if protocol == "h2" { 1 } else { 0 };
        eventually("the request arrives", async || (node.agent().requests().len() > before).then_some(()))
            .await;
        task.abort();
        node.agent().gone().await;
    }
}

#[tokio::test]
async fn connections_to_the_backend_are_pooled() {
    let mesh = Mesh::new();
    let node = sidecar(&mesh).await;
    let mut connection = Client::new(&mesh.ca, &mesh.ca.node("ct111")).http(node.inbound(), "ct110").await;
    for _ in 0..30 {
        let request = web::request(Method::POST, "/echo").body(web::full("x")).unwrap();
        assert_eq!(connection.send(request).await.text(), "x");
        // A connection is put back a moment after its answer, on a busy machine.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let connections = node.agent().connections();
    // A pause of more than a second and a half, on a very busy machine, takes a new one.
    assert!(connections <= 10, "{connections} connections for 30 requests one after the other");
}

#[tokio::test]
async fn a_backend_that_is_down_and_comes_back() {
    let mesh = Mesh::new();
    let mut node = sidecar(&mesh).await;
    assert_eq!(node.get_from_peer(&mesh, "ct111", "/").await.status, 200);
    node.stop_agent().await;
    let backend = node.backend().to_string();
    let detail = eventually("nobody is found on the backend's address", async || {
        let answer = node.get_from_peer(&mesh, "ct111", "/").await;
        match answer.header("x-mesh-error") {
            // It met the end of a connection in use.
            Some("backend_failed") => None,
            _ => Some(answer.problem(502, "backend_unreachable")),
        }
    })
    .await;
    assert!(detail.contains(&backend), "the address is not named: {detail}");
    assert_eq!(
        node.get_from_peer(&mesh, "ct111", "/api/mesh/ping").await.status,
        200,
        "the node itself is up"
    );
    node.start_agent("opus").await;
    assert_eq!(node.get_from_peer(&mesh, "ct111", "/").await.status, 200);
}

#[tokio::test]
async fn a_backend_that_breaks_in_the_middle_breaks_the_answer() {
    let mesh = Mesh::new();
    let node = sidecar(&mesh).await;
    let mut connection = Client::new(&mesh.ca, &mesh.ca.node("ct111")).http(node.inbound(), "ct110").await;
    let request = web::request(Method::GET, "/break").body(web::empty()).unwrap();
    let outcome = match connection.open(request).await {
        Ok(response) => Answer::read(response).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(answer) => _ = answer.problem(502, "backend_failed"),
        Err(error) => assert!(!error.is_timeout(), "{error:?}"),
    }
}

#[tokio::test]
async fn a_backend_that_speaks_no_http_is_named() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    let listener = tokio::net::TcpListener::bind(node.backend()).await.unwrap();
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await;
        }
    });
    node.start_proxy().await;
    node.get_from_peer(&mesh, "ct111", "/").await.problem(502, "backend_failed");
    server.abort();
}

#[tokio::test]
async fn a_body_of_ten_megabytes_passes_and_a_larger_one_does_not() {
    let mesh = Mesh::new();
    let node = sidecar(&mesh).await;
    let limit = 10 * 1024 * 1024;
    let content: Vec<u8> = (0..limit).map(|i| (i % 251) as u8).collect();
    for protocol in ["http/1.1", "h2"] {
        let client = Client::new(&mesh.ca, &mesh.ca.node("ct111")).alpn(&[protocol]);
        let send = async |body: web::Body| {
            let stream = client.connect(node.inbound(), "ct110").await.unwrap();
            let request = web::request(Method::POST, "https://ct110.mesh/echo").body(body).unwrap();
            within("answer", async {
                let response = match protocol {
                    "h2" => web::h2(stream).await.send_request(request).await?,
                    _ => web::Connection::over(stream).await.open(request).await?,
                };
                Answer::read(response).await
            })
            .await
        };
        let answer = send(web::full(content.clone())).await.unwrap();
        assert!(answer.body == content, "{protocol}: {} of {limit} bytes came back", answer.body.len());

        // One byte too many, announced: refused before the backend sees it.
        let seen = node.agent().requests().len();
        let mut larger = content.clone();
        larger.push(0);
        match send(web::full(larger.clone())).await {
            Ok(answer) => _ = answer.problem(413, "body_too_large"),
            // The refusal may overtake the body; HTTP/1.1 then closes the connection under the writer.
            Err(error) => assert_eq!(protocol, "http/1.1", "{error:?}"),
        }
        assert_eq!(node.agent().requests().len(), seen, "the backend was asked");
    }
    let request = web::request(Method::POST, "/x").header("content-length", (limit + 1).to_string());
    let (_sender, body) = web::channel();
    let answer = node.from_peer(&mesh, "ct111", request.body(body).unwrap()).await;
    answer.problem(413, "body_too_large");
}

#[tokio::test]
async fn a_body_of_unknown_length_is_cut_off_at_the_limit() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").agent("opus").with(|config| {
        config["proxy"]["limits"] = serde_json::json!({"max_body_bytes": 100_000});
    });
    let mut node = plan.prepare().await;
    node.start_proxy().await;
    for protocol in ["http/1.1", "h2"] {
        let client = Client::new(&mesh.ca, &mesh.ca.node("ct111")).alpn(&[protocol]);
        let stream = client.connect(node.inbound(), "ct110").await.unwrap();
        let (sender, body) = web::channel();
        for _ in 0..11 {
            sender.send(web::piece(vec![7; 10_000])).unwrap();
        }
        // Not ended: the limit counts, not the end.
        let request = web::request(Method::POST, "https://ct110.mesh/upload").body(body).unwrap();
        let answer = within("refusal", async {
            let response = match protocol {
                "h2" => web::h2(stream).await.send_request(request).await.unwrap(),
                _ => web::Connection::over(stream).await.open(request).await.unwrap(),
            };
            Answer::read(response).await.unwrap()
        })
        .await;
        answer.problem(413, "body_too_large");
        drop(sender);
    }
}

#[tokio::test]
async fn headers_beyond_the_limit_are_refused() {
    let mesh = Mesh::new();
    let node = sidecar(&mesh).await;
    let mut request = web::request(Method::GET, "/x");
    for i in 0..100 {
        request = request.header(format!("x-large-{i}"), "x".repeat(1000));
    }
    let answer = node.from_peer(&mesh, "ct111", request.body(web::empty()).unwrap()).await;
    answer.problem(431, "headers_too_large");
    // By the near side, where the library reads a whole head of this size at once.
    let mut request = web::request(Method::GET, "/nodes/ct110/x");
    for i in 0..100 {
        request = request.header(format!("x-large-{i}"), "x".repeat(1000));
    }
    let answer = web::send(node.outbound(), request.body(web::empty()).unwrap()).await;
    answer.problem(431, "headers_too_large");
    assert!(node.agent().requests().is_empty());
}

#[tokio::test]
async fn answers_may_have_headers_as_large_as_requests() {
    let mesh = Mesh::new();
    let (one, _two) = mesh.pair().await;
    let answer = one.get("/nodes/ct111/wide").await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "wide"));
    assert_eq!(answer.header("x-wide-39"), Some("w".repeat(1000).as_str()));
}

#[tokio::test]
async fn connect_never_reaches_the_agent() {
    let mesh = Mesh::new();
    let node = sidecar(&mesh).await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111"));
    let stream = client.connect(node.inbound(), "ct110").await.unwrap();
    let request = b"CONNECT backend:80 HTTP/1.1\r\nhost: backend:80\r\nconnection: close\r\n\r\n";
    let answer = web::raw_on(stream, request).await;
    assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("connect_not_supported"), "{answer}");
    assert!(node.agent().requests().is_empty());
}

#[tokio::test]
async fn smuggled_requests_do_not_pass() {
    let mesh = Mesh::new();
    let node = sidecar(&mesh).await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111"));
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
    for (head, body, status) in [
        (
            "POST /a HTTP/1.1\r\nhost: ct110.mesh\r\ncontent-length: 4\r\ncontent-length: 30\r\n\r\n",
            "abcd",
            400,
        ),
        // The last coding is not chunked, so where the body ends is anybody's guess.
        (
            "POST /a HTTP/1.1\r\nhost: ct110.mesh\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n",
            "0\r\n\r\n",
            400,
        ),
        // Read as chunked, without the length, and nothing more is read after it (RFC 9112, section 6.3).
        (
            "POST /a HTTP/1.1\r\nhost: ct110.mesh\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n",
            "0\r\n\r\n",
            200,
        ),
        ("GET /a b HTTP/1.1\r\nhost: ct110.mesh\r\n\r\n", "", 400),
        ("GET /a HTTP/1.1\r\nhost: ct110.mesh\r\nx: a\r\n folded\r\n\r\n", "", 400),
        ("GET /a HTTP/1.1\r\nhost : ct110.mesh\r\n\r\n", "", 400),
    ] {
        let seen = node.agent().requests().len();
        let stream = client.connect(node.inbound(), "ct110").await.unwrap();
        // Not ended from here: who half-closes is taken for gone.
        let answer = web::raw_on(stream, format!("{head}{body}{smuggled}").as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head:?}: {answer}");
        let passed = &node.agent().requests()[seen..];
        assert!(passed.iter().all(|request| request.target == "/a"), "{head:?}: {passed:?}");
        assert_eq!(passed.len(), usize::from(status == 200), "{head:?}: {passed:?}");
        let lengths = passed.iter().flat_map(|request| request.all("content-length")).count();
        let codings = passed.iter().flat_map(|request| request.all("transfer-encoding")).count();
        assert!(lengths + codings <= 1, "{head:?}: {passed:?}");
    }
    // Where it ends is clear, so what follows is a request of its own.
    let seen = node.agent().requests().len();
    let stream = client.connect(node.inbound(), "ct110").await.unwrap();
    let request = b"GET /a HTTP/1.1\r\nhost: ct110.mesh\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answer = web::raw_on(stream, request).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("more than one Host"), "{answer}");
    assert_eq!(node.agent().requests().len(), seen);
}

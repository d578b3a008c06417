//! What the outbound side refuses, so that nothing but mesh nodes is reached and no web page uses the node.

use http::Method;
use mesh_tests::mesh::Mesh;
use mesh_tests::web;
use serde_json::json;

#[tokio::test]
async fn hosts_outside_the_mesh_are_refused() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    for (target, host) in [
        ("http://example.org/", None),
        ("http://example.org/nodes/ct110/", None),
        ("http://192.168.1.1/", None),
        ("http://ct111.mesh.example.org/", None),
        ("/", Some("example.org")),
        ("/nodes/ct110/", Some("example.org")),
        ("/mesh/nodes", Some("rebound.example.org:3001")),
        ("/", Some("169.254.169.254")),
    ] {
        let headers: Vec<_> = host.map(|host| ("host", host)).into_iter().collect();
        let answer = web::send(node.outbound(), web::get_with(target, &headers)).await;
        let detail = answer.problem(403, "not_in_mesh");
        assert!(detail.contains("mesh"), "{detail}");
    }
    let two = web::get_with("http://ct110.mesh/", &[("host", "example.org")]);
    web::send(node.outbound(), two).await.problem(400, "bad_request");
    assert!(node.agent().requests().is_empty());
}

#[tokio::test]
async fn requests_of_web_pages_are_refused() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    for headers in [
        [("origin", "https://evil.example"), ("x", "y")],
        [("origin", "null"), ("x", "y")],
        [("origin", "http://127.0.0.1:3001"), ("x", "y")],
        [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")],
        [("sec-fetch-site", "same-site"), ("x", "y")],
    ] {
        for target in ["/nodes/ct110/x", "/mesh/nodes", "/mesh/events", "http://ct110.mesh/"] {
            let answer = web::send(node.outbound(), web::get_with(target, &headers)).await;
            answer.problem(403, "browser_request");
            assert_eq!(answer.header("access-control-allow-origin"), None);
        }
    }
    // A preflight is refused in the same way.
    let preflight = web::request(Method::OPTIONS, "/nodes/ct110/x")
        .header("origin", "https://evil.example")
        .header("access-control-request-method", "POST");
    web::send(node.outbound(), preflight.body(web::empty()).unwrap()).await.problem(403, "browser_request");
    // A person who types the address into a browser is not a page.
    let typed = web::send(node.outbound(), web::get_with("/mesh/nodes", &[("sec-fetch-site", "none")])).await;
    assert_eq!(typed.status, 200);
    assert!(node.agent().requests().is_empty());
}

#[tokio::test]
async fn programs_may_send_an_origin_that_is_allowed_and_no_other() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").agent("opus").with(|config| {
        config["proxy"]["outbound"]["allowed_origins"] =
            json!(["http://ct110.mesh", "https://app.example:8443"]);
    });
    let node = plan.start().await;
    node.reaches("ct110").await;
    for origin in ["http://ct110.mesh", "HTTP://CT110.mesh", "https://app.example:8443"] {
        for target in ["/nodes/ct110/x", "http://ct110.mesh/x", "/agents/opus/x"] {
            let answer = web::send(node.outbound(), web::get_with(target, &[("origin", origin)])).await;
            assert_eq!(answer.status, 200, "{origin} {target}: {}", answer.text());
            assert_eq!(node.agent().last().all("origin"), [origin], "the agent may have its own opinion");
        }
    }
    let count = node.agent().requests().len();
    for headers in [
        &[("origin", "https://ct110.mesh")][..],
        &[("origin", "http://ct110.mesh:80")],
        &[("origin", "http://ct110.mesh.")],
        &[("origin", "http://ct110.mesh/")],
        &[("origin", "https://app.example")],
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
        &[("origin", "")],
        &[("origin", "http://ct110.mesh"), ("origin", "https://evil.example")],
        &[("origin", "https://evil.example"), ("origin", "http://ct110.mesh")],
        &[("origin", "http://ct110.mesh, https://evil.example")],
        &[("sec-fetch-site", "cross-site")],
    ] {
        web::send(node.outbound(), web::get_with("/nodes/ct110/x", headers))
            .await
            .problem(403, "browser_request");
    }
    assert_eq!(node.agent().requests().len(), count);
}

/// As Chromium 148 sends them where the sidecar is its proxy: for `http://ct110.mesh` there is no Sec-Fetch-Site.
#[tokio::test]
async fn a_browser_whose_proxy_is_the_sidecar_does_not_use_the_node() {
    const CHROMIUM: &str = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/148.0.0.0 Safari/537.36";
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let image = [("accept", "image/avif,image/webp,*/*;q=0.8"), ("referer", "http://page.test/")];
    let link = [("upgrade-insecure-requests", "1"), ("accept", "text/html,application/xhtml+xml")];
    let fetch = [("accept", "*/*"), ("accept-language", "en-US,en;q=0.9")];
    let prefetch = [("sec-purpose", "prefetch"), ("accept", "text/html")];
    for headers in [image, link, fetch, prefetch] {
        let headers = [&headers[..], &[("user-agent", CHROMIUM)]].concat();
        let request = web::get_with("http://ct110.mesh/x", &headers);
        let detail = web::send(node.outbound(), request).await.problem(403, "browser_request");
        assert!(
            detail.contains("http://127.0.0.1:3001/nodes/"),
            "the way for a person is not told: {detail}"
        );
    }
    // A second line does not make the first one true.
    for sites in [["none", "cross-site"], ["cross-site", "none"]] {
        let request = web::get_with("/mesh/nodes", &sites.map(|site| ("sec-fetch-site", site)));
        web::send(node.outbound(), request).await.problem(403, "browser_request");
    }
    assert!(node.agent().requests().is_empty());
    let typed = [("user-agent", CHROMIUM), ("sec-fetch-site", "none"), ("upgrade-insecure-requests", "1")];
    let answer = web::send(node.outbound(), web::get_with("/mesh/nodes", &typed)).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn requests_without_a_usable_destination_are_refused_in_words() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let detail = node.get("/").await.problem(400, "no_destination");
    assert!(detail.contains("/nodes/<node>/") && detail.contains("x-mesh-agent"), "{detail}");
    node.get("/api/message").await.problem(400, "no_destination");
    for target in ["/nodes/", "/nodes/a_b/", "/agents//x", "/nodes/%2e%2e/"] {
        node.get(target).await.problem(400, "bad_destination");
    }
    for headers in [[("x-mesh-node", "a b")], [("x-mesh-agent", "../x")]] {
        web::send(node.outbound(), web::get_with("/", &headers)).await.problem(400, "bad_destination");
    }
}

#[tokio::test]
async fn a_tunnel_for_tls_is_refused_and_the_way_out_told() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let told = web::raw(
        node.outbound(),
        b"CONNECT ct110.mesh:443 HTTP/1.1\r\nhost: ct110.mesh:443\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(told.starts_with("HTTP/1.1 400"), "{told}");
    assert!(told.contains("x-mesh-error: bad_destination") && told.contains("http://"), "{told}");
}

#[tokio::test]
async fn an_agent_cannot_speak_for_somebody_else() {
    let mesh = Mesh::new();
    let (peer, _address) = mesh.peer("ct150", &[]).await;
    let node = mesh.start("ct110", "opus").await;
    let spoofed = [
        ("x-mesh-peer-cn", "ct999"),
        ("x-forwarded-client-cert", "Subject=\"CN=ct999\""),
        ("x-forwarded-for", "10.9.9.9"),
        ("x_mesh_peer_cn", "ct999"),
        ("x-forwarded_client-cert", "Subject=\"CN=ct999\""),
        ("x-kept", "1"),
    ];
    assert_eq!(web::send(node.outbound(), web::get_with("/nodes/ct150/x", &spoofed)).await.status, 200);
    let seen = peer.example.last();
    for name in ["x-mesh-peer-cn", "x-forwarded-client-cert", "x-forwarded-for"] {
        assert!(seen.all(name).is_empty(), "{name} left the node: {:?}", seen.headers);
    }
    assert!(!format!("{:?}", seen.headers).contains("ct999"), "{:?}", seen.headers);
    assert_eq!(seen.all("x-kept"), ["1"]);
    // Nor towards its own registryd.
    let answer = web::send(node.outbound(), web::get_with("/mesh/nodes", &spoofed)).await;
    assert_eq!(answer.status, 200);
    let join = web::request(Method::POST, "/api/mesh/join").header("x-mesh-peer-cn", "ct999");
    let answer = web::send(node.outbound(), join.body(web::full("{}")).unwrap()).await;
    answer.problem(400, "no_destination");
}

//! Each way in which a request can fail on its way out: its own code, status and sentence.

use http::Method;
use mesh_tests::agent::Agent;
use mesh_tests::ca::{Ca, Spec};
use mesh_tests::loopback::Loopback;
use mesh_tests::mesh::Mesh;
use mesh_tests::tls::PeerOptions;
use mesh_tests::web;
use serde_json::json;
use tokio::net::TcpListener;

#[tokio::test]
async fn an_unknown_node_or_agent() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let detail = node.get("/nodes/ct199/x").await.problem(404, "unknown_node");
    assert!(detail.contains("ct199"), "{detail}");
    let detail = node.get("/agents/nobody/x").await.problem(404, "unknown_agent");
    assert!(detail.contains("nobody"), "{detail}");
}

#[tokio::test]
async fn a_node_or_agent_that_is_offline() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    mesh.register("ct150", "127.1.2.3", 3000, &["scout"]);
    mesh.amend("ct150", |entry| entry["status"] = json!("offline"));
    let answer = node.comes_to("/nodes/ct150/x", Some("node_offline")).await;
    let detail = answer.problem(503, "node_offline");
    assert!(detail.contains("ct150"), "{detail}");
    // Whether it is back can be asked all the same.
    let answer = node.get("/nodes/ct150/api/mesh/ping").await;
    assert_eq!(answer.header("x-mesh-error"), Some("peer_unreachable"), "{}", answer.text());
    let detail = node.get("/agents/scout/x").await.problem(503, "agent_offline");
    assert!(detail.contains("scout") && detail.contains("ct150"), "{detail}");
}

#[tokio::test]
async fn before_the_first_roster() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    node.start_proxy().await;
    for target in ["/nodes/ct111/x", "/agents/grok/x"] {
        let detail = node.get(target).await.problem(503, "no_roster");
        assert!(detail.contains("registryd"), "{detail}");
    }
    let detail = node.get("/mesh/agents").await.problem(503, "registry_unavailable");
    assert!(detail.contains("registryd"), "{detail}");
}

#[tokio::test]
async fn a_peer_with_another_nodes_valid_certificate_is_never_spoken_to() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let spec = |change: fn(&mut Spec)| {
        let mut spec = Spec::node("ct150");
        change(&mut spec);
        mesh.ca.issue(&spec)
    };
    for (what, identity, part) in [
        ("another node's", mesh.ca.node("ct151"), ""),
        ("the right SAN, but the CN of another", spec(|spec| spec.cn = Some("ct151".into())), "ct151"),
        ("the right CN, but the SAN of another", spec(|spec| spec.dns = vec!["ct151.mesh".into()]), ""),
        ("an agent's on the right node", spec(|spec| spec.cn = Some("opus@ct150".into())), "opus@ct150"),
        ("no SAN", spec(|spec| spec.dns.clear()), ""),
    ] {
        for alpn in [vec!["h2", "http/1.1"], vec!["http/1.1"]] {
            let options =
                PeerOptions { identity: identity.clone(), alpn, ..PeerOptions::good(&mesh.ca, "ct150") };
            let (peer, _address) = mesh.peer_with("ct150", &[], options).await;
            let answer = node.comes_to("/nodes/ct150/secret", Some("peer_identity_mismatch")).await;
            let detail = answer.problem(502, "peer_identity_mismatch");
            assert!(detail.contains("ct150") && detail.contains(part), "{what}: {detail}");
            assert!(peer.example.requests().is_empty(), "{what}: something was sent");
        }
    }
}

#[tokio::test]
async fn a_wrong_dns_answer_fails_and_never_redirects() {
    let mesh = Mesh::new();
    let (right, _address) = mesh.peer("ct150", &[]).await;
    let (wrong, address) = mesh.peer("ct151", &[]).await;
    let std::net::IpAddr::V4(ip) = address.ip() else { panic!("no IPv4") };
    mesh.dns.set("ct150.mesh", ip);
    let node = mesh.start("ct110", "opus").await;
    node.comes_to("/nodes/ct150/x", Some("peer_identity_mismatch")).await;
    assert!(wrong.example.requests().is_empty() && right.example.requests().is_empty());
}

#[tokio::test]
async fn names_are_resolved_by_dns_before_the_registrys_host() {
    let mesh = Mesh::new();
    let (peer, address) = mesh.peer("ct150", &[]).await;
    let std::net::IpAddr::V4(ip) = address.ip() else { panic!("no IPv4") };
    mesh.dns.set("ct150.mesh", ip);
    mesh.amend("ct150", |entry| entry["host"] = json!("127.1.2.3"));
    let node = mesh.start("ct110", "opus").await;
    node.comes_to("/nodes/ct150/x", None).await;
    assert_eq!(peer.example.requests().len(), 1);
}

#[tokio::test]
async fn a_peer_whose_certificate_does_not_verify() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let foreign = Ca::new();
    let spec = |change: fn(&mut Spec)| {
        let mut spec = Spec::node("ct150");
        change(&mut spec);
        mesh.ca.issue(&spec)
    };
    for (identity, reason) in [
        (foreign.node("ct150"), "unknown issuer"),
        (spec(|spec| spec.until = 2025), "expired"),
        (spec(|spec| spec.from = 2089), "not valid yet"),
        (spec(|spec| spec.server = false), "serverAuth"),
    ] {
        let options = PeerOptions { identity, ..PeerOptions::good(&mesh.ca, "ct150") };
        let (peer, _address) = mesh.peer_with("ct150", &[], options).await;
        let detail =
            node.comes_to("/nodes/ct150/secret", Some("peer_untrusted")).await.problem(502, "peer_untrusted");
        // The address in the roster may still be that of the peer before.
        let _ = mesh_tests::eventually(reason, async || {
            let answer = node.get("/nodes/ct150/secret").await;
            (answer.header("x-mesh-error") == Some("peer_untrusted") && answer.text().contains(reason))
                .then_some(())
        })
        .await;
        assert!(detail.contains("ct150"), "{detail}");
        assert!(peer.example.requests().is_empty());
    }
}

#[tokio::test]
async fn a_peer_that_refuses_our_certificate() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").agent("opus");
    let plan = plan.with(|config| config["proxy"]["tls"]["min_version"] = "1.2".into());
    let node = plan.start().await;
    for versions in [vec![&rustls::version::TLS13], vec![&rustls::version::TLS12]] {
        for alpn in [vec!["h2", "http/1.1"], vec!["http/1.1"]] {
            let options = PeerOptions {
                clients_of: Ca::new().roots(),
                versions: versions.clone(),
                alpn,
                ..PeerOptions::good(&mesh.ca, "ct150")
            };
            let (peer, _address) = mesh.peer_with("ct150", &[], options).await;
            let answer = mesh_tests::eventually("a refusal by this peer", async || {
                let answer = node.get("/nodes/ct150/secret").await;
                (peer.example.connections() > 0).then_some(answer)
            })
            .await;
            let detail = answer.problem(502, "peer_refused_us");
            assert!(detail.contains("ct150"), "{detail}");
        }
    }
}

#[tokio::test]
async fn a_peer_that_is_down_comes_back() {
    let mesh = Mesh::new();
    let address = Loopback::take();
    mesh.register("ct150", &address.ip().to_string(), 3000, &[]);
    let node = mesh.start("ct110", "opus").await;
    let answer = node.comes_to("/nodes/ct150/x", Some("peer_unreachable")).await;
    let detail = answer.problem(502, "peer_unreachable");
    assert!(detail.contains("ct150") && detail.contains(&address.port(3000).to_string()), "{detail}");
    let peer =
        mesh_tests::tls::Peer::start(address.port(3000), "x", PeerOptions::good(&mesh.ca, "ct150")).await;
    assert_eq!(node.get("/nodes/ct150/x").await.status, 200, "a peer that is back is used at once");

    // And goes again: pooled connections do not hide it, and it can come back again.
    drop(peer);
    mesh_tests::eventually("the listener is closed", async || {
        TcpListener::bind(address.port(3000)).await.ok()
    })
    .await;
    let answer = node.get("/nodes/ct150/x").await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    let _peer =
        mesh_tests::tls::Peer::start(address.port(3000), "x", PeerOptions::good(&mesh.ca, "ct150")).await;
    node.comes_to("/nodes/ct150/x", None).await;
}

#[tokio::test]
async fn a_node_whose_name_resolves_to_nothing() {
    let mesh = Mesh::new();
    mesh.register("ct150", "no-such-host.invalid", 3000, &[]);
    let node = mesh.start("ct110", "opus").await;
    let answer = node.comes_to("/nodes/ct150/x", Some("peer_unresolved")).await;
    let detail = answer.problem(502, "peer_unresolved");
    assert!(detail.contains("ct150.mesh"), "{detail}");
}

#[tokio::test]
async fn a_peer_that_does_not_answer_the_handshake() {
    let mesh = Mesh::new();
    let address = Loopback::take();
    // Accepts and stays silent.
    let _silent = TcpListener::bind(address.port(3000)).await.unwrap();
    mesh.register("ct150", &address.ip().to_string(), 3000, &[]);
    let plan = mesh.node("ct110").with(|config| config["proxy"]["timeouts"]["handshake_ms"] = json!(500));
    let node = plan.start().await;
    let answer = node.comes_to("/nodes/ct150/x", Some("peer_timeout")).await;
    let detail = answer.problem(504, "peer_timeout");
    assert!(detail.contains("ct150") && detail.contains("500 ms"), "{detail}");
}

#[tokio::test]
async fn a_peer_that_speaks_something_else() {
    let mesh = Mesh::new();
    let address = Loopback::take();
    let _plain = Agent::start(address.port(3000), "plain").await;
    mesh.register("ct150", &address.ip().to_string(), 3000, &[]);
    let node = mesh.start("ct110", "opus").await;
    let answer = node.comes_to("/nodes/ct150/x", Some("peer_unreachable")).await;
    let detail = answer.problem(502, "peer_unreachable");
    assert!(detail.contains("TLS"), "{detail}");
}

#[tokio::test]
async fn a_peer_that_breaks_before_its_answer() {
    let mesh = Mesh::new();
    let (peer, _address) = mesh.peer("ct150", &[]).await;
    let node = mesh.start("ct110", "opus").await;
    node.reaches("ct150").await;
    let outbound = node.outbound();
    let request = tokio::spawn(async move { web::get(outbound, "/nodes/ct150/hang").await });
    mesh_tests::eventually("the request arrives", async || {
        peer.example.requests().iter().any(|seen| seen.target == "/hang").then_some(())
    })
    .await;
    peer.stop().await;
    let detail = request.await.unwrap().problem(502, "peer_failed");
    assert!(detail.contains("ct150"), "{detail}");
}

#[tokio::test]
async fn the_far_sidecars_error_comes_through() {
    let mesh = Mesh::new();
    let (one, mut two) = mesh.pair().await;
    two.stop_agent().await;
    // A request that meets the end of a connection in use gets backend_failed; the next one finds nobody.
    let answer = one.comes_to("/nodes/ct111/x", Some("backend_unreachable")).await;
    let detail = answer.problem(502, "backend_unreachable");
    assert!(detail.contains(&two.backend().to_string()), "{detail}");
}

#[tokio::test]
async fn a_body_that_is_too_large_does_not_leave_the_host() {
    let mesh = Mesh::new();
    let (peer, _address) = mesh.peer("ct150", &[]).await;
    let node = mesh.start("ct110", "opus").await;
    node.reaches("ct150").await;
    let before = peer.example.requests().len();
    let limit = 10 * 1024 * 1024;
    let (_sender, body) = web::channel();
    let request =
        web::request(Method::POST, "/nodes/ct150/echo").header("content-length", (limit + 1).to_string());
    web::send(node.outbound(), request.body(body).unwrap()).await.problem(413, "body_too_large");
    assert_eq!(peer.example.requests().len(), before);

    // Of unknown length: cut off when it is too much.
    let (sender, body) = web::channel();
    for _ in 0..=limit / (1 << 20) {
        sender.send(web::piece(vec![1; 1 << 20])).unwrap();
    }
    let request = web::request(Method::POST, "/nodes/ct150/upload").body(body).unwrap();
    web::send(node.outbound(), request).await.problem(413, "body_too_large");
}

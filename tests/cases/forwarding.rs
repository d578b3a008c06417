//! What an agent is told of who asked for what and how, and that neither callers nor peers can tell it otherwise.

use mesh_tests::agent::Recorded;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::tls::Client;
use mesh_tests::web::{self, Answer};
use mesh_tests::within;
use serde_json::json;

/// What a caller or a peer might say of itself, also in spellings that some servers read alike.
const FORGED: [(&str, &str); 14] = [
    ("x-forwarded-for", "evil"),
    ("x-forwarded-host", "evil.example"),
    ("x-forwarded-proto", "evil"),
    ("x-forwarded-port", "evil"),
    ("x-forwarded-prefix", "/evil"),
    ("x-forwarded-server", "evil"),
    ("x-forwarded-ssl", "evil"),
    ("x-forwarded-user", "evil"),
    ("x_forwarded_for", "evil"),
    ("x-forwarded_host", "evil.example"),
    ("x.forwarded.proto", "evil"),
    ("forwarded", "for=evil;host=evil.example;proto=evil"),
    ("x-real-ip", "evil"),
    ("x_real_ip", "evil"),
];

/// Checks all that the agent was told, and that this is all.
fn check(seen: &Recorded, host: &str, scheme: &str, prefix: Option<&str>) {
    let mut headers = seen.headers.clone();
    // A certificate may contain anything.
    headers.remove("x-forwarded-client-cert");
    let shown = format!("{headers:?}");
    assert!(!shown.contains("evil"), "{shown}");
    // All connections here come from there.
    assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"], "{shown}");
    assert_eq!(seen.all("x-forwarded-host"), [host], "{shown}");
    assert_eq!(seen.all("x-forwarded-proto"), [scheme], "{shown}");
    assert_eq!(seen.all("x-forwarded-prefix"), prefix.into_iter().collect::<Vec<_>>(), "{shown}");
    assert_eq!(seen.all("forwarded"), [format!("for=127.0.0.1;host=\"{host}\";proto={scheme}")], "{shown}");
    assert!(seen.all("x-mesh-scheme").is_empty(), "{shown}");
}

#[tokio::test]
async fn a_caller_cannot_forge_how_its_request_came() {
    let mesh = Mesh::new();
    let (one, two) = mesh.pair().await;
    for (before, prefix) in [
        ("http://ct111.mesh", None),
        ("http://grok.agent.mesh", None),
        ("/nodes/ct111", Some("/nodes/ct111")),
        ("/agents/grok", Some("/agents/grok")),
    ] {
        let answer = web::send(one.outbound(), web::get_with(&format!("{before}/x"), &FORGED)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        check(&two.agent().last(), "ct111.mesh", "http", prefix);
    }
}

/// A request of the peer ct112, by either version of HTTP.
async fn from_peer(mesh: &Mesh, node: &Node, h2: bool, headers: &[(&str, &str)]) {
    let answer = match h2 {
        false => node.from_peer(mesh, "ct112", web::get_with("https://ct111.mesh/x", headers)).await,
        true => {
            let client = Client::new(&mesh.ca, &mesh.ca.node("ct112")).alpn(&["h2"]);
            let mut h2 = web::h2(client.connect(node.inbound(), "ct111").await.unwrap()).await;
            let answer = h2.send_request(web::get_with("https://ct111.mesh/x", headers));
            Answer::read(within("answer", answer).await.unwrap()).await.unwrap()
        }
    };
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn a_peer_cannot_forge_how_its_request_came() {
    let mesh = Mesh::new();
    let node = mesh.start("ct111", "grok").await;
    for h2 in [false, true] {
        from_peer(&mesh, &node, h2, &FORGED).await;
        check(&node.agent().last(), "ct111.mesh", "https", None);
        // A peer knows how its program spoke to it and named the agent, and can say no more than that. Only programs that
        // speak plain HTTP name it by a path.
        for (scheme, prefix, told) in [
            ("http", "/nodes/ct111", ("http", Some("/nodes/ct111"))),
            ("http", "/agents/grok", ("http", Some("/agents/grok"))),
            ("evil", "/nodes/ct111/evil", ("https", None)),
            ("evil://", "//evil.example", ("https", None)),
            ("https", "/nodes/../evil", ("https", None)),
            ("HTTP", "/agents/", ("https", None)),
        ] {
            let headers = [("x-mesh-scheme", scheme), ("x-forwarded-prefix", prefix)];
            from_peer(&mesh, &node, h2, &headers).await;
            check(&node.agent().last(), "ct111.mesh", told.0, told.1);
        }
    }
    // Of two, the second is not taken for the first.
    let schemes = [("x-mesh-scheme", "https"), ("x-mesh-scheme", "http")];
    from_peer(&mesh, &node, true, &schemes).await;
    check(&node.agent().last(), "ct111.mesh", "https", None);
    let prefixes = [("x-forwarded-prefix", "/nodes/ct111"), ("x-forwarded-prefix", "/evil")];
    from_peer(&mesh, &node, true, &prefixes).await;
    check(&node.agent().last(), "ct111.mesh", "http", Some("/nodes/ct111"));
}

#[tokio::test]
async fn an_agents_host_is_its_own_or_what_the_peer_asked_for() {
    for (host, is_peers) in [(None, false), (Some("local"), false), (Some("peer"), true)] {
        let mesh = Mesh::new();
        let plan = mesh.node("ct111").agent("grok").with(|config| {
            if let Some(host) = host {
                config["proxy"]["backend"]["host"] = json!(host);
            }
        });
        let (one, two) = tokio::join!(mesh.start("ct110", "opus"), plan.start());
        one.reaches("ct111").await;
        for target in ["http://ct111.mesh/x", "/nodes/ct111/x", "/agents/grok/x"] {
            assert_eq!(web::send(one.outbound(), web::get_with(target, &[])).await.status, 200);
            let seen = two.agent().last();
            let expected = if is_peers { "ct111.mesh".into() } else { two.backend().to_string() };
            assert_eq!(seen.all("host"), [expected], "{host:?}, {target}");
            assert_eq!(seen.all("x-forwarded-host"), ["ct111.mesh"], "{host:?}, {target}");
        }
    }
}

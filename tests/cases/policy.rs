//! Who may ask for what: the rules of `proxy.policy` and `proxy.outbound.policy`.

use http::{Method, Request};
use mesh_tests::ca::Spec;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::{run, text};
use mesh_tests::tls::Client;
use mesh_tests::web::{self, Answer, Body};
use serde_json::{Value, json};

async fn sidecar(mesh: &Mesh, agents: &[&str], policy: Value) -> Node {
    let plan = agents.iter().fold(mesh.node("ct110"), |plan, agent| plan.agent(agent));
    let listen = format!("{}:3002", plan.ip());
    let plan = plan.with(|config| {
        config["proxy"]["policy"] = policy;
        config["proxy"]["admin"] = json!({"listen": listen});
    });
    let mut node = plan.prepare().await;
    node.start_proxy().await;
    node
}

/// A request of whoever has a certificate with this CN.
async fn ask(mesh: &Mesh, node: &Node, cn: &str, request: Request<Body>) -> Answer {
    let mut spec = Spec::node("ct111");
    spec.cn = Some(cn.into());
    Client::new(&mesh.ca, &mesh.ca.issue(&spec)).send(node.inbound(), "ct110", request).await
}

fn request(method: Method, path: &str) -> Request<Body> {
    web::request(method, path).body(web::empty()).unwrap()
}

async fn decided(node: &Node, labels: &str) -> u64 {
    let metrics = web::get(node.port(3002), "/metrics").await.text();
    let name = format!("mesh_proxy_policy_decisions_total{{{labels}}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)).expect(&name).parse().unwrap()
}

const REFUSED: &str = "direction=\"inbound\",verdict=\"refused\"";
const WOULD_REFUSE: &str = "direction=\"inbound\",verdict=\"would_refuse\"";
const AUDITED: &str = "direction=\"inbound\",verdict=\"audited\"";

#[tokio::test]
async fn the_first_rule_that_matches_decides_and_what_none_matches_is_refused() {
    let mesh = Mesh::new();
    let rules = json!([
        {"peer": "opus@ct111", "path": "/secret/**", "action": "deny"},
        {"peer": "ct111", "method": "GET", "action": "allow"},
        {"peer": "device:*", "path": "/public/*", "action": "audit"},
    ]);
    let mut node = sidecar(&mesh, &["opus"], json!({"rules": rules})).await;
    for (cn, method, path, allowed) in [
        ("ct111", Method::GET, "/secret/x", true),
        ("opus@ct111", Method::GET, "/other", true),
        ("opus@ct111", Method::GET, "/secret/x", false),
        ("ct111", Method::DELETE, "/other", false),
        ("ct112", Method::GET, "/other", false),
        ("device:phone", Method::GET, "/public/x", true),
        ("device:phone", Method::GET, "/public/x/y", false),
        // The mesh's own.
        ("ct112", Method::GET, "/api/mesh/ping", true),
    ] {
        let answer = ask(&mesh, &node, cn, request(method.clone(), path)).await;
        match allowed {
            true => assert_eq!(answer.status, 200, "{cn} {method} {path}"),
            false => drop(answer.problem(403, "request_not_allowed")),
        }
        let mut explain = node.command("meshctl");
        let told = run(explain.args(["policy", "explain", cn, method.as_str(), path]));
        assert_eq!(told.status.success(), allowed, "{cn} {method} {path}: {}", text(&told.stdout));
    }
    assert_eq!((decided(&node, REFUSED).await, decided(&node, AUDITED).await), (4, 1));
    node.proxy()
        .wait_log(&[
            "WARN [Policy] refused peer.cn=opus@ct111 by proxy.policy.rules[0]: GET /secret/x agent=opus",
        ])
        .await;
    node.proxy().wait_log(&["WARN [Policy] audited peer.cn=device:phone by proxy.policy.rules[2]"]).await;
    let told = run(node.command("meshctl").args(["policy", "explain", "opus@ct111", "GET", "/secret/x"]));
    assert_eq!(
        text(&told.stdout),
        "deny: proxy.policy.rules[0] {peer: opus@ct111, path: /secret/**, action: deny}\n"
    );
}

#[tokio::test]
async fn no_spelling_of_a_path_reaches_the_agent_behind_a_rule() {
    let mesh = Mesh::new();
    let rules = json!([{"path": "/admin/**", "action": "deny"}, {"action": "allow"}]);
    let node = sidecar(&mesh, &["opus"], json!({"rules": rules})).await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111"));
    for path in [
        "/admin",
        "/admin/",
        "/ADMIN/x",
        "/%61dmin",
        "/%2561dmin",
        "//admin",
        "/%2fadmin",
        "/./admin",
        "/%2e/admin",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/x/..%2fadmin",
        "/x/..%5cadmin",
        "/x/..;/admin",
        "/x/%252e%252e/admin",
        "/admin;x",
        "/admin%3bx/y",
        "/admin%00",
        "/admin%20",
        "/admin.",
        "/admin%2e",
        "/x/..%c0%afadmin",
        "/admin%3fx",
        "/x/%ef%bc%8e%ef%bc%8e/admin",
        "/admin?x",
        "http://ct110.mesh/admin",
    ] {
        let answer = client.send(node.inbound(), "ct110", web::get_with(path, &[])).await;
        assert!(answer.status == 400 || answer.status == 403, "{path}: {}", answer.status);
    }
    for header in ["x-original-url", "x-rewrite-url"] {
        let answer = client.send(node.inbound(), "ct110", web::get_with("/x", &[(header, "/admin")])).await;
        answer.problem(400, "bad_request");
    }
    assert_eq!(node.agent().requests().len(), 0);
    assert_eq!(client.send(node.inbound(), "ct110", web::get_with("/a%20b?x=/admin", &[])).await.status, 200);
}

#[tokio::test]
async fn audit_mode_refuses_nothing_and_a_reload_enforces() {
    let mesh = Mesh::new();
    let rules = json!([{"method": "POST", "action": "allow"}]);
    let mut node = sidecar(&mesh, &["opus"], json!({"mode": "audit", "rules": rules})).await;
    assert_eq!(node.get_from_peer(&mesh, "ct111", "/x").await.status, 200);
    assert_eq!(decided(&node, WOULD_REFUSE).await, 1);
    node.proxy()
        .wait_log(&[
            "WARN [Policy] would refuse peer.cn=ct111 by proxy.policy.rules, none of which matches: GET /x",
        ])
        .await;
    let path = node.folder().join("mesh.yaml");
    let before = std::fs::read_to_string(&path).unwrap();
    // The harness writes JSON, which is YAML.
    let mut config: Value = serde_json::from_str(&before).unwrap();
    config["proxy"]["policy"]["mode"] = "enfroce".into();
    std::fs::write(&path, config.to_string()).unwrap();
    node.proxy().signal(libc::SIGHUP);
    node.proxy().wait_log(&["ERROR", "policy not reloaded", "proxy.policy.mode"]).await;
    assert_eq!(node.get_from_peer(&mesh, "ct111", "/x").await.status, 200);
    config["proxy"]["policy"]["mode"] = "enforce".into();
    std::fs::write(&path, config.to_string()).unwrap();
    node.proxy().signal(libc::SIGHUP);
    node.proxy().wait_log(&["INFO", "policy reloaded"]).await;
    node.get_from_peer(&mesh, "ct111", "/x").await.problem(403, "request_not_allowed");
}

#[tokio::test]
async fn each_refusal_is_counted_and_the_log_is_bounded() {
    let mesh = Mesh::new();
    let mut node = sidecar(&mesh, &["opus"], json!({"rules": [{"peer": "ct112", "action": "allow"}]})).await;
    let mut connection = Client::new(&mesh.ca, &mesh.ca.node("ct111")).http(node.inbound(), "ct110").await;
    for _ in 0..50 {
        connection.send(request(Method::GET, "/x")).await.problem(403, "request_not_allowed");
    }
    assert_eq!(decided(&node, REFUSED).await, 50);
    // The end of the process sums up the rest.
    node.proxy().stop().await;
    assert_eq!(node.proxy().lines_with(&["[Policy] refused peer.cn=ct111", "GET /x"]).len(), 8);
    assert_eq!(node.proxy().lines_with(&["[Policy] refused peer.cn=ct111", "and 42 more like it"]).len(), 1);
}

#[tokio::test]
async fn programs_of_this_host_are_held_to_the_outbound_policy() {
    let mesh = Mesh::new();
    let rules = json!([
        {"node": "ct111", "method": "POST", "action": "deny"},
        {"node": "ct111", "action": "allow"},
        {"agent": "grok", "path": "/ok", "action": "allow"},
        // The harness asks for it in order to see whether there is a roster.
        {"node": "nobody-of-this-name", "action": "allow"},
    ]);
    let plan = mesh.node("ct110").agent("opus").with(|config| {
        config["proxy"]["outbound"]["policy"] = json!({"rules": rules});
    });
    let (mut one, two) = tokio::join!(plan.start(), mesh.start("ct111", "grok"));
    one.reaches("ct111").await;
    assert_eq!(one.get("/nodes/ct111/x").await.status, 200);
    let before = two.agent().requests().len();
    one.post("/nodes/ct111/x", &json!({})).await.problem(403, "request_not_allowed");
    // It may be ct111 that is chosen for grok.
    one.post("/agents/grok/ok", &json!({})).await.problem(403, "request_not_allowed");
    one.get("/agents/grok/other").await.problem(403, "request_not_allowed");
    one.get("/nodes/ct112/x").await.problem(403, "request_not_allowed");
    assert_eq!(two.agent().requests().len(), before);
    assert_eq!(one.get("/agents/grok/ok").await.status, 200);
    assert_eq!(one.get("/mesh/nodes").await.status, 200);
    one.proxy()
        .wait_log(&[
            "WARN [Policy] refused a request to ct111.mesh by proxy.outbound.policy.rules[0]: POST /x",
        ])
        .await;
    let told = run(one.command("meshctl").args(["policy", "explain", "--outbound", "ct111", "POST", "/x"]));
    assert!(
        text(&told.stdout).starts_with("deny: proxy.outbound.policy.rules[0] "),
        "{}",
        text(&told.stdout)
    );
}

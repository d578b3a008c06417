//! Registration by peers: who may say what of whom, what it may grow to, and when it is written.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use http::Method;
use mesh_tests::ca::Spec;
use mesh_tests::eventually;
use mesh_tests::mesh::{Mesh, Node, entry, epoch_ms};
use mesh_tests::tls::Client;
use mesh_tests::web::{self, Answer};
use mesh_tests::within;
use serde_json::{Value, json};

/// A join by whoever this CN is.
async fn join(mesh: &Mesh, node: &Node, cn: &str, body: &Value) -> Answer {
    let identity = mesh.ca.issue(&Spec { cn: Some(cn.into()), ..Spec::node("ct112") });
    let request = web::request(Method::POST, "/api/mesh/join").header("content-type", "application/json");
    let request = request.body(web::full(body.to_string())).unwrap();
    within("answer to a join", Client::new(&mesh.ca, &identity).send(node.inbound(), &node.name, request))
        .await
}

/// An entry of ct112 as it makes it itself.
fn ct112() -> Value {
    let mut body = entry("ct112", "127.9.9.9", 3000, &["scout"]);
    body["role"] = json!("agent");
    body
}

/// The names of what was set aside.
fn set_aside(mesh: &Mesh) -> Vec<String> {
    let files = fs::read_dir(mesh.registry_path().parent().unwrap()).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("corrupt")).collect()
}

#[tokio::test]
async fn only_the_node_itself_joins_and_leaves() {
    let mesh = Mesh::new();
    let mut node = mesh.start("ct110", "opus").await;
    // Whoever acts for an agent or a device of a node is not the node.
    for cn in ["opus@ct112", "device:ct112", "ct113"] {
        join(&mesh, &node, cn, &ct112()).await.problem(403, "join_other_node");
        node.registryd().wait_log(&["WARN [Registry] join refused", &format!("peer.cn={cn}")]).await;
    }
    // Nor is a program of this host that has no certificate to show.
    let request = web::request(Method::POST, "/api/mesh/join").body(web::full(ct112().to_string())).unwrap();
    web::on_socket(&node.socket(), request).await.unwrap().problem(403, "join_other_node");
    assert_eq!(mesh.entry("ct112"), None);

    assert_eq!(join(&mesh, &node, "ct112", &ct112()).await.status, 200);
    let mut goodbye = ct112();
    goodbye["status"] = json!("offline");
    join(&mesh, &node, "ct113", &goodbye).await.problem(403, "join_other_node");
    assert_eq!(mesh.entry("ct112").unwrap()["status"], "online");
    assert_eq!(join(&mesh, &node, "ct112", &goodbye).await.status, 200);
    assert_eq!(mesh.entry("ct112").unwrap()["status"], "offline");
}

#[tokio::test]
async fn no_join_makes_the_registry_unreadable() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let nested = |levels| (0..levels).fold(json!(1), |inner, _| json!([inner]));
    // Just readable in a join, not any more in the registry.
    for levels in [125, 33] {
        for field in ["metadata", "further"] {
            let mut body = ct112();
            body[field] = nested(levels);
            join(&mesh, &node, "ct112", &body).await.problem(400, "node_nested_too_deep");
        }
    }
    let mut body = ct112();
    (body["metadata"], body["further"]) = (nested(32), nested(32));
    assert_eq!(join(&mesh, &node, "ct112", &body).await.status, 200);
    // Read anew by registryd, too.
    let seen = mesh.entry("ct110").unwrap()["lastSeen"].as_u64();
    eventually("heartbeats go on", async || (mesh.entry("ct110")?["lastSeen"].as_u64() > seen).then_some(()))
        .await;
    assert_eq!(mesh.entry("ct112").unwrap()["metadata"], nested(32));
    assert!(set_aside(&mesh).is_empty());
}

#[tokio::test]
async fn fields_that_add_up_to_too_much_are_refused() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let with = |key: &str| {
        let mut body = ct112();
        body[key] = json!("x".repeat(40_000));
        body["lastSeen"] = json!(epoch_ms());
        body
    };
    assert_eq!(join(&mesh, &node, "ct112", &with("a")).await.status, 200);
    mesh.edit_registry(|registry| {
        let nodes = registry["nodes"].as_object_mut().unwrap();
        nodes.values_mut().find(|entry| entry["name"] == "ct112").unwrap()["asset"] = json!(7);
    });
    for i in 0..5 {
        join(&mesh, &node, "ct112", &with(&format!("b{i}"))).await.problem(400, "node_metadata_too_large");
    }
    assert_eq!(join(&mesh, &node, "ct112", &with("a")).await.status, 200);
    let held = mesh.entry("ct112").unwrap();
    assert_eq!(
        (&held["asset"], held.get("b0")),
        (&json!(7), None),
        "another program's field, and a refused one"
    );
}

#[tokio::test]
async fn a_peer_whose_clock_was_put_right_is_heard() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let mut body = ct112();
    body["lastSeen"] = json!(epoch_ms() + 3_600_000);
    assert_eq!(join(&mesh, &node, "ct112", &body).await.status, 200);
    let mut before = mesh.entry("ct112").unwrap();
    for (stamp, agent) in [(0, "ranger"), (1000, "scout"), (1000, "ranger")] {
        body["lastSeen"] = json!(epoch_ms() + stamp);
        body["agents"] = json!([agent]);
        assert_eq!(join(&mesh, &node, "ct112", &body).await.status, 200);
        let after = mesh.entry("ct112").unwrap();
        assert_eq!(after["agents"], json!([agent]), "acknowledged, and not in the file");
        assert!(after["lastSeen"].as_u64() > before["lastSeen"].as_u64());
        before = after;
    }
}

#[tokio::test]
async fn nothing_is_written_where_only_a_stamp_would_change_that_is_not_due() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").agent("opus").with(|config| {
        config["mesh"]["heartbeat_interval_ms"] = json!(60_000);
        config["mesh"]["stale_threshold_ms"] = json!(180_000);
    });
    let node = plan.start().await;
    assert_eq!(join(&mesh, &node, "ct112", &ct112()).await.status, 200);
    let report = eventually("the sidecar has reported", async || {
        let report = node.local("/v1/status").await?.json()["sidecar"].clone();
        (!report.is_null()).then_some(report)
    })
    .await;
    let written = async || {
        let metrics = node.local("/metrics").await.unwrap().text();
        let total =
            metrics.lines().find(|line| line.starts_with("mesh_registry_writes_total ")).unwrap().to_owned();
        let file = fs::metadata(mesh.registry_path()).unwrap();
        (file.ino(), file.mtime(), file.mtime_nsec(), total)
    };
    // Longer than a write that somebody wished for is put off.
    let lasting = Duration::from_secs(2);
    let (mut before, mut since) = (written().await, Instant::now());
    eventually("what the start wanted to be written is", async || {
        let now = written().await;
        if now != before {
            (before, since) = (now, Instant::now());
        }
        (since.elapsed() > lasting).then_some(())
    })
    .await;
    let put = async |path: &str, body: &Value| {
        let request = web::request(Method::PUT, path).header("content-type", "application/json");
        let answer = web::on_socket(&node.socket(), request.body(web::full(body.to_string())).unwrap()).await;
        assert_eq!(answer.unwrap().status, 204);
    };
    let started = Instant::now();
    while started.elapsed() < lasting {
        let mut again = ct112();
        again["lastSeen"] = json!(epoch_ms());
        assert_eq!(join(&mesh, &node, "ct112", &again).await.status, 200);
        put("/v1/status", &json!({"status": "online"})).await;
        put("/v1/sidecar", &report).await;
        assert_eq!(written().await, before);
    }
}

#[tokio::test]
async fn hosts_that_are_nobodys_or_somebody_elses_are_refused() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    for host in
        ["0.0.0.0", "224.0.0.1", "255.255.255.255", "169.254.169.254", "::", "fe80::1", "::ffff:0.0.0.0"]
    {
        let mut body = ct112();
        body["host"] = json!(host);
        join(&mesh, &node, "ct112", &body).await.problem(400, "bad_node_host");
    }
    let mut body = ct112();
    (body["host"], body["port"]) = (json!(node.ip().to_string()), json!(node.inbound().port()));
    join(&mesh, &node, "ct112", &body).await.problem(403, "join_other_node");
    assert_eq!(mesh.entry("ct112"), None);
    // Another program may enter one in the file; it is not dialled.
    mesh.register("ct150", "169.254.169.254", 3000, &["scout"]);
    node.comes_to("/nodes/ct150/x", Some("peer_unresolved")).await;
}

#[tokio::test]
async fn who_joins_under_another_role_goes_stale_and_may_change_its_mind() {
    let mesh = Mesh::new();
    let quick = |config: &mut Value| {
        config["mesh"]["heartbeat_interval_ms"] = json!(300);
        config["mesh"]["stale_threshold_ms"] = json!(2000);
    };
    let node = mesh.node("ct110").with(quick).agent("opus").start().await;
    let mut body = ct112();
    body["role"] = json!("x");
    assert_eq!(join(&mesh, &node, "ct112", &body).await.status, 200);
    body["agents"] = json!(["other"]);
    assert_eq!(join(&mesh, &node, "ct112", &body).await.status, 200);
    eventually("the change is in the file, and stays", async || {
        (mesh.entry("ct112")?["agents"] == json!(["other"])).then_some(())
    })
    .await;
    eventually("it is offline", async || (mesh.entry("ct112")?["status"] == "offline").then_some(())).await;
    assert_eq!(mesh.entry("ct112").unwrap()["agents"], json!(["other"]));
}

#[tokio::test]
async fn a_program_beside_a_running_node_wipes_nothing() {
    let mesh = Mesh::new();
    let (one, two) = mesh.pair().await;
    let before = mesh.entry("ct111").unwrap();
    let beside = json!({"id": "some-uuid", "name": "ct111", "host": "127.9.9.9", "port": 1, "agents": []});
    assert_eq!(join(&mesh, &one, "ct111", &beside).await.status, 200);
    let after = mesh.entry("ct111").unwrap();
    for key in ["id", "agents", "host", "port", "status"] {
        assert_eq!(before[key], after[key], "{key}");
    }
    two.reaches("ct110").await;
}

#[tokio::test]
async fn a_flood_of_joins_is_written_seldom_and_keeps_nobody_out() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let writes = async || -> u64 {
        let metrics = node.local("/metrics").await.unwrap().text();
        let line = metrics.lines().find_map(|line| line.strip_prefix("mesh_registry_writes_total ")).unwrap();
        line.parse().unwrap()
    };
    let before = writes().await;
    let started = Instant::now();
    let by_ct112 = async |body: &Value| {
        let request = web::request(Method::POST, "/api/mesh/join").header("x-mesh-peer-cn", "ct112");
        let request = request.body(web::full(body.to_string())).unwrap();
        web::on_socket(&node.socket(), request).await.unwrap()
    };
    let one_after_the_other = async |who: u32| {
        for i in 0..10 {
            let mut body = ct112();
            body["agents"] = json!([format!("scout-{who}-{i}")]);
            assert!([200, 429].contains(&by_ct112(&body).await.status.as_u16()));
        }
    };
    tokio::join!(
        one_after_the_other(0),
        one_after_the_other(1),
        one_after_the_other(2),
        one_after_the_other(3)
    );
    // One write for the four of each round, and the node's own beats.
    let (written, most) = (writes().await - before, started.elapsed().as_millis() as u64 / 200 + 12);
    assert!(written <= most, "{written} writes for 40 joins, {most} at most");

    let mut refused = 0;
    for _ in 0..1000 {
        let answer = by_ct112(&ct112()).await;
        if answer.status != 200 {
            answer.problem(429, "too_many_joins");
            assert_eq!(answer.header("retry-after"), Some("1"));
            refused += 1;
        }
    }
    assert!(refused > 0, "a thousand joins in a row are no flood");
    let other = entry("ct113", "127.9.9.8", 3000, &["scout"]);
    assert_eq!(join(&mesh, &node, "ct113", &other).await.status, 200);
}

#[tokio::test]
async fn what_a_peer_writes_forges_no_log_line() {
    let mesh = Mesh::new();
    let mut node = mesh.start("ct110", "opus").await;
    let mut body = ct112();
    let forged = "x\nWARN [Registry] forged\u{1b}[2J\u{202e}";
    body[forged] = (0..40).fold(json!(1), |inner, _| json!([inner]));
    let detail = join(&mesh, &node, "ct112", &body).await.problem(400, "node_nested_too_deep");
    assert!(!detail.contains('\n') && !detail.contains('\u{1b}'), "{detail:?}");
    let mut body = ct112();
    body["agents"] = json!([forged]);
    join(&mesh, &node, "ct112", &body).await.problem(400, "bad_agent_name");
    let line = node.registryd().wait_log(&["join refused", "nested"]).await;
    assert!(line.contains("peer.cn=ct112"), "{line}");
    assert!(node.registryd().log().iter().all(|line| !line.starts_with("WARN [Registry] forged")));
}

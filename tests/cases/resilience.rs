//! kill -9 of each process while requests go on: the data plane outlives the control plane.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_tests::eventually;
use mesh_tests::mesh::Mesh;
use mesh_tests::process::Daemon;
use serde_json::json;

#[tokio::test]
async fn requests_flow_without_registryd_and_across_a_restart_of_the_sidecar() {
    let mesh = Mesh::new();
    let (mut one, mut two) = mesh.pair().await;
    let task = json!({"fromAgent": "opus", "message": "go on"});
    one.registryd().kill();
    two.registryd().kill();
    for _ in 0..20 {
        assert_eq!(one.post("/agents/grok/api/message", &task).await.status, 200);
        assert_eq!(two.post("/agents/opus/api/message", &task).await.status, 200);
    }
    // What only registryd knows is said to be missing.
    one.get("/mesh/nodes").await.problem(503, "registry_unavailable");

    // The sidecar too, by kill -9: it starts with the saved roster.
    one.proxy().kill();
    one.start_proxy().await;
    for _ in 0..20 {
        assert_eq!(one.post("/agents/grok/api/message", &task).await.status, 200);
    }
    one.get("/nodes/ct199/x").await.problem(404, "unknown_node");

    // And registryd's return is noticed without a restart of anything.
    one.start_registryd().await;
    mesh.register("ct150", "127.1.2.3", 3000, &["scout"]);
    one.comes_to("/nodes/ct150/x", Some("peer_unreachable")).await;
    eventually("the registry is served again", async || {
        (one.get("/mesh/nodes").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_killed_peer_sidecar_is_an_error_until_it_is_back() {
    let mesh = Mesh::new();
    let (one, mut two) = mesh.pair().await;
    two.proxy().kill();
    let answer = one.get("/nodes/ct111/x").await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(
        matches!(answer.header("x-mesh-error"), Some("peer_unreachable" | "peer_failed")),
        "{:?}",
        answer.headers
    );
    one.comes_to("/nodes/ct111/x", Some("peer_unreachable")).await;
    two.start_proxy().await;
    assert_eq!(one.get("/nodes/ct111/x").await.status, 200, "a sidecar that is back is used at once");
}

#[tokio::test]
async fn requests_go_on_while_registryd_is_killed_again_and_again() {
    let mesh = Mesh::new();
    let (mut one, two) = mesh.pair().await;
    let outbound = one.outbound();
    let answers = Arc::new(AtomicU64::new(0));
    let count = answers.clone();
    let traffic = tokio::spawn(async move {
        loop {
            let answer = mesh_tests::web::get(outbound, "/agents/grok/x").await;
            let before = count.fetch_add(1, Ordering::SeqCst);
            assert_eq!(answer.status, 200, "after {before} answers: {}", answer.text());
        }
    });
    for _ in 0..5 {
        one.registryd().kill();
        let before = answers.load(Ordering::SeqCst);
        eventually("requests are answered", async || {
            assert!(!traffic.is_finished(), "a request failed");
            (answers.load(Ordering::SeqCst) > before + 3).then_some(())
        })
        .await;
        one.start_registryd().await;
    }
    assert!(!traffic.is_finished(), "a request failed");
    traffic.abort();
    drop(two);
}

#[tokio::test]
async fn a_saved_roster_that_is_broken_is_told_and_not_used() {
    let mesh = Mesh::new();
    let (mut one, _two) = mesh.pair().await;
    let saved = one.folder().join("state/roster.json");
    eventually("the roster is saved", async || saved.exists().then_some(())).await;
    one.registryd().kill();
    one.proxy().kill();
    std::fs::write(&saved, "{\"revision\": 1, \"nod").unwrap();
    one.start_proxy().await;
    one.get("/nodes/ct111/x").await.problem(503, "no_roster");
    one.proxy().wait_log(&["WARN", "roster.json"]).await;
    one.start_registryd().await;
    one.reaches("ct111").await;
}

#[tokio::test]
async fn agents_that_restart_are_used_again_at_once() {
    let mesh = Mesh::new();
    let (one, mut two) = mesh.pair().await;
    for _ in 0..3 {
        assert_eq!(one.get("/nodes/ct111/x").await.status, 200);
        two.stop_agent().await;
        two.start_agent("grok").await;
        let answer = one.get("/nodes/ct111/x").await;
        if answer.header("x-mesh-error").is_some() {
            // It met the end of the connection that was in use; there is only one such.
            answer.problem(502, "backend_failed");
            assert_eq!(one.get("/nodes/ct111/x").await.status, 200);
        }
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_nothing() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").agent("opus").prepare().await;
    let started = Daemon::start_unread("registryd", &mut node.command("registryd"));
    node.registryd = Some(started);
    let started = Daemon::start_unread("mesh-proxy", &mut node.command("mesh-proxy"));
    node.proxy = Some(started);
    let outbound = node.outbound();
    eventually("it listens", async || tokio::net::TcpStream::connect(outbound).await.ok()).await;
    node.has_roster().await;
    for _ in 0..20 {
        assert_eq!(node.get("/nodes/ct110/x").await.status, 200);
    }
    assert!(node.proxy().is_running() && node.registryd().is_running());
    assert!(node.proxy().stop().await.success());
    assert!(node.registryd().stop().await.success());
}

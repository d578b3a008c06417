//! Before registryd has seen its registry it takes nothing away from anybody, and what it finds itself is usable.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mesh_tests::eventually;
use mesh_tests::mesh::Mesh;
use serde_json::json;

#[tokio::test]
async fn a_restart_of_registryd_never_makes_a_peer_unknown() {
    let mesh = Mesh::new();
    let (mut one, two) = mesh.pair().await;
    let (outbound, stop) = (one.outbound(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let asking = tokio::spawn(async move {
        let mut answers = 0;
        while !stopped.load(Ordering::SeqCst) {
            let answer = mesh_tests::web::get(outbound, "/agents/grok/x").await;
            assert_eq!(answer.status, 200, "after {answers}: {}", answer.text());
            answers += 1;
        }
        answers
    });
    for _ in 0..5 {
        // Without the goodbye that the others would have to see.
        one.registryd().kill();
        one.start_registryd().await;
        let nodes = one.local("/mesh/nodes").await.unwrap().json();
        assert_eq!(nodes.as_array().unwrap().len(), 2, "the first answer after a restart: {nodes}");
    }
    stop.store(true, Ordering::SeqCst);
    assert!(asking.await.unwrap() > 5);
    drop(two);
}

#[tokio::test]
async fn while_the_file_cannot_be_read_known_peers_stay_and_found_ones_are_used() {
    let mesh = Mesh::new();
    let (mut one, two) = mesh.pair().await;
    // A third that the file never gets to tell of: it is known from the configuration.
    let three = mesh.node("ct112").agent("scout").own_storage().start().await;
    one.registryd().kill();
    // Held, or ct111 would put the file right at once.
    let lock =
        fs::File::options().append(true).open(mesh.registry_path().with_extension("json.lock")).unwrap();
    lock.lock().unwrap();
    fs::write(mesh.registry_path(), "{ not json").unwrap();
    let mut config = mesh_tests::mesh::read_json(&one.config_path);
    config["mesh"]["peers"] = json!([{"name": "ct112", "host": three.ip().to_string()}]);
    config["mesh"]["discovery"] = json!({"mode": "static"});
    fs::write(&one.config_path, config.to_string()).unwrap();
    one.start_registryd().await;
    one.registryd().wait_log(&["mesh.json", "not valid JSON"]).await;
    one.reaches("ct112").await;
    assert_eq!(one.comes_to("/agents/scout/x", None).await.header("x-agent"), Some("scout"));
    for _ in 0..5 {
        assert_eq!(one.get("/agents/grok/x").await.status, 200, "the known peer is forgotten");
    }
    drop((two, lock));
}

#[tokio::test]
async fn a_new_sidecar_is_told_that_nothing_is_known_yet() {
    let mesh = Mesh::new();
    fs::write(mesh.registry_path(), "{ not json").unwrap();
    let mut node = mesh.node("ct110").prepare().await;
    node.start_registryd().await;
    node.start_proxy().await;
    let detail = eventually("the sidecar knows why", async || {
        let answer = node.get("/nodes/ct111/x").await;
        let detail = answer.problem(503, "no_roster");
        detail.contains("could not read its registry").then_some(detail)
    })
    .await;
    assert!(detail.contains("meshctl status"), "{detail}");
    mesh_tests::mesh::replace_registry(&mesh.registry_path(), json!({"version": 1, "nodes": {}}));
    node.comes_to("/nodes/ct111/x", Some("unknown_node")).await;
}

#[tokio::test]
async fn a_node_that_moves_is_dialled_at_its_new_address_at_once() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let (old, address) = mesh.peer("ct150", &["scout"]).await;
    node.comes_to("/agents/scout/x", None).await;
    for _ in 0..3 {
        let next = mesh_tests::loopback::Loopback::take();
        let options = mesh_tests::tls::PeerOptions::good(&mesh.ca, "ct150");
        let peer = mesh_tests::tls::Peer::start(next.port(3000), "ct150", options).await;
        mesh.amend("ct150", |entry| entry["host"] = json!(next.ip().to_string()));
        // A lookup again after its time would come 5 to 300 s later.
        let limit = std::time::Duration::from_secs(4);
        mesh_tests::eventually_within(limit, "the new address is dialled first", async || {
            let nodes = node.local("/mesh/nodes?node=ct150").await?.json();
            (nodes[0]["addresses"] == json!([next.ip().to_string()])).then_some(())
        })
        .await;
        drop(peer);
    }
    drop((old, address));
}

//! mesh.json written at the same time by several registryds, a careful program, and one that takes no lock.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_tests::eventually;
use mesh_tests::mesh::Mesh;
use serde_json::{Value, json};

#[tokio::test]
async fn several_registryds_and_a_program_without_a_lock() {
    let mesh = Mesh::new();
    mesh.edit_registry(|registry| registry["owner"] = json!("rivet"));
    let mut nodes = Vec::new();
    for i in 0..6 {
        let plan = mesh
            .node(&format!("ct12{i}"))
            .with(|config| config["mesh"]["heartbeat_interval_ms"] = json!(150));
        let mut node = plan.prepare().await;
        node.start_registryd().await;
        nodes.push(node);
    }
    all_online(&mesh, &nodes).await;

    // Rewrites the file in place, unlocked, from what it read a moment ago, as such programs in the field do.
    let stop = Arc::new(AtomicBool::new(false));
    let careless = {
        let (path, stop): (PathBuf, _) = (mesh.registry_path(), stop.clone());
        std::thread::spawn(move || {
            let mut written = 0_u64;
            while !stop.load(Ordering::SeqCst) {
                let content = fs::read(&path).unwrap_or_default();
                let Ok(mut registry) = serde_json::from_slice::<Value>(&content) else { continue };
                std::thread::sleep(Duration::from_millis(10));
                written += 1;
                registry["nodes"]["careless"] = json!({"id": "careless", "name": "ct199", "host": "127.1.1.1", "role": "service",
                    "status": "online", "lastSeen": mesh_tests::mesh::epoch_ms(), "count": written});
                fs::write(&path, registry.to_string()).unwrap();
                std::thread::sleep(Duration::from_millis(15));
            }
            written
        })
    };
    for node in &nodes {
        assert!(node.local("/v1/status").await.is_some(), "{} does not answer", node.name);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    stop.store(true, Ordering::SeqCst);
    let written = careless.join().unwrap();
    assert!(written > 10, "the careless program wrote only {written} times");

    // Whatever it overwrote is back, and nobody crashed.
    all_online(&mesh, &nodes).await;
    for node in &mut nodes {
        assert!(node.registryd().is_running());
    }
    let registry = mesh.registry();
    assert_eq!(registry["owner"], "rivet");
    assert_eq!(registry["nodes"]["careless"]["name"], "ct199", "the other program's entry is gone");
    // From here on nobody is careless: no change under the lock is ever lost, and every reader sees a whole file.
    for i in 0..50 {
        mesh.edit_registry(|registry| registry["counter"] = json!(i));
        assert_eq!(mesh.registry()["counter"], i);
        tokio::task::yield_now().await;
    }
    all_online(&mesh, &nodes).await;
    assert_eq!(mesh.registry()["counter"], 49);
}

/// Waits until each node's entry lives: its `lastSeen` moves.
async fn all_online(mesh: &Mesh, nodes: &[mesh_tests::mesh::Node]) {
    for node in nodes {
        let seen = read(mesh, &node.name).map_or(0, |entry| entry["lastSeen"].as_u64().unwrap());
        eventually(&format!("{} heartbeats", node.name), async || {
            read(mesh, &node.name)
                .filter(|entry| entry["status"] == "online" && entry["lastSeen"].as_u64() > Some(seen))
        })
        .await;
    }
}

/// The entry, where the file can be read: the careless program may be in the middle of writing it.
fn read(mesh: &Mesh, node: &str) -> Option<Value> {
    let registry: Value = serde_json::from_slice(&fs::read(mesh.registry_path()).ok()?).ok()?;
    registry["nodes"].as_object()?.values().find(|entry| entry["name"] == node).cloned()
}

#[tokio::test]
async fn registryds_that_are_killed_lose_nothing_that_was_acknowledged() {
    let mesh = Mesh::new();
    mesh.edit_registry(|registry| registry["owner"] = json!("rivet"));
    let quick = |config: &mut Value| config["mesh"]["heartbeat_interval_ms"] = json!(100);
    let mut nodes = Vec::new();
    for i in 0..4 {
        let mut node = mesh.node(&format!("ct12{i}")).with(quick).prepare().await;
        node.start_registryd().await;
        nodes.push(node);
    }
    all_online(&mesh, &nodes).await;
    let ids: Vec<_> = nodes.iter().map(|node| mesh.entry(&node.name).unwrap()["id"].clone()).collect();
    for round in 0..16 {
        let i = round % nodes.len();
        nodes[i].registryd().kill();
        // Parses at every instant (else this panics), and the entry is still there.
        let registry = mesh.registry();
        assert_eq!(registry["owner"], "rivet");
        for id in &ids {
            assert!(registry["nodes"][id.as_str().unwrap()].is_object(), "{id} is gone");
        }
        nodes[i].start_registryd().await;
        mesh.edit_registry(|registry| registry["round"] = json!(round));
        assert_eq!(mesh.registry()["round"], round);
    }
    all_online(&mesh, &nodes).await;
    let after: Vec<_> = nodes.iter().map(|node| mesh.entry(&node.name).unwrap()["id"].clone()).collect();
    assert_eq!(ids, after);
    assert_eq!(mesh.registry()["nodes"].as_object().unwrap().len(), nodes.len());
    let left: Vec<_> = fs::read_dir(mesh.registry_path().parent().unwrap())
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["mesh.json", "mesh.json.lock"].contains(&name.as_str()))
        .collect();
    assert!(left.len() <= 4, "temporary files pile up: {left:?}");
}

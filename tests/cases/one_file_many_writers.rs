//! mesh.json written at the same time by several registryds, a careful program, and one that takes no lock.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mesh_tests::chaos::{self, Chaos};
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
    let written = Arc::new(AtomicU64::new(0));
    let careless = {
        let (path, stop, count): (PathBuf, _, _) = (mesh.registry_path(), stop.clone(), written.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let content = fs::read(&path).unwrap_or_default();
                let Ok(mut registry) = serde_json::from_slice::<Value>(&content) else { continue };
                std::thread::sleep(Duration::from_millis(10));
                let written = count.fetch_add(1, Ordering::SeqCst) + 1;
                registry["nodes"]["careless"] = json!({"id": "careless", "name": "ct199", "host": "127.1.1.1", "role": "service",
                    "status": "online", "lastSeen": mesh_tests::mesh::epoch_ms(), "count": written});
                fs::write(&path, registry.to_string()).unwrap();
                std::thread::sleep(Duration::from_millis(15));
            }
        })
    };
    for node in &nodes {
        assert!(node.local("/v1/status").await.is_some(), "{} does not answer", node.name);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    eventually("the careless program has written a lot", async || {
        (written.load(Ordering::SeqCst) > 20).then_some(())
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    careless.join().unwrap();

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

/// One node goes, another watches, and a program writes back what it read before.
#[tokio::test]
async fn an_old_copy_in_place_brings_nobody_back_who_had_left() {
    let mesh = Mesh::new();
    let quick = |config: &mut Value| {
        config["mesh"]["heartbeat_interval_ms"] = json!(1000);
        config["mesh"]["stale_threshold_ms"] = json!(3000);
    };
    let (mut one, mut leaver, mut three) = (
        mesh.node("ct110").with(quick).prepare().await,
        mesh.node("ct111").with(quick).prepare().await,
        mesh.node("ct112").with(quick).prepare().await,
    );
    for node in [&mut one, &mut leaver, &mut three] {
        node.start_registryd().await;
    }
    // What the two others have of ct111.
    let shown = async |status: Option<&str>| {
        for observer in [&one, &three] {
            eventually(&format!("ct111 is {status:?} for {}", observer.name), async || {
                let shown = observer.local("/mesh/nodes?node=ct111").await?.json();
                (shown[0]["status"].as_str() == status).then_some(())
            })
            .await;
        }
    };
    let offline_in_file = async || {
        eventually("the file says that ct111 is offline", async || {
            (read(&mesh, "ct111")?["status"] == "offline").then_some(())
        })
        .await;
    };
    shown(Some("online")).await;
    let old = fs::read(mesh.registry_path()).unwrap();
    let old_entry = mesh.entry("ct111").unwrap();
    assert_eq!(old_entry["status"], "online");

    assert!(leaver.registryd().stop().await.success());
    shown(Some("offline")).await;
    for _ in 0..3 {
        fs::write(mesh.registry_path(), &old).unwrap();
        offline_in_file().await;
    }
    // An operator removes the entry, and the old one comes back once more.
    mesh.edit_registry(|registry| {
        registry["nodes"].as_object_mut().unwrap().retain(|_, entry| entry["name"] != "ct111");
    });
    shown(None).await;
    mesh.edit_registry(|registry| registry["nodes"][old_entry["id"].as_str().unwrap()] = old_entry.clone());
    offline_in_file().await;
    shown(Some("offline")).await;
    for observer in [&one, &three] {
        let log = observer.registryd.as_ref().unwrap().lines_with(&["node ct111 "]);
        assert!(log.iter().any(|line| line.contains("ct111 left")), "{log:?}");
        assert!(!log.iter().any(|line| line.contains("recovered")), "{log:?}");
    }
    // Only the node itself comes back.
    leaver.start_registryd().await;
    shown(Some("online")).await;
}

/// The short form of `tests/soak.sh`.
#[tokio::test]
async fn registryds_that_are_killed_at_random_lose_nothing_that_was_acknowledged() {
    let chaos = Chaos {
        seed: chaos::seed(),
        nodes: 24,
        lasting: Duration::from_secs(10),
        heartbeat: Duration::from_millis(500),
        careless: false,
        mounted: false,
    };
    let report = chaos.run().await;
    println!("{report}");
    assert!(report.reads > 200 && report.kills > 5, "{report}");
}

/// The short form of `tests/soak.sh`.
#[tokio::test]
async fn what_a_program_without_a_lock_overwrites_is_back_within_a_heartbeat() {
    let chaos = Chaos {
        seed: chaos::seed(),
        nodes: 12,
        lasting: Duration::from_secs(10),
        heartbeat: Duration::from_secs(5),
        careless: true,
        mounted: false,
    };
    let report = chaos.run().await;
    println!("{report}");
    assert!(report.left > 0 && report.kills > 3, "{report}");
}

/// The short form of `tests/soak.sh`.
#[tokio::test]
async fn nothing_is_lost_where_some_have_the_file_through_a_mount_that_hangs() {
    let chaos = Chaos {
        seed: chaos::seed(),
        nodes: 8,
        lasting: Duration::from_secs(10),
        heartbeat: Duration::from_millis(500),
        careless: false,
        mounted: true,
    };
    let report = chaos.run().await;
    println!("{report}");
}

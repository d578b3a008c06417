//! What other programs write into mesh.json without breaking JSON's grammar is used and comes back as it was.

use std::fs;

use mesh_tests::eventually;
use mesh_tests::mesh::{Mesh, entry, epoch_ms};
use serde_json::json;

#[tokio::test]
async fn what_javascript_writes_survives_byte_for_byte() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    let odd = r#"{"half": "\ud83d", "big": 123456789012345678901234567890, "huge": 1e400, "n": 1.0}"#;
    let mut foreign = entry("ct150", "127.1.2.3", 3000, &["scout"]);
    foreign["metadata"] = json!("@@");
    let content = json!({"version": 1, "nodes": {"id-ct150": foreign}, "updatedAt": 1, "owner": "@@"});
    let text = format!("\u{feff}{}", content.to_string().replace("\"@@\"", odd));
    fs::write(mesh.registry_path(), &text).unwrap();
    node.start_registryd().await;
    let written = eventually("the node is registered beside it", async || {
        let text = fs::read_to_string(mesh.registry_path()).ok()?;
        text.contains("\"ct110\"").then_some(text)
    })
    .await;
    assert_eq!(written.matches(odd).count(), 2, "{written}");
    let nodes = node.local("/mesh/nodes?node=ct150").await.unwrap().json();
    assert_eq!(nodes[0]["agents"], json!(["scout"]));
    assert!(!node.local("/metrics").await.unwrap().text().contains("registry_set_aside_total 1"));
}

#[tokio::test]
async fn what_one_entry_has_wrong_costs_neither_it_nor_others_anything() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    let odd = [
        (
            "a",
            json!({"name": "ct151", "host": "127.1.2.4", "port": null, "version": 7, "status": null, "id": null, "role": null, "agents": ["a"], "lastSeen": epoch_ms()}),
        ),
        (
            "b",
            json!({"name": "ct152", "host": "127.1.2.5", "port": "3000", "status": "online", "agents": {"x": 1}, "role": "service"}),
        ),
        ("c", json!({"name": "ct153", "host": ["127.1.2.6"], "port": 3000})),
        ("d", json!(["not", "a", "node"])),
    ];
    let nodes: serde_json::Map<_, _> =
        odd.iter().map(|(id, entry)| ((*id).to_owned(), entry.clone())).collect();
    fs::write(mesh.registry_path(), json!({"version": 1, "nodes": nodes, "updatedAt": 1}).to_string())
        .unwrap();
    node.start_registryd().await;
    eventually("the node is registered beside them", async || mesh.entry("ct110")).await;
    for (id, entry) in &odd {
        assert_eq!(mesh.registry()["nodes"][id], *entry, "{id}");
    }
    let known = node.local("/mesh/nodes").await.unwrap().json();
    let names: Vec<_> = known.as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["ct110", "ct151", "ct152"]);
    assert_eq!(known[2]["port"], 3000);
    // The log names the one that is not valid.
    node.registryd().wait_log(&["WARN", "entry \"c\" is not a valid node", "kept unchanged"]).await;
}

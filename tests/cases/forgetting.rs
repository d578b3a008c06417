//! Nodes that are gone for good are taken out of the registry, by the operator or after a while.

use mesh_tests::eventually;
use mesh_tests::mesh::{Mesh, Node, entry};
use mesh_tests::process;
use serde_json::json;

fn meshctl(node: &Node, arguments: &[&str]) -> (bool, String) {
    let mut command = process::command("meshctl");
    let output = process::run(command.args(arguments).arg("--config").arg(&node.config_path));
    (output.status.success(), process::text(&output.stdout) + &process::text(&output.stderr))
}

#[tokio::test]
async fn an_operator_forgets_a_node_for_the_whole_mesh() {
    let mesh = Mesh::new();
    let (mut one, mut two) = (mesh.node("ct110").prepare().await, mesh.node("ct111").prepare().await);
    one.start_registryd().await;
    two.start_registryd().await;
    mesh.edit_registry(|registry| {
        let mut gone = entry("ct119", "127.1.2.3", 3000, &["scout"]);
        (gone["role"], gone["status"]) = (json!("agent"), json!("offline"));
        registry["nodes"]["id-ct119"] = gone;
    });
    let knows = async |node: &Node| {
        let nodes = node.local("/mesh/nodes?node=ct119").await.unwrap().json();
        !nodes.as_array().unwrap().is_empty()
    };
    eventually("both know it", async || (knows(&one).await && knows(&two).await).then_some(())).await;
    let (done, said) = meshctl(&one, &["nodes", "forget", "ct111"]);
    assert!(!done && said.contains("ct111 is online and would come back"), "{said}");
    let (done, said) = meshctl(&one, &["nodes", "forget", "ct198"]);
    assert!(!done && said.contains("ct198 is not in the registry"), "{said}");
    let (done, said) = meshctl(&one, &["nodes", "forget", "ct119.mesh"]);
    assert!(done && said.contains("ct119 is no longer in the registry"), "{said}");
    assert_eq!(mesh.entry("ct119"), None);
    eventually("neither knows it", async || (!knows(&one).await && !knows(&two).await).then_some(())).await;
    two.registryd().wait_log(&["INFO", "node ct119 is no longer in the registry"]).await;
}

#[tokio::test]
async fn who_has_been_offline_for_long_is_forgotten_where_that_is_wanted() {
    let mesh = Mesh::new();
    let wanted = |config: &mut serde_json::Value| config["registryd"]["forget_after"] = json!("1s");
    let mut node = mesh.node("ct110").with(wanted).prepare().await;
    mesh.edit_registry(|registry| {
        for (name, status) in [("ct118", "offline"), ("ct119", "online")] {
            let mut gone = entry(name, "127.1.2.3", 3000, &["scout"]);
            (gone["role"], gone["status"], gone["lastSeen"]) = (json!("agent"), json!(status), json!(1000));
            registry["nodes"][format!("id-{name}")] = gone;
        }
    });
    node.start_registryd().await;
    eventually("the one that is offline is forgotten", async || mesh.entry("ct118").is_none().then_some(()))
        .await;
    assert!(mesh.entry("ct119").is_some());
}

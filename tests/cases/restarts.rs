//! registryd may be restarted and reloaded at any time: its node stays in everybody's rotation.

use std::fs;
use std::time::Duration;

use mesh_tests::eventually;
use mesh_tests::mesh::{Mesh, Node};
use serde_json::json;

#[tokio::test]
async fn a_restart_of_registryd_takes_its_node_out_of_no_rotation() {
    let mesh = Mesh::new();
    let (one, mut two) = mesh.pair().await;
    for _ in 0..3 {
        assert!(two.registryd().stop().await.success());
        for _ in 0..20 {
            let answer = one.get("/agents/grok/x").await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_ne!(mesh.entry("ct111").unwrap()["status"], "offline");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        two.start_registryd().await;
        assert_eq!(one.get("/agents/grok/x").await.status, 200);
    }
    // Once the sidecar has stopped as well, the node leaves.
    two.proxy().stop().await;
    assert!(two.registryd().stop().await.success());
    assert_eq!(mesh.entry("ct111").unwrap()["status"], "offline");
}

async fn problems(node: &Node) -> Option<String> {
    node.local("/v1/status").await.map(|status| status.json()["problems"].to_string())
}

#[tokio::test]
async fn sighup_publishes_what_the_configuration_says_now() {
    let mesh = Mesh::new();
    let mut node = mesh.start("ct110", "opus").await;
    let rewrite = |node: &Node, change: &dyn Fn(&mut serde_json::Value)| {
        let mut config: serde_json::Value =
            serde_json::from_slice(&fs::read(&node.config_path).unwrap()).unwrap();
        change(&mut config);
        fs::write(&node.config_path, config.to_string()).unwrap();
    };
    rewrite(&node, &|config| {
        config["registryd"]["agents"] = json!(["opus", {"name": "grok", "provider": "xai"}]);
        config["registryd"]["capabilities"] = json!(["search"]);
        config["registryd"]["metadata"] = json!({"rack": 7});
    });
    node.registryd().signal(libc::SIGHUP);
    let entry = eventually("the new agents are published", async || {
        mesh.entry("ct110").filter(|entry| entry["agents"] == json!(["opus", "grok"]))
    })
    .await;
    assert_eq!((&entry["capabilities"], &entry["metadata"]["rack"]), (&json!(["search"]), &json!(7)));
    let details = &entry["metadata"]["agentDetails"];
    assert_eq!(details[1], json!({"id": "grok", "name": "grok", "provider": "xai", "model": null}));
    let agents = node.local("/api/agents").await.unwrap().json();
    assert_eq!(agents["agents"].as_array().unwrap().len(), 2);

    // What cannot be used changes nothing, and is told until it is mended.
    rewrite(&node, &|config| config["registryd"]["agent"] = json!(["x"]));
    node.registryd().signal(libc::SIGHUP);
    eventually("the mistake is told", async || {
        problems(&node)
            .await
            .filter(|problems| problems.contains("registryd.agent") && problems.contains("as before"))
    })
    .await;
    assert_eq!(mesh.entry("ct110").unwrap()["agents"], json!(["opus", "grok"]));
    rewrite(&node, &|config| drop(config["registryd"].as_object_mut().unwrap().remove("agent")));
    node.registryd().signal(libc::SIGHUP);
    eventually("nothing is wrong", async || {
        problems(&node).await.filter(|problems| !problems.contains("registryd.agent"))
    })
    .await;
    assert!(node.registryd().is_running());
}

//! Two hosts that call themselves by one name, as a cloned machine does: it is told, and neither speaks for both.

use mesh_tests::eventually;
use mesh_tests::mesh::{Mesh, Node, Plan};
use mesh_tests::process::run;
use serde_json::{Value, json};

/// A host with the name and certificate of ct111, and an address of its own.
fn clone(mesh: &Mesh, of: &Plan) -> Plan {
    let tls = of.config["mesh"]["tls"].clone();
    mesh.node("ct191").with(|config| {
        config["mesh"]["node_name"] = json!("ct111");
        config["mesh"]["tls"] = tls;
    })
}

async fn told(node: &Node, one: &Node, other: &Node) {
    let addresses = [one, other].map(|node| node.ip().to_string());
    eventually(&format!("{} says that there are two ct111", node.name), async || {
        let problems = node.local("/v1/status").await?.json()["problems"].to_string();
        let both = addresses.iter().all(|address| problems.contains(address));
        (problems.contains("two hosts call themselves ct111") && both).then_some(())
    })
    .await;
}

#[tokio::test]
async fn two_hosts_with_one_name_are_told_with_both_addresses() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct111");
    let clone = clone(&mesh, &plan);
    let (mut one, mut two, mut third) =
        (plan.prepare().await, clone.prepare().await, mesh.node("ct110").prepare().await);
    one.start_registryd().await;
    two.start_registryd().await;
    third.start_registryd().await;
    for node in [&one, &two, &third] {
        told(node, &one, &two).await;
    }
    one.registryd().wait_log(&["WARN", "two hosts call themselves ct111", &two.ip().to_string()]).await;

    // The one that stops says no goodbye for the other.
    assert!(two.registryd().stop().await.success());
    eventually("the problem is over", async || {
        let entry = mesh.entry("ct111")?;
        assert_ne!(entry["status"], "offline");
        (entry["host"] == one.ip().to_string()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn two_hosts_with_one_name_are_told_by_the_seed_that_both_join() {
    let mesh = Mesh::new();
    let mut seed = mesh.node("ct110").own_storage().prepare().await;
    seed.start_registryd().await;
    seed.start_proxy().await;
    let port = seed.inbound().port();
    mesh.dns.set("ct110.mesh", seed.ip());
    let by_seed = |plan: Plan| {
        plan.with(|config| {
            config["mesh"]["discovery"] =
                json!({"mode": "seed", "seed_host": "ct110.mesh", "seed_port": port});
        })
    };
    let plan = mesh.node("ct111");
    let clone = clone(&mesh, &plan);
    let (mut one, mut two) =
        (by_seed(plan.own_storage()).prepare().await, by_seed(clone.own_storage()).prepare().await);
    for node in [&mut one, &mut two] {
        node.start_registryd().await;
        node.start_proxy().await;
    }
    told(&seed, &one, &two).await;
    let doctor = run(seed.command("meshctl").args(["doctor", "--json"]));
    let doctor: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let checks = doctor["checks"].as_array().unwrap();
    let duplicate = checks.iter().find(|check| check["step"] == "duplicates").unwrap();
    assert_eq!((&duplicate["outcome"], &duplicate["node"]), (&json!("fail"), &json!("ct111")), "{duplicate}");
    assert!(duplicate["cause"].as_str().unwrap().contains(&two.ip().to_string()), "{duplicate}");
}

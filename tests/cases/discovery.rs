//! Nodes without a shared file find each other: by a seed, by a list, always through their sidecars.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use mesh_tests::eventually;
use mesh_tests::mesh::{Mesh, Node, Plan, read_json};
use serde_json::json;

fn own_entry(node: &Node, name: &str) -> Option<serde_json::Value> {
    let path = node.folder().join("storage/mesh.json");
    if !path.exists() {
        return None;
    }
    read_json(&path)["nodes"].as_object()?.values().find(|entry| entry["name"] == name).cloned()
}

async fn knows(node: &Node, name: &str, agent: &str) {
    eventually(&format!("{} knows {name} with {agent}", node.name), async || {
        let entry = own_entry(node, name)?;
        (entry["agents"] == json!([agent]) && entry["status"] == "online").then_some(())
    })
    .await;
}

/// Gives the node's name an address, as dnsmasq does in the reference document.
fn in_dns(mesh: &Mesh, plan: &Plan, name: &str) {
    let IpAddr::V4(ip) = plan.ip() else { panic!("no IPv4") };
    mesh.dns.set(&format!("{name}.mesh"), ip);
}

fn seeded(mesh: &Mesh, name: &str, agent: &str) -> Plan {
    let plan = mesh.node(name).agent(agent).own_storage();
    in_dns(mesh, &plan, name);
    plan.with(|config| {
        config["mesh"]["discovery"] = json!({"mode": "seed", "seed_host": "ct110.mesh", "seed_port": 3000});
    })
}

#[tokio::test]
async fn a_seed_brings_nodes_together_that_share_no_file() {
    let mesh = Mesh::new();
    let seed_plan = seeded(&mesh, "ct110", "opus");
    let (two, three) = (seeded(&mesh, "ct111", "grok"), seeded(&mesh, "ct112", "scout"));
    // The others are there before the seed: they keep trying.
    let mut two = two.prepare().await;
    two.start_registryd().await;
    two.start_proxy().await;
    two.registryd().wait_log(&["[Discovery]", "ct110"]).await;
    let seed = seed_plan.start().await;
    let three = three.start().await;
    for (node, others) in [
        (&seed, [("ct111", "grok"), ("ct112", "scout")]),
        (&two, [("ct110", "opus"), ("ct112", "scout")]),
        (&three, [("ct110", "opus"), ("ct111", "grok")]),
    ] {
        for (other, agent) in others {
            knows(node, other, agent).await;
            node.reaches(other).await;
        }
    }
    let answer = two.comes_to("/agents/scout/x", None).await;
    assert_eq!(answer.header("x-agent"), Some("scout"));
    // The seed was asked through the sidecars: its log names the peer.
    let mut seed = seed;
    seed.proxy().wait_log(&["Request peer.cn=ct111 POST /api/mesh/join status=200"]).await;
}

#[tokio::test]
async fn a_mesh_goes_on_and_grows_without_its_seed() {
    let mesh = Mesh::new();
    let mut seed = seeded(&mesh, "ct110", "opus").start().await;
    let two = seeded(&mesh, "ct111", "grok").start().await;
    let three = seeded(&mesh, "ct112", "scout").start().await;
    knows(&two, "ct112", "scout").await;
    knows(&three, "ct111", "grok").await;
    seed.proxy().kill();
    seed.registryd().kill();
    // Heartbeats go on between those that are left: lastSeen of the other keeps moving.
    for (node, other) in [(&two, "ct112"), (&three, "ct111")] {
        for _ in 0..2 {
            let seen = own_entry(node, other).unwrap()["lastSeen"].as_u64();
            eventually(&format!("{} still hears of {other}", node.name), async || {
                own_entry(node, other).filter(|entry| entry["lastSeen"].as_u64() > seen)
            })
            .await;
        }
    }
    assert_eq!(two.get("/agents/scout/x").await.status, 200);
}

/// Long enough that two of them are more than a busy machine needs.
const INTERVAL: Duration = Duration::from_secs(4);

async fn four(mesh: &Mesh) -> [Node; 4] {
    let mut nodes = Vec::new();
    for (name, agent) in [("ct110", "opus"), ("ct111", "grok"), ("ct112", "scout"), ("ct113", "ranger")] {
        let slow = |config: &mut serde_json::Value| {
            config["mesh"]["heartbeat_interval_ms"] = json!(INTERVAL.as_millis() as u64);
        };
        nodes.push(seeded(mesh, name, agent).with(slow).start().await);
    }
    let nodes = <[Node; 4]>::try_from(nodes).unwrap_or_else(|_| unreachable!());
    for node in &nodes {
        for (other, agent) in [("ct110", "opus"), ("ct111", "grok"), ("ct112", "scout"), ("ct113", "ranger")]
        {
            knows(node, other, agent).await;
        }
    }
    nodes
}

/// Restarts ct111 with other agents and gives how long it takes until all of `others` know.
async fn change_reaches(changed: &mut Node, others: &[&Node]) -> Duration {
    let mut config = read_json(&changed.config_path);
    config["registryd"]["agents"] = json!(["grok", "helper"]);
    std::fs::write(&changed.config_path, config.to_string()).unwrap();
    changed.registryd().kill();
    changed.start_registryd().await;
    let started = Instant::now();
    for node in others {
        mesh_tests::eventually_within(
            2 * INTERVAL,
            &format!("{} knows the new agents", node.name),
            async || (own_entry(node, "ct111")?["agents"] == json!(["grok", "helper"])).then_some(()),
        )
        .await;
    }
    started.elapsed()
}

#[tokio::test]
async fn without_the_seed_a_change_reaches_all_within_two_intervals() {
    let mesh = Mesh::new();
    let [mut seed, mut changed, two, three] = four(&mesh).await;
    seed.proxy().kill();
    seed.registryd().kill();
    let taken = change_reaches(&mut changed, &[&two, &three]).await;
    println!("seed lost: {taken:?} of two intervals of {INTERVAL:?}");
    // And the other way round: it has not forgotten anybody.
    for (other, agent) in [("ct112", "scout"), ("ct113", "ranger")] {
        assert!(own_entry(&changed, other).is_some());
        assert_eq!(changed.comes_to(&format!("/agents/{agent}/x"), None).await.status, 200);
    }
}

#[tokio::test]
async fn without_another_node_a_change_reaches_all_within_two_intervals() {
    let mesh = Mesh::new();
    let [seed, mut changed, two, mut lost] = four(&mesh).await;
    lost.proxy().kill();
    lost.registryd().kill();
    let taken = change_reaches(&mut changed, &[&seed, &two]).await;
    println!("another node lost: {taken:?} of two intervals of {INTERVAL:?}");
}

#[tokio::test]
async fn static_peers_are_asked_for_their_agents() {
    let mesh = Mesh::new();
    let (one, two) =
        (mesh.node("ct110").agent("opus").own_storage(), mesh.node("ct111").agent("grok").own_storage());
    let peers = |name: &str, ip: IpAddr| {
        let peers = json!([{"name": name, "host": ip.to_string(), "port": 3000}]);
        move |config: &mut serde_json::Value| {
            config["mesh"]["peers"] = peers;
            config["mesh"]["discovery"] = json!({"mode": "static"});
        }
    };
    let (to_two, to_one) = (peers("ct111", two.ip()), peers("ct110", one.ip()));
    let (one, two) = (one.with(to_two).start().await, two.with(to_one).start().await);
    knows(&one, "ct111", "grok").await;
    knows(&two, "ct110", "opus").await;
    let task = json!({"fromAgent": "opus", "message": "hello"});
    let answer = one.post("/agents/grok/api/message", &task).await;
    assert_eq!(answer.json()["response"], "grok heard: hello");
}

#[tokio::test]
async fn a_static_peer_that_is_somebody_else_is_not_used() {
    let mesh = Mesh::new();
    let impostor = mesh_tests::loopback::Loopback::take();
    let options = mesh_tests::tls::PeerOptions::good(&mesh.ca, "ct666");
    let peer = mesh_tests::tls::Peer::start(impostor.port(3000), "grok", options).await;
    let plan = mesh.node("ct110").agent("opus").own_storage().with(|config| {
        config["mesh"]["peers"] = json!([{"name": "ct111", "host": impostor.ip().to_string()}]);
        config["mesh"]["discovery"] = json!({"mode": "static"});
    });
    let mut node = plan.start().await;
    node.registryd().wait_log(&["ct111"]).await;
    eventually("the impostor was dialled", async || (peer.example.connections() > 0).then_some(())).await;
    node.comes_to("/nodes/ct111/x", Some("peer_identity_mismatch"))
        .await
        .problem(502, "peer_identity_mismatch");
    node.registryd().wait_log(&["WARN", "[Discovery]", "node=ct111"]).await;
    assert!(peer.example.requests().is_empty());
    // It was asked, and is nothing that this node knows of.
    assert_eq!(node.local("/mesh/nodes?node=ct111").await.unwrap().json(), json!([]));
    assert!(own_entry(&node, "ct111").is_none());
    assert!(node.registryd().lines_with(&["node ct111 joined"]).is_empty());
}

/// Its own disk takes no writes; what it hears by network still tells who lives.
#[tokio::test]
async fn a_node_that_cannot_write_still_notices_who_falls_silent() {
    let mesh = Mesh::new();
    let quick = |config: &mut serde_json::Value| config["mesh"]["stale_threshold_ms"] = json!(4000);
    let seed = seeded(&mesh, "ct110", "opus").with(quick).start().await;
    let mut two = seeded(&mesh, "ct111", "grok").with(quick).start().await;
    let mut three = seeded(&mesh, "ct112", "scout").with(quick).start().await;
    knows(&two, "ct110", "opus").await;
    knows(&two, "ct112", "scout").await;
    // A folder where the temporary file belongs; between two writes there is none.
    let in_the_way = two.folder().join("storage/.mesh.json.ct111.tmp");
    eventually("its writes fail", async || {
        let _ = std::fs::create_dir(&in_the_way);
        let problems = two.local("/v1/status").await?.json()["problems"].to_string();
        problems.contains("cannot write").then_some(())
    })
    .await;
    three.proxy().kill();
    three.registryd().kill();
    let shown =
        async |name: &str| two.local(&format!("/mesh/nodes?node={name}")).await.unwrap().json()[0].clone();
    eventually("ct112 is offline for ct111", async || {
        assert_eq!(shown("ct110").await["status"], "online");
        (shown("ct112").await["status"] == "offline").then_some(())
    })
    .await;
    // Writable again, it writes so, and nobody comes back to life.
    std::fs::remove_dir(&in_the_way).unwrap();
    eventually("the file says so", async || (own_entry(&two, "ct112")?["status"] == "offline").then_some(()))
        .await;
    assert!(two.registryd().lines_with(&["ct112 recovered"]).is_empty());
    drop(seed);
}

/// What one peer is well at hides nothing of another.
#[tokio::test]
async fn a_static_peer_that_is_away_is_told_all_the_time() {
    let mesh = Mesh::new();
    let (one, two) = (mesh.node("ct110").own_storage(), mesh.node("ct111").own_storage());
    let peers =
        json!([{"name": "ct111", "host": two.ip().to_string()}, {"name": "ct119", "host": "127.9.9.9"}]);
    let two = two.start().await;
    let plan = one.with(|config| {
        config["mesh"]["peers"] = peers;
        config["mesh"]["discovery"] = json!({"mode": "static"});
        config["mesh"]["heartbeat_interval_ms"] = json!(200);
    });
    let node = plan.start().await;
    let problems = async || node.local("/v1/status").await.unwrap().json()["problems"].to_string();
    eventually("the dead peer is told, and no other", async || {
        let told = problems().await;
        (told.contains("ct119") && !told.contains("ct111")).then_some(())
    })
    .await;
    for _ in 0..40 {
        let told = problems().await;
        assert!(told.contains("ct119.mesh") && !told.contains("ct111.mesh"), "{told}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    drop(two);
}

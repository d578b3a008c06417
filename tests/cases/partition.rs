//! Nodes in network namespaces of their own, with dnsmasq and no shared file: the network breaks in two and heals.

use std::fs;
use std::process::Command;

use mesh_tests::eventually;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::network::{Network, SYSTEM_PATH};
use mesh_tests::process::{self, Daemon, run, text};
use serde_json::{Value, json};

const NODES: [(&str, &str); 4] =
    [("ct110", "opus"), ("ct111", "grok"), ("ct112", "scout"), ("ct113", "ranger")];

/// A node in its namespace, with a resolver and an agent of its own.
struct Placed {
    node: Node,
    _around: [Daemon; 2],
}

/// dnsmasq as the reference document has it: a host record for each node, on the port where resolvers are asked.
fn dnsmasq(network: &Network, i: usize) -> Daemon {
    let mut command = Command::new("dnsmasq");
    command.env("PATH", SYSTEM_PATH);
    command.args([
        "--keep-in-foreground",
        "--log-facility=-",
        "--user=",
        "--pid-file=",
        "--conf-file=/dev/null",
    ]);
    command.args(["--no-resolv", "--no-hosts", "--bind-interfaces", "--listen-address=127.0.0.1"]);
    for (other, (name, _)) in NODES.iter().enumerate() {
        command.arg(format!("--host-record={name}.mesh,{}", network.address(other)));
    }
    Daemon::start("dnsmasq", &mut network.inside(i, &command))
}

/// An agent that answers any GET of `/who` with its name.
fn agent(network: &Network, i: usize, mesh: &Mesh, name: &str) -> Daemon {
    let folder = mesh.folder().join(format!("agent-{name}"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("who"), name).unwrap();
    let mut command = Command::new("python3");
    command.args(["-m", "http.server", "8080", "--bind", "127.0.0.1", "--directory"]).arg(folder);
    Daemon::start(&format!("agent {name}"), &mut network.inside(i, &command))
}

fn start(network: &Network, i: usize, node: &Node, binary: &str) -> Daemon {
    let mut command = process::command(binary);
    command.arg("--config").arg(&node.config_path).env("MESH_LOG", "info,Discovery=debug");
    Daemon::start(&format!("{} {binary}", node.name), &mut network.inside(i, &command))
}

async fn place(network: &Network, mesh: &Mesh, i: usize) -> Placed {
    let (name, agent_name) = NODES[i];
    let around = [dnsmasq(network, i), agent(network, i, mesh, agent_name)];
    let plan = mesh.node(name).own_storage().with(|config| {
        config["mesh"]["discovery"] = json!({"mode": "seed", "seed_host": "ct110.mesh", "seed_port": 3000});
        // Only DNS leads from it to an address.
        config["mesh"]["advertise_host"] = json!(format!("{name}.mesh"));
        config["mesh"]["heartbeat_interval_ms"] = json!(500);
        config["mesh"]["stale_threshold_ms"] = json!(4000);
        config["proxy"]["inbound"]["address"] = json!("0.0.0.0");
        config["proxy"]["backend"]["address"] = json!("127.0.0.1:8080");
        config["registryd"]["agents"] = json!([agent_name]);
        config["registryd"]["dns"] = json!({"upstream": ["127.0.0.1:53"]});
    });
    let mut node = plan.prepare().await;
    node.registryd = Some(start(network, i, &node, "registryd"));
    node.proxy = Some(start(network, i, &node, "mesh-proxy"));
    Placed { node, _around: around }
}

/// What node `i` has in its registry about another.
fn status(placed: &[Placed], i: usize, other: usize) -> Option<String> {
    let path = placed[i].node.folder().join("storage/mesh.json");
    let registry: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let entry =
        registry["nodes"].as_object()?.values().find(|entry| entry["name"] == NODES[other].0)?.clone();
    Some(entry["status"].as_str()?.into())
}

async fn considers(placed: &[Placed], i: usize, other: usize, wanted: &str) {
    eventually(&format!("{} is {wanted} for {}", NODES[other].0, NODES[i].0), async || {
        (status(placed, i, other)? == wanted).then_some(())
    })
    .await;
}

/// What node `i` gets from another's agent.
fn asked(network: &Network, placed: &[Placed], i: usize, other: usize) -> String {
    let url = format!("http://{}/agents/{}/who", placed[i].node.outbound(), NODES[other].1);
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--max-time", "5", &url]);
    text(&run(&mut network.inside(i, &curl)).stdout)
}

async fn answers(network: &Network, placed: &[Placed], i: usize, other: usize) {
    eventually(&format!("{} answers {}", NODES[other].1, NODES[i].0), async || {
        (asked(network, placed, i, other) == NODES[other].1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_network_that_breaks_in_two_goes_on_in_both_halves_and_heals() {
    let mesh = Mesh::new();
    let Some(network) = Network::halves(2).await else { return };
    let mut placed = Vec::new();
    for i in 0..NODES.len() {
        placed.push(place(&network, &mesh, i).await);
    }
    let pairs = || (0..4).flat_map(|i| (0..4).map(move |other| (i, other))).filter(|(i, other)| i != other);
    let across = |i: usize, other: usize| (i < 2) != (other < 2);
    for round in 0..2 {
        for (i, other) in pairs() {
            considers(&placed, i, other, "online").await;
            answers(&network, &placed, i, other).await;
        }
        if round == 1 {
            break;
        }
        network.cut(true);
        for (i, other) in pairs().filter(|(i, other)| across(*i, *other)) {
            considers(&placed, i, other, "offline").await;
            eventually(&format!("{i} is told that {other} is offline"), async || {
                asked(&network, &placed, i, other).contains("agent_offline").then_some(())
            })
            .await;
        }
        // Also while registryd asks the others whether they are back, nobody waits for them.
        for (i, other) in pairs().filter(|(i, other)| across(*i, *other)).cycle().take(40) {
            let refused = asked(&network, &placed, i, other);
            assert!(refused.contains("agent_offline"), "{i} {other}: {refused:?}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        // The seed is in the first half; both go on, and still hear of each other.
        for (i, other) in pairs().filter(|(i, other)| !across(*i, *other)) {
            assert_eq!(status(&placed, i, other).as_deref(), Some("online"), "{i} {other}");
            assert_eq!(asked(&network, &placed, i, other), NODES[other].1);
        }
        network.cut(false);
    }
    for each in &mut placed {
        assert!(each.node.registryd().is_running() && each.node.proxy().is_running());
        let recovered = each.node.registryd().lines_with(&["recovered"]);
        assert!(recovered.len() >= 2, "{}: {recovered:?}", each.node.name);
    }
}

/// The parts hold each other offline by then, and nobody whom all know is left to bring them together.
#[tokio::test]
async fn parts_find_each_other_again_without_the_seed() {
    let mesh = Mesh::new();
    let Some(network) = Network::halves(2).await else { return };
    let mut placed = Vec::new();
    for i in 0..NODES.len() {
        placed.push(place(&network, &mesh, i).await);
    }
    let left = || (1..4).flat_map(|i| (1..4).map(move |other| (i, other))).filter(|(i, other)| i != other);
    for (i, other) in left() {
        considers(&placed, i, other, "online").await;
    }
    placed[0].node.proxy().kill();
    placed[0].node.registryd().kill();
    network.cut(true);
    let across = [(1, 2), (1, 3), (2, 1), (3, 1)];
    for (i, other) in across {
        considers(&placed, i, other, "offline").await;
    }
    // What was asked while they counted as online has to come to nothing first, and so has what still lies in
    // connections of before.
    let logs = across.map(|(i, _)| placed[i].node.registryd().log().len());
    for ((i, other), skip) in across.into_iter().zip(logs) {
        let asked = format!("node={}", NODES[other].0);
        placed[i].node.registryd().wait_log_after(skip, &["[Discovery]", "answer", &asked]).await;
    }
    placed[1].node.proxy().kill();
    placed[1].node.proxy = Some(start(&network, 1, &placed[1].node, "mesh-proxy"));
    placed[1].node.proxy().wait_log(&["mesh-proxy ready"]).await;
    network.cut(false);
    for (i, other) in left() {
        considers(&placed, i, other, "online").await;
        answers(&network, &placed, i, other).await;
    }
}

//! Who gets an agent's tasks: the nodes whose certificates say so, or all that claim it, which is told.

use std::fs;
use std::process::Output;

use mesh_tests::ca::{Issued, Spec};
use mesh_tests::eventually;
use mesh_tests::loopback::Loopback;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::{run, text};
use mesh_tests::tls::{Peer, PeerOptions};
use mesh_tests::web;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

async fn certified(mesh: &Mesh) -> Node {
    mesh.node("ct110")
        .agent("opus")
        .with(|config| config["mesh"]["agents"] = json!("certified"))
        .start()
        .await
}

/// A peer that is registered for grok and presents this certificate.
async fn claims(mesh: &Mesh, node: &str, identity: Issued) -> (Peer, Loopback) {
    let options = PeerOptions { identity, ..PeerOptions::good(&mesh.ca, node) };
    mesh.peer_with(node, &["grok"], options).await
}

fn with_uris(mesh: &Mesh, node: &str, uris: &[&str]) -> Issued {
    let uris = uris.iter().map(|uri| (*uri).to_owned()).collect();
    mesh.ca.issue(&Spec { uris, ..Spec::node(node) })
}

#[tokio::test]
async fn a_node_that_claims_an_agent_gets_none_of_its_tasks_without_a_certificate_for_it() {
    let mesh = Mesh::new();
    // The pretenders come first in every order.
    let pretenders = [
        ("ct101", mesh.ca.node("ct101")),
        ("ct102", with_uris(&mesh, "ct102", &["spiffe://evil/agent/grok@ct102"])),
        ("ct103", with_uris(&mesh, "ct103", &["spiffe://mesh/agent/grok@ct111"])),
        (
            "ct104",
            with_uris(&mesh, "ct104", &["spiffe://mesh/agent/opus@ct104", "spiffe://mesh/agent/Grok@ct104"]),
        ),
        ("ct105", with_uris(&mesh, "ct105", &["spiffe://mesh/node/grok", "https://mesh/agent/grok@ct105"])),
    ];
    let mut peers = Vec::new();
    for (node, identity) in pretenders {
        peers.push(claims(&mesh, node, identity).await);
    }
    let (good, _address) = claims(&mesh, "ct111", mesh.ca.hosting("ct111", &["scout", "grok"])).await;
    let near = certified(&mesh).await;
    near.reaches("ct111").await;
    for i in 0..60 {
        let answer = near.post(&format!("/agents/grok/task/{i}"), &json!({"message": "secret"})).await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("x-mesh-served-by")),
            (200, Some("ct111")),
            "{}",
            answer.text()
        );
    }
    // Whoever asks for a node and names the agent means the agent.
    let named = [("x-mesh-agent", "grok")];
    let answer = web::send(near.outbound(), web::get_with("/nodes/ct101/task", &named)).await;
    answer.problem(502, "agent_not_certified");
    assert_eq!(near.get("/nodes/ct101/plain").await.status, 200);
    assert_eq!(web::send(near.outbound(), web::get_with("/nodes/ct111/task/x", &named)).await.status, 200);
    for (peer, _) in &peers {
        let tasks = peer.example.requests().into_iter().filter(|seen| seen.target.contains("task"));
        assert_eq!(tasks.count(), 0);
    }
    assert_eq!(good.example.requests().iter().filter(|seen| seen.target.contains("task")).count(), 61);

    let told = doctor(&near, &["--json"]).await;
    assert_eq!(told.status.code(), Some(1), "{}{}", text(&told.stdout), text(&told.stderr));
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    let mut nodes: Vec<_> =
        told["disagreements"].as_array().unwrap().iter().map(|each| &each["node"]).collect();
    nodes.retain(|node| *node != "ct110");
    assert_eq!(json!(nodes), json!(["ct101", "ct102", "ct103", "ct104", "ct105"]), "{told}");

    // With the good one away, nobody gets them.
    good.stop().await;
    let answer = near.comes_to("/agents/grok/task", Some("peer_unreachable")).await;
    assert_eq!(answer.status, 502);
    mesh.edit_registry(|registry| drop(registry["nodes"].as_object_mut().unwrap().remove("id-ct111")));
    let answer = near.comes_to("/agents/grok/task", Some("agent_not_certified")).await;
    let told = answer.problem(502, "agent_not_certified");
    for part in
        ["ct101", "ct105", "meshctl ca renew <node> --agents grok", "meshctl invite <node> --agents grok"]
    {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[tokio::test]
async fn a_node_that_gets_its_certificate_gets_the_tasks() {
    let mesh = Mesh::new();
    let far = mesh.node("ct111").agent("grok");
    let path = far.config["mesh"]["tls"].clone();
    let (near, mut far) = tokio::join!(certified(&mesh), far.start());
    near.reaches("ct111").await;
    near.comes_to("/agents/grok/x", Some("agent_not_certified")).await;
    let issued = mesh.ca.hosting("ct111", &["grok"]);
    fs::write(path["key_path"].as_str().unwrap(), &issued.key_pem).unwrap();
    fs::write(path["cert_path"].as_str().unwrap(), &issued.chain_pem).unwrap();
    far.proxy().wait_log(&["certificates reloaded"]).await;
    near.comes_to("/agents/grok/x", None).await;
    let told = text(&doctor(&near, &[]).await.stdout);
    assert!(
        !told.contains("ct111 is registered") && told.contains("ct110 is registered for agent opus"),
        "{told}"
    );
}

/// `meshctl doctor`, while this test's peers go on answering.
async fn doctor(node: &Node, arguments: &[&str]) -> Output {
    let mut command = node.command("meshctl");
    command.arg("doctor").args(arguments);
    spawn_blocking(move || run(&mut command)).await.unwrap()
}

async fn problems(near: &Node) -> String {
    let told = run(near.command("meshctl").args(["status", "--json"]));
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    told["problems"].to_string()
}

#[tokio::test]
async fn an_agent_that_appears_on_another_node_is_told_once_and_after_a_restart() {
    let mesh = Mesh::new();
    let (_grok, _one) = mesh.peer("ct111", &["grok"]).await;
    let mut near = mesh.start("ct110", "opus").await;
    near.reaches("ct111").await;
    // What nobody hosted before takes nothing from anybody.
    let (_scout, _two) = mesh.peer("ct112", &["scout"]).await;
    near.reaches("ct112").await;
    eventually("the first ones are kept", async || {
        let kept = fs::read_to_string(near.folder().join("state/agent-hosts.json")).ok()?;
        kept.contains("scout").then_some(())
    })
    .await;
    assert!(!problems(&near).await.contains("appeared"), "{}", problems(&near).await);

    mesh.amend("ct112", |entry| entry["agents"] = json!(["scout", "grok"]));
    let line = "agent grok appeared on ct112, which did not host it before";
    near.proxy().wait_log(&["WARN [Mesh]", line]).await;
    let shown = async |near: &Node| {
        eventually("status shows it", async || problems(near).await.contains(line).then_some(())).await;
    };
    shown(&near).await;
    let told = run(near.command("meshctl").arg("status"));
    assert_eq!(told.status.code(), Some(1));
    assert_eq!(near.proxy().lines_with(&[line]).len(), 1);

    near.proxy().stop().await;
    near.start_proxy().await;
    near.has_roster().await;
    shown(&near).await;
    assert!(near.proxy().lines_with(&["WARN", line]).is_empty());
    mesh.amend("ct112", |entry| entry["agents"] = json!(["scout"]));
    eventually("it is gone", async || (!problems(&near).await.contains("appeared")).then_some(())).await;
}

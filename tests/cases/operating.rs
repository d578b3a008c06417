//! `meshctl top`, `tap`, `drain` and `undrain`.

use std::process::{Command, Output};

use mesh_tests::eventually;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::{Daemon, run, text};
use mesh_tests::tls::Client;
use mesh_tests::web;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::live::pair;
use crate::meshctl::{on_terminal, shown};

fn meshctl(node: &Node, arguments: &str) -> Command {
    let mut command = node.command("meshctl");
    command.args(arguments.split_whitespace());
    command
}

/// Runs a command to its end; agents answer meanwhile.
async fn finished(mut command: Command) -> Output {
    spawn_blocking(move || run(&mut command)).await.unwrap()
}

async fn fails(node: &Node, arguments: &str) -> String {
    let output = finished(meshctl(node, arguments)).await;
    assert_eq!(output.status.code(), Some(1), "{arguments}: {output:?}");
    text(&output.stderr)
}

#[tokio::test]
async fn tap_shows_what_ends_as_far_as_it_is_asked_for() {
    let mesh = Mesh::new();
    let (near, _far) = pair(&mesh).await;
    let mut all = Daemon::start("tap", &mut meshctl(&near, "tap"));
    let mut errors = Daemon::start("tap --errors", &mut meshctl(&near, "tap --errors"));
    let mut of_far =
        Daemon::start("tap --node", &mut meshctl(&near, "tap --node ct111 --json --agent grok --status 2xx"));
    let mut counted =
        Daemon::start("tap --count", &mut meshctl(&near, "tap --all --path /api/mesh --count 2"));
    eventually("all four look", async || {
        near.get("/agents/grok/x?secret=hush").await;
        near.get("/nodes/ct111/status/503").await;
        near.get("/nodes/ct111/api/mesh/ping").await;
        let ended = !counted.is_running();
        (ended && [&all, &errors, &of_far].iter().all(|tap| !tap.log().is_empty())).then_some(())
    })
    .await;
    let line = all.wait_log(&["  out  ct111 grok", "  200  ", "  GET /x"]).await;
    assert!(!line.contains("secret") && !line.contains('\u{1b}'), "{line:?}");
    let line = errors.wait_log(&["  out  ct111 ", "  503  ", "  GET /status/503"]).await;
    assert!(!line.contains("GET /x"), "{line}");
    let line = of_far.wait_log(&["\"/x\""]).await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&line["toldBy"], &line["peer"], &line["status"]),
        (&json!("ct111"), &json!("ct110"), &json!(200))
    );
    assert_eq!((&line["direction"], &line["outcome"]), (&json!("inbound"), &json!("complete")));
    assert!(counted.exited().await.success());
    assert_eq!(counted.lines_with(&["/api/mesh/ping"]).len(), 2, "{:?}", counted.log());
    for tap in [&mut all, &mut errors, &mut of_far] {
        assert!(tap.is_running());
        for line in tap.log() {
            assert!(!line.contains("/api/mesh"), "{line}");
        }
    }
    assert!(errors.lines_with(&["GET /x"]).is_empty());
    let timed = finished(meshctl(&near, "tap --for 1s")).await;
    assert!(timed.status.success(), "{timed:?}");
}

#[tokio::test]
async fn what_cannot_be_looked_at_is_told_with_what_to_do() {
    let mesh = Mesh::new();
    let (mut near, far) = pair(&mesh).await;
    far.reaches("ct110").await;
    let told = fails(&far, "tap --node ct110").await;
    assert!(told.contains("peer ct111") && told.contains("proxy.live.peers"), "{told}");
    let told = fails(&near, "top --once --node ct119").await;
    assert!(told.contains("ct119"), "{told}");
    let usage = finished(meshctl(&near, "tap --status 700")).await;
    assert_eq!(usage.status.code(), Some(2), "{usage:?}");
    near.proxy().stop().await;
    for command in ["top --once", "tap", "drain --wait"] {
        let told = fails(&near, command).await;
        assert!(told.contains("mesh-proxy on ") && told.contains("systemctl status mesh-proxy"), "{told}");
    }
    // Nothing was changed by the last one: with its sidecar, the node is back.
    near.start_proxy().await;
    eventually("ct110 is online again", async || {
        (mesh.entry("ct110").unwrap()["status"] == "online").then_some(())
    })
    .await;
}

#[tokio::test]
async fn top_counts_by_peer_and_agent() {
    let mesh = Mesh::new();
    let (near, far) = pair(&mesh).await;
    let response = web::open(near.outbound(), web::get_with("/agents/grok/stream", &[])).await.unwrap();
    let answer = far.agent().stream().await;
    answer.send(web::piece("begun")).unwrap();
    let row = async |arguments: &str, direction: &str| {
        let output = finished(meshctl(&near, &format!("top --once --json {arguments}"))).await;
        assert!(output.status.success(), "{output:?}");
        let picture: Value = serde_json::from_slice(&output.stdout).unwrap();
        let rows = picture["rows"].as_array().unwrap();
        rows.iter().find(|row| row["direction"] == direction && row["agent"] == "grok").cloned()
    };
    let out =
        eventually("the stream's row", async || row("", "outbound").await.filter(|row| row["streams"] == 1))
            .await;
    assert_eq!((&out["peer"], &out["requests"]), (&json!("ct111"), &json!(0)));
    assert!(out["oldestMs"].is_u64(), "{out}");
    let inbound = row("--node ct111", "inbound").await.unwrap();
    assert_eq!((&inbound["peer"], &inbound["streams"]), (&json!("ct110"), &json!(1)));
    // Not a terminal: one table, without colours.
    let table = finished(meshctl(&near, "top")).await;
    let told = text(&table.stdout);
    assert!(
        table.status.success() && told.contains("1 stream in flight") && !told.contains('\u{1b}'),
        "{told}"
    );
    assert!(told.lines().any(|line| line.starts_with("outbound  ct111  grok")), "{told}");

    if let Some(mut drawn) = on_terminal(&near, "top") {
        let line = drawn.wait_log(&["mesh-proxy"]).await;
        assert!(line.starts_with("\x1b[H\x1b[2J"), "{line:?}");
        drawn.wait_log(&["outbound  ct111  grok"]).await;
        for line in drawn.log().iter().map(|line| shown(line)) {
            assert!(line.chars().count() <= 60, "{line:?}");
        }
        assert!(drawn.is_running());
    }

    let mut followed = Daemon::start("top --json", &mut meshctl(&near, "top --json"));
    eventually("what ended is counted", async || {
        near.get("/agents/grok/x").await;
        followed.lines_with(&["\"errorRatio\":0.0"]).pop()
    })
    .await;
    assert!(followed.is_running());
    drop(answer);
    web::Answer::read(response).await.unwrap();
    followed.wait_log_after(followed.log().len(), &["\"inFlightTotal\":0"]).await;
}

#[tokio::test]
async fn a_node_is_drained_of_what_others_sent_and_comes_back() {
    let mesh = Mesh::new();
    let (near, far) = pair(&mesh).await;
    let response = web::open(near.outbound(), web::get_with("/agents/grok/stream", &[])).await.unwrap();
    let answer = far.agent().stream().await;
    let output = finished(meshctl(&far, "drain --wait --timeout 2s")).await;
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let told = text(&output.stdout);
    assert!(told.contains("waiting for 1 in flight (1 of ct110 for grok)"), "{told}");
    let told = text(&output.stderr);
    assert!(told.contains("not drained after 2 s: 1 in flight") && told.contains("stays updating"), "{told}");

    let mut waiting = Daemon::start("drain", &mut meshctl(&far, "drain --wait"));
    waiting.wait_log(&["waiting for 1 in flight (1 of ct110 for grok)"]).await;
    let beat = mesh.entry("ct111").unwrap()["lastSeen"].clone();
    eventually("a heartbeat later it is still updating", async || {
        let entry = mesh.entry("ct111")?;
        assert_eq!(entry["status"], "updating", "{entry}");
        (entry["lastSeen"] != beat).then_some(())
    })
    .await;
    near.comes_to("/agents/grok/x", Some("agent_offline")).await;
    // By the node's own name it still comes.
    assert_eq!(near.get("/nodes/ct111/x").await.status, 200);
    assert!(waiting.is_running());
    drop(answer);
    web::Answer::read(response).await.unwrap();
    waiting.wait_log(&["nothing in flight"]).await;
    waiting.wait_log(&["drained after "]).await;
    assert!(waiting.exited().await.success());
    assert_eq!(mesh.entry("ct111").unwrap()["status"], "updating");

    let output = finished(meshctl(&far, "undrain")).await;
    assert!(output.status.success() && text(&output.stdout).contains("takes tasks again"), "{output:?}");
    near.comes_to("/agents/grok/x", None).await;
    let output = finished(meshctl(&far, "drain --json")).await;
    assert_eq!(text(&output.stdout), "{\"status\":\"updating\"}\n");
    eventually("it is announced", async || (mesh.entry("ct111")?["status"] == "updating").then_some(()))
        .await;
}

#[tokio::test]
async fn a_tap_goes_on_when_the_sidecar_is_restarted() {
    let mesh = Mesh::new();
    let mut node = mesh.start("ct110", "opus").await;
    let mut tap = Daemon::start("tap", &mut meshctl(&node, "tap"));
    eventually("it looks", async || {
        node.get("/nodes/ct110/before").await;
        tap.lines_with(&["GET /before"]).pop()
    })
    .await;
    node.proxy().kill();
    node.start_proxy().await;
    node.has_roster().await;
    eventually("it looks again", async || {
        node.get("/nodes/ct110/after").await;
        tap.lines_with(&["GET /after"]).pop()
    })
    .await;
    assert!(tap.is_running() && !tap.lines_with(&["trying again"]).is_empty());
}

#[tokio::test]
async fn refused_connections_are_shown_with_their_reasons() {
    let mesh = Mesh::new();
    let (near, far) = pair(&mesh).await;
    let mut refused = Daemon::start("tap --refused", &mut meshctl(&far, "tap --refused"));
    let mut all =
        Daemon::start("tap --node", &mut meshctl(&near, "tap --node ct111 --json --peer 127.0.0.1"));
    let mut other = Daemon::start("tap --peer", &mut meshctl(&far, "tap --refused --peer 127.0.0.9"));
    let mut top = Daemon::start("top", &mut meshctl(&far, "top --json"));
    top.wait_log(&["\"refused\":0"]).await;
    let stranger = Client::anonymous(&mesh.ca);
    eventually("both show it", async || {
        stranger.refused(far.inbound(), "ct111").await;
        near.get("/nodes/ct111/asked").await;
        (!refused.lines_with(&["refused before"]).is_empty() && !all.lines_with(&["refused"]).is_empty())
            .then_some(())
    })
    .await;
    let line = refused
        .wait_log(&["  in   127.0.0.1 ", "  ---  ", "no_certificate: peer did not return a certificate"])
        .await;
    assert!(!line.contains('\u{1b}'), "{line:?}");
    let line: Value = serde_json::from_str(&all.wait_log(&["\"refused\""]).await).unwrap();
    assert_eq!((&line["toldBy"], &line["refused"]["address"]), (&json!("ct111"), &json!("127.0.0.1")));
    assert_eq!(line["refused"]["cause"], "no_certificate");
    let line: Value = serde_json::from_str(&top.wait_log(&["\"lastRefused\""]).await).unwrap();
    assert!(line["refused"].as_u64() > Some(0), "{line}");
    assert_eq!(line["lastRefused"]["reason"], "peer did not return a certificate");
    assert!(refused.lines_with(&["/asked"]).is_empty() && all.lines_with(&["/asked"]).is_empty());
    assert!(other.is_running() && other.lines_with(&["refused before"]).is_empty());
}

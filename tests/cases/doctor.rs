//! `meshctl doctor`: one broken thing for each step, which is named there with its cause and what mends it.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use mesh_tests::ca::{Ca, Issued, Spec, self_signed};
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::{command, install, run, text};
use mesh_tests::tls::PeerOptions;
use mesh_tests::{eventually, loopback};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_blocking;

use crate::meshctl::on_terminal_with;

/// Runs meshctl, while this test's peers and agents go on answering.
async fn meshctl(node: &Node, arguments: &[&str]) -> (i32, String) {
    let mut command = node.command("meshctl");
    command.args(arguments);
    let output = spawn_blocking(move || run(&mut command)).await.unwrap();
    (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
}

async fn doctor(node: &Node, arguments: &[&str]) -> (i32, String) {
    meshctl(node, &[&["doctor"], arguments].concat()).await
}

async fn doctor_json(node: &Node, arguments: &[&str]) -> (i32, Value) {
    let (code, told) = doctor(node, &[arguments, &["--json"]].concat()).await;
    let told = serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"));
    (code, told)
}

/// The checks of a step.
fn of<'v>(told: &'v Value, step: &str) -> Vec<&'v Value> {
    let checks = told["checks"].as_array().unwrap().iter();
    checks.filter(|check| check["step"] == step).collect()
}

/// The way fails at `step` and nowhere before, with these parts in finding, cause and command; all behind it is skipped.
#[track_caller]
fn fails_at(told: &(i32, Value), step: &str, parts: &[&str]) {
    let (code, told) = told;
    assert_eq!((*code, &told["outcome"], &told["ok"]), (2, &json!("fail"), &json!(false)), "{told:#}");
    let checks = told["checks"].as_array().unwrap();
    let at = checks.iter().position(|check| check["outcome"] == "fail").unwrap();
    assert_eq!(checks[at]["step"], step, "{told:#}");
    assert!(
        checks[..at].iter().all(|check| check["outcome"] == "ok" || check["outcome"] == "warn"),
        "{told:#}"
    );
    assert!(
        checks[at + 1..].iter().all(|check| check["outcome"] == "skipped" || check["step"] == step),
        "{told:#}"
    );
    assert!(checks[at]["command"].is_string(), "a command: {told:#}");
    let said = checks[at].to_string();
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}

#[tokio::test]
async fn in_a_mesh_that_is_well_every_step_is_ok() {
    let mesh = Mesh::new();
    let (one, _two) = mesh.pair().await;
    for arguments in
        [&[] as &[&str], &["ct111"], &["ct111.mesh"], &["ct110"], &["grok"], &["grok@ct111"], &["opus"]]
    {
        let told = eventually("all is well", async || {
            let (code, told) = doctor_json(&one, arguments).await;
            if code != 0 {
                eprintln!("{arguments:?}: {told:#}");
            }
            (code == 0).then_some(told)
        })
        .await;
        assert_eq!(
            (&told["ok"], &told["outcome"], &told["node"]),
            (&json!(true), &json!("ok"), &json!("ct110"))
        );
        let checks = told["checks"].as_array().unwrap();
        assert!(checks.iter().all(|check| check["outcome"] == "ok"), "{told:#}");
        let (code, told) = doctor(&one, &[arguments, &["--quiet"]].concat()).await;
        assert_eq!((code, told.as_str()), (0, ""), "{arguments:?}");
    }
    let (_, told) = doctor_json(&one, &["ct111"]).await;
    let steps: Vec<&str> =
        told["checks"].as_array().unwrap().iter().map(|check| check["step"].as_str().unwrap()).collect();
    let expected = [
        "configuration",
        "certificates",
        "registryd",
        "sidecar",
        "registry",
        "clock",
        "name",
        "tcp",
        "tls",
        "identity",
        "policy",
        "answer",
    ];
    assert_eq!(steps, expected);
    assert_eq!(told["subject"], json!({"kind": "node", "name": "ct111"}));
    let (_, told) = doctor_json(&one, &["grok"]).await;
    assert_eq!(told["subject"], json!({"kind": "agent", "name": "grok"}));
    assert!(of(&told, "choice")[0]["finding"].as_str().unwrap().contains("go to ct111"), "{told:#}");
    assert_eq!(of(&told, "answer")[0]["node"], "ct111");
    let (_, told) = doctor_json(&one, &[]).await;
    assert_eq!(told["subject"], json!({"kind": "mesh"}));
    for step in [
        "registry",
        "duplicates",
        "reach",
        "versions",
        "thresholds",
        "clock",
        "expiry",
        "revocation",
        "hosting",
    ] {
        assert_eq!(of(&told, step).len(), 1, "{step}: {told:#}");
    }
    assert_eq!((&told["certified"], &told["disagreements"]), (&json!(false), &json!([])));
    let (code, told) = doctor(&one, &["ct111"]).await;
    assert!(code == 0 && told.contains("OK    TLS            mutual TLS works"), "{told}");
    assert!(told.ends_with("OK: 12 checks, 0 failed, 0 with a warning\n"), "{told}");
}

#[tokio::test]
async fn what_keeps_it_from_looking_is_no_verdict() {
    let mesh = Mesh::new();
    let node = mesh.node("ct110").prepare().await;
    let missing = mesh.folder().join("missing.yaml");
    let told = doctor_json(&node, &["--config", missing.to_str().unwrap()]).await;
    assert_eq!((told.0, &told.1["outcome"]), (3, &json!("unknown")));
    assert_eq!(of(&told.1, "configuration")[0]["outcome"], "unknown");
    assert!(of(&told.1, "registry").iter().all(|check| check["outcome"] == "skipped"));
    for arguments in [&["doctor", "--nonsense"] as &[&str], &["doctor", "not a name"]] {
        assert_eq!(run(command("meshctl").args(arguments)).status.code(), Some(3), "{arguments:?}");
    }
    assert_eq!(run(command("meshctl").args(["doctor", "--help"])).status.code(), Some(0));
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used() {
    let mesh = Mesh::new();
    let node = mesh.node("ct110").with(|config| config["mesh"]["node_nane"] = json!("x")).prepare().await;
    for arguments in [&[] as &[&str], &["ct111"], &["grok"]] {
        let told = doctor_json(&node, arguments).await;
        fails_at(
            &told,
            "configuration",
            &["cannot be used", "node_nane", "node_name", "sudoedit", "mesh-proxy check"],
        );
    }
}

/// Puts what is issued in place of the node's own.
fn replace(config: &Value, issued: &Issued, key: bool) {
    let tls = &config["mesh"]["tls"];
    fs::write(tls["cert_path"].as_str().unwrap(), &issued.chain_pem).unwrap();
    if key {
        fs::write(tls["key_path"].as_str().unwrap(), &issued.key_pem).unwrap();
    }
}

/// The daemons' own checks are run as this test's user, whatever users there are on this host.
fn as_this_user(config: &mut Value) {
    use std::os::unix::fs::MetadataExt;
    let user = fs::metadata("/proc/self").unwrap().uid();
    config["registryd"]["sidecar_user"] = json!(user.to_string());
}

#[tokio::test]
async fn certificates_that_cannot_work() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").with(as_this_user);
    let config = plan.config.clone();
    let node = plan.prepare().await;
    let expired = mesh.ca.issue(&Spec { from: 2020, until: 2021, ..Spec::node("ct110") });
    replace(&config, &expired, true);
    fails_at(
        &doctor_json(&node, &["ct111"]).await,
        "certificates",
        &["ended", "days ago", "meshctl ca renew ct110"],
    );
    replace(&config, &mesh.ca.node("ct110"), false);
    fails_at(
        &doctor_json(&node, &["ct111"]).await,
        "certificates",
        &["private key", "does not belong to the certificate", "meshctl ca renew ct110", "the CA's host"],
    );
    replace(&config, &mesh.ca.node("ct112"), true);
    fails_at(
        &doctor_json(&node, &[]).await,
        "certificates",
        &["names node ct112, but mesh.node_name is ct110"],
    );
    replace(&config, &Ca::new().node("ct110"), true);
    fails_at(&doctor_json(&node, &[]).await, "certificates", &["unknown issuer"]);
    fs::remove_file(config["mesh"]["tls"]["cert_path"].as_str().unwrap()).unwrap();
    fails_at(&doctor_json(&node, &[]).await, "certificates", &["node.crt", "meshctl ca issue-node ct110"]);
}

#[tokio::test]
async fn the_daemons_checks_get_nothing_of_the_callers_environment() {
    let mesh = Mesh::new();
    let node = mesh.node("ct110").with(as_this_user).prepare().await;
    let (folder, own) = (tempfile::tempdir().unwrap(), command("meshctl"));
    let (meshctl, kept) = (folder.path().join("meshctl"), folder.path().join("environment"));
    install(Path::new(own.get_program()), &meshctl);
    let script = folder.path().join("script");
    let checks = command("mesh-proxy").get_program().to_owned();
    let text_of = format!("#!/bin/sh\nenv > {}\nexec {} \"$@\"\n", kept.display(), checks.display());
    fs::write(&script, text_of).unwrap();
    install(&script, &folder.path().join("mesh-proxy"));
    let mut doctor = std::process::Command::new(&meshctl);
    doctor.args(["doctor", "--json", "--config"]).arg(&node.config_path);
    doctor.env("AWS_SECRET_ACCESS_KEY", "hush").env("HOME", "/root").env("LANG", "C.UTF-8");
    let output = spawn_blocking(move || run(&mut doctor)).await.unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(of(&told, "certificates").iter().all(|check| check["outcome"] == "ok"), "{told:#}");
    let environment = fs::read_to_string(&kept).unwrap();
    let names: BTreeSet<_> = environment.lines().filter_map(|line| line.split('=').next()).collect();
    // The shell adds the last four itself.
    let known = ["PATH", "LANG", "LC_ALL", "TERM", "NO_COLOR", "TZ", "PWD", "OLDPWD", "SHLVL", "_"];
    assert!(names.iter().all(|name| known.contains(name)), "{environment}");
    assert!(
        environment.lines().any(|line| line == "LANG=C.UTF-8") && names.contains("PATH"),
        "{environment}"
    );
}

#[tokio::test]
async fn daemons_that_do_not_run() {
    let mesh = Mesh::new();
    let (mut one, _two) = mesh.pair().await;
    one.proxy().kill();
    for arguments in [&[] as &[&str], &["ct111"], &["grok"]] {
        let told = doctor_json(&one, arguments).await;
        fails_at(&told, "sidecar", &["is not running", "sudo systemctl start mesh-proxy"]);
    }
    one.registryd().kill();
    for arguments in [&[] as &[&str], &["ct111"], &["grok"]] {
        let told = doctor_json(&one, arguments).await;
        fails_at(&told, "registryd", &["is not running", "sudo systemctl start registryd"]);
    }
    let (code, told) = doctor(&one, &["ct111"]).await;
    assert!(code == 2 && told.contains("skip  TLS            not checked, since registryd failed"), "{told}");
    let (code, told) = doctor(&one, &["--quiet"]).await;
    assert!(code == 2 && told.starts_with("FAIL  registryd") && told.lines().count() == 2, "{told}");
    assert!(told.contains("run: sudo systemctl start registryd"), "{told}");
}

#[tokio::test]
async fn what_the_registry_does_not_have() {
    let mesh = Mesh::new();
    let (one, mut two) = mesh.pair().await;
    fails_at(
        &doctor_json(&one, &["ct199"]).await,
        "registry",
        &["no node ct199 is registered", "ct110, ct111"],
    );
    fails_at(&doctor_json(&one, &["ct199.mesh"]).await, "registry", &["unknown_node"]);
    fails_at(
        &doctor_json(&one, &["nobody.agent.mesh"]).await,
        "registry",
        &["no agent nobody", "grok, opus"],
    );
    fails_at(
        &doctor_json(&one, &["opus@ct111"]).await,
        "registry",
        &["no agent opus is registered on ct111"],
    );
    // A node that said goodbye.
    two.proxy().stop().await;
    two.registryd().stop().await;
    eventually("ct111 is offline", async || (mesh.entry("ct111")?["status"] == "offline").then_some(()))
        .await;
    let told = eventually("ct110 sees it", async || {
        let told = doctor_json(&one, &["ct111"]).await;
        of(&told.1, "registry")[0]["finding"].as_str()?.contains("offline").then_some(told)
    })
    .await;
    fails_at(
        &told,
        "registry",
        &["ct111 is offline", "systemctl start registryd mesh-proxy", "peer_unreachable"],
    );
    fails_at(
        &doctor_json(&one, &["grok"]).await,
        "registry",
        &["ct111 (offline)", "none of them accepts tasks"],
    );
    let (code, told) = doctor_json(&one, &[]).await;
    assert_eq!(code, 2);
    assert!(of(&told, "registry")[0]["finding"].as_str().unwrap().contains("ct111 is offline"), "{told:#}");
    assert_eq!(of(&told, "reach")[0]["outcome"], "ok", "an offline node is told of once: {told:#}");
}

/// Waits until the registry of `node` knows `other`, and the sidecar too.
async fn knows(node: &Node, other: &str) {
    eventually("the node is known", async || {
        let answer = node.get(&format!("/nodes/{other}/api/mesh/ping")).await;
        let known = !matches!(answer.header("x-mesh-error"), Some("unknown_node" | "no_roster"));
        known.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_name_without_an_address_and_a_port_that_is_closed() {
    let mesh = Mesh::new();
    let one = mesh.start("ct110", "opus").await;
    mesh.register("ct150", "ct150.nowhere.invalid", 3000, &["grok"]);
    mesh.register("ct151", "127.1.2.3", 3999, &["scout"]);
    knows(&one, "ct150").await;
    knows(&one, "ct151").await;
    fails_at(
        &doctor_json(&one, &["ct150"]).await,
        "name",
        &["ct150.mesh has no address", "mesh.advertise_host"],
    );
    let told = doctor_json(&one, &["ct151"]).await;
    fails_at(
        &told,
        "tcp",
        &[
            "no connection to 127.1.2.3:3999",
            "nothing listens there",
            "systemctl start mesh-proxy",
            "\"on\":\"ct151\"",
        ],
    );
    // The same on the way to an agent, behind the choice.
    let told = doctor_json(&one, &["scout"]).await;
    fails_at(&told, "tcp", &["127.1.2.3:3999", "\"node\":\"ct151\""]);
    let (code, told) = doctor_json(&one, &[]).await;
    assert_eq!(code, 2);
    let reach: Vec<_> =
        of(&told, "reach").iter().map(|check| (check["node"].clone(), check["code"].clone())).collect();
    assert!(reach.contains(&(json!("ct151"), json!("peer_unreachable"))), "{told:#}");
    assert!(reach.contains(&(json!("ct150"), json!("peer_unresolved"))), "{told:#}");
}

#[tokio::test]
async fn what_does_not_speak_tls() {
    let mesh = Mesh::new();
    let one = mesh.start("ct110", "opus").await;
    let address = loopback::Loopback::take();
    let listener = loopback::listen(address.port(3000)).await;
    let web = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 512]).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    mesh.register("ct150", &address.ip().to_string(), 3000, &[]);
    knows(&one, "ct150").await;
    let told = doctor_json(&one, &["ct150"]).await;
    fails_at(
        &told,
        "tls",
        &["does not speak TLS as the mesh does", "another program has that port", "ss -ltnp"],
    );
    assert_eq!(of(&told.1, "tcp")[0]["outcome"], "ok");
    web.abort();
}

/// What is found of a peer that is registered as ct150 and presents this.
async fn of_peer(mesh: &Mesh, one: &Node, options: PeerOptions) -> (i32, Value) {
    let (peer, address) = mesh.peer_with("ct150", &["grok"], options).await;
    knows(one, "ct150").await;
    let leads_there = |ip: IpAddr| async move {
        eventually("ct150 is at its new address", async || {
            let (_, told) = meshctl(one, &["nodes", "--node", "ct150"]).await;
            told.contains(&ip.to_string()).then_some(())
        })
        .await;
    };
    leads_there(address.ip()).await;
    let told = doctor_json(one, &["ct150"]).await;
    peer.stop().await;
    told
}

#[tokio::test]
async fn certificates_of_peers_that_are_not_accepted() {
    let mesh = Mesh::new();
    let one = mesh.start("ct110", "opus").await;
    let good = |identity: Issued| PeerOptions { identity, ..PeerOptions::good(&mesh.ca, "ct150") };
    let told = of_peer(&mesh, &one, good(Ca::new().node("ct150"))).await;
    fails_at(
        &told,
        "tls",
        &["does not verify", "unknown issuer", "Intermediate issued it", "meshctl ca issue-node ct150"],
    );
    let ended = mesh.ca.issue(&Spec { from: 2020, until: 2021, ..Spec::node("ct150") });
    let told = of_peer(&mesh, &one, good(ended)).await;
    fails_at(&told, "tls", &["certificate has expired", "meshctl ca renew ct150"]);
    let coming = mesh.ca.issue(&Spec { from: 2080, ..Spec::node("ct150") });
    let told = of_peer(&mesh, &one, good(coming)).await;
    fails_at(&told, "tls", &["not valid yet", "timedatectl set-ntp true", "\"on\":\"ct150\""]);
    let told = of_peer(&mesh, &one, good(mesh.ca.node("ct112"))).await;
    fails_at(
        &told,
        "identity",
        &["is ct112, not ct150", "peer_identity_mismatch", "getent hosts ct150.mesh"],
    );
    let other_name = mesh.ca.issue(&Spec { dns: vec!["ct150.lan".into()], ..Spec::node("ct150") });
    let told = of_peer(&mesh, &one, good(other_name)).await;
    fails_at(&told, "identity", &["not for ct150.mesh", "ct150.lan", "meshctl ca issue-node ct150"]);
    let strict = PeerOptions { clients_of: Ca::new().roots(), ..PeerOptions::good(&mesh.ca, "ct150") };
    let told = of_peer(&mesh, &one, strict).await;
    fails_at(
        &told,
        "tls",
        &["refuses this node's certificate", "peer_refused_us", "journalctl -u mesh-proxy"],
    );
}

#[tokio::test]
async fn what_policy_refuses_here_and_there() {
    let mesh = Mesh::new();
    let rules = json!([{"node": "ct112", "action": "deny"}, {"action": "allow"}]);
    let one = mesh
        .node("ct110")
        .agent("opus")
        .with(|config| config["proxy"]["outbound"]["policy"] = json!({"rules": rules}));
    let shut = mesh
        .node("ct111")
        .agent("grok")
        .with(|config| config["proxy"]["policy"] = json!({"deny": ["ct110"]}));
    let rules = json!([{"method": "POST", "action": "allow"}]);
    let narrow =
        mesh.node("ct113").agent("scout").with(|config| config["proxy"]["policy"] = json!({"rules": rules}));
    let (one, _shut, _far, _narrow) =
        tokio::join!(one.start(), shut.start(), mesh.start("ct112", "claude"), narrow.start());
    one.comes_to("/nodes/ct111/api/mesh/ping", Some("peer_not_allowed")).await;
    for node in ["ct112", "ct113"] {
        one.reaches(node).await;
    }
    let there = doctor_json(&one, &["ct111"]).await;
    fails_at(
        &there,
        "policy",
        &[
            "ct111 refuses this node",
            "peer_not_allowed",
            "meshctl policy explain ct110 POST",
            "\"on\":\"ct111\"",
        ],
    );
    let here = doctor_json(&one, &["ct112"]).await;
    fails_at(
        &here,
        "policy",
        &["this node refuses POST /api/message to ct112", "proxy.outbound.policy.rules[0]", "--outbound"],
    );
    fails_at(
        &doctor_json(&one, &["claude"]).await,
        "policy",
        &["this node refuses POST /api/message to ct112"],
    );
    // Whether tasks pass cannot be seen from here without sending one.
    let (code, told) = doctor_json(&one, &["ct113"]).await;
    assert_eq!(code, 1, "{told:#}");
    let policy = of(&told, "policy")[0];
    assert_eq!(
        (&policy["outcome"], &policy["code"]),
        (&json!("warn"), &json!("request_not_allowed")),
        "{told:#}"
    );
    assert_eq!(policy["command"], "meshctl policy explain ct110 POST /api/message --agent scout");
}

#[tokio::test]
async fn an_agent_that_is_down() {
    let mesh = Mesh::new();
    let (one, mut two) = mesh.pair().await;
    two.stop_agent().await;
    for arguments in [&["ct111"] as &[&str], &["grok"]] {
        let told = doctor_json(&one, arguments).await;
        fails_at(
            &told,
            "answer",
            &["agent grok on ct111 is down", "backend_unreachable", "\"on\":\"ct111\""],
        );
    }
    // Nobody was given a task.
    two.start_agent("grok").await;
    let told = eventually("it is well again", async || {
        let (code, told) = doctor_json(&one, &["grok"]).await;
        (code == 0).then_some(told)
    })
    .await;
    assert!(
        of(&told, "answer")[0]["finding"].as_str().unwrap().contains("agent grok on ct111 answers"),
        "{told:#}"
    );
    let asked = two.agent().requests();
    assert!(!asked.is_empty() && asked.iter().all(|seen| seen.method == "GET"), "{asked:?}");
}

#[tokio::test]
async fn an_agent_on_several_nodes_is_reached_while_one_of_them_works() {
    let mesh = Mesh::new();
    let (one, _two) = mesh.pair().await;
    mesh.register("ct150", "127.1.2.3", 3999, &["grok"]);
    knows(&one, "ct150").await;
    let (code, told) = doctor_json(&one, &["grok"]).await;
    assert_eq!(code, 1, "{told:#}");
    let tcp: Vec<_> =
        of(&told, "tcp").iter().map(|check| (check["node"].clone(), check["outcome"].clone())).collect();
    assert_eq!(tcp, [(json!("ct111"), json!("ok")), (json!("ct150"), json!("warn"))], "{told:#}");
    assert!(
        of(&told, "choice")[0]["finding"].as_str().unwrap().contains("less loaded of two of ct111, ct150"),
        "{told:#}"
    );
    // Of one node, its failure counts.
    fails_at(&doctor_json(&one, &["grok@ct150"]).await, "tcp", &["127.1.2.3:3999"]);
}

#[tokio::test]
async fn an_agent_that_nobody_is_certified_for() {
    let mesh = Mesh::new();
    let one = mesh.node("ct110").agent("opus").with(|config| config["mesh"]["agents"] = json!("certified"));
    let (one, _two) = tokio::join!(one.start(), mesh.start("ct111", "grok"));
    one.reaches("ct111").await;
    fails_at(
        &doctor_json(&one, &["grok"]).await,
        "hosting",
        &["no node that is registered for grok is certified", "sudo meshctl ca renew ct111 --agents grok"],
    );
    fails_at(
        &doctor_json(&one, &["ct111"]).await,
        "answer",
        &["agent_not_certified", "meshctl ca renew ct111 --agents grok"],
    );
}

#[tokio::test]
async fn the_mesh_as_a_whole() {
    let mesh = Mesh::new();
    let close = |config: &mut Value| {
        config["mesh"]["heartbeat_interval_ms"] = json!(40_000);
    };
    let (one, _two) =
        tokio::join!(mesh.node("ct110").agent("opus").with(close).start(), mesh.start("ct111", "grok"),);
    one.reaches("ct111").await;
    let options = PeerOptions {
        identity: mesh.ca.ending("ct112", std::time::Duration::from_secs(3 * 86_400)),
        ..PeerOptions::good(&mesh.ca, "ct112")
    };
    let (_peer, _address) = mesh.peer_with("ct112", &[], options).await;
    // Clocks are compared where a stamp moves.
    knows(&one, "ct112").await;
    mesh.amend("ct112", |entry| {
        entry["status"] = json!("updating");
        entry["version"] = json!("9.9.9");
        entry["metadata"] = json!({"mesh": {"ttlMs": 600_000}});
        entry["lastSeen"] = json!(mesh_tests::mesh::epoch_ms() + 30_000);
    });
    let (code, told) = eventually("ct112 is seen", async || {
        let told = doctor_json(&one, &[]).await;
        (of(&told.1, "registry")[0]["node"] == "ct112").then_some(told)
    })
    .await;
    let warned = |step: &str, parts: &[&str]| {
        let check = of(&told, step)[0];
        assert_eq!(check["outcome"], "warn", "{step}: {told:#}");
        for part in parts {
            assert!(check.to_string().contains(part), "{part:?} is not in {check}");
        }
    };
    assert_eq!((code, &told["outcome"]), (1, &json!("warn")), "{told:#}");
    warned("registry", &["ct112 is updating", "status set online"]);
    warned("versions", &["9.9.9 on ct112", "0.1.0 on ct110, ct111", "meshctl upgrade"]);
    warned("thresholds", &["one every 40 s, offline after 60 s", "mesh.stale_threshold_ms"]);
    warned("clock", &["the clock of ct112 is", "ahead of this host's", "timedatectl"]);
    warned("expiry", &["the certificate of ct112 ends in", "meshctl ca renew ct112"]);
    assert_eq!(of(&told, "duplicates")[0]["outcome"], "ok");
    // It answered over mutual TLS, but not as a node does.
    assert_eq!(told["unseen"], json!(["ct112"]));
}

/// Everything that other hosts can put into what meshctl shows.
#[tokio::test]
async fn nothing_from_other_hosts_steers_the_terminal() {
    const EVIL: &str = "\u{1b}]0;pwned\u{7}\u{1b}[2J\u{1b}[31m\u{9b}2J\u{202e}evil\r\n";
    let mesh = Mesh::new();
    let one = mesh.start("ct110", "opus").await;
    let evil = self_signed(&Spec { cn: Some(EVIL.into()), ..Spec::node("ct150") });
    let options = PeerOptions { identity: evil, ..PeerOptions::good(&mesh.ca, "ct150") };
    let (_peer, _address) = mesh.peer_with("ct150", &["grok"], options).await;
    mesh.amend("ct150", |entry| {
        for key in ["agents", "capabilities", "providers", "models"] {
            entry[key] = json!([EVIL, "grok"]);
        }
        (entry["version"], entry["metadata"]) =
            (json!(EVIL), json!({"mesh": {"ttlMs": 60_000, "agentsDown": [EVIL]}}));
    });
    mesh.register("ct151", EVIL, 3000, &["$(touch pwned)"]);
    mesh.edit_registry(|registry| {
        registry["nodes"]["x"] = mesh_tests::mesh::entry(EVIL, "127.1.2.3", 3000, &[])
    });
    knows(&one, "ct150").await;
    knows(&one, "ct151").await;
    let mut seen = String::new();
    for line in [
        "nodes",
        "nodes --wide",
        "agents",
        "agents --wide",
        "ping",
        "ping --wide",
        "ping ct150",
        "status",
        "status --wide",
        "doctor",
        "doctor ct150",
        "doctor ct151",
        "doctor grok",
        "doctor nobody",
        "doctor grok@ct150",
        "hosts",
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let (_, told) = meshctl(&one, &arguments).await;
        let steers = |c: char| !"\n\t".contains(c) && (c.is_control() || c == '\u{202e}');
        assert!(!told.contains(steers), "{line}: {told:?}");
        seen.push_str(&told);
        if line.starts_with("doctor") {
            let commands = told.lines().filter(|line| line.starts_with("       "));
            for command in commands {
                assert!(!command.contains("$(") && !command.contains("evil"), "{command:?}");
            }
        }
    }
    assert!(seen.contains("evil"), "it was shown: {seen}");

    // On a terminal, only meshctl's own colours; none where they are not wanted.
    let own = |line: &str| {
        let mut rest = line;
        while let Some(at) = rest.find('\u{1b}') {
            rest = &rest[at + 1..];
            let known = ["[31m", "[32m", "[33m", "[2m", "[0m"];
            assert!(known.iter().any(|code| rest.starts_with(code)) || rest.starts_with("[K"), "{line:?}");
        }
    };
    for (arguments, in_last) in [("doctor ct150", "checks, "), ("nodes --wide", "ct151"), ("agents", "opus")]
    {
        let Some(mut terminal) = on_terminal_with(&one, "TERM=xterm", arguments) else { return };
        terminal.wait_log(&[in_last]).await;
        let log = terminal.log();
        log.iter().for_each(|line| own(line));
        assert!(log.iter().any(|line| line.contains('\u{1b}')), "{arguments}: {log:?}");
        for (settings, more) in
            [("TERM=xterm", " --no-color"), ("TERM=xterm NO_COLOR=1", ""), ("TERM=dumb", "")]
        {
            // Without progress, which is on stderr.
            let line = format!("{arguments}{more} 2>/dev/null");
            let Some(mut plain) = on_terminal_with(&one, settings, &line) else { return };
            plain.wait_log(&[in_last]).await;
            let log = plain.log();
            assert!(!log.iter().any(|line| line.contains('\u{1b}')), "{settings} {line}: {log:?}");
        }
    }
}

#[test]
fn the_man_pages_of_all_programs_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let told = run(command("meshctl").arg("man").arg(folder.path()));
    assert!(told.status.success(), "{}", text(&told.stderr));
    let page = |path: &str| {
        let path = folder.path().join(path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    for path in ["man1/meshctl.1", "man1/meshctl-doctor.1", "man1/meshctl-ca-init.1"] {
        assert!(page(path).contains("Examples:"), "{path}");
    }
    for (path, parts) in [
        ("man8/mesh-proxy.8", ["SIGUSR2", "private key", "MESH_CONFIG", "registryd(8)"]),
        ("man8/registryd.8", ["SIGHUP", "mesh.json", "MESH_CONFIG", "mesh\\-proxy(8)"]),
    ] {
        let page = page(path);
        assert!(page.contains(" 8 "), "{page}");
        for part in parts {
            assert!(page.contains(part), "{part} is not in {path}: {page}");
        }
    }
    assert!(!Path::new(&folder.path().join("meshctl.1")).exists());
}

#[tokio::test]
async fn the_daemons_checks_are_json_for_programs() {
    let mesh = Mesh::new();
    let node = mesh.node("ct110").prepare().await;
    for daemon in ["mesh-proxy", "registryd"] {
        let told = run(node.command(daemon).args(["check", "--json"]));
        let told: Value = serde_json::from_slice(&told.stdout).unwrap();
        let checks = told.as_array().unwrap();
        assert!(
            checks.iter().any(|check| check["about"] == "certificate" && check["outcome"] == "ok"),
            "{told:#}"
        );
        assert!(checks.iter().all(|check| check["text"].is_string()), "{told:#}");
    }
}

#[tokio::test]
async fn what_is_watched_is_shown_again_and_wide_shows_more() {
    let mesh = Mesh::new();
    let (one, _two) = mesh.pair().await;
    for (arguments, part) in [
        ("agents --watch --json", "grok"),
        ("ping --watch --json", "ct111"),
        ("status --watch --json", "\"ok\":"),
        ("nodes --watch --json", "ct111"),
    ] {
        let mut command = one.command("meshctl");
        command.args(arguments.split(' '));
        let mut watching = mesh_tests::process::Daemon::start("meshctl", &mut command);
        watching.wait_log(&[part]).await;
        let line = watching.wait_log_after(1, &[part]).await;
        serde_json::from_str::<Value>(&line).unwrap_or_else(|error| panic!("{arguments}: {error}: {line}"));
    }
    for (line, parts) in [
        ("agents --wide", &["HOST", "PROVIDER", "3000"] as &[&str]),
        ("ping --wide", &["ADDRESSES", "online", "0.1.0"]),
        ("status --wide", &["renewal", "by hand", "revocation", "no list", "process", "agents down"]),
    ] {
        let (code, told) = meshctl(&one, &line.split(' ').collect::<Vec<_>>()).await;
        assert_eq!(code, 0, "{line}: {told}");
        for part in parts {
            assert!(told.contains(part), "{line}: {part} is not in {told}");
        }
    }
}

/// All keys of a document, at any depth.
fn keys(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => members.iter().for_each(|(key, value)| {
            found.insert(key.clone());
            keys(value, found);
        }),
        Value::Array(items) => items.iter().for_each(|item| keys(item, found)),
        _ => {}
    }
}

/// The section of `deploy/docs/meshctl.md` about a command.
fn section(command: &str) -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/docs/meshctl.md");
    let page = fs::read_to_string(page).unwrap();
    let from = page.split(&format!("\n## {command}\n")).nth(1);
    let section = from.unwrap_or_else(|| panic!("{command} has no section")).split("\n## ").next().unwrap();
    section.to_owned()
}

#[test]
fn every_command_has_its_section_in_the_documents() {
    let help = text(&run(command("meshctl").arg("--help")).stdout);
    let commands = help.split("Commands:\n").nth(1).unwrap().lines().take_while(|line| !line.is_empty());
    // Lines that go on are indented further.
    let commands = commands.filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    let mut count = 0;
    for command in commands.filter_map(|line| line.split(' ').next()).filter(|name| *name != "help") {
        assert!(section(command).contains(&format!("meshctl {command}")), "{command}");
        count += 1;
    }
    assert!(count > 10, "{help}");
}

#[tokio::test]
async fn json_has_the_documented_keys() {
    let mesh = Mesh::new();
    let (one, _two) = mesh.pair().await;
    mesh.register("ct151", "127.1.2.3", 3999, &["scout"]);
    knows(&one, "ct151").await;
    let traffic = async {
        loop {
            one.get("/agents/grok/x").await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::pin!(traffic);
    for line in ["doctor ct151", "doctor ct111", "status", "agents", "ping", "top --once", "tap --count 1"] {
        let arguments: Vec<&str> = line.split(' ').chain(["--json"]).collect();
        let (_, told) = tokio::select! {
            told = meshctl(&one, &arguments) => told,
            () = &mut traffic => continue,
        };
        let told: Value =
            serde_json::from_str(&told).unwrap_or_else(|error| panic!("{line}: {error}: {told}"));
        let section = section(arguments[0]);
        let documented = section.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let documented: Value =
            serde_json::from_str(documented).unwrap_or_else(|error| panic!("{line}: {error}"));
        let (mut shown, mut said) = (BTreeSet::new(), BTreeSet::new());
        keys(&told, &mut shown);
        keys(&documented, &mut said);
        let missing: Vec<_> = shown.difference(&said).collect();
        assert!(missing.is_empty(), "{line}: {missing:?} are not documented");
    }
}

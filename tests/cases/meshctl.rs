//! The operator's command: certificates in the reference document's layout, and who is there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mesh_tests::eventually;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::{command, run, succeed, text};
use serde_json::{Value, json};

/// `meshctl ca --dir <folder>/rivet-ca …`
fn ca(folder: &Path, arguments: &[&str]) -> Command {
    let mut meshctl = command("meshctl");
    meshctl.arg("ca").args(arguments).arg("--dir").arg(folder.join("rivet-ca"));
    if arguments[0] == "init" {
        meshctl.arg("--root-dir").arg(folder.join("root"));
    }
    meshctl
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode()
        & 0o777
}

fn openssl(line: &str, file: &Path) -> String {
    succeed(Command::new("openssl").args(line.split(' ')).arg("-in").arg(file))
}

#[test]
fn a_ca_in_the_reference_documents_layout() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(&mut ca(at, &["init"]));
    let told = succeed(&mut ca(at, &["issue-node", "ct110", "10.0.0.110", "ct110.lan"]));
    assert!(told.contains("ct110"), "{told}");

    let dir = at.join("rivet-ca");
    let (chain, certificate, key) =
        (dir.join("intermediate/ca-chain.pem"), dir.join("issued/ct110.crt"), dir.join("issued/ct110.key"));
    assert_eq!(
        fs::read_to_string(&chain).unwrap().matches("BEGIN CERTIFICATE").count(),
        2,
        "intermediate and root"
    );
    let shown = openssl(
        "x509 -noout -subject -ext subjectAltName,extendedKeyUsage -enddate -nameopt RFC2253",
        &certificate,
    );
    assert!(shown.contains("CN=ct110\n") || shown.contains("CN=ct110,"), "{shown}");
    for part in
        ["DNS:ct110.mesh", "DNS:ct110.lan", "IP Address:10.0.0.110", "TLS Web Client", "TLS Web Server"]
    {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
    // Ninety days: valid in 89, not in 91.
    let valid_for = |days: u32| {
        let seconds = (days * 86_400).to_string();
        run(Command::new("openssl").args(["x509", "-noout", "-checkend", &seconds, "-in"]).arg(&certificate))
            .status
            .success()
    };
    assert!(valid_for(89) && !valid_for(91));
    let algorithm = openssl("pkey -noout -text", &key);
    assert!(algorithm.contains("prime256v1"), "{algorithm}");
    // openssl itself agrees with the chain, as peers do.
    let mut verify = Command::new("openssl");
    verify.args(["verify", "-purpose", "sslclient", "-CAfile"]).arg(&chain).arg(&certificate);
    succeed(&mut verify);

    // Private keys are for their owner only; the root's lies apart from the shared folder.
    let mut keys: Vec<_> =
        files(at).into_iter().filter(|path| path.extension().is_some_and(|end| end == "key")).collect();
    keys.sort();
    assert_eq!(keys.len(), 3, "{keys:?}");
    for key in &keys {
        assert_eq!(mode(key), 0o600, "{}", key.display());
    }
    assert!(keys.iter().any(|key| key.starts_with(at.join("root"))), "{keys:?}");
    let root_public = openssl("x509 -noout -pubkey", &at.join("root/root.crt"));
    for shared in files(&dir).into_iter().filter(|path| path.extension().is_some_and(|end| end == "key")) {
        let public = succeed(Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(&shared));
        assert_ne!(public, root_public, "the root key lies in the shared folder");
    }
}

#[test]
fn nothing_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(&mut ca(at, &["init"]));
    succeed(&mut ca(at, &["issue-node", "ct110"]));
    let before: Vec<_> = files(at).into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect();
    for again in [vec!["init"], vec!["issue-node", "ct110"], vec!["issue-node", "CT110", "10.0.0.1"]] {
        let output = run(&mut ca(at, &again));
        assert_eq!(output.status.code(), Some(1), "{again:?}");
        assert!(
            text(&output.stderr).contains("nothing is overwritten"),
            "{again:?}: {}",
            text(&output.stderr)
        );
    }
    for (content, path) in &before {
        assert!(fs::read(path).unwrap() == *content, "{} was changed", path.display());
    }
    assert_eq!(files(at).len(), before.len());
}

#[test]
fn a_ca_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [vec!["issue-node", "ct110"], vec!["verify"], vec!["list"]] {
        let output = run(&mut ca(folder.path(), &arguments));
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(text(&output.stderr).contains("meshctl ca init"), "{arguments:?}: {}", text(&output.stderr));
    }
    let output = run(&mut ca(folder.path(), &["issue-node", "ct_110"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("is not a node name"), "{}", text(&output.stderr));
}

#[test]
fn verify_and_list_show_every_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(&mut ca(at, &["init"]));
    succeed(&mut ca(at, &["issue-node", "ct110"]));
    succeed(&mut ca(at, &["issue-node", "ct111", "10.0.0.111"]));
    let told = succeed(&mut ca(at, &["verify"]));
    assert!(told.contains("ct110") && told.contains("ct111"), "{told}");
    let told = succeed(&mut ca(at, &["list"]));
    assert!(told.contains("ct111.mesh") && told.contains("10.0.0.111"), "{told}");
    let listed: Value = serde_json::from_str(&succeed(ca(at, &["list"]).arg("--json"))).unwrap();
    let node = listed.as_array().unwrap().iter().find(|each| each["cn"] == "ct111").expect("ct111");
    assert!((88..=90).contains(&node["daysLeft"].as_i64().unwrap()), "{node}");

    // A certificate of somebody else's CA is found, and the exit code says so.
    let other = mesh_tests::ca::Ca::new().node("ct112");
    fs::write(at.join("rivet-ca/issued/ct112.crt"), other.cert_pem).unwrap();
    fs::write(at.join("rivet-ca/issued/ct112.key"), other.key_pem).unwrap();
    let output = run(&mut ca(at, &["verify"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("unknown issuer"), "{}", text(&output.stdout));
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

#[tokio::test]
async fn nodes_run_with_the_certificates_it_issues() {
    let mesh = Mesh::new();
    let (one, two) = (mesh.node("ct110").agent("opus"), mesh.node("ct111").agent("grok"));
    succeed(&mut ca(mesh.folder(), &["init"]));
    let tls = |name: &str| {
        succeed(&mut ca(mesh.folder(), &["issue-node", name, "127.0.0.1"]));
        let dir = mesh.folder().join("rivet-ca");
        let tls = json!({
            "ca_path": dir.join("intermediate/ca-chain.pem"),
            "cert_path": dir.join(format!("issued/{name}.crt")),
            "key_path": dir.join(format!("issued/{name}.key")),
        });
        move |config: &mut Value| config["mesh"]["tls"] = tls
    };
    let (one, two) = (one.with(tls("ct110")).start().await, two.with(tls("ct111")).start().await);
    one.reaches("ct111").await;
    succeed(one.command("mesh-proxy").arg("check"));
    drop(two);
}

/// Runs meshctl with this node's configuration.
fn meshctl(node: &Node, arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(node.command("meshctl").args(arguments));
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

fn meshctl_json(node: &Node, arguments: &[&str]) -> Value {
    let output = run(node.command("meshctl").args(arguments).arg("--json"));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{arguments:?}: {error}: {}{}", text(&output.stdout), text(&output.stderr))
    })
}

#[tokio::test]
async fn nodes_agents_ping_and_status_for_people_and_programs() {
    let mesh = Mesh::new();
    let (one, mut two) = mesh.pair().await;
    eventually("all is well on ct110", async || {
        let (code, told) = meshctl(&one, &["status"]);
        if code != Some(0) {
            eprintln!("{told}");
        }
        (code == Some(0)).then_some(())
    })
    .await;

    let (code, told) = meshctl(&one, &["nodes"]);
    assert_eq!(code, Some(0), "{told}");
    for part in ["ct110", "ct111", "online", "opus", "grok"] {
        assert!(told.contains(part), "{part} is not in\n{told}");
    }
    let nodes = meshctl_json(&one, &["nodes"]);
    assert_eq!(nodes.as_array().unwrap().len(), 2);
    let only = meshctl_json(&one, &["nodes", "--agent", "grok"]);
    assert_eq!((only.as_array().unwrap().len(), &only[0]["name"]), (1, &json!("ct111")));

    let (code, told) = meshctl(&one, &["agents"]);
    assert!(code == Some(0) && told.contains("grok") && told.contains("ct111"), "{told}");
    let agents = meshctl_json(&one, &["agents"]);
    assert!(agents.as_array().unwrap().iter().any(|agent| agent["name"] == "opus"), "{agents}");

    for arguments in [vec!["ping"], vec!["ping", "ct111"]] {
        let (code, told) = meshctl(&one, &arguments);
        assert!(code == Some(0) && told.contains("ct111") && told.contains("ok"), "{arguments:?}: {told}");
        let outcome = meshctl_json(&one, &arguments);
        assert_eq!((&outcome[0]["ok"], &outcome[0]["cn"]), (&json!(true), &json!("ct110")), "{outcome}");
    }
    let status = meshctl_json(&one, &["status"]);
    assert_eq!((&status["ok"], &status["node"]), (&json!(true), &json!("ct110")), "{status}");
    assert_eq!(status["sidecar"]["inbound"], one.inbound().to_string());

    // And when something is wrong.
    two.proxy().kill();
    one.comes_to("/nodes/ct111/x", Some("peer_unreachable")).await;
    let (code, told) = meshctl(&one, &["ping", "ct111"]);
    assert!(code == Some(1) && told.contains("peer_unreachable"), "{told}");
    let (code, told) = meshctl(&one, &["ping", "ct199"]);
    assert!(code == Some(1) && told.contains("unknown_node"), "{told}");
    let mut one = one;
    one.registryd().kill();
    for arguments in [vec!["status"], vec!["nodes"], vec!["agents"]] {
        let (code, told) = meshctl(&one, &arguments);
        assert!(code == Some(1) && told.contains("registryd"), "{arguments:?}: {code:?} {told}");
    }
    let (_, told) = meshctl(&two, &["status"]);
    assert!(told.contains("node") && told.contains("ct111"), "{told}");
}

#[tokio::test]
async fn status_says_when_the_sidecar_or_the_backend_is_away() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    node.start_registryd().await;
    let (code, told) = meshctl(&node, &["status"]);
    assert!(code == Some(1) && told.contains("mesh-proxy does not report"), "{told}");
    node.start_proxy().await;
    eventually("the backend is said to be away", async || {
        let (code, told) = meshctl(&node, &["status"]);
        (code == Some(1) && told.contains("backend") && !told.contains("does not report")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_status_that_is_set_is_announced() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    assert_eq!(meshctl(&node, &["status", "set", "updating"]).0, Some(0));
    eventually("ct110 is updating", async || (mesh.entry("ct110")?["status"] == "updating").then_some(()))
        .await;
    assert_eq!(meshctl(&node, &["status", "set", "online"]).0, Some(0));
    eventually("ct110 is back", async || (mesh.entry("ct110")?["status"] == "online").then_some(())).await;
}

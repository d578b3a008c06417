//! The operator's command: certificates in the reference document's layout, and who is there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use mesh_tests::ca::{Spec, params};
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::{Daemon, command, run, succeed, text};
use mesh_tests::{eventually, loopback, skipped};
use rcgen::{Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_blocking;

/// `meshctl ca --dir <folder>/rivet-ca …`
pub fn ca(folder: &Path, arguments: &[&str]) -> Command {
    let mut meshctl = command("meshctl");
    meshctl.arg("ca").args(arguments).arg("--dir").arg(folder.join("rivet-ca"));
    if matches!(arguments[0], "init" | "renew-intermediate" | "renew-root") {
        meshctl.arg("--root-dir").arg(folder.join("root"));
    }
    meshctl
}

/// What a command says that fails with exit code 1.
pub fn refused(command: &mut Command) -> String {
    let output = run(command);
    assert_eq!(output.status.code(), Some(1), "{command:?}: {}", text(&output.stdout));
    text(&output.stderr)
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

#[test]
fn a_root_in_use_is_kept_and_a_folder_that_is_not_mounted_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let told = succeed(&mut ca(&at.join("share"), &["init"]));
    let created =
        format!("created {}, which was not there", at.join("share").canonicalize().unwrap().display());
    assert!(told.contains(&created), "{told}");

    // As when the share is away: the folder is empty, the root's is not.
    fs::rename(at.join("share/rivet-ca"), at.join("away")).unwrap();
    let told = refused(&mut ca(&at.join("share"), &["init"]));
    for part in ["a root CA is already here (CN=Mesh Root CA ", "mounted", "another --root-dir"] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    assert!(!told.contains("remove") && !told.contains("half made"), "{told}");
    assert!(!at.join("share/rivet-ca").exists());
    fs::rename(at.join("away"), at.join("share/rivet-ca")).unwrap();
    succeed(&mut ca(&at.join("share"), &["verify"]));
}

#[test]
fn the_signing_key_may_lie_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(&mut ca(at, &["init"]));
    succeed(&mut ca(at, &["issue-node", "ct110"]));
    let elsewhere = at.join("signing.key");
    fs::rename(at.join("rivet-ca/intermediate/intermediate.key"), &elsewhere).unwrap();
    for arguments in [
        vec!["issue-node", "ct111"],
        vec!["issue-agent", "opus@ct111"],
        vec!["issue-device", "phone-1"],
        vec!["renew", "ct110"],
        vec!["revoke", "ct110"],
        vec!["renew-intermediate"],
    ] {
        let told = refused(&mut ca(at, &arguments));
        assert!(told.contains("--signing-key FILE"), "{arguments:?}: {told}");
        succeed(ca(at, &arguments).arg("--signing-key").arg(&elsewhere));
    }
    succeed(&mut ca(at, &["verify"]));
    assert!(!at.join("rivet-ca/intermediate/intermediate.key").exists());
    assert_eq!(mode(&elsewhere), 0o600);
}

/// Signs a certificate with the CA's intermediate that `meshctl` would not make.
fn sign(at: &Path, spec: &Spec, file: &str) {
    let read = |name: &str| fs::read_to_string(at.join("rivet-ca/intermediate").join(name)).unwrap();
    let signing = KeyPair::from_pem(&read("intermediate.key")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca-chain.pem"), signing).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = params(spec).signed_by(&key, &issuer).unwrap();
    let (cert_path, key_path) =
        (format!("rivet-ca/issued/{file}.crt"), format!("rivet-ca/issued/{file}.key"));
    fs::write(at.join(cert_path), certificate.pem()).unwrap();
    fs::write(at.join(&key_path), key.serialize_pem()).unwrap();
    fs::set_permissions(at.join(key_path), fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn list_and_verify_say_how_it_is_with_each() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(&mut ca(at, &["init"]));
    succeed(&mut ca(at, &["issue-node", "fine"]));
    succeed(&mut ca(at, &["issue-node", "soon", "--days", "5"]));
    succeed(&mut ca(at, &["issue-node", "gone"]));
    succeed(&mut ca(at, &["revoke", "gone"]));
    let told = succeed(&mut ca(at, &["verify"]));
    assert!(told.contains("4 of 5 certificates work, 1 of them ends soon, 1 is revoked\n"), "{told}");

    let issued = |file: &str| at.join("rivet-ca/issued").join(file);
    sign(at, &Spec { from: 2020, until: 2021, ..Spec::node("past") }, "past");
    sign(at, &Spec::node("inside"), "outside");
    succeed(&mut ca(at, &["issue-node", "mixed"]));
    fs::copy(issued("fine.key"), issued("mixed.key")).unwrap();
    let foreign = mesh_tests::ca::Ca::new().node("other");
    fs::write(issued("other.crt"), foreign.cert_pem).unwrap();
    let openssl = |line: &str| succeed(Command::new("openssl").current_dir(at).args(line.split(' ')));
    openssl("genrsa -out short.key 1024");
    openssl("req -new -key short.key -subj /CN=short -out short.csr");
    openssl(
        "x509 -req -in short.csr -CA rivet-ca/intermediate/ca-chain.pem -CAkey \
         rivet-ca/intermediate/intermediate.key -CAcreateserial -days 9 -out rivet-ca/issued/short.crt",
    );
    let list = succeed(&mut ca(at, &["list"]));
    for (name, state) in [
        ("fine", "ok"),
        ("soon", "ends soon"),
        ("gone", "revoked"),
        ("past", "expired"),
        ("inside (in outside.crt)", "misnamed"),
        ("mixed", "wrong key"),
        ("other", "untrusted"),
        ("short", "weak key"),
    ] {
        let line = list.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or("none");
        assert!(line.contains(&format!(" node       {state} ")), "{name}, {state}: {line}\n{list}");
    }
    let output = run(&mut ca(at, &["verify"]));
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{told}");
    for part in [
        "RSA needs 2048 bits or more",
        "CN inside are not the same",
        "ended ",
        " days ago",
        "4 of 10 certificates work",
    ] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    assert!(!told.contains(" -"), "no negative days: {told}");
}

#[test]
fn what_is_issued_fits_whom_it_is_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(&mut ca(at, &["init"]));
    let node = succeed(&mut ca(at, &["issue-node", "CT110.mesh"]));
    assert!(node.contains("CN=ct110 for ct110.mesh") && node.contains("mesh-proxy runs as"), "{node}");
    for arguments in [["issue-agent", "opus@ct110.mesh"], ["issue-device", "phone-1"]] {
        let told = succeed(&mut ca(at, &arguments));
        assert!(!told.contains("mesh-proxy") && told.contains("the program that speaks to nodes"), "{told}");
    }
}

#[test]
fn renew_gives_the_same_names_a_new_key_of_the_same_kind() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(&mut ca(at, &["init"]));
    succeed(&mut ca(at, &["issue-node", "ct110", "10.0.0.110", "--key-type", "rsa-2048", "--days", "20"]));
    let (certificate, key) = (at.join("rivet-ca/issued/ct110.crt"), at.join("rivet-ca/issued/ct110.key"));
    let before = fs::read_to_string(&key).unwrap();
    let told = succeed(&mut ca(at, &["renew", "ct110.mesh"]));
    assert!(told.contains("renewed CN=ct110") && told.contains("systemctl reload mesh-proxy"), "{told}");
    assert_ne!(before, fs::read_to_string(&key).unwrap());
    assert_eq!(mode(&key), 0o600);
    let shown = openssl("pkey -noout -text", &key);
    assert!(shown.contains("2048 bit") && shown.contains("publicExponent"), "RSA as before: {shown}");
    let shown = openssl("x509 -noout -ext subjectAltName", &certificate);
    assert!(shown.contains("DNS:ct110.mesh") && shown.contains("IP Address:10.0.0.110"), "{shown}");
    succeed(
        Command::new("openssl").args(["x509", "-noout", "-checkend", "7600000", "-in"]).arg(&certificate),
    );
    let told = refused(&mut ca(at, &["renew", "ct111"]));
    assert!(told.contains("issue-node"), "{told}");
    succeed(&mut ca(at, &["verify"]));
}

#[test]
fn a_timer_can_renew_all_that_end_soon() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(&mut ca(at, &["init"]));
    for (name, days) in [("ct110", "10"), ("ct111", "40"), ("ct112", "60"), ("ct113", "10")] {
        succeed(&mut ca(at, &["issue-node", name, "--days", days]));
    }
    sign(at, &Spec { from: 2020, until: 2021, ..Spec::node("ct114") }, "ct114");
    succeed(&mut ca(at, &["revoke", "ct113"]));
    let ends = || -> Vec<i64> {
        let listed: Value = serde_json::from_str(&succeed(ca(at, &["list"]).arg("--json"))).unwrap();
        ["ct110", "ct111", "ct112", "ct113", "ct114"]
            .map(|cn| listed.as_array().unwrap().iter().find(|each| each["cn"] == cn).expect("it is listed"))
            .map(|each| each["daysLeft"].as_i64().unwrap())
            .into()
    };
    let told = succeed(&mut ca(at, &["renew", "--all"]));
    assert!(told.contains("2 renewed, 0 failed, 2 do not end within 30 days"), "{told}");
    assert!(matches!(ends()[..], [89..=90, 39..=40, 59..=60, 9..=10, 89..=90]), "{:?}", ends());
    let told = succeed(ca(at, &["renew", "--all", "--within", "50"]).arg("--json"));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["renewed"][0]["cn"], told["renewed"].as_array().unwrap().len()), (&json!("ct111"), 1));
    let told = succeed(&mut ca(at, &["renew", "--all"]));
    assert!(told.contains("0 renewed") && !told.contains("reload"), "{told}");

    // What cannot be renewed keeps none of the others from it, and is told.
    fs::write(at.join("rivet-ca/issued/bad.crt"), "nothing").unwrap();
    let output = run(&mut ca(at, &["renew", "--all", "--within", "70"]));
    let told = text(&output.stdout);
    assert!(output.status.code() == Some(1) && told.contains("renewed ct112"), "{told}");
    assert!(told.contains("FAILED") && told.contains("bad.crt"), "{told}");
    assert!(!run(&mut ca(at, &["renew"])).status.success());
    assert!(!run(&mut ca(at, &["renew", "ct110", "--all"])).status.success());
}

#[test]
fn no_command_offers_what_does_nothing_there() {
    let help = |arguments: &[&str]| succeed(command("meshctl").args(arguments).arg("--help"));
    for arguments in [vec!["ca"], vec!["ca", "renew-intermediate"], vec!["ca", "revoke"], vec!["demo"]] {
        let told = help(&arguments);
        assert!(!told.contains("--socket") && !told.contains("--config"), "{arguments:?}: {told}");
    }
    assert!(!help(&["demo"]).contains("--json"));
    assert!(help(&["nodes"]).contains("--socket") && help(&["ca", "list"]).contains("--json"));
    let output = run(command("meshctl").args(["ca", "list", "--socket", "x"]));
    assert_eq!(output.status.code(), Some(2));
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

/// A2A clients go on to the address in an agent's card, which they may have read on another host.
#[tokio::test]
async fn status_warns_of_a_card_that_leads_around_the_mesh() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    let listener = loopback::listen(node.backend()).await;
    let card: Arc<Mutex<String>> = Arc::default();
    let told = card.clone();
    let agent = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let Ok(length) = stream.read(&mut head).await else { continue };
            let is_card = text(&head[..length]).starts_with("GET /.well-known/agent-card.json ");
            let body = if is_card { told.lock().unwrap().clone() } else { String::new() };
            let (status, length) = (if is_card { "200 OK" } else { "404 Not Found" }, body.len());
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    node.start_registryd().await;
    node.start_proxy().await;
    let status = async || {
        let mut command = node.command("meshctl");
        command.arg("status");
        text(&spawn_blocking(move || run(&mut command)).await.unwrap().stdout)
    };
    for (url, warns) in [
        (format!("http://{}/", node.backend()), true),
        (format!("http://{}/agents/opus/", node.outbound()), false),
        ("http://opus.agent.mesh/".into(), false),
    ] {
        *card.lock().unwrap() = json!({"name": "opus", "supportedInterfaces": [{"url": url}]}).to_string();
        let told = status().await;
        assert_eq!(told.contains("warning:") && told.contains(&format!("names {url}")), warns, "{told}");
        assert_eq!(told.contains("/agents/<agent>/"), warns, "{told}");
    }
    // What is no card is nobody's mistake.
    *card.lock().unwrap() = "\u{1b}[31m".into();
    assert!(!status().await.contains("warning:"));
    agent.abort();
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

#[tokio::test]
async fn ping_tells_of_nodes_that_are_offline() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let (code, told) = meshctl(&node, &["ping"]);
    assert!(code == Some(0) && told.contains("no other nodes"), "{told}");
    mesh.register("ct150", "127.1.2.3", 3000, &[]);
    mesh.amend("ct150", |entry| entry["status"] = json!("offline"));
    eventually("ct150 is offline", async || {
        (meshctl_json(&node, &["nodes", "--node", "ct150.mesh"])[0]["status"] == "offline").then_some(())
    })
    .await;
    let (code, told) = meshctl(&node, &["ping"]);
    assert!(code == Some(1) && told.contains("ct150"), "{told}");
    let outcome = meshctl_json(&node, &["ping"]);
    assert_eq!((&outcome[0]["node"], &outcome[0]["ok"]), (&json!("ct150"), &json!(false)), "{outcome}");
}

#[tokio::test]
async fn json_for_programs_everywhere() {
    let mesh = Mesh::new();
    let agents = json!([{"name": "opus", "id": "opus-1", "provider": "anthropic", "model": "claude"}]);
    let mut node = mesh.node("ct110").with(|config| config["registryd"]["agents"] = agents).start().await;
    mesh.register("ct150", "127.1.2.3", 3000, &["grok"]);
    let agents = eventually("grok is known", async || {
        Some(meshctl_json(&node, &["agents"])).filter(|agents| agents.as_array().unwrap().len() == 2)
    })
    .await;
    assert_eq!(agents[0]["name"], "grok");
    assert_eq!(agents[0]["nodes"][0].get("id"), None);
    let place = &agents[1]["nodes"][0];
    assert_eq!(
        (&place["id"], &place["provider"], &place["model"]),
        (&json!("opus-1"), &json!("anthropic"), &json!("claude"))
    );
    let hosts = meshctl_json(&node, &["hosts"]);
    assert_eq!(hosts[1], json!({"name": "ct150.mesh", "addresses": ["127.1.2.3"]}));
    let file = mesh.folder().join("hosts");
    let write = |file: &Path| meshctl_json(&node, &["hosts", "--write", file.to_str().unwrap()]);
    assert_eq!(write(&file), json!({"file": file, "outcome": "created"}));
    assert!(fs::read_to_string(&file).unwrap().contains("127.1.2.3\tct150.mesh\n"));
    assert_eq!((mode(&file), &write(&file)["outcome"]), (0o644, &json!("up to date")));

    let mut nodes = Daemon::start("meshctl", node.command("meshctl").args(["nodes", "--watch", "--json"]));
    let line = nodes.wait_log(&["ct150"]).await;
    let document: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    assert_eq!(document.as_array().unwrap().len(), 2);

    let mut watch = Daemon::start("meshctl", node.command("meshctl").args(["watch", "--json"]));
    let mut count = 0;
    eventually("meshctl watch follows", async || {
        count += 1;
        mesh.amend("ct150", |entry| entry["agents"] = json!([format!("scout-{count}")]));
        (!watch.log().is_empty()).then_some(())
    })
    .await;
    mesh.register("ct151", "127.1.2.4", 3000, &[]);
    watch.wait_log(&["ct151"]).await;
    for line in watch.log() {
        let event: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(event.is_object(), "{line}");
    }

    node.registryd().kill();
    let away = meshctl_json(&node, &["ping"]);
    assert_eq!(away["ok"], false);
    assert!(away["problems"][0].as_str().unwrap().contains("registryd"), "{away}");
}

#[tokio::test]
async fn a_daemon_that_hangs_is_given_up() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    node.start_registryd().await;
    node.registryd().freeze().await;
    let commands = [vec!["status"], vec!["nodes"], vec!["agents"], vec!["ping"], vec!["watch"]];
    let waiting = commands.map(|arguments| {
        (node.command("meshctl").args(&arguments).stderr(Stdio::piped()).spawn().unwrap(), arguments)
    });
    for (child, arguments) in waiting {
        let output = child.wait_with_output().unwrap();
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {told}");
        assert!(told.contains("does not answer within 5 s"), "{arguments:?}: {told}");
    }
}

/// Runs meshctl on a terminal of 60 columns. Its output and what it says on stderr come as one.
pub fn on_terminal(node: &Node, arguments: &str) -> Option<Daemon> {
    on_terminal_with(node, "", arguments)
}

/// The same with settings for its environment, as in `TERM=dumb`.
pub fn on_terminal_with(node: &Node, settings: &str, arguments: &str) -> Option<Daemon> {
    if run(Command::new("sh").args(["-c", "command -v script"])).stdout.is_empty() {
        skipped("meshctl on a terminal: there is no script(1)");
        return None;
    }
    let meshctl = node.command("meshctl");
    let line = format!(
        "stty cols 60 rows 24; exec env {settings} '{}' {arguments}",
        meshctl.get_program().display()
    );
    let mut script = Command::new("script");
    script.args(["-qefc", &line, "/dev/null"]).env("SHELL", "/bin/sh").env_remove("NO_COLOR");
    script.envs(meshctl.get_envs().filter_map(|(key, value)| Some((key, value?))));
    Some(Daemon::start("meshctl", &mut script))
}

/// What a terminal shows of a line.
pub fn shown(line: &str) -> String {
    let mut shown = String::new();
    let mut rest = line.trim_end_matches('\r');
    while let Some((text, code)) = rest.split_once("\x1b[") {
        shown.push_str(text);
        rest = code.split_once(|c: char| c.is_ascii_alphabetic()).map_or("", |(_, rest)| rest);
    }
    shown + rest
}

#[tokio::test]
async fn a_terminal_is_redrawn_and_never_overrun() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let long = ["a-rather-long-name", "another-rather-long-name", "the-third"];
    mesh.register("ct150", "127.1.2.3", 3000, &long);
    mesh.amend("ct150", |entry| entry["capabilities"] = json!(["shell"]));
    let Some(mut watching) = on_terminal(&node, "nodes --watch") else { return };
    const REDRAWN: &str = "\x1b[H\x1b[2J";
    watching.wait_log(&["ct150"]).await;
    let before = watching.log().len();
    mesh.register("ct151", "127.1.2.4", 3000, &[]);
    watching.wait_log_after(before, &["ct151"]).await;
    let log = watching.log();
    assert!(log[0].starts_with(REDRAWN), "{log:?}");
    let from = log[..].iter().rposition(|line| line.contains("ct151")).unwrap();
    let head = log[..from].iter().rfind(|line| line.contains("NODE")).unwrap();
    assert!(head.starts_with(REDRAWN), "{head:?}");
    for line in log.iter().map(|line| shown(line)) {
        assert!(line.chars().count() <= 60, "{line:?}");
    }
    let cut = log.iter().map(|line| shown(line)).find(|line| line.starts_with("ct150")).unwrap();
    assert!(cut.ends_with('…') && cut.contains("a-rather-long-name"), "{cut:?}");

    let mut wide = on_terminal(&node, "nodes --wide").unwrap();
    wide.exited().await;
    let line = shown(&wide.wait_log(&["ct150"]).await);
    assert!(line.contains("shell") && line.contains("the-third"), "{line:?}");
    // Nothing is cut for programs.
    let piped = succeed(node.command("meshctl").arg("nodes"));
    assert!(piped.contains("the-third") && !piped.contains('…') && !piped.contains('\x1b'), "{piped}");

    let mut watch = on_terminal(&node, "watch").unwrap();
    watch.wait_log(&["watching; Ctrl-C ends"]).await;
}

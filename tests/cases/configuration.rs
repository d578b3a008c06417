//! One YAML file for both daemons: every mistake at once, exit code 78, nothing without TLS.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mesh_tests::ca::{Ca, Spec, self_signed};
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::{self, Daemon, command, run, text};

const DAEMONS: [&str; 2] = ["mesh-proxy", "registryd"];

/// Runs a program with a configuration file of this content; gives the exit code, stdout and stderr.
fn run_with(program: &str, arguments: &[&str], yaml: &str) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mesh.yaml");
    fs::write(&path, yaml).unwrap();
    let output = run(command(program).args(arguments).arg("--config").arg(&path));
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn every_mistake_is_reported_at_once_with_key_line_and_expectation() {
    let yaml = "\
mesh:
  enabled: yes please
  node_name: ct_110
  tls: false
  agent_chanel_port: 3000
  heartbeat_interval_ms: 90000
  discovery:
    mode: broadcast
proxy:
  inbond: {}
  backend: {address: 192.168.1.5:8080}
  limits:
    max_body_bytes: lots
registryd:
  agents: [opus, opus]
  dns: {listen: everywhere}
";
    for daemon in DAEMONS {
        for arguments in [&[] as &[&str], &["check"]] {
            let (code, _, stderr) = run_with(daemon, arguments, yaml);
            assert_eq!(code, Some(78), "{daemon} {arguments:?}: {stderr}");
            for (line, message) in [
                (2, "mesh.enabled: expected true or false"),
                (3, "mesh.node_name: \"ct_110\" is not a node name"),
                (4, "mesh.tls: is false; mutual TLS is required"),
                (5, "mesh.agent_chanel_port: unknown key; did you mean agent_channel_port?"),
                (6, "mesh.heartbeat_interval_ms"),
                (8, "mesh.discovery.mode: expected seed, static or mdns"),
                (10, "proxy.inbond: unknown key; did you mean inbound?"),
                (11, "proxy.backend.address: 192.168.1.5:8080 is not a loopback address"),
                (13, "proxy.limits.max_body_bytes: expected a whole number"),
                (15, "registryd.agents[1]: opus is listed twice"),
                (16, "registryd.dns.listen"),
            ] {
                // The two times are one mistake, told at either of them.
                let place = if line == 6 {
                    "must be larger than heartbeat_interval_ms".into()
                } else {
                    format!("line {line}: {message}")
                };
                assert!(stderr.contains(&place), "{daemon} {arguments:?}: {place:?} is not in\n{stderr}");
            }
            assert!(stderr.contains("mesh.yaml"), "the file is not named: {stderr}");
        }
    }
}

#[test]
fn without_tls_nothing_starts_and_the_message_says_why() {
    for daemon in DAEMONS {
        for yaml in
            ["mesh: {enabled: true, node_name: ct110}", "mesh: {enabled: true, node_name: ct110, tls: false}"]
        {
            let (code, _, stderr) = run_with(daemon, &[], yaml);
            assert_eq!(code, Some(78), "{daemon} {yaml:?}: {stderr}");
            assert!(
                stderr.contains("mesh.tls") && stderr.contains("there is no plaintext mesh"),
                "{daemon}: {stderr}"
            );
        }
    }
}

#[test]
fn a_file_that_is_absent_or_no_yaml_is_a_configuration_mistake() {
    for daemon in DAEMONS {
        let output = run(command(daemon).args(["--config", "/nonexistent/mesh.yaml"]));
        assert_eq!(output.status.code(), Some(78), "{daemon}");
        assert!(text(&output.stderr).contains("/nonexistent/mesh.yaml"), "{}", text(&output.stderr));
        let (code, _, stderr) = run_with(daemon, &[], "mesh:\n  - a\n b: c\n");
        assert_eq!(code, Some(78), "{daemon}: {stderr}");
        assert!(stderr.contains("not valid YAML") && stderr.contains("line "), "{daemon}: {stderr}");
    }
}

#[test]
fn where_nothing_is_to_start_that_is_all_there_is_to_say() {
    for daemon in DAEMONS {
        for (yaml, message) in [
            ("", "the file is empty"),
            ("runtime: {}", "there is no mesh: section"),
            ("mesh: {node_name: ct110, tls: true}", "line 1: mesh.enabled: is not set, so nothing starts"),
            ("mesh: {enabled: false}", "line 1: mesh.enabled: is false, so nothing starts"),
        ] {
            for arguments in [&[] as &[&str], &["check"]] {
                let (code, stdout, stderr) = run_with(daemon, arguments, yaml);
                assert_eq!(code, Some(78), "{daemon} {arguments:?} {yaml:?}: {stdout}{stderr}");
                let told = (stdout.as_str(), stderr.lines().count());
                assert_eq!(told, ("", 1), "{daemon} {arguments:?} {yaml:?}: {stderr}");
                assert!(stderr.contains(message), "{daemon} {arguments:?} {yaml:?}: {stderr}");
            }
        }
    }
}

#[test]
fn both_daemons_are_asked_alike() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.yaml");
    fs::write(&path, "mesh: {enabled: maybe, node_name: ct110, tls: true}").unwrap();
    let path = path.to_str().unwrap();
    for daemon in DAEMONS {
        for arguments in [
            &["--config", path, "check"] as &[&str],
            &["check", "--config", path],
            &["-c", path, "check"],
            &["check", "-c", path],
            &["-c", path, "run"],
            &["run", "-c", path],
            &["-c", path],
        ] {
            let output = run(command(daemon).args(arguments));
            let told = text(&output.stderr);
            assert_eq!(output.status.code(), Some(78), "{daemon} {arguments:?}: {told}");
            let start = format!("{daemon}: {path}: line 1: mesh.enabled: expected true or false");
            assert!(told.starts_with(&start), "{daemon} {arguments:?}: {told}");
        }
        let help = process::succeed(command(daemon).arg("--help"));
        for part in [daemon, "MESH_CONFIG", "/etc/mesh/mesh.yaml", "run", "check"] {
            assert!(help.contains(part), "{daemon}: {part:?} is not in\n{help}");
        }
        let version = process::succeed(command(daemon).arg("--version"));
        assert!(version.starts_with(&format!("{daemon} ")), "{version}");
    }
}

#[tokio::test]
async fn a_check_that_nobody_reads_to_its_end_gives_the_same_verdict() {
    let mesh = Mesh::new();
    let node = mesh.node("ct110").prepare().await;
    for code in [0, 1] {
        for daemon in DAEMONS {
            let mut unread = Daemon::start_unread(daemon, node.command(daemon).arg("check"));
            assert_eq!(unread.exited().await.code(), Some(code), "{daemon}");
        }
        let _ = fs::remove_file(node.folder().join("node.crt"));
    }
}

#[tokio::test]
async fn a_section_that_is_nearly_one_of_ours_is_a_warning_of_check_and_start() {
    let mesh = Mesh::new();
    let mut node = mesh
        .node("ct110")
        .with(|config| config["registyd"] = serde_json::json!({"agents": ["opus"]}))
        .prepare()
        .await;
    let line = 1 + fs::read_to_string(&node.config_path)
        .unwrap()
        .lines()
        .position(|line| line.contains("registyd"))
        .unwrap();
    let warning = format!("line {line}: registyd: is ignored; did you mean registryd?");
    for daemon in DAEMONS {
        let (code, told) = check(daemon, &node.config_path);
        assert_eq!(code, Some(0), "{daemon}: {told}");
        assert!(told.contains(&format!("warn {warning}")), "{daemon}: {told}");
    }
    node.start_registryd().await;
    node.registryd().wait_log(&["WARN [Config] ", &warning]).await;
    node.start_proxy().await;
    node.proxy().wait_log(&["WARN [Config] ", &warning]).await;
}

#[test]
fn tls_true_means_the_reference_documents_paths_and_the_node_is_named_like_the_host() {
    let (code, stdout, stderr) =
        run_with("mesh-proxy", &["check"], "mesh: {enabled: true, node_name: ct110, tls: true}");
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    for (file, hint) in [
        ("intermediate/ca-chain.pem", "is /rivet-shared/rivet-ca mounted? else `meshctl ca init`"),
        ("issued/ct110.crt", "is /rivet-shared/rivet-ca mounted? else `meshctl ca issue-node ct110`"),
        ("issued/ct110.key", "is /rivet-shared/rivet-ca mounted? else `meshctl ca issue-node ct110`"),
    ] {
        let found = stdout.lines().find(|line| line.contains(&format!("/rivet-shared/rivet-ca/{file}")));
        let found = found.unwrap_or_else(|| panic!("{file} is not in\n{stdout}"));
        assert!(found.starts_with("FAIL") && found.contains(hint), "{found}");
    }

    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let label = host.trim().split('.').next().unwrap();
    let (code, stdout, stderr) = run_with("mesh-proxy", &["check"], "mesh: {enabled: true, tls: true}");
    match label.parse::<mesh_shared::NodeName>() {
        Ok(_) => assert!(stdout.contains(&format!("/rivet-shared/rivet-ca/issued/{label}.crt")), "{stdout}"),
        Err(_) => assert!(code == Some(78) && stderr.contains("mesh.node_name"), "{stderr}"),
    }
}

#[tokio::test]
async fn a_rivetos_file_with_other_sections_and_the_old_secret_loads() {
    let mesh = Mesh::new();
    let node = mesh.node("ct110").prepare().await;
    let tls = |file: &str| node.folder().join(file).display().to_string();
    let yaml = format!(
        "\
# The file that RivetOS itself reads.
runtime:
  workspace: ./workspace
  default_agent: opus
  max_tool_iterations: 75
agents:
  opus: {{provider: anthropic, default_thinking: medium}}
providers:
  anthropic: {{model: claude-opus-4-6, max_tokens: 8192}}
channels:
  discord: {{owner_id: '${{DISCORD_OWNER_ID}}', channel_bindings: {{}}}}
memory: {{postgres: {{connection_string: '${{PG}}'}}}}
mesh:
  enabled: true
  node_name: ct110
  secret: not-used-any-more
  tls:
    ca_path: {ca}
    cert_path: {cert}
    key_path: {key}
  agent_channel_port: 3000
  storage_dir: {shared}
  heartbeat_interval_ms: 30000
  stale_threshold_ms: 90000
  discovery:
    mode: seed
    seed_host: ct100.mesh
    seed_port: 3000
deployment: {{target: docker}}
",
        ca = mesh.bundle_path().display(),
        shared = mesh.registry_path().parent().unwrap().display(),
        cert = tls("node.crt"),
        key = tls("node.key"),
    );
    for daemon in DAEMONS {
        let (code, stdout, stderr) = run_with(daemon, &["check"], &yaml);
        assert_eq!(code, Some(0), "{daemon}: {stdout}{stderr}");
        assert!((stdout.clone() + &stderr).contains("mesh.secret: deprecated"), "{daemon}: {stdout}{stderr}");
        assert!(!(stdout + &stderr).contains("not-used-any-more"), "the secret is shown");
    }
}

/// What `check` says of a node whose files were changed.
fn check(program: &str, config: &Path) -> (Option<i32>, String) {
    let output = run(command(program).arg("check").arg("--config").arg(config));
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[tokio::test]
async fn check_says_what_is_right() {
    let mesh = Mesh::new();
    let node = mesh.node("ct110").prepare().await;
    let (code, told) = check("mesh-proxy", &node.config_path);
    assert_eq!(code, Some(0), "{told}");
    for part in [
        "node ct110",
        "CN names node ct110",
        "ct110.mesh",
        "is loopback",
        "days to expiry",
        "node.key belongs to the certificate",
        "this user can make",
    ] {
        assert!(told.contains(part), "{part:?} is not in\n{told}");
    }
    let (code, told) = check("registryd", &node.config_path);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("only mesh-proxy reads it"), "registryd holds no key: {told}");
    assert!(told.contains("ok   mesh.storage_dir ") && told.contains("ok   registryd.socket: "), "{told}");
    assert!(!node.folder().join("state").exists() && !mesh.registry_path().exists(), "check wrote something");
}

#[tokio::test]
async fn check_and_start_refuse_credentials_that_cannot_work() {
    let mesh = Mesh::new();
    let node = mesh.node("ct110").prepare().await;
    let good = mesh.ca.node("ct110");
    let foreign = Ca::new();
    let spec = || Spec::node("ct110");
    let issue = |change: fn(&mut Spec)| {
        let mut spec = spec();
        change(&mut spec);
        mesh.ca.issue(&spec)
    };
    let mut mixed = good.clone();
    mixed.key_pem = mesh.ca.node("ct110").key_pem;
    let cases = [
        ("a key of another certificate", mixed, "does not belong to the certificate", false),
        ("another node's", mesh.ca.node("ct111"), "names node ct111, but mesh.node_name is ct110", true),
        ("an agent's", issue(|spec| spec.cn = Some("opus@ct110".into())), "names agent opus on ct110", true),
        ("without a CN", issue(|spec| spec.cn = None), "no common name", true),
        (
            "without the mesh name",
            issue(|spec| spec.dns = vec!["ct110".into()]),
            "no subject alternative name ct110.mesh",
            true,
        ),
        ("expired", issue(|spec| spec.until = 2025), "has expired", true),
        ("not yet valid", issue(|spec| spec.from = 2089), "not valid yet", true),
        ("for servers only", issue(|spec| spec.client = false), "clientAuth", true),
        ("for clients only", issue(|spec| spec.server = false), "serverAuth", true),
        ("of a foreign CA", foreign.node("ct110"), "unknown issuer", true),
        ("self-signed", self_signed(&spec()), "unknown issuer", true),
    ];
    for (what, issued, reason, seen_by_registryd) in cases {
        fs::write(node.folder().join("node.crt"), &issued.chain_pem).unwrap();
        fs::write(node.folder().join("node.key"), &issued.key_pem).unwrap();
        let (code, told) = check("mesh-proxy", &node.config_path);
        assert_eq!(code, Some(1), "{what}: {told}");
        let failed: Vec<_> = told.lines().filter(|line| line.contains("FAIL")).collect();
        assert!(failed.iter().any(|line| line.contains(reason)), "{what}: {reason:?} is not in\n{told}");
        let (code, told) = check("registryd", &node.config_path);
        assert_eq!(code, Some(if seen_by_registryd { 1 } else { 0 }), "{what}: {told}");

        let started = run(&mut node.command("mesh-proxy"));
        let told = text(&started.stdout) + &text(&started.stderr);
        assert!(!started.status.success(), "{what}: mesh-proxy started\n{told}");
        assert!(told.contains(reason), "{what}: {reason:?} is not in\n{told}");
    }
}

#[tokio::test]
async fn check_names_files_that_cannot_be_read() {
    let mesh = Mesh::new();
    let node = mesh.node("ct110").prepare().await;
    for (file, content) in [
        ("node.key", None),
        ("node.crt", None),
        ("node.crt", Some("")),
        ("node.crt", Some("-----BEGIN CERTIFICATE-----\n@@@@\n-----END CERTIFICATE-----\n")),
        (
            "node.key",
            Some("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"),
        ),
    ] {
        let path = node.folder().join(file);
        let before = fs::read(&path).unwrap();
        match content {
            None => fs::remove_file(&path).unwrap(),
            Some(content) => fs::write(&path, content).unwrap(),
        }
        let (code, told) = check("mesh-proxy", &node.config_path);
        assert_eq!(code, Some(1), "{file} {content:?}: {told}");
        assert!(told.contains(&path.display().to_string()), "{file} {content:?} is not named: {told}");
        fs::write(&path, before).unwrap();
    }
}

#[tokio::test]
async fn check_looks_at_each_file_whatever_is_wrong_with_another() {
    let mesh = Mesh::new();
    let folder = mesh.folder().join("nothing-here");
    let file = |name: &str| folder.join(name).display().to_string();
    let node = mesh
        .node("ct110")
        .with(|config| {
            config["mesh"]["tls"] =
                serde_json::json!({"ca_path": file("ca"), "cert_path": file("crt"), "key_path": file("key")});
            config["proxy"]["crl_path"] = file("crl").into();
        })
        .prepare()
        .await;
    let (code, told) = check("mesh-proxy", &node.config_path);
    assert_eq!(code, Some(1), "{told}");
    for (what, name) in
        [("trust bundle", "ca"), ("certificate", "crt"), ("private key", "key"), ("revocation list", "crl")]
    {
        let failed = format!("FAIL {what} {}: No such file", file(name));
        assert!(told.contains(&failed), "{failed:?} is not in\n{told}");
        assert!(!told.contains("mounted?"), "these are no default paths: {told}");
    }
    assert!(told.contains("proxy.state_dir"), "{told}");

    // A bundle that is missing hides nothing about the certificate and its key.
    let good = mesh.ca.node("ct111");
    fs::create_dir(&folder).unwrap();
    fs::write(file("crt"), &good.chain_pem).unwrap();
    fs::write(file("key"), &good.key_pem).unwrap();
    let (_, told) = check("mesh-proxy", &node.config_path);
    for part in
        ["names node ct111, but mesh.node_name is ct110", "days to expiry", "belongs to the certificate"]
    {
        assert!(told.contains(part), "{part:?} is not in\n{told}");
    }
}

#[tokio::test]
async fn a_certificate_that_has_ended_says_how_long_ago() {
    let mesh = Mesh::new();
    let node = mesh.node("ct110").prepare().await;
    let day = Duration::from_secs(86_400);
    for (ago, text) in [
        (day / 2, "ended 0 days ago"),
        (day * 3 / 2, "ended 1 day ago"),
        (day * 98 + day / 2, "ended 98 days ago"),
    ] {
        let ended = mesh.ca.ended("ct110", ago);
        fs::write(node.folder().join("node.crt"), ended.chain_pem).unwrap();
        let (code, told) = check("registryd", &node.config_path);
        assert_eq!(code, Some(1), "{told}");
        assert!(
            told.lines().any(|line| line.starts_with("FAIL") && line.ends_with(text)),
            "{text:?}: {told}"
        );
    }
}

#[tokio::test]
async fn a_key_that_others_can_read_is_a_warning_of_check_and_start() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    let key = node.folder().join("node.key");
    for (mode, warning) in [
        (0o600, None),
        (0o640, None),
        (0o644, Some("can be read by everyone (mode 0644); chmod 600 it")),
        (0o660, Some("can be changed by its group (mode 0660); chmod 600 it")),
    ] {
        fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
        let (code, told) = check("mesh-proxy", &node.config_path);
        assert_eq!(code, Some(0), "{mode:o}: {told}");
        let warned = told.lines().find(|line| line.starts_with("warn"));
        assert_eq!(warned.is_some(), warning.is_some(), "{mode:o}: {told}");
        assert!(warning.is_none_or(|part| told.contains(part)), "{mode:o}: {told}");
    }
    node.start_proxy().await;
    assert_eq!(node.proxy().lines_with(&["WARN [Mesh] key ", "can be changed by its group"]).len(), 1);
}

#[tokio::test]
async fn check_tells_which_folders_cannot_be_written() {
    let mesh = Mesh::new();
    let blocked = mesh.folder().join("blocked");
    fs::write(&blocked, "a file, where a folder should be; that stops root as well").unwrap();
    let node = mesh
        .node("ct110")
        .with(|config| {
            config["proxy"]["state_dir"] = blocked.join("state").display().to_string().into();
            config["registryd"]["socket"] = blocked.join("registryd.sock").display().to_string().into();
        })
        .own_storage()
        .prepare()
        .await;
    // The sidecar does without; registryd cannot.
    let (code, told) = check("mesh-proxy", &node.config_path);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("warn proxy.state_dir: ") && told.contains("after a restart"), "{told}");
    let (code, told) = check("registryd", &node.config_path);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("FAIL registryd.socket: "), "{told}");
    assert!(told.contains("ok   mesh.storage_dir "), "{told}");

    fs::remove_dir(node.folder().join("storage")).unwrap();
    let (code, told) = check("registryd", &node.config_path);
    assert_eq!(code, Some(1), "{told}");
    let line = told.lines().find(|line| line.starts_with("FAIL mesh.storage_dir: ")).unwrap();
    assert!(line.contains("No such file") && line.contains("cannot keep mesh.json"), "{line}");
    assert!(!node.folder().join("storage").exists(), "check made the folder of a mount that is missing");
}

/// Root may do everything, so this looks with the eyes of another user.
#[tokio::test]
async fn check_asks_for_the_user_who_runs_it() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return mesh_tests::skipped("check as another user: only root can become one");
    }
    let mesh = Mesh::new();
    let node = mesh.node("ct110").own_storage().prepare().await;
    fs::set_permissions(mesh.folder(), Permissions::from_mode(0o755)).unwrap();
    let open = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let (storage, state) = (node.folder().join("storage"), node.folder().join("state"));
    fs::create_dir(&state).unwrap();
    fs::write(storage.join("mesh.json.lock"), "").unwrap();
    // The daemons' files may lie where only root gets in.
    let binaries = tempfile::tempdir().unwrap();
    open(binaries.path(), 0o755);
    let told_as_nobody = |daemon: &str| {
        let copy = binaries.path().join(daemon);
        process::install(&process::binary(daemon), &copy);
        let mut command = Command::new(copy);
        let output = run(command.uid(65_534).gid(65_534).args(["check", "-c"]).arg(&node.config_path));
        text(&output.stdout) + &text(&output.stderr)
    };
    let line = |told: &str, key: &str| {
        told.lines()
            .find(|line| line.contains(key))
            .unwrap_or_else(|| panic!("no {key} in\n{told}"))
            .to_owned()
    };
    for (mode, lock_mode, part) in [
        (0o777, 0o666, "ok   "),
        (0o777, 0o644, "mesh.json.lock: Permission denied"),
        (0o755, 0o666, "storage: Permission denied"),
    ] {
        open(&storage, mode);
        open(&storage.join("mesh.json.lock"), lock_mode);
        let told = line(&told_as_nobody("registryd"), "mesh.storage_dir");
        assert!(told.contains(part), "{mode:o} {lock_mode:o}: {told}");
    }
    open(&state, 0o777);
    assert!(line(&told_as_nobody("mesh-proxy"), "proxy.state_dir").starts_with("ok   "));
    open(&state, 0o755);
    assert!(line(&told_as_nobody("mesh-proxy"), "proxy.state_dir").starts_with("warn "));
    assert!(line(&told_as_nobody("mesh-proxy"), "node.key").starts_with("FAIL "), "only root reads the key");
}

/// Another node's certificate on this host is a mistake whoever notices it first.
#[tokio::test]
async fn registryd_does_not_speak_for_a_node_that_the_certificate_contradicts() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    let certificate = node.folder().join("node.crt");
    for (identity, named) in [
        (mesh.ca.node("ct111"), "CN \"ct111\" names node ct111, but mesh.node_name is ct110"),
        (
            mesh.ca.issue(&Spec { cn: Some("opus@ct110".into()), ..Spec::node("ct110") }),
            "names agent opus on ct110, but mesh.node_name is ct110",
        ),
    ] {
        fs::write(&certificate, identity.chain_pem).unwrap();
        let output = run(&mut node.command("registryd"));
        let told = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(
            told.contains("ERROR [Registry] registryd stops: certificate ") && told.contains(named),
            "{told}"
        );
        assert!(mesh.entry("ct110").is_none() && !node.socket().exists());
    }
    // It needs none: with none, or half of one, it does its work.
    fs::write(&certificate, "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
    node.start_registryd().await;
    node.registryd().stop().await;
    fs::remove_file(&certificate).unwrap();
    node.start_registryd().await;
    mesh_tests::eventually("the registration", async || mesh.entry("ct110")).await;
}

/// Opening a pipe to read waits for a writer, as reading from a mount that is gone waits for its server.
#[tokio::test]
async fn registryd_starts_while_its_certificate_hangs() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    let certificate = node.folder().join("node.crt");
    fs::remove_file(&certificate).unwrap();
    process::succeed(Command::new("mkfifo").arg(&certificate));
    node.start_registryd().await;
    mesh_tests::eventually("the registration", async || mesh.entry("ct110")).await;
    assert!(node.registryd().stop().await.success());
}

#[tokio::test]
async fn days_to_expiry_are_told_and_few_of_them_are_a_warning() {
    let mesh = Mesh::new();
    let node = mesh.node("ct110").prepare().await;
    let tell = || {
        let (code, told) = check("mesh-proxy", &node.config_path);
        assert_eq!(code, Some(0), "{told}");
        told.lines().find(|line| line.contains("days to expiry")).unwrap().to_owned()
    };
    let issued = mesh.ca.ending("ct110", std::time::Duration::from_secs(7 * 86_400));
    fs::write(node.folder().join("node.crt"), &issued.chain_pem).unwrap();
    fs::write(node.folder().join("node.key"), &issued.key_pem).unwrap();
    let line = tell();
    assert!(line.starts_with("warn") && (line.contains(" 6 days") || line.contains(" 7 days")), "{line}");
    // One whose whole life is a week was just made, and renews itself at half of it.
    super::certificates::openssl_node(&mesh, &node, &["-days", "7"]);
    let line = tell();
    assert!(line.starts_with("ok") && (line.contains(" 6 days") || line.contains(" 7 days")), "{line}");
}

#[tokio::test]
async fn the_configuration_is_also_found_by_the_environment() {
    let mesh = Mesh::new();
    let node = mesh.node("ct110").prepare().await;
    process::succeed(node.command("mesh-proxy").arg("check"));
    process::succeed(node.command("registryd").arg("check"));
}

/// The kernel's own word: every call that can make, change or remove a file, from the start of both daemons to their end.
#[tokio::test]
async fn nothing_is_written_outside_the_configured_folders() {
    let mesh = Mesh::new();
    let traces = tempfile::tempdir().unwrap();
    let mut node = mesh.node("ct110").agent("opus").prepare().await;
    let traced = |node: &Node, daemon: &str| {
        let mut command = Command::new("strace");
        // With -D the daemon is our child, and strace only looks on.
        command.args(["-D", "-f", "-qq", "-s", "4096", "-e", CALLS_THAT_WRITE, "-o"]);
        command.arg(traces.path().join(daemon)).arg(process::binary(daemon));
        Daemon::start(daemon, command.arg("--config").arg(&node.config_path))
    };
    node.registryd = Some(traced(&node, "registryd"));
    node.proxy = Some(traced(&node, "mesh-proxy"));
    node.proxy().wait_log(&["mesh-proxy ready"]).await;
    node.has_roster().await;
    mesh.register("ct111", "127.0.0.1", 9, &[]);
    node.comes_to("/nodes/ct111/", Some("peer_unreachable")).await;
    assert_eq!(node.get("/agents/opus/x").await.status, 200);
    node.proxy().signal(libc::SIGHUP);
    node.proxy().wait_log(&["reloaded"]).await;
    assert!(node.proxy().stop().await.success() && node.registryd().stop().await.success());

    let (shared, state) = (mesh.folder().join("shared"), node.folder().join("state"));
    for (daemon, own) in [("registryd", [&shared, &node.socket()]), ("mesh-proxy", [&state, &state])] {
        let trace = fs::read_to_string(traces.path().join(daemon)).unwrap();
        let mut written = Vec::new();
        for call in trace.lines().filter(|call| writes(call)) {
            // Between quotation marks stand the paths.
            for path in call.split('"').skip(1).step_by(2).map(Path::new) {
                // The folder that something configured lies in may have to be made.
                let allowed = |own: &&PathBuf| path.starts_with(own) || own.parent() == Some(path);
                let allowed = own.iter().any(allowed) || path == Path::new("/dev/null");
                assert!(allowed, "{daemon} touches {}: {call}", path.display());
                written.push(path.to_owned());
            }
        }
        assert!(own.iter().all(|own| written.iter().any(|path| path.starts_with(own))), "{daemon}: {trace}");
    }
}

/// A pattern, as not every processor has each of them.
const CALLS_THAT_WRITE: &str = "trace=/^(open|creat|truncate|rename|link|symlink|unlink|rmdir|mkdir|mknod|chmod|fchmodat|chown|\
    lchown|fchownat|utime|bind)";

/// Whether a traced call is to write: of those that open a file, only some.
fn writes(call: &str) -> bool {
    let name = call.split_once(' ').map_or("", |(_, rest)| rest.trim_start());
    match name.starts_with("open") {
        true => ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"].iter().any(|flag| call.contains(flag)),
        // An address on the network is no file.
        false if name.starts_with("bind(") => call.contains("AF_UNIX") && call.contains("sun_path=\"/"),
        false => true,
    }
}

//! One YAML file for both daemons: every mistake at once, exit code 78, nothing without TLS.

use std::fs;
use std::path::Path;

use mesh_tests::ca::{Ca, Spec, self_signed};
use mesh_tests::mesh::Mesh;
use mesh_tests::process::{self, command, run, text};

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
        for yaml in [
            "",
            "mesh: {enabled: true, node_name: ct110}",
            "mesh: {enabled: true, node_name: ct110, tls: false}",
        ] {
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
fn a_disabled_mesh_does_not_start() {
    for daemon in DAEMONS {
        let output = run_with(daemon, &[], "mesh: {node_name: ct110, tls: true}");
        let (code, told) = (output.0, output.1 + &output.2);
        assert!(told.contains("mesh.enabled"), "{daemon} does not say why: {code:?} {told}");
    }
}

#[test]
fn tls_true_means_the_reference_documents_paths_and_the_node_is_named_like_the_host() {
    let (code, stdout, stderr) =
        run_with("mesh-proxy", &["check"], "mesh: {enabled: true, node_name: ct110, tls: true}");
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(stdout.contains("/rivet-shared/rivet-ca/issued/ct110.crt"), "{stdout}");

    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let label = host.trim().split('.').next().unwrap().to_ascii_lowercase();
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
  storage_dir: /rivet-shared
  heartbeat_interval_ms: 30000
  stale_threshold_ms: 90000
  discovery:
    mode: seed
    seed_host: ct100.mesh
    seed_port: 3000
deployment: {{target: docker}}
",
        ca = mesh.bundle_path().display(),
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
        "node.key belongs to it",
    ] {
        assert!(told.contains(part), "{part:?} is not in\n{told}");
    }
    let (code, told) = check("registryd", &node.config_path);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("only mesh-proxy reads it"), "registryd holds no key: {told}");
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
async fn days_to_expiry_are_told_and_few_of_them_are_a_warning() {
    let mesh = Mesh::new();
    let node = mesh.node("ct110").prepare().await;
    super::certificates::openssl_node(&mesh, &node, &["-days", "7"]);
    let (code, told) = check("mesh-proxy", &node.config_path);
    assert_eq!(code, Some(0), "{told}");
    let line = told.lines().find(|line| line.contains("days to expiry")).unwrap();
    assert!(line.starts_with("warn") && (line.contains(" 6 days") || line.contains(" 7 days")), "{line}");
}

#[tokio::test]
async fn the_configuration_is_also_found_by_the_environment() {
    let mesh = Mesh::new();
    let node = mesh.node("ct110").prepare().await;
    process::succeed(node.command("mesh-proxy").arg("check"));
    process::succeed(node.command("registryd").arg("check"));
}

#[tokio::test]
async fn nothing_is_written_outside_the_configured_folders() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    mesh_tests::eventually("the registration", async || mesh.entry("ct110")).await;
    let mut found: Vec<_> =
        walk(mesh.folder()).into_iter().filter(|path| !path.starts_with(mesh.folder().join("ca"))).collect();
    found.retain(|path| {
        !path.starts_with(mesh.folder().join("shared")) && !path.starts_with(node.folder().join("state"))
    });
    let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    for name in &names {
        assert!(
            ["mesh.yaml", "node.crt", "node.key", "registryd.sock"].contains(name),
            "{name} was written: {names:?}"
        );
    }
    assert!(!Path::new("/rivet-shared").exists(), "the default folder was made");
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

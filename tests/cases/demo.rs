//! What a newcomer sees first: the demo, and the files in deploy/.

use std::path::Path;

use mesh_shared::NodeName;
use mesh_shared::config::Config;
use mesh_tests::process::{Daemon, binary, command, install, of_threads, run, succeed, text};

/// Both in one test: the demo has addresses of its own, which it can have only once at a time.
#[tokio::test]
async fn the_demo_shows_a_delegation_and_two_refusals_and_cleans_up() {
    let folder = tempfile::tempdir().unwrap();
    let demo = || {
        let mut demo = command("meshctl");
        demo.arg("demo").env("TMPDIR", folder.path());
        demo
    };
    let output = run(demo().arg("--once"));
    let told = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{}: {told}", output.status);
    for part in [
        "grok",
        "Received mesh delegation peer.cn=ct110 from opus → grok",
        "peer did not return a certificate",
        "unknown issuer",
    ] {
        assert!(told.contains(part), "{part:?} is not in\n{told}");
    }
    assert!(!told.contains("panicked"), "{told}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "files were left behind");

    // Without --once it stays, its commands work, and Ctrl-C ends everything it started.
    let mut staying = Daemon::start("demo", &mut demo());
    staying.wait_log(&["Ctrl-C"]).await;
    let invitation = staying.log();
    let dashboard = invitation.iter().find(|line| line.contains("/?token=")).expect("the dashboard's URL");
    let refused = run(std::process::Command::new("curl").args([
        "-sS",
        "--max-time",
        "20",
        dashboard.trim().split('?').next().unwrap(),
    ]));
    assert!(text(&refused.stdout).contains("This is the dashboard of a mesh"), "{refused:?}");
    let page = run(std::process::Command::new("curl").args([
        "-sS",
        "--max-time",
        "20",
        "-L",
        "-c",
        "-",
        dashboard.trim(),
    ]));
    assert!(text(&page.stdout).contains("<title>Mesh</title>"), "{page:?}");
    let invitation = invitation.iter().skip_while(|line| !line.starts_with("All nodes are up"));
    let commands: Vec<&str> = invitation.filter_map(|line| line.strip_prefix("    ")).collect();
    let mut tried = 0;
    for (part, fails, told) in [
        ("/agents/grok/api/message", false, "grok here"),
        ("http_proxy=", false, "\"node\":\"ct111\""),
        ("x-mesh-agent: grok", false, "grok here"),
        ("/agents/nobody/", false, "x-mesh-error: unknown_agent"),
        ("meshctl nodes", false, "ct111"),
        ("meshctl ping", false, "ct111"),
        ("curl -sS -k", true, "ertificate"),
        ("openssl s_client", false, "BEGIN CERTIFICATE"),
        ("cat ", false, "node_name: ct110"),
    ] {
        let command = commands.iter().find(|command| command.contains(part)).expect(part);
        let output = run(std::process::Command::new("timeout").args(["20", "bash", "-c", command]));
        let (status, output) = (output.status, text(&output.stdout) + &text(&output.stderr));
        assert!(output.contains(told), "{command}: {output}");
        assert!(status.success() != fails || part.starts_with("openssl"), "{command}: {status}");
        tried += 1;
    }
    // Two go on until they are ended: watch and tail.
    assert_eq!(commands.len(), tried + 2, "{commands:#?}");
    let children = children_of(staying.pid());
    assert!(children.len() >= 4, "two sidecars and two registryds: {children:?}");
    staying.signal(libc::SIGINT);
    let ended = staying.exited().await;
    assert!(ended.success(), "{ended}");
    for child in children {
        assert!(!Path::new(&format!("/proc/{child}")).exists(), "process {child} still runs");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "files were left behind");

    // Where not all of it happens, it does not say that it did.
    let broken = tempfile::tempdir_in(binary("meshctl").parent().unwrap()).unwrap();
    for name in ["meshctl", "registryd"] {
        std::fs::hard_link(binary(name), broken.path().join(name)).unwrap();
    }
    let stub = broken.path().join("stub");
    std::fs::write(&stub, "#!/bin/sh\necho no use >&2\nexit 1\n").unwrap();
    install(&stub, &broken.path().join("mesh-proxy"));
    let mut demo = std::process::Command::new(broken.path().join("meshctl"));
    let output = run(demo.args(["demo", "--once"]).env("TMPDIR", folder.path()));
    assert!(!output.status.success(), "{}", text(&output.stdout));
    let told = text(&output.stdout) + &text(&output.stderr);
    assert!(told.contains("mesh-proxy") && !told.contains("Every step worked"), "{told}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "files were left behind");
}

/// The processes that this one started.
fn children_of(pid: u32) -> Vec<u32> {
    let children = of_threads(pid, "children").join(" ");
    children.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

pub(crate) const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/mesh.yaml");
const INSTALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/install.sh");

/// What is installed speaks for the host it is installed on, and for no agent that nobody named.
#[test]
fn the_annotated_example_configuration_is_this_hosts() {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let label = host.trim().split('.').next().unwrap();
    for daemon in ["mesh-proxy", "registryd"] {
        let output = run(command(daemon).args(["check", "--config", EXAMPLE]));
        let told = text(&output.stdout) + &text(&output.stderr);
        match label.parse::<NodeName>() {
            Ok(node) => {
                assert_eq!(output.status.code(), Some(1), "{told}");
                assert!(told.contains(&format!("this is node {node}")) && !told.contains("warn"), "{told}");
                assert!(told.contains(&format!("/rivet-shared/rivet-ca/issued/{label}.crt")), "{told}");
                let config = Config::load(Path::new(EXAMPLE)).unwrap_or_else(|error| panic!("{error}"));
                assert!(config.registryd.agents.is_empty(), "{:?}", config.registryd.agents);
            }
            Err(_) => assert!(told.contains("mesh.node_name: is not set, and the host's name"), "{told}"),
        }
    }
}

#[test]
fn the_annotated_example_shows_the_defaults_and_only_keys_that_exist() {
    let example = std::fs::read_to_string(EXAMPLE).unwrap();
    let parse = |yaml: &str| Config::parse(yaml).unwrap_or_else(|mistakes| panic!("{mistakes:?}\n{yaml}"));
    let shown = |config: &Config| {
        format!("{:#?}{:#?}{:#?}{:#?}", config.mesh, config.proxy, config.registryd, config.telemetry)
    };

    let least = "mesh: {enabled: true, node_name: ct110, tls: true}";
    let defaults = uncommented(&example, |line| {
        // The host's name, which is the default, is not this one.
        line.starts_with("node_name") || !line.contains("default") && !line.contains("deprecated")
    });
    assert_eq!(shown(&parse(&defaults)), shown(&parse(least)));

    // Every key in it, at once.
    let config = parse(&every_key(&example));
    assert_eq!(config.warnings.len(), 1, "only mesh.secret is deprecated: {:?}", config.warnings);
    assert_eq!(config.registryd.agents[0].provider.as_deref(), Some("anthropic"));
}

#[test]
fn a_bad_key_at_any_level_of_the_annotated_example_is_refused_with_its_line() {
    let all = every_key(&std::fs::read_to_string(EXAMPLE).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mesh.yaml");
    let mut tried = Vec::new();
    // Where the lines are keys, and where a list's members are sections in one line.
    for (i, line) in all.lines().enumerate() {
        let key = line.trim_start();
        let indent = line.len() - key.len();
        let bad = match key.find('{') {
            // Beside this key, in a line of its own.
            None if indent > 0 && key.contains(':') && !key.starts_with('#') => {
                format!("{}zzz: 1\n{line}", " ".repeat(indent))
            }
            // In the section of this line, unless anything may be in it.
            Some(at) if !key.starts_with("metadata") => {
                format!("{}zzz: 1, {}", &line[..=indent + at], &line[indent + at + 1..])
            }
            _ => continue,
        };
        let lines: Vec<_> =
            all.lines().enumerate().map(|(j, each)| if i == j { bad.as_str() } else { each }).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let output = run(command("mesh-proxy").args(["check", "--config"]).arg(&path));
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{bad:?}: {}{told}", text(&output.stdout));
        let (place, refused) = (format!(": line {}: ", i + 1), ".zzz: unknown key; ");
        assert!(
            told.lines().count() == 1 && told.contains(&place) && told.contains(refused),
            "{bad:?}: {told}"
        );
        let section = told.split(&place).nth(1).and_then(|rest| rest.split(refused).next()).unwrap();
        tried.push(section.to_owned());
    }
    for section in [
        "mesh",
        "mesh.tls",
        "mesh.discovery",
        "mesh.peers[0]",
        "proxy",
        "proxy.inbound",
        "proxy.outbound",
        "proxy.outbound.listeners[0]",
        "proxy.backend",
        "proxy.limits",
        "proxy.timeouts",
        "proxy.policy",
        "proxy.log",
        "proxy.admin",
        "registryd",
        "registryd.agents[0]",
        "registryd.dns",
        "telemetry",
        "telemetry.otlp",
    ] {
        assert!(tried.iter().any(|each| each == section), "{section} was not tried: {tried:?}");
    }
}

/// Installs below a folder, which needs no privileges, and looks at what it would do here.
#[test]
fn what_is_installed_works_and_the_next_steps_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let install = |destination: Option<&Path>, arguments: &[&str]| {
        let mut install = std::process::Command::new("bash");
        install.arg(INSTALL).arg("--from").arg(binary("meshctl").parent().unwrap()).args(arguments);
        install.env_remove("DESTDIR");
        if let Some(destination) = destination {
            install.env("DESTDIR", destination);
        }
        succeed(&mut install)
    };
    let told = install(Some(folder.path()), &[]);
    for step in [
        "/etc/mesh/mesh.yaml",
        "sudo meshctl ca issue-node <node>",
        "sudo chown mesh-proxy /rivet-shared/rivet-ca/issued/<node>.key",
        "sudo -u mesh-proxy mesh-proxy check && sudo -u registryd registryd check",
    ] {
        assert!(told.contains(step), "{step:?} is not in\n{told}");
    }
    let systemd = Path::new("/run/systemd/system").exists();
    assert_eq!(told.contains("systemctl enable"), systemd, "{told}");
    let at = |path: &str| folder.path().join(path);
    let installed = run(std::process::Command::new(at("usr/local/bin/mesh-proxy"))
        .args(["check", "--config"])
        .arg(at("etc/mesh/mesh.yaml")));
    assert_ne!(installed.status.code(), None, "{installed:?}");
    assert!(at("etc/systemd/system/mesh-proxy.service").exists());

    // An upgrade leaves the configuration alone.
    std::fs::write(at("etc/mesh/mesh.yaml"), "changed").unwrap();
    assert!(install(Some(folder.path()), &[]).contains("kept "));
    assert_eq!(std::fs::read_to_string(at("etc/mesh/mesh.yaml")).unwrap(), "changed");

    let plan = install(None, &["--dry-run"]);
    assert_eq!(plan.contains("systemctl daemon-reload"), systemd, "{plan}");
}

/// The example with every key in force.
pub(crate) fn every_key(example: &str) -> String {
    // One agent, in its long form.
    uncommented(example, |_| true).replace("    - opus\n", "")
}

/// The example with those of its optional keys that are `wanted` put in force, and what stands below them.
fn uncommented(example: &str, wanted: impl Fn(&str) -> bool) -> String {
    let mut unwanted_above = None;
    let mut lines: Vec<String> = Vec::new();
    for line in example.lines() {
        let indent = line.len() - line.trim_start().len();
        let Some(key) = line.trim_start().strip_prefix("# ").filter(|_| indent > 0) else {
            lines.push(line.into());
            continue;
        };
        let depth = indent + key.len() - key.trim_start().len();
        if unwanted_above.is_some_and(|above| depth > above) {
            continue;
        }
        unwanted_above = (!wanted(key)).then_some(depth);
        if unwanted_above.is_none() {
            lines.push(format!("{}{key}", " ".repeat(indent)));
        }
    }
    // The same key in its long form.
    if lines.iter().any(|line| line == "  tls:") {
        lines.retain(|line| !line.starts_with("  tls: true"));
    }
    lines.join("\n") + "\n"
}

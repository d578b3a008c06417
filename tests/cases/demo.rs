//! What a newcomer sees first: the demo, and the files in deploy/.

use std::path::Path;

use mesh_shared::config::Config;
use mesh_tests::process::{Daemon, command, run, text};

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
    let curl = staying
        .log()
        .into_iter()
        .find(|line| line.trim_start().starts_with("curl "))
        .expect("a curl command to try");
    let tried = run(std::process::Command::new("bash").args(["-c", curl.trim()]));
    assert!(tried.status.success(), "{curl}: {}{}", text(&tried.stdout), text(&tried.stderr));
    let children = children_of(staying.pid());
    assert!(children.len() >= 4, "two sidecars and two registryds: {children:?}");
    staying.signal(libc::SIGINT);
    staying.exited().await;
    for child in children {
        assert!(!Path::new(&format!("/proc/{child}")).exists(), "process {child} still runs");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "files were left behind");
}

/// The processes that this one started.
fn children_of(pid: u32) -> Vec<u32> {
    let of_task =
        |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .flat_map(|task| {
            of_task(task.unwrap()).split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<_>>()
        })
        .collect()
}

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/mesh.yaml");

#[test]
fn the_annotated_example_configuration_loads() {
    let config = Config::load(Path::new(EXAMPLE)).unwrap_or_else(|error| panic!("{error}"));
    assert!(config.mesh.enabled);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    for daemon in ["mesh-proxy", "registryd"] {
        let output = run(command(daemon).args(["check", "--config", EXAMPLE]));
        let told = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{told}{}", text(&output.stderr));
        assert!(told.contains("/rivet-shared/rivet-ca/issued/ct110.crt"), "{told}");
    }
}

#[test]
fn the_annotated_example_shows_the_defaults_and_only_keys_that_exist() {
    let example = std::fs::read_to_string(EXAMPLE).unwrap();
    let parse = |yaml: &str| Config::parse(yaml).unwrap_or_else(|mistakes| panic!("{mistakes:?}\n{yaml}"));
    let shown = |config: &Config| format!("{:#?}{:#?}{:#?}", config.mesh, config.proxy, config.registryd);

    let least = "mesh: {enabled: true, node_name: ct110, tls: true}\nregistryd: {agents: [opus]}";
    let defaults = uncommented(&example, |line| !line.contains("default") && !line.contains("deprecated"));
    assert_eq!(shown(&parse(&defaults)), shown(&parse(least)));

    // Every key in it, at once.
    let all = uncommented(&example, |_| true).replace("    - opus\n", "");
    let config = parse(&all);
    assert_eq!(config.warnings.len(), 1, "only mesh.secret is deprecated: {:?}", config.warnings);
    assert_eq!(config.registryd.agents[0].provider.as_deref(), Some("anthropic"));
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

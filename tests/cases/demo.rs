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

#[test]
fn the_annotated_example_configuration_loads() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/mesh.yaml"));
    let config = Config::load(path).unwrap_or_else(|error| panic!("{error}"));
    assert!(config.mesh.enabled);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

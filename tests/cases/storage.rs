//! The registry's storage hangs, fills up, takes no writes, vanishes or shuts this user out: requests keep flowing,
//! the local API answers, registryd says what is wrong and recovers on its own.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mesh_tests::mesh::{Mesh, Node, entry};
use mesh_tests::network::SYSTEM_PATH;
use mesh_tests::process::{Daemon, run, succeed, text};
use mesh_tests::view::{Mode, View};
use mesh_tests::{eventually, skipped, within};
use serde_json::{Value, json};

/// Two nodes, the first of which has the registry under `path`, which may be another view of the same folder.
/// Neither is started.
async fn nodes(mesh: &Mesh, path: &Path, change: impl Fn(&mut Value)) -> (Node, Node) {
    let plan = |name: &str, agent: &str| mesh.node(name).agent(agent).with(&change);
    let one = plan("ct110", "opus").with(|config| config["mesh"]["storage_dir"] = json!(path));
    (one.prepare().await, plan("ct111", "grok").prepare().await)
}

async fn start(one: &mut Node, two: &mut Node) {
    for node in [&mut *one, &mut *two] {
        if node.registryd.is_none() {
            node.start_registryd().await;
        }
        node.start_proxy().await;
    }
    one.reaches("ct111").await;
    two.reaches("ct110").await;
    both_agents_answer(one, two).await;
}

/// By agent, so that a node which counts as offline would be an error.
async fn both_agents_answer(one: &Node, two: &Node) {
    one.comes_to("/agents/grok/x", None).await;
    two.comes_to("/agents/opus/x", None).await;
}

async fn problems(node: &Node) -> String {
    let status = within("the local API answers", node.local("/v1/status")).await.unwrap();
    assert_eq!(status.status, 200);
    status.json()["problems"].to_string()
}

async fn requests_flow(one: &Node, two: &Node) {
    let task = json!({"fromAgent": "opus", "message": "go on"});
    for (node, agent) in [(one, "grok"), (two, "opus")] {
        let answer = node.post(&format!("/agents/{agent}/api/message"), &task).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["agent"], agent);
    }
    let nodes = within("the local API answers", one.local("/mesh/nodes")).await.unwrap().json();
    let online = |name: &str| {
        nodes.as_array().unwrap().iter().any(|node| node["name"] == name && node["status"] == "online")
    };
    assert!(online("ct110") && online("ct111"), "{nodes}");
}

/// The storage is broken by now: checks that only the registry of the first node notices, that it says so in these
/// words, and that it recovers on its own after `mend`.
async fn survived(mesh: &Mesh, one: &mut Node, two: &Node, told: &[&str], mend: impl FnOnce()) {
    eventually(&format!("the first node's status says {told:?}"), async || {
        requests_flow(one, two).await;
        let said = problems(one).await;
        told.iter().all(|part| said.contains(part)).then_some(())
    })
    .await;
    one.registryd().wait_log(&[&["WARN"], told].concat()).await;
    let status = run(one.command("meshctl").arg("status"));
    assert!(!status.status.success());
    assert!(told.iter().all(|part| text(&status.stdout).contains(part)), "{}", text(&status.stdout));
    for _ in 0..20 {
        requests_flow(one, two).await;
    }
    assert!(one.registryd().is_running());

    let skip = one.registryd().log().len();
    let before = mesh.entry("ct110").map(|entry| entry["lastSeen"].as_u64().unwrap());
    mend();
    eventually("heartbeats go on", async || {
        mesh.entry("ct110").filter(|entry| entry["lastSeen"].as_u64() > before)
    })
    .await;
    eventually("nothing is wrong any more", async || {
        requests_flow(one, two).await;
        (problems(one).await == "[]").then_some(())
    })
    .await;
    one.registryd().wait_log_after(skip, &[&["resolved: "], told].concat()).await;
    both_agents_answer(one, two).await;
}

/// Heartbeats that are missed soon.
fn quick(config: &mut Value) {
    config["mesh"]["heartbeat_interval_ms"] = json!(300);
    config["mesh"]["stale_threshold_ms"] = json!(3000);
}

#[tokio::test]
async fn a_mount_that_hangs_stops_nothing_but_the_registry() {
    let mesh = Mesh::new();
    let path = mesh.folder().join("view");
    // The hang outlasts the threshold: nodes that can be asked do not go stale by it.
    let (mut one, mut two) = nodes(&mesh, &path, quick).await;
    let Some(view) = View::mount(&mesh.folder().join("shared"), &path) else { return };
    start(&mut one, &mut two).await;
    view.set(Mode::Hanging);
    survived(&mesh, &mut one, &two, &["does not answer; does the mount hang?"], || view.set(Mode::Passing))
        .await;
    assert!(one.registryd().lines_with(&["fell silent"]).is_empty(), "hanging made ct110 judge others");
    assert!(two.registryd().lines_with(&["fell silent"]).is_empty(), "ct111 did not ask ct110");
}

#[tokio::test]
async fn a_mount_on_which_only_writing_hangs_is_told() {
    let mesh = Mesh::new();
    let path = mesh.folder().join("view");
    let (mut one, mut two) = nodes(&mesh, &path, |_| ()).await;
    let Some(view) = View::mount(&mesh.folder().join("shared"), &path) else { return };
    start(&mut one, &mut two).await;
    view.set(Mode::WritesHanging);
    for _ in 0..50 {
        requests_flow(&one, &two).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    survived(&mesh, &mut one, &two, &["does not answer; does the mount hang?"], || view.set(Mode::Passing))
        .await;
}

#[tokio::test]
async fn a_mount_that_fails_is_told_with_what_to_do() {
    let mesh = Mesh::new();
    let path = mesh.folder().join("view");
    let (mut one, mut two) = nodes(&mesh, &path, |_| ()).await;
    let Some(view) = View::mount(&mesh.folder().join("shared"), &path) else { return };
    start(&mut one, &mut two).await;
    for (code, told) in [(libc::ESTALE, "mount the storage again"), (libc::EIO, "Input/output error")] {
        view.set(Mode::Failing(code));
        survived(&mesh, &mut one, &two, &[told], || view.set(Mode::Passing)).await;
    }
}

/// A memory file system over a folder; unmounted with this value.
struct Mounted(PathBuf);

impl Mounted {
    /// `None`, with a loud line, where this user cannot mount.
    fn over(folder: &Path) -> Option<Self> {
        let mounted = run(mount("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(folder));
        if !mounted.status.success() {
            skipped(&format!("no mounts here (they need root): {}", text(&mounted.stderr)));
            return None;
        }
        Some(Self(folder.into()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(mount("umount").arg("--lazy").arg(&self.0));
    }
}

fn mount(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", SYSTEM_PATH);
    command
}

#[tokio::test]
async fn a_full_disk_is_told_and_harms_nothing() {
    let mesh = Mesh::new();
    let shared = mesh.folder().join("shared");
    let (mut one, mut two) = nodes(&mesh, &shared, |_| ()).await;
    let Some(_mounted) = Mounted::over(&shared) else { return };
    start(&mut one, &mut two).await;
    let filler = shared.join("filler");
    // Fails at the end, as it should.
    assert!(fs::write(&filler, vec![0; 1 << 20]).is_err());
    survived(&mesh, &mut one, &two, &["make room on the storage"], || fs::remove_file(filler).unwrap()).await;
    let files = fs::read_dir(&shared).unwrap().map(|file| file.unwrap().file_name());
    let odd: Vec<_> = files.filter(|name| name.to_string_lossy().contains("corrupt")).collect();
    assert!(odd.is_empty(), "{odd:?}");
}

#[tokio::test]
async fn a_read_only_remount_is_told_and_harms_nothing() {
    let mesh = Mesh::new();
    let shared = mesh.folder().join("shared");
    let (mut one, mut two) = nodes(&mesh, &shared, |_| ()).await;
    let Some(mounted) = Mounted::over(&shared) else { return };
    start(&mut one, &mut two).await;
    let remount = |how: &str| run(mount("mount").args(["-o", &format!("remount,{how}")]).arg(&mounted.0));
    // Refused while somebody is writing.
    eventually("mounted read-only", async || remount("ro").status.success().then_some(())).await;
    survived(&mesh, &mut one, &two, &["mount the storage for writing"], || drop(remount("rw"))).await;
}

#[tokio::test]
async fn a_removed_folder_comes_back_with_everything_that_was_in_it() {
    let mesh = Mesh::new();
    mesh.edit_registry(|registry| {
        registry["owner"] = json!("rivet");
        let mut other = entry("ct150", "127.1.2.3", 3000, &["scout"]);
        other["gpu"] = json!({"vram": 24});
        registry["nodes"]["id-ct150"] = other;
    });
    let shared = mesh.folder().join("shared");
    let (mut one, mut two) = nodes(&mesh, &shared, |_| ()).await;
    start(&mut one, &mut two).await;
    let before = mesh.registry();
    fs::rename(&shared, mesh.folder().join("removed")).unwrap();
    eventually("everything is back", async || {
        requests_flow(&one, &two).await;
        let entries = [mesh.entry("ct110")?, mesh.entry("ct111")?];
        entries.iter().all(|entry| entry["status"] == "online").then_some(())
    })
    .await;
    let after = mesh.registry();
    assert_eq!(after["owner"], "rivet");
    assert_eq!(after["nodes"]["id-ct150"], before["nodes"]["id-ct150"]);
    for node in ["ct110", "ct111"] {
        let entry = mesh.entry(node).unwrap();
        let id = entry["id"].as_str().unwrap();
        assert_eq!(entry["registeredAt"], before["nodes"][id]["registeredAt"]);
    }
    eventually("nothing is wrong any more", async || (problems(&one).await == "[]").then_some(())).await;
    both_agents_answer(&one, &two).await;
}

#[tokio::test]
async fn broken_content_is_set_aside_and_the_registry_rebuilt() {
    let mesh = Mesh::new();
    mesh.edit_registry(|registry| {
        registry["owner"] = json!("rivet");
        registry["nodes"]["id-ct150"] = entry("ct150", "127.1.2.3", 3000, &["scout"]);
        registry["nodes"]["id-ct150"]["gpu"] = json!({"vram": 24});
    });
    let shared = mesh.folder().join("shared");
    let (mut one, mut two) = nodes(&mesh, &shared, |_| ()).await;
    start(&mut one, &mut two).await;
    let before = mesh.registry();
    // As of a program that writes in place and dies in the middle.
    let broken = r#"{"version":1,"nodes":{"a"#;
    fs::write(mesh.registry_path(), broken).unwrap();
    let corrupt = || -> Vec<PathBuf> {
        let files = fs::read_dir(&shared).unwrap().map(|file| file.unwrap().path());
        files.filter(|path| path.to_string_lossy().contains("mesh.json.corrupt-")).collect()
    };
    eventually("the registry is rebuilt", async || {
        requests_flow(&one, &two).await;
        let registry: Value = serde_json::from_slice(&fs::read(mesh.registry_path()).unwrap()).ok()?;
        let online = |name: &str| {
            registry["nodes"].as_object().is_some_and(|nodes| {
                nodes.values().any(|node| node["name"] == name && node["status"] == "online")
            })
        };
        (online("ct110") && online("ct111")).then_some(())
    })
    .await;
    let set_aside = corrupt();
    assert_eq!(set_aside.len(), 1, "{set_aside:?}");
    assert_eq!(fs::read_to_string(&set_aside[0]).unwrap(), broken);
    let after = mesh.registry();
    assert_eq!(after["owner"], "rivet");
    for (id, node) in before["nodes"].as_object().unwrap() {
        let mut kept = after["nodes"][id].clone();
        kept["lastSeen"] = node["lastSeen"].clone();
        assert_eq!(&kept, node);
    }
    // One of the two set it aside, and says so until somebody has looked.
    let has_told = |node: &&Node| {
        !node.registryd.as_ref().unwrap().lines_with(&["ERROR", "was set aside as"]).is_empty()
    };
    eventually("somebody tells it", async || [&one, &two].iter().any(has_told).then_some(())).await;
    let told: Vec<_> = [&one, &two].into_iter().filter(has_told).collect();
    assert_eq!(told.len(), 1);
    let metrics = told[0].local("/metrics").await.unwrap().text();
    assert!(metrics.lines().any(|line| line.ends_with("registry_set_aside_total 1")), "{metrics}");
    eventually("it is shown", async || problems(told[0]).await.contains("was set aside as").then_some(()))
        .await;
    fs::remove_file(&set_aside[0]).unwrap();
    for node in [&one, &two] {
        eventually("nothing is wrong any more", async || (problems(node).await == "[]").then_some(())).await;
    }
}

#[tokio::test]
async fn a_lock_that_somebody_keeps_is_told_with_its_holder() {
    for (written, told) in [
        (r#"{"node":"ct199","host":"box","pid":77}"#, "node ct199 (process 77 on host box)"),
        ("", "no holder gave its name, so it is another program"),
    ] {
        let mesh = Mesh::new();
        let shared = mesh.folder().join("shared");
        let (mut one, mut two) = nodes(&mesh, &shared, |_| ()).await;
        start(&mut one, &mut two).await;
        let lock = fs::File::options().write(true).open(shared.join("mesh.json.lock")).unwrap();
        lock.lock().unwrap();
        lock.set_len(0).unwrap();
        std::io::Write::write_all(&mut &lock, written.as_bytes()).unwrap();
        let told = ["has been locked by another process for", told];
        survived(&mesh, &mut one, &two, &told, || drop(lock)).await;
    }
}

/// A host that boots while its NFS server does not answer.
#[tokio::test]
async fn a_mount_that_hangs_from_the_start_keeps_nothing_from_starting() {
    let mesh = Mesh::new();
    let path = mesh.folder().join("view");
    let (mut one, mut two) = nodes(&mesh, &path, |_| ()).await;
    let Some(view) = View::mount(&mesh.folder().join("shared"), &path) else { return };
    start(&mut one, &mut two).await;
    let saved = one.folder().join("state/roster.json");
    eventually("the roster is saved", async || {
        fs::read_to_string(&saved).is_ok_and(|roster| roster.contains("grok")).then_some(())
    })
    .await;
    (one.registryd, one.proxy) = (None, None);
    view.set(Mode::Hanging);
    one.start_registryd().await;
    one.start_proxy().await;
    for _ in 0..20 {
        assert_eq!(one.get("/agents/grok/x").await.status, 200);
    }
    one.registryd().wait_log(&["WARN", "does not answer; does the mount hang?"]).await;
    view.set(Mode::Passing);
    eventually("it is registered", async || (mesh.entry("ct110")?["status"] == "online").then_some(())).await;
    both_agents_answer(&one, &two).await;
}

#[tokio::test]
async fn a_folder_that_shuts_this_user_out_is_told_and_harms_nothing() {
    let mesh = Mesh::new();
    let shared = mesh.folder().join("shared");
    let (mut one, mut two) = nodes(&mesh, &shared, |_| ()).await;
    // Modes mean nothing to root.
    fs::set_permissions(mesh.folder(), Permissions::from_mode(0o711)).unwrap();
    let owned = run(Command::new("chown").args(["-R", "65534:65534"]).args([one.folder(), &shared]));
    if !owned.status.success() {
        skipped("not root here: no permission change is tested");
        return;
    }
    let mut registryd = Command::new("setpriv");
    registryd.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    registryd.arg(one.command("registryd").get_program()).arg("--config").arg(&one.config_path);
    one.registryd = Some(Daemon::start("ct110 registryd", &mut registryd));
    one.registryd().wait_log(&["registryd ready"]).await;
    start(&mut one, &mut two).await;
    let mode = |mode| fs::set_permissions(&shared, Permissions::from_mode(mode)).unwrap();
    for closed in [0o000, 0o555] {
        mode(closed);
        survived(&mesh, &mut one, &two, &["give this user access to the folder"], || mode(0o755)).await;
    }
    succeed(one.command("meshctl").arg("status"));
}

#[tokio::test]
async fn links_planted_in_the_folder_lead_nowhere() {
    let mesh = Mesh::new();
    let shared = mesh.folder().join("shared");
    let victim = mesh.folder().join("victim");
    fs::write(&victim, "mine").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink(&victim, shared.join(".mesh.json.ct110.tmp")).unwrap();
    let mut node = mesh.node("ct110").prepare().await;
    node.start_registryd().await;
    eventually("it is registered all the same", async || mesh.entry("ct110")).await;
    assert!(node.registryd().stop().await.success());
    fs::remove_file(shared.join("mesh.json.lock")).unwrap();
    std::os::unix::fs::symlink(&victim, shared.join("mesh.json.lock")).unwrap();
    node.start_registryd().await;
    eventually("the planted lock is told", async || {
        problems(&node).await.contains("mesh.json.lock is not a plain file").then_some(())
    })
    .await;
    let found = fs::metadata(&victim).unwrap();
    assert_eq!(
        (fs::read_to_string(&victim).unwrap().as_str(), found.permissions().mode() & 0o777),
        ("mine", 0o600)
    );
    fs::remove_file(shared.join("mesh.json.lock")).unwrap();
    eventually("nothing is wrong", async || {
        (!problems(&node).await.contains("mesh.json.lock")).then_some(())
    })
    .await;
    let lock = fs::metadata(shared.join("mesh.json.lock")).unwrap();
    assert_eq!(lock.permissions().mode() & 0o777 & !0o660, 0, "everyone could hold the lock");
}

#[tokio::test]
async fn what_a_program_without_a_lock_enters_meanwhile_is_kept() {
    let mesh = Mesh::new();
    let quick = |config: &mut Value| config["mesh"]["heartbeat_interval_ms"] = json!(100);
    let mut node = mesh.node("ct110").with(quick).prepare().await;
    node.start_registryd().await;
    eventually("it is registered", async || mesh.entry("ct110")).await;
    let path = mesh.registry_path();
    let entered = tokio::task::spawn_blocking(move || {
        for i in 0..150 {
            let mut registry = mesh_tests::mesh::read_json(&path);
            registry["nodes"][format!("x{i}")] = json!({"note": i});
            mesh_tests::mesh::replace_registry(&path, registry);
            std::thread::sleep(std::time::Duration::from_millis(13));
        }
    });
    entered.await.unwrap();
    let nodes = mesh.registry()["nodes"].as_object().unwrap().clone();
    let lost = (0..150).filter(|i| !nodes.contains_key(&format!("x{i}"))).count();
    // The look before the rename leaves an instant; without it every eighth would be lost.
    assert!(lost <= 1, "{lost} of 150 were lost");
}

/// Nobody's stamp can be seen to move, but the network can tell who is gone.
#[tokio::test]
async fn where_nothing_can_be_written_the_network_tells_who_is_gone() {
    let mesh = Mesh::new();
    let path = mesh.folder().join("view");
    let (mut one, mut two) = nodes(&mesh, &path, quick).await;
    let Some(view) = View::mount(&mesh.folder().join("shared"), &path) else { return };
    start(&mut one, &mut two).await;
    view.set(Mode::WritesHanging);
    two.proxy().kill();
    two.registryd().kill();
    eventually("ct111 is offline", async || {
        let nodes = one.local("/mesh/nodes?node=ct111").await?.json();
        (nodes[0]["status"] == "offline").then_some(())
    })
    .await;
    view.set(Mode::Passing);
}

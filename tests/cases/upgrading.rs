//! SIGUSR2 and `meshctl upgrade`: a new process takes over without a refused connection, and the old one finishes
//! what it has.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use mesh_tests::live::{self, Reader};
use mesh_tests::mesh::{Mesh, Node, Plan};
use mesh_tests::process::{self, Daemon, text};
use mesh_tests::supervised::{self, Streams, Supervised};
use mesh_tests::{eventually, web};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;

/// Longer than some of the streams below, so that a drain that nobody may end is told from one with a limit.
const DRAIN: Duration = Duration::from_millis(500);

/// A node whose sidecar is a program of its own that can be replaced, and what it tells a service manager.
struct Replaceable {
    node: Node,
    program: PathBuf,
    manager: UnixDatagram,
    /// Processes that took over; nobody else ends them.
    successors: Vec<u32>,
}

impl Replaceable {
    async fn start(mesh: &Mesh, change: impl FnOnce(Plan) -> Plan) -> Self {
        let plan = mesh.node("ct110").agent("opus");
        let admin = format!("{}:3002", plan.ip());
        let plan = plan.with(|config| {
            config["proxy"]["admin"] = json!({"listen": admin});
            config["proxy"]["timeouts"]["drain_ms"] = (DRAIN.as_millis() as u64).into();
        });
        let mut node = change(plan).prepare().await;
        node.start_registryd().await;
        let program = node.folder().join("mesh-proxy");
        process::install(&process::binary("mesh-proxy"), &program);
        let path = node.folder().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_read_timeout(Some(mesh_tests::DEADLINE)).unwrap();
        let mut command = Command::new(&program);
        command.env("MESH_CONFIG", &node.config_path).env("NOTIFY_SOCKET", &path);
        command.env_remove("MESH_LOG").env_remove("JOURNAL_STREAM");
        node.proxy = Some(Daemon::start("ct110 mesh-proxy", &mut command));
        let this = Self { node, program, manager, successors: Vec::new() };
        assert_eq!(this.told(), "READY=1\n");
        this.node.has_roster().await;
        this.node.reaches("ct110").await;
        eventually("it reports", async || this.reported().await).await;
        this
    }

    fn told(&self) -> String {
        let mut message = [0; 1000];
        let length = self.manager.recv(&mut message).unwrap();
        text(&message[..length])
    }

    /// The process that reports to registryd.
    async fn reported(&self) -> Option<u32> {
        let status = self.node.local("/v1/status").await?.json();
        status["sidecar"]["pid"].as_u64()?.try_into().ok()
    }

    /// Runs `meshctl upgrade`: what it printed, or its complaint.
    async fn upgrade(&mut self) -> Result<Value, String> {
        let mut command = self.node.command("meshctl");
        command.args(["upgrade", "--json"]);
        let finished = tokio::task::spawn_blocking(move || process::run(&mut command)).await.unwrap();
        if !finished.status.success() {
            assert_eq!(finished.status.code(), Some(1));
            return Err(text(&finished.stderr));
        }
        let told: Value = serde_json::from_slice(&finished.stdout).unwrap();
        self.successors.push(told["new"].as_u64().unwrap().try_into().unwrap());
        Ok(told)
    }

    /// Puts a script in the place of the program.
    fn replace_by(&self, script: &str) {
        let new = self.program.with_extension("new");
        fs::write(&new, script).unwrap();
        process::install(&new, &self.program);
    }

    /// Upgrades fail, with this in the log and in what meshctl says, and nothing else happens.
    async fn fails_to_upgrade(&mut self, why: &str) {
        let pid = self.node.proxy().pid();
        let complaint = self.upgrade().await.unwrap_err();
        assert!(complaint.contains(why) && complaint.contains("continues as before"), "{why:?}: {complaint}");
        let line = ["ERROR [Mesh] upgrade failed, continuing as before: ", why];
        self.node.proxy().wait_log(&line).await;
        assert!(self.node.proxy().is_running());
        assert_eq!(self.reported().await, Some(pid));
        assert_eq!(self.node.get("/nodes/ct110/x").await.status, 200);
        assert_eq!(web::get(self.node.port(3002), "/readyz").await.status, 200);
    }
}

impl Drop for Replaceable {
    fn drop(&mut self) {
        for &pid in &self.successors {
            let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            if program.to_string_lossy().contains("mesh-proxy") {
                process::signal(pid, libc::SIGKILL);
            }
        }
    }
}

#[tokio::test]
async fn a_new_process_takes_over_and_the_service_manager_follows() {
    let mesh = Mesh::new();
    let mut it = Replaceable::start(&mesh, |plan| plan).await;
    let old = it.node.proxy().pid();
    let mut open = Streams::open(&it.node, "/nodes/ct110/stream", &it.node, 3).await;
    open.flow().await;
    let told = it.upgrade().await.unwrap();
    assert_eq!(told["old"], old, "{told}");
    let new = u32::try_from(told["new"].as_u64().unwrap()).unwrap();
    assert_eq!((it.told(), it.told()), (format!("MAINPID={new}\n"), "READY=1\n".into()));
    it.node
        .proxy()
        .wait_log(&[&format!("[Mesh] upgraded: process {new} takes all new work; 3 inbound and 3 outbound")])
        .await;
    // Longer than a drain after SIGTERM may take.
    tokio::time::sleep(DRAIN * 3).await;
    open.flow().await;
    assert!(it.node.proxy().is_running());
    // All listeners are the new one's.
    assert_eq!(it.node.get("/nodes/ct110/x").await.status, 200);
    assert_eq!(web::get(it.node.port(3002), "/readyz").await.status, 200);
    assert_eq!(it.reported().await, Some(new));
    assert_eq!(mesh.entry("ct110").unwrap()["status"], "online");
    open.end().await;
    assert!(it.node.proxy().exited().await.success());
    assert!(it.node.proxy().lines_with(&["are cut off"]).is_empty());
    assert_eq!(it.node.get("/nodes/ct110/x").await.status, 200);
    assert_eq!(it.reported().await, Some(new));
    // The one that took over stops as any other.
    process::signal(new, libc::SIGTERM);
    assert_eq!(it.told(), "STOPPING=1\n");
    Supervised::gone(new).await;
}

#[tokio::test]
async fn told_to_stop_after_it_handed_over_it_keeps_to_the_drain_time() {
    let mesh = Mesh::new();
    let mut it = Replaceable::start(&mesh, |plan| plan).await;
    let mut open = Streams::open(&it.node, "/nodes/ct110/stream", &it.node, 1).await;
    open.flow().await;
    it.upgrade().await.unwrap();
    it.node.proxy().signal(libc::SIGTERM);
    let line = "1 inbound and 1 outbound requests after 500 ms (proxy.timeouts.drain_ms); they are cut off";
    it.node.proxy().wait_log(&["WARN [Mesh]", line]).await;
    assert!(it.node.proxy().exited().await.success());
    assert_eq!(it.node.get("/nodes/ct110/x").await.status, 200);
}

#[tokio::test]
async fn the_program_that_lies_there_now_is_started_and_a_bad_one_changes_nothing() {
    let mesh = Mesh::new();
    let mut it = Replaceable::start(&mesh, |plan| plan).await;
    let (good, config) = (process::binary("mesh-proxy"), fs::read(&it.node.config_path).unwrap());
    fs::remove_file(&it.program).unwrap();
    it.fails_to_upgrade("No such file").await;
    it.replace_by("this is no program\n");
    it.fails_to_upgrade("Exec format error").await;
    it.replace_by("#!/bin/sh\nexit 5\n");
    it.fails_to_upgrade("ended before it was ready, with exit status: 5").await;
    it.replace_by("#!/bin/sh\nkill -9 $$\n");
    it.fails_to_upgrade("signal: 9").await;
    process::install(&good, &it.program);
    fs::write(&it.node.config_path, "mesh: {enabled: true, tls: nonsense}").unwrap();
    let socket = it.node.socket();
    // meshctl reads the same file, so it is done by hand here.
    it.node.proxy().signal(libc::SIGUSR2);
    it.node.proxy().wait_log(&["ERROR [Mesh] upgrade failed", "its configuration cannot work"]).await;
    let mut wrong: Value = serde_json::from_slice(&config).unwrap();
    wrong["mesh"]["tls"]["cert_path"] = "/nonexistent.crt".into();
    wrong["registryd"]["socket"] = json!(socket);
    fs::write(&it.node.config_path, wrong.to_string()).unwrap();
    it.fails_to_upgrade("cannot work: ").await;
    it.node.proxy().wait_log(&["ERROR [Mesh] upgrade failed", "/nonexistent.crt"]).await;
    let status = process::run(it.node.command("meshctl").arg("status"));
    assert!(text(&status.stdout).contains("upgrade failed, and it continues as before"), "{status:?}");

    fs::write(&it.node.config_path, config).unwrap();
    it.replace_by(&format!("#!/bin/sh\necho the new one\nexec {} \"$@\"\n", good.display()));
    let mut open = Streams::open(&it.node, "/nodes/ct110/stream", &it.node, 1).await;
    it.upgrade().await.unwrap();
    it.node.proxy().wait_log(&["the new one"]).await;
    open.flow().await;
    open.end().await;
    assert!(it.node.proxy().exited().await.success());
}

#[tokio::test]
async fn a_process_that_handed_over_does_not_outlive_its_successor_for_long() {
    let mesh = Mesh::new();
    let mut it = Replaceable::start(&mesh, |plan| plan).await;
    let mut open = Streams::open(&it.node, "/nodes/ct110/stream", &it.node, 1).await;
    open.flow().await;
    it.upgrade().await.unwrap();
    process::signal(it.successors.pop().unwrap(), libc::SIGKILL);
    it.node.proxy().wait_log(&["ERROR [Mesh] the process that took over has ended (signal: 9"]).await;
    it.node.proxy().wait_log(&["requests after 500 ms (proxy.timeouts.drain_ms); they are cut off"]).await;
    assert!(it.node.proxy().exited().await.success());
}

#[tokio::test]
async fn the_new_process_listens_where_its_own_configuration_says() {
    let mesh = Mesh::new();
    let _other = mesh.start("ct111", "grok").await;
    let listener = |port| json!({"listen": port, "node": "ct111"});
    let mut it = Replaceable::start(&mesh, |plan| {
        let port = format!("{}:3011", plan.ip());
        plan.with(|config| config["proxy"]["outbound"]["listeners"] = json!([listener(port)]))
    })
    .await;
    it.node.reaches("ct111").await;
    let (gone, new) = (it.node.port(3011), it.node.port(3012));
    assert_eq!(web::get(gone, "/x").await.status, 200);
    let mut config: Value = serde_json::from_slice(&fs::read(&it.node.config_path).unwrap()).unwrap();
    config["proxy"]["outbound"]["listeners"] = json!([listener(new.to_string())]);
    fs::write(&it.node.config_path, config.to_string()).unwrap();
    it.upgrade().await.unwrap();
    assert!(it.node.proxy().exited().await.success());
    assert_eq!(web::get(new, "/x").await.status, 200);
    assert!(TcpStream::connect(gone).await.is_err());
    assert_eq!(it.node.get("/nodes/ct110/x").await.status, 200);
}

#[tokio::test]
async fn a_unix_socket_goes_over_with_the_requests_on_it() {
    let mesh = Mesh::new();
    let far = mesh.start("ct111", "grok").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbound.sock");
    let listeners = json!([{"listen": format!("unix:{}", path.display()), "node": "ct111"}]);
    let mut it = Replaceable::start(&mesh, |plan| {
        plan.with(|config| config["proxy"]["outbound"]["listeners"] = listeners)
    })
    .await;
    it.node.reaches("ct111").await;
    let get = |target: &str| {
        let mut command = Command::new("curl");
        command.args(["-s", "--noproxy", "*", "--max-time", "30", "--unix-socket"]).arg(&path);
        command.arg(format!("http://localhost{target}")).stdout(std::process::Stdio::piped());
        command.spawn().unwrap()
    };
    // The agent answers from this thread.
    let read = async |started: std::process::Child| {
        text(&spawn_blocking(|| started.wait_with_output()).await.unwrap().unwrap().stdout)
    };
    let open = get("/stream");
    let answer = far.agent().stream().await;
    let inode = fs::metadata(&path).unwrap().ino();
    it.upgrade().await.unwrap();
    assert_eq!(read(get("/x")).await, "GET /x");
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    answer.send(web::piece("to its end")).unwrap();
    drop(answer);
    assert_eq!(read(open).await, "to its end");
    assert!(it.node.proxy().exited().await.success());
    assert_eq!(read(get("/x")).await, "GET /x");
}

#[tokio::test]
async fn the_live_view_is_told_by_the_new_process() {
    let mesh = Mesh::new();
    let mut it = Replaceable::start(&mesh, |plan| {
        plan.with(|config| config["proxy"]["live"] = json!({"peers": ["ct111"]}))
    })
    .await;
    let inode = fs::metadata(live::socket(&it.node)).unwrap().ino();
    let mut own = Reader::open(&it.node, "/v1/live").await.unwrap();
    let mut of_peer = Reader::of_peer(&mesh, "ct111", &it.node).await.unwrap();
    let mut open = Streams::open(&it.node, "/nodes/ct110/stream", &it.node, 1).await;
    open.flow().await;
    own.in_flight("/stream").await;
    of_peer.in_flight("/stream").await;
    it.upgrade().await.unwrap();
    // What the old one told ends, so that it waits for nobody who would read for ever.
    mesh_tests::within("the old readers end", async {
        while own.next().await.is_some() {}
        while of_peer.next().await.is_some() {}
    })
    .await;
    assert_eq!(fs::metadata(live::socket(&it.node)).unwrap().ino(), inode);
    let mut again = Reader::open(&it.node, "/v1/live").await.unwrap();
    again.next().await.unwrap();
    assert_eq!(it.node.get("/nodes/ct110/x").await.status, 200);
    again.ended("/x").await;
    open.end().await;
    assert!(it.node.proxy().exited().await.success());
    assert_eq!(it.node.get("/nodes/ct110/y").await.status, 200);
    again.ended("/y").await;
}

#[tokio::test]
async fn upgrades_under_load_are_not_noticed() {
    let mesh = Mesh::new();
    let mut near = mesh.node("ct110").agent("opus").prepare().await;
    near.start_registryd().await;
    let mut sidecar = Supervised::start(&near).await;
    near.has_roster().await;
    let far = mesh.start("ct111", "grok").await;
    near.reaches("ct111").await;
    let sent = supervised::upgrades(&near, &far, &mut sidecar, 200, 20, 3).await;
    assert!(sent > 400, "{sent}");
}

#[tokio::test]
async fn peers_do_not_notice_the_upgrade_of_the_node_that_they_call() {
    let mesh = Mesh::new();
    let near = mesh.start("ct110", "opus").await;
    let mut far = mesh.node("ct111").agent("grok").prepare().await;
    far.start_registryd().await;
    let mut sidecar = Supervised::start(&far).await;
    far.has_roster().await;
    near.reaches("ct111").await;
    let sent = supervised::upgrades(&near, &far, &mut sidecar, 200, 20, 3).await;
    assert!(sent > 400, "{sent}");
}

#[tokio::test]
async fn without_a_sidecar_to_ask_meshctl_says_what_to_do() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").agent("opus").prepare().await;
    node.start_registryd().await;
    let asked = process::run(node.command("meshctl").arg("upgrade"));
    assert_eq!(asked.status.code(), Some(1));
    assert!(text(&asked.stderr).contains("--signal=USR2 mesh-proxy"), "{asked:?}");
}

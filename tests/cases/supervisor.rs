//! What systemd is told, ready once it works, stopping when it does; and that a service without work sleeps.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::{Daemon, of_threads};

/// Where a service manager listens.
struct Manager(UnixDatagram);

impl Manager {
    fn start(node: &Node, binary: &str) -> (Self, Daemon) {
        let path = node.folder().join(format!("{binary}.notify"));
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let daemon = Daemon::start(binary, node.command(binary).env("NOTIFY_SOCKET", &path));
        (Self(socket), daemon)
    }

    fn told(&self) -> String {
        let mut message = [0; 1000];
        let length = self.0.recv(&mut message).unwrap();
        mesh_tests::process::text(&message[..length]).trim().into()
    }
}

#[tokio::test]
async fn both_daemons_say_when_they_work_and_when_they_stop() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").agent("opus").prepare().await;
    let (registryd, daemon) = Manager::start(&node, "registryd");
    node.registryd = Some(daemon);
    assert_eq!(registryd.told(), "READY=1");
    assert_eq!(node.local("/v1/status").await.unwrap().status, 200);
    assert_eq!(mesh.entry("ct110").unwrap()["status"], "online");
    let (proxy, daemon) = Manager::start(&node, "mesh-proxy");
    node.proxy = Some(daemon);
    assert_eq!(proxy.told(), "READY=1");
    assert_eq!(node.get_from_peer(&mesh, "ct111", "/api/mesh/ping").await.status, 200);
    for (manager, daemon) in [(proxy, &mut node.proxy), (registryd, &mut node.registryd)] {
        let daemon = daemon.as_mut().unwrap();
        daemon.signal(libc::SIGTERM);
        assert_eq!(manager.told(), "STOPPING=1");
        assert!(daemon.exited().await.success());
    }
}

/// A pair beside each agent must cost next to nothing where nothing happens.
#[tokio::test]
async fn whoever_has_nothing_to_do_sleeps() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").agent("opus");
    // As in the field, where a heartbeat is rare.
    let mut node = plan.with(|config| config["mesh"]["heartbeat_interval_ms"] = 30_000.into()).start().await;
    assert_eq!(node.get("/agents/opus/x").await.status, 200);
    let wakeups = |daemon: &Daemon| -> u64 {
        let of_thread = |status: &String| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.map_or(0, |count| count.trim().parse().unwrap())
        };
        of_threads(daemon.pid(), "status").iter().map(of_thread).sum()
    };
    let before = (wakeups(node.proxy()), wakeups(node.registryd()));
    tokio::time::sleep(Duration::from_secs(3)).await;
    let woke = (wakeups(node.proxy()) - before.0, wakeups(node.registryd()) - before.1);
    assert!(woke.0 < 90 && woke.1 < 90, "in 3 s mesh-proxy woke {} times, registryd {}", woke.0, woke.1);
}

/// One that hangs must not hang what it manages.
#[tokio::test]
async fn a_service_manager_that_reads_nothing_stops_nobody() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").agent("opus");
    let listen = format!("{}:3002", plan.ip());
    let plan = plan.with(|config| config["proxy"]["admin"] = serde_json::json!({"listen": listen}));
    let mut node = plan.prepare().await;
    let mut managers = Vec::new();
    for binary in ["registryd", "mesh-proxy"] {
        let path = node.folder().join(format!("{binary}.notify"));
        let manager = UnixDatagram::bind(&path).unwrap();
        let full = UnixDatagram::unbound().unwrap();
        full.set_nonblocking(true).unwrap();
        while full.send_to(b"x", &path).is_ok() {}
        let mut command = node.command(binary);
        let daemon =
            Daemon::start(binary, command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000"));
        let slot = if binary == "registryd" { &mut node.registryd } else { &mut node.proxy };
        *slot = Some(daemon);
        managers.push(manager);
    }
    node.proxy().wait_log(&["WARN [Mesh] the service manager does not read its notifications"]).await;
    node.registryd().wait_log(&["WARN [Registry] the service manager does not read its notifications"]).await;
    node.has_roster().await;
    let healthy = mesh_tests::web::get(node.port(3002), "/healthz").await;
    assert_eq!(healthy.status, 200);
    assert!(node.proxy().stop().await.success() && node.registryd().stop().await.success());
}

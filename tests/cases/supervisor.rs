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

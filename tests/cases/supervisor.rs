//! What systemd is told: ready once it works, stopping when it does.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::Daemon;

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

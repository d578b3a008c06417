//! A node that has to find out its own address: when the network comes up late, or changes.

use std::process::Command;

use mesh_tests::ca::Spec;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::network::SYSTEM_PATH as PATH;
use mesh_tests::process::{self, Daemon, run, succeed};
use mesh_tests::{eventually_within, skipped};
use serde_json::json;

/// A network namespace with one interface that is down; gone with this value.
struct Late(String);

impl Late {
    /// `None`, with a loud line, where this user cannot make one.
    fn new(tag: &str) -> Option<Self> {
        let name = format!("mesh-{tag}-{}", std::process::id());
        if !run(Command::new("ip").env("PATH", PATH).args(["netns", "add", &name])).status.success() {
            skipped("no network namespaces here (they need root): a late network is not tested");
            return None;
        }
        let late = Self(name);
        late.ip(&["link", "add", "mesh0", "type", "veth", "peer", "name", "mesh1"]);
        late.ip(&["link", "set", "mesh1", "up"]);
        Some(late)
    }

    fn start_registryd(&self, node: &mut Node) {
        let mut command = Command::new("ip");
        command.env("PATH", PATH).env_remove("MESH_CONFIG").args(["netns", "exec", &self.0]);
        command.arg(process::binary("registryd")).arg("--config").arg(&node.config_path);
        node.registryd = Some(Daemon::start("registryd", &mut command));
    }

    fn ip(&self, args: &[&str]) {
        succeed(Command::new("ip").env("PATH", PATH).args(["-n", &self.0]).args(args));
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        run(Command::new("ip").env("PATH", PATH).args(["netns", "del", &self.0]));
    }
}

#[tokio::test]
async fn an_address_that_comes_late_or_changes_is_registered() {
    let Some(network) = Late::new("late") else { return };
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").with(|config| {
        config["mesh"].as_object_mut().unwrap().remove("advertise_host");
        config["mesh"]["heartbeat_interval_ms"] = json!(2000);
    });
    let mut node = plan.prepare().await;
    network.start_registryd(&mut node);
    let registered = async |host: &str| {
        // One heartbeat, and time for a machine that is busy.
        let limit = std::time::Duration::from_secs(10);
        eventually_within(limit, &format!("{host} is registered"), async || {
            (mesh.entry("ct110")?["host"] == host).then_some(())
        })
        .await;
    };
    registered("ct110.mesh").await;
    network.ip(&["addr", "add", "10.78.0.1/24", "dev", "mesh0"]);
    network.ip(&["link", "set", "mesh0", "up"]);
    registered("10.78.0.1").await;
    network.ip(&["addr", "add", "10.78.0.2/24", "dev", "mesh0"]);
    network.ip(&["addr", "del", "10.78.0.1/24", "dev", "mesh0"]);
    network.ip(&["addr", "replace", "10.78.0.2/24", "dev", "mesh0"]);
    registered("10.78.0.2").await;
    node.registryd().wait_log(&["this node's address is 10.78.0.2 now"]).await;
}

/// The certificate's address is where this host is, unless it is one of its own network that it does not have.
#[tokio::test]
async fn an_address_of_the_certificate_that_this_host_lost_is_not_advertised() {
    let Some(network) = Late::new("lost") else { return };
    network.ip(&["addr", "add", "10.79.0.1/24", "dev", "mesh0"]);
    network.ip(&["link", "set", "mesh0", "up"]);
    for (certified, advertised) in [("10.79.0.9", "10.79.0.1"), ("203.0.113.7", "203.0.113.7")] {
        let mesh = Mesh::new();
        let identity = mesh.ca.issue(&Spec { ips: vec![certified.parse().unwrap()], ..Spec::node("ct110") });
        let plan = mesh.node("ct110").with(|config| {
            config["mesh"].as_object_mut().unwrap().remove("advertise_host");
        });
        let mut node = plan.prepare().await;
        std::fs::write(node.folder().join("node.crt"), identity.chain_pem).unwrap();
        network.start_registryd(&mut node);
        let limit = std::time::Duration::from_secs(10);
        eventually_within(limit, &format!("{advertised} is registered"), async || {
            (mesh.entry("ct110")?["host"] == advertised).then_some(())
        })
        .await;
        let warning = ["WARN", "10.79.0.1", "its certificate names 10.79.0.9"];
        if certified == advertised {
            let told = node.registryd().lines_with(&warning);
            assert!(told.is_empty(), "{told:?}");
        } else {
            // It may come to this process after the entry has come to the file.
            node.registryd().wait_log(&warning).await;
        }
    }
}

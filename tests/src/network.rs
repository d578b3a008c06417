//! Network namespaces, one for each node, on one network that can be cut in two.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::eventually;
use crate::process::{run, succeed, text};

/// Where Debian keeps `ip`, `dnsmasq` and `mount`, which a user's PATH may lack.
pub const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// Namespaces of nodes, and one that joins them: a bridge for each half and a link between the two. All are gone
/// with this value.
pub struct Network {
    /// The nodes' namespaces: the first half's, then the second's.
    nodes: Vec<String>,
    hub: String,
}

impl Network {
    /// Two halves of so many nodes. `None`, with a loud line, where this user cannot make one.
    pub async fn halves(each: usize) -> Option<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("mesh-test-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let hub = format!("{prefix}-hub");
        if !run(&mut ip(&["netns", "add", &hub])).status.success() {
            crate::skipped("no network namespaces here (they need root)");
            return None;
        }
        let mut network = Self { nodes: Vec::new(), hub };
        let hub = network.hub.clone();
        let must = |args: &[&str]| drop(succeed(&mut ip(args)));
        must(&["-n", &hub, "link", "add", "trunk0", "type", "veth", "peer", "name", "trunk1"]);
        for half in ["0", "1"] {
            let (bridge, trunk) = (format!("half{half}"), format!("trunk{half}"));
            must(&["-n", &hub, "link", "add", &bridge, "type", "bridge"]);
            must(&["-n", &hub, "link", "set", &trunk, "master", &bridge, "up"]);
            must(&["-n", &hub, "link", "set", &bridge, "up"]);
        }
        for i in 0..2 * each {
            let (name, port, bridge) =
                (format!("{prefix}-{i}"), format!("port{i}"), format!("half{}", i / each));
            must(&["netns", "add", &name]);
            network.nodes.push(name.clone());
            must(&[
                "-n", &name, "link", "add", "mesh0", "type", "veth", "peer", "name", &port, "netns", &hub,
            ]);
            must(&["-n", &hub, "link", "set", &port, "master", &bridge, "up"]);
            must(&["-n", &name, "addr", "add", &format!("{}/24", address(i)), "dev", "mesh0"]);
            must(&["-n", &name, "link", "set", "lo", "up"]);
            must(&["-n", &name, "link", "set", "mesh0", "up"]);
        }
        eventually("the network is up", async || {
            let links = text(&run(&mut ip(&["-n", &hub, "-oneline", "link", "show", "type", "veth"])).stdout);
            (links.matches("state UP").count() == 2 * each + 2).then_some(())
        })
        .await;
        Some(network)
    }

    /// The address of a node.
    pub fn address(&self, node: usize) -> IpAddr {
        address(node).into()
    }

    /// Cuts the network between its halves, or joins them again.
    pub fn cut(&self, cut: bool) {
        succeed(&mut ip(&["-n", &self.hub, "link", "set", "trunk0", if cut { "down" } else { "up" }]));
    }

    /// The command, run inside a node's namespace; `ip` replaces itself by it.
    pub fn inside(&self, node: usize, command: &Command) -> Command {
        let mut wrapped = ip(&["netns", "exec", &self.nodes[node]]);
        wrapped.env_remove("MESH_CONFIG").arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            if let Some(value) = value {
                wrapped.env(key, value);
            }
        }
        wrapped
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.nodes.iter().chain([&self.hub]) {
            run(&mut ip(&["netns", "del", name]));
        }
    }
}

fn address(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, node as u8 + 1)
}

fn ip(args: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.env("PATH", SYSTEM_PATH).args(args);
    command
}

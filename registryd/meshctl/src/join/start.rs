//! The end of a join: starts the daemons, and verifies that they work.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use mesh_client::Daemon;
use mesh_shared::config::Config;
use mesh_shared::local_api::{DaemonStatus, MESH, NODES, NodeView, STATUS};
use mesh_shared::name::NodeName;
use mesh_shared::registry::Status;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::Failure;
use crate::ping::ping;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// The units, in the order in which they are wanted.
const UNITS: [&str; 2] = ["registryd", "mesh-proxy"];

/// What works once a node has joined.
pub struct Works {
    /// Nodes that it knows.
    pub nodes: usize,
    /// What registryd finds wrong all the same, such as an agent that does not run yet.
    pub problems: Vec<String>,
    outbound: std::net::SocketAddr,
}

impl Works {
    /// What to say of it.
    pub fn told(&self, seed: Option<&NodeName>) -> String {
        let outbound = self.outbound;
        let reached = match seed {
            Some(seed) => {
                format!("registered, and {seed} is reached and knows this node ({} nodes in all)", self.nodes)
            }
            None => "registered, as the first node: others join with `meshctl invite <node>`".into(),
        };
        let example = seed.map_or_else(String::new, |seed| {
            format!("  http_proxy=http://{outbound} curl http://{seed}.mesh/api/mesh/ping\n")
        });
        let problems: String =
            self.problems.iter().map(|problem| format!("still to do: {problem}\n")).collect();
        format!("{reached}\n{problems}works now:\n{example}  meshctl nodes; meshctl ping; meshctl status\n")
    }
}

/// Has the service manager start the daemons, and waits until this node is registered, reaches the seed, and is known
/// there.
///
/// # Errors
/// The service manager cannot start them, or within `timeout` seconds they do not come to work; the text says what is missing.
pub async fn start(config: &Path, seed: Option<&NodeName>, timeout: u64) -> Result<Works, Failure> {
    let loaded = Config::load(config)?;
    // Its own output would stand among ours; what it has to say of failures is on stderr.
    let started =
        Command::new("systemctl").args(["enable", "--now"]).args(UNITS).stdout(Stdio::null()).status();
    let by_hand = "start registryd and mesh-proxy by hand, or run this again with --no-start";
    match started {
        Ok(status) if status.success() => {}
        Ok(status) => {
            return Err(Failure::Said(format!(
                "the certificate is there, but `systemctl enable --now {}` failed ({status}); see journalctl -u registryd -u \
                 mesh-proxy, and run the same command again",
                UNITS.join(" ")
            )));
        }
        Err(error) => {
            return Err(Failure::Said(format!(
                "the certificate is there, but systemctl cannot be run ({error}); {by_hand}"
            )));
        }
    }
    let deadline = Instant::now() + Duration::from_secs(timeout);
    loop {
        let missing = match look(&loaded, seed).await {
            Ok(works) => return Ok(works),
            Err(missing) => missing,
        };
        if Instant::now() >= deadline {
            return Err(Failure::Said(format!(
                "the certificate is there and the daemons were started, but after {timeout} s {missing}; see `meshctl status` \
                 and journalctl -u registryd -u mesh-proxy. The same command can be given again"
            )));
        }
        sleep(LOOK).await;
    }
}

/// Whether all works; else what is missing, in words that follow "after 60 s".
async fn look(config: &Config, seed: Option<&NodeName>) -> Result<Works, String> {
    let own = &config.mesh.node_name;
    let registryd = Daemon::Registryd(config.registryd.socket.clone());
    let status: DaemonStatus = registryd.read(STATUS).await.map_err(|error| error.to_string())?;
    let sidecar = status.sidecar.ok_or("mesh-proxy does not report to registryd")?;
    let nodes: Vec<NodeView> = registryd.read(NODES).await.map_err(|error| error.to_string())?;
    // An agent that does not answer yet makes a node degraded; it is in the mesh all the same.
    let registered = |view: &NodeView| view.local && view.node.status != Status::Offline;
    if !nodes.iter().any(registered) {
        return Err("this node is not registered".into());
    }
    let (nodes, problems) = (nodes.len(), status.problems);
    let works = Works { nodes, problems, outbound: sidecar.outbound };
    let Some(seed) = seed else { return Ok(works) };
    let sidecar = Daemon::Sidecar(sidecar.outbound);
    let outcome = ping(&sidecar, seed.as_str()).await;
    if !outcome.ok {
        return Err(format!("{seed} is not reached: {}", outcome.detail.unwrap_or_default()));
    }
    let path = format!("/nodes/{seed}{MESH}");
    let answer = sidecar.send(Method::GET, &path, HeaderMap::new(), Bytes::new()).await;
    let answer =
        answer.and_then(|answer| sidecar.accepted(&path, answer)).map_err(|error| error.to_string())?;
    let known: Vec<Value> = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
    match known.iter().any(|node| node["name"] == own.as_str() && node["status"] != "offline") {
        true => Ok(works),
        false => Err(format!("{seed} does not know this node")),
    }
}

//! Commands that several findings recommend.

use mesh_shared::NodeName;
use mesh_shared::config::Config;

/// Where certificates are made.
pub const CA_HOST: &str = "the CA's host";

/// What gives a node another certificate, on [`CA_HOST`]. Where nodes join, their keys are made on them, and the invitation prints
/// the command for that.
pub fn certificate(config: &Config, node: &NodeName) -> String {
    match config.mesh.ca_node {
        Some(_) => format!("sudo meshctl invite {node}"),
        None => format!("sudo meshctl ca renew {node}"),
    }
}

/// The same for a node without one of this CA.
pub fn first_certificate(config: &Config, node: &NodeName) -> String {
    match config.mesh.ca_node {
        Some(_) => format!("sudo meshctl invite {node}"),
        None => format!("sudo meshctl ca issue-node {node}"),
    }
}

/// The same for one that is to name these agents, which must be all of the node's.
pub fn hosting(config: &Config, node: &str, agents: &[&str]) -> String {
    let command = if config.mesh.ca_node.is_some() { "invite" } else { "ca renew" };
    format!("sudo meshctl {command} {node} --agents {}", agents.join(","))
}

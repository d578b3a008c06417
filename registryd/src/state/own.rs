//! What this node says of itself.

use std::net::IpAddr;

use mesh_shared::certificate::{Leaf, read_certificates};
use mesh_shared::config::Config;
use mesh_shared::registry::Node;

/// The entry that this node makes of itself; without id and times, which the registry keeps.
///
/// The advertised host is the configured one, else the first address in the certificate (which names what peers
/// were told to dial), else this host's first address that others could reach, else `<node>.mesh`.
pub fn own_claims(config: &Config) -> Node {
    let registryd = &config.registryd;
    let name = &config.mesh.node_name;
    let host = config.mesh.advertise_host.clone().unwrap_or_else(|| {
        let address = certified_address(config).or_else(primary_address);
        address.map_or_else(|| name.mesh_host(), |address| address.to_string())
    });
    Node {
        name: name.to_string(),
        role: Some(registryd.role.clone()),
        agents: registryd.agents.iter().map(|agent| agent.name.clone()).collect(),
        host,
        port: config.mesh.agent_channel_port,
        providers: registryd.providers.clone(),
        models: registryd.models.clone(),
        capabilities: registryd.capabilities.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        metadata: registryd.metadata.clone().map(serde_json::Value::Object),
        ..Node::default()
    }
}

fn certified_address(config: &Config) -> Option<IpAddr> {
    let path = &config.mesh.tls.cert_path;
    let leaf = read_certificates("certificate", path).map_err(|error| error.to_string()).and_then(|chain| {
        let leaf = chain.first().map(Leaf::parse);
        leaf.transpose().map_err(|error| format!("certificate {}: {error}", path.display()))
    });
    match leaf {
        Ok(leaf) => leaf?.addresses.first().copied(),
        Err(error) => {
            tracing::warn!(target: "Registry", "{error}; the advertised address is not taken from it");
            None
        }
    }
}

/// The first address of an interface that is up: IPv4 before IPv6, none that only this host or link can use.
fn primary_address() -> Option<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let addresses: Vec<IpAddr> = interfaces
        .iter()
        .filter(|interface| !interface.is_loopback() && interface.is_oper_up() && !interface.is_link_local())
        .map(|interface| interface.ip())
        .collect();
    addresses.iter().find(|address| address.is_ipv4()).or(addresses.first()).copied()
}

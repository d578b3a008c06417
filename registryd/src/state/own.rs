//! What this node says of itself.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_shared::certificate::{Leaf, read_certificates};
use mesh_shared::config::Config;
use mesh_shared::registry::Node;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::State;

/// Longest time between two looks at this host's addresses; at least two fall into each heartbeat interval.
const LOOK: Duration = Duration::from_secs(10);

/// The entry that this node makes of itself; without id and times, which the registry keeps. Its host is the
/// configured one, else a first guess that [`follow_host`] puts right. Reads no files.
pub fn own_claims(config: &Config) -> Node {
    let registryd = &config.registryd;
    let name = &config.mesh.node_name;
    let host = config.mesh.advertise_host.clone().unwrap_or_else(|| {
        reachable_addresses().first().map_or_else(|| name.mesh_host(), ToString::to_string)
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

/// Keeps the registered host at where others can dial this node, unless the configuration says it: the first
/// address in the certificate (which names what peers were told to dial), else this host's first address that
/// others could reach. `looked` is dropped after the first look.
///
/// The network may come up, or change, long after registryd has started.
pub async fn follow_host(state: Arc<State>, looked: oneshot::Sender<()>) {
    if state.config.mesh.advertise_host.is_some() {
        return;
    }
    let mut looked = Some(looked);
    let mut host = OwnHost { config: state.config.clone(), certified: None, told: None, given: None };
    loop {
        // The certificate may lie on a mount that hangs.
        let look = spawn_blocking(move || {
            let address = host.look();
            (host, address)
        });
        // Fails only while the runtime shuts down.
        let Ok((again, address)) = look.await else { return };
        host = again;
        if let Some(address) = address {
            state.set_own_host(address.to_string());
        }
        looked.take();
        sleep((state.config.mesh.heartbeat_interval / 2).min(LOOK)).await;
    }
}

struct OwnHost {
    config: Arc<Config>,
    /// What the certificate said when it could be read last.
    certified: Option<IpAddr>,
    told: Option<String>,
    /// The address given where the certificate has none.
    given: Option<IpAddr>,
}

impl OwnHost {
    /// `None`: nothing better is known than before.
    fn look(&mut self) -> Option<IpAddr> {
        match certified_address(&self.config) {
            Ok(address) => (self.certified, self.told) = (address, None),
            Err(error) if self.told.as_ref() == Some(&error) => {}
            Err(error) => {
                tracing::warn!(target: "Registry", "{error}; the advertised address is not taken from it");
                self.told = Some(error);
            }
        }
        // A further address is no reason to move, a lost one is.
        let reachable = reachable_addresses();
        let given = self.given.filter(|address| reachable.contains(address));
        self.given = given.or_else(|| reachable.first().copied());
        self.certified.or(self.given)
    }
}

fn certified_address(config: &Config) -> Result<Option<IpAddr>, String> {
    let path = &config.mesh.tls.cert_path;
    let chain = read_certificates("certificate", path).map_err(|error| error.to_string())?;
    let leaf = chain.first().map(Leaf::parse).transpose();
    let leaf = leaf.map_err(|error| format!("certificate {}: {error}", path.display()))?;
    Ok(leaf.and_then(|leaf| leaf.addresses.first().copied()))
}

/// The addresses of interfaces that are up: IPv4 before IPv6, none that only this host or link can use.
fn reachable_addresses() -> Vec<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let mut addresses: Vec<IpAddr> = interfaces
        .iter()
        .filter(|interface| !interface.is_loopback() && interface.is_oper_up() && !interface.is_link_local())
        .map(|interface| interface.ip())
        .collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses
}

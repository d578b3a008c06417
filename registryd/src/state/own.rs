//! What this node says of itself.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_shared::certificate::{Leaf, read_certificates};
use mesh_shared::config::{Config, Registryd};
use mesh_shared::registry::Node;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::State;
use super::problems::About;
use crate::membership::amend::AGENT_DETAILS;

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
    let mut own = Node {
        // Until the registry shows another one. Some programs refuse who has none.
        id: name.to_string(),
        name: name.to_string(),
        host,
        port: config.mesh.agent_channel_port,
        version: env!("CARGO_PKG_VERSION").into(),
        ..Node::default()
    };
    claim(&mut own, registryd, config.mesh.stale_threshold);
    own
}

/// Makes an entry say what the configuration publishes.
pub(super) fn claim(own: &mut Node, registryd: &Registryd, ttl: Duration) {
    own.role = Some(registryd.role.clone());
    own.agents = registryd.agents.iter().map(|agent| agent.name.clone()).collect();
    own.providers.clone_from(&registryd.providers);
    own.models.clone_from(&registryd.models);
    own.capabilities.clone_from(&registryd.capabilities);
    let mut metadata = registryd.metadata.clone().unwrap_or_default();
    if !registryd.agents.is_empty() {
        let details = serde_json::to_value(&registryd.agents).unwrap_or_default();
        metadata.entry(AGENT_DETAILS).or_insert(details);
    }
    own.metadata = Some(serde_json::Value::Object(metadata));
    if own.is_agent() {
        own.set_ttl(ttl);
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
    let mut host =
        OwnHost { config: state.config.clone(), certified: None, told: None, given: None, moved: None };
    loop {
        // The certificate may be on a mount that hangs.
        let look = spawn_blocking(move || {
            let address = host.look();
            (host, address)
        });
        // Fails only while the runtime shuts down.
        let Ok((again, address)) = look.await else { return };
        host = again;
        match host.moved {
            Some((certified, given)) => state.problem(
                About::Address,
                format!(
                    "this host is at {given}, but its certificate names {certified}, an address of the same network that \
                     it does not have: {given} is advertised; issue a certificate with it, or set mesh.advertise_host"
                ),
            ),
            None => state.solved(&About::Address),
        }
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
    /// The certificate's address that this host had before, and the one it has now.
    moved: Option<(IpAddr, IpAddr)>,
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
        // A further address is not a reason to move, a lost one is.
        let networks = networks();
        let reachable: Vec<IpAddr> = networks.iter().map(|network| network.address).collect();
        let given = self.given.filter(|address| reachable.contains(address));
        self.given = given.or_else(|| reachable.first().copied());
        // The certificate's address is one that this host has, or one outside that leads here. But one of this host's own
        // network that this host does not have is the address of before.
        let lost = |address: &IpAddr| {
            !reachable.contains(address) && networks.iter().any(|network| network.contains(*address))
        };
        match self.certified.filter(lost).zip(self.given) {
            Some((certified, given)) => {
                self.moved = Some((certified, given));
                Some(given)
            }
            None => {
                self.moved = None;
                self.certified.or(self.given)
            }
        }
    }
}

fn certified_address(config: &Config) -> Result<Option<IpAddr>, String> {
    let path = &config.mesh.tls.cert_path;
    let chain = read_certificates("certificate", path).map_err(|error| error.to_string())?;
    let leaf = chain.first().map(Leaf::parse).transpose();
    let leaf = leaf.map_err(|error| format!("certificate {}: {error}", path.display()))?;
    Ok(leaf.and_then(|leaf| leaf.addresses.first().copied()))
}

/// An address of this host and the network that it is in.
struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    fn contains(&self, other: IpAddr) -> bool {
        let shared = |a: &[u8], b: &[u8]| {
            let bits: u32 = a
                .iter()
                .zip(b)
                .map(|(a, b)| (a ^ b).leading_zeros())
                .scan(true, |go, same| std::mem::replace(go, same == 8).then_some(same))
                .sum();
            bits >= u32::from(self.prefix)
        };
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => shared(&a.octets(), &b.octets()),
            (IpAddr::V6(a), IpAddr::V6(b)) => shared(&a.octets(), &b.octets()),
            _ => false,
        }
    }
}

/// The addresses of interfaces that are up: IPv4 before IPv6, none that only this host or link can use.
fn networks() -> Vec<Network> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let mut networks: Vec<Network> = interfaces
        .iter()
        .filter(|interface| !interface.is_loopback() && interface.is_oper_up() && !interface.is_link_local())
        .map(|interface| {
            let prefix = match &interface.addr {
                if_addrs::IfAddr::V4(v4) => v4.prefixlen,
                if_addrs::IfAddr::V6(v6) => v6.prefixlen,
            };
            Network { address: interface.ip(), prefix }
        })
        .collect();
    networks.sort_by_key(|network| network.address.is_ipv6());
    networks
}

fn reachable_addresses() -> Vec<IpAddr> {
    networks().into_iter().map(|network| network.address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_what_shares_its_prefix() {
        let network = Network { address: "192.168.10.110".parse().unwrap(), prefix: 20 };
        for (other, inside) in
            [("192.168.10.7", true), ("192.168.15.1", true), ("192.168.16.1", false), ("fd00::1", false)]
        {
            assert_eq!(network.contains(other.parse().unwrap()), inside, "{other}");
        }
    }
}

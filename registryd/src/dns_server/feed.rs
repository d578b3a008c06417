//! Keeps the zone in step with the registry, node by node.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use mesh_shared::NodeName;
use mesh_shared::registry::{Node, Status};
use tokio::sync::watch;
use tokio::time::sleep;

use super::zone::{Zone, ZoneNode};
use crate::resolver::Resolver;
use crate::state::{Inner, State};

/// How often registered host names are looked up; the resolver's cache answers until their TTL is over.
const REFRESH: Duration = Duration::from_secs(10);
/// Lookups under way at once.
const AT_ONCE: usize = 16;

/// Makes the zone say what the mesh is, from when the registry was read once. Runs until the daemon ends.
///
/// A node's addresses here are what it registered, not what `<node>.mesh` resolves to: this server may be the one
/// that the resolver asks, and its answer must not be the reason for its next answer. Only a node that registered
/// a mesh name has nothing else to go by.
pub async fn run(state: Arc<State>, resolver: Arc<Resolver>, zones: watch::Sender<Option<Zone>>) {
    let mut views = state.views();
    let mut hosts = Hosts::default();
    let mut followed = 0;
    let (mut wait, mut looked_for) = (Duration::ZERO, HashSet::new());
    loop {
        if views.borrow_and_update().have_view {
            zones.send_if_modified(|zone| {
                let zone = zone.get_or_insert_with(|| Zone::new(state.local().clone(), 0, []));
                let (revision, changed) = state.read(|inner, _| {
                    let names = inner.changes.since(followed).unwrap_or_else(|| everybody(inner, zone));
                    let set = |name: &NodeName| zone.set(name, hosts.zone_node(inner, name));
                    (
                        inner.changes.revision(),
                        names.iter().map(set).fold(followed == 0, |any, set| any | set),
                    )
                });
                followed = revision;
                changed
            });
        }
        if hosts.users.keys().any(|host| !looked_for.contains(host)) {
            wait = Duration::ZERO;
        }
        let names: Vec<String> = hosts.users.keys().cloned().collect();
        let lookups = async {
            sleep(wait).await;
            look_up(&resolver, &names).await
        };
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            found = lookups, if !names.is_empty() => {
                let moved = hosts.found(found);
                if !moved.is_empty() {
                    zones.send_if_modified(|zone| {
                        let Some(zone) = zone else { return false };
                        let mut set = |name: &NodeName| {
                            state.read(|inner, _| zone.set(name, hosts.zone_node(inner, name)))
                        };
                        moved.iter().fold(false, |any, name| any | set(name))
                    });
                }
                (wait, looked_for) = (REFRESH, names.into_iter().collect());
            }
        }
    }
}

/// All that are or may be in the mesh, and those that are in the zone still.
fn everybody(inner: &Inner, zone: &Zone) -> Vec<NodeName> {
    let known = inner.members.members().keys().chain(inner.candidates.keys());
    let all: BTreeSet<&NodeName> = known.chain(zone.names()).collect();
    all.into_iter().cloned().collect()
}

/// The host names that nodes registered and that are looked up here.
#[derive(Debug, Default)]
struct Hosts {
    /// Who registered which.
    users: HashMap<String, BTreeSet<NodeName>>,
    of: HashMap<NodeName, String>,
    addresses: HashMap<String, Vec<IpAddr>>,
}

impl Hosts {
    /// What is to be said of a node; notes which host name it has.
    fn zone_node(&mut self, inner: &Inner, name: &NodeName) -> Option<ZoneNode> {
        let member = inner.members.members().get(name);
        self.note(name, member.and_then(|member| named_host(&member.node)));
        let Some(member) = member else {
            // One that is only spoken of.
            return inner.candidates.contains_key(name).then(|| ZoneNode::unknown(name.clone()));
        };
        let node = &member.node;
        let addresses = match node.host.parse::<IpAddr>() {
            Ok(address) => vec![address.to_canonical()],
            Err(_) => match self.of.get(name) {
                Some(host) => self.addresses.get(host).cloned().unwrap_or_default(),
                None => inner.addresses_of(name, &node.host),
            },
        };
        Some(ZoneNode {
            name: name.clone(),
            known: true,
            addresses: (!addresses.is_empty()).then_some(addresses),
            port: node.port,
            agents: node.agents.clone(),
            healthy: member.status == Status::Online,
        })
    }

    fn note(&mut self, name: &NodeName, host: Option<String>) {
        if self.of.get(name) == host.as_ref() {
            return;
        }
        if let Some(before) = self.of.remove(name)
            && let Some(users) = self.users.get_mut(&before)
        {
            users.remove(name);
            if users.is_empty() {
                self.users.remove(&before);
                self.addresses.remove(&before);
            }
        }
        if let Some(host) = host {
            self.users.entry(host.clone()).or_default().insert(name.clone());
            self.of.insert(name.clone(), host);
        }
    }

    /// Takes in addresses; a host that cannot be looked up now keeps its last ones. Returns the nodes of the others.
    fn found(&mut self, found: Vec<(String, Vec<IpAddr>)>) -> Vec<NodeName> {
        let mut moved = Vec::new();
        for (host, addresses) in found {
            let Some(users) = self.users.get(&host) else { continue };
            if self.addresses.get(&host) != Some(&addresses) {
                moved.extend(users.iter().cloned());
                self.addresses.insert(host, addresses);
            }
        }
        moved
    }
}

/// The host name that a node registered, if it is one to look up.
fn named_host(node: &Node) -> Option<String> {
    let other = node.host.parse::<IpAddr>().is_err() && NodeName::from_mesh_host(&node.host).is_none();
    other.then(|| node.host.clone())
}

/// Those that have addresses.
async fn look_up(resolver: &Arc<Resolver>, hosts: &[String]) -> Vec<(String, Vec<IpAddr>)> {
    let look_up = |host: String| {
        let resolver = resolver.clone();
        async move {
            let found = resolver.host_addresses(&host).await;
            found.ok().map(|addresses| (host, addresses))
        }
    };
    let lookups = stream::iter(hosts.to_vec()).map(look_up).buffer_unordered(AT_ONCE);
    lookups.filter_map(std::future::ready).collect().await
}

#[cfg(test)]
mod tests {
    use mesh_shared::config::{Config, Dns};
    use mesh_shared::registry::Registry;

    use super::*;
    use crate::backend::{Ledger, Look, Observation};
    use crate::state::{Resolved, own_claims};

    fn registry(last_seen: u64, nodes: &[(&str, &str)]) -> Observation {
        let mut registry = Registry::empty();
        for (name, host) in nodes {
            let node =
                Node { id: (*name).into(), name: (*name).into(), host: (*host).into(), ..Node::default() };
            let node = Node { port: 3000, status: Status::Online, last_seen, ..node };
            registry.nodes.insert(node.id.clone(), node.into());
        }
        Observation::Read { registry, look: Look { writes_pass: true, pause: Duration::ZERO } }
    }

    #[tokio::test]
    async fn what_a_node_registered_counts_more_than_what_its_name_resolved_to() {
        let yaml = "mesh: {enabled: true, node_name: ct110, tls: true, advertise_host: 10.0.0.110}";
        let config = Config::parse(yaml).unwrap();
        let own = own_claims(&config);
        let state = Arc::new(State::new(Arc::new(config), own));
        let (zones, mut zone) = watch::channel(None);
        let running = tokio::spawn(run(state.clone(), Arc::new(Resolver::new(&Dns::default())), zones));
        assert!(zone.borrow_and_update().is_none());
        let is = |zone: &Option<Zone>, name: &str, address: Option<&str>| {
            let zone = zone.as_ref().expect("a zone");
            let addresses = zone.node(&name.parse().unwrap()).and_then(|node| node.addresses.clone());
            addresses.map(|all| all[0]) == address.map(|address| address.parse().unwrap())
        };

        state.with(|inner, _| {
            for (name, host, address) in
                [("ct111", "10.0.0.111", "10.9.9.9"), ("ct112", "ct112.mesh", "10.0.0.112")]
            {
                let addresses = vec![address.parse().unwrap()];
                let resolved = Resolved { host: host.into(), addresses, problem: None };
                inner.addresses.insert(name.parse().unwrap(), resolved);
            }
        });
        let all = [("ct111", "10.0.0.111"), ("ct112", "ct112.mesh"), ("ct113", "localhost")];
        state.observed(registry(1, &all));
        let limit = Duration::from_secs(10);
        let settled = zone.wait_for(|zone| {
            zone.is_some()
                && is(zone, "ct110", Some("10.0.0.110"))
                && is(zone, "ct111", Some("10.0.0.111"))
                && is(zone, "ct112", Some("10.0.0.112"))
                && (is(zone, "ct113", Some("127.0.0.1")) || is(zone, "ct113", Some("::1")))
        });
        tokio::time::timeout(limit, settled).await.unwrap().unwrap();

        // Then only what changes.
        state.observed(registry(2, &[("ct111", "10.0.0.211"), ("ct112", "ct112.mesh")]));
        state.with(|inner, _| inner.members.forget(&"ct113".parse().unwrap()));
        let changed = zone.wait_for(|zone| {
            is(zone, "ct111", Some("10.0.0.211"))
                && is(zone, "ct112", Some("10.0.0.112"))
                && zone.as_ref().is_some_and(|zone| zone.names().count() == 3)
        });
        tokio::time::timeout(limit, changed).await.unwrap().unwrap();
        running.abort();
    }
}

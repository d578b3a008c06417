//! Keeps the zone in step with the registry.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_shared::NodeName;
use mesh_shared::local_api::NodeView;
use mesh_shared::registry::Status;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::zone::{Zone, ZoneNode};
use crate::resolver::Resolver;
use crate::view::View;

/// How often registered host names are looked up; the resolver's cache answers until their TTL is over.
const REFRESH: Duration = Duration::from_secs(10);

/// Publishes a zone for each view that differs; none until the registry was read once. Runs until the daemon ends.
///
/// A node's addresses here are what it registered, not what `<node>.mesh` resolves to: this server may be the one
/// that the resolver asks, and its answer must not be the reason for its next answer. Only a node that registered
/// a mesh name has nothing else to go by.
pub async fn run(
    mut views: watch::Receiver<Arc<View>>,
    resolver: Arc<Resolver>,
    zones: watch::Sender<Option<Arc<Zone>>>,
) {
    let (mut serial, mut published): (u32, Option<Vec<ZoneNode>>) = (0, None);
    let mut looked_up: HashMap<String, Vec<IpAddr>> = HashMap::new();
    let (mut wait, mut asked) = (Duration::ZERO, BTreeSet::new());
    loop {
        let view = views.borrow_and_update().clone();
        let hosts: BTreeSet<String> = view.nodes.iter().filter_map(named_host).collect();
        looked_up.retain(|host, _| hosts.contains(host));
        if view.have_view {
            let wanted = view.wanted.iter().cloned().map(ZoneNode::unknown);
            let nodes: Vec<ZoneNode> =
                view.nodes.iter().filter_map(|node| zone_node(node, &looked_up)).chain(wanted).collect();
            if published.as_ref() != Some(&nodes) {
                serial = serial.wrapping_add(1);
                zones.send_replace(Some(Arc::new(Zone::new(view.local.clone(), serial, nodes.clone()))));
                published = Some(nodes);
            }
        }
        if !hosts.is_subset(&asked) {
            wait = Duration::ZERO;
        }
        let looking = !hosts.is_empty();
        let lookups = async {
            sleep(wait).await;
            look_up(&resolver, hosts.clone()).await
        };
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            found = lookups, if looking => {
                // A host that cannot be looked up now keeps its last addresses.
                looked_up.extend(found);
                (wait, asked) = (REFRESH, hosts);
            }
        }
    }
}

/// The host name that a node registered, if it is one to look up.
fn named_host(view: &NodeView) -> Option<String> {
    let host = &view.node.host;
    let other = host.parse::<IpAddr>().is_err() && NodeName::from_mesh_host(host).is_none();
    other.then(|| host.clone())
}

fn zone_node(view: &NodeView, looked_up: &HashMap<String, Vec<IpAddr>>) -> Option<ZoneNode> {
    let addresses = match view.node.host.parse::<IpAddr>() {
        Ok(address) => vec![address.to_canonical()],
        Err(_) => match named_host(view) {
            Some(host) => looked_up.get(&host).cloned().unwrap_or_default(),
            None => view.addresses.clone(),
        },
    };
    Some(ZoneNode {
        name: view.node.node_name()?,
        known: true,
        addresses: (!addresses.is_empty()).then_some(addresses),
        port: view.node.port,
        agents: view.node.agents.clone(),
        healthy: view.node.status == Status::Online,
    })
}

/// Those that have addresses, all looked up at the same time.
async fn look_up(resolver: &Arc<Resolver>, hosts: BTreeSet<String>) -> HashMap<String, Vec<IpAddr>> {
    let mut lookups = JoinSet::new();
    for host in hosts {
        let resolver = resolver.clone();
        lookups.spawn(async move {
            let found = resolver.host_addresses(&host).await;
            (host, found)
        });
    }
    let mut all = HashMap::new();
    while let Some(done) = lookups.join_next().await {
        if let Ok((host, Ok(addresses))) = done {
            all.insert(host, addresses);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use mesh_shared::config::Dns;
    use mesh_shared::registry::Node;

    use super::*;

    fn view(name: &str, host: &str, resolved: &str) -> NodeView {
        let node = Node { name: name.into(), host: host.into(), port: 3000, ..Node::default() };
        let addresses = resolved.parse().into_iter().collect();
        NodeView { addresses, ..NodeView::of(node) }
    }

    #[tokio::test]
    async fn what_a_node_registered_counts_more_than_what_its_name_resolved_to() {
        let local: NodeName = "ct110".parse().unwrap();
        let (publish, views) = watch::channel(Arc::new(View::empty(local.clone(), 0)));
        let (zones, mut zone) = watch::channel(None);
        let running = tokio::spawn(run(views, Arc::new(Resolver::new(&Dns::default())), zones));
        assert!(zone.borrow_and_update().is_none());

        let nodes = vec![
            view("ct110", "10.0.0.110", ""),
            view("ct111", "10.0.0.111", "10.9.9.9"),
            view("ct112", "ct112.mesh", "10.0.0.112"),
            view("ct113", "localhost", "10.9.9.9"),
        ];
        publish.send_replace(Arc::new(View {
            revision: 1,
            have_view: true,
            local,
            wanted: Vec::new(),
            nodes,
        }));
        let settled = zone.wait_for(|zone| {
            zone.as_ref().is_some_and(|zone| {
                let of =
                    |name: &str| zone.node(&name.parse().unwrap()).and_then(|node| node.addresses.clone());
                let is = |name: &str, address: &str| {
                    of(name).is_some_and(|all| all[0] == address.parse::<IpAddr>().unwrap())
                };
                is("ct110", "10.0.0.110")
                    && is("ct111", "10.0.0.111")
                    && is("ct112", "10.0.0.112")
                    && of("ct113").is_some_and(|all| all.iter().all(IpAddr::is_loopback))
            })
        });
        tokio::time::timeout(Duration::from_secs(10), settled).await.unwrap().unwrap();
        running.abort();
    }
}

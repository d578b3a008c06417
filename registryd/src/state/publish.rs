//! From the state to the snapshots that others read.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_shared::NodeName;
use mesh_shared::address::nobodys;
use mesh_shared::config::Discovery;
use mesh_shared::event::{Event, Kind};
use mesh_shared::local_api::{NodeView, Roster, RosterNode};
use mesh_shared::registry::Status;

use super::problems::About;
use super::{Inner, State, Wanted};
use crate::membership::{Change, Member, Now};
use crate::view::View;

impl State {
    pub(super) fn publish(&self, inner: &mut Inner, now: Now) {
        let status = inner.own_status(now);
        if inner.members.set_own_status(status) {
            self.write_wanted.notify_one();
        }
        let judgement = inner.members.judge();
        inner.tell_of_duplicates(now);
        if judgement.changed {
            inner.drop_unknown_names();
        }
        for change in judgement.changes {
            self.announce(inner, change, now);
        }
        if !judgement.changed && !inner.touched {
            return;
        }
        inner.touched = false;
        let revision = self.view.borrow().revision + 1;
        let members = inner.members.members();
        let seeded = match &self.config.mesh.discovery {
            Some(Discovery::Seed(seed)) => seed.node == *self.local() || members.len() > 1,
            Some(Discovery::Static | Discovery::Mdns) | None => true,
        };
        let wanted = inner.candidates.keys().filter(|name| !members.contains_key(*name));
        self.view.send_replace(Arc::new(View {
            revision,
            have_view: inner.has_view() && seeded,
            local: self.local().clone(),
            wanted: wanted.cloned().collect(),
            nodes: inner.node_views(self.local(), now),
        }));
        let (nodes, partial) = (inner.roster_nodes(), !inner.has_view());
        self.roster.send_if_modified(|roster| {
            let news = roster.revision == 0 || roster.nodes != nodes || roster.partial != partial;
            if news {
                *roster = Arc::new(Roster { revision: roster.revision + 1, nodes, partial });
            }
            news
        });
    }

    fn announce(&self, inner: &Inner, change: Change, now: Now) {
        let node = inner.members.members().get(&change.name).map(|member| &member.node);
        let (name, status) = (&change.name, change.status.as_str());
        match change.kind {
            Kind::Removed => {
                tracing::info!(target: "Registry", "node {name} is no longer in the registry node={name}")
            }
            Kind::Stale => {
                tracing::warn!(target: "Registry", "node {name} fell silent and counts as offline node={name}");
            }
            kind => {
                tracing::info!(target: "Registry", "node {name} {} node={name} status={status}", kind.as_str())
            }
        }
        self.events.push(Event {
            id: 0,
            event: change.kind,
            node: change.name.clone(),
            status: change.status,
            agents: node.map(|node| node.agents.clone()).unwrap_or_default(),
            at: now.epoch_ms,
        });
    }
}

impl Inner {
    fn tell_of_duplicates(&mut self, now: Now) {
        let duplicates = self.members.duplicates(now);
        for duplicate in &duplicates {
            let (name, [one, other]) = (&duplicate.name, &duplicate.endpoints);
            let sentence = format!(
                "two hosts call themselves {name}, one at {one} and one at {other}, and overwrite each other's entry; \
                 give one of them a mesh.node_name and a certificate of its own"
            );
            self.problems.state(About::Duplicate(name.clone()), sentence);
        }
        self.problems.solve_unless(|about| match about {
            About::Duplicate(name) => duplicates.iter().any(|duplicate| duplicate.name == *name),
            _ => true,
        });
    }

    /// Addresses of names that are neither members nor asked for are not kept.
    fn drop_unknown_names(&mut self) {
        let (members, candidates) = (self.members.members(), &self.candidates);
        self.addresses.retain(|name, _| members.contains_key(name) || candidates.contains_key(name));
    }

    /// All members as shown to people and programs.
    pub fn node_views(&self, local: &NodeName, now: Now) -> Vec<NodeView> {
        let view = |(name, member): (&NodeName, &Member)| {
            let own = name == local;
            let age = now.instant.saturating_duration_since(member.moved_at).as_millis() as u64;
            let own_age =
                self.last_heartbeat.map(|at| now.instant.saturating_duration_since(at).as_millis() as u64);
            let leased = self.members.lease_age(name, now).map(|age| age.as_millis() as u64);
            NodeView {
                age_ms: if own { own_age } else { leased.or(member.moved.then_some(age)) },
                skew_ms: if own { Some(0) } else { member.skew_ms() },
                addresses: self.addresses_of(name, &member.node.host),
                local: own,
                ..NodeView::of(self.members.shown(name, member, now))
            }
        };
        self.members.members().iter().map(view).collect()
    }

    /// All nodes as the sidecar routes to them: the members, and candidates that may have to be asked.
    fn roster_nodes(&self) -> Vec<RosterNode> {
        let members = self.members.members();
        let mut rows: Vec<RosterNode> = members
            .iter()
            .map(|(name, member)| {
                let mut row = self.row(name, &member.node.host, member.node.port, member.status);
                row.agents = member.node.agents.clone();
                if let Some(wanted) = self.candidates.get(name).filter(|wanted| wanted.asking) {
                    self.let_through(&mut row, wanted);
                }
                row
            })
            .collect();
        for (name, wanted) in self.candidates.iter().filter(|(name, _)| !members.contains_key(*name)) {
            let claim = &wanted.candidate;
            let mut row = self.row(name, &claim.host, claim.port, Status::Online);
            if row.addresses.is_empty() {
                let usable = |address: &&IpAddr| nobodys(**address, self.is_on_loopback()).is_none();
                row.addresses = claim.addresses.iter().filter(usable).copied().collect();
            }
            rows.push(row);
        }
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows
    }

    /// A node that counts as offline can be asked, and at the place that it is said to be. It gets no tasks
    /// meanwhile: an agent's request would wait for as long as the question does.
    fn let_through(&self, row: &mut RosterNode, wanted: &Wanted) {
        if row.status == Status::Offline {
            row.status = Status::Updating;
        }
        if wanted.by_claim {
            let claim = &wanted.candidate;
            let literal = self.literal(&claim.host, wanted.configured).into_iter();
            let usable =
                |address: &IpAddr| wanted.configured || nobodys(*address, self.is_on_loopback()).is_none();
            let announced = claim.addresses.iter().copied().filter(usable);
            let claimed: Vec<IpAddr> = literal.chain(announced).collect();
            if !claimed.is_empty() {
                row.addresses = claimed;
            }
            row.port = claim.port;
        }
    }

    fn row(&self, name: &NodeName, host: &str, port: u16, status: Status) -> RosterNode {
        let mut addresses = self.addresses_of(name, host);
        add_new(&mut addresses, self.announced.get(name).into_iter().flatten().copied());
        let problem = self.addresses.get(name).and_then(|resolved| resolved.problem.clone());
        let unresolved = addresses
            .is_empty()
            .then(|| problem.unwrap_or_else(|| format!("{name}.mesh is still being looked up")));
        RosterNode { name: name.clone(), status, agents: Vec::new(), addresses, port, unresolved }
    }

    /// The address that a host gives literally, if a node can be there: what a node says of itself must not make
    /// others connect to whatever it likes. What the configuration says is the operator's to answer for.
    fn literal(&self, host: &str, configured: bool) -> Option<IpAddr> {
        let address: IpAddr = host.parse().ok()?;
        (configured || nobodys(address, self.is_on_loopback()).is_none()).then_some(address)
    }

    /// What the name resolved to. While a node's host is being looked up, the address that it gives comes first.
    fn addresses_of(&self, name: &NodeName, host: &str) -> Vec<IpAddr> {
        let resolved = self.addresses.get(name);
        let current = resolved.filter(|resolved| resolved.host == host && !resolved.addresses.is_empty());
        if let Some(resolved) = current {
            return resolved.addresses.clone();
        }
        let configured = self.candidates.get(name).is_some_and(|wanted| wanted.configured);
        let mut addresses: Vec<IpAddr> = self.literal(host, configured).into_iter().collect();
        let older = resolved.into_iter().flat_map(|resolved| resolved.addresses.iter().copied());
        add_new(&mut addresses, older);
        addresses
    }
}

fn add_new(addresses: &mut Vec<IpAddr>, more: impl Iterator<Item = IpAddr>) {
    for address in more {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_shared::config::Config;
    use mesh_shared::registry::{Node, Registry};

    use super::*;
    use crate::backend::{Ledger, Look, Observation};
    use crate::state::{Resolved, own_claims};

    /// ct110, which has heard of ct111 at this host.
    fn state(host: &str) -> State {
        let config = Config::parse("mesh: {enabled: true, node_name: ct110, tls: true}").unwrap();
        let own = own_claims(&config);
        let state = State::new(Arc::new(config), own);
        let node = Node { name: "ct111".into(), host: host.into(), port: 3000, ..Node::default() };
        state.with(|inner, now| inner.members.hear_itself(&ct111(), node, now)).unwrap();
        state
    }

    fn ct111() -> NodeName {
        "ct111".parse().unwrap()
    }

    fn dialled(state: &State) -> Vec<String> {
        state.with(|inner, _| inner.touch());
        let roster = state.rosters().borrow().clone();
        let row = roster.nodes.iter().find(|row| row.name == ct111()).unwrap();
        row.addresses.iter().map(ToString::to_string).collect()
    }

    fn resolve(state: &State, host: &str, address: &str) {
        let resolved =
            Resolved { host: host.into(), addresses: vec![address.parse().unwrap()], problem: None };
        state.with(|inner, _| inner.addresses.insert(ct111(), resolved));
    }

    #[test]
    fn announced_addresses_are_dialled_last() {
        let state = state("10.0.0.111");
        let announced = ["10.0.0.111", "192.168.1.9"].map(|address| address.parse().unwrap());
        state.with(|inner, _| inner.announced.insert(ct111(), announced.into()));
        assert_eq!(dialled(&state), ["10.0.0.111", "192.168.1.9"]);
        resolve(&state, "10.0.0.111", "10.0.0.5");
        assert_eq!(dialled(&state), ["10.0.0.5", "10.0.0.111", "192.168.1.9"]);
    }

    #[test]
    fn the_addresses_of_a_host_that_changed_come_after_the_new_one() {
        let state = state("10.0.0.112");
        resolve(&state, "10.0.0.111", "10.0.0.111");
        assert_eq!(dialled(&state), ["10.0.0.112", "10.0.0.111"]);
        resolve(&state, "10.0.0.112", "10.0.0.112");
        assert_eq!(dialled(&state), ["10.0.0.112"]);
    }

    #[test]
    fn a_roster_is_partial_until_the_registry_was_seen() {
        let state = state("10.0.0.111");
        assert!(state.rosters().borrow().partial);
        let look = Look { writes_pass: true, pause: Duration::ZERO };
        state.observed(Observation::Read { registry: Registry::empty(), look });
        assert!(!state.rosters().borrow().partial);
    }
}

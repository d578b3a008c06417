//! From the state to the snapshots that others read.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh_shared::NodeName;
use mesh_shared::address::nobodys;
use mesh_shared::config::Discovery;
use mesh_shared::event::{Event, Kind};
use mesh_shared::local_api::{NodeView, RosterNode};
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
        for change in judgement.changes {
            self.announce(inner, change, now);
        }
        let mut names: BTreeSet<NodeName> = std::mem::take(&mut inner.touched);
        names.extend(judgement.changed);
        if std::mem::take(&mut inner.all_touched) {
            names.extend(inner.members.members().keys().chain(inner.candidates.keys()).cloned());
            names.extend(inner.roster.names().cloned());
        }
        if names.is_empty() {
            return;
        }
        inner.publish_rows(&names);
        let seeded = match &self.config.mesh.discovery {
            Some(Discovery::Seed(seed)) => seed.node == *self.local() || inner.members.members().len() > 1,
            Some(Discovery::Static | Discovery::Mdns) | None => true,
        };
        let have_view = inner.has_view() && seeded;
        self.view.send_replace(View { revision: inner.changes.revision(), have_view });
        let revision = inner.roster.revision();
        self.roster.send_if_modified(|published| std::mem::replace(published, revision) != revision);
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

    fn publish_rows(&mut self, names: &BTreeSet<NodeName>) {
        for name in names {
            let row = self.roster_node(name);
            if row.is_none() {
                // Of names that are neither members nor asked for nothing is kept.
                self.addresses.remove(name);
            }
            self.roster.set(name, row);
            self.changes.note(name);
        }
        self.roster.set_partial(!self.has_view());
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

    /// A node as the sidecar routes to it: a member, or a candidate that may have to be asked.
    fn roster_node(&self, name: &NodeName) -> Option<RosterNode> {
        let wanted = self.candidates.get(name);
        if let Some(member) = self.members.members().get(name) {
            let mut row = self.row(name, &member.node.host, member.node.port, member.status);
            row.agents.clone_from(&member.node.agents);
            if let Some(wanted) = wanted.filter(|wanted| wanted.asking) {
                self.let_through(&mut row, wanted);
            }
            return Some(row);
        }
        let claim = &wanted?.candidate;
        let mut row = self.row(name, &claim.host, claim.port, Status::Online);
        if row.addresses.is_empty() {
            let usable = |address: &&IpAddr| nobodys(**address, self.is_on_loopback()).is_none();
            row.addresses = claim.addresses.iter().filter(usable).copied().collect();
        }
        Some(row)
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
    pub fn addresses_of(&self, name: &NodeName, host: &str) -> Vec<IpAddr> {
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
    use std::sync::Arc;
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
        state.with(|inner, _| inner.touch(&ct111()));
        let roster = state.roster_since(None);
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
        assert!(state.roster_since(None).partial);
        let look = Look { writes_pass: true, pause: Duration::ZERO };
        state.observed(Observation::Read { registry: Registry::empty(), look });
        assert!(!state.roster_since(None).partial);
    }
}

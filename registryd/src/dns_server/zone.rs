//! What the DNS server knows, and what it says about a name.
//!
//! | Name | Records |
//! |---|---|
//! | `mesh.` | SOA, NS |
//! | `<node>.mesh.` | A, AAAA, SRV (inbound port), TXT (`agent=<name>`, a string each) |
//! | `_mesh._tcp.<node>.mesh.` | SRV |
//! | `<agent>.agent.mesh.` | A, AAAA, SRV of each node that is online and hosts the agent |
//! | `_mesh._tcp.<agent>.agent.mesh.` | SRV |
//! | `….in-addr.arpa.`, `….ip6.arpa.` of a node's address | PTR |
//!
//! Anything else below `mesh.` does not exist (NXDOMAIN); anything outside is REFUSED, so that a resolver which
//! asks several servers in parallel continues with the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use mesh_shared::NodeName;
use mesh_shared::name::MESH_ZONE;

/// How long others may keep a record, in seconds: short, the registry changes under them.
pub const TTL: u32 = 10;
/// How long others may keep "does not exist", in seconds: shorter, a node may be about to join.
const NEGATIVE_TTL: u32 = 5;
/// The label below the zone under which agents are found.
const AGENTS: &str = "agent";

/// A node as the DNS server shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneNode {
    /// Its name.
    pub name: NodeName,
    /// Whether it has answered for itself. Of one that has not, nothing is said, neither that it exists.
    pub known: bool,
    /// Where it can be reached; `None` while that is being found out.
    pub addresses: Option<Vec<IpAddr>>,
    /// Its inbound port; 0 where the registry has none.
    pub port: u16,
    /// The agents there, as registered.
    pub agents: Vec<String>,
    /// Whether it takes tasks now.
    pub healthy: bool,
}

impl ZoneNode {
    /// A node that is only spoken of.
    pub fn unknown(name: NodeName) -> Self {
        Self { name, known: false, addresses: None, port: 0, agents: Vec::new(), healthy: false }
    }
}

/// Everything the DNS server can say.
#[derive(Debug)]
pub struct Zone {
    serial: u32,
    own: NodeName,
    nodes: BTreeMap<NodeName, ZoneNode>,
    reverse: HashMap<Name, BTreeSet<NodeName>>,
    /// The nodes of each agent, by its name in lower case.
    agents: HashMap<String, BTreeSet<NodeName>>,
}

impl Zone {
    /// The zone as node `own` sees it. Of two nodes with one name the first counts; `serial` rises with changes.
    pub fn new(own: NodeName, serial: u32, nodes: impl IntoIterator<Item = ZoneNode>) -> Self {
        let mut zone =
            Self { serial, own, nodes: BTreeMap::new(), reverse: HashMap::new(), agents: HashMap::new() };
        for node in nodes {
            let name = node.name.clone();
            if !zone.nodes.contains_key(&name) {
                zone.set(&name, Some(node));
            }
        }
        zone.serial = serial;
        zone
    }

    /// Makes this what is said of a node, or takes it out. Returns whether that is news; then the serial rises.
    pub fn set(&mut self, name: &NodeName, node: Option<ZoneNode>) -> bool {
        if self.nodes.get(name) == node.as_ref() {
            return false;
        }
        self.serial = self.serial.wrapping_add(1);
        if let Some(before) = self.nodes.remove(name) {
            for address in before.addresses.iter().flatten() {
                remove(&mut self.reverse, &arpa_name(*address), name);
            }
            for agent in &before.agents {
                remove(&mut self.agents, &agent.to_ascii_lowercase(), name);
            }
        }
        if let Some(node) = node {
            for address in node.addresses.iter().flatten() {
                self.reverse.entry(arpa_name(*address)).or_default().insert(name.clone());
            }
            for agent in &node.agents {
                self.agents.entry(agent.to_ascii_lowercase()).or_default().insert(name.clone());
            }
            self.nodes.insert(name.clone(), node);
        }
        true
    }

    /// The names of all nodes.
    pub fn names(&self) -> impl Iterator<Item = &NodeName> {
        self.nodes.keys()
    }

    /// The node of this name, if it is in the zone.
    pub fn node(&self, name: &NodeName) -> Option<&ZoneNode> {
        self.nodes.get(name)
    }

    /// The nodes that take tasks of an agent, whose name is given as it is asked for; `None`: nobody hosts it.
    fn hosts(&self, labels: &[&[u8]]) -> Option<Vec<&ZoneNode>> {
        let name =
            labels.iter().map(|label| std::str::from_utf8(label)).collect::<Result<Vec<_>, _>>().ok()?;
        let nodes = self.agents.get(&name.join(".").to_ascii_lowercase())?;
        Some(nodes.iter().filter_map(|node| self.nodes.get(node)).filter(|node| node.healthy).collect())
    }

    /// What there is to say about a name, as far as it is asked for.
    ///
    /// # Errors
    /// The code of an answer that says nothing: REFUSED outside the zone, NXDOMAIN, and SERVFAIL for what is being found out.
    pub fn say(&self, name: &Name, kind: RecordType) -> Result<Said, ResponseCode> {
        let mut said = Said::default();
        match owner(self, name) {
            Owner::Outside => return Err(ResponseCode::Refused),
            Owner::Unknown => return Err(ResponseCode::ServFail),
            Owner::Missing => return Err(ResponseCode::NXDomain),
            Owner::Empty => {}
            Owner::Reverse(nodes) if asks(kind, RecordType::PTR) => {
                said.answers.extend(nodes.iter().map(|node| RData::PTR(PTR(node_host(node)))));
            }
            Owner::Reverse(_) => return Err(ResponseCode::Refused),
            Owner::Apex => {
                if asks(kind, RecordType::SOA) {
                    said.answers.push(self.soa().data);
                }
                if asks(kind, RecordType::NS) {
                    said.answers.push(RData::NS(NS(node_host(&self.own))));
                    said.additionals = self.nodes.get(&self.own).map(address_records).unwrap_or_default();
                }
            }
            Owner::Node(node) => {
                said.addresses(&[node], kind)?;
                said.services(&[node], kind);
                said.answers.extend(agents(node).filter(|_| asks(kind, RecordType::TXT)));
            }
            Owner::Agent(nodes) => {
                said.addresses(&nodes, kind)?;
                said.services(&nodes, kind);
            }
            Owner::Service(nodes) => said.services(&nodes, kind),
        }
        Ok(said)
    }

    /// Whether a name is outside the zone.
    pub fn is_outside(&self, name: &Name) -> bool {
        matches!(owner(self, name), Owner::Outside)
    }

    /// The record that goes with an answer of the zone that has no other.
    pub fn soa(&self) -> Record {
        let soa = SOA::new(
            node_host(&self.own),
            name_of(&["hostmaster", MESH_ZONE]),
            self.serial,
            60,
            10,
            3600,
            NEGATIVE_TTL,
        );
        Record::from_rdata(name_of(&[MESH_ZONE]), NEGATIVE_TTL, RData::SOA(soa))
    }
}

fn remove<K: Eq + std::hash::Hash>(index: &mut HashMap<K, BTreeSet<NodeName>>, key: &K, name: &NodeName) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}

/// What a name in a question stands for.
enum Owner<'z> {
    Apex,
    Node(&'z ZoneNode),
    /// `_tcp.<node>.mesh`: there only because something is below it.
    Empty,
    /// An agent, with the nodes that take its tasks.
    Agent(Vec<&'z ZoneNode>),
    /// The service of a node or an agent, with the nodes where it is.
    Service(Vec<&'z ZoneNode>),
    Reverse(&'z BTreeSet<NodeName>),
    /// A node that has not answered for itself yet, and what is below it.
    Unknown,
    Missing,
    Outside,
}

fn owner<'z>(zone: &'z Zone, name: &Name) -> Owner<'z> {
    if let Some(nodes) = zone.reverse.get(name) {
        return Owner::Reverse(nodes);
    }
    let labels: Vec<&[u8]> = name.iter().collect();
    let is = |label: &[u8], text: &str| label.eq_ignore_ascii_case(text.as_bytes());
    let node = |label: &[u8]| {
        let name: NodeName = std::str::from_utf8(label).ok()?.parse().ok()?;
        zone.nodes.get(&name)
    };
    if let [.., host, top] = labels.as_slice()
        && is(top, MESH_ZONE)
        && node(host).is_some_and(|node| !node.known)
    {
        return Owner::Unknown;
    }
    match labels.as_slice() {
        [.., top] if !is(top, MESH_ZONE) => Owner::Outside,
        [] => Owner::Outside,
        [_] => Owner::Apex,
        [host, _] if is(host, AGENTS) && node(host).is_none() && !zone.agents.is_empty() => Owner::Empty,
        [host, _] => node(host).map_or(Owner::Missing, Owner::Node),
        [service, tcp, agent @ .., below, _]
            if is(tcp, "_tcp") && is(service, "_mesh") && is(below, AGENTS) =>
        {
            match (agent, node(below)) {
                ([], Some(node)) => Owner::Service(vec![node]),
                _ => zone.hosts(agent).map_or(Owner::Missing, Owner::Service),
            }
        }
        [tcp, agent @ .., below, _] if is(tcp, "_tcp") && is(below, AGENTS) && !agent.is_empty() => {
            zone.hosts(agent).map_or(Owner::Missing, |_| Owner::Empty)
        }
        [agent @ .., below, _] if is(below, AGENTS) && zone.hosts(agent).is_some() => {
            zone.hosts(agent).map_or(Owner::Missing, Owner::Agent)
        }
        [tcp, host, _] if is(tcp, "_tcp") => node(host).map_or(Owner::Missing, |_| Owner::Empty),
        [service, tcp, host, _] if is(tcp, "_tcp") && is(service, "_mesh") => {
            node(host).map_or(Owner::Missing, |node| Owner::Service(vec![node]))
        }
        _ => Owner::Missing,
    }
}

/// What there is to say about a name.
#[derive(Debug, Default)]
pub struct Said {
    /// Of the name itself.
    pub answers: Vec<RData>,
    /// What helps whoever asked to continue.
    pub additionals: Vec<Record>,
}

impl Said {
    /// # Errors
    /// SERVFAIL while no node's addresses are known.
    fn addresses(&mut self, nodes: &[&ZoneNode], kind: RecordType) -> Result<(), ResponseCode> {
        if !asks(kind, RecordType::A) && !asks(kind, RecordType::AAAA) {
            return Ok(());
        }
        if !nodes.is_empty() && nodes.iter().all(|node| node.addresses.is_none()) {
            return Err(ResponseCode::ServFail);
        }
        for address in nodes.iter().flat_map(|node| node.addresses.iter().flatten()) {
            let data = RData::from(*address);
            if asks(kind, data.record_type()) && !self.answers.contains(&data) {
                self.answers.push(data);
            }
        }
        Ok(())
    }

    fn services(&mut self, nodes: &[&ZoneNode], kind: RecordType) {
        if !asks(kind, RecordType::SRV) {
            return;
        }
        for node in nodes.iter().filter(|node| node.port > 0) {
            self.answers.push(RData::SRV(SRV::new(0, 0, node.port, node_host(&node.name))));
            self.additionals.extend(address_records(node));
        }
    }
}

fn asks(kind: RecordType, record: RecordType) -> bool {
    kind == record || kind == RecordType::ANY
}

/// A string is at most 255 bytes long (RFC 1035, 3.3); a longer name is left out, not cut into another one.
fn agents(node: &ZoneNode) -> Option<RData> {
    let strings: Vec<String> =
        node.agents.iter().map(|agent| format!("agent={agent}")).filter(|text| text.len() <= 255).collect();
    (!strings.is_empty()).then(|| RData::TXT(TXT::new(strings)))
}

fn address_records(node: &ZoneNode) -> Vec<Record> {
    let addresses = node.addresses.iter().flatten();
    addresses.map(|address| Record::from_rdata(node_host(&node.name), TTL, RData::from(*address))).collect()
}

fn node_host(node: &NodeName) -> Name {
    name_of(&[node.as_str(), MESH_ZONE])
}

/// A fully qualified name. The labels here are valid by their types; a bad one would give the root.
fn name_of(labels: &[&str]) -> Name {
    let mut name = Name::from_labels(labels.iter().map(|label| label.as_bytes())).unwrap_or_default();
    name.set_fqdn(true);
    name
}

pub(super) fn arpa_name(address: IpAddr) -> Name {
    let mut name = Name::from(address);
    name.set_fqdn(true);
    name
}

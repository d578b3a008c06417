//! What the DNS server knows and how it answers: from bytes to bytes, no socket.
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
//! asks several servers in parallel goes on with the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use mesh_shared::NodeName;
use mesh_shared::name::MESH_ZONE;

/// How long others may keep a record, in seconds: short, the registry changes under them.
const TTL: u32 = 10;
/// How long others may keep "does not exist", in seconds: shorter, a node may be about to join.
const NEGATIVE_TTL: u32 = 5;
/// The largest UDP answer, in bytes: fits an unfragmented IPv6 packet (DNS flag day 2020).
const UDP_PAYLOAD_MAX: u16 = 1232;
/// The largest UDP answer to a client without EDNS, in bytes (RFC 1035, 4.2.1).
const UDP_PAYLOAD_PLAIN: u16 = 512;

/// The label below the zone under which agents are found.
const AGENTS: &str = "agent";

/// How a request came in; decides how large the answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A datagram; an answer that is too large is marked as truncated.
    Udp,
    /// A connection; the answer is complete.
    Tcp,
}

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

    fn soa(&self) -> Record {
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

/// Answers one request, whatever its bytes are; `zone` is `None` while nothing is known yet.
///
/// `None` where an answer would be wrong: not even a DNS header, or itself an answer (two servers would
/// otherwise talk to each other forever).
pub fn answer(zone: Option<&Zone>, request: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let header = Header::read(&mut BinDecoder::new(request)).ok()?;
    if header.message_type == MessageType::Response {
        return None;
    }
    let mut reply = Message::response(header.id, header.op_code);
    reply.metadata = Metadata::response_from_request(&header.metadata);
    let mut limit = match transport {
        Transport::Udp => UDP_PAYLOAD_PLAIN,
        Transport::Tcp => u16::MAX,
    };
    // The count is checked before the body is decoded: it decides how much the decoder allocates.
    if header.op_code != OpCode::Query {
        reply.metadata.response_code = ResponseCode::NotImp;
        return encode(reply, limit);
    }
    let query = match header.counts.queries {
        1 => Message::from_vec(request).ok(),
        _ => None,
    };
    let Some((question, edns)) =
        query.and_then(|query| Some((query.queries.into_iter().next()?, query.edns)))
    else {
        reply.metadata.response_code = ResponseCode::FormErr;
        return encode(reply, limit);
    };
    reply.add_query(question.clone());
    if let Some(edns) = edns {
        let mut own = Edns::new();
        own.set_max_payload(UDP_PAYLOAD_MAX);
        reply.set_edns(own);
        if transport == Transport::Udp {
            limit = edns.max_payload().clamp(UDP_PAYLOAD_PLAIN, UDP_PAYLOAD_MAX);
        }
        if edns.version() > 0 {
            reply.metadata.response_code = ResponseCode::BADVERS;
            return encode(reply, limit);
        }
    }
    fill(&mut reply, zone, &question, transport);
    encode(reply, limit)
}

/// What a name in a question stands for.
enum Owner<'z> {
    Apex,
    Node(&'z ZoneNode),
    /// `_tcp.<node>.mesh`: there only because something is below it.
    Empty,
    Service(&'z ZoneNode),
    /// An agent, with the nodes that take its tasks.
    Agent(Vec<&'z ZoneNode>),
    AgentService(Vec<&'z ZoneNode>),
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
                ([], Some(node)) => Owner::Service(node),
                _ => zone.hosts(agent).map_or(Owner::Missing, Owner::AgentService),
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
            node(host).map_or(Owner::Missing, Owner::Service)
        }
        _ => Owner::Missing,
    }
}

fn fill(reply: &mut Message, zone: Option<&Zone>, question: &Query, transport: Transport) {
    let (name, kind) = (question.name(), question.query_type());
    let meta = &mut reply.metadata;
    if question.query_class() != DNSClass::IN || matches!(kind, RecordType::AXFR | RecordType::IXFR) {
        meta.response_code = ResponseCode::Refused;
        return;
    }
    let Some(zone) = zone else {
        let top = name.iter().next_back();
        let ours = top.is_some_and(|top| {
            [MESH_ZONE, "arpa"].iter().any(|zone| top.eq_ignore_ascii_case(zone.as_bytes()))
        });
        meta.response_code = if ours { ResponseCode::ServFail } else { ResponseCode::Refused };
        return;
    };
    let owner = owner(zone, name);
    if kind == RecordType::ANY && transport == Transport::Udp && !matches!(owner, Owner::Outside) {
        // Everything at once only over a connection, whose address cannot be forged (RFC 8482, 4.4).
        meta.truncation = true;
        return;
    }
    let asked = |record: RecordType| kind == record || kind == RecordType::ANY;
    let mut add = |data| {
        // The name as it was asked, in that case: some resolvers compare.
        reply.answers.push(Record::from_rdata(name.clone(), TTL, data));
    };
    match owner {
        Owner::Outside => {
            meta.response_code = ResponseCode::Refused;
            return;
        }
        Owner::Reverse(nodes) if asked(RecordType::PTR) => {
            nodes.iter().for_each(|node| add(RData::PTR(PTR(node_host(node)))));
        }
        Owner::Reverse(_) => {
            meta.response_code = ResponseCode::Refused;
            return;
        }
        Owner::Unknown => {
            meta.response_code = ResponseCode::ServFail;
            return;
        }
        Owner::Missing => meta.response_code = ResponseCode::NXDomain,
        Owner::Empty => {}
        Owner::Apex => {
            if asked(RecordType::SOA) {
                let soa = zone.soa();
                add(soa.data);
            }
            if asked(RecordType::NS) {
                add(RData::NS(NS(node_host(&zone.own))));
                reply.additionals = zone.nodes.get(&zone.own).map(address_records).unwrap_or_default();
            }
        }
        Owner::Node(node) => {
            if node.addresses.is_none() && (asked(RecordType::A) || asked(RecordType::AAAA)) {
                meta.response_code = ResponseCode::ServFail;
                return;
            }
            for address in node.addresses.iter().flatten() {
                let data = RData::from(*address);
                if asked(data.record_type()) {
                    add(data);
                }
            }
            if asked(RecordType::SRV)
                && let Some(srv) = service(node)
            {
                add(srv);
                reply.additionals = address_records(node);
            }
            if asked(RecordType::TXT)
                && let Some(txt) = agents(node)
            {
                add(txt);
            }
        }
        Owner::Agent(nodes) => {
            let unknown = !nodes.is_empty() && nodes.iter().all(|node| node.addresses.is_none());
            if unknown && (asked(RecordType::A) || asked(RecordType::AAAA)) {
                meta.response_code = ResponseCode::ServFail;
                return;
            }
            let mut added: Vec<IpAddr> = Vec::new();
            for address in nodes.iter().flat_map(|node| node.addresses.iter().flatten()) {
                let data = RData::from(*address);
                if asked(data.record_type()) && !added.contains(address) {
                    added.push(*address);
                    add(data);
                }
            }
            if asked(RecordType::SRV) {
                nodes.iter().filter_map(|node| service(node)).for_each(&mut add);
                reply.additionals = nodes.iter().flat_map(|node| address_records(node)).collect();
            }
        }
        Owner::AgentService(nodes) => {
            if asked(RecordType::SRV) {
                nodes.iter().filter_map(|node| service(node)).for_each(&mut add);
                reply.additionals = nodes.iter().flat_map(|node| address_records(node)).collect();
            }
        }
        Owner::Service(node) => {
            if asked(RecordType::SRV)
                && let Some(srv) = service(node)
            {
                add(srv);
                reply.additionals = address_records(node);
            }
        }
    }
    reply.metadata.authoritative = true;
    if reply.answers.is_empty() {
        reply.authorities.push(zone.soa());
    }
}

fn service(node: &ZoneNode) -> Option<RData> {
    (node.port > 0).then(|| RData::SRV(SRV::new(0, 0, node.port, node_host(&node.name))))
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

/// The bytes of a reply that fits `limit`: complete, or else without additional records (nobody needs them), or
/// else empty and marked as truncated, so that the client comes back over TCP.
fn encode(mut reply: Message, limit: u16) -> Option<Vec<u8>> {
    let fits = |reply: &Message| reply.to_vec().ok().filter(|bytes| bytes.len() <= usize::from(limit));
    if let Some(bytes) = fits(&reply) {
        return Some(bytes);
    }
    reply.additionals.clear();
    fits(&reply).or_else(|| fits(&reply.truncate()))
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

fn arpa_name(address: IpAddr) -> Name {
    let mut name = Name::from(address);
    name.set_fqdn(true);
    name
}

#[cfg(test)]
mod tests;

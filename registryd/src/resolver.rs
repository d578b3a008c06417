//! From a node's name to the addresses to dial.
//!
//! `<node>.mesh` is asked of the configured servers, or of whatever this host uses (`/etc/hosts`,
//! `/etc/resolv.conf`); where that gives nothing, the `host` that the node registered counts. A wrong answer
//! cannot redirect anything, it can only make a connection fail: the certificate decides. So no answer is ever a
//! reason to have no address as long as any source has one.

mod system;

use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::net::{DnsError, NetError};
use mesh_shared::NodeName;
use mesh_shared::address::nobodys;
use mesh_shared::config;
use tokio::time::timeout;

use crate::jitter;

use system::{NEGATIVE_MAX, Server, Servers, Snapshot, Sources, System, in_turn};

/// The longest wait for one record type, all servers together.
const LOOKUP_MAX: Duration = Duration::from_secs(6);
/// How long the second address family may take after the first brought addresses. Some networks drop AAAA
/// questions; they must not make every connection slow (RFC 8305, 3).
const SECOND_FAMILY_WAIT: Duration = Duration::from_millis(300);
/// How long an answer counts at most, whatever its TTL says.
const VALID_MAX: Duration = Duration::from_secs(300);
/// How long an answer counts at least, so that a TTL of 0 does not turn into a stream of questions.
const VALID_MIN: Duration = Duration::from_secs(1);
/// How long "the name does not exist" counts where the answer does not say.
const NEGATIVE_DEFAULT: Duration = Duration::from_secs(30);
/// How long an answer from a file, or one that lacks an address family, counts.
const PROVISIONAL: Duration = Duration::from_secs(10);
/// When to ask again after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Where a name leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// The addresses to dial, in this order: IPv6 and IPv4 take turns (RFC 8305, 4). No duplicates, none that
    /// cannot be dialled.
    pub addresses: Vec<IpAddr>,
    /// When to ask again; never zero.
    pub valid_for: Duration,
    /// What is wrong, in a sentence; always there if `addresses` is empty, and also when the DNS failed and the
    /// addresses are only those of the registry.
    pub problem: Option<String>,
}

/// Resolves names with caching by TTL. Follows changes of `/etc/resolv.conf` and `/etc/hosts`.
pub struct Resolver {
    system: System,
    /// A name that no node has.
    nobody: String,
}

impl Resolver {
    /// A resolver by the configuration. Reads nothing yet.
    pub fn new(dns: &config::Dns) -> Self {
        Self::with_sources(dns, Sources::of_this_host())
    }

    fn with_sources(dns: &config::Dns, sources: Sources) -> Self {
        let nobody = format!("nobody-{:016x}.mesh", (jitter::unit() * u64::MAX as f64) as u64);
        Self { system: System::new(dns.upstream.clone(), sources), nobody }
    }

    /// The addresses of a node: those of `<node>.mesh`, else those of `fallback_host`, its `host` in the registry
    /// (an address or a host name).
    ///
    /// Never waits longer than a few seconds. Cheap to call again: answers are cached by their TTL.
    ///
    /// The host's own resolver is not asked where the node registered a literal address: mesh names are nobody's
    /// business outside, and a resolver that answers for every name would win over the node's word. Servers that the
    /// configuration names for `.mesh` always count. `loopback` tells whether the node can be on this host's loopback.
    pub async fn resolve(&self, name: &NodeName, fallback_host: &str, loopback: bool) -> Resolution {
        let host = name.mesh_host();
        let snapshot = self.system.snapshot().await;
        let hosts_count = snapshot.mesh_hosts().is_some();
        if let Some(addresses) = by_hosts_file(&snapshot, &host) {
            return found(addresses, VALID_MAX, None);
        }
        if let Some(literal) = literal(fallback_host, loopback).filter(|_| hosts_count) {
            return found(vec![literal], VALID_MAX, None);
        }
        let answer = ask(snapshot.mesh_servers(), absolute(&host)).await;
        let elsewhere = NodeName::from_mesh_host(fallback_host).is_none();
        let from_name =
            match hosts_count && elsewhere && self.answers_for_every_name(&snapshot, &answer).await {
                true => Answer::Nothing(NEGATIVE_DEFAULT),
                false => answer,
            };
        let (retry, reason, failed) = match from_name {
            Answer::Addresses(addresses, ttl) => return found(addresses, ttl, None),
            Answer::Nothing(ttl) => (ttl, format!("{host} does not exist in DNS"), false),
            Answer::NoServers(why) => (NEGATIVE_DEFAULT, format!("{host} cannot be looked up: {why}"), false),
            Answer::Failed(why) => (RETRY, format!("{host} does not resolve: {why}"), true),
        };
        match self.fallback(&snapshot, name, fallback_host, loopback).await {
            Ok((addresses, ttl)) => {
                let problem = failed.then(|| format!("{reason}; using {fallback_host} from the registry"));
                found(addresses, ttl.min(retry), problem)
            }
            Err(why) => found(Vec::new(), RETRY, Some(format!("{reason}, and {why}"))),
        }
    }

    /// As [`Self::resolve`], without a question to any server, so that the literal address that a node registered counts
    /// more than what configured servers say; `None` where it registered none.
    pub async fn unasked(&self, name: &NodeName, host: &str, loopback: bool) -> Option<Resolution> {
        let literal = literal(host, loopback)?;
        let snapshot = self.system.snapshot().await;
        let addresses = by_hosts_file(&snapshot, &name.mesh_host()).unwrap_or_else(|| vec![literal]);
        Some(found(addresses, VALID_MAX, None))
    }

    /// Which state of `/etc/resolv.conf` and `/etc/hosts` answers come from; another number after they changed.
    pub async fn sources(&self) -> u64 {
        self.system.snapshot().await.generation
    }

    /// The addresses of a host that is not a mesh name, as registered by a node. Cached like everything else.
    ///
    /// # Errors
    /// Why there are none, as a part of a sentence.
    pub async fn host_addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        let snapshot = self.system.snapshot().await;
        lookup_host(&snapshot, host).await.map(|(addresses, _)| interleaved(addresses))
    }

    async fn fallback(
        &self,
        snapshot: &Snapshot,
        name: &NodeName,
        host: &str,
        loopback: bool,
    ) -> Result<(Vec<IpAddr>, Duration), String> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return match nobodys(address, loopback) {
                None => Ok((vec![address], VALID_MAX)),
                Some(reason) => Err(format!("its host in the registry, {host}, {reason}")),
            };
        }
        let looked_up = match NodeName::from_mesh_host(host) {
            Some(same) if same == *name => Err("the registry has no other address for it".into()),
            Some(_) => Err(format!("its host in the registry, {host}, is the name of another node")),
            None => lookup_host(snapshot, host).await,
        };
        let (mut addresses, ttl) = looked_up?;
        // A host name leads no further than a literal address does.
        addresses.retain(|address| nobodys(*address, loopback).is_none());
        match addresses.is_empty() {
            true => {
                Err(format!("its host in the registry, {host}, leads to no address that a node can have"))
            }
            false => Ok((addresses, ttl)),
        }
    }

    /// Whether the servers give the same addresses for a name that cannot exist: some answer a page of their own
    /// instead of "does not exist".
    async fn answers_for_every_name(&self, snapshot: &Snapshot, answer: &Answer) -> bool {
        let Answer::Addresses(addresses, _) = answer else { return false };
        match ask(snapshot.mesh_servers(), absolute(&self.nobody)).await {
            Answer::Addresses(of_nobody, _) => addresses.iter().all(|address| of_nobody.contains(address)),
            _ => false,
        }
    }
}

/// The addresses of a mesh name in the hosts file, where that counts and has any.
fn by_hosts_file(snapshot: &Snapshot, host: &str) -> Option<Vec<IpAddr>> {
    let addresses = snapshot.mesh_hosts()?.addresses(&absolute(host));
    (!addresses.is_empty()).then_some(addresses)
}

/// The address that a registered host gives literally, if a node can be there.
fn literal(host: &str, loopback: bool) -> Option<IpAddr> {
    host.parse().ok().filter(|address| nobodys(*address, loopback).is_none())
}

fn found(addresses: Vec<IpAddr>, ttl: Duration, problem: Option<String>) -> Resolution {
    Resolution { addresses: interleaved(addresses), valid_for: ttl.clamp(VALID_MIN, VALID_MAX), problem }
}

async fn lookup_host(snapshot: &Snapshot, host: &str) -> Result<(Vec<IpAddr>, Duration), String> {
    // Relative, unlike mesh names: a registered host may be the short name that this host's search list completes.
    let name = Name::from_utf8(host)
        .map_err(|_| format!("its host in the registry, {host:?}, is not a host name"))?;
    let addresses = snapshot.hosts().addresses(&absolute(host));
    if !addresses.is_empty() {
        return Ok((addresses, PROVISIONAL));
    }
    match ask(snapshot.host_servers(), name).await {
        Answer::Addresses(addresses, ttl) => Ok((addresses, ttl)),
        Answer::Nothing(_) => Err(format!("its host in the registry, {host}, does not exist either")),
        Answer::NoServers(why) => {
            Err(format!("its host in the registry, {host}, cannot be looked up: {why}"))
        }
        Answer::Failed(why) => Err(format!("its host in the registry, {host}, does not resolve: {why}")),
    }
}

/// With the final dot: no search list applies.
fn absolute(host: &str) -> Name {
    let mut name = Name::from_utf8(host).unwrap_or_default();
    name.set_fqdn(true);
    name
}

enum Answer {
    /// At least one, valid for so long.
    Addresses(Vec<IpAddr>, Duration),
    /// The name does not exist or has no addresses; known for so long.
    Nothing(Duration),
    /// This host has no resolver; no fault by itself.
    NoServers(String),
    /// No server gave an answer, for this reason.
    Failed(String),
}

/// Both address families at the same time.
async fn ask(servers: &Result<Servers, String>, name: Name) -> Answer {
    let servers = match servers {
        Ok(servers) => servers,
        Err(why) => return Answer::NoServers(why.clone()),
    };
    let (v6, v4) = (ask_family(servers, &name, RecordType::AAAA), ask_family(servers, &name, RecordType::A));
    let (first, second) = match select(pin!(v6), pin!(v4)).await {
        Either::Left((first, rest)) => with_patience(first, rest).await,
        Either::Right((first, rest)) => with_patience(first, rest).await,
    };
    match (first, second) {
        (Answer::Addresses(mut all, ttl), Some(Answer::Addresses(more, other))) => {
            all.extend(more);
            Answer::Addresses(all, ttl.min(other))
        }
        (Answer::Addresses(all, ttl), Some(Answer::Nothing(_)))
        | (Answer::Nothing(_), Some(Answer::Addresses(all, ttl))) => Answer::Addresses(all, ttl),
        (Answer::Addresses(all, ttl), _) | (_, Some(Answer::Addresses(all, ttl))) => {
            Answer::Addresses(all, ttl.min(PROVISIONAL))
        }
        (Answer::Nothing(ttl), Some(Answer::Nothing(other))) => Answer::Nothing(ttl.min(other)),
        (failed @ Answer::Failed(_), _) | (_, Some(failed)) => failed,
        (first, None) => first,
    }
}

async fn with_patience(first: Answer, rest: impl Future<Output = Answer>) -> (Answer, Option<Answer>) {
    let second = match first {
        Answer::Addresses(..) => timeout(SECOND_FAMILY_WAIT, rest).await.ok(),
        _ => Some(rest.await),
    };
    (first, second)
}

/// One server after the other until one answers.
async fn ask_family(servers: &Servers, name: &Name, kind: RecordType) -> Answer {
    let mut reasons: Vec<String> = Vec::new();
    let asking = async {
        for server in in_turn(servers) {
            let answer = ask_server(server, name, kind).await;
            server.note(!matches!(answer, Answer::Failed(_)));
            match answer {
                Answer::Failed(why) => reasons.push(why),
                answer => return Some(answer),
            }
        }
        None
    };
    match timeout(LOOKUP_MAX, asking).await {
        Ok(Some(answer)) => answer,
        Ok(None) => Answer::Failed(reasons.join(", ")),
        Err(_) => {
            Answer::Failed(format!("{}; there was no time left to ask more servers", reasons.join(", ")))
        }
    }
}

async fn ask_server(server: &Server, name: &Name, kind: RecordType) -> Answer {
    let failed = |why: &str| Answer::Failed(format!("{} {why}", server.address));
    let lookup = match server.resolver.lookup(name.clone(), kind).await {
        Ok(lookup) => lookup,
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
            return match none.response_code {
                ResponseCode::NoError | ResponseCode::NXDomain => {
                    let ttl = none.negative_ttl.map_or(NEGATIVE_DEFAULT, |s| Duration::from_secs(s.into()));
                    Answer::Nothing(ttl.min(NEGATIVE_MAX))
                }
                other => failed(&format!("answered {other}")),
            };
        }
        Err(NetError::Dns(DnsError::ResponseCode(ResponseCode::ServFail))) => {
            return failed("could not find out (SERVFAIL)");
        }
        Err(NetError::Dns(DnsError::ResponseCode(ResponseCode::Refused))) => {
            return failed("refused to answer (REFUSED)");
        }
        Err(NetError::Timeout) => return failed("did not answer in time"),
        Err(NetError::NoConnections) => return failed("cannot be reached"),
        Err(NetError::Io(error)) => return failed(&format!("cannot be reached: {error}")),
        Err(other) => return failed(&format!("gave no usable answer: {other}")),
    };
    let addresses: Vec<IpAddr> = lookup
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
            _ => None,
        })
        .filter(is_usable)
        .collect();
    let ttl = lookup.valid_until().saturating_duration_since(std::time::Instant::now());
    if addresses.is_empty() {
        Answer::Nothing(ttl.min(NEGATIVE_DEFAULT))
    } else {
        Answer::Addresses(addresses, ttl)
    }
}

/// An address that a connection can be made to. `0.0.0.0` is what filtering resolvers answer for "blocked", and a
/// link-local IPv6 address means nothing without its interface.
fn is_usable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !(v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()),
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local()),
    }
}

/// IPv6 and IPv4 in turns, IPv6 first, each family in its own order, nothing twice (RFC 8305, 4).
fn interleaved(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut distinct: Vec<IpAddr> = Vec::with_capacity(addresses.len());
    for address in addresses.into_iter().map(|address| address.to_canonical()) {
        if !distinct.contains(&address) {
            distinct.push(address);
        }
    }
    let (v6, v4): (Vec<IpAddr>, Vec<IpAddr>) = distinct.into_iter().partition(IpAddr::is_ipv6);
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut all = Vec::new();
    loop {
        match (v6.next(), v4.next()) {
            (None, None) => return all,
            (first, second) => all.extend(first.into_iter().chain(second)),
        }
    }
}

#[cfg(test)]
mod tests;

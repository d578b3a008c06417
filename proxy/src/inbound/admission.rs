//! Who may come in, and how much of the sidecar one address or one peer may take.
//!
//! Before the handshake, limits apply to an address; afterwards, to an identity. The counters of an address or a peer are
//! kept only while something of it is in progress.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mesh_shared::config::Limits;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::error::ProxyError;
use crate::listener::Connections;
use crate::metrics::{Held, Limit, METRICS};
use crate::rate::Rate;

/// Connections of peers that policy keeps out and that may still ask once, in order to be told so.
const DENIED_CONNECTIONS: usize = 16;
/// Peers without anything under way that are remembered, because their rate is not yet forgotten, before they are
/// looked through.
const REMEMBERED: usize = 64;

/// What all workers share of it.
pub struct Admission {
    started: Instant,
    handshakes: Mutex<Handshakes<Network, Arc<Notify>>>,
    peers: Mutex<Peers>,
    connections: Connections,
    denied: Arc<Semaphore>,
    /// Whether it was said already that all places are taken.
    full: AtomicBool,
    limits: Limits,
    next_peer: AtomicU64,
}

/// Why a peer's connection is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// All places are taken.
    #[error("all {most} slots are in use (proxy.limits.max_connections)")]
    Full {
        /// How many there are.
        most: usize,
        /// Whether it is the first one since a place was free.
        first: bool,
    },
    /// The peer has its share.
    #[error("it has {most} already (proxy.limits.max_connections_per_peer)")]
    TooMany {
        /// How many it may have.
        most: usize,
        /// Whether it is the first one since it had fewer.
        first: bool,
    },
}

impl Refusal {
    /// Whether it was not said already.
    pub fn is_news(&self) -> bool {
        let (Self::Full { first, .. } | Self::TooMany { first, .. }) = self;
        *first
    }
}

impl Admission {
    /// Admits as many as `limits` say; `connections` are all that there may be of peers.
    pub fn new(limits: &Limits, connections: Connections) -> Self {
        Self {
            started: Instant::now(),
            handshakes: Mutex::new(Handshakes::new(limits.max_handshakes, limits.max_handshakes_per_address)),
            peers: Mutex::default(),
            connections,
            denied: Arc::new(Semaphore::new(DENIED_CONNECTIONS)),
            full: AtomicBool::new(false),
            limits: limits.clone(),
            next_peer: AtomicU64::new(0),
        }
    }

    /// A place for one handshake. Where all are taken another handshake has to end for it, so that those who connect
    /// and say nothing keep nobody out.
    pub fn handshake(self: &Arc<Self>, address: IpAddr) -> Handshake {
        let (network, ended) = (Network::of(address), Arc::<Notify>::default());
        let (id, displaced) = self.handshakes.lock().enter(network, ended.clone());
        if let Some((displaced, limit)) = displaced {
            METRICS.refused(limit);
            displaced.notify_one();
        }
        Handshake { admission: self.clone(), network, id, ended, _slot: METRICS.slot(Limit::Handshakes) }
    }

    /// A place for one connection of the peer of this name.
    ///
    /// # Errors
    /// It, or all peers together, have as many as they may.
    pub fn connect(self: &Arc<Self>, name: &str) -> Result<Admitted, Refusal> {
        let Some(place) = self.connections.enter() else {
            METRICS.refused(Limit::Connections);
            let first = !self.full.swap(true, Ordering::Relaxed);
            return Err(Refusal::Full { most: self.connections.most(), first });
        };
        let mut peers = self.peers.lock();
        if !peers.known.contains_key(name) {
            peers.make_room(self.now());
        }
        let entry = peers.known.entry(name.into()).or_insert_with(|| {
            let id = self.next_peer.fetch_add(1, Ordering::Relaxed);
            let peer = Arc::new(Peer::new(name, id, &self.limits, self.started));
            Entry { peer, connections: 0, refused: false }
        });
        let most = self.limits.max_connections_per_peer;
        if entry.connections >= most {
            METRICS.refused(Limit::ConnectionsPerPeer);
            return Err(Refusal::TooMany { most, first: !std::mem::replace(&mut entry.refused, true) });
        }
        (entry.connections, entry.refused) = (entry.connections + 1, false);
        let peer = entry.peer.clone();
        self.full.store(false, Ordering::Relaxed);
        let slot = METRICS.slot(Limit::Connections);
        Ok(Admitted { peer, admission: self.clone(), _place: place, _slot: slot })
    }

    /// A place for a connection of a peer that policy keeps out, so that it can be told so. `None`: there is none left.
    pub fn denied(&self, name: &str) -> Option<(OwnedSemaphorePermit, Arc<Peer>)> {
        let place = self.denied.clone().try_acquire_owned().ok()?;
        let id = self.next_peer.fetch_add(1, Ordering::Relaxed);
        Some((place, Arc::new(Peer::new(name, id, &self.limits, self.started))))
    }

    fn now(&self) -> u64 {
        nanos(self.started.elapsed())
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A handshake's place, until it is dropped.
pub struct Handshake {
    admission: Arc<Admission>,
    network: Network,
    id: u64,
    ended: Arc<Notify>,
    _slot: Held,
}

impl Handshake {
    /// Notes that the other side has said something.
    pub fn speaks(&self) {
        self.admission.handshakes.lock().speaks(self.network, self.id);
    }

    /// Returns when the place is needed for another handshake.
    pub async fn displaced(&self) {
        self.ended.notified().await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.admission.handshakes.lock().leave(self.network, self.id);
    }
}

/// A peer's connection, as long as it is open.
pub struct Admitted {
    /// Whose it is.
    pub peer: Arc<Peer>,
    admission: Arc<Admission>,
    _place: OwnedSemaphorePermit,
    _slot: Held,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let now = self.admission.now();
        self.admission.peers.lock().left(&self.peer, now);
    }
}

/// What is known of one peer while it is connected, by all its connections.
pub struct Peer {
    name: Box<str>,
    id: u64,
    requests: AtomicUsize,
    max_requests: usize,
    rate: Option<Rate>,
    /// When the requests so far would have come at the highest rate, in nanoseconds since `started`.
    due: AtomicU64,
    started: Instant,
}

impl Peer {
    fn new(name: &str, id: u64, limits: &Limits, started: Instant) -> Self {
        Self {
            name: name.into(),
            id,
            requests: AtomicUsize::new(0),
            max_requests: limits.max_requests_per_peer,
            rate: limits.max_requests_per_second_per_peer.map(Rate::new),
            due: AtomicU64::new(0),
            started,
        }
    }

    /// Tells it apart from others, while this process lives.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Begins a request, which ends when the returned value is dropped.
    ///
    /// # Errors
    /// The peer has as many under way as it may, or sends them too fast.
    pub fn request(self: &Arc<Self>) -> Result<UnderWay, ProxyError> {
        let others = self.requests.fetch_add(1, Ordering::Relaxed);
        let request = UnderWay(self.clone(), METRICS.slot(Limit::RequestsPerPeer));
        if others >= self.max_requests {
            METRICS.refused(Limit::RequestsPerPeer);
            return Err(ProxyError::TooManyRequests { peer: self.name.to_string(), most: self.max_requests });
        }
        let Some(rate) = self.rate else { return Ok(request) };
        let now = nanos(self.started.elapsed());
        let taken = self.due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| rate.take(due, now));
        match taken {
            Ok(_) => Ok(request),
            Err(_) => {
                METRICS.refused(Limit::RequestRatePerPeer);
                Err(ProxyError::RateLimited { peer: self.name.to_string(), most: rate.per_second() })
            }
        }
    }

    /// Whether nothing would be lost if it were forgotten.
    fn is_idle(&self, now: u64) -> bool {
        self.requests.load(Ordering::Relaxed) == 0 && self.due.load(Ordering::Relaxed) <= now
    }
}

/// A request of a peer, until it has ended.
pub struct UnderWay(Arc<Peer>, #[allow(dead_code, reason = "counts until it is dropped")] Held);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The peers that are connected, or were a moment ago, by name.
#[derive(Default)]
struct Peers {
    known: HashMap<Box<str>, Entry>,
    /// When they are looked through for some that can be forgotten.
    enough: usize,
}

struct Entry {
    peer: Arc<Peer>,
    connections: usize,
    /// Whether it was said already that it has as many as it may.
    refused: bool,
}

impl Peers {
    fn left(&mut self, peer: &Arc<Peer>, now: u64) {
        let Some(entry) = self.known.get_mut(&peer.name) else { return };
        entry.connections -= 1;
        if entry.connections == 0 && peer.is_idle(now) {
            self.known.remove(&peer.name);
        }
    }

    /// Forgets those of which nothing is under way, before one more is remembered.
    fn make_room(&mut self, now: u64) {
        if self.known.len() >= self.enough {
            self.known.retain(|_, entry| entry.connections > 0 || !entry.peer.is_idle(now));
            self.enough = 2 * self.known.len() + REMEMBERED;
        }
    }
}

/// What one party has of the address space: an IPv4 address, or a /64 of IPv6 (RFC 6177).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Network(IpAddr);

impl Network {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(ip) => Self(IpAddr::V6((u128::from(ip) >> 64 << 64).into())),
            ip => Self(ip),
        }
    }
}

/// The handshakes under way, by network and age. Pure.
struct Handshakes<N, T> {
    most: usize,
    most_by_network: usize,
    under_way: usize,
    next: u64,
    networks: HashMap<N, ByAge<T>>,
}

/// Those of one network, the oldest first.
struct ByAge<T> {
    silent: BTreeMap<u64, T>,
    speaking: BTreeMap<u64, T>,
}

impl<T> ByAge<T> {
    fn len(&self) -> usize {
        self.silent.len() + self.speaking.len()
    }
}

impl<N: Copy + Eq + Hash, T> Handshakes<N, T> {
    fn new(most: usize, most_by_network: usize) -> Self {
        let most = most.max(1);
        Self {
            most,
            most_by_network: most_by_network.clamp(1, most),
            under_way: 0,
            next: 0,
            networks: HashMap::new(),
        }
    }

    /// Enters one more, and takes out the one that it displaces, by which limit: where its network has as many as it may,
    /// one of that; else one of the network that has the most.
    fn enter(&mut self, network: N, handshake: T) -> (u64, Option<(T, Limit)>) {
        let own = self.networks.get(&network).map_or(0, ByAge::len);
        let displaced = if own >= self.most_by_network {
            self.displace(network).map(|displaced| (displaced, Limit::HandshakesPerAddress))
        } else if self.under_way >= self.most {
            let most = self.networks.iter().max_by_key(|(_, handshakes)| handshakes.len());
            let displaced = most.map(|(network, _)| *network).and_then(|network| self.displace(network));
            displaced.map(|displaced| (displaced, Limit::Handshakes))
        } else {
            None
        };
        let id = self.next;
        self.next += 1;
        self.under_way += 1;
        let none = || ByAge { silent: BTreeMap::new(), speaking: BTreeMap::new() };
        self.networks.entry(network).or_insert_with(none).silent.insert(id, handshake);
        (id, displaced)
    }

    /// Takes out the oldest that has said nothing yet, else the oldest.
    fn displace(&mut self, network: N) -> Option<T> {
        let of_network = self.networks.get_mut(&network)?;
        let (id, _) = of_network.silent.first_key_value().or(of_network.speaking.first_key_value())?;
        let id = *id;
        self.remove(network, id)
    }

    fn speaks(&mut self, network: N, id: u64) {
        if let Some(of_network) = self.networks.get_mut(&network)
            && let Some(handshake) = of_network.silent.remove(&id)
        {
            of_network.speaking.insert(id, handshake);
        }
    }

    fn leave(&mut self, network: N, id: u64) {
        self.remove(network, id);
    }

    fn remove(&mut self, network: N, id: u64) -> Option<T> {
        let of_network = self.networks.get_mut(&network)?;
        let removed = of_network.silent.remove(&id).or_else(|| of_network.speaking.remove(&id))?;
        self.under_way -= 1;
        if of_network.len() == 0 {
            self.networks.remove(&network);
        }
        Some(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_silent_handshake_of_a_full_network_makes_room() {
        let mut handshakes = Handshakes::new(4, 2);
        assert_eq!(handshakes.enter("a", 1), (0, None));
        assert_eq!(handshakes.enter("a", 2), (1, None));
        handshakes.speaks("a", 0);
        // The older one speaks.
        assert_eq!(handshakes.enter("a", 3), (2, Some((2, Limit::HandshakesPerAddress))));
        handshakes.speaks("a", 2);
        assert_eq!(handshakes.enter("a", 4), (3, Some((1, Limit::HandshakesPerAddress))));
        // One that was displaced leaves nothing behind.
        handshakes.leave("a", 0);
        assert_eq!(handshakes.under_way, 2);
        handshakes.leave("a", 2);
        handshakes.leave("a", 3);
        assert!(handshakes.networks.is_empty());
        assert_eq!(handshakes.under_way, 0);
    }

    #[test]
    fn where_all_places_are_taken_the_network_with_the_most_makes_room() {
        let mut handshakes = Handshakes::new(4, 3);
        for (network, number) in [("a", 1), ("b", 2), ("b", 3), ("b", 4)] {
            assert_eq!(handshakes.enter(network, number).1, None);
        }
        assert_eq!(handshakes.enter("c", 5).1, Some((2, Limit::Handshakes)));
        assert_eq!(handshakes.under_way, 4);
    }

    #[test]
    fn an_ipv6_network_counts_as_one() {
        let of = |address: &str| Network::of(address.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }

    fn limits() -> Limits {
        let yaml = "mesh: {enabled: true, node_name: ct110, tls: {ca_path: a, cert_path: b, key_path: c}}\n\
                    proxy: {limits: {max_connections: 5, max_connections_per_peer: 2, max_requests_per_peer: 3, \
                    max_requests_per_second_per_peer: 4}}";
        mesh_shared::config::Config::parse(yaml).unwrap().proxy.limits
    }

    #[test]
    fn each_peer_has_a_share_and_leaves_nothing_behind() {
        let limits = limits();
        let admission = Arc::new(Admission::new(&limits, Connections::new(limits.max_connections)));
        let mut open: Vec<_> = (0..2).map(|_| admission.connect("ct111").unwrap()).collect();
        assert!(matches!(admission.connect("ct111"), Err(Refusal::TooMany { most: 2, first: true })));
        open.extend((0..2).map(|_| admission.connect("ct112").unwrap()));
        open.push(admission.connect("ct113").unwrap());
        assert!(matches!(admission.connect("ct113"), Err(Refusal::Full { most: 5, first: true })));
        let peer = open[0].peer.clone();
        assert!(Arc::ptr_eq(&peer, &open[1].peer));
        let requests: Vec<_> = (0..3).map(|_| peer.request().unwrap()).collect();
        assert!(matches!(peer.request(), Err(ProxyError::TooManyRequests { most: 3, .. })));
        drop(requests);
        let over = (0..100).find_map(|_| peer.request().err());
        assert!(matches!(over, Some(ProxyError::RateLimited { most: 4, .. })));
        drop(open);
        // Whose rate is not forgotten yet is remembered.
        let peers = admission.peers.lock();
        assert_eq!(peers.known.keys().map(|name| &**name).collect::<Vec<_>>(), ["ct111"]);
    }
}

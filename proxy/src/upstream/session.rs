//! Sessions: which node a caller stays on. Pure.
//!
//! **A session that the caller names** (`x-mesh-session`) goes by rendezvous hashing: each node has a rank for it, and the
//! highest wins. A node that leaves moves its own sessions and no others; one that comes takes those for which it ranks
//! highest, and no others move; one that is passed over for a while gets its sessions back. A ring such as ketama gives
//! less for more: it is rebuilt with each change, it also moves sessions between nodes that stayed, and pingora's
//! hashes socket addresses, so that a node with a new address would lose its sessions. An agent lives on few nodes, so
//! that ranking them all costs nothing.
//!
//! **A session that the agent's server hands out** (`mcp-session-id`) exists on the node that issued it, and nowhere else.
//! It is remembered with that node, which is asked first even while it is ejected. If it is gone, another node gets the
//! request and answers 404, as the server of an unknown session must; a client then begins a new session (Model Context
//! Protocol, Transports, Session Management). An error of the sidecar's own would leave it with a session that is dead.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use mesh_shared::NodeName;

/// The rank of a node for a session; the same on every host and in every version.
pub fn rank(session: &[u8], node: &NodeName) -> u64 {
    // FNV-1a over both, then the finalizer of MurmurHash3, so that names that differ in one letter rank independently.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in session.iter().chain(&[0]).chain(node.as_str().as_bytes()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// Sessions remembered at most; at least half as many of the last used are.
const MOST: usize = 10_000;
/// A session that is not used for this long is forgotten, or soon after.
const UNUSED: Duration = Duration::from_secs(24 * 60 * 60);

/// The sessions that servers handed out, with the nodes that did.
///
/// Two generations: what is used moves to the young one; when that is full or old, it becomes the old one, whose content
/// is forgotten. Sessions are kept as keyed hashes, so that an id takes the same room however long it is.
#[derive(Debug)]
pub struct Issued {
    young: HashMap<u128, NodeName>,
    old: HashMap<u128, NodeName>,
    turned: Instant,
    keys: [RandomState; 2],
}

impl Issued {
    /// None yet.
    pub fn new(now: Instant) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            turned: now,
            keys: [RandomState::new(), RandomState::new()],
        }
    }

    /// Remembers that `node` issued the session `id` of `agent`.
    pub fn remember(&mut self, agent: &str, id: &[u8], node: &NodeName, now: Instant) {
        self.turn(now);
        let key = self.key(agent, id);
        if self.young.get(&key) != Some(node) {
            self.young.insert(key, node.clone());
        }
    }

    /// The node that issued the session.
    pub fn issuer(&mut self, agent: &str, id: &[u8], now: Instant) -> Option<NodeName> {
        self.turn(now);
        let key = self.key(agent, id);
        if let Some(node) = self.young.get(&key) {
            return Some(node.clone());
        }
        let node = self.old.remove(&key)?;
        self.young.insert(key, node.clone());
        Some(node)
    }

    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.turned);
        if self.young.len() >= MOST / 2 || age >= UNUSED {
            self.old = std::mem::take(&mut self.young);
            self.turned = now;
        }
    }

    fn key(&self, agent: &str, id: &[u8]) -> u128 {
        let [one, other] = &self.keys;
        u128::from(one.hash_one((agent, id))) << 64 | u128::from(other.hash_one((agent, id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: usize) -> Vec<NodeName> {
        (0..count).map(|i| format!("ct{}", 110 + i).parse().unwrap()).collect()
    }

    fn home(session: usize, nodes: &[NodeName]) -> &NodeName {
        let session = format!("session-{session}");
        nodes.iter().max_by_key(|node| rank(session.as_bytes(), node)).unwrap()
    }

    #[test]
    fn sessions_spread_evenly() {
        let nodes = nodes(5);
        for node in &nodes {
            let share = (0..10_000).filter(|session| home(*session, &nodes) == node).count();
            assert!((1_800..2_200).contains(&share), "{node}: {share}");
        }
    }

    #[test]
    fn a_change_moves_no_session_that_need_not_move() {
        let five = nodes(5);
        for gone in 0..5 {
            let mut four = five.clone();
            let gone = four.remove(gone);
            for session in 0..2_000 {
                let before = home(session, &five);
                assert!(*before == gone || home(session, &four) == before);
            }
        }
        let six = nodes(6);
        let moved = (0..6_000).filter(|session| home(*session, &six) != home(*session, &five)).count();
        assert!((800..1_200).contains(&moved), "{moved} of 6,000 moved to the sixth node");
        assert!((0..6_000).all(|s| home(s, &six) == home(s, &five) || home(s, &six) == &six[5]));
    }

    #[test]
    fn a_rank_is_the_same_everywhere() {
        assert_eq!(rank(b"a", &"ct110".parse().unwrap()), 0x84c1_63e4_c6cf_344a);
    }

    #[test]
    fn issued_sessions_are_remembered_while_they_are_used_and_bounded() {
        let (start, nodes) = (Instant::now(), nodes(2));
        let mut issued = Issued::new(start);
        issued.remember("grok", b"mine", &nodes[0], start);
        assert_eq!(issued.issuer("grok", b"mine", start), Some(nodes[0].clone()));
        assert_eq!(issued.issuer("opus", b"mine", start), None, "each agent has sessions of its own");
        for i in 0..50_000_u32 {
            issued.remember("grok", &i.to_be_bytes(), &nodes[1], start);
            if i % 1_000 == 0 {
                assert_eq!(issued.issuer("grok", b"mine", start), Some(nodes[0].clone()));
            }
        }
        assert!(issued.young.len() + issued.old.len() <= MOST);
        assert_eq!(issued.issuer("grok", &0_u32.to_be_bytes(), start), None);
        assert!(issued.issuer("grok", &49_999_u32.to_be_bytes(), start).is_some());
        let mut now = start;
        for _ in 0..2 {
            now += UNUSED;
            issued.remember("grok", b"other", &nodes[1], now);
        }
        assert_eq!(issued.issuer("grok", b"mine", now), None, "unused for two days");
    }
}

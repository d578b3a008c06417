//! The sessions that servers handed out, in memory. Pure.

use std::collections::HashMap;
use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};
use mesh_shared::{AgentName, NodeName};

/// Sessions remembered at most; at least half as many of the last used are.
const MOST: usize = 10_000;
/// A session that is not used for this long is forgotten, or soon after.
const UNUSED: Duration = Duration::from_secs(24 * 60 * 60);

/// A session that a server handed out to callers of an agent. As a digest, so that an id takes the same room however long
/// it is, and is not shown to those who read where it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 16]);

impl Key {
    /// Of the session that servers of `agent` know as `id`.
    pub fn new(agent: &AgentName, id: &[u8]) -> Self {
        let mut digest = Context::new(&SHA256);
        digest.update(agent.as_str().as_bytes());
        digest.update(&[0]);
        digest.update(id);
        let mut key = [0; 16];
        key.copy_from_slice(&digest.finish().as_ref()[..16]);
        Self(key)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl FromStr for Key {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        u128::from_str_radix(text, 16).map(|key| Self(key.to_be_bytes()))
    }
}

/// The sessions that servers handed out, with the nodes that did.
///
/// Two generations: what is used moves to the young one; when that is full or old, it becomes the old one, whose content
/// is forgotten.
#[derive(Debug)]
pub struct Issued {
    young: HashMap<Key, NodeName>,
    old: HashMap<Key, NodeName>,
    turned: Instant,
}

impl Issued {
    /// None yet.
    pub fn new(now: Instant) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), turned: now }
    }

    /// Remembers that `node` issued the session. Returns whether that is news.
    pub fn remember(&mut self, session: Key, node: &NodeName, now: Instant) -> bool {
        let news = self.issuer(&session, now).as_ref() != Some(node);
        if news {
            self.young.insert(session, node.clone());
        }
        news
    }

    /// The node that issued the session.
    pub fn issuer(&mut self, session: &Key, now: Instant) -> Option<NodeName> {
        self.turn(now);
        if let Some(node) = self.young.get(session) {
            return Some(node.clone());
        }
        let (key, node) = self.old.remove_entry(session)?;
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(agent: &str, id: &[u8]) -> Key {
        Key::new(&agent.parse().unwrap(), id)
    }

    #[test]
    fn issued_sessions_are_remembered_while_they_are_used_and_bounded() {
        let start = Instant::now();
        let nodes = ["ct111", "ct112"].map(|name| name.parse().unwrap());
        let mine = key("grok", b"mine");
        let mut issued = Issued::new(start);
        assert!(issued.remember(mine, &nodes[0], start));
        assert!(!issued.remember(mine, &nodes[0], start));
        assert_eq!(issued.issuer(&mine, start), Some(nodes[0].clone()));
        assert_eq!(issued.issuer(&key("opus", b"mine"), start), None, "each agent has sessions of its own");
        for i in 0..50_000_u32 {
            issued.remember(key("grok", &i.to_be_bytes()), &nodes[1], start);
            if i % 1_000 == 0 {
                assert_eq!(issued.issuer(&mine, start), Some(nodes[0].clone()));
            }
        }
        assert!(issued.young.len() + issued.old.len() <= MOST);
        assert_eq!(issued.issuer(&key("grok", &0_u32.to_be_bytes()), start), None);
        assert!(issued.issuer(&key("grok", &49_999_u32.to_be_bytes()), start).is_some());
        let mut now = start;
        for _ in 0..2 {
            now += UNUSED;
            issued.remember(key("grok", b"other"), &nodes[1], now);
        }
        assert_eq!(issued.issuer(&mine, now), None, "unused for two days");
    }

    #[test]
    fn a_key_is_written_and_read() {
        let key = key("grok", b"mine");
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(key.to_string().len(), 32);
    }
}

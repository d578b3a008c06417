//! A bridge between a shared `mesh.json` and etcd, for as long as some nodes use the one and some the other.
//!
//! A node that moves its stamp in the file is there; the bridge then keeps its entry and a lease in etcd. A node that
//! renews its lease in etcd itself is there; the bridge then moves its stamp in the file. So whoever looks at either
//! sees every node live, and nodes change over one by one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_shared::NodeName;
use mesh_shared::config::{Endpoint, Etcd};
use mesh_shared::registry::{Entry, Node, Registry, Status};
use tokio::task::spawn_blocking;

use super::etcd::connection::{Connection, Contents, Trouble};
use super::etcd::{Key, Keys};
use super::file::{Store, StoreError};

/// What the bridge writes into the lives that it keeps: no node's name.
const BY: &str = "(bridge)";
/// How often a stamp is moved in the file, in the ttl of its node.
const BEATS: u32 = 4;

/// Why the bridge cannot go on for now.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it
pub enum BridgeError {
    #[error(transparent)]
    File(#[from] StoreError),
    #[error("etcd at {endpoint}: {source}")]
    Etcd { endpoint: String, source: Trouble },
    #[error("an internal task exited unexpectedly")]
    Task,
}

/// Where the nodes are that live.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Those that use the file.
    pub in_file: Vec<NodeName>,
    /// Those that use etcd.
    pub in_etcd: Vec<NodeName>,
}

/// The bridge.
pub struct Bridge {
    store: Store,
    settings: Etcd,
    keys: Keys,
    threshold: Duration,
    connection: Option<(Connection, Endpoint)>,
    attempts: usize,
    nodes: BTreeMap<NodeName, Known>,
    leases: HashMap<NodeName, Lease>,
}

/// A lease that the bridge holds.
struct Lease {
    id: i64,
    renewed_at: Instant,
}

/// What the bridge knows of a node.
#[derive(Debug)]
struct Known {
    /// Whether it uses etcd, by its last sign of life.
    in_etcd: bool,
    /// The stamp in the file that the bridge saw or wrote last.
    stamp: u64,
    /// When it was seen to move, or when the bridge moved it.
    at: Instant,
    /// Whether its stamp was seen to move, or counts as such because the node was online at first.
    lives: bool,
    /// When the key of its life in etcd was written last, by itself.
    taken: i64,
}

impl Bridge {
    /// Between this file and this cluster; `threshold` is the ttl of nodes that do not say theirs.
    pub fn new(store: Store, settings: Etcd, threshold: Duration) -> Self {
        let keys = Keys::new(&settings.prefix);
        let (nodes, leases) = Default::default();
        Self { store, settings, keys, threshold, connection: None, attempts: 0, nodes, leases }
    }

    /// Brings both sides up to date once. To be repeated several times in each ttl.
    ///
    /// # Errors
    /// One side cannot be read or written. Trying again is harmless.
    pub async fn round(&mut self) -> Result<Progress, BridgeError> {
        let store = self.store.clone();
        let read = spawn_blocking(move || store.read()).await.map_err(|_| BridgeError::Task)?;
        let registry = match read {
            Ok((registry, _)) => registry,
            Err(error) if error.is_missing() => Registry::empty(),
            Err(error) => return Err(error.into()),
        };
        let (mut connection, endpoint) = match self.connection.take() {
            Some(open) => open,
            None => {
                let endpoint = self.settings.endpoints[self.attempts % self.settings.endpoints.len()].clone();
                self.attempts += 1;
                let connection = Connection::open(&self.settings, &endpoint).await;
                (connection.map_err(|source| failed(&endpoint, source))?, endpoint)
            }
        };
        let contents = connection.contents().await.map_err(|source| failed(&endpoint, source))?;
        let entries = self.entries(&contents);
        self.look(&registry, &entries, &contents);
        self.serve_etcd(&mut connection, &registry, &entries, &contents)
            .await
            .map_err(|source| failed(&endpoint, source))?;
        self.connection = Some((connection, endpoint));
        self.serve_file(entries).await?;
        let live = |in_etcd: bool| {
            let nodes = self.nodes.iter().filter(move |(_, known)| known.lives && known.in_etcd == in_etcd);
            nodes.map(|(name, _)| name.clone()).collect()
        };
        Ok(Progress { in_file: live(false), in_etcd: live(true) })
    }

    fn entries(&self, contents: &Contents) -> BTreeMap<NodeName, (Entry, i64)> {
        let entry = |kv: &etcd_client::KeyValue| {
            let Some(Key::Entry(name)) = self.keys.parse(kv.key()) else { return None };
            let entry = Entry::parse(kv.value())?;
            (entry.node()?.node_name().as_ref() == Some(&name)).then(|| (name, (entry, kv.mod_revision())))
        };
        contents.entries.iter().filter_map(entry).collect()
    }

    /// Notes who gave a sign of life where.
    fn look(&mut self, registry: &Registry, entries: &BTreeMap<NodeName, (Entry, i64)>, contents: &Contents) {
        let now = Instant::now();
        for (name, (_, node)) in registry.by_name() {
            let online = node.status != Status::Offline;
            let known = self.nodes.entry(name).or_insert_with(|| Known {
                in_etcd: false,
                stamp: node.last_seen,
                at: now,
                lives: online,
                taken: 0,
            });
            if known.stamp != node.last_seen {
                (known.stamp, known.at, known.lives, known.in_etcd) = (node.last_seen, now, online, false);
            }
        }
        let mut alive: HashMap<NodeName, i64> = HashMap::new();
        for kv in &contents.lives {
            if let Some(Key::Alive(name)) = self.keys.parse(kv.key())
                && kv.lease() != 0
                && kv.value() == name.as_str().as_bytes()
            {
                alive.insert(name, kv.mod_revision());
            }
        }
        for (name, taken) in &alive {
            let first = || Known { in_etcd: true, stamp: 0, at: now, lives: true, taken: 0 };
            let known = self.nodes.entry(name.clone()).or_insert_with(first);
            if known.taken < *taken {
                (known.taken, known.in_etcd, known.lives) = (*taken, true, true);
            }
        }
        for (name, known) in &mut self.nodes {
            let ttl = entries.get(name).and_then(|(entry, _)| entry.node()?.ttl()).unwrap_or(self.threshold);
            known.lives &= match known.in_etcd {
                true => alive.contains_key(name),
                false => now.saturating_duration_since(known.at) <= ttl,
            };
        }
    }

    /// Keeps entries and leases in etcd for those who use the file.
    async fn serve_etcd(
        &mut self,
        connection: &mut Connection,
        registry: &Registry,
        entries: &BTreeMap<NodeName, (Entry, i64)>,
        contents: &Contents,
    ) -> Result<(), Trouble> {
        for (name, (id, node)) in registry.by_name() {
            let Some(known) = self.nodes.get(&name).filter(|known| !known.in_etcd) else {
                self.leases.remove(&name);
                continue;
            };
            let ttl = node.ttl().unwrap_or(self.threshold);
            let heartbeats = known.lives && node.heartbeats();
            if heartbeats {
                let due = |lease: &Lease| lease.renewed_at.elapsed() >= ttl / BEATS;
                if let Some(lease) = self.leases.get_mut(&name).filter(|lease| due(lease)) {
                    match connection.renew(lease.id).await? {
                        true => lease.renewed_at = Instant::now(),
                        false => drop(self.leases.remove(&name)),
                    }
                }
                let id = match self.leases.get(&name) {
                    Some(lease) => lease.id,
                    None => {
                        let (id, _) = connection.grant(ttl).await?;
                        self.leases.insert(name.clone(), Lease { id, renewed_at: Instant::now() });
                        id
                    }
                };
                let alive = self.keys.alive(&name);
                let there = contents.lives.iter().any(|kv| kv.key() == alive.as_bytes() && kv.lease() == id);
                if !there && !connection.put_leased(&alive, BY, id).await? {
                    self.leases.remove(&name);
                }
            } else if let Some(lease) = self.leases.remove(&name) {
                connection.revoke(lease.id).await?;
            }
            let Some(entry) = registry.nodes.get(id) else { continue };
            let held = entries.get(&name);
            let news =
                held.is_none_or(|(held, _)| !held.node().is_some_and(|held| says_the_same(held, node)));
            if news {
                let before = held.map_or(0, |(_, revision)| *revision);
                // Somebody else was faster: then the next round sees what there is.
                let _ = connection.replace(&self.keys.entry(&name), entry.text().as_bytes(), before).await?;
            }
        }
        Ok(())
    }

    /// Moves the stamps in the file of those who use etcd, and copies the entries that the file does not have.
    async fn serve_file(&mut self, entries: BTreeMap<NodeName, (Entry, i64)>) -> Result<(), BridgeError> {
        let now = Instant::now();
        let epoch_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let mut wanted: Vec<(NodeName, Arc<Node>, bool)> = Vec::new();
        for (name, (entry, _)) in entries {
            let Some(node) = entry.node().cloned() else { continue };
            match self.nodes.get(&name) {
                // One that is offline already.
                None => wanted.push((name, node, false)),
                Some(known) if known.in_etcd => {
                    let ttl = node.ttl().unwrap_or(self.threshold);
                    let due = now.saturating_duration_since(known.at) >= ttl / BEATS;
                    wanted.push((name, node, known.lives && due));
                }
                Some(_) => {}
            }
        }
        let store = self.store.clone();
        let writing = spawn_blocking(move || {
            let mut stamps = Vec::new();
            let written = store.change(None, |registry| {
                stamps.clear();
                for (name, node, beat) in &wanted {
                    stamps.extend(
                        bring(registry, name, node, *beat, epoch_ms).map(|stamp| (name.clone(), stamp)),
                    );
                }
                registry.updated_at = registry.updated_at.max(epoch_ms);
                !stamps.is_empty()
            });
            written.map(|_| stamps)
        });
        for (name, stamp) in writing.await.map_err(|_| BridgeError::Task)?? {
            if let Some(known) = self.nodes.get_mut(&name) {
                (known.stamp, known.at) = (stamp, now);
            }
        }
        Ok(())
    }
}

/// Brings one entry of the file up to what etcd says. Returns the stamp it has then, if it was changed.
fn bring(registry: &mut Registry, name: &NodeName, node: &Node, beat: bool, epoch_ms: u64) -> Option<u64> {
    let held = registry.named(name).map(|(id, held)| (id.clone(), held.clone()));
    let Some((id, held)) = held else {
        let taken = node.id.is_empty() || registry.nodes.contains_key(&node.id);
        let id = if taken { name.to_string() } else { node.id.clone() };
        let last_seen = if beat { epoch_ms.max(node.last_seen) } else { node.last_seen };
        registry.nodes.insert(id.clone(), Node { id, last_seen, ..node.clone() }.into());
        return Some(last_seen);
    };
    if !beat && says_the_same(&held, node) {
        return None;
    }
    let last_seen = epoch_ms.max(held.last_seen.saturating_add(1));
    registry.nodes.get_mut(&id)?.update(Node { id, last_seen, ..node.clone() });
    Some(last_seen)
}

/// Whether two entries differ in nothing but their stamps and ids.
fn says_the_same(one: &Node, other: &Node) -> bool {
    let plain = |node: &Node| Node { id: String::new(), last_seen: 0, ..node.clone() };
    plain(one) == plain(other)
}

fn failed(endpoint: &Endpoint, source: Trouble) -> BridgeError {
    BridgeError::Etcd { endpoint: endpoint.as_str().into(), source }
}

//! Which nodes have hosted which agents: every member can register itself for any agent and get its share of the tasks, so
//! the log reports an agent that appears on a node that did not host it before. Kept for the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_shared::NodeName;
use mesh_shared::atomic_file;
use serde::{Deserialize, Serialize};

use crate::roster::store::RosterStore;

const FILE_NAME: &str = "agent-hosts.json";
/// For how long an operator is told, in seconds.
const TOLD: u64 = 86_400;
/// Agents on nodes that are remembered; others are not distinguished. Far more than a mesh has.
const MOST: usize = 20_000;
/// New ones that are remembered, and shown.
const MOST_NEWS: usize = 50;

/// What is known of it, and its copy on disk.
pub struct Hosts {
    path: PathBuf,
    /// `None`: no roster was ever seen.
    known: Mutex<Option<Known>>,
}

/// Who hosts or has hosted what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    hosts: BTreeMap<String, BTreeSet<NodeName>>,
    news: Vec<News>,
}

/// An agent that appeared on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct News {
    agent: String,
    node: NodeName,
    /// Epoch seconds.
    at: u64,
}

impl News {
    fn text(&self) -> String {
        format!(
            "agent {} appeared on {}, which did not host it before, and gets a share of its tasks: if that is not meant, \
             deny or revoke the node; mesh.agents: certified keeps it from happening",
            self.agent, self.node
        )
    }
}

impl Hosts {
    /// What an earlier process remembered in `state_dir`. What cannot be read is as good as nothing, apart from a line in
    /// the log.
    pub fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE_NAME);
        let read = || -> io::Result<Known> { Ok(serde_json::from_slice(&std::fs::read(&path)?)?) };
        let known = match read() {
            Ok(known) => Some(known),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(
                    target: "Mesh",
                    "the record of which nodes host which agents cannot be read: {}: {error}",
                    path.display()
                );
                None
            }
        };
        Self { path, known: Mutex::new(known) }
    }

    /// Compares with the roster as it is now; a partial one says nothing. The first one ever is what later ones are
    /// compared with. Says each agent that appeared once.
    pub fn look(&self, roster: &RosterStore) {
        let Some(rows) = roster.hosted() else { return };
        let now = now();
        let (known, news) = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let before = known.clone();
            let news = match known.as_mut() {
                Some(known) => known.compare(&rows, now),
                None => {
                    let mut first = Known::default();
                    first.learn(&rows);
                    *known = Some(first);
                    Vec::new()
                }
            };
            if *known == before {
                return;
            }
            (known.clone(), news)
        };
        for each in news.iter().filter(|each| !roster.is_own(&each.node)) {
            tracing::warn!(target: "Mesh", "{}", each.text());
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let saved = std::fs::create_dir_all(folder).and_then(|()| {
            let json = serde_json::to_vec(&known)?;
            atomic_file::replace(&self.path, &std::process::id().to_string(), &json, 0o600)
        });
        if let Err(error) = saved {
            tracing::warn!(
                target: "Mesh",
                "cannot keep {} (proxy.state_dir): {error}; agents that appeared would be reported again",
                self.path.display()
            );
        }
    }

    /// What an operator has to know, each in a sentence: for a day, as long as the node hosts the agent.
    pub fn problems(&self, roster: &RosterStore) -> Vec<String> {
        let since = now().saturating_sub(TOLD);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let news = known.iter().flat_map(|known| &known.news).filter(|each| {
            each.at >= since && !roster.is_own(&each.node) && roster.hosts(&each.node, &each.agent)
        });
        news.map(News::text).collect()
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Nodes with the agents on them.
pub type Rows = Vec<(NodeName, Vec<String>)>;

impl Known {
    /// The agents that appeared on nodes while others were known to host them. One that nobody hosted yet takes nothing
    /// from anybody.
    fn compare(&mut self, rows: &Rows, now: u64) -> Vec<News> {
        let appeared = rows.iter().flat_map(|(node, agents)| agents.iter().map(move |agent| (node, agent)));
        let appeared = appeared.filter(|(node, agent)| {
            self.hosts.get(*agent).is_some_and(|hosts| !hosts.is_empty() && !hosts.contains(*node))
        });
        let mut news: Vec<News> = appeared
            .map(|(node, agent)| News { agent: agent.clone(), node: node.clone(), at: now })
            .collect();
        self.learn(rows);
        // What could not be learnt would be told for ever.
        news.retain(|each| self.hosts.get(&each.agent).is_some_and(|hosts| hosts.contains(&each.node)));
        self.news.retain(|each| each.at.saturating_add(TOLD) > now);
        self.news.extend(news.iter().cloned());
        let excess = self.news.len().saturating_sub(MOST_NEWS);
        self.news.drain(..excess);
        news
    }

    fn learn(&mut self, rows: &Rows) {
        let mut left = MOST.saturating_sub(self.hosts.values().map(BTreeSet::len).sum());
        if left == 0 {
            // Those that are gone make room.
            let present: BTreeSet<(&str, &NodeName)> = rows
                .iter()
                .flat_map(|(node, agents)| agents.iter().map(move |agent| (agent.as_str(), node)))
                .collect();
            for (agent, hosts) in &mut self.hosts {
                hosts.retain(|node| present.contains(&(agent.as_str(), node)));
            }
            self.hosts.retain(|_, hosts| !hosts.is_empty());
            left = MOST.saturating_sub(self.hosts.values().map(BTreeSet::len).sum());
        }
        for (node, agents) in rows {
            for agent in agents {
                if left == 0 {
                    return;
                }
                if self.hosts.entry(agent.clone()).or_default().insert(node.clone()) {
                    left -= 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[(&str, &[&str])]) -> Rows {
        let row = |(node, agents): &(&str, &[&str])| {
            (node.parse().unwrap(), agents.iter().map(|agent| (*agent).to_owned()).collect())
        };
        rows.iter().map(row).collect()
    }

    fn news(known: &mut Known, now: &[(&str, &[&str])]) -> Vec<String> {
        known.compare(&rows(now), 0).iter().map(|news| format!("{}@{}", news.agent, news.node)).collect()
    }

    #[test]
    fn what_appears_elsewhere_is_told_once() {
        let mut known = Known::default();
        known.learn(&rows(&[("ct110", &["opus"]), ("ct111", &["grok"])]));
        let first = [("ct110", &["opus"][..]), ("ct111", &["grok"])];
        assert!(news(&mut known, &first).is_empty());
        let with = |more: &'static [&'static str]| [first[0], first[1], ("ct112", more)];
        assert!(news(&mut known, &with(&["scout"])).is_empty(), "nobody hosted it yet");
        assert_eq!(news(&mut known, &with(&["scout", "grok"])), ["grok@ct112"]);
        assert!(news(&mut known, &with(&["scout", "grok"])).is_empty());
        assert!(news(&mut known, &first).is_empty());
        assert!(news(&mut known, &with(&["grok"])).is_empty(), "it was there before");
        assert_eq!(news(&mut known, &[("ct113", &["grok"])]), ["grok@ct113"], "it moves");
    }

    #[test]
    fn nothing_piles_up() {
        let mut known = Known::default();
        let many = |from: usize| -> Rows {
            let agents = (from..from + MOST).map(|i| format!("a{i}")).collect();
            vec![("ct110".parse().unwrap(), agents)]
        };
        known.learn(&many(0));
        known.learn(&many(MOST));
        known.learn(&many(10 * MOST));
        assert_eq!(known.hosts.values().map(BTreeSet::len).sum::<usize>(), MOST);
        let agents: Vec<String> = (10 * MOST..10 * MOST + 200).map(|i| format!("a{i}")).collect();
        known.compare(&vec![("ct111".parse().unwrap(), agents)], 0);
        assert!(known.news.len() <= MOST_NEWS);
    }
}

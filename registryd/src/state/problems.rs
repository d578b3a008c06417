//! What is wrong now, each thing under what it is about, so that good news of one thing never hides another.

use std::collections::BTreeMap;

use mesh_shared::NodeName;
use mesh_shared::logging::Excerpt;

/// Most problems that are kept; those of many nodes are alike.
const MAX: usize = 64;
/// Longest sentence, in characters: parts of it may come from far nodes.
const MAX_CHARS: usize = 600;

/// What a problem is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// Reading the registry.
    Reading,
    /// Writing the registry.
    Writing,
    /// Storage that does not answer.
    Storage,
    /// Writing the copy for programs that only read.
    Export,
    /// Content of the registry that was set aside.
    Content,
    /// This host's sidecar.
    Sidecar,
    /// The configuration file, when it was read again.
    Configuration,
    /// Who could replace what this node trusts.
    Trust,
    /// This host's address.
    Address,
    /// One of this host's agents.
    Agent(String),
    /// A configured peer.
    Peer(NodeName),
    /// A name that two hosts have.
    Duplicate(NodeName),
}

/// All that is wrong now.
#[derive(Debug, Default)]
pub struct Problems {
    held: BTreeMap<About, String>,
}

impl Problems {
    /// States what is wrong, in a sentence; says so in the log if it is new.
    pub fn state(&mut self, about: About, sentence: String) {
        let sentence = shown(&sentence);
        if self.held.get(&about) != Some(&sentence) {
            tracing::warn!(target: "Registry", "{sentence}");
            self.keep(about, sentence);
        }
    }

    /// States what is wrong where the log has it already.
    pub fn state_quietly(&mut self, about: About, sentence: String) {
        self.keep(about, shown(&sentence));
    }

    /// Takes back what was stated. Returns whether something was.
    pub fn solve(&mut self, about: &About) -> bool {
        let solved = self.held.remove(about);
        if let Some(sentence) = &solved {
            tracing::info!(target: "Registry", "resolved: {sentence}");
        }
        solved.is_some()
    }

    /// Takes back those for which `keep` says no.
    pub fn solve_unless(&mut self, keep: impl Fn(&About) -> bool) {
        let gone: Vec<About> = self.held.keys().filter(|about| !keep(about)).cloned().collect();
        for about in gone {
            self.solve(&about);
        }
    }

    /// The sentences.
    pub fn sentences(&self) -> impl Iterator<Item = &String> {
        self.held.values()
    }

    /// The names that two hosts have.
    pub fn duplicates(&self) -> impl Iterator<Item = &NodeName> {
        self.held.keys().filter_map(|about| match about {
            About::Duplicate(name) => Some(name),
            _ => None,
        })
    }

    fn keep(&mut self, about: About, sentence: String) {
        if self.held.len() < MAX || self.held.contains_key(&about) {
            self.held.insert(about, sentence);
        }
    }
}

/// One line, whatever far nodes put into it.
fn shown(sentence: &str) -> String {
    Excerpt { text: sentence, max_chars: MAX_CHARS }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_news_of_one_peer_hides_no_other() {
        let mut problems = Problems::default();
        let peer = |name: &str| About::Peer(name.parse().unwrap());
        problems.state(peer("ct111"), "ct111 does not answer\n\u{1b}[2J".into());
        problems.solve(&peer("ct112"));
        problems.solve(&About::Reading);
        assert_eq!(problems.sentences().collect::<Vec<_>>(), ["ct111 does not answer  [2J"]);
        problems.solve_unless(|about| *about == About::Writing);
        assert_eq!(problems.sentences().count(), 0);
    }
}

//! Which names changed, so that whoever follows the mesh looks at those and not at everybody.

use std::collections::{BTreeMap, HashMap};

use mesh_shared::NodeName;

/// Names that are remembered. Of a follower that has missed more than that, nothing is known.
const KEPT: usize = 16_384;

/// The names that changed, each with the revision at which it changed last.
#[derive(Debug)]
pub struct Changes {
    revision: u64,
    last: HashMap<NodeName, u64>,
    order: BTreeMap<u64, NodeName>,
    /// The first revision from which on all changes are known.
    known_from: u64,
}

impl Changes {
    /// Nothing has changed yet. Revisions start from the time, so that they keep rising after a restart and none of
    /// an earlier run is taken for one of this.
    pub(super) fn new(epoch_ms: u64) -> Self {
        let revision = epoch_ms.saturating_mul(1000);
        Self { revision, last: HashMap::new(), order: BTreeMap::new(), known_from: revision }
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Notes a change of this name.
    pub(super) fn note(&mut self, name: &NodeName) {
        self.revision += 1;
        if let Some(before) = self.last.insert(name.clone(), self.revision) {
            self.order.remove(&before);
        }
        self.order.insert(self.revision, name.clone());
        if self.order.len() > KEPT
            && let Some((revision, name)) = self.order.pop_first()
        {
            self.last.remove(&name);
            self.known_from = revision;
        }
    }

    /// Notes a change that concerns everybody: who follows starts again.
    pub(super) fn note_all(&mut self) {
        self.revision += 1;
        self.last.clear();
        self.order.clear();
        self.known_from = self.revision;
    }

    /// The names that changed after `revision`, the first of them first; `None` where that is not known, as of a
    /// revision that is none of this run's.
    pub fn since(&self, revision: u64) -> Option<Vec<NodeName>> {
        if !(self.known_from..=self.revision).contains(&revision) {
            return None;
        }
        Some(self.order.range(revision + 1..).map(|(_, name)| name.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(i: usize) -> NodeName {
        format!("ct{i}").parse().unwrap()
    }

    #[test]
    fn each_name_is_told_once_to_who_has_missed_it() {
        let mut changes = Changes::new(7);
        let start = changes.revision();
        assert_eq!(changes.since(start), Some(Vec::new()));
        for i in [1, 2, 1] {
            changes.note(&name(i));
        }
        assert_eq!(changes.since(start), Some(vec![name(2), name(1)]));
        assert_eq!(changes.since(start + 2), Some(vec![name(1)]));
        assert_eq!(changes.since(changes.revision()), Some(Vec::new()));
        for unknown in [0, start - 1, changes.revision() + 1] {
            assert_eq!(changes.since(unknown), None, "{unknown}");
        }
        changes.note_all();
        assert_eq!(changes.since(changes.revision() - 1), None);
        assert_eq!(changes.since(changes.revision()), Some(Vec::new()));
    }

    #[test]
    fn of_what_is_no_longer_kept_nothing_is_said() {
        let mut changes = Changes::new(7);
        let start = changes.revision();
        (0..KEPT).for_each(|i| changes.note(&name(i)));
        assert_eq!(changes.since(start).map(|names| names.len()), Some(KEPT));
        changes.note(&name(KEPT));
        assert_eq!(changes.since(start), None);
        assert_eq!(changes.since(start + 1).map(|names| names.len()), Some(KEPT));
    }
}

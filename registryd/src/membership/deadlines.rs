//! When members count as silent, unless they move before: so that nobody has to be looked at until then.

use std::collections::BTreeSet;
use std::time::Instant;

use mesh_shared::NodeName;

/// A moment on one of the two clocks that silence is counted on: that of looks at the registry, or, for who was heard
/// by network, the one that hearing anybody moves, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deadline {
    pub(super) heard: bool,
    pub(super) at: Instant,
}

/// The deadlines of all members, in order.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    looks: BTreeSet<(Instant, NodeName)>,
    network: BTreeSet<(Instant, NodeName)>,
}

impl Deadlines {
    /// Replaces what is `set` for a member by what is `wanted`. One that is due too early stays: whoever moves every
    /// few seconds is then looked at once a ttl and not at each move.
    pub(super) fn set(&mut self, name: &NodeName, set: &mut Option<Deadline>, wanted: Option<Deadline>) {
        if let (Some(set), Some(wanted)) = (&set, wanted)
            && set.heard == wanted.heard
            && set.at <= wanted.at
        {
            return;
        }
        if let Some(before) = set.take() {
            self.of(before.heard).remove(&(before.at, name.clone()));
        }
        if let Some(deadline) = wanted {
            self.of(deadline.heard).insert((deadline.at, name.clone()));
        }
        *set = wanted;
    }

    /// Removes and returns the next member whose deadline has passed where its clock shows `looked_to` or, by network,
    /// `heard_to`.
    pub(super) fn pop(&mut self, looked_to: Instant, heard_to: Instant) -> Option<NodeName> {
        for (deadlines, passed) in [(&mut self.looks, looked_to), (&mut self.network, heard_to)] {
            if deadlines.first().is_some_and(|(at, _)| *at < passed) {
                return deadlines.pop_first().map(|(_, name)| name);
            }
        }
        None
    }

    fn of(&mut self, heard: bool) -> &mut BTreeSet<(Instant, NodeName)> {
        if heard { &mut self.network } else { &mut self.looks }
    }
}

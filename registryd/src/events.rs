//! Changes of the mesh as a stream that a reader can resume: numbered, the last ones kept.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_shared::event::Event;
use tokio::sync::broadcast;

/// Events kept for readers that come back.
const KEPT: usize = 1000;

/// The log of changes and those who listen to it.
#[derive(Debug)]
pub struct EventLog {
    kept: Mutex<(u64, VecDeque<Arc<Event>>)>,
    listeners: broadcast::Sender<Option<Arc<Event>>>,
}

impl EventLog {
    /// An empty log. Its numbers start from the time, so that they keep rising after a restart.
    pub fn new(epoch_ms: u64) -> Self {
        let first = epoch_ms.saturating_mul(1000);
        Self { kept: Mutex::new((first, VecDeque::new())), listeners: broadcast::channel(256).0 }
    }

    /// Appends an event; its `id` is given here.
    pub fn push(&self, mut event: Event) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.0 += 1;
        event.id = kept.0;
        let event = Arc::new(event);
        if kept.1.len() == KEPT {
            kept.1.pop_front();
        }
        kept.1.push_back(event.clone());
        // Fails only when nobody listens.
        let _ = self.listeners.send(Some(event));
    }

    /// Notes that there were changes that are not known one by one: every reader is told so.
    pub fn missed(&self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.0 += 1;
        kept.1.clear();
        // Fails only when nobody listens.
        let _ = self.listeners.send(None);
    }

    /// The stream from `last_id` on, the last event that the reader has; from now on without one.
    pub fn listen(&self, last_id: Option<u64>) -> Listening {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (newest, live) = (kept.0, self.listeners.subscribe());
        let Some(last) = last_id else { return Listening { missed: Vec::new(), gap: false, newest, live } };
        let before_kept = kept.1.front().map_or(newest, |event| event.id - 1);
        // Of an earlier run, or from before a clock was set back: what else there was is not known here.
        let gap = !(before_kept..=newest).contains(&last);
        let missed = kept.1.iter().filter(|event| gap || event.id > last).cloned().collect();
        Listening { missed, gap, newest, live }
    }
}

/// What a reader gets, without a gap between the parts.
#[derive(Debug)]
pub struct Listening {
    /// The kept events that the reader has not had.
    pub missed: Vec<Arc<Event>>,
    /// Whether there were others that are no longer kept, or were noticed by an earlier run.
    pub gap: bool,
    /// The number of the last event so far.
    pub newest: u64,
    /// What happens from now on; `None`: changes were missed.
    pub live: broadcast::Receiver<Option<Arc<Event>>>,
}

#[cfg(test)]
mod tests {
    use mesh_shared::event::Kind;
    use mesh_shared::registry::Status;

    use super::*;

    #[test]
    fn a_reader_resumes_where_it_left() {
        let log = EventLog::new(7);
        let event = |name: &str| Event {
            id: 0,
            event: Kind::Joined,
            node: name.parse().unwrap(),
            status: Status::Online,
            agents: Vec::new(),
            at: 0,
        };
        for i in 0..KEPT + 10 {
            log.push(event(&format!("n{i}")));
        }
        let all = log.listen(Some(0));
        assert_eq!((all.missed.len(), all.gap), (KEPT, true));
        let ids: Vec<_> = all.missed.iter().map(|event| event.id).collect();
        let mut rest = log.listen(Some(ids[KEPT - 3]));
        assert_eq!(rest.missed.iter().map(|e| e.node.as_str()).collect::<Vec<_>>(), ["n1008", "n1009"]);
        assert!(!rest.gap);
        // The last one that is no longer kept, the one before it, the newest, and one of the future.
        for (last, missed, gap) in [
            (ids[0] - 1, KEPT, false),
            (ids[0] - 2, KEPT, true),
            (all.newest, 0, false),
            (all.newest + 1, KEPT, true),
        ] {
            let listening = log.listen(Some(last));
            assert_eq!((listening.missed.len(), listening.gap), (missed, gap), "{last}");
        }
        let new = log.listen(None);
        assert!(new.missed.is_empty() && !new.gap);
        log.push(event("late"));
        assert_eq!(rest.live.try_recv().unwrap().unwrap().node.as_str(), "late");
    }

    #[test]
    fn a_reader_that_had_all_of_a_silent_run_has_missed_nothing() {
        let log = EventLog::new(7);
        let newest = log.listen(None).newest;
        assert!(!log.listen(Some(newest)).gap);
        assert!(EventLog::new(8).listen(Some(newest)).gap);
    }
}

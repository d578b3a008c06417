//! Connections that are open, no more than a number of them: for a new one, the one that has waited longest without
//! asking anything makes room.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

/// All connections of one listener.
#[derive(Debug)]
pub struct Connections {
    most: usize,
    held: Mutex<(u64, BTreeMap<u64, Held>)>,
}

#[derive(Debug)]
struct Held {
    /// Requests under way.
    busy: usize,
    waits_since: Instant,
    close: Arc<Notify>,
}

/// The place of one connection.
#[derive(Debug)]
pub struct Place {
    all: Arc<Connections>,
    number: u64,
    close: Arc<Notify>,
}

/// A request under way.
#[derive(Debug)]
pub struct Busy(Arc<Place>);

impl Connections {
    /// At most so many at once.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, held: Mutex::default() })
    }

    /// A place for a new connection; `None`: all are busy.
    pub fn place(self: &Arc<Self>) -> Option<Arc<Place>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.1.len() >= self.most {
            let idle = held.1.iter().filter(|(_, held)| held.busy == 0);
            let longest = idle.min_by_key(|(_, held)| held.waits_since).map(|(number, _)| *number)?;
            if let Some(gone) = held.1.remove(&longest) {
                gone.close.notify_one();
            }
        }
        held.0 += 1;
        let (number, close) = (held.0, Arc::new(Notify::new()));
        held.1.insert(number, Held { busy: 0, waits_since: Instant::now(), close: close.clone() });
        Some(Arc::new(Place { all: self.clone(), number, close }))
    }

    /// Whether more than half of the places are taken.
    pub fn are_scarce(&self) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).1.len() > self.most / 2
    }

    fn change(&self, number: u64, change: impl FnOnce(&mut Held)) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = held.1.get_mut(&number) {
            change(held);
        }
    }
}

impl Place {
    /// Returns once the connection has to make room for another one.
    pub async fn taken(&self) {
        self.close.notified().await;
    }

    /// Keeps the place until the returned value is dropped.
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.all.change(self.number, |held| held.busy += 1);
        Busy(self.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.all.change(self.0.number, |held| {
            held.busy = held.busy.saturating_sub(1);
            held.waits_since = Instant::now();
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.all.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.1.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_longest_makes_room_and_who_is_busy_does_not() {
        let all = Connections::new(2);
        let (first, second) = (all.place().unwrap(), all.place().unwrap());
        let busy = first.busy();
        let third = all.place().unwrap();
        second.taken().await;
        let _also = third.busy();
        assert!(all.place().is_none() && all.are_scarce());
        drop(busy);
        let fourth = all.place().unwrap();
        first.taken().await;
        drop((first, fourth, third));
        assert!(all.place().is_some());
    }
}

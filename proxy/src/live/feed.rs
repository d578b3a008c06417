//! Who reads the live view, and what each of them has missed.

use std::ops::AddAssign;

use bytes::Bytes;
use mesh_shared::live::{MAX_PEERS_READERS, MAX_READERS};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::error::ProxyError;
use crate::live::LIVE;
use crate::live::refused::REFUSED;
use crate::metrics::Direction;

/// Lines that wait for a reader. One that lets more come loses them.
const WAITING: usize = 2;

/// The readers.
pub(super) static FEEDS: Feeds = Feeds {
    open: Mutex::new(Open { feeds: Vec::new(), opened: 0, closed: (false, false) }),
    came: Notify::const_new(),
};

/// The readers, and their lock, which is held for moments only: lines are made and sent without it.
pub(super) struct Feeds {
    open: Mutex<Open>,
    /// Somebody came.
    pub(super) came: Notify,
}

struct Open {
    feeds: Vec<Feed>,
    opened: u64,
    /// Whether peers are no longer let in, and whether nobody is.
    closed: (bool, bool),
}

struct Feed {
    number: u64,
    /// Peers read by the inbound side, operators of this host by its own socket.
    side: Direction,
    lines: mpsc::Sender<Bytes>,
    /// Whether it has had no line yet.
    fresh: bool,
    /// What was in lines that it did not take.
    missed: Missed,
}

/// How many ended and were refused in lines that a reader did not take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Missed {
    pub(super) ended: u64,
    pub(super) refused: u64,
}

impl AddAssign for Missed {
    fn add_assign(&mut self, more: Self) {
        self.ended += more.ended;
        self.refused += more.refused;
    }
}

/// A reader's place, which it leaves with the value.
pub struct Reading(u64);

impl Feeds {
    /// Gives each reader a line: `line` makes it, for the fresh ones or the others, with what the reader has missed. `lost` is
    /// what is in a line that is not taken. Whether there still are readers. Only one task may call it.
    pub(super) fn tell(&self, fresh: bool, lost: Missed, mut line: impl FnMut(Missed) -> Bytes) -> bool {
        let mut open = self.open.lock();
        let due = open.feeds.iter_mut().filter(|feed| feed.fresh == fresh).map(|feed| {
            feed.fresh = false;
            (feed.number, feed.lines.clone(), std::mem::take(&mut feed.missed))
        });
        let due: Vec<_> = due.collect();
        drop(open);
        let mut late = Vec::new();
        for (number, lines, mut missed) in due {
            match lines.try_reserve() {
                Ok(room) => room.send(line(missed)),
                Err(_) => {
                    missed += lost;
                    late.push((number, missed));
                }
            }
        }
        let mut open = self.open.lock();
        for (number, missed) in late {
            // It may be gone by now.
            if let Some(feed) = open.feeds.iter_mut().find(|feed| feed.number == number) {
                feed.missed = missed;
            }
        }
        !open.feeds.is_empty()
    }
}

/// Opens the live view for one more reader, who reads on this side.
///
/// # Errors
/// There are as many as there may be.
pub fn open(side: Direction) -> Result<(mpsc::Receiver<Bytes>, Reading), ProxyError> {
    let (sender, lines) = mpsc::channel(WAITING);
    let mut open = FEEDS.open.lock();
    let of_side = open.feeds.iter().filter(|feed| feed.side == side).count();
    let most = if side == Direction::Inbound { MAX_PEERS_READERS } else { MAX_READERS };
    if of_side >= most || open.feeds.len() >= MAX_READERS {
        return Err(ProxyError::LiveFull { most });
    }
    open.opened += 1;
    let number = open.opened;
    let (of_peers, of_all) = open.closed;
    // Where it is closed, the answer ends before its first line.
    if !(of_all || (of_peers && side == Direction::Inbound)) {
        open.feeds.push(Feed { number, side, lines: sender, fresh: true, missed: Missed::default() });
        LIVE.keep();
        REFUSED.keep();
    }
    drop(open);
    FEEDS.came.notify_one();
    Ok((lines, Reading(number)))
}

/// Ends what peers read. Those that may come again.
pub fn end_inbound() {
    FEEDS.open.lock().end_inbound();
}

/// Ends what peers read, for good: a side that stops waits for nobody who would read for ever.
pub fn close_inbound() {
    let mut open = FEEDS.open.lock();
    open.closed.0 = true;
    open.end_inbound();
}

/// Ends what everybody reads, for good: another process tells it from now on.
pub fn close() {
    let mut open = FEEDS.open.lock();
    open.closed = (true, true);
    open.feeds.clear();
    open.rest();
}

impl Open {
    fn end_inbound(&mut self) {
        self.feeds.retain(|feed| feed.side != Direction::Inbound);
        self.rest();
    }

    /// Keeps nothing any more of what ends, once nobody reads.
    fn rest(&self) {
        if self.feeds.is_empty() {
            LIVE.rest();
            REFUSED.rest();
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut open = FEEDS.open.lock();
        open.feeds.retain(|feed| feed.number != self.0);
        open.rest();
    }
}

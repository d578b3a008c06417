//! Who reads the live view, and what each of them has missed.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use mesh_shared::live::{MAX_PEERS_READERS, MAX_READERS};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::error::ProxyError;
use crate::live::LIVE;
use crate::metrics::Direction;

/// Lines that wait for a reader. One that lets more come loses them.
const WAITING: usize = 2;

/// The readers.
#[derive(Default)]
pub(super) struct Feeds {
    open: Mutex<Open>,
    /// Somebody came.
    pub(super) came: Notify,
}

#[derive(Default)]
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
    /// Exchanges of lines that it did not take.
    missed: u64,
}

/// A reader's place, which it leaves with the value.
pub struct Reading(u64);

impl Feeds {
    /// Gives each reader a line: `line` makes it, for the fresh ones or the others, with what the reader has missed. `ended` is
    /// how many exchanges are lost with a line that is not taken. Whether there still are readers.
    pub(super) fn tell(&self, fresh: bool, ended: u64, mut line: impl FnMut(u64) -> Bytes) -> bool {
        let mut open = self.open.lock();
        for feed in open.feeds.iter_mut().filter(|feed| feed.fresh == fresh) {
            feed.fresh = false;
            match feed.lines.try_reserve() {
                Ok(room) => room.send(line(std::mem::take(&mut feed.missed))),
                Err(_) => feed.missed += ended,
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
    let mut open = LIVE.feeds.open.lock();
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
        open.feeds.push(Feed { number, side, lines: sender, fresh: true, missed: 0 });
        LIVE.read.store(true, Ordering::Relaxed);
    }
    drop(open);
    LIVE.feeds.came.notify_one();
    Ok((lines, Reading(number)))
}

/// Ends what peers read. Those that may come again.
pub fn end_inbound() {
    LIVE.feeds.open.lock().end_inbound();
}

/// Ends what peers read, for good: a side that stops waits for nobody who would read for ever.
pub fn close_inbound() {
    let mut open = LIVE.feeds.open.lock();
    open.closed.0 = true;
    open.end_inbound();
}

/// Ends what everybody reads, for good: another process tells it from now on.
pub fn close() {
    let mut open = LIVE.feeds.open.lock();
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
            LIVE.read.store(false, Ordering::Relaxed);
            drop(LIVE.take_ended());
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut open = LIVE.feeds.open.lock();
        open.feeds.retain(|feed| feed.number != self.0);
        open.rest();
    }
}

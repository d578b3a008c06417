//! How far a connection of HTTP/1.1 has got with its requests, as its ends see it: what was asked and answered above hyper, what
//! was read and written below it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What one connection has done so far. Its own task alone changes it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Requests that were given to the sidecar.
    asked: AtomicU64,
    /// How many of them have been answered, as far as the sidecar gives the answer's bytes to its connection.
    answered: AtomicU64,
    /// How many answers had been given to hyper when it had last written all that it had.
    written: AtomicU64,
    /// Whether some request was answered before all of it had been read.
    unread: AtomicBool,
    /// Whether hyper has begun to write something, or to close, since it last had written all.
    writes: AtomicBool,
    /// Whether its last read found nothing.
    waits: AtomicBool,
}

impl Progress {
    /// Notes that a request was given to the sidecar.
    pub fn asks(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the last byte of a request's answer was given to the connection. Never for a request after which the
    /// connection leaves HTTP.
    pub fn answers(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a request is answered of which not all was read. What is left of it may still come.
    pub fn leaves_unread(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    /// How many requests there have been, if each has been answered.
    pub fn all_answered(&self) -> Option<u64> {
        let answered = self.answered.load(Ordering::Relaxed);
        (self.asked.load(Ordering::Relaxed) == answered).then_some(answered)
    }

    /// Notes that hyper writes, or closes.
    pub fn writes(&self) {
        self.writes.store(true, Ordering::Relaxed);
    }

    /// Notes that all is out that hyper had to write when `answered` answers had been given to it, or where `None` were
    /// under way.
    pub fn has_written(&self, answered: Option<u64>) {
        self.writes.store(false, Ordering::Relaxed);
        if let Some(answered) = answered {
            self.written.store(answered, Ordering::Relaxed);
        }
    }

    /// How many requests there have been, if the answer to each was out when hyper last had nothing to write.
    pub fn all_written(&self) -> Option<u64> {
        let written = self.written.load(Ordering::Relaxed);
        (self.all_answered() == Some(written)).then_some(written)
    }

    /// Notes whether a read found nothing.
    pub fn reads(&self, nothing: bool) {
        self.waits.store(nothing, Ordering::Relaxed);
    }

    /// How many requests there have been, if the connection certainly has done with all of each and waits for the next
    /// one. Some of that one may have been read.
    pub fn idle_after(&self) -> Option<u64> {
        let waits = self.waits.load(Ordering::Relaxed);
        let still = !self.writes.load(Ordering::Relaxed) && !self.unread.load(Ordering::Relaxed);
        self.all_written().filter(|answers| waits && still && *answers > 0)
    }
}

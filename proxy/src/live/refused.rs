//! Connections of peers that are refused before there is a request, for readers of the live view.
//!
//! Whoever reaches the port can cause as many of them as they like. So they have a place of their own, in which they displace no
//! exchange, and are told one by one only where the log has a line for them: the others are counted.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use mesh_shared::live::MAX_REFUSED;
use parking_lot::Mutex;

use crate::tls::verify::PeerIdentity;

/// What this process refused.
pub static REFUSED: Refusals = Refusals {
    read: AtomicBool::new(false),
    table: Mutex::new(Table { kept: Vec::new(), omitted: 0, entered: 0 }),
};

/// What was refused since somebody was told.
pub struct Refusals {
    /// Whether anybody reads.
    read: AtomicBool,
    table: Mutex<Table>,
}

struct Table {
    kept: Vec<Refused>,
    omitted: u64,
    entered: u64,
}

/// A connection that was refused.
pub(super) struct Refused {
    pub(super) id: u64,
    pub(super) at: Instant,
    pub(super) address: IpAddr,
    pub(super) peer: Option<Arc<PeerIdentity>>,
    pub(super) cause: &'static str,
    pub(super) reason: String,
}

impl Refusals {
    /// A connection was refused. `peer`: who it is, where that is proved; `told`: whether the log has a line of its own for it.
    pub fn note(
        &self,
        address: IpAddr,
        peer: Option<&Arc<PeerIdentity>>,
        cause: &'static str,
        reason: &str,
        told: bool,
    ) {
        if !self.read.load(Ordering::Relaxed) {
            return;
        }
        let mut table = self.table.lock();
        if !told || table.kept.len() >= MAX_REFUSED {
            table.omitted += 1;
            return;
        }
        table.entered += 1;
        let (id, at) = (table.entered, Instant::now());
        table.kept.push(Refused { id, at, address, peer: peer.cloned(), cause, reason: reason.to_owned() });
    }

    /// Keeps what is refused from now on, for readers.
    pub(super) fn keep(&self) {
        self.read.store(true, Ordering::Relaxed);
    }

    /// Keeps nothing any more.
    pub(super) fn rest(&self) {
        self.read.store(false, Ordering::Relaxed);
        drop(self.take());
    }

    /// What was refused since this was asked last, and how many more.
    pub(super) fn take(&self) -> (Vec<Refused>, u64) {
        let mut table = self.table.lock();
        (std::mem::take(&mut table.kept), std::mem::take(&mut table.omitted))
    }
}

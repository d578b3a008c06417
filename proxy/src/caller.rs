//! Who sends requests, and what the requests of one connection share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::http::upgrade::Tunnel;
use crate::tls::verify::PeerIdentity;

/// Who sent a request.
#[derive(Debug)]
pub enum Caller {
    /// A peer, as its certificate proved.
    Peer(Arc<PeerIdentity>),
    /// A program of this host.
    Program(Option<SocketAddr>),
}

/// A connection on which requests come, as far as they share it.
pub struct Connection {
    /// Who sends them.
    pub caller: Caller,
    /// What the connection carries once it has left HTTP.
    pub tunnel: Tunnel,
    /// Whether a request has come.
    begun: AtomicBool,
    /// Why this sidecar ends the connection in the middle of what it does.
    cut: OnceLock<&'static str>,
}

impl Connection {
    /// A connection of `caller`.
    pub fn new(caller: Caller) -> Self {
        Self { caller, tunnel: Tunnel::default(), begun: AtomicBool::new(false), cut: OnceLock::new() }
    }

    /// Notes that a request has come.
    pub fn begins(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    /// Whether a request has come.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Why this sidecar ended the connection, or all of them; `None` where it did not.
    pub fn why_cut(&self) -> Option<&'static str> {
        self.cut.get().or_else(|| STOPPED.get()).copied()
    }

    /// Notes why the connection is about to be ended from here; what is under way on it then says so.
    pub fn cut(&self, why: &'static str) {
        // The first reason stays.
        let _ = self.cut.set(why);
    }
}

/// Why all that is still under way ends now, once the time for stopping is over.
static STOPPED: OnceLock<&'static str> = OnceLock::new();

/// Notes that what is still under way is cut off because the sidecar ends.
pub fn all_cut(why: &'static str) {
    let _ = STOPPED.set(why);
}

//! The signals that this process answers to.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(PartialEq, Eq)]
pub(super) enum Asked {
    Stop,
    Upgrade,
}

/// The signals that this process answers to, apart from SIGHUP.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    upgrade: Signal,
}

impl Signals {
    /// SIGHUP's, and all others.
    pub(super) fn listen() -> io::Result<([Signal; 2], Self)> {
        let signals = Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            upgrade: signal(SignalKind::user_defined2())?,
        };
        Ok(([signal(SignalKind::hangup())?, signal(SignalKind::hangup())?], signals))
    }

    /// Returns at the next of them.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.upgrade.recv() => Asked::Upgrade,
        }
    }

    /// Returns at the next SIGTERM or SIGINT. There is nothing to upgrade meanwhile.
    pub(super) async fn stop(&mut self) {
        while self.next().await != Asked::Stop {}
    }
}

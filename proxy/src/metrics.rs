//! Counters of this process, in the text form that Prometheus reads.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counters.
pub static METRICS: Metrics = Metrics {
    inbound_connections: Value::new(),
    inbound_handshake_failures: Value::new(),
    inbound_requests: Value::new(),
    outbound_requests: Value::new(),
    outbound_dials: Value::new(),
    outbound_dial_failures: Value::new(),
    sidecar_errors: Value::new(),
    credential_reload_failures: Value::new(),
};

/// All counters, by name.
pub struct Metrics {
    /// Connections whose handshake succeeded.
    pub inbound_connections: Value,
    /// Connections whose handshake failed.
    pub inbound_handshake_failures: Value,
    /// Requests accepted from peers.
    pub inbound_requests: Value,
    /// Requests accepted from this host's programs.
    pub outbound_requests: Value,
    /// Connections made to peers.
    pub outbound_dials: Value,
    /// Connections to peers that could not be made.
    pub outbound_dial_failures: Value,
    /// Answers that a sidecar made itself because something failed.
    pub sidecar_errors: Value,
    /// Reloads of certificates that failed.
    pub credential_reload_failures: Value,
}

/// A counter that only rises.
pub struct Value(AtomicU64);

impl Value {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts one more.
    pub fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// The text for `GET /metrics`.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (name, help, value) in [
            ("inbound_connections", "Connections whose handshake succeeded", &self.inbound_connections),
            (
                "inbound_handshake_failures",
                "Connections whose handshake failed",
                &self.inbound_handshake_failures,
            ),
            ("inbound_requests", "Requests accepted from peers", &self.inbound_requests),
            ("outbound_requests", "Requests accepted from this host", &self.outbound_requests),
            ("outbound_dials", "Connections made to peers", &self.outbound_dials),
            (
                "outbound_dial_failures",
                "Connections to peers that could not be made",
                &self.outbound_dial_failures,
            ),
            ("sidecar_errors", "Error answers made by this sidecar", &self.sidecar_errors),
            (
                "credential_reload_failures",
                "Failed reloads of certificates",
                &self.credential_reload_failures,
            ),
        ] {
            let count = value.0.load(Ordering::Relaxed);
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "# HELP mesh_proxy_{name}_total {help}.\n# TYPE mesh_proxy_{name}_total counter\nmesh_proxy_{name}_total {count}"
            );
        }
        text
    }
}

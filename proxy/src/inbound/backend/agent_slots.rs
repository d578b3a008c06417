//! How much the agent is given at once, by all workers together: requests take a slot or wait for one.

use std::sync::Arc;
use std::time::Duration;

use mesh_shared::config;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::error::ProxyError;
use crate::inbound::admission::Peer;
use crate::inbound::slots::{Entered, Slots};
use crate::metrics::{Held, Limit, METRICS};

/// What the agent is given at once, by all workers together.
pub struct AgentSlots {
    requests: Mutex<Slots<oneshot::Sender<()>>>,
    /// Event streams and upgraded connections, of which nobody waits for one.
    streams: Mutex<Slots<()>>,
    limits: config::Backend,
}

impl AgentSlots {
    /// As many as configured.
    pub fn new(limits: &config::Backend) -> Self {
        Self {
            requests: Mutex::new(Slots::new(limits.max_requests, limits.max_queue)),
            streams: Mutex::new(Slots::new(limits.max_event_streams, 0)),
            limits: limits.clone(),
        }
    }

    /// A slot for a request of `peer`, as soon as there is one for it.
    ///
    /// # Errors
    /// None came free in time.
    pub async fn enter(self: &Arc<Self>, peer: &Peer) -> Result<Slot, ProxyError> {
        let mut slot = Slot { slots: self.clone(), caller: peer.id(), kind: Kind::None, counted: None };
        let mut granted = None;
        let entered = self.requests.lock().enter(slot.caller, || {
            let (grant, receiver) = oneshot::channel();
            granted = Some(receiver);
            grant
        });
        match entered {
            Entered::Taken => slot.becomes(Kind::Request),
            Entered::Waits(ticket) => slot.becomes(Kind::Waiting(ticket)),
            Entered::Refused => METRICS.refused(Limit::BackendQueue),
        }
        let waited = match (slot.kind, granted) {
            (Kind::Request, _) => return Ok(slot),
            (Kind::Waiting(_), Some(granted)) => {
                if let Ok(Ok(())) = timeout(self.limits.queue, granted).await {
                    slot.becomes(Kind::Request);
                    return Ok(slot);
                }
                METRICS.refused(Limit::BackendRequests);
                self.limits.queue
            }
            _ => Duration::ZERO,
        };
        Err(ProxyError::AgentBusy {
            most: self.limits.max_requests,
            waited_ms: waited.as_millis(),
            key: "proxy.backend.max_requests",
        })
    }

    fn leave(&self, caller: u64) {
        let mut requests = self.requests.lock();
        requests.leave(caller);
        while let Some(grant) = requests.grant() {
            // Whoever gave up meanwhile gives it back itself.
            let _ = grant.send(());
        }
    }
}

/// A slot at the agent, or the place of a request that waits for one, until it is dropped.
pub struct Slot {
    slots: Arc<AgentSlots>,
    caller: u64,
    kind: Kind,
    counted: Option<Held>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Request,
    Stream,
    Waiting(u64),
    None,
}

impl Slot {
    fn becomes(&mut self, kind: Kind) {
        let limit = match kind {
            Kind::Request => Some(Limit::BackendRequests),
            Kind::Stream => Some(Limit::BackendEventStreams),
            Kind::Waiting(_) => Some(Limit::BackendQueue),
            Kind::None => None,
        };
        (self.kind, self.counted) = (kind, limit.map(|limit| METRICS.slot(limit)));
    }

    /// Moves to the streams, which take no slots of requests.
    ///
    /// # Errors
    /// There are as many of those as there may be.
    pub fn becomes_stream(&mut self) -> Result<(), ProxyError> {
        if !self.slots.streams.lock().enter_now(self.caller) {
            METRICS.refused(Limit::BackendEventStreams);
            return Err(ProxyError::AgentBusy {
                most: self.slots.limits.max_event_streams,
                waited_ms: 0,
                key: "proxy.backend.max_event_streams",
            });
        }
        self.becomes(Kind::Stream);
        self.slots.leave(self.caller);
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        match self.kind {
            Kind::Request => self.slots.leave(self.caller),
            Kind::Stream => self.slots.streams.lock().leave(self.caller),
            Kind::Waiting(ticket) => {
                let waited = self.slots.requests.lock().give_up(self.caller, ticket);
                if !waited {
                    self.slots.leave(self.caller);
                }
            }
            Kind::None => {}
        }
    }
}

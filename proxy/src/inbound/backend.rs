//! The servers of this host's agents: plain HTTP on loopback or a unix socket, with a limit of concurrent
//! requests for each.
//!
//! [`agent_slots`] says when a request may go to one, [`server`] in which protocol; [`connections`] and [`shared`] have
//! something to send it on, which [`dial`] connects.

pub mod agent_slots;
pub mod connections;
pub mod dial;
pub mod server;
pub mod shared;

use std::collections::HashMap;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use mesh_shared::config::{self, AgentServer, HostHeader, Limits};
use mesh_shared::{AgentName, BackendAddr};

use crate::error::ProxyError;
use crate::http::body::RequestBody;
use crate::http::headers::to_origin_form;
use crate::http::incoming::Incoming;
use crate::http::redirect;
use crate::inbound::admission::Peer;
use crate::inbound::backend::agent_slots::{AgentSlots, Slot};
use crate::inbound::backend::server::{Carrier, Server, failure};

/// One worker's ways to the servers.
pub struct Backend {
    default: Server,
    /// What servers are told in `Host`.
    host: HostHeader,
    /// The agents that have servers of their own.
    agents: HashMap<AgentName, Arc<Server>>,
}

/// What a request occupies until its answer has passed.
pub struct Occupied {
    /// Before the slot: whoever gets that finds the connection.
    _carrier: Carrier,
    _slot: Slot,
    address: Arc<str>,
}

/// What each server is given at once, by all workers together.
pub type SlotsByAddress = HashMap<BackendAddr, Arc<AgentSlots>>;

/// Slots for each server that is configured.
pub fn slots(backend: &config::Backend) -> SlotsByAddress {
    let addresses = backend.addresses().into_iter();
    addresses.map(|(_, address)| (address.clone(), Arc::new(AgentSlots::new(backend)))).collect()
}

impl Backend {
    /// Ways to the servers that are configured, which get no more at once than `slots` allow. Nothing is connected yet.
    pub fn new(backend: &config::Backend, limits: &Limits, slots: &SlotsByAddress) -> Self {
        let server = |configured: &AgentServer| {
            let slots = slots.get(&configured.address).cloned();
            let slots = slots.unwrap_or_else(|| Arc::new(AgentSlots::new(backend)));
            Server::new(configured, backend, limits, slots)
        };
        let agents =
            backend.agents.iter().map(|(agent, configured)| (agent.clone(), Arc::new(server(configured))));
        Self { default: server(&backend.server), host: backend.host, agents: agents.collect() }
    }

    /// Sends a request of `peer` for the agent that it names, whose headers are as the backend should see them, once there is a slot for it. Its `Host` is
    /// replaced where servers are told their own, and places of their own in the answer become paths. What it occupies is to be kept until the answer has passed.
    ///
    /// # Errors
    /// The backend has enough to do, does not listen, or ended the connection before it answered.
    pub async fn send(
        &self,
        peer: &Peer,
        agent: Option<&AgentName>,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Occupied), ProxyError> {
        let server = agent.and_then(|agent| self.agents.get(agent)).map_or(&self.default, |server| &**server);
        let mut slot = server.slots.enter(peer).await?;
        request.body().sent(true);
        to_origin_form(request.uri_mut());
        *request.version_mut() = Version::HTTP_11;
        let named = request.headers().get(HOST).cloned();
        if let (HostHeader::Local, Some(host)) = (self.host, server.host()) {
            request.headers_mut().insert(HOST, host.clone());
        }
        let only_reads = request.method() == Method::GET && request.body().is_end_stream();
        let (mut response, carrier) = server.send(request).await?;
        let is_own = |place: &str| {
            let is = |host: Option<&HeaderValue>| {
                host.is_some_and(|host| host.as_bytes().eq_ignore_ascii_case(place.as_bytes()))
            };
            is(server.host()) || is(named.as_ref())
        };
        redirect::lead_back(response.headers_mut(), is_own, None);
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if switched || (only_reads && is_event_stream(&response)) {
            slot.becomes_stream()?;
        }
        Ok((response, Occupied { _carrier: carrier, _slot: slot, address: server.address().clone() }))
    }
}

impl Occupied {
    /// The error for a server that answered as it should not.
    pub fn failed(&self, reason: impl Into<String>) -> ProxyError {
        failure(&self.address, reason)
    }
}

fn is_event_stream<B>(response: &Response<B>) -> bool {
    let media = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media = media.and_then(|value| value.split(';').next());
    media.is_some_and(|media| media.trim().eq_ignore_ascii_case("text/event-stream"))
}

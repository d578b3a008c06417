//! The local agent's server: plain HTTP/1.1 on loopback, and no more requests at once than it is to get.
//!
//! [`agent_slots`] says when a request may go to it, [`connections`] has something to send it on.

pub mod agent_slots;
pub mod connections;

use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use mesh_shared::config::{self, Limits};

use crate::error::ProxyError;
use crate::http::body::{RequestBody, root_cause};
use crate::http::headers::to_origin_form;
use crate::inbound::admission::Peer;
use crate::inbound::backend::agent_slots::{AgentSlots, Slot};
use crate::inbound::backend::connections::{Connections, Lent};

/// The one backend.
pub struct Backend {
    connections: Arc<Connections>,
    address: String,
    slots: Arc<AgentSlots>,
}

/// What a request occupies until its answer has passed.
pub struct Occupied {
    /// Before the slot: whoever gets that finds the connection.
    _connection: Lent,
    _slot: Slot,
}

impl Backend {
    /// A way to the server that is configured, which gets no more at once than `slots` allow. Nothing is connected yet.
    pub fn new(backend: &config::Backend, limits: &Limits, slots: Arc<AgentSlots>) -> Self {
        let connections = Arc::new(Connections::new(backend.address.socket_addr(), limits));
        Self { connections, address: backend.address.to_string(), slots }
    }

    /// Sends a request of `peer` whose `Host` and headers are as the backend should see them, once there is a slot for
    /// it. What it occupies is to be kept until the answer has passed.
    ///
    /// # Errors
    /// The backend has enough to do, does not listen, or ended the connection before it answered.
    pub async fn send(
        &self,
        peer: &Peer,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Occupied), ProxyError> {
        let mut slot = self.slots.enter(peer).await?;
        request.body().sent(true);
        to_origin_form(request.uri_mut());
        *request.version_mut() = Version::HTTP_11;
        let only_reads = request.method() == Method::GET && request.body().is_end_stream();
        let (response, connection) = loop {
            let mut connection = self.connections.lend().await.map_err(|error| {
                let reason = root_cause(&*error).to_string();
                ProxyError::BackendUnreachable { address: self.address.clone(), reason }
            })?;
            match connection.send(request).await {
                Ok(response) => break (response, connection),
                // The agent closed it just then.
                Err(Ok(untouched)) => request = untouched,
                Err(Err(error)) => return Err(self.failed(root_cause(&*error).to_string())),
            }
        };
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if switched || (only_reads && is_event_stream(&response)) {
            slot.becomes_stream()?;
        }
        Ok((response, Occupied { _connection: connection, _slot: slot }))
    }

    /// The error for a backend that took the request and did not answer as it should.
    pub fn failed(&self, reason: impl Into<String>) -> ProxyError {
        ProxyError::BackendFailed { address: self.address.clone(), reason: reason.into() }
    }
}

fn is_event_stream<B>(response: &Response<B>) -> bool {
    let media = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media = media.and_then(|value| value.split(';').next());
    media.is_some_and(|media| media.trim().eq_ignore_ascii_case("text/event-stream"))
}

//! Asking the CA: on its socket where it runs on this host, else through the sidecar of its node.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Full, Limited};
use mesh_shared::NodeName;
use mesh_shared::config::Config;
use mesh_shared::enrolment::MAX_BODY_BYTES;
use mesh_shared::local_api::PEER_CN;
use mesh_shared::root_cause;

use crate::ca_link::CaLink;
use crate::upkeep::requests::{Answer, AskError, Requests};

/// The way to the CA.
pub struct Ca {
    node: NodeName,
    /// Where it is on this host.
    here: Option<CaLink>,
    requests: Arc<Requests>,
    own_name: NodeName,
}

impl Ca {
    /// As configured (`mesh.ca.node`); `None`: certificates are not renewed here.
    pub fn new(config: &Config, requests: Arc<Requests>) -> Option<Self> {
        let node = config.mesh.ca_node.clone()?;
        let own_name = config.mesh.node_name.clone();
        let here = (node == own_name).then(|| CaLink::new(config));
        Some(Self { node, here, requests, own_name })
    }

    /// The node on whose host it runs.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Sends it a request and reads the answer.
    ///
    /// # Errors
    /// It cannot be reached, or answers too much.
    pub async fn ask(&self, mut request: Request<Bytes>) -> Result<Answer, AskError> {
        let Some(here) = &self.here else {
            return self.requests.ask(&self.node, request, MAX_BODY_BYTES).await;
        };
        // As for a peer, this sidecar says who asks. A node's name is a valid value.
        if let Ok(name) = HeaderValue::from_str(self.own_name.as_str()) {
            request.headers_mut().insert(PEER_CN, name);
        }
        let answer = here.send(request.map(Full::new)).await.map_err(AskError::Unsent)?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_BODY_BYTES).collect().await;
        let body = body.map_err(|error| AskError::Unread(root_cause(&*error).to_string()))?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    /// Whether its node's sidecar answers on the connections that requests take now.
    pub async fn answers(&self) -> bool {
        let Ok(ping) = Request::get(mesh_shared::local_api::PING).body(Bytes::new()) else { return false };
        self.requests
            .ask(&self.node, ping, MAX_BODY_BYTES)
            .await
            .is_ok_and(|answer| answer.status.is_success())
    }
}

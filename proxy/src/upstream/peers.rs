//! Requests to peers over verified mutual TLS: on which connections they go, and what it means when they fail.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::Guard;
use http::header::HOST;
use http::uri::Scheme;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use mesh_shared::NodeName;
use mesh_shared::config::{Limits, Timeouts};
use parking_lot::Mutex;

use super::pool::NodeConnections;
use crate::error::{ProxyError, Sent};
use crate::http::body::{RequestBody, root_cause};
use crate::http::headers::absolute;
use crate::roster::table::{
    CONNECTIONS_PER_NODE, Load, RosterStore, Route, STREAMS_PER_CONNECTION, StreamPlace,
};
use crate::tls::credentials::{CredentialStore, Credentials};

/// One worker's connections to peers.
pub struct Peers {
    credentials: Arc<CredentialStore>,
    known: Mutex<Known>,
    roster: Arc<RosterStore>,
    timeouts: Timeouts,
    limits: Limits,
    refusals: Arc<Refusals>,
}

/// The connections made with one set of credentials, by node.
struct Known {
    made_with: Arc<Credentials>,
    nodes: HashMap<NodeName, (Arc<Load>, Arc<NodeConnections>)>,
}

impl Peers {
    /// Connections with these credentials to nodes of this roster; made when they are needed.
    pub fn new(
        credentials: Arc<CredentialStore>,
        roster: Arc<RosterStore>,
        timeouts: Timeouts,
        limits: Limits,
    ) -> Self {
        let known = Known { made_with: Guard::into_inner(credentials.load()), nodes: HashMap::new() };
        let refusals = Arc::default();
        Self { credentials, known: Mutex::new(known), roster, timeouts, limits, refusals }
    }

    /// The connections to a node. After a reload of the credentials or a move of the node, those of before end when
    /// their requests have ended.
    fn connections(&self, route: &Route) -> Arc<NodeConnections> {
        let Known { made_with, nodes } = &mut *self.known.lock();
        let credentials = self.credentials.load();
        if !Arc::ptr_eq(made_with, &credentials) {
            *made_with = Guard::into_inner(credentials);
            nodes.clear();
        }
        if let Some((load, connections)) = nodes.get(&route.node)
            && Arc::ptr_eq(load, &route.load)
        {
            return connections.clone();
        }
        nodes.retain(|node, _| self.roster.route(node).is_some());
        let connections = Arc::new(NodeConnections::new(
            route.node.clone(),
            made_with,
            self.roster.clone(),
            &self.timeouts,
            &self.limits,
            self.refusals.clone(),
        ));
        nodes.insert(route.node.clone(), (route.load.clone(), connections.clone()));
        connections
    }

    /// Sends a request to a node, whose name its connection has proved.
    ///
    /// The answer's place on its connection is to be held until it has passed.
    ///
    /// # Errors
    /// The node cannot be reached, is somebody else, refuses this node, is busy, or fails before it answers.
    pub async fn send(
        &self,
        route: &Route,
        mut request: Request<RequestBody>,
        upgrade: bool,
    ) -> Result<(Response<Incoming>, Option<StreamPlace>), ProxyError> {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = absolute(Scheme::HTTPS, route.authority.clone(), path);
        *request.version_mut() = Version::HTTP_11;
        request.headers_mut().remove(HOST);
        let started = Instant::now();
        let connections = self.connections(route);
        let (answer, place) = match upgrade {
            true => (connections.send_http1(request).await, None),
            false => {
                let place = route.enter().ok_or_else(|| ProxyError::PeerBusy {
                    node: route.node.clone(),
                    most: STREAMS_PER_CONNECTION * CONNECTIONS_PER_NODE,
                })?;
                (connections.send(&place, request).await, Some(place))
            }
        };
        match answer {
            Ok(answer) => Ok((answer, place)),
            Err(error) => Err(self.explain(&route.node, started, &*error)),
        }
    }

    fn explain(&self, node: &NodeName, started: Instant, error: &(dyn Error + 'static)) -> ProxyError {
        let mut cause = Some(error);
        while let Some(each) = cause {
            if let Some(known) = each.downcast_ref::<ProxyError>() {
                return known.clone();
            }
            cause = each.source();
        }
        self.refusals.or_failed(node, started, error)
    }
}

/// When each peer last refused this node's certificate, and how.
#[derive(Default)]
pub struct Refusals(Mutex<HashMap<NodeName, (Instant, String)>>);

impl Refusals {
    /// Notes a refusal of now.
    pub fn note(&self, node: &NodeName, reason: String) {
        self.0.lock().insert(node.clone(), (Instant::now(), reason));
    }

    /// What an error of a connection means: that the peer refused this node, if it did so since `start`.
    pub fn or_failed(&self, node: &NodeName, start: Instant, error: &(dyn Error + 'static)) -> ProxyError {
        let refusals = self.0.lock();
        let node = node.clone();
        match refusals.get(&node).filter(|(when, _)| *when >= start) {
            Some((_, reason)) => ProxyError::PeerRefusedUs { node, reason: reason.clone() },
            None => {
                ProxyError::PeerFailed { node, reason: root_cause(error).to_string(), sent: Sent::Perhaps }
            }
        }
    }
}

//! The way to each node: its route, what is observed of it, and this thread's connections to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::Guard;
use mesh_shared::certificate::Leaf;
use mesh_shared::config::Proxy;
use mesh_shared::{AgentName, NodeName};
use parking_lot::Mutex;

use crate::roster::store::RosterStore;
use crate::roster::table::Route;
use crate::tls::credentials::{CredentialStore, Credentials};
use crate::upstream::endpoint::Endpoint;
use crate::upstream::pool::Pool;

/// What all threads observe of the nodes.
#[derive(Default)]
pub struct Endpoints(Mutex<HashMap<NodeName, Arc<Endpoint>>>);

impl Endpoints {
    /// What the nodes' certificates said at their last handshakes.
    pub fn certificates(&self) -> Vec<(NodeName, Arc<Leaf>, SystemTime)> {
        let endpoints = self.0.lock();
        let seen = endpoints.iter().filter_map(|(node, endpoint)| {
            let (leaf, at) = endpoint.certificate()?;
            Some((node.clone(), leaf, at))
        });
        seen.collect()
    }

    /// What is observed of the node that `route` leads to. Of one that has moved, nothing is yet.
    fn reached_by(&self, route: &Arc<Route>, roster: &RosterStore) -> Arc<Endpoint> {
        let endpoints = &mut *self.0.lock();
        if let Some(endpoint) = endpoints.get(&route.node)
            && endpoint.is_reached_by(route)
        {
            return endpoint.clone();
        }
        // Those that left the mesh go with it.
        endpoints.retain(|node, _| roster.node(node).is_ok());
        let endpoint = Arc::new(Endpoint::new(route.clone()));
        endpoints.insert(route.node.clone(), endpoint.clone());
        endpoint
    }
}

/// The way to a node that could get a request.
#[derive(Clone)]
pub struct Way {
    /// Where it leads.
    pub route: Arc<Route>,
    /// What is observed there.
    pub endpoint: Arc<Endpoint>,
    /// The connections of this thread.
    pub pool: Arc<Pool>,
}

impl Way {
    /// Whether it leads to one of these.
    pub fn is_among(&self, endpoints: &[Arc<Endpoint>]) -> bool {
        endpoints.iter().any(|endpoint| endpoint.node() == &self.route.node)
    }
}

/// One thread's ways, as one identity goes them.
pub struct Ways {
    presents: Option<AgentName>,
    credentials: Arc<CredentialStore>,
    roster: Arc<RosterStore>,
    proxy: Proxy,
    known: Mutex<Known>,
}

/// Ways with connections that were made with one set of credentials.
struct Known {
    made_with: Arc<Credentials>,
    by_node: HashMap<NodeName, Way>,
}

impl Ways {
    /// None yet, and no connections. They will be made as the agent `presents`, or else as this node.
    pub fn new(
        credentials: Arc<CredentialStore>,
        roster: Arc<RosterStore>,
        proxy: &Proxy,
        presents: Option<AgentName>,
    ) -> Self {
        let known = Known { made_with: credentials.load_full(), by_node: HashMap::new() };
        Self { presents, credentials, roster, proxy: proxy.clone(), known: Mutex::new(known) }
    }

    /// The agent as which connections are made; `None`: as this node.
    pub fn presents(&self) -> Option<&AgentName> {
        self.presents.as_ref()
    }

    /// Connections are made again from now on where `way` leads. Those of before end when their requests have ended.
    pub fn renew(&self, way: &Way) {
        let by_node = &mut self.known.lock().by_node;
        if by_node.get(&way.route.node).is_some_and(|known| Arc::ptr_eq(&known.pool, &way.pool)) {
            by_node.remove(&way.route.node);
        }
    }

    /// The way by which `route` leads. After a reload of the credentials or a move of the node, the connections of before
    /// end when their requests have ended.
    pub fn to(&self, route: &Arc<Route>, endpoints: &Endpoints) -> Way {
        let Known { made_with, by_node } = &mut *self.known.lock();
        let credentials = self.credentials.load();
        if !Arc::ptr_eq(made_with, &credentials) {
            *made_with = Guard::into_inner(credentials);
            by_node.clear();
        }
        let known = by_node.get(&route.node);
        if let Some(way) = known
            && Arc::ptr_eq(&way.route, route)
        {
            return way.clone();
        }
        let endpoint = endpoints.reached_by(route, &self.roster);
        let pool = match known {
            Some(way) if Arc::ptr_eq(&way.endpoint, &endpoint) => way.pool.clone(),
            _ => {
                // Those that left the mesh go with it.
                by_node.retain(|node, _| self.roster.node(node).is_ok());
                Arc::new(Pool::new(
                    endpoint.clone(),
                    self.roster.clone(),
                    self.credentials.clone(),
                    self.presents.clone(),
                    &self.proxy.timeouts,
                    &self.proxy.limits,
                    self.proxy.outbound.max_requests_per_node,
                ))
            }
        };
        let way = Way { route: route.clone(), endpoint, pool };
        by_node.insert(route.node.clone(), way.clone());
        way
    }
}

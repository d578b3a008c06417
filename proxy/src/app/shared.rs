//! What all workers share, and how one worker is put together from it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_shared::AgentName;
use mesh_shared::config::{Config, Hosting};
use tokio::task::AbortHandle;

use crate::caller::ActingAgent;
use crate::drain::Drain;
use crate::inbound;
use crate::inbound::accept::Inbound;
use crate::inbound::admission::Admission;
use crate::inbound::backend::SlotsByAddress;
use crate::inbound::lists::ListsApi;
use crate::listener::Connections;
use crate::metrics::METRICS;
use crate::outbound;
use crate::outbound::accept::{Outbound, OutboundListener};
use crate::outbound::destination::Destination;
use crate::policy::{Policies, PolicyStore};
use crate::pulse::Pulse;
use crate::roster::hosts::Hosts;
use crate::roster::registryd::RegistryLink;
use crate::roster::store::RosterStore;
use crate::sockets::{LocalListener, Sockets};
use crate::tls::credentials::{CredentialStore, Credentials, CredentialsError};
use crate::tls::revocation::Lists;
use crate::upkeep::ca::Ca;
use crate::upkeep::lists::ListExchange;
use crate::upkeep::renewal::Renewal;
use crate::upkeep::requests::Requests;
use crate::upstream::{Nodes, Upstream};
use crate::worker::Worker;

/// How long an idle connection is kept in a drain, at most half of the time that a drain may take.
const LINGER: Duration = Duration::from_secs(1);

/// What all workers share.
pub(super) struct Shared {
    pub(super) credentials: Arc<CredentialStore>,
    pub(super) lists: Arc<Lists>,
    pub(super) lists_api: Arc<ListsApi>,
    pub(super) policies: Arc<PolicyStore>,
    pub(super) roster: Arc<RosterStore>,
    /// `None`: certificates say who hosts an agent.
    pub(super) hosts: Option<Arc<Hosts>>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) registry: Arc<RegistryLink>,
    pub(super) admission: Arc<Admission>,
    pub(super) agents: SlotsByAddress,
    /// Connections of this host's programs.
    pub(super) locals: Connections,
    pub(super) inbound: Drain,
    pub(super) outbound: Drain,
    pub(super) admin: Drain,
    pub(super) pulse: Arc<Pulse>,
}

impl Shared {
    pub(super) fn new(config: &Config, inbound: SocketAddr) -> Result<Self, CredentialsError> {
        let (node, proxy) = (config.mesh.node_name.clone(), &config.proxy);
        let most = proxy.limits.max_connections;
        let linger = LINGER.min(proxy.timeouts.drain / 2);
        METRICS.set_limits(proxy);
        let lists = Arc::new(Lists::open(&proxy.state_dir));
        let credentials = Arc::new(CredentialStore::new(Credentials::load(config, &lists)?));
        let roster = Arc::new(RosterStore::open(&proxy.state_dir, node, dialable(inbound)));
        let hosts = (config.mesh.agents == Hosting::Claimed).then(|| Arc::new(Hosts::open(&proxy.state_dir)));
        Ok(Self {
            nodes: Arc::new(Nodes::new(config, credentials.clone(), roster.clone())),
            lists_api: Arc::new(ListsApi::new(lists.clone(), credentials.clone())),
            credentials,
            lists,
            policies: Arc::new(PolicyStore::from_pointee(Policies::new(proxy))),
            roster,
            hosts,
            registry: Arc::new(RegistryLink::new(config)),
            admission: Arc::new(Admission::new(&proxy.limits, Connections::new(most))),
            agents: inbound::backend::slots(&proxy.backend),
            locals: Connections::new(most),
            inbound: Drain::new(linger),
            outbound: Drain::new(linger),
            admin: Drain::new(linger),
            pulse: Arc::new(Pulse::new(proxy.threads)),
        })
    }

    /// The requests under way, in words.
    pub(super) fn under_way(&self) -> String {
        let (inbound, outbound) = (self.inbound.requests(), self.outbound.requests());
        format!("{inbound} inbound and {outbound} outbound requests")
    }

    /// What the sidecar asks other nodes for by itself. It shares the connections of `worker`.
    pub(super) fn upkeep(
        &self,
        config: &Config,
        worker: &Worker,
        upstream: Arc<Upstream>,
    ) -> Vec<AbortHandle> {
        let requests = Arc::new(Requests::new(upstream));
        let lists = ListExchange::new(
            self.lists.clone(),
            self.credentials.clone(),
            self.roster.clone(),
            requests.clone(),
        );
        let renewal = Renewal::new(
            Arc::new(config.clone()),
            Ca::new(config, requests),
            self.credentials.clone(),
            self.lists.clone(),
            self.roster.clone(),
        );
        let mut tasks = vec![worker.run(lists.follow(config.mesh.heartbeat_interval))];
        tasks.extend(renewal.map(|renewal| worker.run(renewal.follow())));
        tasks
    }

    pub(super) fn worker(
        &self,
        config: &Config,
        sockets: &Sockets,
        upstream: Arc<Upstream>,
    ) -> io::Result<Worker> {
        let worker = Worker::new()?;
        let inbound = Inbound::new(
            config,
            self.credentials.clone(),
            inbound::pipeline::Pipeline::new(
                config,
                self.registry.clone(),
                self.lists_api.clone(),
                self.policies.clone(),
                &self.agents,
            ),
            self.admission.clone(),
            self.inbound.clone(),
        );
        worker.serve(sockets.inbound.try_clone()?, inbound, self.inbound.clone());
        let outbound = self.outbound_as(config, None, upstream);
        let everywhere = OutboundListener { outbound: outbound.clone(), only: None, acts_as: None };
        worker.serve(sockets.outbound.try_clone()?, everywhere, self.outbound.clone());
        // An agent's listeners share its connections to peers, and nobody else does.
        let mut agents: HashMap<AgentName, (Arc<Outbound>, Arc<ActingAgent>)> = HashMap::new();
        for LocalListener { socket, to, as_agent } in &sockets.listeners {
            let (outbound, acts_as) = match as_agent {
                None => (outbound.clone(), None),
                Some(name) => {
                    let (outbound, agent) = agents.entry(name.clone()).or_insert_with(|| {
                        let agent = Arc::new(ActingAgent::new(name.clone(), &config.mesh.node_name));
                        let upstream = Arc::new(Upstream::new(self.nodes.clone(), Some(name.clone())));
                        (self.outbound_as(config, Some(agent.clone()), upstream), agent)
                    });
                    (outbound.clone(), Some(agent.clone()))
                }
            };
            let listener = OutboundListener { outbound, only: to.clone().map(Destination::from), acts_as };
            worker.serve(socket.try_clone()?, listener, self.outbound.clone());
        }
        Ok(worker)
    }

    /// What listeners share whose programs act as `acts_as` or else as this node.
    fn outbound_as(
        &self,
        config: &Config,
        acts_as: Option<Arc<ActingAgent>>,
        upstream: Arc<Upstream>,
    ) -> Arc<Outbound> {
        let pipeline = outbound::pipeline::Pipeline::new(
            config,
            acts_as,
            upstream,
            self.nodes.clone(),
            self.registry.clone(),
            self.roster.clone(),
            self.policies.clone(),
        );
        Arc::new(Outbound::new(config, pipeline, self.locals.clone(), self.outbound.clone()))
    }
}

/// Where this host itself reaches a socket that listens on `address`.
fn dialable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

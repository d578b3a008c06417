//! Reports the state of this sidecar to registryd.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_shared::BackendAddr;
use mesh_shared::config::Config;
use mesh_shared::local_api::{FailedUpgrade, SidecarReport};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::shared::Shared;
use crate::drain::Drain;
use crate::inbound::backend::dial::Dialer;
use crate::roster::hosts::Hosts;
use crate::roster::registryd::RegistryLink;
use crate::roster::store::RosterStore;
use crate::tls::credentials::CredentialStore;

/// Tells registryd how things are.
pub(super) struct Reporter {
    view: View,
    registry: Arc<RegistryLink>,
    running: Option<AbortHandle>,
}

/// Where it is seen how things are.
#[derive(Clone)]
struct View {
    config: Arc<Config>,
    /// Where peers, and this host's programs, reach the sidecar.
    addresses: (SocketAddr, SocketAddr),
    credentials: Arc<CredentialStore>,
    hosts: Option<Arc<Hosts>>,
    roster: Arc<RosterStore>,
    inbound: Drain,
    failed_upgrade: Option<FailedUpgrade>,
}

impl Reporter {
    pub(super) fn new(config: Arc<Config>, addresses: (SocketAddr, SocketAddr), shared: &Shared) -> Self {
        let view = View {
            config,
            addresses,
            credentials: shared.credentials.clone(),
            hosts: shared.hosts.clone(),
            roster: shared.roster.clone(),
            inbound: shared.inbound.clone(),
            failed_upgrade: None,
        };
        Self { view, registry: shared.registry.clone(), running: None }
    }

    /// Tells registryd at once how things are, and from now on.
    pub(super) fn start(&mut self) {
        self.stop();
        let view = self.view.clone();
        let reporting = tokio::spawn(self.registry.clone().report(async move || {
            let (backend_up, agents_down) = servers_that_answer(&view.config).await;
            view.report(Some(backend_up), agents_down)
        }));
        self.running = Some(reporting.abort_handle());
    }

    /// Stops reporting it.
    pub(super) fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
    }

    /// Tells it, from now on, that an upgrade did not come about.
    pub(super) fn upgrade_failed(&mut self, reason: String) {
        let count = self.view.failed_upgrade.as_ref().map_or(0, |failed| failed.count) + 1;
        self.view.failed_upgrade = Some(FailedUpgrade { count, reason });
        self.start();
    }

    /// Tells it once how things are now.
    pub(super) fn tell(&self) -> impl Future<Output = ()> + use<> {
        let (registry, report) = (self.registry.clone(), self.view.report(None, Vec::new()));
        async move { registry.tell(&report).await }
    }
}

impl View {
    fn report(&self, backend_up: Option<bool>, agents_down: Vec<String>) -> SidecarReport {
        let credentials = self.credentials.load();
        SidecarReport {
            inbound: self.addresses.0,
            outbound: self.addresses.1,
            backend_up,
            agents_down,
            certificate_not_after: credentials.not_after,
            renews: self.config.mesh.ca_node.is_some(),
            crl_ends: credentials.crl_end,
            trust_problems: self.trust_problems(),
            pid: Some(std::process::id()),
            draining: self.inbound.has_begun(),
            failed_upgrade: self.failed_upgrade.clone(),
        }
    }

    /// What is wrong with certificates, lists, and who hosts what, each in a sentence.
    fn trust_problems(&self) -> Vec<String> {
        let mut problems = self.credentials.problems();
        let of_hosts = self.hosts.as_ref().map(|hosts| hosts.problems(&self.roster));
        problems.extend(of_hosts.unwrap_or_default());
        problems
    }
}

/// Whether the server of requests that name no agent answers, and which of this node's agents have one that does not.
async fn servers_that_answer(config: &Config) -> (bool, Vec<String>) {
    let backend = &config.proxy.backend;
    let addresses = backend.addresses();
    let answers = addresses.iter().map(|(_, address)| accepts_connections(address));
    let answers = futures_util::future::join_all(answers).await;
    let up = |wanted: &BackendAddr| {
        addresses.iter().zip(&answers).any(|((_, address), up)| *address == wanted && *up)
    };
    let of_agent = |name: &str| {
        let own = backend.agents.iter().find(|(agent, _)| agent.as_str() == name);
        own.map_or(&backend.server.address, |(_, server)| &server.address)
    };
    let agents = config.registryd.agents.iter().map(|agent| &agent.name);
    let down = agents.filter(|name| !up(of_agent(name))).cloned().collect();
    (up(&backend.server.address), down)
}

async fn accepts_connections(backend: &BackendAddr) -> bool {
    let dialer = Dialer::new(backend.clone());
    matches!(timeout(Duration::from_secs(2), dialer.dial()).await, Ok(Ok(_)))
}

//! Wiring: reads the configuration, opens the sockets, starts, hands over to a newer process on
//! SIGUSR2, drains on SIGTERM.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mesh_shared::AgentName;
use mesh_shared::BackendAddr;
use mesh_shared::config::{Config, Hosting};
use mesh_shared::local_api::{FailedUpgrade, SidecarReport};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::admin::Admin;
use crate::caller;
use crate::caller::ActingAgent;
use crate::descriptors;
use crate::drain::Drain;
use crate::handover::{Predecessor, Program, Successor, UpgradeError};
use crate::inbound;
use crate::inbound::accept::Inbound;
use crate::inbound::admission::Admission;
use crate::inbound::backend::SlotsByAddress;
use crate::inbound::backend::dial::Dialer;
use crate::inbound::lists::ListsApi;
use crate::listener::Connections;
use crate::live;
use crate::live::api::OwnSocket;
use crate::metrics::METRICS;
use crate::outbound;
use crate::outbound::accept::{Outbound, OutboundListener};
use crate::outbound::destination::Destination;
use crate::policy::{self, Policies, PolicyStore};
use crate::pulse::Pulse;
use crate::roster::hosts::Hosts;
use crate::roster::registryd::RegistryLink;
use crate::roster::store::RosterStore;
use crate::roster::sync;
use crate::sockets::{LocalListener, Sockets, SocketsError};
use crate::supervisor::{self, Supervisor};
use crate::tls::credentials::{CredentialStore, Credentials, CredentialsError};
use crate::tls::reload;
use crate::tls::revocation::Lists;
use crate::upkeep::ca::Ca;
use crate::upkeep::lists::Exchange;
use crate::upkeep::renewal::Renewal;
use crate::upkeep::requests::Requests;
use crate::upstream::{Nodes, Upstream};
use crate::worker::Worker;

/// How long an idle connection is kept in a drain, at most half of the time that a drain may take.
const LINGER: Duration = Duration::from_secs(1);
/// How long a process that took sockets over waits for its first roster. Clients wait with it, in the sockets' queues.
const FIRST_ROSTER: Duration = Duration::from_secs(2);
/// How long the end of a process waits until registryd knows of it.
const LAST_REPORT: Duration = Duration::from_secs(1);
/// How long it waits until the roster is saved.
const LAST_SAVE: Duration = Duration::from_secs(2);
/// How long the last spans may take to the collector, at most the time that a drain may take.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// How often a process that stops says what it waits for, at first and, after an upgrade, at last.
const WAITING_TOLD: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// Why the sidecar could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Certificates.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A socket.
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    /// The sockets of a supervisor or a predecessor.
    #[error("cannot take over listening sockets: {0}")]
    Given(io::Error),
    /// The system gives no more threads or file descriptors.
    #[error("cannot start the threads that carry requests: {0}")]
    Threads(io::Error),
    /// The system refuses signal handlers.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// The system does not tell where this program lies.
    #[error("cannot tell the path of this program, from which an upgrade starts: {0}")]
    Program(io::Error),
}

/// Runs until SIGTERM or SIGINT, and then until the requests in flight have ended or the drain time is over; or until
/// a newer process took over and the requests in flight have ended.
///
/// # Errors
/// Whatever keeps it from starting; once it runs, it ends only when told.
pub async fn run(mut config: Config) -> Result<(), StartError> {
    descriptors::fit(&mut config.proxy);
    let mut predecessor = Predecessor::of_this_process().map_err(StartError::Given)?;
    let limit = LAST_SPANS.min(config.proxy.timeouts.drain);
    let node = config.mesh.node_name.to_string();
    let spans = mesh_telemetry::start(&config.telemetry, "mesh-proxy", env!("CARGO_PKG_VERSION"), &node);
    let mut sidecar = match Sidecar::start(config, predecessor.as_mut()).await {
        Ok(sidecar) => sidecar,
        Err(error) => {
            if let Some(predecessor) = predecessor {
                predecessor.give_up(&error.to_string());
            }
            return Err(error);
        }
    };
    if let Some(predecessor) = predecessor {
        // Its answers come at once.
        predecessor.take_over();
    }
    sidecar.supervisor.ready().await;
    tokio::spawn(sidecar.supervisor.clone().watch(sidecar.shared.pulse.clone()));
    sidecar.report();
    match sidecar.until_told().await {
        Told::Stop => sidecar.drain().await,
        Told::HandOver(successor) => sidecar.hand_over(successor).await,
    }
    sidecar.end();
    spans.finish(limit).await;
    Ok(())
}

/// The running sidecar.
struct Sidecar {
    config: Arc<Config>,
    program: Program,
    /// Open until they are closed or handed over.
    sockets: Option<Sockets>,
    /// Where peers, and this host's programs, reach it.
    addresses: (SocketAddr, SocketAddr),
    shared: Shared,
    signals: Signals,
    supervisor: Arc<Supervisor>,
    /// What belongs to the one process that is the service: following registryd's roster and reporting to registryd.
    following: AbortHandle,
    /// What it asks other nodes for by itself.
    upkeep: Vec<AbortHandle>,
    reporting: Option<AbortHandle>,
    failed_upgrade: Option<FailedUpgrade>,
    end: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

/// What ends the work of a process.
enum Told {
    Stop,
    HandOver(Box<Successor>),
}

impl Sidecar {
    async fn start(config: Config, predecessor: Option<&mut Predecessor>) -> Result<Self, StartError> {
        let program = Program::of_this_process().map_err(StartError::Program)?;
        let ([hangup, policy_hangup], signals) = Signals::listen().map_err(StartError::Signals)?;
        let supervised = predecessor.is_none();
        let given = match predecessor {
            Some(predecessor) => predecessor.sockets(),
            None => supervisor::given_sockets(),
        };
        let given = given.map_err(StartError::Given)?;
        let clients_wait = !given.is_empty();
        let sockets = Sockets::open(&config, given, supervised)?;
        let (inbound, outbound) = sockets.main_addresses();
        let shared = Shared::new(&config, dialable(inbound))?;
        let following =
            tokio::spawn(sync::follow(shared.registry.clone(), shared.roster.clone(), shared.hosts.clone()))
                .abort_handle();
        if clients_wait {
            // Without a roster at all their requests are answered with an error that says so.
            let known = async {
                while !shared.roster.is_known() {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            let _ = timeout(FIRST_ROSTER, known).await;
        }
        let (end, ended) = watch::channel(false);
        let mut upkeep = Vec::new();
        let threads = (0..config.proxy.threads)
            .map(|number| {
                let upstream = Arc::new(Upstream::new(shared.nodes.clone(), None));
                let worker = shared.worker(&config, &sockets, upstream.clone())?;
                if number == 0 {
                    if let Some(socket) = &sockets.own {
                        let own = OwnSocket::new(config.mesh.node_name.clone(), upstream.clone());
                        worker.serve(socket.try_clone()?, own, shared.admin.clone());
                    }
                    upkeep = shared.upkeep(&config, &worker, upstream);
                }
                worker.start(number, shared.pulse.clone(), ended.clone())
            })
            .collect::<io::Result<Vec<_>>>()
            .map_err(StartError::Threads)?;
        if let Some(socket) = &sockets.admin {
            let admin = Admin::new(shared.roster.clone(), shared.pulse.clone(), shared.inbound.clone());
            let socket = socket.try_clone().map_err(StartError::Threads)?;
            tokio::spawn(socket.serve(admin, shared.admin.clone()));
        }
        tokio::spawn(live::publish::publish(config.mesh.node_name.clone()));
        tracing::info!(
            target: "Mesh",
            "mesh-proxy ready node={} inbound={inbound} outbound={outbound} backend={}",
            config.mesh.node_name,
            config.proxy.backend.server.address
        );
        let config = Arc::new(config);
        tokio::spawn(reload::follow(
            hangup,
            config.clone(),
            shared.credentials.clone(),
            shared.lists.clone(),
        ));
        tokio::spawn(policy::follow(policy_hangup, config.clone(), shared.policies.clone()));
        Ok(Self {
            config,
            program,
            sockets: Some(sockets),
            addresses: (inbound, outbound),
            shared,
            signals,
            supervisor: Arc::default(),
            following,
            upkeep,
            reporting: None,
            failed_upgrade: None,
            end,
            threads,
        })
    }

    /// Tells registryd how things are, from now on.
    fn report(&mut self) {
        if let Some(reporting) = self.reporting.take() {
            reporting.abort();
        }
        let report = self.as_it_is();
        let config = self.config.clone();
        let credentials = self.shared.credentials.clone();
        let (hosts, roster) = (self.shared.hosts.clone(), self.shared.roster.clone());
        let reporting = tokio::spawn(self.shared.registry.clone().report(async move || {
            let (backend_up, agents_down) = servers_that_answer(&config).await;
            SidecarReport {
                backend_up: Some(backend_up),
                agents_down,
                certificate_not_after: credentials.load().not_after,
                crl_ends: credentials.load().crl_end,
                trust_problems: trust_problems(&credentials, hosts.as_deref(), &roster),
                ..report.clone()
            }
        }));
        self.reporting = Some(reporting.abort_handle());
    }

    fn as_it_is(&self) -> SidecarReport {
        SidecarReport {
            inbound: self.addresses.0,
            outbound: self.addresses.1,
            backend_up: None,
            agents_down: Vec::new(),
            certificate_not_after: self.shared.credentials.load().not_after,
            renews: self.config.mesh.ca_node.is_some(),
            crl_ends: self.shared.credentials.load().crl_end,
            trust_problems: trust_problems(
                &self.shared.credentials,
                self.shared.hosts.as_deref(),
                &self.shared.roster,
            ),
            pid: Some(std::process::id()),
            draining: self.shared.inbound.has_begun(),
            failed_upgrade: self.failed_upgrade.clone(),
        }
    }

    /// Returns when it is to take no new work. An upgrade that does not come about changes nothing.
    async fn until_told(&mut self) -> Told {
        loop {
            if self.signals.next().await == Asked::Stop {
                return Told::Stop;
            }
            let error = match self.upgrade().await {
                Ok(told) => return told,
                Err(error) => error,
            };
            tracing::error!(target: "Mesh", "upgrade failed, going on as before: {error}");
            let count = self.failed_upgrade.as_ref().map_or(0, |failed| failed.count) + 1;
            self.failed_upgrade = Some(FailedUpgrade { count, reason: error.to_string() });
            self.report();
        }
    }

    async fn upgrade(&mut self) -> Result<Told, UpgradeError> {
        let mut successor = {
            let sockets = self.sockets.iter().flat_map(Sockets::all);
            let sockets: Vec<_> = sockets.map(|socket| (socket.configured.clone(), socket.as_fd())).collect();
            self.program.start_again(&sockets).await?
        };
        tracing::info!(
            target: "Mesh",
            "upgrading: process {} is to take over",
            successor.pid().unwrap_or_default()
        );
        tokio::select! {
            ready = successor.ready() => ready.map(|()| Told::HandOver(Box::new(successor))),
            () = self.signals.stop() => {
                successor.end().await;
                Ok(Told::Stop)
            }
        }
    }

    /// Takes no new work of peers. Outbound stays open for as long as the agent may need it for a task that it was
    /// given: until the last of them is answered.
    async fn drain(&mut self) {
        self.supervisor.stopping().await;
        self.upkeep.iter().for_each(AbortHandle::abort);
        self.shared.inbound.begin();
        live::feed::close_inbound();
        self.report();
        let Shared { inbound, outbound, .. } = &self.shared;
        let told = self.shared.registry.clone();
        let report = self.as_it_is();
        let in_order = async {
            let sockets = self.sockets.take();
            let still_open = sockets.map(|Sockets { outbound, listeners, .. }| (outbound, listeners));
            inbound.closed().await;
            drop(still_open);
            outbound.begin();
            outbound.closed().await;
        };
        let roster = self.shared.roster.clone();
        let all = async {
            // registryd may be away, and a disk may hang. What cannot be saved now could not be before.
            let saved = timeout(LAST_SAVE, tokio::task::spawn_blocking(move || roster.save()));
            let ((), _told_in_time, _saved_in_time) =
                tokio::join!(in_order, timeout(LAST_REPORT, told.tell(&report)), saved);
        };
        let deadline = Instant::now() + self.config.proxy.timeouts.drain;
        wait(&self.shared, &self.config, &mut self.signals, &self.supervisor, all, Some(deadline), None)
            .await;
    }

    /// Leaves all new work to `successor`, and finishes its own however long that takes, unless told to stop.
    async fn hand_over(&mut self, mut successor: Box<Successor>) {
        // Only the new process reports, and only its file keeps the roster.
        self.following.abort();
        self.upkeep.iter().for_each(AbortHandle::abort);
        if let Some(reporting) = self.reporting.take() {
            reporting.abort();
        }
        let pid = successor.pid().unwrap_or_default();
        self.supervisor.follow(pid).await;
        successor.go().await;
        self.sockets = None;
        let Shared { inbound, outbound, admin, .. } = &self.shared;
        for side in [inbound, outbound, admin] {
            side.begin();
        }
        live::feed::close();
        tracing::info!(
            target: "Mesh",
            "upgraded: process {pid} takes all new work; {} finish here",
            self.shared.under_way()
        );
        let all = async {
            tokio::join!(inbound.closed(), outbound.closed());
        };
        let successor = Some(&mut *successor);
        wait(&self.shared, &self.config, &mut self.signals, &self.supervisor, all, None, successor).await;
    }

    /// Ends the workers; what is in flight then is cut off.
    fn end(self) {
        // Fails only when every worker has ended already.
        let _ = self.end.send(true);
        for thread in self.threads {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

/// Waits until `all` has ended, `deadline` is over, or somebody insists; says now and then what it waits for.
async fn wait(
    shared: &Shared,
    config: &Config,
    signals: &mut Signals,
    supervisor: &Supervisor,
    all: impl Future<Output = ()>,
    mut deadline: Option<Instant>,
    mut successor: Option<&mut Successor>,
) {
    tokio::pin!(all);
    let limit = config.proxy.timeouts.drain;
    let upgrading = successor.is_some();
    let mut pause = WAITING_TOLD.0;
    let tell = async || {
        let what = format!("stopping; {} finish first", shared.under_way());
        tracing::info!(target: "Mesh", "{what}");
        supervisor.waits_for(&what).await;
    };
    tell().await;
    let mut tell_at = Instant::now() + pause;
    let cut = |why: String| {
        caller::all_cut("the sidecar ended");
        tracing::warn!(target: "Mesh", "{} {why}; they are cut off", shared.under_way());
    };
    loop {
        tokio::select! {
            biased;
            () = &mut all => return,
            () = signals.stop() => match deadline {
                Some(_) => return cut("were under way when it was told to stop once more".into()),
                None => deadline = Some(Instant::now() + limit),
            },
            end = async {
                match successor.as_mut() {
                    Some(successor) => successor.ended().await,
                    None => std::future::pending().await,
                }
            } => {
                successor = None;
                tracing::error!(
                    target: "Mesh",
                    "the process that took over has ended ({end}); this one ends too, so that the service manager \
                     starts another"
                );
                deadline = Some(Instant::now() + limit);
            }
            () = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            } => {
                let ms = limit.as_millis();
                return cut(format!("after {ms} ms (proxy.timeouts.drain_ms)"));
            }
            () = sleep_until(tell_at) => {
                tell().await;
                tell_at += pause;
                if upgrading && deadline.is_none() {
                    pause = (pause * 2).min(WAITING_TOLD.1);
                }
            }
        }
    }
}

/// What a signal asks for.
#[derive(PartialEq, Eq)]
enum Asked {
    Stop,
    Upgrade,
}

/// The signals that this process answers to, but for SIGHUP.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    upgrade: Signal,
}

impl Signals {
    /// SIGHUP's, and all others.
    fn listen() -> io::Result<([Signal; 2], Self)> {
        let signals = Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            upgrade: signal(SignalKind::user_defined2())?,
        };
        Ok(([signal(SignalKind::hangup())?, signal(SignalKind::hangup())?], signals))
    }

    /// Returns at the next of them.
    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.upgrade.recv() => Asked::Upgrade,
        }
    }

    /// Returns at the next SIGTERM or SIGINT. There is nothing to upgrade meanwhile.
    async fn stop(&mut self) {
        while self.next().await != Asked::Stop {}
    }
}

/// What all workers share.
struct Shared {
    credentials: Arc<CredentialStore>,
    lists: Arc<Lists>,
    lists_api: Arc<ListsApi>,
    policies: Arc<PolicyStore>,
    roster: Arc<RosterStore>,
    /// `None`: certificates say who hosts an agent.
    hosts: Option<Arc<Hosts>>,
    nodes: Arc<Nodes>,
    registry: Arc<RegistryLink>,
    admission: Arc<Admission>,
    agents: SlotsByAddress,
    /// Connections of this host's programs.
    locals: Connections,
    inbound: Drain,
    outbound: Drain,
    admin: Drain,
    pulse: Arc<Pulse>,
}

impl Shared {
    fn new(config: &Config, own_inbound: SocketAddr) -> Result<Self, CredentialsError> {
        let (node, proxy) = (config.mesh.node_name.clone(), &config.proxy);
        let most = proxy.limits.max_connections;
        let linger = LINGER.min(proxy.timeouts.drain / 2);
        METRICS.set_limits(proxy);
        let lists = Arc::new(Lists::open(&proxy.state_dir));
        let credentials = Arc::new(CredentialStore::new(Credentials::load(config, &lists)?));
        let roster = Arc::new(RosterStore::open(&proxy.state_dir, node, own_inbound));
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
    fn under_way(&self) -> String {
        let (inbound, outbound) = (self.inbound.requests(), self.outbound.requests());
        format!("{inbound} inbound and {outbound} outbound requests")
    }

    /// What the sidecar asks other nodes for by itself. It shares the connections of `worker`.
    fn upkeep(&self, config: &Config, worker: &Worker, upstream: Arc<Upstream>) -> Vec<AbortHandle> {
        let requests = Arc::new(Requests::new(upstream));
        let lists = Exchange::new(
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

    fn worker(&self, config: &Config, sockets: &Sockets, upstream: Arc<Upstream>) -> io::Result<Worker> {
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

/// What is wrong with certificates, lists, and who hosts what, each in a sentence.
fn trust_problems(credentials: &CredentialStore, hosts: Option<&Hosts>, roster: &RosterStore) -> Vec<String> {
    let mut problems = credentials.problems();
    problems.extend(hosts.map(|hosts| hosts.problems(roster)).unwrap_or_default());
    problems
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

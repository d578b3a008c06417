//! Wiring: reads the configuration, opens the sockets, starts, hands over to a newer process on
//! SIGUSR2, drains on SIGTERM.

mod report;
mod shared;
mod signals;
mod waiting;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mesh_shared::config::Config;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::admin::Admin;
use crate::descriptors;
use crate::handover::{Predecessor, Program, Successor, UpgradeError};
use crate::live;
use crate::live::api::OwnSocket;
use crate::policy;
use crate::roster::sync;
use crate::sockets::{Sockets, SocketsError};
use crate::supervisor::{self, Supervisor};
use crate::tls::credentials::CredentialsError;
use crate::tls::reload;
use crate::upstream::Upstream;

use report::Reporter;
use shared::Shared;
use signals::{Asked, Signals};
use waiting::wait;

/// How long a process that took sockets over waits for its first roster. Clients wait with it, in the sockets' queues.
const FIRST_ROSTER: Duration = Duration::from_secs(2);
/// How long the end of a process waits until registryd knows of it.
const LAST_REPORT: Duration = Duration::from_secs(1);
/// How long it waits until the roster is saved.
const LAST_SAVE: Duration = Duration::from_secs(2);
/// How long the last spans may take to the collector, at most the time that a drain may take.
const LAST_SPANS: Duration = Duration::from_secs(2);

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
    sidecar.reporter.start();
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
    shared: Shared,
    reporter: Reporter,
    signals: Signals,
    supervisor: Arc<Supervisor>,
    /// What belongs to the one process that is the service: following registryd's roster and reporting to registryd.
    following: AbortHandle,
    /// What it asks other nodes for by itself.
    upkeep: Vec<AbortHandle>,
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
        let shared = Shared::new(&config, inbound)?;
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
        // Those peers that still may look come again.
        let replaced = live::feed::end_inbound;
        tokio::spawn(policy::follow(policy_hangup, config.clone(), shared.policies.clone(), replaced));
        Ok(Self {
            reporter: Reporter::new(config.clone(), (inbound, outbound), &shared),
            config,
            program,
            sockets: Some(sockets),
            shared,
            signals,
            supervisor: Arc::default(),
            following,
            upkeep,
            end,
            threads,
        })
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
            tracing::error!(target: "Mesh", "upgrade failed, continuing as before: {error}");
            self.reporter.upgrade_failed(error.to_string());
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
        self.reporter.start();
        let Shared { inbound, outbound, .. } = &self.shared;
        let told = self.reporter.tell();
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
                tokio::join!(in_order, timeout(LAST_REPORT, told), saved);
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
        self.reporter.stop();
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

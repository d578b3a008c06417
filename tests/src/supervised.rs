//! A supervisor that keeps a sidecar's listening sockets, as systemd does for a `.socket` unit: the sidecar is
//! restarted or upgraded, and nobody who connects is refused.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use hyper::body::Incoming;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};

use crate::mesh::Node;
use crate::process::{self, Daemon};
use crate::web::{self, Answer, BodySender, Connection};
use crate::{eventually, within};

/// The first descriptor that a supervisor passes on (sd_listen_fds(3)).
const FIRST: RawFd = 3;

/// A node's sidecar under a supervisor. All of its processes end with this value.
pub struct Supervised {
    /// The process that the supervisor started last.
    pub daemon: Daemon,
    /// The process that serves: the same, or one that took over from it.
    pub pid: u32,
    config_path: PathBuf,
    name: String,
    sockets: Vec<(TcpListener, &'static str)>,
    log_read: usize,
    started: BTreeSet<u32>,
}

impl Supervised {
    /// Opens the sockets of a node and starts its sidecar with them.
    pub async fn start(node: &Node) -> Self {
        Self::named(node, ["inbound", "outbound"]).await
    }

    /// The same with these names for the two sockets.
    pub async fn named(node: &Node, names: [&'static str; 2]) -> Self {
        let listen = |addr: SocketAddr| TcpListener::bind(addr).unwrap_or_else(|e| panic!("{addr}: {e}"));
        let sockets = vec![(listen(node.inbound()), names[0]), (listen(node.outbound()), names[1])];
        let daemon = spawn(&node.name, &node.config_path, &sockets);
        let mut supervised = Self {
            pid: daemon.pid(),
            started: BTreeSet::from([daemon.pid()]),
            daemon,
            config_path: node.config_path.clone(),
            name: node.name.clone(),
            sockets,
            log_read: 0,
        };
        supervised.ready().await;
        supervised
    }

    async fn ready(&mut self) {
        self.daemon.wait_log_after(self.log_read, &["[Mesh] mesh-proxy ready"]).await;
        self.log_read = self.daemon.log().len();
    }

    /// Waits for the end of a sidecar that was told to stop, and starts another on the same sockets.
    pub async fn start_again(&mut self) {
        assert!(self.daemon.exited().await.success());
        self.daemon = spawn(&self.name, &self.config_path, &self.sockets);
        self.log_read = 0;
        self.pid = self.daemon.pid();
        self.started.insert(self.pid);
        self.ready().await;
    }

    /// Has the process that serves hand over to a new one. Returns the old one's process id.
    pub async fn upgrade(&mut self) -> u32 {
        let old = self.pid;
        let skip = self.daemon.log().len();
        process::signal(old, libc::SIGUSR2);
        let line = self.daemon.wait_log_after(skip, &["[Mesh] upgraded: process "]).await;
        let new = line.split("upgraded: process ").nth(1).and_then(|rest| rest.split(' ').next());
        self.pid = new.and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("{line}"));
        assert_ne!(self.pid, old);
        self.started.insert(self.pid);
        old
    }

    /// Whether a process of these still runs. One that ended and that nobody has waited for does not.
    pub fn runs(pid: u32) -> bool {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        !status.is_empty() && !status.contains("\nState:\tZ")
    }

    /// Waits for the end of a process that handed over.
    pub async fn gone(pid: u32) {
        eventually(&format!("process {pid}, which handed over, ends"), async || {
            (!Self::runs(pid)).then_some(())
        })
        .await;
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        for &pid in &self.started {
            // The first one is this process's own child, which `daemon` ends. The others are children of one another;
            // their numbers may be somebody else's by now.
            let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            if pid != self.daemon.pid() && program.to_string_lossy().contains("mesh-proxy") {
                process::signal(pid, libc::SIGKILL);
            }
        }
    }
}

/// Starts a node's sidecar with these sockets.
pub fn start_with(node: &Node, sockets: &[(TcpListener, &'static str)]) -> Daemon {
    spawn(&node.name, &node.config_path, sockets)
}

/// Starts a sidecar with these sockets from descriptor 3 on.
fn spawn(name: &str, config_path: &PathBuf, sockets: &[(TcpListener, &'static str)]) -> Daemon {
    let names: Vec<_> = sockets.iter().map(|(_, name)| *name).collect();
    let descriptors: Vec<RawFd> = sockets.iter().map(|(socket, _)| socket.as_raw_fd()).collect();
    // The process id is known only in the process itself.
    let mut command = Command::new("sh");
    command
        .args(["-c", "LISTEN_PID=$$ exec \"$0\""])
        .arg(process::binary("mesh-proxy"))
        .env("MESH_CONFIG", config_path)
        .env_remove("MESH_LOG")
        .env_remove("JOURNAL_STREAM")
        .env("LISTEN_FDS", sockets.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"));
    // SAFETY: between fork and exec only system calls are made, which are async-signal-safe.
    #[allow(unsafe_code, reason = "no other way to give a child descriptors of fixed numbers")]
    unsafe {
        command.pre_exec(move || {
            // First out of the way of the numbers that are wanted.
            let mut high = [0; 8];
            for (high, descriptor) in high.iter_mut().zip(&descriptors) {
                *high = libc::fcntl(*descriptor, libc::F_DUPFD_CLOEXEC, 100);
            }
            for (wanted, high) in (FIRST..).zip(high.iter().take(descriptors.len())) {
                if libc::dup2(*high, wanted) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Daemon::start(&format!("{name} mesh-proxy"), &mut command)
}

/// Requests at a steady rate, each of which has to succeed.
pub struct Load {
    state: Arc<LoadState>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct LoadState {
    stop: AtomicBool,
    sent: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// Clients that keep their connections, each of which sends a tenth of the requests.
const KEEPING: u32 = 5;

impl Load {
    /// Sends `per_second` requests to `target` at `addr`: half on connections that are kept, half on new ones.
    pub fn start(addr: SocketAddr, target: &'static str, per_second: u32) -> Self {
        let state = Arc::<LoadState>::default();
        let task = tokio::spawn({
            let state = state.clone();
            async move {
                let mut clients = JoinSet::new();
                for _ in 0..KEEPING {
                    clients.spawn(keep_asking(
                        state.clone(),
                        addr,
                        target,
                        Duration::from_secs(2 * u64::from(KEEPING)) / per_second,
                    ));
                }
                let mut tick = tokio::time::interval(Duration::from_secs(2) / per_second);
                while !state.stop.load(Ordering::Relaxed) {
                    tick.tick().await;
                    let state = state.clone();
                    clients.spawn(async move {
                        let outcome = async {
                            let mut connection = connect(addr).await?;
                            ask(&mut connection, target).await
                        };
                        state.note(outcome.await.map(drop));
                    });
                    while clients.try_join_next().is_some() {}
                }
                clients.join_all().await;
            }
        });
        Self { state, task }
    }

    /// Requests so far.
    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::Relaxed)
    }

    /// Waits for so many more requests.
    pub async fn more(&self, count: u64) {
        let until = self.sent() + count;
        eventually("requests are sent", async || (self.sent() >= until).then_some(())).await;
    }

    /// Sends no more, and returns how many were sent once all are answered.
    ///
    /// # Panics
    /// When one has failed.
    pub async fn end(self) -> u64 {
        self.state.stop.store(true, Ordering::Relaxed);
        within("the last answers", self.task).await.unwrap();
        let failures = self.state.failures.lock().unwrap();
        let sent = self.state.sent.load(Ordering::Relaxed);
        assert!(failures.is_empty(), "{} of {sent} requests failed: {failures:#?}", failures.len());
        sent
    }
}

impl LoadState {
    fn note(&self, outcome: Result<(), String>) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = outcome {
            self.failures.lock().unwrap().push(error);
        }
    }
}

async fn keep_asking(state: Arc<LoadState>, addr: SocketAddr, target: &'static str, pause: Duration) {
    let mut kept: Option<Connection> = None;
    let mut tick = tokio::time::interval(pause);
    while !state.stop.load(Ordering::Relaxed) {
        tick.tick().await;
        let outcome = async {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => connect(addr).await?,
            };
            let answer = ask(&mut connection, target).await?;
            if answer.header("connection") != Some("close") {
                kept = Some(connection);
            }
            Ok(())
        };
        state.note(outcome.await);
    }
}

async fn connect(addr: SocketAddr) -> Result<Connection, String> {
    let stream = TcpStream::connect(addr).await.map_err(|error| format!("connect: {error}"))?;
    Ok(Connection::over(stream).await)
}

async fn ask(connection: &mut Connection, target: &str) -> Result<Answer, String> {
    let request = web::request(Method::GET, target).body(web::empty()).unwrap();
    let limit = Duration::from_secs(25);
    let asked = async { Answer::read(connection.open(request).await?).await };
    match tokio::time::timeout(limit, asked).await {
        Ok(Ok(answer)) if answer.status == 200 => Ok(answer),
        Ok(Ok(answer)) => Err(format!("{} {}", answer.status, answer.text())),
        Ok(Err(error)) => Err(format!("{error:?}")),
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}

/// Event streams that are open through a node.
pub struct Streams {
    open: Vec<Incoming>,
    senders: Vec<BodySender>,
    told: usize,
}

impl Streams {
    /// Opens `count` streams of `agent`, which answers at `target` of `from`.
    pub async fn open(from: &Node, target: &str, agent: &Node, count: usize) -> Self {
        let mut streams = Self { open: Vec::new(), senders: Vec::new(), told: 0 };
        for _ in 0..count {
            let request = web::request(Method::GET, target).body(web::empty()).unwrap();
            let opened = web::open(from.outbound(), request);
            let (response, sender) = tokio::join!(opened, agent.agent().stream());
            streams.open.push(response.unwrap().into_body());
            streams.senders.push(sender);
        }
        streams
    }

    /// Sends an event on each and waits for all of them to arrive.
    pub async fn flow(&mut self) {
        self.told += 1;
        let event = format!("data: {}\n\n", self.told);
        for sender in &self.senders {
            sender.send(web::piece(event.clone())).expect("the agent's side of a stream was closed");
        }
        for body in &mut self.open {
            web::expect_data(body, &event).await;
        }
    }

    /// Ends them as the agent does, and sees their ends arrive.
    pub async fn end(mut self) {
        self.senders.clear();
        for body in &mut self.open {
            assert!(web::next_data(body).await.is_none());
        }
    }
}

/// Restarts the sidecar of `near` so many times under load, with event streams open that end as it stops. Returns the
/// number of requests.
pub async fn restarts(
    near: &Node,
    far: &Node,
    sidecar: &mut Supervised,
    load: u32,
    streams: usize,
    rounds: u32,
) -> u64 {
    let requests = Load::start(near.outbound(), "/nodes/ct111/x", load);
    for round in 0..rounds {
        let mut open = Streams::open(near, "/nodes/ct111/stream", far, streams).await;
        open.flow().await;
        requests.more(u64::from(load / 4)).await;
        let skip = sidecar.daemon.log().len();
        process::signal(sidecar.pid, libc::SIGTERM);
        sidecar.daemon.wait_log_after(skip, &["[Mesh] stopping"]).await;
        // What is open goes on, and then ends in order.
        open.flow().await;
        open.end().await;
        sidecar.start_again().await;
        println!("restart {}: {} requests", round + 1, requests.sent());
    }
    requests.more(u64::from(load / 4)).await;
    requests.end().await
}

/// Upgrades a sidecar between `near` and `far` so many times under load, with event streams open that go on. Returns
/// the number of requests.
pub async fn upgrades(
    near: &Node,
    far: &Node,
    sidecar: &mut Supervised,
    load: u32,
    streams: usize,
    rounds: u32,
) -> u64 {
    let requests = Load::start(near.outbound(), "/nodes/ct111/x", load);
    for round in 0..rounds {
        let mut open = Streams::open(near, "/nodes/ct111/stream", far, streams).await;
        open.flow().await;
        requests.more(u64::from(load / 4)).await;
        let old = sidecar.upgrade().await;
        for _ in 0..3 {
            requests.more(u64::from(load / 4)).await;
            open.flow().await;
        }
        assert!(Supervised::runs(old), "it has streams to finish");
        open.end().await;
        Supervised::gone(old).await;
        println!("upgrade {}: {} requests", round + 1, requests.sent());
    }
    requests.end().await
}

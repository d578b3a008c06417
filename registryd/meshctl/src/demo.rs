//! `meshctl demo`: two nodes on this machine, a delegation between them, and two clients that are refused; then a small
//! mesh with traffic, and the dashboard that shows it. The real daemons with real certificates, in a temporary folder.

pub mod agent;
mod intruder;
mod process;
mod traffic;

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use bytes::Bytes;
use clap::Args;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use mesh_shared::address::LoopbackAddr;
use mesh_shared::certificate::{self, TrustBundle};
use mesh_shared::identity::Identity;
use mesh_shared::local_api::{NODES, NodeView};
use mesh_shared::message::{MessageRequest, MessageResponse};
use mesh_shared::registry::Status;
use mesh_shared::spiffe::TrustDomain;
use rustls::pki_types::UnixTime;
use tokio::signal::unix::{SignalKind, signal};

use crate::Failure;
use crate::dashboard::{Dashboard, Sources};
use crate::output::{Colour, paint, print};
use mesh_ca::{Ca, Issued, KeyType, Order};
use mesh_client::Daemon;
use process::{Process, eventually};

/// Arguments of `meshctl demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Exit after the last step; exit code 0 only if every step worked
    #[arg(long)]
    once: bool,
    /// Print the dashboard's URL without opening a browser
    #[arg(long)]
    no_open: bool,
    /// Keep the temporary folder with configuration, certificates and logs
    #[arg(long)]
    keep: bool,
}

const TASK: &str = "Summarise what a service mesh is, in one sentence.";

/// A node of the demo.
struct Node {
    name: &'static str,
    agent: &'static str,
    folder: PathBuf,
    inbound: SocketAddr,
    outbound: SocketAddr,
    backend: SocketAddr,
}

/// Everything that runs, in the order of its start.
#[derive(Default)]
struct Running {
    processes: Vec<Process>,
}

impl Running {
    /// The process of this name. Those asked for have been started.
    fn get(&mut self, name: &str) -> Result<&mut Process, String> {
        self.processes
            .iter_mut()
            .find(|process| process.name == name)
            .ok_or_else(|| format!("{name} is not running"))
    }
}

/// Shows the steps, then stays until Ctrl-C unless told otherwise.
///
/// # Errors
/// No temporary folder, or nobody to read the output. A step that fails makes exit code 1.
pub async fn run(args: DemoArgs) -> Result<ExitCode, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let folder = tempfile::Builder::new().prefix("mesh-demo-").tempdir()?;
    let mut running = Running::default();
    let interrupted = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    };
    let played = async {
        let mut steps = Steps::new(if args.once { 8 } else { 9 });
        let mut stage = play(folder.path(), &mut steps, &mut running).await?;
        if !args.once {
            stage.grow(&mut steps, &mut running).await?;
            live(&stage, &args).await?;
        }
        Ok(())
    };
    let result = tokio::select! {
        result = played => result,
        () = interrupted => Err(DemoError::Interrupted),
    };

    let mut logs = String::new();
    if let Err(DemoError::Step(_)) = &result {
        for process in &running.processes {
            logs.push_str(&format!("  the end of {}'s log:\n{}", process.name, process.tail(12)));
        }
    }
    while let Some(process) = running.processes.pop() {
        process.end().await;
    }
    let place = folder.path().display().to_string();
    match args.keep {
        true => drop(folder.keep()),
        false => folder.close()?,
    }
    let kept = if args.keep { format!("everything is left in {place}\n") } else { String::new() };
    match result {
        Ok(()) => {
            print(&format!("\nEvery step worked, and the nodes are stopped.\n{kept}"))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(DemoError::Interrupted) => {
            print(&format!("\nThe nodes are stopped.\n{kept}"))?;
            // Whoever asked for all of the steps did not get them.
            Ok(if args.once { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        Err(DemoError::Step(what)) => {
            // With nobody left to read it, it has still failed.
            let _ = print(&format!("{} {what}\n{logs}{kept}", paint(Colour::Red, "✗")));
            Ok(ExitCode::FAILURE)
        }
        Err(DemoError::Output(error)) => Err(error.into()),
    }
}

enum DemoError {
    Step(String),
    Output(std::io::Error),
    Interrupted,
}

impl From<String> for DemoError {
    fn from(step: String) -> Self {
        Self::Step(step)
    }
}

impl From<std::io::Error> for DemoError {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error)
    }
}

/// What the steps have set up.
struct Stage {
    folder: PathBuf,
    programs: Programs,
    addresses: Addresses,
    ca: Ca,
    nodes: Vec<Node>,
}

/// Keeps traffic going and serves the dashboard; does not return, unless the dashboard is not available.
async fn live(stage: &Stage, args: &DemoArgs) -> Result<(), DemoError> {
    let one = &stage.nodes[0];
    let sources = Sources {
        registryd: Daemon::Registryd(one.socket()),
        outbound: Daemon::Sidecar(one.outbound),
        sidecar: Daemon::Admin(one.folder.join("state/admin.sock")),
    };
    let dashboard = Dashboard::bind(LoopbackAddr::v4(0), one.name.parse().ok(), sources).await;
    let dashboard = dashboard.map_err(|error| error.to_string())?;
    print(&invitation(&stage.nodes, &stage.folder, dashboard.url(), args.keep))?;
    let _opened = if args.no_open { None } else { dashboard.open() };
    tokio::select! {
        never = dashboard.serve() => match never {},
        () = traffic::flow(&stage.nodes) => Ok(()),
    }
}

/// The steps; each says what it does before it does it.
async fn play(folder: &Path, steps: &mut Steps, running: &mut Running) -> Result<Stage, String> {
    let (programs, addresses) = (Programs::find()?, Addresses::take());
    let node = |name, agent, last| Node::new(name, agent, addresses.of(last), folder);
    let nodes = vec![node("ct110", "opus", 110)?, node("ct111", "grok", 111)?];
    let (one, two) = (&nodes[0], &nodes[1]);

    steps.begin("a certificate authority, and a certificate for each node")?;
    let ca = Ca::at(folder.join("shared/rivet-ca"));
    ca.init(&folder.join("ca-root"), KeyType::default(), &TrustDomain::default())
        .map_err(|error| error.to_string())?;
    for node in &nodes {
        let issued = issue(&ca, node)?;
        node.write_config(folder, &ca, &issued)?;
    }
    steps.done(&ca.chain_path().display().to_string())?;

    steps.begin("an agent on each node: plain HTTP servers on loopback")?;
    for node in &nodes {
        node.start_agent(&programs, running).await?;
    }
    steps.done(&format!("opus on {}, grok on {}", one.backend, two.backend))?;

    steps.begin("mesh-proxy and registryd on each node, one mesh.json for both")?;
    for node in &nodes {
        node.start_daemons(&programs, running)?;
    }
    for node in &nodes {
        running.get(&node.process("mesh-proxy"))?.line(&["mesh-proxy ready"]).await?;
    }
    steps.done(&format!("peers meet on {} and {}", one.inbound, two.inbound))?;

    steps.begin("the nodes find each other")?;
    one.hears_of(two).await?;
    two.hears_of(one).await?;
    for (node, other) in [(one, two), (two, one)] {
        let sidecar = Daemon::Sidecar(node.outbound);
        let path = format!("/agents/{}/api/mesh/ping", other.agent);
        eventually(&format!("{} reaches {}", node.name, other.agent), async || {
            let answer = sidecar.send(Method::GET, &path, HeaderMap::new(), Bytes::new()).await;
            answer.and_then(|answer| sidecar.accepted(&path, answer)).map_err(|error| error.to_string())
        })
        .await?;
    }
    steps.done("both reach the other's agent by its name, over mutual TLS")?;

    steps.begin("opus is asked to delegate, and posts to its own localhost")?;
    let response = delegate(one).await?;
    steps.done(&format!("POST http://{}/agents/grok/api/message", one.outbound))?;
    steps.say(&format!("{} answers: {:?}", response.agent, response.response))?;

    steps.begin("what ct111's sidecar logged about it")?;
    let sidecar = running.get(&two.process("mesh-proxy"))?;
    let line = sidecar.line(&["Received mesh delegation", "peer.cn=ct110 from opus → grok"]).await?;
    steps.done("")?;
    steps.say(&line)?;

    steps.begin("a client without a certificate")?;
    let trusted = || {
        let bundle = TrustBundle::read(&ca.chain_path());
        bundle.and_then(|bundle| bundle.valid_at(UnixTime::now())).map_err(|error| error.to_string())
    };
    let refusal = intruder::refused(two.inbound, trusted()?, None).await?;
    let line = sidecar.line(&["WARN", "TLS handshake failed", "peer did not return a certificate"]).await?;
    steps.done(&format!("refused: {refusal}"))?;
    steps.say(&line)?;

    steps.begin("a client with a certificate that says ct110, from another CA")?;
    let foreign = Ca::at(folder.join("foreign/ca"));
    foreign
        .init(&folder.join("foreign/root"), KeyType::default(), &TrustDomain::default())
        .map_err(|error| error.to_string())?;
    let issued = issue(&foreign, one)?;
    let chain = certificate::read_certificates("certificate", &issued.certificate);
    let key = certificate::read_key(&issued.key).map_err(|error| error.to_string())?;
    let credentials = (chain.map_err(|error| error.to_string())?, key.clone_key());
    let refusal = intruder::refused(two.inbound, trusted()?, Some(credentials)).await?;
    let line = sidecar.line(&["WARN", "TLS handshake failed", "unknown issuer"]).await?;
    steps.done(&format!("refused: {refusal}"))?;
    steps.say(&line)?;
    for process in &mut running.processes {
        process.runs()?;
    }
    Ok(Stage { folder: folder.into(), programs, addresses, ca, nodes })
}

impl Stage {
    /// Adds nodes, one of them another host of an agent that there is already.
    async fn grow(&mut self, steps: &mut Steps, running: &mut Running) -> Result<(), String> {
        steps.begin("two more nodes, and everyday traffic between all of them")?;
        let Self { folder, programs, addresses, ca, nodes } = self;
        for (name, agent, last) in [("ct112", "scribe", 112), ("ct113", "grok", 113)] {
            let node = Node::new(name, agent, addresses.of(last), folder)?;
            node.write_config(folder, ca, &issue(ca, &node)?)?;
            node.start_agent(programs, running).await?;
            node.start_daemons(programs, running)?;
            nodes.push(node);
        }
        for node in &nodes[2..] {
            running.get(&node.process("mesh-proxy"))?.line(&["mesh-proxy ready"]).await?;
            nodes[0].hears_of(node).await?;
        }
        steps.done("scribe on ct112, and grok on ct113 as well")
    }
}

fn issue(ca: &Ca, node: &Node) -> Result<Issued, String> {
    let identity = node.name.parse().map(Identity::Node).map_err(|error| format!("{error}"))?;
    ca.issue(&Order::new(identity, vec![node.inbound.ip().to_string()])).map_err(|error| error.to_string())
}

/// Gives opus a task that it passes on to grok.
async fn delegate(node: &Node) -> Result<MessageResponse, String> {
    let request = MessageRequest {
        from_agent: "you".into(),
        message: format!("@grok {TASK}"),
        ..MessageRequest::default()
    };
    let body = serde_json::to_vec(&request).map_err(|error| error.to_string())?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let agent = Daemon::Agent(node.backend);
    let answer = agent.send(Method::POST, "/api/message", headers, body.into()).await;
    let answer = answer.map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&answer.body);
    if !answer.status.is_success() {
        return Err(format!("opus got no answer from grok: {}", text.trim()));
    }
    match serde_json::from_slice::<MessageResponse>(&answer.body) {
        Ok(response) if response.agent == "grok" => Ok(response),
        _ => Err(format!("not grok's answer: {text}")),
    }
}

/// The loopback addresses of one demo: those of 127.0.0.0/24, unless another demo on this machine has them.
struct Addresses {
    first: [u8; 3],
    _held: Option<TcpListener>,
}

impl Addresses {
    fn take() -> Self {
        // Nothing is served there: the address only marks that 127.0.0.0/24 is taken.
        match TcpListener::bind((IpAddr::from([127, 0, 0, 110]), 2999)) {
            Ok(held) => Self { first: [127, 0, 0], _held: Some(held) },
            Err(_) => {
                let [_, _, high, low] = std::process::id().to_be_bytes();
                Self { first: [127, high.clamp(1, 254), low], _held: None }
            }
        }
    }

    fn of(&self, last: u8) -> IpAddr {
        let [a, b, c] = self.first;
        IpAddr::from([a, b, c, last])
    }
}

/// The programs, which are next to this one.
struct Programs {
    meshctl: PathBuf,
    mesh_proxy: PathBuf,
    registryd: PathBuf,
}

impl Programs {
    fn find() -> Result<Self, String> {
        let meshctl =
            std::env::current_exe().map_err(|error| format!("cannot find meshctl itself: {error}"))?;
        let beside = |name: &str| {
            let path = meshctl.with_file_name(name);
            match path.is_file() {
                true => Ok(path),
                false => Err(format!(
                    "{} is missing; build all programs (cargo build --release --bins) or install them together",
                    path.display()
                )),
            }
        };
        Ok(Self { mesh_proxy: beside("mesh-proxy")?, registryd: beside("registryd")?, meshctl })
    }
}

impl Node {
    /// A node on a loopback address of its own, with the usual ports where they are free.
    fn new(name: &'static str, agent: &'static str, ip: IpAddr, folder: &Path) -> Result<Self, String> {
        let free = |port| {
            let listener = TcpListener::bind((ip, port)).or_else(|_| TcpListener::bind((ip, 0)));
            listener
                .and_then(|listener| listener.local_addr())
                .map_err(|error| format!("no free port on {ip}: {error}"))
        };
        let folder = folder.join(name);
        std::fs::create_dir_all(folder.join("state"))
            .map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        Ok(Self { name, agent, inbound: free(3000)?, outbound: free(3001)?, backend: free(8080)?, folder })
    }

    fn config_path(&self) -> PathBuf {
        self.folder.join("mesh.yaml")
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("registryd.sock")
    }

    fn process(&self, program: &str) -> String {
        format!("{program} on {}", self.name)
    }

    fn start(
        &self,
        name: &str,
        program: &Path,
        arguments: &[&str],
        running: &mut Running,
    ) -> Result<(), String> {
        let log = self.folder.join(format!("{name}.log"));
        running.processes.push(Process::start(&self.process(name), program, arguments, log)?);
        Ok(())
    }

    async fn start_agent(&self, programs: &Programs, running: &mut Running) -> Result<(), String> {
        let (listen, outbound) = (self.backend.to_string(), self.outbound.to_string());
        let arguments = ["demo-agent", "--name", self.agent, "--listen", &listen, "--outbound", &outbound];
        self.start(self.agent, &programs.meshctl, &arguments, running)?;
        running.get(&self.process(self.agent))?.line(&["listens on"]).await?;
        Ok(())
    }

    fn start_daemons(&self, programs: &Programs, running: &mut Running) -> Result<(), String> {
        let config = self.config_path().display().to_string();
        for (name, program) in [("registryd", &programs.registryd), ("mesh-proxy", &programs.mesh_proxy)] {
            self.start(name, program, &["--config", &config], running)?;
        }
        Ok(())
    }

    /// Waits until this node's registryd knows that the other one is there.
    async fn hears_of(&self, other: &Self) -> Result<(), String> {
        let registryd = Daemon::Registryd(self.socket());
        eventually(&format!("registryd on {} hears of {}", self.name, other.name), async || {
            let nodes: Vec<NodeView> = registryd.read(NODES).await.map_err(|error| error.to_string())?;
            let there = |view: &NodeView| view.node.name == other.name && view.node.status == Status::Online;
            nodes.iter().any(there).then_some(()).ok_or_else(|| format!("{} is not online", other.name))
        })
        .await
    }

    fn write_config(&self, folder: &Path, ca: &Ca, issued: &Issued) -> Result<(), String> {
        let Self { name, agent, outbound, backend, .. } = self;
        let (ip, port) = (self.inbound.ip(), self.inbound.port());
        // A path as a JSON string is a YAML one too, whatever is in it.
        let quoted = |path: &Path| serde_json::json!(path).to_string();
        let text = format!(
            "mesh:\n  enabled: true\n  node_name: {name}\n  tls:\n    ca_path: {}\n    cert_path: {}\n    \
             key_path: {}\n  agent_channel_port: {port}\n  storage_dir: {}\n  heartbeat_interval_ms: 2000\n  \
             stale_threshold_ms: 7000\n  advertise_host: {ip}\n\
             proxy:\n  inbound: {{address: {ip}}}\n  outbound: {{listen: \"{outbound}\"}}\n  \
             backend: {{address: \"{backend}\"}}\n  state_dir: {}\n  \
             # The dashboard is ct110's.\n  live: {{peers: [ct110]}}\n  \
             policy: {{rules: [{{path: /api/admin/**, action: deny}}, {{action: allow}}]}}\n\
             registryd:\n  agents: [{agent}]\n  socket: {}\n  \
             # Nobody answers there, so the hosts in mesh.json count and never a real ct111.mesh.\n  \
             dns: {{upstream: [\"{ip}:9\"]}}\n",
            quoted(&ca.chain_path()),
            quoted(&issued.certificate),
            quoted(&issued.key),
            quoted(&folder.join("shared")),
            quoted(&self.folder.join("state")),
            quoted(&self.socket()),
        );
        let path = self.config_path();
        std::fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
    }
}

/// Numbered lines: what is done, then a tick.
struct Steps {
    count: usize,
    of: usize,
    start: Instant,
}

impl Steps {
    fn new(of: usize) -> Self {
        Self { count: 0, of, start: Instant::now() }
    }

    fn begin(&mut self, what: &str) -> Result<(), String> {
        (self.count, self.start) = (self.count + 1, Instant::now());
        show(&format!("[{}/{}] {what} ... ", self.count, self.of))
    }

    fn done(&self, what: &str) -> Result<(), String> {
        let gap = if what.is_empty() { "" } else { "\n      " };
        let took = paint(Colour::Faint, &format!("{} ms", self.start.elapsed().as_millis()));
        show(&format!("{} {took}{gap}{what}\n", paint(Colour::Green, "✓")))
    }

    fn say(&self, what: &str) -> Result<(), String> {
        show(&format!("      {what}\n"))
    }
}

fn show(text: &str) -> Result<(), String> {
    print(text).map_err(|error| format!("cannot write the output: {error}"))
}

fn invitation(nodes: &[Node], folder: &Path, dashboard: &str, keep: bool) -> String {
    let meshctl = std::env::current_exe().unwrap_or_else(|_| "meshctl".into());
    let (meshctl, folder) = (meshctl.display(), folder.display());
    let (one, two) = (&nodes[0], &nodes[1]);
    let (outbound, socket, peer) = (one.outbound, one.socket(), two.inbound);
    let socket = socket.display();
    let json =
        "-H 'content-type: application/json' -d '{\"fromAgent\":\"opus\",\"message\":\"Hello, grok\"}'";
    let removed = if keep { "" } else { " and removes the folder" };
    format!(
        "
The mesh at work, in a browser; only this URL opens it:
  {dashboard}

All nodes are up. In another terminal, on ct110's outbound port, as opus would:
  by agent:
    curl -sS http://{outbound}/agents/grok/api/message {json}
  with the mesh as HTTP proxy:
    http_proxy=http://{outbound} curl -sS http://ct111.mesh/api/mesh/ping
  by header:
    curl -sS http://{outbound}/api/message -H 'x-mesh-agent: grok' {json}
  what the mesh cannot do for you, and why:
    curl -sS -i http://{outbound}/agents/nobody/api/message {json}
Who is there:
    {meshctl} nodes --socket {socket}
    {meshctl} ping --socket {socket}
    {meshctl} watch --socket {socket}
Refused, as ct111's log will say:
    curl -sS -k --http1.1 https://{peer}/api/mesh/ping
    openssl s_client -connect {peer} -CAfile {folder}/shared/rivet-ca/intermediate/ca-chain.pem
The logs, the configurations, mesh.json:
    tail -f {folder}/ct110/*.log {folder}/ct111/*.log
    cat {folder}/ct110/mesh.yaml {folder}/shared/mesh.json

Ctrl-C ends the demo{removed}.
"
    )
}

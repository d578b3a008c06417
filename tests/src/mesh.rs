//! Nodes: a folder, a configuration, certificates, both daemons and an agent each.

use std::fs::{self, File, Permissions};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::Agent;
use crate::ca::{Ca, Issued};
use crate::dns::Dns;
use crate::loopback::Loopback;
use crate::process::{self, Daemon};
use crate::tls::{Client, Peer, PeerOptions};
use crate::web::{self, Answer};
use crate::{eventually, within};

/// The default ports; every node has an address of its own.
const INBOUND_PORT: u16 = 3000;
const OUTBOUND_PORT: u16 = 3001;
const BACKEND_PORT: u16 = 8080;
const DNS_PORT: u16 = 5354;

/// One CA, one shared folder, one resolver, any number of nodes.
pub struct Mesh {
    /// Who vouches for the nodes.
    pub ca: Arc<Ca>,
    /// What `.mesh` names resolve to; empty, so that the registry's hosts count.
    pub dns: Dns,
    folder: TempDir,
    _dns_address: Loopback,
}

impl Mesh {
    /// An empty mesh.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("mesh-test-").tempdir().unwrap();
        let ca = Arc::new(Ca::new());
        ca.write(&folder.path().join("ca"));
        fs::create_dir(folder.path().join("shared")).unwrap();
        let dns_address = Loopback::take();
        Self { ca, dns: Dns::start(dns_address.port(DNS_PORT)), folder, _dns_address: dns_address }
    }

    /// The temporary folder of everything.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The shared `mesh.json`.
    pub fn registry_path(&self) -> PathBuf {
        self.folder().join("shared/mesh.json")
    }

    /// The trust bundle.
    pub fn bundle_path(&self) -> PathBuf {
        self.folder().join("ca/intermediate/ca-chain.pem")
    }

    /// The content of the shared `mesh.json`.
    ///
    /// # Panics
    /// When it does not parse: a reader never sees half a file.
    pub fn registry(&self) -> Value {
        read_json(&self.registry_path())
    }

    /// The entry of a node in the shared `mesh.json`.
    pub fn entry(&self, node: &str) -> Option<Value> {
        let path = self.registry_path();
        if !path.exists() {
            return None;
        }
        read_json(&path)["nodes"].as_object()?.values().find(|entry| entry["name"] == node).cloned()
    }

    /// Changes the shared `mesh.json` as a careful program does: under the lock, by renaming.
    pub fn edit_registry(&self, change: impl FnOnce(&mut Value)) {
        edit_registry(&self.registry_path(), change);
    }

    /// Enters a node that no registryd speaks for; its role keeps it from going stale.
    pub fn register(&self, node: &str, host: &str, port: u16, agents: &[&str]) {
        self.edit_registry(|registry| {
            registry["nodes"][format!("id-{node}")] = entry(node, host, port, agents)
        });
    }

    /// Changes the entry of a registered node as its owner would, with a newer `lastSeen`.
    pub fn amend(&self, node: &str, change: impl FnOnce(&mut Value)) {
        self.edit_registry(|registry| {
            let entry = &mut registry["nodes"][format!("id-{node}")];
            change(entry);
            entry["lastSeen"] = (entry["lastSeen"].as_u64().unwrap() + 1).max(epoch_ms()).into();
        });
    }

    /// A node to be started.
    pub fn node(&self, name: &str) -> Plan {
        let identity = self.ca.node(name);
        Plan::new(self, name, identity)
    }

    /// Starts a node with one agent.
    pub async fn start(&self, name: &str, agent: &str) -> Node {
        self.node(name).agent(agent).start().await
    }

    /// Starts two nodes that see each other: ct110 with opus and ct111 with grok.
    pub async fn pair(&self) -> (Node, Node) {
        let (one, two) = tokio::join!(self.start("ct110", "opus"), self.start("ct111", "grok"));
        tokio::join!(one.reaches("ct111"), two.reaches("ct110"));
        (one, two)
    }

    /// Starts a hand-made peer and enters it in the registry.
    pub async fn peer(&self, name: &str, agents: &[&str]) -> (Peer, Loopback) {
        self.peer_with(name, agents, PeerOptions::good(&self.ca, name)).await
    }

    /// Starts a hand-made peer that behaves as told and enters it in the registry.
    pub async fn peer_with(&self, name: &str, agents: &[&str], options: PeerOptions) -> (Peer, Loopback) {
        let address = Loopback::take();
        let peer = Peer::start(address.port(INBOUND_PORT), name, options).await;
        self.register(name, &address.ip().to_string(), INBOUND_PORT, agents);
        (peer, address)
    }
}

impl Default for Mesh {
    fn default() -> Self {
        Self::new()
    }
}

/// An entry as another program would write it, online for good.
pub fn entry(node: &str, host: &str, port: u16, agents: &[&str]) -> Value {
    json!({
        "id": format!("id-{node}"), "name": node, "role": "service", "agents": agents, "host": host, "port": port,
        "providers": [], "models": [], "capabilities": [], "status": "online", "lastSeen": epoch_ms(),
        "registeredAt": epoch_ms(), "version": "test", "metadata": {"by": "test"},
    })
}

/// The time as `mesh.json` has it.
pub fn epoch_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// A JSON file's content.
pub fn read_json(path: &Path) -> Value {
    let content = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&content).unwrap_or_else(|error| {
        panic!("{} does not parse ({error}): {}", path.display(), process::text(&content))
    })
}

/// Changes a `mesh.json` under its lock, by renaming.
pub fn edit_registry(path: &Path, change: impl FnOnce(&mut Value)) {
    let lock = File::options().create(true).append(true).open(path.with_extension("json.lock")).unwrap();
    lock.lock().unwrap();
    let mut registry = match path.exists() {
        true => read_json(path),
        false => json!({"version": 1, "nodes": {}, "updatedAt": 0}),
    };
    change(&mut registry);
    registry["updatedAt"] = epoch_ms().into();
    let new = path.with_extension("json.test");
    fs::write(&new, serde_json::to_vec_pretty(&registry).unwrap()).unwrap();
    fs::rename(&new, path).unwrap();
}

/// Replaces a `mesh.json` whatever it holds, under its lock, by renaming.
pub fn replace_registry(path: &Path, content: Value) {
    let lock = File::options().create(true).append(true).open(path.with_extension("json.lock")).unwrap();
    lock.lock().unwrap();
    let new = path.with_extension("json.test");
    fs::write(&new, content.to_string()).unwrap();
    fs::rename(&new, path).unwrap();
}

/// A node before its start: everything about it can still be changed.
pub struct Plan {
    /// The configuration, as JSON (which is YAML).
    pub config: Value,
    name: String,
    address: Loopback,
    folder: PathBuf,
    agent: Option<String>,
}

impl Plan {
    fn new(mesh: &Mesh, name: &str, identity: Issued) -> Self {
        let address = Loopback::take();
        let folder = mesh.folder().join(name);
        fs::create_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let (cert, key) = (folder.join("node.crt"), folder.join("node.key"));
        fs::write(&cert, identity.chain_pem).unwrap();
        fs::write(&key, identity.key_pem).unwrap();
        fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        let config = json!({
            "mesh": {
                "enabled": true,
                "node_name": name,
                "tls": {"ca_path": mesh.bundle_path(), "cert_path": cert, "key_path": key},
                "agent_channel_port": INBOUND_PORT,
                "storage_dir": mesh.folder().join("shared"),
                "advertise_host": address.ip().to_string(),
                "heartbeat_interval_ms": 500,
                // Far above any hiccup of a busy machine.
                "stale_threshold_ms": 60_000,
            },
            "proxy": {
                "inbound": {"address": address.ip().to_string()},
                "outbound": {"listen": address.port(OUTBOUND_PORT).to_string()},
                "backend": {"address": address.port(BACKEND_PORT).to_string()},
                "timeouts": {"drain_ms": 2000},
                "state_dir": folder.join("state"),
            },
            "registryd": {
                "agents": [],
                "socket": folder.join("registryd.sock"),
                "dns": {"upstream": [mesh.dns.addr().to_string()]},
            },
        });
        Self { config, name: name.into(), address, folder, agent: None }
    }

    /// Runs an agent of this name behind the node.
    pub fn agent(mut self, name: &str) -> Self {
        self.config["registryd"]["agents"] = json!([name]);
        self.agent = Some(name.into());
        self
    }

    /// Changes the configuration.
    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self
    }

    /// A mesh.json of its own instead of the shared one.
    pub fn own_storage(self) -> Self {
        let own = self.folder.join("storage");
        fs::create_dir(&own).unwrap();
        self.with(|config| config["mesh"]["storage_dir"] = json!(own))
    }

    /// Its address, for configurations that name it.
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// Writes the configuration and starts the agent, but neither daemon.
    pub async fn prepare(self) -> Node {
        let config_path = self.folder.join("mesh.yaml");
        fs::write(&config_path, serde_json::to_vec_pretty(&self.config).unwrap()).unwrap();
        let mut node = Node {
            name: self.name,
            address: self.address,
            folder: self.folder,
            config_path,
            proxy: None,
            registryd: None,
            agent: None,
        };
        if let Some(agent) = self.agent {
            node.start_agent(&agent).await;
        }
        node
    }

    /// Starts everything and waits until it works.
    pub async fn start(self) -> Node {
        let mut node = self.prepare().await;
        node.start_registryd().await;
        node.start_proxy().await;
        node.has_roster().await;
        node
    }
}

/// A node. Its processes end with it.
pub struct Node {
    /// Its name.
    pub name: String,
    /// The configuration file.
    pub config_path: PathBuf,
    /// The sidecar, if it runs.
    pub proxy: Option<Daemon>,
    /// The registry daemon, if it runs.
    pub registryd: Option<Daemon>,
    /// The agent, if there is one.
    pub agent: Option<Agent>,
    address: Loopback,
    folder: PathBuf,
}

impl Node {
    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its address.
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// Its address with another port.
    pub fn port(&self, port: u16) -> SocketAddr {
        self.address.port(port)
    }

    /// Where peers come in.
    pub fn inbound(&self) -> SocketAddr {
        self.address.port(INBOUND_PORT)
    }

    /// Where its agent goes out.
    pub fn outbound(&self) -> SocketAddr {
        self.address.port(OUTBOUND_PORT)
    }

    /// Where its agent listens.
    pub fn backend(&self) -> SocketAddr {
        self.address.port(BACKEND_PORT)
    }

    /// registryd's socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("registryd.sock")
    }

    /// The sidecar's process.
    pub fn proxy(&mut self) -> &mut Daemon {
        self.proxy.as_mut().expect("mesh-proxy was not started")
    }

    /// The registry daemon's process.
    pub fn registryd(&mut self) -> &mut Daemon {
        self.registryd.as_mut().expect("registryd was not started")
    }

    /// What its agent saw.
    pub fn agent(&self) -> &crate::agent::Example {
        &self.agent.as_ref().expect("no agent was started").example
    }

    /// Ends its agent.
    pub async fn stop_agent(&mut self) {
        self.agent.take().expect("no agent was started").stop().await;
    }

    /// Starts an agent of this name behind it.
    pub async fn start_agent(&mut self, name: &str) {
        self.agent = Some(Agent::start(self.backend(), name).await);
    }

    /// A command for one of the binaries with this node's configuration.
    pub fn command(&self, binary: &str) -> Command {
        let mut command = process::command(binary);
        command.env("MESH_CONFIG", &self.config_path);
        command
    }

    /// Starts mesh-proxy and waits until it listens.
    pub async fn start_proxy(&mut self) {
        let name = format!("{} mesh-proxy", self.name);
        let mut proxy = Daemon::start(&name, &mut self.command("mesh-proxy"));
        proxy.wait_log(&["[Mesh] mesh-proxy ready"]).await;
        self.proxy = Some(proxy);
    }

    /// Starts registryd and waits until its socket answers.
    pub async fn start_registryd(&mut self) {
        let name = format!("{} registryd", self.name);
        self.registryd = Some(Daemon::start(&name, &mut self.command("registryd")));
        let what = format!("{name} answers on its socket");
        eventually(&what, async || {
            assert!(self.registryd.as_mut().unwrap().is_running(), "{name} ended at its start");
            self.local("/v1/status").await.filter(|answer| answer.status == 200)
        })
        .await;
    }

    /// GET on registryd's socket; `None` while nobody answers.
    pub async fn local(&self, path: &str) -> Option<Answer> {
        let request = web::request(Method::GET, path).body(web::empty()).unwrap();
        web::on_socket(&self.socket(), request).await
    }

    /// Waits until mesh-proxy knows the mesh.
    pub async fn has_roster(&self) {
        eventually("mesh-proxy got its roster", async || {
            let answer = self.get("/nodes/nobody-of-this-name/").await;
            (answer.header("x-mesh-error") == Some("unknown_node")).then_some(())
        })
        .await;
    }

    /// Waits until a ping from this node to another succeeds.
    pub async fn reaches(&self, other: &str) {
        let target = format!("/nodes/{other}/api/mesh/ping");
        eventually(&format!("{} reaches {other}", self.name), async || {
            (self.get(&target).await.status == 200).then_some(())
        })
        .await;
    }

    /// Waits until a request of this node's agent has this outcome: the code of a sidecar's error, or `None`
    /// for an answer from the far side.
    pub async fn comes_to(&self, target: &str, code: Option<&str>) -> Answer {
        eventually(&format!("{} at {} comes to {code:?}", target, self.name), async || {
            let answer = self.get(target).await;
            (answer.header("x-mesh-error") == code).then_some(answer)
        })
        .await
    }

    /// GET on the outbound side, as the agent does it.
    pub async fn get(&self, target: &str) -> Answer {
        web::get(self.outbound(), target).await
    }

    /// POST on the outbound side, as the agent does it.
    pub async fn post(&self, target: &str, json: &Value) -> Answer {
        web::post(self.outbound(), target, json).await
    }

    /// A request to the inbound side with the certificate of a peer.
    pub async fn from_peer(&self, mesh: &Mesh, peer: &str, request: http::Request<web::Body>) -> Answer {
        let client = Client::new(&mesh.ca, &mesh.ca.node(peer));
        within("answer of the inbound side", client.send(self.inbound(), &self.name, request)).await
    }

    /// GET on the inbound side with the certificate of a peer.
    pub async fn get_from_peer(&self, mesh: &Mesh, peer: &str, target: &str) -> Answer {
        self.from_peer(mesh, peer, web::request(Method::GET, target).body(web::empty()).unwrap()).await
    }
}

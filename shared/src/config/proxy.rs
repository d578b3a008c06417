//! The `proxy:` section: the sidecar. Every key has a default that works.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::keys::DEFAULT_STATE_DIR;
use super::yaml::{Section, repeated};
use crate::address::{self, BackendAddr, LocalAddr, LoopbackAddr};
use crate::enrolment;
use crate::identity::Identity;
use crate::name::{AgentName, NodeName};
use crate::policy::{Action, PeerPattern, Rule, Rules};
use crate::spiffe::SpiffeId;

/// The section, checked.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Where peers come in.
    pub inbound: Inbound,
    /// Where this host's programs go out.
    pub outbound: Outbound,
    /// The servers of this host's agents.
    pub backend: Backend,
    /// How much one client may take.
    pub limits: Limits,
    /// How long one client may take.
    pub timeouts: Timeouts,
    /// Which peers may come in.
    pub policy: Policy,
    /// Where supervisors and operators of this host ask the sidecar about itself.
    pub admin: Admin,
    /// The nodes whose sidecars may see what this one carries ([`crate::live`]).
    pub live_peers: Vec<NodeName>,
    /// Revocation lists (PEM) to enforce in both directions; `None`: there are none.
    pub crl_path: Option<PathBuf>,
    /// Where the CA's process answers, if it runs on this host.
    pub ca_socket: PathBuf,
    /// What peers and this node must agree on in a handshake.
    pub tls: Tls,
    /// Where the last known roster and the newest revocation lists are kept for the next start.
    pub state_dir: PathBuf,
    /// Threads that carry requests. Each keeps connections of its own to every peer it talks to, and one carries
    /// more than the agents of one host produce.
    pub threads: usize,
    /// How many characters of a task its log line shows; 0: none.
    pub task_preview_chars: usize,
}

/// Where supervisors and operators of this host ask the sidecar about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where to serve `/healthz`, `/readyz` and `/metrics`; `None`: nowhere.
    pub listen: Option<LoopbackAddr>,
    /// The unix socket of the live view ([`crate::live`]).
    pub socket: PathBuf,
    /// Whether the configuration names it. Where it does not, the sidecar also starts without it.
    pub socket_is_named: bool,
}

impl Admin {
    /// [`Admin::socket`] unless configured.
    pub fn default_socket(state_dir: &Path) -> PathBuf {
        state_dir.join("admin.sock")
    }
}

/// How strong a handshake has to be, in both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The oldest version that is accepted.
    pub min_version: TlsVersion,
    /// The groups for the key exchange, the preferred one first; at least one.
    pub groups: Vec<Group>,
    /// Whom certificates without a common name name, by the only URI in them.
    pub spiffe: BTreeMap<SpiffeId, Identity>,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// RFC 5246; only with an extended master secret (RFC 7627).
    V1_2,
    /// RFC 8446.
    V1_3,
}

impl FromStr for TlsVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "1.2" => Ok(Self::V1_2),
            "1.3" => Ok(Self::V1_3),
            other => Err(format!("expected 1.3 or 1.2, found {other:?}")),
        }
    }
}

/// A group for the key exchange, by its name in IANA's registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum Group {
    X25519MlKem768,
    X25519,
    Secp256r1,
    Secp384r1,
}

impl Group {
    /// All of them, the preferred one first: the hybrid one is safe from quantum computers, and from flaws of ML-KEM.
    pub const ALL: [Self; 4] = [Self::X25519MlKem768, Self::X25519, Self::Secp256r1, Self::Secp384r1];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X25519MlKem768 => "X25519MLKEM768",
            Self::X25519 => "x25519",
            Self::Secp256r1 => "secp256r1",
            Self::Secp384r1 => "secp384r1",
        }
    }
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|group| group.as_str().eq_ignore_ascii_case(text)).ok_or_else(|| {
            let all = Self::ALL.map(Self::as_str).join(", ");
            format!("expected one of {all}, found {text:?}")
        })
    }
}

/// Where peers come in.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// The address to listen on; the port is `mesh.agent_channel_port`. `::` stands for all, IPv4 too.
    pub address: IpAddr,
}

/// Where this host's programs go out.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// Plain HTTP for all destinations.
    pub listen: LoopbackAddr,
    /// Plain HTTP for one node or agent each, or on a unix socket.
    pub listeners: Vec<OutboundListener>,
    /// Values of `Origin` that programs of this host may send.
    pub allowed_origins: Vec<Origin>,
    /// What programs of this host may ask for.
    pub policy: Rules,
    /// Most requests of this host to one node at once.
    pub max_requests_per_node: usize,
    /// How often a request is sent at most, the first time included, as long as nothing of it was processed.
    pub max_attempts: u32,
}

/// One more listener for this host's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundListener {
    /// Its place in the file, such as `proxy.outbound.listeners[0]`.
    pub key: String,
    /// Where to listen.
    pub listen: LocalAddr,
    /// Who may connect to a unix socket.
    pub access: SocketAccess,
    /// Where everything goes; `None`: each request says where.
    pub to: Option<ListenerTarget>,
    /// The agent that whoever comes in here acts as; `None`: as the node.
    pub as_agent: Option<AgentIdentity>,
}

/// An agent of this node that has listeners of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentIdentity {
    /// Its name.
    pub name: AgentName,
    /// Its certificate and key, which have to be there; `None`: `<agent>@<node>.crt` and `.key` beside the node's
    /// certificate, if they are there.
    pub files: Option<(PathBuf, PathBuf)>,
}

/// Who may connect to a unix socket: its owner is the user of mesh-proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketAccess {
    /// Its permissions (chmod(2)); to connect is to write.
    pub mode: u32,
    /// The group that it belongs to; `None`: that of mesh-proxy.
    pub group: Option<String>,
    /// The only users whose processes are served (SO_PEERCRED); `None`: all that can open the file.
    pub users: Option<Vec<LocalUser>>,
}

/// A user of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalUser {
    /// By number.
    Id(u32),
    /// By name, which is looked up at the start.
    Name(String),
}

impl FromStr for LocalUser {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(id) => Ok(Self::Id(id)),
            Err(_) if text.is_empty() || text.contains([':', '/', ' ']) => {
                Err(format!("expected the name or number of a user, found {text:?}"))
            }
            Err(_) => Ok(Self::Name(text.into())),
        }
    }
}

/// Four octal digits.
struct Mode(u32);

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = Some(text).filter(|text| text.len() == 4 && text.starts_with('0'));
        let mode = digits.and_then(|digits| u32::from_str_radix(digits, 8).ok());
        mode.map(Self).ok_or_else(|| {
            format!("expected four octal digits between quotes, such as \"0660\", found {text:?}")
        })
    }
}

/// Where everything goes that comes in on one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerTarget {
    /// To this node.
    Node(NodeName),
    /// To a node that hosts this agent.
    Agent(AgentName),
}

/// The servers of this host's agents. What may be under way at once counts for each of them by itself.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Where requests go that name no agent, or one without a server of its own.
    pub server: AgentServer,
    /// The agents that have servers of their own.
    pub agents: BTreeMap<AgentName, AgentServer>,
    /// What servers are told in `Host`.
    pub host: HostHeader,
    /// Most requests that a server gets at once.
    pub max_requests: usize,
    /// Most requests that wait for one of those to end.
    pub max_queue: usize,
    /// How long a request waits.
    pub queue: Duration,
    /// Most event streams and upgraded connections at once; they take no place of requests.
    pub max_event_streams: usize,
}

impl Backend {
    /// Where servers listen, each once, with the configuration key of the first one there.
    pub fn addresses(&self) -> Vec<(String, &BackendAddr)> {
        let mut addresses = vec![("proxy.backend.address".to_owned(), &self.server.address)];
        for (agent, server) in &self.agents {
            if addresses.iter().all(|(_, known)| *known != &server.address) {
                addresses.push((format!("proxy.backend.agents.{agent}.address"), &server.address));
            }
        }
        addresses
    }
}

/// An agent's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentServer {
    /// Where it listens; always plain HTTP.
    pub address: BackendAddr,
    /// What it is spoken to in.
    pub protocol: Protocol,
}

/// What an agent's server is told in `Host`. What the peer said is in `x-forwarded-host` all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostHeader {
    /// The address at which it listens, as a local client would say: servers that are bound to loopback refuse others.
    #[default]
    Local,
    /// What the peer said, `<node>.mesh`.
    Peer,
}

impl FromStr for HostHeader {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "local" => Ok(Self::Local),
            "peer" => Ok(Self::Peer),
            other => Err(format!("expected local or peer, found {other:?}")),
        }
    }
}

/// What an agent's server is spoken to in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// gRPC by HTTP/2; everything else by HTTP/1.1, unless the server turns out to speak HTTP/2 only.
    #[default]
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge (RFC 9113, section 3.3), apart from requests for an upgrade.
    H2c,
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "http1" => Ok(Self::Http1),
            "h2c" => Ok(Self::H2c),
            other => Err(format!("expected auto, http1 or h2c, found {other:?}")),
        }
    }
}

/// How much one client may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest request body, in bytes. What comes once the answer has begun, and gRPC, is not counted.
    pub max_body_bytes: u64,
    /// Largest header block, in bytes.
    pub max_header_bytes: u32,
    /// Most connections of peers at once; this host's programs may have as many again.
    pub max_connections: usize,
    /// Most connections of one peer at once.
    pub max_connections_per_peer: usize,
    /// Most requests at once on one HTTP/2 connection.
    pub max_streams: u32,
    /// Most requests of one peer at once.
    pub max_requests_per_peer: usize,
    /// Most requests of one peer in a second, over a few seconds; `None`: any number.
    pub max_requests_per_second_per_peer: Option<u32>,
    /// Most TLS handshakes under way with peers.
    pub max_handshakes: usize,
    /// Most of them with one address (for IPv6: one /64).
    pub max_handshakes_per_address: usize,
    /// The slowest that the body of a request may arrive once [`Timeouts::body`] is over, in bytes a second.
    pub min_body_bytes_per_second: u32,
}

/// How long one client may take.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// TCP connect and TLS handshake, each way.
    pub handshake: Duration,
    /// For a peer on HTTP/1.1: until a request's header block is complete, counted from the request before.
    pub header: Duration,
    /// From a peer's handshake until its first request is there.
    pub first_request: Duration,
    /// How long the body of a request may keep the agent waiting before its answer begins, beyond what
    /// [`Limits::min_body_bytes_per_second`] allows.
    pub body: Duration,
    /// Silence within an answer after which it is given up; `None`: never.
    pub stream_idle: Option<Duration>,
    /// How long a client may read nothing of an answer that waits for it; `None`: for ever.
    pub unread: Option<Duration>,
    /// How long an unused connection to a peer is kept; one of HTTP/1.1 for less, by what the peer says.
    pub pool_idle: Duration,
    /// How long requests in flight may go on after SIGTERM.
    pub drain: Duration,
}

/// Which peers may come in: all that the CA vouches for, unless narrowed here.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Only these; `None`: every one.
    pub allow: Option<Vec<Identity>>,
    /// Never these.
    pub deny: Vec<Identity>,
    /// What those that may come in may ask for.
    pub rules: Rules,
}

/// `mode` and `rules` of a policy; `peer` is how its rules call the other side.
fn rules(section: &Section<'_>, peer: &'static str) -> Rules {
    const EXPECTED: &str = "{method: POST, path: /api/message, action: allow}";
    let mode = section.parsed("mode").unwrap_or_default();
    let mut rules = Vec::new();
    if section.length("rules") > MAX_RULES {
        section.mistake("rules", format!("there are more than {MAX_RULES}"));
    }
    for (_, item) in section.sections("rules", EXPECTED) {
        let action = item.parsed("action");
        if !item.has("action") {
            item.mistake_here("action is missing; expected allow, deny or audit");
        }
        // A key without a value would make the rule one for all.
        let by = if peer == "node" { "as_agent" } else { peer };
        for key in [peer, by, "agent", "method", "path"] {
            if item.is_empty(key) {
                item.mistake(key, "is empty; remove the key for a rule that is for all of them");
            }
        }
        let rule = Rule {
            peer: match peer {
                "node" => item.parsed(peer).map(|node| PeerPattern::One(Identity::Node(node))),
                _ => item.parsed(peer),
            },
            caller: if by == "as_agent" { item.parsed(by) } else { None },
            agent: item.parsed("agent"),
            method: item.parsed("method").map(|Method(method)| method),
            path: item.parsed("path"),
            action: action.unwrap_or(Action::Deny),
        };
        item.finish();
        rules.push(rule);
    }
    Rules { rules, mode }
}

/// Each is compared with each request.
const MAX_RULES: usize = 1000;

/// An HTTP method, in capitals.
struct Method(String);

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let good = |byte: u8| byte.is_ascii_uppercase() || b"-_".contains(&byte);
        match (1..=32).contains(&text.len()) && text.bytes().all(good) {
            true => Ok(Self(text.into())),
            false => Err(format!("expected a method in capitals such as POST, found {text:?}")),
        }
    }
}

pub(super) fn read(section: Section<'_>) -> Proxy {
    let inbound = section.section("inbound");
    let address = inbound
        .parsed("address")
        .map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |InboundAddress(address)| address);
    inbound.finish();

    let outbound = outbound(section.section("outbound"));

    let backend = section.section("backend");
    let server = AgentServer {
        address: backend.parsed("address").unwrap_or(BackendAddr::v4(8080)),
        protocol: backend.parsed("protocol").unwrap_or_default(),
    };
    let backend_read = Backend {
        agents: agents(&backend, server.protocol),
        server,
        host: backend.parsed("host").unwrap_or_default(),
        max_requests: backend.number("max_requests").unwrap_or(256) as usize,
        max_queue: backend.number("max_queue").unwrap_or(256) as usize,
        queue: Duration::from_millis(backend.number("queue_ms").unwrap_or(5_000)),
        max_event_streams: backend.number("max_event_streams").unwrap_or(1_024) as usize,
    };
    backend.finish();

    let limits = section.section("limits");
    let max_connections = limits.number("max_connections").unwrap_or(10_000) as usize;
    let count = |key, default: usize| limits.number(key).map_or(default.max(1), |given| given as usize);
    let max_handshakes = count("max_handshakes", (max_connections / 10).max(8));
    let limits_read = Limits {
        max_body_bytes: limits.number("max_body_bytes").unwrap_or(10 * 1024 * 1024),
        max_header_bytes: limits.number("max_header_bytes").unwrap_or(64 * 1024) as u32,
        max_connections,
        max_connections_per_peer: count(
            "max_connections_per_peer",
            (max_connections / 2).max(max_connections.min(2)),
        ),
        max_streams: limits.number("max_streams").unwrap_or(250) as u32,
        max_requests_per_peer: count("max_requests_per_peer", 1_000),
        max_requests_per_second_per_peer: match limits
            .number("max_requests_per_second_per_peer")
            .unwrap_or(2_000)
        {
            0 => None,
            most => Some(most as u32),
        },
        max_handshakes,
        max_handshakes_per_address: count("max_handshakes_per_address", max_handshakes / 2),
        min_body_bytes_per_second: limits.number("min_body_bytes_per_second").unwrap_or(100) as u32,
    };
    limits.finish();

    let timeouts = section.section("timeouts");
    let ms = |key, default| Duration::from_millis(timeouts.number(key).unwrap_or(default));
    let ms_or_never = |key, default| match timeouts.number(key).unwrap_or(default) {
        0 => None,
        ms => Some(Duration::from_millis(ms)),
    };
    let timeouts_read = Timeouts {
        handshake: ms("handshake_ms", 10_000),
        header: ms("header_ms", 30_000),
        first_request: ms("first_request_ms", 30_000),
        body: ms("body_ms", 60_000),
        stream_idle: ms_or_never("stream_idle_ms", 0),
        unread: ms_or_never("unread_ms", 300_000),
        pool_idle: ms("pool_idle_ms", 90_000),
        drain: ms("drain_ms", 30_000),
    };
    timeouts.finish();

    let policy = section.section("policy");
    if policy.is_empty("allow") {
        policy.mistake("allow", "is empty; write [] for nobody, or remove the key for everybody");
    }
    let policy_read = Policy {
        allow: policy.list("allow"),
        deny: policy.list("deny").unwrap_or_default(),
        rules: rules(&policy, "peer"),
    };
    policy.finish();

    let state_dir = section.string("state_dir").map_or_else(|| DEFAULT_STATE_DIR.into(), PathBuf::from);
    let admin = admin(section.section("admin"), &state_dir);

    let live = section.section("live");
    let live_peers = live.list("peers").unwrap_or_default();
    live.finish();

    let log = section.section("log");
    let task_preview_chars = log.number("task_preview_chars").unwrap_or(100) as usize;
    log.finish();

    let proxy = Proxy {
        inbound: Inbound { address },
        outbound,
        backend: backend_read,
        limits: limits_read,
        timeouts: timeouts_read,
        policy: policy_read,
        admin,
        live_peers,
        crl_path: section.string("crl_path").map(PathBuf::from),
        ca_socket: section
            .string("ca_socket")
            .map_or_else(|| enrolment::DEFAULT_SOCKET.into(), PathBuf::from),
        tls: tls(section.section("tls")),
        state_dir,
        threads: section.number("threads").unwrap_or(1) as usize,
        task_preview_chars,
    };
    section.finish();
    proxy
}

fn admin(section: Section<'_>, state_dir: &Path) -> Admin {
    let listen = section.parsed("listen");
    let named = section.string("socket");
    let socket = named.as_deref().and_then(|path| {
        let path = address::socket_path(path.strip_prefix("unix:").unwrap_or(path));
        path.map_err(|error| section.mistake("socket", error.to_string())).ok()
    });
    section.finish();
    Admin {
        listen,
        socket_is_named: socket.is_some(),
        socket: socket.unwrap_or_else(|| Admin::default_socket(state_dir)),
    }
}

fn tls(section: Section<'_>) -> Tls {
    let groups: Option<Vec<Group>> = section.list("groups");
    if section.is_empty("groups") || groups.as_ref().is_some_and(Vec::is_empty) {
        section.mistake("groups", "is empty, so no key could be exchanged; remove the key for all groups");
    }
    let groups = groups.unwrap_or_default();
    for (i, group) in repeated(groups.iter().map(|group| group.as_str()).enumerate().collect()) {
        section.mistake_at("groups", i, format!("{group} is listed twice"));
    }
    let min_version = section.parsed_number("min_version").unwrap_or(TlsVersion::V1_3);
    let spiffe = spiffe(&section);
    section.finish();
    Tls { min_version, groups: if groups.is_empty() { Group::ALL.into() } else { groups }, spiffe }
}

fn spiffe(section: &Section<'_>) -> BTreeMap<SpiffeId, Identity> {
    const EXPECTED: &str = "{id: \"spiffe://example.org/ns/default/sa/web\", identity: ct115}";
    let (mut known, mut ids) = (BTreeMap::new(), Vec::new());
    for (i, item) in section.sections("spiffe", EXPECTED) {
        let (id, identity): (Option<SpiffeId>, Option<Identity>) =
            (item.parsed("id"), item.parsed("identity"));
        for key in ["id", "identity"] {
            if !item.has(key) {
                item.mistake_here(format!("{key} is missing; expected {EXPECTED}"));
            }
        }
        item.finish();
        if let (Some(id), Some(identity)) = (id, identity) {
            ids.push((i, id.clone()));
            known.insert(id, identity);
        }
    }
    for (i, id) in repeated(ids) {
        section.mistake_at("spiffe", i, format!("{id} is listed twice"));
    }
    known
}

/// The agents that have servers of their own; `protocol` is for those that say none.
fn agents(backend: &Section<'_>, protocol: Protocol) -> BTreeMap<AgentName, AgentServer> {
    const EXPECTED: &str = "{address: 127.0.0.1:8081}";
    let mut agents = BTreeMap::new();
    for (name, item) in backend.named_sections("agents", EXPECTED) {
        let (address, own) = (item.parsed("address"), item.parsed("protocol"));
        if !item.has("address") {
            item.mistake_here(format!("address is missing; expected {EXPECTED}"));
        }
        item.finish();
        if let Some(address) = address {
            agents.insert(name, AgentServer { address, protocol: own.unwrap_or(protocol) });
        }
    }
    agents
}

/// Its owner and its group may connect.
const SOCKET_MODE: u32 = 0o660;
/// Everybody may connect, and the kernel tells who it is.
const SOCKET_MODE_OF_USERS: u32 = 0o666;

fn outbound(section: Section<'_>) -> Outbound {
    const EXPECTED: &str = "{listen: 127.0.0.1:3111, node: ct111}, {listen: 127.0.0.1:3112, agent: grok} or {listen: 'unix:/run/mesh-proxy/outbound.sock'}";
    let listen = section.parsed("listen").unwrap_or(LoopbackAddr::v4(3001));
    let (mut listeners, mut agents): (Vec<OutboundListener>, Vec<AgentIdentity>) = (Vec::new(), Vec::new());
    for (i, item) in section.sections("listeners", EXPECTED) {
        let listen = item.parsed("listen");
        let node = item.parsed("node").map(ListenerTarget::Node);
        let to = item.parsed("agent").map(ListenerTarget::Agent).or(node);
        let is_unix = matches!(listen, Some(LocalAddr::Unix(_)));
        let as_agent = as_agent(&item);
        let differs = |other: &AgentIdentity| {
            as_agent.as_ref().is_some_and(|own| own.name == other.name && own.files != other.files)
        };
        if agents.iter().any(differs) {
            item.mistake("cert_path", "an earlier listener of the same agent has another one");
        }
        agents.extend(as_agent.clone());
        let targets = usize::from(item.has("node")) + usize::from(item.has("agent"));
        let for_all = is_unix || as_agent.is_some();
        if !item.has("listen") || targets > 1 || (targets == 0 && !for_all) {
            section.mistake_at("listeners", i, format!("expected {EXPECTED}"));
        }
        let users: Option<Vec<LocalUser>> = item.list_of_scalars("users");
        if item.is_empty("users") || users.as_ref().is_some_and(Vec::is_empty) {
            item.mistake(
                "users",
                "is empty, so nobody could connect; remove the key for all that can open the file",
            );
        }
        let usual = if users.is_some() { SOCKET_MODE_OF_USERS } else { SOCKET_MODE };
        let mode = item.parsed("mode").map_or(usual, |Mode(mode)| mode);
        let access = SocketAccess { mode, group: item.string("group"), users };
        for key in ["mode", "group"] {
            if item.has(key) && !is_unix {
                item.mistake(key, "is for unix sockets only");
            }
        }
        if item.has("users") && !is_unix {
            item.mistake(
                "users",
                "is for unix sockets only: TCP does not tell who connects; listen on unix:/path",
            );
        }
        item.finish();
        if let Some(listen) = listen
            && (to.is_some() || (for_all && targets == 0))
        {
            let key = format!("proxy.outbound.listeners[{i}]");
            listeners.push(OutboundListener { key, listen, access, to, as_agent });
        }
    }
    let max_requests_per_node = section.number("max_requests_per_node").unwrap_or(4_096) as usize;
    let max_attempts = section.number("max_attempts").unwrap_or(3) as u32;
    let allowed_origins = section.list("allowed_origins").unwrap_or_default();
    let policy = section.section("policy");
    let policy_read = rules(&policy, "node");
    policy.finish();
    section.finish();
    Outbound { listen, listeners, allowed_origins, policy: policy_read, max_requests_per_node, max_attempts }
}

fn as_agent(item: &Section<'_>) -> Option<AgentIdentity> {
    let name = item.parsed("as_agent");
    let path = |key| item.string(key).map(PathBuf::from);
    let files = match (path("cert_path"), path("key_path")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => {
            item.mistake("cert_path", "needs key_path");
            None
        }
        (None, Some(_)) => {
            item.mistake("key_path", "needs cert_path");
            None
        }
    };
    if item.is_empty("as_agent") {
        item.mistake("as_agent", "is empty; remove the key for a listener that acts as the node");
    }
    if files.is_some() && !item.has("as_agent") {
        item.mistake("cert_path", "is for listeners with as_agent; the node's own is mesh.tls.cert_path");
    }
    Some(AgentIdentity { name: name?, files })
}

/// The value of an `Origin` header (RFC 6454, section 7), as browsers and some programs send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    /// The value.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Err("any web page could then use this node's identity; name each origin".into());
        }
        let host = text.split_once("://").filter(|(scheme, _)| !scheme.is_empty()).map(|(_, host)| host);
        let is_host = |host: &str| {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte))
        };
        if !host.is_some_and(is_host) {
            return Err(format!(
                "{text:?} is not an origin such as http://ct111.mesh (no path, no slash at its end)"
            ));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

/// An address whose port is said elsewhere.
struct InboundAddress(IpAddr);

impl FromStr for InboundAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| match text.parse::<SocketAddr>() {
            Ok(_) => format!(
                "expected an address without a port, found {text:?}; the port is mesh.agent_channel_port"
            ),
            Err(_) => format!("{text:?} is not an IP address such as 0.0.0.0 or ::"),
        })
    }
}

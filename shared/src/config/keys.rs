//! Every key of the configuration: what it may hold, its default, and what it means.
//!
//! The readers take the ranges of numbers from this table. The JSON Schema ([`schema`](super::schema)) and the reference
//! ([`reference`](super::reference)) are made from it, so a key is described once.

use crate::enrolment;

/// `proxy.state_dir` unless it is configured.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/mesh-proxy";
/// `registryd.socket` unless it is configured.
pub const DEFAULT_REGISTRYD_SOCKET: &str = "/run/mesh/registryd.sock";

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Its place, as in `proxy.limits.max_streams`; members of a list are `mesh.peers[].name`, and a name that the user
    /// chooses is `*`.
    pub path: &'static str,
    /// What it may hold.
    pub form: Form,
    /// What counts where it is absent.
    pub default: Preset,
    /// What it means, in Markdown.
    pub meaning: &'static str,
}

/// What a key may hold. The text in some of them says what kind of text is expected.
#[derive(Debug)]
pub enum Form {
    /// Keys of its own.
    Section,
    /// A list whose members have keys of their own.
    Sections,
    /// Sections under names that the user chooses.
    NamedSections(&'static str),
    /// A list of texts, or of sections, or of both; one text counts as a list of one.
    TextsOrSections(&'static str),
    /// `true` or `false`.
    Bool,
    /// `true`, `false`, or keys of its own.
    BoolOrSection,
    /// A whole number.
    Number {
        /// The smallest.
        from: u64,
        /// The largest.
        to: u64,
    },
    /// A number from 0 to 1.
    Ratio,
    /// A text.
    Text(&'static str),
    /// One of these words.
    Word(&'static [&'static str]),
    /// One of these versions, with or without quotes.
    Version(&'static [&'static str]),
    /// A list of texts; one text counts as a list of one.
    Texts(&'static str),
    /// A list of some of these words; one word counts as a list of one.
    Words(&'static [&'static str]),
    /// A list of names and numbers; one counts as a list of one.
    NamesOrNumbers(&'static str),
    /// Any keys and values.
    Anything,
}

/// What counts where a key is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// This value, written as in YAML.
    Is(&'static str),
    /// What these words say.
    Says(&'static str),
    /// The key must be there, if its section is.
    Required,
    /// Each of its keys has its own.
    OfKeys,
}

impl Key {
    /// Whether a reload (SIGHUP) of the daemon that it is for puts a change into force; all others need a restart.
    pub fn is_reloaded(&self) -> bool {
        const RELOADED: [&[&str]; 9] = [
            &["proxy", "policy"],
            &["proxy", "live"],
            &["proxy", "outbound", "policy"],
            &["registryd", "agents"],
            &["registryd", "providers"],
            &["registryd", "models"],
            &["registryd", "capabilities"],
            &["registryd", "metadata"],
            &["registryd", "role"],
        ];
        RELOADED.iter().any(|section| section.iter().copied().eq(self.steps().take(section.len())))
    }

    /// Its place in steps: `mesh`, `peers`, `[]`, `name`.
    pub fn steps(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.path.split('.').flat_map(|part| match part.strip_suffix("[]") {
            Some(list) => [Some(list), Some("[]")].into_iter().flatten(),
            None => [Some(part), None].into_iter().flatten(),
        })
    }
}

const fn key(path: &'static str, form: Form, default: Preset, meaning: &'static str) -> Key {
    Key { path, form, default, meaning }
}

/// A number with a range, whose default is a number too.
const fn number(
    path: &'static str,
    (from, to): (u64, u64),
    default: &'static str,
    meaning: &'static str,
) -> Key {
    key(path, Form::Number { from, to }, Is(default), meaning)
}

const fn section(path: &'static str, meaning: &'static str) -> Key {
    key(path, Form::Section, Preset::OfKeys, meaning)
}

use Form::{
    Anything, Bool, BoolOrSection, NamedSections, NamesOrNumbers, Ratio, Sections, Text, Texts,
    TextsOrSections, Version, Word, Words,
};
use Preset::{Is, Required, Says};

const PORT: (u64, u64) = (1, 65_535);
/// A day at most.
const MS: (u64, u64) = (10, 86_400_000);
const MS_OR_NEVER: (u64, u64) = (0, 86_400_000);
const COUNT: (u64, u64) = (1, 1_000_000);

const PATH: &str = "a path";
const NODE: &str = "a node's name";
const AGENT: &str = "an agent's name";
const IDENTITY: &str = "a name in certificates: `ct111`, `opus@ct110`, `device:phone`";
const LOOPBACK: &str = "a loopback address and port";
const BACKEND: &str = "a loopback address and port, `localhost:<port>`, or `unix:<path>`";
const METHOD: &str = "an HTTP method in capitals";
const ACTIONS: &[&str] = &["allow", "deny", "audit"];
const MODES: &[&str] = &["enforce", "audit"];
const PROTOCOLS: &[&str] = &["auto", "http1", "h2c"];

/// All keys, each section before the keys in it.
pub const KEYS: &[Key] = &[
    section(
        "mesh",
        "The keys of a RivetOS configuration, and some more. Both daemons and meshctl read this section.",
    ),
    key("mesh.enabled", Bool, Required, "Must be `true`; otherwise the daemons do not start."),
    key(
        "mesh.node_name",
        Text(NODE),
        Says("the host's name"),
        "The name of this node. Must be the CN of its certificate, with or without `.mesh`; otherwise the daemons do not start.",
    ),
    key(
        "mesh.tls",
        BoolOrSection,
        Required,
        "`true` for the default paths, or a section with paths. There is no plaintext mesh. The files are read again when their content changes, and on `systemctl reload mesh-proxy`.",
    ),
    key(
        "mesh.tls.ca_path",
        Text(PATH),
        Is("/rivet-shared/rivet-ca/intermediate/ca-chain.pem"),
        "The trust bundle (PEM). Every CA certificate in it is a trust anchor.",
    ),
    key(
        "mesh.tls.cert_path",
        Text(PATH),
        Says("`/rivet-shared/rivet-ca/issued/<node_name>.crt`"),
        "This node's certificate (PEM), alone or with its chain.",
    ),
    key(
        "mesh.tls.key_path",
        Text(PATH),
        Says("`/rivet-shared/rivet-ca/issued/<node_name>.key`"),
        "Its private key (PEM). Only mesh-proxy reads it.",
    ),
    number(
        "mesh.agent_channel_port",
        PORT,
        "3000",
        "The port on which peers reach this node, with mutual TLS.",
    ),
    key(
        "mesh.storage_dir",
        Text(PATH),
        Is("/rivet-shared"),
        "The folder of `mesh.json`, either shared by all nodes or local to this node.",
    ),
    number(
        "mesh.heartbeat_interval_ms",
        (100, 86_400_000),
        "30000",
        "Time between two heartbeats of this node.",
    ),
    number(
        "mesh.stale_threshold_ms",
        (200, 604_800_000),
        "90000",
        "Silence after which this node counts as offline. Must be larger than the interval.",
    ),
    key(
        "mesh.advertise_host",
        Text("a host name or address"),
        Says("determined by registryd"),
        "The address that other nodes use if `<node>.mesh` does not resolve.",
    ),
    section("mesh.discovery", "How other nodes are found if there is no shared `mesh.json`."),
    key(
        "mesh.discovery.mode",
        Word(&["seed", "static", "mdns"]),
        Says("none"),
        "`seed`: by asking the node `seed_host`. `static`: from `mesh.peers`. `mdns`: by multicast DNS on the local network.",
    ),
    key(
        "mesh.discovery.seed_host",
        Text("`<node>.mesh`"),
        Says("none"),
        "The seed. Its certificate must name this node. Required with `mode: seed`.",
    ),
    number(
        "mesh.discovery.seed_port",
        PORT,
        "3100",
        "The seed's port. The default is that of RivetOS; nodes of this project listen on 3000.",
    ),
    key(
        "mesh.peers",
        Sections,
        Says("none"),
        "The addresses of nodes, in any mode of discovery. With `mode: static`, list all nodes.",
    ),
    key(
        "mesh.peers[].name",
        Text(NODE),
        Required,
        "The node's name. Its certificate must have the same name.",
    ),
    key("mesh.peers[].host", Text("a host name or address"), Says("`<name>.mesh`"), "The node's address."),
    number("mesh.peers[].port", PORT, "3000", "Its inbound port."),
    key(
        "mesh.trust_domain",
        Text("a SPIFFE trust domain"),
        Is("mesh"),
        "The trust domain of the SPIFFE IDs in the mesh's certificates ([identity](identity.md)).",
    ),
    section("mesh.ca", "Which node reaches the mesh's certificate authority."),
    key(
        "mesh.ca.node",
        Text(NODE),
        Says("none"),
        "The node on which `meshctl ca serve` runs. With it, mesh-proxy renews this node's certificate by itself; without it, certificates are renewed by hand.",
    ),
    key(
        "mesh.landlock",
        Bool,
        Is("true"),
        "Whether both daemons restrict themselves with Landlock where the kernel has it ([security](security.md)).",
    ),
    key(
        "mesh.agents",
        Word(&["claimed", "certified"]),
        Is("claimed"),
        "Which nodes receive an agent's tasks. `claimed`: all that register the agent. `certified`: only those whose certificate lists it as well ([identity](identity.md)).",
    ),
    key("mesh.secret", Anything, Says("none"), "Deprecated: accepted with a warning and not used."),
    key(
        "mesh.delegation_transport",
        Anything,
        Says("none"),
        "Accepted with a warning and not used; RivetOS nodes in the same mesh need `http`.",
    ),
    section("proxy", "The sidecar, mesh-proxy."),
    section("proxy.inbound", "The listener for peers."),
    key(
        "proxy.inbound.address",
        Text("an IP address"),
        Is("\"::\""),
        "The address to listen on; `::` is every address, IPv4 included. The port is `mesh.agent_channel_port`.",
    ),
    section("proxy.outbound", "The listeners for programs of this host."),
    key("proxy.outbound.listen", Text(LOOPBACK), Is("127.0.0.1:3001"), "Plain HTTP for all destinations."),
    key(
        "proxy.outbound.listeners",
        Sections,
        Says("none"),
        "Additional listeners: for a single node or agent, on a unix socket, or for calls of a single agent of this node.",
    ),
    key(
        "proxy.outbound.listeners[].listen",
        Text("a loopback address and port, or `unix:<path>`"),
        Required,
        "The address to listen on. For TCP, `node`, `agent` or `as_agent` is required too.",
    ),
    key(
        "proxy.outbound.listeners[].node",
        Text(NODE),
        Says("each request says"),
        "The node to which every request is sent.",
    ),
    key(
        "proxy.outbound.listeners[].agent",
        Text(AGENT),
        Says("each request says"),
        "The agent to which every request is sent; cannot be combined with `node`.",
    ),
    key(
        "proxy.outbound.listeners[].as_agent",
        Text(AGENT),
        Says("as the node"),
        "The agent of this node in whose name, and with whose certificate, requests from this listener are sent ([identity](identity.md)).",
    ),
    key(
        "proxy.outbound.listeners[].cert_path",
        Text(PATH),
        Says("`<agent>@<node>.crt` beside the node's, if it exists"),
        "The certificate of `as_agent`. Needs `key_path`.",
    ),
    key(
        "proxy.outbound.listeners[].key_path",
        Text(PATH),
        Says("`<agent>@<node>.key` beside the node's, if it exists"),
        "Its key. Needs `cert_path`.",
    ),
    key(
        "proxy.outbound.listeners[].mode",
        Text("four octal digits in quotes"),
        Says("`\"0660\"`; `\"0666\"` with `users`"),
        "The permissions of a unix socket.",
    ),
    key(
        "proxy.outbound.listeners[].group",
        Text("a group"),
        Says("that of mesh-proxy"),
        "The group of a unix socket.",
    ),
    key(
        "proxy.outbound.listeners[].users",
        NamesOrNumbers("a user's name or number"),
        Says("all that can open the socket"),
        "The only users whose processes are served on a unix socket. Must not be empty.",
    ),
    key(
        "proxy.outbound.allowed_origins",
        Texts("an origin such as `http://ct111.mesh`"),
        Is("[]"),
        "Values of the header `Origin` that programs of this host may send. Requests with any other value are assumed to come from web pages, and are refused.",
    ),
    section("proxy.outbound.policy", "What programs of this host may request ([policy](policy.md))."),
    key(
        "proxy.outbound.policy.mode",
        Word(MODES),
        Is("enforce"),
        "With `audit`, requests that the rules refuse are logged and let through.",
    ),
    key(
        "proxy.outbound.policy.rules",
        Sections,
        Says("none"),
        "The first rule that matches decides; a request that none matches is refused. At most 1000 rules.",
    ),
    key("proxy.outbound.policy.rules[].node", Text(NODE), Says("any"), "The node that is called."),
    key(
        "proxy.outbound.policy.rules[].as_agent",
        Text(AGENT),
        Says("any"),
        "The `as_agent` of the listener on which the request arrived.",
    ),
    key("proxy.outbound.policy.rules[].agent", Text(AGENT), Says("any"), "The agent that is asked."),
    key("proxy.outbound.policy.rules[].method", Text(METHOD), Says("any"), "The method."),
    key(
        "proxy.outbound.policy.rules[].path",
        Text("a path pattern"),
        Says("any"),
        "The path. `/a/*`: one segment below `/a`; `/a/**`: `/a` and everything below it.",
    ),
    key(
        "proxy.outbound.policy.rules[].action",
        Word(ACTIONS),
        Required,
        "What is done with a matching request; `audit` logs it and lets it pass.",
    ),
    number(
        "proxy.outbound.max_requests_per_node",
        COUNT,
        "4096",
        "Maximum number of concurrent requests from this host to one node; more get `peer_busy`.",
    ),
    number(
        "proxy.outbound.max_attempts",
        (1, 10),
        "3",
        "Maximum number of times that a request is sent. It is sent again only if nothing of it was processed.",
    ),
    section("proxy.backend", "The servers of this host's agents."),
    key(
        "proxy.backend.address",
        Text(BACKEND),
        Is("127.0.0.1:8080"),
        "The agent's server. With `localhost:8080`, whichever of the two loopback addresses accepts connections is used.",
    ),
    key(
        "proxy.backend.protocol",
        Word(PROTOCOLS),
        Is("auto"),
        "The protocol used to talk to the agent. `auto`: HTTP/2 for gRPC, HTTP/1.1 for everything else unless the agent turns out to support only HTTP/2.",
    ),
    key(
        "proxy.backend.host",
        Word(&["local", "peer"]),
        Is("local"),
        "The `Host` header that the agent receives. `local`: its own address. `peer`: the caller's value (`ct111.mesh`).",
    ),
    key(
        "proxy.backend.agents",
        NamedSections("an agent's name"),
        Says("none"),
        "Agents with servers of their own, as in `{grok: {address: 127.0.0.1:8081}}`. Requests that name another agent, or none, go to `proxy.backend.address`.",
    ),
    key("proxy.backend.agents.*.address", Text(BACKEND), Required, "The server of this agent."),
    key(
        "proxy.backend.agents.*.protocol",
        Word(PROTOCOLS),
        Says("`proxy.backend.protocol`"),
        "The protocol used to talk to it.",
    ),
    number(
        "proxy.backend.max_requests",
        (1, 100_000),
        "256",
        "Maximum number of concurrent requests to one server.",
    ),
    number(
        "proxy.backend.max_queue",
        (0, 100_000),
        "256",
        "Maximum number of requests that wait for a free place; more get `agent_busy`.",
    ),
    number("proxy.backend.queue_ms", MS_OR_NEVER, "5000", "How long a request may wait for a free place."),
    number(
        "proxy.backend.max_event_streams",
        (0, 100_000),
        "1024",
        "Maximum number of concurrent event streams and WebSockets; they do not count as requests.",
    ),
    section("proxy.limits", "How much one client may use."),
    number(
        "proxy.limits.max_body_bytes",
        (1, 1 << 40),
        "10485760",
        "Maximum size of a request body; larger ones get `body_too_large`. It does not apply to gRPC, nor to what is sent after the answer has begun.",
    ),
    number(
        "proxy.limits.max_header_bytes",
        (8_192, 1 << 20),
        "65536",
        "Maximum size of the headers of a request.",
    ),
    number(
        "proxy.limits.max_connections",
        COUNT,
        "10000",
        "Maximum number of open connections from peers; programs of this host may open the same number.",
    ),
    key(
        "proxy.limits.max_connections_per_peer",
        Form::Number { from: 1, to: 1_000_000 },
        Says("half of `max_connections`"),
        "Maximum number of open connections from one peer.",
    ),
    number(
        "proxy.limits.max_streams",
        (1, 10_000),
        "250",
        "Maximum number of concurrent requests on one HTTP/2 connection.",
    ),
    number(
        "proxy.limits.max_requests_per_peer",
        COUNT,
        "1000",
        "Maximum number of concurrent requests from one peer; more get `too_many_requests`.",
    ),
    number(
        "proxy.limits.max_requests_per_second_per_peer",
        (0, 10_000_000),
        "2000",
        "Maximum number of requests per second from one peer, with bursts of twice as many; more get `rate_limited`. 0: unlimited.",
    ),
    key(
        "proxy.limits.max_handshakes",
        Form::Number { from: 1, to: 1_000_000 },
        Says("a tenth of `max_connections`"),
        "Maximum number of TLS handshakes with peers in progress.",
    ),
    key(
        "proxy.limits.max_handshakes_per_address",
        Form::Number { from: 1, to: 1_000_000 },
        Says("half of `max_handshakes`"),
        "Maximum number of them from one address; an IPv6 /64 counts as one address.",
    ),
    number(
        "proxy.limits.min_body_bytes_per_second",
        (0, 1 << 30),
        "100",
        "Minimum rate at which the body of a request must arrive after `timeouts.body_ms`.",
    ),
    section("proxy.timeouts", "How long one client may take."),
    number("proxy.timeouts.handshake_ms", MS, "10000", "TCP connect and TLS handshake, in each direction."),
    number(
        "proxy.timeouts.header_ms",
        MS,
        "30000",
        "Time for a peer to complete the headers of a request, once they have begun.",
    ),
    number(
        "proxy.timeouts.first_request_ms",
        MS,
        "30000",
        "Time from a peer's handshake until its first request.",
    ),
    number(
        "proxy.timeouts.body_ms",
        MS,
        "60000",
        "How long the body of a request may keep the agent waiting before the answer begins; after that, the request gets `body_too_slow`.",
    ),
    number(
        "proxy.timeouts.stream_idle_ms",
        MS_OR_NEVER,
        "0",
        "How long an answer may pause before it is aborted. 0: without limit.",
    ),
    number(
        "proxy.timeouts.unread_ms",
        MS_OR_NEVER,
        "300000",
        "How long a client may stop reading an answer before it is aborted. 0: without limit.",
    ),
    number(
        "proxy.timeouts.pool_idle_ms",
        MS,
        "90000",
        "How long an idle connection to a peer is kept. An HTTP/1.1 connection is kept as long as the peer announces, or 4 s.",
    ),
    number("proxy.timeouts.drain_ms", MS, "30000", "How long requests in flight may continue after SIGTERM."),
    section("proxy.policy", "Which peers may connect, and what they may request ([policy](policy.md))."),
    key(
        "proxy.policy.allow",
        Texts(IDENTITY),
        Says("everyone with a certificate of the CA"),
        "The only peers that may connect. `[]`: none.",
    ),
    key(
        "proxy.policy.deny",
        Texts(IDENTITY),
        Is("[]"),
        "Peers that may not connect, even if `allow` lists them.",
    ),
    key(
        "proxy.policy.mode",
        Word(MODES),
        Is("enforce"),
        "With `audit`, requests that the rules refuse are logged and let through.",
    ),
    key(
        "proxy.policy.rules",
        Sections,
        Says("none"),
        "The first rule that matches decides; a request that none matches is refused. At most 1000 rules.",
    ),
    key(
        "proxy.policy.rules[].peer",
        Text("a name in certificates, or `node:*`, `*@*`, `device:*`"),
        Says("any"),
        "The caller.",
    ),
    key("proxy.policy.rules[].agent", Text(AGENT), Says("any"), "The agent that is asked."),
    key("proxy.policy.rules[].method", Text(METHOD), Says("any"), "The method."),
    key(
        "proxy.policy.rules[].path",
        Text("a path pattern"),
        Says("any"),
        "The path. `/a/*`: one segment below `/a`; `/a/**`: `/a` and everything below it.",
    ),
    key(
        "proxy.policy.rules[].action",
        Word(ACTIONS),
        Required,
        "What is done with a matching request; `audit` logs it and lets it pass.",
    ),
    section("proxy.log", "What the log shows."),
    number(
        "proxy.log.task_preview_chars",
        (0, 10_000),
        "100",
        "How many characters of a delegated task the log shows. 0: none.",
    ),
    section("proxy.admin", "For supervisors of this host."),
    key(
        "proxy.admin.listen",
        Text(LOOPBACK),
        Says("none"),
        "The address on which `/healthz`, `/readyz` and `/metrics` are served ([metrics](metrics.md)).",
    ),
    key(
        "proxy.admin.socket",
        Text(PATH),
        Says("`admin.sock` in `proxy.state_dir`"),
        "The unix socket, mode 0660, that `meshctl top`, `tap` and `drain --wait` read from ([live traffic](live.md)).",
    ),
    section("proxy.live", "Which other nodes may see the requests that this sidecar carries."),
    key(
        "proxy.live.peers",
        Texts(NODE),
        Says("none"),
        "The nodes from which operators may look at this sidecar (`meshctl tap --node ct111`).",
    ),
    key(
        "proxy.crl_path",
        Text(PATH),
        Says("`crl.pem` beside `ca_path`, if it exists"),
        "Revocation lists (PEM); of several lists of one CA, the newest is used. If this key is set, there must be an unexpired list for each CA; otherwise peers with certificates of that CA are refused ([certificates](certificates.md)).",
    ),
    key(
        "proxy.ca_socket",
        Text(PATH),
        Is(enrolment::DEFAULT_SOCKET),
        "The socket of `meshctl ca serve`, if that runs on this host.",
    ),
    section("proxy.tls", "TLS versions and groups, and the identities of certificates without a CN."),
    key(
        "proxy.tls.min_version",
        Version(&["1.3", "1.2"]),
        Is("\"1.3\""),
        "The oldest TLS version that is accepted; 1.2 only with an extended master secret.",
    ),
    key(
        "proxy.tls.groups",
        Words(&["X25519MLKEM768", "x25519", "secp256r1", "secp384r1"]),
        Is("[X25519MLKEM768, x25519, secp256r1, secp384r1]"),
        "The groups for the key exchange, in order of preference. Omit the first if a firewall drops handshakes of more than one packet.",
    ),
    key(
        "proxy.tls.spiffe",
        Sections,
        Says("none"),
        "The identities of certificates that have one URI and no CN, such as those of a SPIFFE authority ([identity](identity.md)).",
    ),
    key("proxy.tls.spiffe[].id", Text("a SPIFFE ID"), Required, "The URI in the certificate."),
    key("proxy.tls.spiffe[].identity", Text(IDENTITY), Required, "The identity of its owner in this mesh."),
    key(
        "proxy.state_dir",
        Text(PATH),
        Is(DEFAULT_STATE_DIR),
        "The folder for the last known mesh and the newest revocation lists, which a start without registryd needs.",
    ),
    number(
        "proxy.threads",
        (1, 256),
        "1",
        "Number of threads that carry requests. One carries thousands of requests a second; hosts that many peers call may need more.",
    ),
    section("registryd", "The registry daemon, and what this node publishes."),
    key(
        "registryd.agents",
        TextsOrSections("an agent's name"),
        Is("[]"),
        "The agents that live on this node: `opus`, or `{name: opus, provider: anthropic}`.",
    ),
    key("registryd.agents[].name", Text(AGENT), Required, "The agent's name."),
    key("registryd.agents[].id", Text("a text"), Says("the name"), "Its id, as RivetOS shows it."),
    key("registryd.agents[].provider", Text("a text"), Says("none"), "The provider of its model."),
    key("registryd.agents[].model", Text("a text"), Says("none"), "Its model."),
    key(
        "registryd.providers",
        Texts("a text"),
        Says("those of the agents"),
        "Providers of models in use here.",
    ),
    key("registryd.models", Texts("a text"), Says("those of the agents"), "Models in use here."),
    key(
        "registryd.capabilities",
        Texts("a text"),
        Is("[]"),
        "Words by which `meshctl nodes --capability <word>` finds this node.",
    ),
    key("registryd.metadata", Anything, Says("none"), "Anything else to publish."),
    key(
        "registryd.role",
        Text("a text"),
        Is("agent"),
        "The node's role. A node with a role other than `agent` sends no heartbeats, and becomes stale only if it joined.",
    ),
    key(
        "registryd.socket",
        Text(PATH),
        Is(DEFAULT_REGISTRYD_SOCKET),
        "The unix socket for mesh-proxy and meshctl.",
    ),
    key(
        "registryd.sidecar_user",
        Text("a user's name or number, in quotes"),
        Is("mesh-proxy"),
        "The user of mesh-proxy. Only this user, root and registryd's own user may tell registryd who a peer is, or change anything through the socket.",
    ),
    key(
        "registryd.forget_after",
        Text("a time such as `72h` or `30d`, or `off`"),
        Says("`off`; `72h` with etcd"),
        "How long a node must be offline before it is removed from the registry.",
    ),
    section("registryd.store", "Where the registry is kept ([etcd](etcd.md))."),
    key(
        "registryd.store.kind",
        Word(&["file", "etcd"]),
        Is("file"),
        "`file`: `mesh.json` in `mesh.storage_dir`, for up to some 200 nodes. `etcd`: a cluster, for more.",
    ),
    section("registryd.store.etcd", "How the cluster is reached. Required with `kind: etcd`."),
    key(
        "registryd.store.etcd.endpoints",
        Texts("a URL such as `https://192.168.10.21:2379`"),
        Required,
        "The members of the cluster, at least one; either all with https or all with http.",
    ),
    key("registryd.store.etcd.prefix", Text("an absolute path"), Is("/mesh"), "The prefix of all keys."),
    key(
        "registryd.store.etcd.ca_path",
        Text(PATH),
        Says("none; required with https"),
        "The CA of etcd's own certificates.",
    ),
    key(
        "registryd.store.etcd.cert_path",
        Text(PATH),
        Says("none"),
        "registryd's certificate, if etcd requires one from clients. Needs `key_path`.",
    ),
    key("registryd.store.etcd.key_path", Text(PATH), Says("none"), "Its key."),
    key(
        "registryd.store.etcd.username",
        Text("a text"),
        Says("none"),
        "The user in etcd. Needs `password_file`.",
    ),
    key(
        "registryd.store.etcd.password_file",
        Text(PATH),
        Says("none"),
        "The file with its password, which is sent only over https or to a loopback address.",
    ),
    key(
        "registryd.store.export",
        Text(PATH),
        Says("none"),
        "The path of a copy of `mesh.json` for programs that only read it; only with `kind: etcd`.",
    ),
    section("registryd.metrics", "registryd's metrics."),
    key(
        "registryd.metrics.listen",
        Text(LOOPBACK),
        Says("none"),
        "The address on which `/metrics` is served.",
    ),
    section("registryd.dns", "How `.mesh` names are resolved and answered."),
    key(
        "registryd.dns.upstream",
        Texts("an address, with or without a port"),
        Is("[]"),
        "The DNS servers for `.mesh` names. If empty, the host's resolver is used.",
    ),
    key(
        "registryd.dns.listen",
        Text("an address and port of this host"),
        Says("none"),
        "The address on which registryd serves DNS for `.mesh`.",
    ),
    section("telemetry", "Traces from both daemons ([telemetry](telemetry.md))."),
    section("telemetry.otlp", "The collector; without it, nothing is recorded."),
    key(
        "telemetry.otlp.endpoint",
        Text("a URL such as `http://127.0.0.1:4318`"),
        Required,
        "The collector's URL for OTLP over HTTP; `/v1/traces` is appended.",
    ),
    key(
        "telemetry.otlp.ca_path",
        Text(PATH),
        Says("none"),
        "The CA certificates for the collector's certificate; required with https.",
    ),
    key(
        "telemetry.otlp.headers_file",
        Text(PATH),
        Says("none"),
        "A file with headers for the collector, one on each line, as in `Authorization: Bearer …`. They are sent only over https or to a loopback address.",
    ),
    key(
        "telemetry.otlp.sample_ratio",
        Ratio,
        Is("1.0"),
        "The share of the traces begun here that is recorded. Traces begun elsewhere are recorded if their `traceparent` says so.",
    ),
    number("telemetry.otlp.timeout_ms", (100, 60_000), "10000", "How long the collector may take to answer."),
    number(
        "telemetry.otlp.max_queue",
        (1, 100_000),
        "2048",
        "Maximum number of spans that wait for the collector; more are dropped and counted.",
    ),
];

/// The key whose place these steps are; `[]` stands for any member of a list.
pub(super) fn find<'s>(steps: impl Iterator<Item = &'s str> + Clone) -> Option<&'static Key> {
    KEYS.iter().find(|key| {
        let (mut named, mut given) = (key.steps(), steps.clone());
        loop {
            match (named.next(), given.next()) {
                (None, None) => return true,
                (Some(named), Some(given)) if named == "*" || named == given => {}
                _ => return false,
            }
        }
    })
}

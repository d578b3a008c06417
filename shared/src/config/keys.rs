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
        "What a RivetOS configuration has too, and a few keys more. Both daemons and meshctl read it.",
    ),
    key("mesh.enabled", Bool, Required, "Must be `true`, or nothing starts."),
    key(
        "mesh.node_name",
        Text(NODE),
        Says("the host's name"),
        "This node. Must be the CN of its certificate, with or without `.mesh`; neither daemon starts with another one.",
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
        "The folder of `mesh.json`, shared by all nodes or this node's own.",
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
        Says("found out by registryd"),
        "What other nodes dial where `<node>.mesh` does not resolve.",
    ),
    section("mesh.discovery", "How other nodes are found where there is no shared `mesh.json`."),
    key(
        "mesh.discovery.mode",
        Word(&["seed", "static", "mdns"]),
        Says("none"),
        "`seed`: from one node that is known by name. `static`: from `mesh.peers`. `mdns`: by multicast DNS on the local network.",
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
        "Where nodes are, whatever the mode of discovery; all of them for `mode: static`.",
    ),
    key("mesh.peers[].name", Text(NODE), Required, "The node. Its certificate must say the same."),
    key("mesh.peers[].host", Text("a host name or address"), Says("`<name>.mesh`"), "What is dialled."),
    number("mesh.peers[].port", PORT, "3000", "Its inbound port."),
    key(
        "mesh.trust_domain",
        Text("a SPIFFE trust domain"),
        Is("mesh"),
        "The trust domain of the SPIFFE IDs in the mesh's certificates ([identity](identity.md)).",
    ),
    section("mesh.ca", "Where the mesh's certificate authority answers."),
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
        "Which nodes get the tasks of an agent: all that register it, or those whose certificate says so too ([identity](identity.md)).",
    ),
    key("mesh.secret", Anything, Says("none"), "Deprecated: accepted with a warning and not used."),
    key(
        "mesh.delegation_transport",
        Anything,
        Says("none"),
        "Accepted with a warning and not used; RivetOS nodes in the same mesh need `http`.",
    ),
    section("proxy", "The sidecar, mesh-proxy."),
    section("proxy.inbound", "Where peers come in."),
    key(
        "proxy.inbound.address",
        Text("an IP address"),
        Is("\"::\""),
        "The address to listen on; `::` is every address, IPv4 included. The port is `mesh.agent_channel_port`.",
    ),
    section("proxy.outbound", "Where this host's programs go out."),
    key("proxy.outbound.listen", Text(LOOPBACK), Is("127.0.0.1:3001"), "Plain HTTP for all destinations."),
    key(
        "proxy.outbound.listeners",
        Sections,
        Says("none"),
        "More listeners: for one node or agent each, on a unix socket, or for one agent of this node.",
    ),
    key(
        "proxy.outbound.listeners[].listen",
        Text("a loopback address and port, or `unix:<path>`"),
        Required,
        "Where to listen. Over TCP, `node`, `agent` or `as_agent` is needed too.",
    ),
    key(
        "proxy.outbound.listeners[].node",
        Text(NODE),
        Says("each request says"),
        "The node to which everything goes.",
    ),
    key(
        "proxy.outbound.listeners[].agent",
        Text(AGENT),
        Says("each request says"),
        "The agent to which everything goes; not together with `node`.",
    ),
    key(
        "proxy.outbound.listeners[].as_agent",
        Text(AGENT),
        Says("as the node"),
        "The agent of this node as which whoever connects here calls, with its certificate ([identity](identity.md)).",
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
        Says("all that can open the file"),
        "The only users whose processes are served on a unix socket. Not empty.",
    ),
    key(
        "proxy.outbound.allowed_origins",
        Texts("an origin such as `http://ct111.mesh`"),
        Is("[]"),
        "Values of the header `Origin` that programs of this host may send. Requests with any other are taken for those of web pages and refused.",
    ),
    section("proxy.outbound.policy", "What programs of this host may ask for ([policy](policy.md))."),
    key(
        "proxy.outbound.policy.mode",
        Word(MODES),
        Is("enforce"),
        "`audit`: what the rules refuse passes, and is logged.",
    ),
    key(
        "proxy.outbound.policy.rules",
        Sections,
        Says("none"),
        "The first that matches decides; what none matches is refused. At most 1000.",
    ),
    key("proxy.outbound.policy.rules[].node", Text(NODE), Says("any"), "The node that is called."),
    key(
        "proxy.outbound.policy.rules[].as_agent",
        Text(AGENT),
        Says("any"),
        "The agent as which the caller's listener calls.",
    ),
    key("proxy.outbound.policy.rules[].agent", Text(AGENT), Says("any"), "The agent that is asked."),
    key("proxy.outbound.policy.rules[].method", Text(METHOD), Says("any"), "The method."),
    key(
        "proxy.outbound.policy.rules[].path",
        Text("a path pattern"),
        Says("any"),
        "The path. `/a/*`: one segment below `/a`; `/a/**`: `/a` and all below it.",
    ),
    key(
        "proxy.outbound.policy.rules[].action",
        Word(ACTIONS),
        Required,
        "What happens; `audit` lets the request pass and logs it.",
    ),
    number(
        "proxy.outbound.max_requests_per_node",
        COUNT,
        "4096",
        "Most requests from this host to one node at once; more get `peer_busy`.",
    ),
    number(
        "proxy.outbound.max_attempts",
        (1, 10),
        "3",
        "How often a request is sent at most. It is sent again only if nothing of it was processed.",
    ),
    section("proxy.backend", "The servers of this host's agents."),
    key(
        "proxy.backend.address",
        Text(BACKEND),
        Is("127.0.0.1:8080"),
        "The agent's own server. `localhost:8080` is whichever of the two loopback addresses it listens on.",
    ),
    key(
        "proxy.backend.protocol",
        Word(PROTOCOLS),
        Is("auto"),
        "What the agent is spoken to in. `auto`: gRPC by HTTP/2, everything else by HTTP/1.1 unless the agent turns out to speak HTTP/2 only.",
    ),
    key(
        "proxy.backend.host",
        Word(&["local", "peer"]),
        Is("local"),
        "What the agent is told in `Host`: its own address, or what the caller said (`ct111.mesh`).",
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
        "What it is spoken to in.",
    ),
    number("proxy.backend.max_requests", (1, 100_000), "256", "Most requests that a server gets at once."),
    number(
        "proxy.backend.max_queue",
        (0, 100_000),
        "256",
        "Most requests that wait for one of those to end; more get `agent_busy`.",
    ),
    number("proxy.backend.queue_ms", MS_OR_NEVER, "5000", "How long a request waits."),
    number(
        "proxy.backend.max_event_streams",
        (0, 100_000),
        "1024",
        "Most event streams and WebSockets at once; they are not counted as requests.",
    ),
    section("proxy.limits", "How much one client may use."),
    number(
        "proxy.limits.max_body_bytes",
        (1, 1 << 40),
        "10485760",
        "Largest request body; larger ones get `body_too_large`. gRPC is not limited, nor is what follows once the answer has begun.",
    ),
    number("proxy.limits.max_header_bytes", (8_192, 1 << 20), "65536", "Largest header block."),
    number(
        "proxy.limits.max_connections",
        COUNT,
        "10000",
        "Most connections of peers at once; this host's programs may have as many again.",
    ),
    key(
        "proxy.limits.max_connections_per_peer",
        Form::Number { from: 1, to: 1_000_000 },
        Says("half of `max_connections`"),
        "Most connections of one peer at once.",
    ),
    number("proxy.limits.max_streams", (1, 10_000), "250", "Most requests at once on one HTTP/2 connection."),
    number(
        "proxy.limits.max_requests_per_peer",
        COUNT,
        "1000",
        "Most requests of one peer at once; more get `too_many_requests`.",
    ),
    number(
        "proxy.limits.max_requests_per_second_per_peer",
        (0, 10_000_000),
        "2000",
        "Most requests of one peer in a second, with bursts of twice as many; more get `rate_limited`. 0: any number.",
    ),
    key(
        "proxy.limits.max_handshakes",
        Form::Number { from: 1, to: 1_000_000 },
        Says("a tenth of `max_connections`"),
        "Most TLS handshakes with peers under way.",
    ),
    key(
        "proxy.limits.max_handshakes_per_address",
        Form::Number { from: 1, to: 1_000_000 },
        Says("half of `max_handshakes`"),
        "Most of them with one address; an IPv6 /64 counts as one.",
    ),
    number(
        "proxy.limits.min_body_bytes_per_second",
        (0, 1 << 30),
        "100",
        "The slowest that the body of a request may arrive once `timeouts.body_ms` is over.",
    ),
    section("proxy.timeouts", "How long one client may take."),
    number("proxy.timeouts.handshake_ms", MS, "10000", "TCP connect and TLS handshake, in each direction."),
    number(
        "proxy.timeouts.header_ms",
        MS,
        "30000",
        "For a peer on HTTP/1.1: until the headers of its next request are complete.",
    ),
    number(
        "proxy.timeouts.first_request_ms",
        MS,
        "30000",
        "From a peer's handshake until its first request.",
    ),
    number(
        "proxy.timeouts.body_ms",
        MS,
        "60000",
        "How long the body of a request may keep the agent waiting before its answer begins; then `body_too_slow`.",
    ),
    number(
        "proxy.timeouts.stream_idle_ms",
        MS_OR_NEVER,
        "0",
        "Silence within an answer after which it is given up. 0: never.",
    ),
    number(
        "proxy.timeouts.unread_ms",
        MS_OR_NEVER,
        "300000",
        "How long a client may read nothing of an answer that waits for it. 0: for ever.",
    ),
    number(
        "proxy.timeouts.pool_idle_ms",
        MS,
        "90000",
        "How long an unused connection to a peer is kept; one of HTTP/1.1 for as long as the peer says, or 4 s.",
    ),
    number("proxy.timeouts.drain_ms", MS, "30000", "How long requests in flight may go on after SIGTERM."),
    section("proxy.policy", "Which peers may come in, and what they may ask for ([policy](policy.md))."),
    key(
        "proxy.policy.allow",
        Texts(IDENTITY),
        Says("everybody whom the CA vouches for"),
        "Only these may connect. `[]` is nobody.",
    ),
    key("proxy.policy.deny", Texts(IDENTITY), Is("[]"), "These may never connect."),
    key(
        "proxy.policy.mode",
        Word(MODES),
        Is("enforce"),
        "`audit`: what the rules refuse passes, and is logged.",
    ),
    key(
        "proxy.policy.rules",
        Sections,
        Says("none"),
        "The first that matches decides; what none matches is refused. At most 1000.",
    ),
    key(
        "proxy.policy.rules[].peer",
        Text("a name in certificates, or `node:*`, `*@*`, `device:*`"),
        Says("any"),
        "Who asks.",
    ),
    key("proxy.policy.rules[].agent", Text(AGENT), Says("any"), "The agent that is asked."),
    key("proxy.policy.rules[].method", Text(METHOD), Says("any"), "The method."),
    key(
        "proxy.policy.rules[].path",
        Text("a path pattern"),
        Says("any"),
        "The path. `/a/*`: one segment below `/a`; `/a/**`: `/a` and all below it.",
    ),
    key(
        "proxy.policy.rules[].action",
        Word(ACTIONS),
        Required,
        "What happens; `audit` lets the request pass and logs it.",
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
        Says("nowhere"),
        "Where `/healthz`, `/readyz` and `/metrics` are served ([metrics](metrics.md)).",
    ),
    key(
        "proxy.admin.socket",
        Text(PATH),
        Says("`admin.sock` in `proxy.state_dir`"),
        "The unix socket, mode 0660, on which `meshctl top`, `tap` and `drain --wait` look at this sidecar ([operations](operations.md)).",
    ),
    section("proxy.live", "Who else may see what this sidecar carries."),
    key(
        "proxy.live.peers",
        Texts(NODE),
        Says("none"),
        "Nodes whose operators may look at this sidecar from there (`meshctl tap --node ct111`).",
    ),
    key(
        "proxy.crl_path",
        Text(PATH),
        Says("`crl.pem` beside `ca_path`, if it exists"),
        "Revocation lists (PEM); of several of one CA the newest counts. Named here, one for each CA must be there and current: a peer whose list has ended is refused ([certificates](certificates.md)).",
    ),
    key(
        "proxy.ca_socket",
        Text(PATH),
        Is(enrolment::DEFAULT_SOCKET),
        "Where `meshctl ca serve` answers, if it runs on this host.",
    ),
    section("proxy.tls", "What peers and this node must agree on in a handshake."),
    key(
        "proxy.tls.min_version",
        Version(&["1.3", "1.2"]),
        Is("\"1.3\""),
        "The oldest version that is accepted; 1.2 only with an extended master secret.",
    ),
    key(
        "proxy.tls.groups",
        Words(&["X25519MLKEM768", "x25519", "secp256r1", "secp384r1"]),
        Is("[X25519MLKEM768, x25519, secp256r1, secp384r1]"),
        "The groups for the key exchange, the preferred one first. Leave out the first where a firewall drops handshakes of more than one packet.",
    ),
    key(
        "proxy.tls.spiffe",
        Sections,
        Says("none"),
        "Whose certificates are that have one URI and no CN, as of a SPIFFE authority ([identity](identity.md)).",
    ),
    key("proxy.tls.spiffe[].id", Text("a SPIFFE ID"), Required, "The URI in the certificate."),
    key("proxy.tls.spiffe[].identity", Text(IDENTITY), Required, "Who it is in this mesh."),
    key(
        "proxy.state_dir",
        Text(PATH),
        Is(DEFAULT_STATE_DIR),
        "Keeps the last known mesh and the newest revocation lists, for a start without registryd.",
    ),
    number(
        "proxy.threads",
        (1, 256),
        "1",
        "Threads that carry requests. One carries thousands of requests a second; more are for hosts that many peers call.",
    ),
    section("registryd", "The registry daemon, and what this node says of itself."),
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
        "Words to look for with `meshctl nodes --capability <word>`.",
    ),
    key("registryd.metadata", Anything, Says("none"), "Anything else to publish."),
    key(
        "registryd.role",
        Text("a text"),
        Is("agent"),
        "A node with another role sends no heartbeats; it becomes stale only if it joined.",
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
        "The user of mesh-proxy. With root and registryd's own user, the only one that may say on the socket who a peer is, and change anything.",
    ),
    key(
        "registryd.forget_after",
        Text("a time such as `72h` or `30d`, or `off`"),
        Says("`off`; `72h` with etcd"),
        "Nodes that have been offline for so long are removed from the registry.",
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
        "Its members, at least one; all with https, or all with http.",
    ),
    key("registryd.store.etcd.prefix", Text("an absolute path"), Is("/mesh"), "What all keys begin with."),
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
        "registryd's certificate, where etcd asks clients for one. Needs `key_path`.",
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
        "The file that holds its password; over https, or to a loopback address, only.",
    ),
    key(
        "registryd.store.export",
        Text(PATH),
        Says("nowhere"),
        "A `mesh.json` for programs that only read it; with `kind: etcd` only.",
    ),
    section("registryd.metrics", "registryd's own numbers."),
    key("registryd.metrics.listen", Text(LOOPBACK), Says("nowhere"), "Where `/metrics` is served."),
    section("registryd.dns", "How `.mesh` names are resolved and answered."),
    key(
        "registryd.dns.upstream",
        Texts("an address, with or without a port"),
        Is("[]"),
        "The DNS servers for `.mesh` names. None: the host's resolver.",
    ),
    key(
        "registryd.dns.listen",
        Text("an address and port of this host"),
        Says("nowhere"),
        "Where registryd answers for `.mesh` itself.",
    ),
    section("telemetry", "Traces of both daemons ([telemetry](telemetry.md))."),
    section("telemetry.otlp", "The collector; without it, nothing is recorded."),
    key(
        "telemetry.otlp.endpoint",
        Text("a URL such as `http://127.0.0.1:4318`"),
        Required,
        "Where it takes OTLP over HTTP; `/v1/traces` is added.",
    ),
    key(
        "telemetry.otlp.ca_path",
        Text(PATH),
        Says("none"),
        "The CA certificates that the collector's certificate chains to; needed with https.",
    ),
    key(
        "telemetry.otlp.headers_file",
        Text(PATH),
        Says("none"),
        "A file of headers for the collector, one a line, as in `Authorization: Bearer …`; over https, or to a loopback address, only.",
    ),
    key(
        "telemetry.otlp.sample_ratio",
        Ratio,
        Is("1.0"),
        "The share of the traces that begin here which is recorded; for others, their beginning has decided.",
    ),
    number("telemetry.otlp.timeout_ms", (100, 60_000), "10000", "How long the collector may take to answer."),
    number(
        "telemetry.otlp.max_queue",
        (1, 100_000),
        "2048",
        "Spans that wait for the collector; more are dropped and counted.",
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

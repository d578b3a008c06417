//! The `mesh:` section, exactly as the reference document has it, and keys of ours
//! (`advertise_host`, `peers`, `trust_domain`, `ca`, `agents`, `landlock`).

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::yaml::{BoolOrSection, Document, Section, repeated};
use crate::address::is_host;
use crate::name::NodeName;
use crate::spiffe::TrustDomain;

/// The section, checked.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// This node; the certificate must say the same.
    pub node_name: NodeName,
    /// Certificate, key and trust bundle.
    pub tls: TlsFiles,
    /// The sidecar's inbound port.
    pub agent_channel_port: u16,
    /// The folder of `mesh.json`.
    pub storage_dir: PathBuf,
    /// Time between heartbeats.
    pub heartbeat_interval: Duration,
    /// Silence after which a node counts as offline.
    pub stale_threshold: Duration,
    /// How other nodes are found; `None` where the shared file is enough.
    pub discovery: Option<Discovery>,
    /// The address other nodes should dial; `None`: found out by registryd.
    pub advertise_host: Option<String>,
    /// Nodes known from the start.
    pub peers: Vec<StaticPeer>,
    /// The trust domain of SPIFFE IDs in the mesh's certificates.
    pub trust_domain: TrustDomain,
    /// The node on whose host `meshctl ca serve` runs; `None`: certificates are files that others renew.
    pub ca_node: Option<NodeName>,
    /// What makes a node the host of an agent.
    pub agents: Hosting,
    /// Whether the daemons confine themselves where the kernel can (see [`crate::confinement`]).
    pub landlock: bool,
}

/// What makes a node the host of an agent, for those that send it tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hosting {
    /// That it is registered as one, as in RivetOS: every member can say so.
    #[default]
    Claimed,
    /// That its certificate says so as well ([`SpiffeId::of_hosted`](crate::spiffe::SpiffeId::of_hosted)).
    Certified,
}

impl FromStr for Hosting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "claimed" => Ok(Self::Claimed),
            "certified" => Ok(Self::Certified),
            other => Err(format!("expected claimed or certified, found {other:?}")),
        }
    }
}

impl Mesh {
    /// The registry file.
    pub fn registry_path(&self) -> PathBuf {
        self.storage_dir.join("mesh.json")
    }
}

/// PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Every certificate in it is a trust anchor.
    pub ca_path: PathBuf,
    /// This node's certificate, alone or with its chain.
    pub cert_path: PathBuf,
    /// Its private key; only mesh-proxy reads it.
    pub key_path: PathBuf,
}

impl TlsFiles {
    /// Where the reference document keeps the CA.
    pub const CA_FOLDER: &str = "/rivet-shared/rivet-ca";

    /// The default paths of a node, whose name is taken as it is written.
    fn of_node(node: &str) -> Self {
        let ca = Path::new(Self::CA_FOLDER);
        Self {
            ca_path: ca.join("intermediate/ca-chain.pem"),
            cert_path: ca.join(format!("issued/{node}.crt")),
            key_path: ca.join(format!("issued/{node}.key")),
        }
    }
}

/// How other nodes are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// From [`Mesh::peers`].
    Static,
    /// From one node that is known by name.
    Seed(Seed),
    /// By multicast DNS on the local network.
    Mdns,
}

/// The node to ask first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// Its name; its certificate must say the same.
    pub node: NodeName,
    /// Its inbound port.
    pub port: u16,
}

/// A node known from the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticPeer {
    /// Its name; its certificate must say the same.
    pub name: NodeName,
    /// Address or host name to dial.
    pub host: String,
    /// Its inbound port.
    pub port: u16,
}

const NEEDS_TLS: &str = "mutual TLS is required, there is no plaintext mesh: set tls: true for the default paths \
    below /rivet-shared/rivet-ca, or tls: with ca_path, cert_path and key_path";

/// `None` only after a mistake was reported, such as that nothing is to start.
pub(super) fn read(document: &Document<'_>) -> Option<Mesh> {
    let section = document.required_section("mesh")?;

    let enabled = match section.bool("enabled") {
        None if !section.has("enabled") => {
            section.mistake("enabled", "is not set, so nothing starts; set it to true");
            false
        }
        Some(false) => {
            section.mistake("enabled", "is false, so nothing starts; set it to true");
            false
        }
        _ => true,
    };
    let named = node_name(&section);
    let tls = tls_files(&section, named.as_ref().map(|(written, _)| written.as_str()), enabled);
    let agent_channel_port = section.number("agent_channel_port").unwrap_or(3000) as u16;
    let storage_dir = section.string("storage_dir").map_or_else(|| "/rivet-shared".into(), PathBuf::from);
    let heartbeat_ms = section.number("heartbeat_interval_ms").unwrap_or(30_000);
    let stale_ms = section.number("stale_threshold_ms").unwrap_or(90_000);
    if stale_ms <= heartbeat_ms {
        section.mistake(
            "stale_threshold_ms",
            format!(
                "{stale_ms} must be larger than heartbeat_interval_ms ({heartbeat_ms}), \
                 or every node is offline between two heartbeats"
            ),
        );
    }
    let peers = static_peers(&section);
    let discovery = discovery(&section);
    let trust_domain = section.parsed("trust_domain").unwrap_or_default();
    let landlock = section.bool("landlock").unwrap_or(true);
    let ca = section.section("ca");
    let ca_node = ca.parsed("node");
    ca.finish();
    let agents = section.parsed("agents").unwrap_or_default();
    let advertise_host = section.string("advertise_host");
    if let Some(host) = &advertise_host
        && !is_host(host)
    {
        section.mistake(
            "advertise_host",
            format!("{host:?} is neither a host name nor an address (no port, no scheme)"),
        );
    }
    if section.has("secret") {
        document
            .remark("mesh.secret", "deprecated and not used: certificates decide who may talk to this node");
    }
    if section.has("delegation_transport") {
        document.remark(
            "mesh.delegation_transport",
            "not used: delegations go over HTTP through the sidecar; a RivetOS node in this mesh needs the value http",
        );
    }
    section.finish();

    named.zip(tls).map(|((_, node_name), tls)| Mesh {
        node_name,
        tls,
        agent_channel_port,
        storage_dir,
        heartbeat_interval: Duration::from_millis(heartbeat_ms),
        stale_threshold: Duration::from_millis(stale_ms),
        discovery,
        advertise_host,
        peers,
        trust_domain,
        ca_node,
        agents,
        landlock,
    })
}

/// The node's name as it is written and as it counts: the configured one, else the host's up to its first dot.
fn node_name(section: &Section<'_>) -> Option<(String, NodeName)> {
    let configured = section.has("node_name");
    let written = match configured {
        true => section.string("node_name")?,
        false => {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            host.trim().split('.').next().unwrap_or_default().into()
        }
    };
    match written.parse::<NodeName>() {
        Ok(name) => Some((written, name)),
        Err(error) => {
            let of_host = format!(
                "is not set, and the host's name {written:?} is not a node name; set node_name to the certificate's CN"
            );
            section.mistake("node_name", if configured { error.to_string() } else { of_host });
            None
        }
    }
}

fn tls_files(section: &Section<'_>, node: Option<&str>, enabled: bool) -> Option<TlsFiles> {
    // Where nothing is to start, that is all there is to say.
    let refuse = |found: &str| {
        if enabled {
            section.mistake("tls", format!("is {found}; {NEEDS_TLS}"));
        }
        None
    };
    if !section.has("tls") {
        return refuse("missing");
    }
    match section.bool_or_section("tls")? {
        BoolOrSection::Bool(true) => node.map(TlsFiles::of_node),
        BoolOrSection::Bool(false) => refuse("false"),
        BoolOrSection::Section(files) => {
            let path = |key| files.string(key).map(PathBuf::from);
            let given = (path("ca_path"), path("cert_path"), path("key_path"));
            files.finish();
            node.map(TlsFiles::of_node).map(|default| TlsFiles {
                ca_path: given.0.unwrap_or(default.ca_path),
                cert_path: given.1.unwrap_or(default.cert_path),
                key_path: given.2.unwrap_or(default.key_path),
            })
        }
    }
}

fn discovery(section: &Section<'_>) -> Option<Discovery> {
    let discovery = section.section("discovery");
    let mode = discovery.string("mode");
    let host = discovery.string("seed_host");
    let port = discovery.number("seed_port").unwrap_or(3100) as u16;
    let found = match mode.as_deref() {
        None if host.is_some() => {
            discovery.mistake("mode", "is missing although seed_host is set; expected seed, static or mdns");
            None
        }
        None => None,
        Some("static") => {
            if section.length("peers") == 0 {
                discovery.mistake("mode", "static needs mesh.peers, a list of {name, host, port}");
            }
            Some(Discovery::Static)
        }
        Some("mdns") => Some(Discovery::Mdns),
        Some("seed") => seed(&discovery, host, port),
        Some(other) => {
            discovery.mistake("mode", format!("expected seed, static or mdns, found {other:?}"));
            None
        }
    };
    discovery.finish();
    found
}

fn seed(discovery: &Section<'_>, host: Option<String>, port: u16) -> Option<Discovery> {
    let Some(host) = host else {
        discovery.mistake("seed_host", "is missing; mode seed needs it (as in ct110.mesh)");
        return None;
    };
    let node = NodeName::from_mesh_host(&host);
    if node.is_none() {
        discovery.mistake(
            "seed_host",
            format!("expected <node>.mesh, so that the seed's certificate can be verified, found {host:?}"),
        );
    }
    node.map(|node| Discovery::Seed(Seed { node, port }))
}

fn static_peers(section: &Section<'_>) -> Vec<StaticPeer> {
    const EXPECTED: &str = "{name: ct111, host: 192.168.10.111}";
    let (mut peers, mut names) = (Vec::new(), Vec::new());
    for (i, item) in section.sections("peers", EXPECTED) {
        let name: Option<NodeName> = item.parsed("name");
        let host = item.string("host");
        let port = item.number("port").unwrap_or(3000) as u16;
        if !item.has("name") {
            section.mistake_at("peers", i, format!("name is missing; expected {EXPECTED}"));
        }
        if let Some(host) = &host
            && !is_host(host)
        {
            item.mistake(
                "host",
                format!("{host:?} is neither a host name nor an address (the port goes to port:)"),
            );
        }
        item.finish();
        if let Some(name) = name {
            let host = host.unwrap_or_else(|| name.mesh_host());
            names.push((i, name.clone()));
            peers.push(StaticPeer { name, host, port });
        }
    }
    for (i, name) in repeated(names) {
        section.mistake_at("peers", i, format!("{name} is listed twice"));
    }
    peers
}

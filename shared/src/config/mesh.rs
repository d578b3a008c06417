//! The `mesh:` section, exactly as the reference document has it, and two keys of ours
//! (`advertise_host`, `peers`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::yaml::{Document, Item, Mistake, Section, repeated};
use crate::name::NodeName;

/// The section, checked.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// Whether the daemons start at all.
    pub enabled: bool,
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
    const CA_FOLDER: &str = "/rivet-shared/rivet-ca";

    fn of_node(node: &NodeName) -> Self {
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

/// `None` only after a mistake was reported.
pub(super) fn read(document: &Document<'_>) -> (Option<Mesh>, Vec<Mistake>) {
    let section = document.section("mesh");
    let mut warnings = Vec::new();

    let enabled = section.bool("enabled").unwrap_or(false);
    let node_name = match section.has("node_name") {
        true => section.parsed("node_name"),
        false => host_name(&section),
    };
    let tls = tls_files(&section, node_name.as_ref());
    let agent_channel_port = section.number("agent_channel_port", 1..=65_535).unwrap_or(3000) as u16;
    let storage_dir = section.string("storage_dir").map_or_else(|| "/rivet-shared".into(), PathBuf::from);
    let heartbeat_ms = section.number("heartbeat_interval_ms", 100..=86_400_000).unwrap_or(30_000);
    let stale_ms = section.number("stale_threshold_ms", 200..=604_800_000).unwrap_or(90_000);
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
    let discovery = discovery(&section, &peers);
    let advertise_host = section.string("advertise_host");
    if let Some(host) = &advertise_host
        && !is_host(host)
    {
        section.mistake(
            "advertise_host",
            format!("{host:?} is no host name and no address (no port, no scheme)"),
        );
    }
    if section.has("secret") {
        warnings.push(Mistake {
            key: "mesh.secret".into(),
            line: None,
            message: "deprecated and not used: certificates decide who may talk to this node".into(),
        });
    }
    section.finish();

    let mesh = node_name.zip(tls).map(|(node_name, tls)| Mesh {
        enabled,
        node_name,
        tls,
        agent_channel_port,
        storage_dir,
        heartbeat_interval: Duration::from_millis(heartbeat_ms),
        stale_threshold: Duration::from_millis(stale_ms),
        discovery,
        advertise_host,
        peers,
    });
    (mesh, warnings)
}

/// The host's own name up to its first dot.
fn host_name(section: &Section<'_>) -> Option<NodeName> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let label = name.trim().split('.').next().unwrap_or_default();
    let parsed = label.parse();
    if parsed.is_err() {
        section.mistake(
            "node_name",
            format!(
                "is not set, and the host's name {:?} is no node name; set node_name to the certificate's CN",
                name.trim()
            ),
        );
    }
    parsed.ok()
}

fn tls_files(section: &Section<'_>, node: Option<&NodeName>) -> Option<TlsFiles> {
    if !section.has("tls") {
        section.mistake("tls", format!("is missing; {NEEDS_TLS}"));
        return None;
    }
    match section.bool_or_section("tls") {
        Some(true) => node.map(TlsFiles::of_node),
        Some(false) => {
            section.mistake("tls", format!("is false; {NEEDS_TLS}"));
            None
        }
        None => {
            let files = section.section("tls");
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

fn discovery(section: &Section<'_>, peers: &[StaticPeer]) -> Option<Discovery> {
    let discovery = section.section("discovery");
    let mode = discovery.string("mode");
    let host = discovery.string("seed_host");
    let port = discovery.number("seed_port", 1..=65_535).unwrap_or(3100) as u16;
    let found = match mode.as_deref() {
        None if host.is_some() => {
            discovery.mistake("mode", "is missing although seed_host is set; expected seed, static or mdns");
            None
        }
        None => None,
        Some("static") => {
            if peers.is_empty() {
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
    let mut peers = Vec::new();
    for (i, item) in section.sections("peers", false).into_iter().enumerate() {
        let Item::Section(item) = item else { continue };
        let name: Option<NodeName> = item.parsed("name");
        let host = item.string("host");
        let port = item.number("port", 1..=65_535).unwrap_or(3000) as u16;
        item.finish();
        if name.is_none() && host.is_none() {
            section.mistake_at(
                "peers",
                i,
                "expected name and host, as in {name: ct111, host: 192.168.10.111}",
            );
        }
        if let Some(host) = &host
            && !is_host(host)
        {
            section.mistake_at(
                "peers",
                i,
                format!("{host:?} is no host name and no address (the port goes to port:)"),
            );
        }
        if let Some(name) = name {
            let host = host.unwrap_or_else(|| name.mesh_host());
            peers.push(StaticPeer { name, host, port });
        }
    }
    let names: Vec<_> = peers.iter().map(|peer| peer.name.clone()).collect();
    for (i, name) in repeated(&names) {
        section.mistake_at("peers", i, format!("{name} is listed twice"));
    }
    peers
}

/// An IP address or something that can be looked up; never a URL or `host:port`.
pub(crate) fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.parse::<std::net::IpAddr>().is_ok()
        || (text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label))
}

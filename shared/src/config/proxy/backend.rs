//! `proxy.backend`: the servers of this host's agents.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use super::super::yaml::Section;
use crate::address::BackendAddr;
use crate::name::AgentName;

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

pub(super) fn read(section: Section<'_>) -> Backend {
    let server = AgentServer {
        address: section.parsed("address").unwrap_or(BackendAddr::v4(8080)),
        protocol: section.parsed("protocol").unwrap_or_default(),
    };
    let backend = Backend {
        agents: agents(&section, server.protocol),
        server,
        host: section.parsed("host").unwrap_or_default(),
        max_requests: section.number("max_requests").unwrap_or(256) as usize,
        max_queue: section.number("max_queue").unwrap_or(256) as usize,
        queue: Duration::from_millis(section.number("queue_ms").unwrap_or(5_000)),
        max_event_streams: section.number("max_event_streams").unwrap_or(1_024) as usize,
    };
    section.finish();
    backend
}

/// The agents that have servers of their own; `protocol` is for those that say none.
fn agents(section: &Section<'_>, protocol: Protocol) -> BTreeMap<AgentName, AgentServer> {
    const EXPECTED: &str = "{address: 127.0.0.1:8081}";
    let mut agents = BTreeMap::new();
    for (name, item) in section.named_sections("agents", EXPECTED) {
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

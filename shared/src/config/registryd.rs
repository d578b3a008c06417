//! The `registryd:` section: what this node says of itself, and the daemon's socket and names.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Map, Value};

use super::keys::DEFAULT_REGISTRYD_SOCKET;
use super::store::{self, Store, StoreKind};
use super::yaml::{Item, Section, repeated};
use crate::address::LoopbackAddr;
use crate::local_api::Agent;
use crate::name::AgentName;

/// Ten years.
const FORGET_AFTER_MAX_S: u64 = 315_360_000;
/// The default with etcd, where nobody else writes; a file may be other programs' too.
const FORGET_AFTER_ETCD: Duration = Duration::from_secs(72 * 3_600);

/// The section, checked.
#[derive(Debug, Clone)]
pub struct Registryd {
    /// The agents that live on this node.
    pub agents: Vec<Agent>,
    /// Model providers in use here.
    pub providers: Vec<String>,
    /// Models in use here.
    pub models: Vec<String>,
    /// What this node can do.
    pub capabilities: Vec<String>,
    /// Anything else to publish.
    pub metadata: Option<Map<String, Value>>,
    /// `agent` unless said otherwise; only agents heartbeat.
    pub role: String,
    /// The unix socket for mesh-proxy and meshctl.
    pub socket: PathBuf,
    /// The user that the sidecar runs as, by name or number: the only one, beside root and registryd's own, that may
    /// say on the socket who a peer is, and change anything.
    pub sidecar_user: String,
    /// After how long offline a node is taken out of the registry; `None`: never.
    pub forget_after: Option<Duration>,
    /// Where registryd's own numbers are served; `None`: on the socket only.
    pub metrics: Option<LoopbackAddr>,
    /// Where the registry is kept.
    pub store: Store,
    /// Names.
    pub dns: Dns,
}

/// How `.mesh` names are looked up and answered.
#[derive(Debug, Clone, Default)]
pub struct Dns {
    /// Servers to ask for `.mesh` names; empty: the host's resolver.
    pub upstream: Vec<SocketAddr>,
    /// Where registryd answers for `.mesh` itself; `None`: nowhere.
    pub listen: Option<SocketAddr>,
}

pub(super) fn read(section: Section<'_>) -> Registryd {
    let agents = agents(&section);
    let dns = section.section("dns");
    let dns_read = Dns {
        upstream: dns
            .list::<DnsServer>("upstream")
            .unwrap_or_default()
            .into_iter()
            .map(|server| server.0)
            .collect(),
        listen: dns.parsed("listen").map(|DnsListen(address)| address),
    };
    dns.finish();
    let metrics = section.section("metrics");
    let metrics_listen = metrics.parsed("listen");
    metrics.finish();
    let store = store::read(section.section("store"));
    let forget_after = match section.parsed("forget_after") {
        Some(ForgetAfter(after)) => after,
        None => (store.kind == StoreKind::Etcd).then_some(FORGET_AFTER_ETCD),
    };
    let texts = |key| section.list(key).unwrap_or_default();
    let of_agents = |pick: fn(&Agent) -> &Option<String>| {
        let mut all: Vec<String> = agents.iter().filter_map(|agent| pick(agent).clone()).collect();
        all.sort();
        all.dedup();
        all
    };
    let (providers, models) = (texts("providers"), texts("models"));
    let registryd = Registryd {
        providers: if providers.is_empty() { of_agents(|agent| &agent.provider) } else { providers },
        models: if models.is_empty() { of_agents(|agent| &agent.model) } else { models },
        agents,
        capabilities: texts("capabilities"),
        metadata: section.json_map("metadata"),
        role: section.string("role").unwrap_or_else(|| "agent".into()),
        socket: section.string("socket").map_or_else(|| DEFAULT_REGISTRYD_SOCKET.into(), PathBuf::from),
        sidecar_user: section.string("sidecar_user").unwrap_or_else(|| "mesh-proxy".into()),
        forget_after,
        metrics: metrics_listen,
        store,
        dns: dns_read,
    };
    section.finish();
    registryd
}

/// `opus`, or `{name: opus, id: …, provider: anthropic, model: …}`.
fn agents(section: &Section<'_>) -> Vec<Agent> {
    let (mut agents, mut names): (Vec<Agent>, _) = (Vec::new(), Vec::new());
    for (i, item) in section.texts_or_sections("agents", "a name, or {name: opus, provider: anthropic}") {
        let agent = match item {
            Item::Text(name) => match name.parse::<AgentName>() {
                Ok(name) => Agent { id: name.to_string(), name: name.into(), provider: None, model: None },
                Err(error) => {
                    section.mistake_at("agents", i, error.to_string());
                    continue;
                }
            },
            Item::Section(item) => {
                let name: Option<AgentName> = item.parsed("name");
                let (id, provider, model) =
                    (item.string("id"), item.string("provider"), item.string("model"));
                if !item.has("name") {
                    section.mistake_at("agents", i, "name is missing, as in {name: opus}");
                }
                item.finish();
                let Some(name) = name else { continue };
                Agent { id: id.unwrap_or_else(|| name.to_string()), name: name.into(), provider, model }
            }
        };
        names.push((i, agent.name.clone()));
        agents.push(agent);
    }
    for (i, name) in repeated(names) {
        section.mistake_at("agents", i, format!("{name} is listed twice"));
    }
    agents
}

/// `192.168.10.1` (port 53) or `127.0.0.1:5353`.
struct DnsServer(SocketAddr);

impl FromStr for DnsServer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<SocketAddr>()
            .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
            .map(Self)
            .map_err(|_| {
                format!("{text:?} is not a DNS server address such as 192.168.10.1 or 127.0.0.1:5353")
            })
    }
}

/// `72h`, `30d`, or `off`.
struct ForgetAfter(Option<Duration>);

impl FromStr for ForgetAfter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let unit = |letter| match letter {
            's' => Some(1),
            'm' => Some(60),
            'h' => Some(3_600),
            'd' => Some(86_400),
            _ => None,
        };
        let parsed = text.char_indices().next_back().and_then(|(at, letter)| {
            let count: u64 = text[..at].parse().ok()?;
            count.checked_mul(unit(letter)?).filter(|seconds| (1..=FORGET_AFTER_MAX_S).contains(seconds))
        });
        match parsed {
            Some(seconds) => Ok(Self(Some(Duration::from_secs(seconds)))),
            None => Err(format!("expected a time such as 72h or 30d, or off, found {text:?}")),
        }
    }
}

/// `127.0.0.1:5353`.
struct DnsListen(SocketAddr);

impl FromStr for DnsListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address: SocketAddr = text
            .parse()
            .map_err(|_| format!("expected an address and port such as 127.0.0.1:5353, found {text:?}"))?;
        // Answers would leave from whatever address suits the route, and who asked another one drops them.
        if address.ip().is_unspecified() {
            return Err(format!("expected one address of this host, such as 127.0.0.1:5353, found {text}"));
        }
        Ok(Self(address))
    }
}

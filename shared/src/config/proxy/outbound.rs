//! `proxy.outbound`: the listeners for this host's programs, and the identities that they use.

use std::path::PathBuf;
use std::str::FromStr;

use super::super::yaml::Section;
use super::policy::rules;
use crate::address::{LocalAddr, LoopbackAddr};
use crate::name::{AgentName, NodeName};
use crate::policy::Rules;

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
    /// Its certificate and key, which have to be there; `None`: `<agent>@<node>.crt` and `.key` next to the node's
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

/// Its owner and its group may connect.
const SOCKET_MODE: u32 = 0o660;
/// Everybody may connect, and the kernel tells who it is.
const SOCKET_MODE_OF_USERS: u32 = 0o666;

pub(super) fn read(section: Section<'_>) -> Outbound {
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

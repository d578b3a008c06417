//! Who may ask for what: rules, a request and a decision. Pure; both directions and `meshctl policy explain` share it.
//!
//! The first rule that matches decides, and a request that none matches is refused. What a request leaves open (which
//! agent it is for, or which node) matches a rule that refuses and no rule that allows, and a path that servers may
//! take for several is allowed only if each of them is: so whichever way the agent reads it, no rule was passed by.

mod path;

use std::fmt;
use std::str::FromStr;

pub use path::PathPattern;

use crate::identity::{Identity, IdentityError};
use crate::local_api::OF_MESH;
use crate::name::AgentName;

/// The rules of one direction, in their order; none: everything is allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// The rules.
    pub rules: Vec<Rule>,
    /// Whether refusals are enforced.
    pub mode: Mode,
}

/// Whether what the rules refuse is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// It is.
    #[default]
    Enforce,
    /// It passes, and the log tells what would have been refused.
    Audit,
}

/// One rule. What it does not name, it is for all of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The other side: whoever calls (inbound), or the node that is called (outbound).
    pub peer: Option<PeerPattern>,
    /// Outbound: the agent of this node that calls.
    pub caller: Option<AgentName>,
    /// The agent that is called.
    pub agent: Option<AgentName>,
    /// The method, in capitals. GET is HEAD too.
    pub method: Option<String>,
    /// The path.
    pub path: Option<PathPattern>,
    /// What it decides.
    pub action: Action,
}

/// What a rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The request passes.
    Allow,
    /// The request is refused.
    Deny,
    /// The request passes, and the log tells of it.
    Audit,
}

/// Which identities a rule is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerPattern {
    /// `node:*`: every node, and not the agents on it.
    Nodes,
    /// `*@*`: every agent.
    Agents,
    /// `device:*`: every device.
    Devices,
    /// One identity; a node's covers the agents on it.
    One(Identity),
}

impl PeerPattern {
    /// Whether it covers `peer`.
    pub fn covers(&self, peer: &Identity) -> bool {
        match (self, peer) {
            (Self::Nodes, Identity::Node(_))
            | (Self::Agents, Identity::Agent(..))
            | (Self::Devices, Identity::Device(_)) => true,
            (Self::One(entry), peer) => covers(entry, peer),
            _ => false,
        }
    }
}

/// Whether an entry of a list or a rule is for `peer`: one for a node covers the agents on it.
pub fn covers(entry: &Identity, peer: &Identity) -> bool {
    match (entry, peer) {
        (Identity::Node(node), Identity::Agent(_, home)) => node == home,
        (entry, peer) => entry == peer,
    }
}

impl FromStr for PeerPattern {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        match text {
            "node:*" => Ok(Self::Nodes),
            "*@*" => Ok(Self::Agents),
            "device:*" => Ok(Self::Devices),
            one => one.parse().map(Self::One),
        }
    }
}

impl fmt::Display for PeerPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nodes => f.write_str("node:*"),
            Self::Agents => f.write_str("*@*"),
            Self::Devices => f.write_str("device:*"),
            Self::One(identity) => identity.fmt(f),
        }
    }
}

macro_rules! words {
    ($name:ident { $($variant:ident = $text:literal),+ }, $expected:literal) => {
        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => Err(format!(concat!("expected ", $expected, ", found {:?}"), other)),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text,)+ })
            }
        }
    };
}

words!(Mode { Enforce = "enforce", Audit = "audit" }, "enforce or audit");
words!(Action { Allow = "allow", Deny = "deny", Audit = "audit" }, "allow, deny or audit");

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        let parts = [
            ("peer", self.peer.as_ref().map(ToString::to_string)),
            ("as_agent", self.caller.as_ref().map(ToString::to_string)),
            ("agent", self.agent.as_ref().map(ToString::to_string)),
            ("method", self.method.clone()),
            ("path", self.path.as_ref().map(ToString::to_string)),
        ];
        for (key, value) in parts.iter().filter_map(|(key, value)| Some((key, value.as_ref()?))) {
            write!(f, "{key}: {value}, ")?;
        }
        write!(f, "action: {}}}", self.action)
    }
}

/// What rules are asked about.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The other side; `None`: not known yet.
    pub peer: Option<&'a Identity>,
    /// Outbound: the agent of this node that calls, as whose listener says; `None`: no agent's, which is known.
    pub caller: Option<&'a AgentName>,
    /// The agent that is called; `None`: the request does not say, or not in a way that everybody follows.
    pub agent: Option<&'a AgentName>,
    /// The method.
    pub method: &'a str,
    /// The path as it was sent, without the query.
    pub path: &'a str,
    /// Whether the mesh itself answers this path. Only rules that name a path are for such a request, and it passes
    /// where none matches: a rule for agents takes no node out of the mesh.
    pub of_mesh: bool,
}

/// What the rules come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request passes.
    pub action: Action,
    /// What decided.
    pub by: By,
}

/// What decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The rule with this number, from 0.
    Rule(usize),
    /// There are rules, and none matches.
    NoRule,
    /// There is nothing to decide.
    NoRules,
    /// Servers may read the request in different ways.
    Ambiguous(&'static str),
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(number) => write!(f, "rules[{number}]"),
            Self::NoRule => f.write_str("rules, none of which matches"),
            Self::NoRules => f.write_str("rules: there are none"),
            Self::Ambiguous(what) => write!(f, "rules: servers read it differently, since it {what}"),
        }
    }
}

impl Rules {
    /// Decides about a request. [`Mode`] is for whoever enforces it.
    pub fn decide(&self, asked: Asked<'_>) -> Decision {
        if self.rules.is_empty() {
            return Decision { action: Action::Allow, by: By::NoRules };
        }
        let ambiguous = |what| Decision { action: Action::Deny, by: By::Ambiguous(what) };
        if asked.method.bytes().any(|byte| byte.is_ascii_lowercase()) {
            return ambiguous("has small letters in its method");
        }
        let readings = match self.rules.iter().any(|rule| rule.path.is_some()) {
            // Which of its own paths the mesh answers, it reads itself, however they are spelled.
            true => match path::readings(asked.path) {
                Ok(readings) => readings,
                Err(what) => return ambiguous(what),
            },
            false => vec![Vec::new()],
        };
        let severity = |decision: &Decision| match decision.action {
            Action::Allow => 0,
            Action::Audit => 1,
            Action::Deny => 2,
        };
        let mut strictest = Decision { action: Action::Allow, by: By::NoRule };
        for (i, reading) in readings.iter().enumerate() {
            let decision = self.decide_reading(asked, reading);
            if i == 0 || severity(&decision) > severity(&strictest) {
                strictest = decision;
            }
        }
        strictest
    }

    fn decide_reading(&self, asked: Asked<'_>, reading: &path::Reading) -> Decision {
        let first = self.rules.iter().enumerate().find(|(_, rule)| rule.matches(asked, reading));
        match first {
            Some((number, rule)) => Decision { action: rule.action, by: By::Rule(number) },
            None if asked.of_mesh => Decision { action: Action::Allow, by: By::NoRule },
            None => Decision { action: Action::Deny, by: By::NoRule },
        }
    }
}

impl Rule {
    fn matches(&self, asked: Asked<'_>, reading: &path::Reading) -> bool {
        // What is not known could be what the rule names.
        let unknown = self.action == Action::Deny;
        let peer = match (&self.peer, asked.peer) {
            (None, _) => true,
            (Some(_), None) => unknown,
            (Some(pattern), Some(peer)) => pattern.covers(peer),
        };
        let caller = self.caller.is_none() || self.caller.as_ref() == asked.caller;
        let agent = match (&self.agent, asked.agent) {
            (None, _) => true,
            (Some(_), None) => unknown,
            // Servers may tell agents apart without case.
            (Some(named), Some(agent)) if unknown => named.as_str().eq_ignore_ascii_case(agent.as_str()),
            (Some(named), Some(agent)) => named == agent,
        };
        let method = self
            .method
            .as_deref()
            .is_none_or(|method| method == asked.method || (method == "GET" && asked.method == "HEAD"));
        let path = match &self.path {
            Some(pattern) => pattern.covers(reading),
            None => !asked.of_mesh,
        };
        peer && caller && agent && method && path
    }
}

/// Whether the mesh itself answers this path, as far as it is not one that rules refuse anyway.
pub fn is_of_mesh(path: &str) -> bool {
    path::readings(path).is_ok_and(|readings| {
        readings.iter().any(|reading| OF_MESH.contains(&format!("/{}", reading.join("/")).as_str()))
    })
}

/// Headers by which some servers let a request change its own method or path.
pub const OVERRIDES: [&str; 5] =
    ["x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url"];

/// The agents of this node.
#[derive(Debug, Clone)]
pub struct LocalAgents(Vec<AgentName>);

impl LocalAgents {
    /// These agents, however often each is named.
    pub fn of(mut agents: Vec<AgentName>) -> Self {
        agents.sort();
        agents.dedup();
        Self(agents)
    }

    /// The agent that gets a request which names this one, as far as that is certain: a name that nobody has here goes
    /// to the same server as no name.
    pub fn called<'a>(&'a self, named: Option<&'a AgentName>) -> Option<&'a AgentName> {
        match (named, self.0.as_slice()) {
            (Some(named), hosted) if hosted.contains(named) => Some(named),
            (_, [only]) => Some(only),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;

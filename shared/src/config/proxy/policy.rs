//! `proxy.policy`: which peers may connect, and the rules of both directions.

use std::str::FromStr;

use super::super::yaml::Section;
use crate::identity::Identity;
use crate::policy::{Action, PeerPattern, Rule, Rules};

/// Each is compared with each request.
const MAX_RULES: usize = 1000;

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

pub(super) fn read(section: Section<'_>) -> Policy {
    if section.is_empty("allow") {
        section.mistake("allow", "is empty; write [] for nobody, or remove the key for everybody");
    }
    let policy = Policy {
        allow: section.list("allow"),
        deny: section.list("deny").unwrap_or_default(),
        rules: rules(&section, "peer"),
    };
    section.finish();
    policy
}

/// `mode` and `rules` of a policy; `peer` is how its rules call the other side.
pub(super) fn rules(section: &Section<'_>, peer: &'static str) -> Rules {
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

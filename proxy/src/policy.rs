//! Which peers may come in, and which requests pass: the policies in use, and what becomes of a request that they
//! refuse. The rules themselves are [`mesh_shared::policy`].

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::request::Parts;
use mesh_shared::config::{Config, Policy, Proxy};
use mesh_shared::logging::{Excerpt, Repeats};
use mesh_shared::policy::{Action, Asked, By, Decision, Mode, OVERRIDES, Rules, covers};
use mesh_shared::{Identity, NodeName};
use tokio::signal::unix::Signal;

use crate::error::ProxyError;
use crate::metrics::{Direction, METRICS, PolicyVerdict};

/// The policies of both directions, which a reload replaces together.
#[derive(Debug)]
pub struct Policies {
    /// `proxy.policy`.
    pub inbound: Policy,
    /// `proxy.outbound.policy`.
    pub outbound: Rules,
    /// `proxy.live.peers`: the nodes that may see what this one carries.
    pub live_peers: Vec<NodeName>,
}

impl Policies {
    /// As configured.
    pub fn new(proxy: &Proxy) -> Self {
        Self {
            inbound: proxy.policy.clone(),
            outbound: proxy.outbound.policy.clone(),
            live_peers: proxy.live_peers.clone(),
        }
    }
}

/// The policies in use.
pub type PolicyStore = ArcSwap<Policies>;

/// Reloads the policies from the configuration file on SIGHUP, and calls `replaced` then. If the file is bad, those in use stay.
pub async fn follow(
    mut hangup: Signal,
    config: Arc<Config>,
    policies: Arc<PolicyStore>,
    replaced: impl Fn(),
) {
    while hangup.recv().await.is_some() {
        let Some(path) = config.source.clone() else { continue };
        // One that panicked has said so already.
        match tokio::task::spawn_blocking(move || Config::load(&path)).await {
            Err(_) => {}
            Ok(Ok(fresh)) => {
                policies.store(Arc::new(Policies::new(&fresh.proxy)));
                replaced();
                tracing::info!(target: "Mesh", "policy reloaded");
            }
            Ok(Err(error)) => {
                METRICS.reloaded(false);
                tracing::error!(target: "Mesh", "policy not reloaded, continuing with the one in use: {error}");
            }
        }
    }
}

/// Refusals are the log's only lines that a caller can cause by rules as often as it likes.
static REFUSALS: Repeats = Repeats::new(|more| tracing::warn!(target: "Policy", "{more}"));

/// Lets a request pass that `rules` allow; `caller` is for the log. What they refuse or audit is counted and logged.
///
/// # Errors
/// `RequestNotAllowed`, or `BadRequest` where servers may read the request in different ways. Fails closed.
pub fn check(
    rules: &Rules,
    direction: Direction,
    caller: impl std::fmt::Display,
    request: &Parts,
    asked: Asked<'_>,
) -> Result<(), ProxyError> {
    if rules.rules.is_empty() {
        return Ok(());
    }
    let decision = match OVERRIDES.iter().any(|name| request.headers.contains_key(*name)) {
        true => Decision {
            action: Action::Deny,
            by: By::Ambiguous("has a header that changes its method or path"),
        },
        false => rules.decide(asked),
    };
    let (verdict, what) = match (decision.action, rules.mode) {
        (Action::Allow, _) => return Ok(()),
        (Action::Audit, _) => (PolicyVerdict::Audited, "audited"),
        (Action::Deny, Mode::Audit) => (PolicyVerdict::WouldRefuse, "would refuse"),
        (Action::Deny, Mode::Enforce) => (PolicyVerdict::Refused, "refused"),
    };
    METRICS.policy(direction, verdict);
    let key = match direction {
        Direction::Inbound => "proxy.policy",
        Direction::Outbound => "proxy.outbound.policy",
    };
    let group = format!("{what} {caller} by {key}.{}", decision.by);
    if REFUSALS.admits(&group, None) {
        let path = Excerpt { text: asked.path, max_chars: 200 };
        let agent = asked.agent.map_or("-", |agent| agent.as_str());
        tracing::warn!(target: "Policy", "{group}: {} {path} agent={agent}", asked.method);
    }
    match (verdict, decision.by) {
        (PolicyVerdict::Refused, By::Ambiguous(what)) => {
            Err(ProxyError::BadRequest(format!("{key}.rules cannot be applied to it, since it {what}")))
        }
        (PolicyVerdict::Refused, by) => Err(ProxyError::RequestNotAllowed { by: format!("{key}.{by}") }),
        (PolicyVerdict::Audited | PolicyVerdict::WouldRefuse, _) => Ok(()),
    }
}

/// Whether `peer` may call this host's agent. `deny` wins over `allow`; an agent's or device's identity is
/// matched as a whole, and an entry for a node covers the agents on it.
pub fn allows(policy: &Policy, peer: &Identity) -> bool {
    let covers = |entry: &Identity| covers(entry, peer);
    !policy.deny.iter().any(covers) && policy.allow.as_ref().is_none_or(|allow| allow.iter().any(covers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deny_wins_and_an_absent_allow_list_admits_all() {
        let list = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<Identity>>();
        let allows = |policy: &Policy, name: &str| allows(policy, &name.parse().unwrap());
        let open = Policy { allow: None, deny: list(&["ct111", "device:phone"]), ..Policy::default() };
        assert!(allows(&open, "ct110") && allows(&open, "grok@ct110"));
        assert!(!allows(&open, "ct111") && !allows(&open, "grok@ct111") && !allows(&open, "device:phone"));
        let narrow = Policy {
            allow: Some(list(&["ct110", "grok@ct112"])),
            deny: list(&["opus@ct110"]),
            ..Policy::default()
        };
        assert!(
            allows(&narrow, "ct110.mesh") && allows(&narrow, "grok@ct110") && allows(&narrow, "grok@ct112")
        );
        assert!(!allows(&narrow, "ct112") && !allows(&narrow, "opus@ct110") && !allows(&narrow, "device:x"));
        assert!(!allows(&Policy { allow: Some(Vec::new()), ..Policy::default() }, "ct110"));
    }
}

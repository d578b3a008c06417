//! Which peers may come in. Pure: the configuration's lists and an identity in, a verdict out.

use mesh_shared::Identity;
use mesh_shared::config::Policy;

/// Whether `peer` may call this host's agent. `deny` wins over `allow`; an agent's or device's identity is
/// matched as a whole, and an entry for a node covers the agents on it.
pub fn allows(policy: &Policy, peer: &Identity) -> bool {
    let covers = |entry: &Identity| match (entry, peer) {
        (Identity::Node(node), Identity::Agent(_, home)) => node == home,
        (entry, peer) => entry == peer,
    };
    !policy.deny.iter().any(covers) && policy.allow.as_ref().is_none_or(|allow| allow.iter().any(covers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deny_wins_and_an_absent_allow_list_admits_all() {
        let list = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<Identity>>();
        let allows = |policy: &Policy, name: &str| allows(policy, &name.parse().unwrap());
        let open = Policy { allow: None, deny: list(&["ct111", "device:phone"]) };
        assert!(allows(&open, "ct110") && allows(&open, "grok@ct110"));
        assert!(!allows(&open, "ct111") && !allows(&open, "grok@ct111") && !allows(&open, "device:phone"));
        let narrow = Policy { allow: Some(list(&["ct110", "grok@ct112"])), deny: list(&["opus@ct110"]) };
        assert!(
            allows(&narrow, "ct110.mesh") && allows(&narrow, "grok@ct110") && allows(&narrow, "grok@ct112")
        );
        assert!(!allows(&narrow, "ct112") && !allows(&narrow, "opus@ct110") && !allows(&narrow, "device:x"));
        assert!(!allows(&Policy { allow: Some(Vec::new()), deny: Vec::new() }, "ct110"));
    }
}

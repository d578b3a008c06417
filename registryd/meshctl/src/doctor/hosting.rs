//! Does what the nodes say of themselves agree with what their certificates say?

use std::collections::{BTreeMap, BTreeSet};

use mesh_shared::AgentName;
use mesh_shared::config::Config;
use mesh_shared::local_api::SeenCertificates;
use serde::Serialize;

use super::mend;
use super::report::{Finding, Step};

/// An agent that a node is registered for and not certified for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Disagreement {
    /// The node.
    pub node: String,
    /// The agent.
    pub agent: String,
    /// What it means and what to do.
    detail: String,
    /// What would certify it, on the CA's host; `None` where the agent's name is not one that can be certified.
    #[serde(skip)]
    command: Option<String>,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    /// Whether uncertified hosts get no tasks (`mesh.agents: certified`).
    pub certified: bool,
    /// Agents of nodes that are not certified for them.
    pub disagreements: Vec<Disagreement>,
    /// Nodes whose certificate could not be seen as it is now.
    pub unseen: Vec<String>,
}

impl Diagnosis {
    /// What it comes to, where uncertified hosts may be meant to continue (`claimed`) or get nothing.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self
            .disagreements
            .iter()
            .map(|each| {
                let finding = Finding::warn(Step::Hosting, each.detail.clone());
                let finding = Finding { node: Some(each.node.clone()), ..finding };
                match &each.command {
                    Some(command) => finding.run_on(mend::CA_HOST, command.clone()),
                    None => finding,
                }
            })
            .collect();
        if findings.is_empty() {
            let mode = if self.certified { "certified" } else { "claimed" };
            findings.push(Finding::ok(
                Step::Hosting,
                format!("certificates and registry agree on who hosts which agent (mesh.agents: {mode})"),
            ));
        }
        findings
    }
}

/// Compares the agents that nodes are `registered` for with those that their certificates name.
///
/// Where hosts need not be certified, most meshes have no certificates that name agents; then nothing is compared but
/// agents that some certificate names, and nodes whose certificate names any.
pub fn judge(
    config: &Config,
    registered: &BTreeMap<String, Vec<String>>,
    reached: &BTreeSet<&str>,
    seen: &SeenCertificates,
) -> Diagnosis {
    let named: BTreeMap<&str, BTreeSet<&str>> = seen
        .nodes
        .iter()
        .map(|seen| (seen.node.as_str(), seen.agents.iter().map(|agent| agent.as_str()).collect()))
        .collect();
    let anywhere: BTreeSet<&str> = named.values().flatten().copied().collect();
    let (mut disagreements, mut unseen) = (Vec::new(), Vec::new());
    for (node, agents) in registered {
        let Some(named) = named.get(node.as_str()) else {
            unseen.push(node.clone());
            continue;
        };
        if !reached.contains(node.as_str()) {
            unseen.push(node.clone());
        }
        for agent in agents {
            let matters = seen.certified || !named.is_empty() || anywhere.contains(agent.as_str());
            if named.contains(agent.as_str()) || !matters {
                continue;
            }
            let meaning = match seen.certified {
                true => "so it gets no tasks from here",
                false => "and gets its share of the tasks all the same (mesh.agents: claimed)",
            };
            // The registry's names are whatever somebody wrote there; only proper ones belong into a command.
            let all: Vec<&str> = named.iter().copied().chain([agent.as_str()]).collect();
            let command = AgentName::is_valid(agent).then(|| mend::hosting(config, node, &all));
            disagreements.push(Disagreement {
                node: node.clone(),
                agent: agent.clone(),
                detail: format!(
                    "{node} is registered for agent {agent}, its certificate does not say so, {meaning}: give it another \
                     certificate if it belongs there (meshctl invite in place of ca renew if the node's key was made there), \
                     else find out who registered it"
                ),
                command,
            });
        }
    }
    Diagnosis { certified: seen.certified, disagreements, unseen }
}

#[cfg(test)]
mod tests {
    use mesh_shared::local_api::SeenCertificate;

    use super::*;

    #[test]
    fn registry_and_certificates_are_compared_where_certificates_say_anything() {
        let registered: BTreeMap<String, Vec<String>> =
            [("ct110", "opus"), ("ct111", "grok"), ("ct112", "grok"), ("ct113", "scout")]
                .map(|(node, agent)| (node.into(), vec![agent.into()]))
                .into();
        let seen = |certified, agents: &[(&str, &str)]| {
            let node = |name: &str| SeenCertificate {
                node: name.parse().unwrap(),
                agents: agents
                    .iter()
                    .filter(|(node, _)| *node == name)
                    .map(|(_, agent)| agent.parse().unwrap())
                    .collect(),
                seen_at: 0,
                not_before: None,
                not_after: 0,
            };
            SeenCertificates { certified, nodes: ["ct110", "ct111", "ct112"].map(node).into() }
        };
        let config = Config::parse("mesh: {enabled: true, node_name: ct110, tls: true}").unwrap();
        let judged = |seen: &SeenCertificates| {
            let diagnosis = judge(&config, &registered, &["ct110", "ct111", "ct112"].into(), seen);
            assert_eq!(diagnosis.unseen, ["ct113"]);
            let told = diagnosis.disagreements.iter().map(|each| format!("{}@{}", each.agent, each.node));
            told.collect::<Vec<_>>()
        };
        assert!(judged(&seen(false, &[])).is_empty());
        assert_eq!(judged(&seen(false, &[("ct111", "grok")])), ["grok@ct112"]);
        assert_eq!(judged(&seen(false, &[("ct110", "other")])), ["opus@ct110"]);
        assert_eq!(judged(&seen(true, &[("ct111", "grok")])), ["opus@ct110", "grok@ct112"]);
    }
}

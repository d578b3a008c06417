//! `meshctl doctor`: does what the nodes say of themselves agree with what their certificates say?

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use mesh_shared::json;
use mesh_shared::local_api::{CERTIFICATES, NODES, NodeView, SeenCertificates};
use serde::Serialize;
use serde_json::json;

use crate::output::{Colour, one_line, paint, print, print_json};
use crate::{Failure, Global, ping};

/// An agent that a node is registered for and not certified for.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Disagreement {
    node: String,
    agent: String,
    /// What it means and what to do.
    detail: String,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Diagnosis {
    ok: bool,
    /// Whether uncertified hosts get no tasks (`mesh.agents: certified`).
    certified: bool,
    disagreements: Vec<Disagreement>,
    /// Nodes that could not be asked for their certificates.
    unseen: Vec<String>,
}

/// Asks every node for its certificate and compares it with the registry.
///
/// # Errors
/// The own daemons are away (with `--json`, a document says so). A disagreement makes exit code 1.
pub async fn run(global: &Global) -> Result<ExitCode, Failure> {
    let diagnosis = match diagnose(global).await {
        Ok(diagnosis) => diagnosis,
        Err(Failure::Client(error)) if global.json => {
            print_json(&json!({ "ok": false, "problems": [error.to_string()] }))?;
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => return Err(error),
    };
    match global.json {
        true => print_json(&diagnosis)?,
        false => print(&describe(&diagnosis))?,
    }
    Ok(if diagnosis.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn diagnose(global: &Global) -> Result<Diagnosis, Failure> {
    let nodes: Vec<NodeView> = global.registryd()?.read(NODES).await?;
    let registered: BTreeMap<String, Vec<String>> =
        nodes.into_iter().map(|view| (view.node.name, view.node.agents)).collect();
    // So that the sidecar has seen a certificate of each node that can be reached.
    let sidecar = ping::sidecar(global).await?;
    let reached = registered.keys().map(|name| ping::reach(&sidecar, name));
    let reached: Vec<bool> = futures_util::future::join_all(reached).await;
    let reached =
        registered.keys().zip(reached).filter(|(_, reached)| *reached).map(|(name, _)| name.as_str());
    let answer = sidecar
        .send(http::Method::GET, CERTIFICATES, http::HeaderMap::new(), bytes::Bytes::new())
        .await
        .and_then(|answer| sidecar.accepted(CERTIFICATES, answer))?;
    let seen: SeenCertificates = json::read_bytes(&answer.body)
        .map_err(|error| Failure::Answer(format!("mesh-proxy's answer to {CERTIFICATES}: {error}")))?;
    Ok(judge(&registered, &reached.collect(), &seen))
}

/// Compares the agents that nodes are `registered` for with those that their certificates name.
///
/// Where hosts need not be certified, most meshes have no certificates that name agents; then nothing is compared but
/// agents that some certificate names, and nodes whose certificate names any.
fn judge(
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
            let all: Vec<&str> = named.iter().copied().chain([agent.as_str()]).collect();
            disagreements.push(Disagreement {
                node: node.clone(),
                agent: agent.clone(),
                detail: format!(
                    "{node} is registered for agent {agent}, its certificate does not say so, {meaning}: on the CA's \
                     host, meshctl ca renew {node} --agents {} if it belongs there (meshctl invite in place of ca renew if \
                     the node's key was made there), else find out who registered it",
                    all.join(",")
                ),
            });
        }
    }
    Diagnosis { ok: disagreements.is_empty(), certified: seen.certified, disagreements, unseen }
}

fn describe(diagnosis: &Diagnosis) -> String {
    let mut text = String::new();
    for each in &diagnosis.disagreements {
        text.push_str(&format!("{} {}\n", paint(Colour::Red, "problem:"), one_line(&each.detail)));
    }
    for node in &diagnosis.unseen {
        let said = "cannot be reached, so its certificate as it is now is not known";
        text.push_str(&format!("{} {} {said}\n", paint(Colour::Yellow, "unknown:"), one_line(node)));
    }
    if diagnosis.ok {
        text.push_str("certificates and registry agree on who hosts which agent\n");
    }
    text
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
                not_after: 0,
            };
            SeenCertificates { certified, nodes: ["ct110", "ct111", "ct112"].map(node).into() }
        };
        let judged = |seen: &SeenCertificates| {
            let diagnosis = judge(&registered, &["ct110", "ct111", "ct112"].into(), seen);
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

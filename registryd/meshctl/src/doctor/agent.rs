//! The way to an agent: who hosts it, who would get its tasks, and the way to each of those.

use std::collections::BTreeMap;

use mesh_shared::local_api::{NodeView, SeenCertificates};
use mesh_shared::registry::Status;
use mesh_shared::{AgentName, NodeName};

use super::here::Here;
use super::report::{Finding, Outcome, Report, Step};
use super::way::Way;
use super::{hosting, mend};
use crate::output::Progress;
use crate::ping;

/// So many of an agent's nodes are gone to.
const MOST_NODES: usize = 16;

/// Takes the steps of an agent, of `only` one node if that is given.
pub async fn look(
    here: &Here,
    agent: &AgentName,
    only: Option<&NodeName>,
    views: &[NodeView],
    progress: &Progress,
    report: &mut Report,
) {
    let behind = [
        Step::Hosting,
        Step::Choice,
        Step::Name,
        Step::Tcp,
        Step::Tls,
        Step::Identity,
        Step::Policy,
        Step::Answer,
    ];
    let hosts = |view: &&NodeView| view.node.agents.iter().any(|name| name == agent.as_str());
    let all: Vec<&NodeView> = views.iter().filter(hosts).collect();
    let wanted: Vec<&NodeView> =
        all.iter().copied().filter(|view| only.is_none_or(|only| view.node.name == only.as_str())).collect();
    if !report.add(registered(agent, only, &wanted, views)) {
        return report.skip(&behind);
    }
    progress.say(&format!("the nodes that host {agent}"));
    let names: Vec<String> = all.iter().map(|view| view.node.name.clone()).collect();
    let pinged = ping::all(&here.sidecar, &names).await;
    let seen = match here.certificates().await {
        Ok(seen) => seen,
        Err(error) => {
            report.add(
                Finding::fail(Step::Sidecar, error.to_string()).run("sudo systemctl restart mesh-proxy"),
            );
            return report.skip(&behind);
        }
    };
    let reached = pinged.iter().filter(|each| each.ok).map(|each| each.node.as_str()).collect();
    let claimed: BTreeMap<String, Vec<String>> =
        all.iter().map(|view| (view.node.name.clone(), vec![agent.to_string()])).collect();
    let diagnosis = hosting::judge(&here.config, &claimed, &reached, &seen);
    let usable: Vec<&NodeView> = wanted.iter().copied().filter(|view| takes_tasks(view)).collect();
    let certified = |view: &NodeView| is_certified(&seen, view, agent);
    let may: Vec<&NodeView> =
        usable.iter().copied().filter(|view| !seen.certified || certified(view)).collect();
    if may.is_empty() {
        let node = usable.first().map_or("<node>", |view| view.node.name.as_str());
        report.add(
            Finding::fail(
                Step::Hosting,
                format!("no node that is registered for {agent} is certified for it"),
            )
            .because("this node sends tasks to certified hosts only (mesh.agents: certified)")
            .run_on(mend::CA_HOST, mend::hosting(&here.config, node, &[agent.as_str()]))
            .coded(Some("agent_not_certified")),
        );
        return report.skip(&behind[1..]);
    }
    report.extend(diagnosis.findings().into_iter().filter(|finding| {
        finding.node.as_ref().is_none_or(|node| wanted.iter().any(|view| view.node.name == *node))
    }));
    report.add(choice(agent, &may));
    let mut ways = Vec::new();
    for view in may.iter().take(MOST_NODES) {
        let Ok(node) = view.node.name.parse::<NodeName>() else { continue };
        let mut way = Report::default();
        Way::new(here, node, (*view).clone(), Some(agent)).await.go(progress, &mut way).await;
        ways.push((view.node.name.clone(), way));
    }
    // One that works is enough for the agent to be reached.
    let works = ways.iter().any(|(_, way)| way.outcome() < Outcome::Fail);
    for (node, way) in ways {
        report.extend(way.findings().iter().cloned().map(|finding| {
            let outcome = if works { finding.outcome.min(Outcome::Warn) } else { finding.outcome };
            Finding { node: Some(node.clone()), outcome, ..finding }
        }));
    }
}

fn takes_tasks(view: &NodeView) -> bool {
    matches!(view.node.status, Status::Online | Status::Degraded)
}

fn is_certified(seen: &SeenCertificates, view: &NodeView, agent: &AgentName) -> bool {
    seen.nodes.iter().any(|seen| seen.node.as_str() == view.node.name && seen.agents.contains(agent))
}

/// Who is registered for it.
fn registered(
    agent: &AgentName,
    only: Option<&NodeName>,
    wanted: &[&NodeView],
    views: &[NodeView],
) -> Finding {
    let step = Step::Registry;
    if wanted.is_empty() {
        let mut known: Vec<&str> =
            views.iter().flat_map(|view| &view.node.agents).map(String::as_str).collect();
        known.sort_unstable();
        known.dedup();
        known.truncate(8);
        let cause = match known.as_slice() {
            [] => "no agents are registered at all".into(),
            known => format!("registered are {}", known.join(", ")),
        };
        let place = only.map_or_else(|| "the agent's host".into(), ToString::to_string);
        let node = only.map(|node| format!(" on {node}")).unwrap_or_default();
        return Finding::fail(step, format!("no agent {agent} is registered{node}")).because(cause).run_on(
            place,
            format!("sudoedit /etc/mesh/mesh.yaml && sudo systemctl reload registryd  # registryd.agents: [{agent}]"),
        );
    }
    let shown: Vec<String> =
        wanted.iter().map(|view| format!("{} ({})", view.node.name, view.node.status.as_str())).collect();
    let said = format!("{agent} is registered on {}", shown.join(", "));
    if !wanted.iter().any(|view| takes_tasks(view)) {
        let first = wanted.first().map_or("its host", |view| view.node.name.as_str());
        return Finding::fail(step, said)
            .because("none of them accepts tasks at present")
            .run_on(first, "sudo systemctl start registryd mesh-proxy && sudo meshctl status")
            .coded(Some("agent_offline"));
    }
    match wanted.iter().find(|view| view.node.status != Status::Online) {
        None => Finding::ok(step, said),
        Some(view) => Finding::warn(step, said)
            .because(format!("{} takes no tasks, or only if no other node can", view.node.name))
            .run_on(view.node.name.as_str(), "sudo meshctl status"),
    }
}

/// Who gets its tasks, as mesh-proxy chooses: nodes that are online before degraded ones, among them this host, else the less
/// loaded of two.
fn choice(agent: &AgentName, may: &[&NodeView]) -> Finding {
    let online: Vec<&NodeView> =
        may.iter().copied().filter(|view| view.node.status == Status::Online).collect();
    let best = if online.is_empty() { may } else { &online };
    let names: Vec<&str> = best.iter().map(|view| view.node.name.as_str()).collect();
    let said = match (best.iter().find(|view| view.local), names.as_slice()) {
        (Some(own), _) => format!("tasks for {agent} go to {}, which is this host", own.node.name),
        (None, [only]) => format!("tasks for {agent} go to {only}"),
        (None, several) => {
            format!("tasks for {agent} go to the less loaded of two of {}", several.join(", "))
        }
    };
    Finding::ok(Step::Choice, said)
}

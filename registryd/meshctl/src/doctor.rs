//! `meshctl doctor`: what is wrong, why, and which command fixes it. The way to a node or an agent step by step, or the mesh
//! as a whole.
//!
//! It changes nothing, and sends no task to any agent. The steps for which the node's key is needed are the sidecar's.

mod agent;
mod dial;
mod expiry;
mod here;
mod hosting;
mod mend;
mod mesh;
mod report;
mod way;

use std::io;
use std::process::ExitCode;

use clap::Args;
use mesh_shared::local_api::{NODES, NodeView};
use mesh_shared::registry::Status;
use mesh_shared::{AgentName, Identity, NodeName};
use rustls::pki_types::UnixTime;
use serde_json::json;

use crate::output::{Progress, print, print_json};
use crate::ping;
use crate::{Failure, Global};
use here::Here;
use hosting::Diagnosis;
use mesh::Mesh;
use report::{Finding, Outcome, Report, Step, Subject};
use way::Way;

/// The exit code where nothing can be said of the mesh from here, as monitors expect it.
pub const COULD_NOT_LOOK: u8 = 3;

/// Arguments of `meshctl doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// A node (ct111, ct111.mesh), an agent (grok, grok.agent.mesh) or an agent on a node (grok@ct111); without it, the mesh
    ///
    /// If a node and an agent have the same name, the name means the node.
    #[arg(value_name = "NODE|AGENT", value_parser = target)]
    target: Option<Target>,
    /// Print only problems, and nothing if there are none
    #[arg(long, short)]
    quiet: bool,
}

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Node(NodeName),
    Agent(AgentName, Option<NodeName>),
    /// A node's name, or else an agent's.
    Named(AgentName),
}

fn target(text: &str) -> Result<Target, String> {
    if let Some(node) = NodeName::from_mesh_host(text) {
        return Ok(Target::Node(node));
    }
    if let Some(agent) = AgentName::from_mesh_host(text) {
        return Ok(Target::Agent(agent, None));
    }
    match text.parse() {
        Ok(Identity::Agent(agent, node)) => Ok(Target::Agent(agent, Some(node))),
        _ => text.parse().map(Target::Named).map_err(|error: mesh_shared::name::NameError| error.to_string()),
    }
}

/// Looks, tells, and ends with the worst that was found.
///
/// # Errors
/// The output cannot be written.
pub async fn run(args: DoctorArgs, global: &Global) -> Result<ExitCode, Failure> {
    let progress = Progress::new(args.quiet || global.json);
    let mut report = Report::default();
    let mut subject = match &args.target {
        None => Subject::Mesh,
        Some(Target::Node(node)) => Subject::Node(node.to_string()),
        Some(Target::Agent(agent, _) | Target::Named(agent)) => Subject::Agent(agent.to_string()),
    };
    let mut diagnosis = None;
    let here = here::look(global, &progress, &mut report).await;
    match &here {
        None => report.skip(steps(args.target.is_some())),
        Some(here) => match here.registryd.read::<Vec<NodeView>>(NODES).await {
            Err(error) => {
                report.add(
                    Finding::fail(Step::Registry, error.to_string()).run("sudo systemctl restart registryd"),
                );
            }
            Ok(views) => match args.target {
                None => diagnosis = look_at_mesh(here, &views, &progress, &mut report).await,
                Some(target) => {
                    subject = look_at(here, target, &views, &progress, &mut report).await;
                }
            },
        },
    }
    drop(progress);
    let outcome = report.outcome();
    let shown = match global.json {
        true => {
            let node = here.as_ref().map(Here::node);
            let mut document = json!({
                "ok": outcome == Outcome::Ok, "outcome": outcome, "node": node, "subject": subject,
                "checks": report.findings(),
            });
            if let Some(Diagnosis { certified, disagreements, unseen }) = diagnosis {
                document["certified"] = json!(certified);
                document["disagreements"] = json!(disagreements);
                document["unseen"] = json!(unseen);
            }
            print_json(&document)
        }
        false => print(&report.text(args.quiet)),
    };
    match shown {
        // What was found does not depend on who reads it to the end.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Doctor(format!("cannot write the output: {error}")))
        }
        _ => Ok(ExitCode::from(outcome.exit_code())),
    }
}

/// The steps behind those of this host.
fn steps(of_way: bool) -> &'static [Step] {
    use Step as S;
    match of_way {
        true => &[S::Registry, S::Clock, S::Name, S::Tcp, S::Tls, S::Identity, S::Policy, S::Answer],
        false => &[
            S::Registry,
            S::Duplicates,
            S::Reach,
            S::Versions,
            S::Thresholds,
            S::Clock,
            S::Expiry,
            S::Revocation,
            S::Hosting,
        ],
    }
}

async fn look_at_mesh(
    here: &Here,
    views: &[NodeView],
    progress: &Progress,
    report: &mut Report,
) -> Option<Diagnosis> {
    progress.say(&format!("{} nodes", views.len()));
    // So that the sidecar has seen a certificate of each node that can be reached.
    // Those that are offline would only keep it waiting, and are told of anyway.
    let there = views.iter().filter(|view| view.node.status != Status::Offline);
    let names: Vec<String> = there.map(|view| view.node.name.clone()).collect();
    let pinged = ping::all(&here.sidecar, &names).await;
    match here.certificates().await {
        Ok(seen) => {
            let mesh =
                Mesh { config: &here.config, status: &here.status, views, pinged: &pinged, seen: &seen };
            let (findings, diagnosis) = mesh.findings(UnixTime::now());
            report.extend(findings);
            Some(diagnosis)
        }
        Err(error) => {
            report.add(
                Finding::fail(Step::Sidecar, error.to_string()).run("sudo systemctl restart mesh-proxy"),
            );
            None
        }
    }
}

/// Looks at a node or an agent; returns which of the two it was.
async fn look_at(
    here: &Here,
    target: Target,
    views: &[NodeView],
    progress: &Progress,
    report: &mut Report,
) -> Subject {
    let registered = |node: &NodeName| views.iter().find(|view| view.node.name == node.as_str());
    let node = match target {
        Target::Node(node) => node,
        Target::Agent(agent, node) => {
            agent::look(here, &agent, node.as_ref(), views, progress, report).await;
            return Subject::Agent(agent.to_string());
        }
        Target::Named(name) => {
            let node = name.as_str().parse::<NodeName>().ok();
            let is_agent =
                views.iter().any(|view| view.node.agents.iter().any(|agent| agent == name.as_str()));
            match node.filter(|node| registered(node).is_some() || !is_agent) {
                Some(node) => node,
                None => {
                    agent::look(here, &name, None, views, progress, report).await;
                    return Subject::Agent(name.to_string());
                }
            }
        }
    };
    match registered(&node) {
        Some(view) => Way::new(here, node.clone(), view.clone(), None).await.go(progress, report).await,
        None => {
            let known: Vec<&str> = views.iter().take(8).map(|view| view.node.name.as_str()).collect();
            report.add(
                Finding::fail(
                    Step::Registry,
                    format!("no node {node} is registered, nor an agent of that name"),
                )
                .because(format!("registered nodes are {}", known.join(", ")))
                .run_on(node.as_str(), "sudo systemctl start registryd && sudo meshctl status")
                .coded(Some("unknown_node")),
            );
            report.skip(&steps(true)[1..]);
        }
    }
    Subject::Node(node.to_string())
}

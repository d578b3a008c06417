//! `meshctl policy`: what the policies in the configuration come to.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use mesh_shared::config::{self, Config};
use mesh_shared::policy::{Action, Asked, By, Decision, Mode, Rules, covers, is_of_mesh};
use mesh_shared::{AgentName, Identity, NodeName};
use serde_json::json;

use crate::output::{print, print_json};
use crate::{Failure, Global};

/// Arguments of `meshctl policy`.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Show whether a request would be allowed, and which rule decides; exit code 1 if it would be refused
    Explain(ExplainArgs),
}

#[derive(Debug, Args)]
struct ExplainArgs {
    /// The caller, as in ct111, opus@ct111 or device:phone; with --outbound: the called node
    #[arg(value_name = "CALLER")]
    peer: Identity,
    /// The method, as in POST
    method: String,
    /// The path, as the request sends it, as in /api/message
    path: String,
    /// The agent that the request names
    #[arg(long)]
    agent: Option<AgentName>,
    /// With --outbound: the calling agent of this node, on a listener with as_agent
    #[arg(long, requires = "outbound")]
    as_agent: Option<AgentName>,
    /// Use proxy.outbound.policy, which applies to requests from this host
    #[arg(long)]
    outbound: bool,
}

/// Explains.
///
/// # Errors
/// There is no configuration, or it cannot be used.
pub fn run(args: PolicyArgs, global: &Global) -> Result<ExitCode, Failure> {
    let PolicyCommand::Explain(args) = args.command;
    let config = global.config()?.ok_or_else(|| {
        Failure::Usage(format!("there is no configuration {}; name one with --config", config::DEFAULT_PATH))
    })?;
    let (action, by) = explain(&config, &args);
    match global.json {
        true => {
            print_json(&json!({"allowed": action != Action::Deny, "action": action.to_string(), "by": by}))?
        }
        false => print(&format!("{action}: {by}\n"))?,
    }
    Ok(ExitCode::from(u8::from(action == Action::Deny)))
}

/// What this node's own policy makes of a request of its programs to a node, for an agent there if one is named, and what
/// decides.
pub fn outbound(
    config: &Config,
    node: &NodeName,
    agent: Option<&AgentName>,
    method: &str,
    path: &str,
) -> (Action, String) {
    let args = ExplainArgs {
        peer: Identity::Node(node.clone()),
        method: method.into(),
        path: path.into(),
        agent: agent.cloned(),
        as_agent: None,
        outbound: true,
    };
    explain(config, &args)
}

/// What becomes of the request, and what decides.
fn explain(config: &Config, args: &ExplainArgs) -> (Action, String) {
    let policy = &config.proxy.policy;
    let (key, rules) = match args.outbound {
        true => ("proxy.outbound.policy", &config.proxy.outbound.policy),
        false => ("proxy.policy", &policy.rules),
    };
    if !args.outbound {
        let listed = |list: &[Identity]| list.iter().position(|entry| covers(entry, &args.peer));
        if let Some(number) = listed(&policy.deny) {
            return (Action::Deny, format!("proxy.policy.deny[{number}]"));
        }
        if policy.allow.as_deref().is_some_and(|allow| listed(allow).is_none()) {
            return (Action::Deny, "proxy.policy.allow, which does not name it".into());
        }
    }
    let hosted = config.local_agents();
    let agent = match args.outbound {
        true => args.agent.as_ref(),
        false => hosted.called(args.agent.as_ref()),
    };
    let Decision { action, by } = rules.decide(Asked {
        peer: Some(&args.peer),
        caller: args.as_agent.as_ref(),
        agent,
        method: &args.method,
        path: &args.path,
        of_mesh: is_of_mesh(&args.path),
    });
    let by = match by {
        By::Rule(number) => format!("{key}.{by} {}", shown(rules, number)),
        _ => format!("{key}.{by}"),
    };
    match (action, rules.mode) {
        (Action::Deny, Mode::Audit) => (Action::Audit, format!("{by} would refuse it ({key}.mode: audit)")),
        _ => (action, by),
    }
}

fn shown(rules: &Rules, number: usize) -> String {
    rules.rules.get(number).map(ToString::to_string).unwrap_or_default()
}

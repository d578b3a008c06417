//! `meshctl nodes` and `meshctl agents`: who is there.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use mesh_shared::local_api::{AgentView, NODES, NodeView, ROSTER_AGENTS};

use super::output::{self, Cell, Colour, Table, duration, print, print_json};
use super::{Failure, Global};

/// How often `--watch` asks.
const REDRAW: Duration = Duration::from_secs(1);
/// A clock that is off by more is worth showing.
const SKEW_MS: u64 = 1_000;

/// Arguments of `meshctl nodes`. Filters narrow each other.
#[derive(Debug, Args)]
pub struct NodesArgs {
    /// Only this node
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Only nodes that host this agent
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Only nodes with this capability
    #[arg(long, value_name = "WORD")]
    capability: Option<String>,
    /// Only nodes with this model provider
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// Only nodes with this model
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Only nodes in this state
    #[arg(long, value_name = "STATE", value_parser = ["online", "offline", "degraded", "updating"])]
    status: Option<String>,
    /// Keep showing, once a second, until Ctrl-C
    #[arg(long, short)]
    watch: bool,
}

impl NodesArgs {
    fn path(&self) -> String {
        let filters = [
            ("node", &self.node),
            ("agent", &self.agent),
            ("capability", &self.capability),
            ("provider", &self.provider),
            ("model", &self.model),
            ("status", &self.status),
        ];
        let query: Vec<_> = filters
            .iter()
            .filter_map(|(key, value)| Some(format!("{key}={}", percent_encoded(value.as_deref()?))))
            .collect();
        if query.is_empty() { NODES.into() } else { format!("{NODES}?{}", query.join("&")) }
    }
}

/// RFC 3986: everything but the unreserved characters.
fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// Shows the nodes, once or until interrupted.
///
/// # Errors
/// registryd is away (with `--watch`, only at the start).
pub async fn run(args: NodesArgs, global: &Global) -> Result<ExitCode, Failure> {
    let (daemon, path) = (global.registryd()?, args.path());
    let mut nodes: Vec<NodeView> = daemon.read(&path).await?;
    if !args.watch {
        show(&nodes, global.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        if output::coloured() {
            print("\x1b[H\x1b[2J")?;
        }
        show(&nodes, global.json)?;
        nodes = loop {
            tokio::time::sleep(REDRAW).await;
            match daemon.read(&path).await {
                Ok(nodes) => break nodes,
                Err(error) => eprintln!("meshctl: {error}; trying again"),
            }
        };
    }
}

fn show(nodes: &[NodeView], json: bool) -> Result<(), Failure> {
    if json {
        return Ok(print_json(&nodes)?);
    }
    if nodes.is_empty() {
        return Ok(print("no such nodes\n")?);
    }
    let mut table = Table::new(["NODE", "STATUS", "AGENTS", "HOST", "PORT", "SEEN", "CLOCK", "VERSION"]);
    for view in nodes {
        let node = &view.node;
        let name = if view.local { format!("{} (here)", node.name) } else { node.name.clone() };
        table.row([
            name.into(),
            output::status(node.status),
            node.agents.join(", ").into(),
            node.host.clone().into(),
            node.port.to_string().into(),
            view.age_ms.map_or_else(|| "never".into(), |age| format!("{} ago", duration(age))).into(),
            clock(view.skew_ms),
            node.version.clone().into(),
        ]);
    }
    Ok(print(&table.render())?)
}

/// How a node's clock differs from this host's, in words.
fn clock(skew_ms: Option<i64>) -> Cell {
    match skew_ms {
        None => "".into(),
        Some(skew) if skew.unsigned_abs() < SKEW_MS => "ok".into(),
        Some(skew) => {
            let side = if skew > 0 { "ahead" } else { "behind" };
            Cell::coloured(Colour::Yellow, format!("{} {side}", duration(skew.unsigned_abs())))
        }
    }
}

/// Shows the agents and the nodes that host them.
///
/// # Errors
/// registryd is away.
pub async fn agents(global: &Global) -> Result<ExitCode, Failure> {
    let agents: Vec<AgentView> = global.registryd()?.read(ROSTER_AGENTS).await?;
    if global.json {
        print_json(&agents)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["AGENT", "NODE", "STATUS"]);
    for agent in &agents {
        for (i, place) in agent.nodes.iter().enumerate() {
            let name = if i == 0 { agent.name.as_str() } else { " " };
            let node = if place.local { format!("{} (here)", place.node) } else { place.node.to_string() };
            table.row([name.into(), node.into(), output::status(place.status)]);
        }
    }
    print(if agents.is_empty() { "no agents are registered\n".into() } else { table.render() }.as_str())?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_become_a_query() {
        let mut args = NodesArgs {
            node: None,
            agent: Some("grok".into()),
            capability: Some("c&d e".into()),
            provider: None,
            model: None,
            status: None,
            watch: false,
        };
        assert_eq!(args.path(), "/mesh/nodes?agent=grok&capability=c%26d%20e");
        (args.agent, args.capability) = (None, None);
        assert_eq!(args.path(), "/mesh/nodes");
    }
}

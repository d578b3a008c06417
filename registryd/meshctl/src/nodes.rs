//! `meshctl nodes` and `meshctl agents`: who is there.

use std::process::ExitCode;

use bytes::Bytes;
use clap::{Args, Subcommand};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use mesh_shared::local_api::{
    AGENTS, Agent, AgentList, AgentView, FORGET, Forget, NODES, NodeView, ROSTER_AGENTS,
};
use mesh_shared::name::NodeName;
use serde::Serialize;
use serde_json::{Value, json};

use crate::output::{self, Cell, Colour, Table, duration, print, print_json};
use crate::repeat::{Show, shown};
use crate::{Failure, Global, node_name};

/// A clock that is off by more is worth showing.
const SKEW_MS: u64 = 1_000;

/// Arguments of `meshctl nodes`. Filters narrow each other.
#[derive(Debug, Args)]
pub struct NodesArgs {
    /// Only this node (ct111 or ct111.mesh)
    #[arg(long, value_name = "NAME", value_parser = node_name)]
    node: Option<NodeName>,
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
    #[command(flatten)]
    show: Show,
    #[command(subcommand)]
    change: Option<Change>,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Remove an offline node from the registry, for the whole mesh; a node that is alive would come back
    Forget {
        /// The node, as in ct119 or ct119.mesh
        #[arg(value_parser = node_name)]
        name: NodeName,
    },
}

impl NodesArgs {
    fn path(&self) -> String {
        let filters = [
            ("node", self.node.as_ref().map(NodeName::as_str)),
            ("agent", self.agent.as_deref()),
            ("capability", self.capability.as_deref()),
            ("provider", self.provider.as_deref()),
            ("model", self.model.as_deref()),
            ("status", self.status.as_deref()),
        ];
        let query: Vec<_> = filters
            .iter()
            .filter_map(|(key, value)| Some(format!("{key}={}", percent_encoded((*value)?))))
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
/// registryd cannot be reached (with `--watch`, only at the start).
pub async fn run(args: NodesArgs, global: &Global) -> Result<ExitCode, Failure> {
    if let Some(Change::Forget { name }) = args.change {
        return forget(name, global).await;
    }
    let (daemon, path) = (global.registryd()?, args.path());
    let read = async || Ok(daemon.read::<Vec<NodeView>>(&path).await?);
    shown(args.show, global.json, read, |nodes| text(nodes, args.show.wide)).await?;
    Ok(ExitCode::SUCCESS)
}

async fn forget(node: NodeName, global: &Global) -> Result<ExitCode, Failure> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let body = json!(Forget { node: node.clone() }).to_string();
    let daemon = global.registryd()?;
    let answer = daemon.send(Method::POST, FORGET, headers, Bytes::from(body)).await?;
    daemon.accepted(FORGET, answer)?;
    match global.json {
        true => print_json(&json!({ "forgotten": node }))?,
        false => print(&format!("{node} is no longer in the registry\n"))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn text(nodes: &[NodeView], wide: bool) -> String {
    if nodes.is_empty() {
        return "no such nodes\n".into();
    }
    let row = |view: &NodeView| {
        let node = &view.node;
        let name = if view.local { format!("{} (here)", node.name) } else { node.name.clone() };
        [
            name.into(),
            output::status(node.status),
            node.agents.join(", ").into(),
            node.host.clone().into(),
            node.port.to_string().into(),
            seen(view).into(),
            clock(view.skew_ms),
            node.version.clone().into(),
        ]
    };
    let headings = ["NODE", "STATUS", "AGENTS", "HOST", "PORT", "SEEN", "CLOCK", "VERSION"];
    if !wide {
        let mut table = Table::new(headings);
        nodes.iter().for_each(|view| table.row(row(view)));
        return table.render();
    }
    let [a, b, c, d, e, f, g, h] = headings;
    let mut table = Table::new([a, b, c, d, e, f, g, h, "CAPABILITIES", "PROVIDERS", "MODELS"]);
    for view in nodes {
        let node = &view.node;
        let [a, b, c, d, e, f, g, h] = row(view);
        let [i, j, k] =
            [&node.capabilities, &node.providers, &node.models].map(|list| list.join(", ").into());
        table.row([a, b, c, d, e, f, g, h, i, j, k]);
    }
    table.render_whole()
}

/// When a node was last heard of, in words.
fn seen(view: &NodeView) -> String {
    view.age_ms.map_or_else(|| "never".into(), |age| format!("{} ago", duration(age)))
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

/// The agents, as they are shown.
#[derive(Serialize)]
#[serde(transparent)]
struct Agents {
    json: Value,
    #[serde(skip)]
    agents: Vec<AgentView>,
    /// This node's.
    #[serde(skip)]
    own: Vec<Agent>,
    /// Where they live; asked for only where it is shown.
    #[serde(skip)]
    nodes: Vec<NodeView>,
}

/// Shows the agents and the nodes that host them, once or until interrupted.
///
/// # Errors
/// registryd cannot be reached (with `--watch`, only at the start).
pub async fn agents(show: Show, global: &Global) -> Result<ExitCode, Failure> {
    let daemon = global.registryd()?;
    let read = async || {
        let agents: Vec<AgentView> = daemon.read(ROSTER_AGENTS).await?;
        // Of other nodes' agents only the names are in the registry.
        let own: AgentList = daemon.read(AGENTS).await?;
        let nodes = if show.wide { daemon.read(NODES).await? } else { Vec::new() };
        let json = with_details(&agents, &own.agents);
        Ok(Agents { json, agents, own: own.agents, nodes })
    };
    shown(show, global.json, read, |agents| agents.text(show.wide)).await?;
    Ok(ExitCode::SUCCESS)
}

impl Agents {
    fn text(&self, wide: bool) -> String {
        if self.agents.is_empty() {
            return "no agents are registered\n".into();
        }
        let (mut narrow, mut whole) = (
            Table::new(["AGENT", "NODE", "STATUS"]),
            Table::new(["AGENT", "NODE", "STATUS", "HOST", "PORT", "SEEN", "PROVIDER", "MODEL"]),
        );
        for agent in &self.agents {
            for (i, place) in agent.nodes.iter().enumerate() {
                let name = if i == 0 { agent.name.as_str() } else { " " };
                let node =
                    if place.local { format!("{} (here)", place.node) } else { place.node.to_string() };
                let row = [name.into(), node.into(), output::status(place.status)];
                if !wide {
                    narrow.row(row);
                    continue;
                }
                let [a, b, c] = row;
                let view = self.nodes.iter().find(|view| view.node.name == place.node.as_str());
                let own = self.own.iter().find(|own| place.local && own.name == agent.name);
                let text = |text: Option<String>| Cell::from(text.unwrap_or_default());
                whole.row([
                    a,
                    b,
                    c,
                    text(view.map(|view| view.node.host.clone())),
                    text(view.map(|view| view.node.port.to_string())),
                    text(view.map(seen)),
                    text(own.and_then(|own| own.provider.clone())),
                    text(own.and_then(|own| own.model.clone())),
                ]);
            }
        }
        if wide { whole.render_whole() } else { narrow.render() }
    }
}

/// The agents as JSON; where one lives on this host, with its id, provider and model.
fn with_details(agents: &[AgentView], own: &[Agent]) -> Value {
    let mut shown = json!(agents);
    for agent in shown.as_array_mut().into_iter().flatten() {
        let known = own.iter().find(|own| agent["name"] == own.name.as_str());
        let Some(Agent { id, provider, model, name: _ }) = known else { continue };
        for place in agent["nodes"].as_array_mut().into_iter().flatten() {
            if place["local"] == true {
                (place["id"], place["provider"], place["model"]) = (json!(id), json!(provider), json!(model));
            }
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_become_a_query() {
        let mut args = NodesArgs {
            node: Some("ct111".parse().unwrap()),
            agent: Some("grok".into()),
            capability: Some("c&d e".into()),
            provider: None,
            model: None,
            status: None,
            show: Show { wide: false, watch: false },
            change: None,
        };
        assert_eq!(args.path(), "/mesh/nodes?node=ct111&agent=grok&capability=c%26d%20e");
        (args.node, args.agent, args.capability) = (None, None, None);
        assert_eq!(args.path(), "/mesh/nodes");
    }
}

//! `meshctl ping`: over the own sidecar to a node and back, so that everything on the way is tried.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Instant;

use bytes::Bytes;
use clap::Args;
use futures_util::StreamExt;
use http::{HeaderMap, Method};
use mesh_shared::json;
use mesh_shared::local_api::{DaemonStatus, NODES, NodeView, STATUS};
use mesh_shared::name::NodeName;
use mesh_shared::registry::Status;
use serde::Serialize;
use serde_json::json;

use crate::output::{self, Cell, Colour, Table, one_line, print_json};
use crate::repeat::{Show, shown};
use crate::{Failure, Global, node_name};
use mesh_client::{ClientError, Daemon};

/// Nodes that are reached at the same time.
const AT_ONCE: usize = 64;

/// Arguments of `meshctl ping`.
#[derive(Debug, Args)]
pub struct PingArgs {
    /// The node to ping, as in ct111 or ct111.mesh [default: all others]
    #[arg(value_parser = node_name)]
    node: Option<NodeName>,
    #[command(flatten)]
    show: Show,
}

/// How it went with one node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The node.
    pub node: String,
    /// Whether this host's sidecar said anything at all, be it an error.
    #[serde(skip)]
    pub answered: bool,
    /// Whether it answered as it should.
    pub ok: bool,
    /// There and back, in ms.
    pub latency_ms: Option<f64>,
    /// This node's CN as the other one verified it.
    pub cn: Option<String>,
    /// The problem's code.
    pub code: Option<String>,
    /// What went wrong and what to do.
    pub detail: Option<String>,
    /// What the registry says of the node, where it was asked.
    #[serde(flatten)]
    registered: Option<Registered>,
}

/// What the registry says of a node.
#[derive(Debug, Serialize)]
struct Registered {
    status: Status,
    addresses: Vec<IpAddr>,
    port: u16,
    version: String,
}

/// Reaches one node or all others, those too that are said to be offline.
///
/// # Errors
/// The own daemons are away (with `--json`, a document says so). A node that cannot be reached makes exit code 1.
pub async fn run(args: PingArgs, global: &Global) -> Result<ExitCode, Failure> {
    let read = async || outcomes(args.node.as_ref(), args.show.wide, global).await;
    let text = |outcomes: &Vec<Outcome>| match outcomes.is_empty() {
        true => "there are no other nodes\n".into(),
        false => table(outcomes, args.show.wide),
    };
    let outcomes = match shown(args.show, global.json, read, text).await {
        Ok(outcomes) => outcomes,
        Err(Failure::Client(error)) if global.json => {
            print_json(&json!({ "ok": false, "problems": [error.to_string()] }))?;
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => return Err(error),
    };
    let all = outcomes.iter().all(|outcome| outcome.ok);
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn outcomes(node: Option<&NodeName>, wide: bool, global: &Global) -> Result<Vec<Outcome>, Failure> {
    // A node that is named is reached with registryd away, too.
    let views: Vec<NodeView> = match (node, wide) {
        (None, _) => global.registryd()?.read(NODES).await?,
        (Some(_), true) => global.registryd()?.read(NODES).await.unwrap_or_default(),
        (Some(_), false) => Vec::new(),
    };
    let names: Vec<String> = match node {
        Some(node) => vec![node.to_string()],
        None => views.iter().filter(|view| !view.local).map(|view| view.node.name.clone()).collect(),
    };
    let mut outcomes = all(&sidecar(global).await?, &names).await;
    for outcome in &mut outcomes {
        let view = views.iter().find(|view| view.node.name == outcome.node);
        outcome.registered = view.map(|NodeView { node, addresses, .. }| Registered {
            status: node.status,
            addresses: addresses.clone(),
            port: node.port,
            version: node.version.clone(),
        });
    }
    Ok(outcomes)
}

/// Reaches all of these nodes, a number of them at once.
pub async fn all(sidecar: &Daemon, names: &[String]) -> Vec<Outcome> {
    futures_util::stream::iter(names).map(|name| ping(sidecar, name)).buffered(AT_ONCE).collect().await
}

/// The own sidecar's outbound side: what it reported to registryd, else what is configured.
///
/// # Errors
/// It is not known.
pub async fn sidecar(global: &Global) -> Result<Daemon, Failure> {
    let reported = global.registryd()?.read::<DaemonStatus>(STATUS).await;
    if let Ok(DaemonStatus { sidecar: Some(sidecar), .. }) = &reported {
        return Ok(Daemon::Sidecar(sidecar.outbound));
    }
    // With registryd away, the sidecar still knows its way.
    match (global.socket.is_none().then(|| global.config()).transpose()?.flatten(), reported) {
        (Some(config), _) => Ok(Daemon::Sidecar(config.proxy.outbound.listen.socket_addr())),
        (None, Err(error)) => Err(error.into()),
        (None, Ok(_)) => Err(Failure::Usage(
            "mesh-proxy does not report to registryd, so its outbound port is not known; \
             start it (systemctl status mesh-proxy) or name the configuration with --config"
                .into(),
        )),
    }
}

/// Reaches one node through this sidecar.
pub async fn ping(sidecar: &Daemon, node: &str) -> Outcome {
    let path = format!("/nodes/{node}/api/mesh/ping");
    let start = Instant::now();
    let answer = sidecar.send(Method::GET, &path, HeaderMap::new(), Bytes::new()).await;
    let latency_ms = (start.elapsed().as_secs_f64() * 100_000.0).round() / 100.0;
    let mut outcome = Outcome {
        node: node.into(),
        answered: answer.is_ok(),
        ok: false,
        latency_ms: None,
        cn: None,
        code: None,
        detail: None,
        registered: None,
    };
    let answer = match answer.and_then(|answer| sidecar.accepted(&path, answer)) {
        Ok(answer) => answer,
        Err(error) => {
            if let ClientError::Problem(problem) = &error {
                outcome.code = Some(problem.code.clone());
            }
            outcome.detail = Some(error.to_string());
            return outcome;
        }
    };
    (outcome.ok, outcome.cn) = said(&answer.body);
    match outcome.ok {
        true => outcome.latency_ms = Some(latency_ms),
        false => {
            outcome.detail =
                Some(format!("unexpected answer: {}", one_line(&String::from_utf8_lossy(&answer.body))))
        }
    }
    outcome
}

/// Whether an answer says that all is well, and as whom the other node sees this one. A RivetOS node says
/// `{ok, tls, node}` and no more.
fn said(body: &[u8]) -> (bool, Option<String>) {
    let body: serde_json::Value = json::read_bytes(body).unwrap_or_default();
    let text = |key: &str| body.get(key).and_then(|value| value.as_str()).map(str::to_owned);
    let ok = body.get("ok").and_then(serde_json::Value::as_bool) == Some(true);
    (text("status").map_or(ok, |status| status == "ok"), text("cn"))
}

fn table(outcomes: &[Outcome], wide: bool) -> String {
    let (mut narrow, mut whole) = (
        Table::new(["NODE", "RESULT", "THERE AND BACK", "IT SEES US AS"]),
        Table::new([
            "NODE",
            "RESULT",
            "THERE AND BACK",
            "IT SEES US AS",
            "STATUS",
            "ADDRESSES",
            "PORT",
            "VERSION",
        ]),
    );
    for outcome in outcomes {
        let (result, colour) = match outcome.ok {
            true => ("ok", Colour::Green),
            false => (outcome.code.as_deref().unwrap_or("failed"), Colour::Red),
        };
        let latency = outcome.latency_ms.map(|ms| format!("{ms} ms")).unwrap_or_default();
        let cn = outcome.cn.as_ref().map(|cn| format!("CN={cn}")).unwrap_or_default();
        let row = [outcome.node.as_str().into(), Cell::coloured(colour, result), latency.into(), cn.into()];
        if !wide {
            narrow.row(row);
            continue;
        }
        let [a, b, c, d] = row;
        let [e, f, g, h] = match &outcome.registered {
            None => ["", "", "", ""].map(Cell::from),
            Some(Registered { status, addresses, port, version }) => [
                output::status(*status),
                addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ").into(),
                port.to_string().into(),
                version.clone().into(),
            ],
        };
        whole.row([a, b, c, d, e, f, g, h]);
    }
    let mut text = if wide { whole.render_whole() } else { narrow.render() };
    for outcome in outcomes {
        if let Some(detail) = &outcome.detail {
            text.push_str(&format!("{}: {}\n", outcome.node, one_line(detail)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_node_can_say_that_all_is_well() {
        for (body, expected) in [
            (r#"{"status":"ok","ok":true,"node":"ct111","tls":true,"cn":"ct110"}"#, (true, Some("ct110"))),
            (r#"{"ok":true,"tls":true,"node":"ct111"}"#, (true, None)),
            (r#"{"ok":false,"tls":true,"node":"ct111"}"#, (false, None)),
            (r#"{"status":"down","ok":true}"#, (false, None)),
            ("<html>", (false, None)),
        ] {
            let (ok, cn) = said(body.as_bytes());
            assert_eq!((ok, cn.as_deref()), expected, "{body}");
        }
    }
}

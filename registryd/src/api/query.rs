//! Answers from memory.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::Ordering;

use mesh_shared::config::Discovery;
use mesh_shared::local_api::{AgentNode, AgentView, DaemonStatus, NodeView};
use mesh_shared::registry::{Node, Status};

use crate::state::State;

/// The registry as peers get it: the entries with the states as this node judges them.
pub(super) fn registry_nodes(state: &State) -> Vec<Node> {
    state.read(|inner, now| {
        let members = inner.members.members().iter();
        members.map(|(name, member)| inner.members.shown(name, member, now)).collect()
    })
}

/// What is asked of `GET /mesh/nodes`.
#[derive(Debug, Default)]
pub(super) struct NodeQuery {
    /// Answer once the mesh differs from this revision.
    pub(super) wait: Option<u64>,
    filters: Vec<(Filter, String)>,
}

#[derive(Debug, Clone, Copy)]
enum Filter {
    Node,
    Agent,
    Capability,
    Provider,
    Model,
    Status,
}

impl NodeQuery {
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value);
            let filter = match key {
                "node" => Filter::Node,
                "agent" => Filter::Agent,
                "capability" => Filter::Capability,
                "provider" => Filter::Provider,
                "model" => Filter::Model,
                "status" => Filter::Status,
                "wait" => {
                    let revision = value.parse();
                    parsed.wait = Some(revision.map_err(|_| {
                        format!(
                            "wait={value:?} is not a revision; one is in the answer's header x-mesh-revision"
                        )
                    })?);
                    continue;
                }
                other => {
                    return Err(format!(
                        "there is no filter {other:?}; there are node, agent, capability, provider, model and status, \
                         and wait"
                    ));
                }
            };
            parsed.filters.push((filter, value));
        }
        Ok(parsed)
    }

    /// All nodes that the filters leave.
    pub(super) fn nodes(&self, state: &State) -> Vec<NodeView> {
        let mut nodes = state.read(|inner, now| inner.node_views(state.local(), now));
        for (filter, value) in &self.filters {
            let has = |list: &[String]| list.contains(value);
            nodes.retain(|view| match filter {
                Filter::Node => view.node.name.eq_ignore_ascii_case(value),
                Filter::Agent => has(&view.node.agents),
                Filter::Capability => has(&view.node.capabilities),
                Filter::Provider => has(&view.node.providers),
                Filter::Model => has(&view.node.models),
                Filter::Status => view.node.status.as_str() == value,
            });
        }
        nodes
    }
}

/// `%41` and `+` as in a query string; anything malformed stays as it is.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (bytes[i], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// All agents by name, each with its nodes: those that can take a task first, the local one before others.
pub(super) fn agents(state: &State) -> Vec<AgentView> {
    let mut agents: BTreeMap<String, Vec<AgentNode>> = BTreeMap::new();
    state.read(|inner, _| {
        for (name, member) in inner.members.members() {
            for agent in &member.node.agents {
                let place =
                    AgentNode { node: name.clone(), status: member.status, local: name == state.local() };
                agents.entry(agent.clone()).or_default().push(place);
            }
        }
    });
    let view = |(name, mut nodes): (String, Vec<AgentNode>)| {
        nodes.sort_by_key(|place| (place.status != Status::Online, !place.local));
        AgentView { name, nodes }
    };
    agents.into_iter().map(view).collect()
}

pub(super) fn daemon_status(state: &State) -> DaemonStatus {
    let mesh = &state.config.mesh;
    state.read(|inner, now| DaemonStatus {
        node: mesh.node_name.clone(),
        status: inner.own().map(|own| own.status).unwrap_or_default(),
        version: env!("CARGO_PKG_VERSION").into(),
        registry_path: state.config.registry_place(),
        discovery: match mesh.discovery {
            Some(Discovery::Static) => "static",
            Some(Discovery::Seed(_)) => "seed",
            Some(Discovery::Mdns) => "mdns",
            None => "none",
        }
        .into(),
        nodes: inner.members.members().len(),
        online: inner.members.count(Status::Online),
        problems: inner.problems.sentences().cloned().collect(),
        duplicates: inner.problems.duplicates().cloned().collect(),
        sidecar: inner.sidecar(now).cloned(),
        last_heartbeat_age_ms: inner
            .last_heartbeat()
            .map(|at| now.instant.saturating_duration_since(at).as_millis() as u64),
    })
}

/// The numbers in Prometheus' text form.
pub(crate) fn metrics(state: &State) -> String {
    let counters = &state.counters;
    let counted = [
        ("registry_reads_total", "Times the registry file was read after a change.", &counters.reads),
        ("registry_read_errors_total", "Looks at the registry file that failed.", &counters.read_errors),
        ("registry_writes_total", "Times the registry file was replaced.", &counters.writes),
        (
            "registry_write_errors_total",
            "Attempts to update the registry file that failed.",
            &counters.write_errors,
        ),
        ("registry_set_aside_total", "Times broken content was set aside.", &counters.set_aside),
        ("joins_total", "Joins of peers that were accepted.", &counters.joins),
        ("joins_refused_total", "Joins of peers that were refused.", &counters.joins_refused),
        (
            "registry_write_milliseconds_total",
            "Time that writes took, waiting for others included.",
            &counters.write_ms,
        ),
        ("syncs_total", "Questions to other nodes.", &counters.syncs),
        ("sync_errors_total", "Questions to other nodes that failed.", &counters.sync_errors),
        ("dns_queries_total", "Questions that the DNS server was asked.", &counters.dns_queries),
    ];
    let counted = counted.map(|(name, help, counter)| (name, help, counter.load(Ordering::Relaxed)));
    let elsewhere = [
        (
            "log_lines_dropped_total",
            "Log lines that were dropped because the log was not read fast enough.",
            mesh_shared::logging::dropped_lines(),
        ),
        (
            "spans_exported_total",
            "Spans that the collector of telemetry.otlp took.",
            mesh_telemetry::exported(),
        ),
        (
            "spans_dropped_total",
            "Spans that were dropped because the collector did not take them, or not fast enough.",
            mesh_telemetry::dropped(),
        ),
    ];
    let mut text = String::new();
    for (name, help, value) in counted.into_iter().chain(elsewhere) {
        // Writing to a String cannot fail.
        let _ = write!(text, "# HELP mesh_{name} {help}\n# TYPE mesh_{name} counter\nmesh_{name} {value}\n");
    }
    let (by_status, problems, age, lease) = state.read(|inner, now| {
        let by_status = [Status::Online, Status::Degraded, Status::Updating, Status::Offline]
            .map(|status| (status, inner.members.count(status)));
        let age = inner.last_heartbeat().map(|at| now.instant.saturating_duration_since(at).as_secs_f64());
        (by_status, inner.problems.sentences().count(), age, inner.lease())
    });
    text.push_str("# HELP mesh_nodes Nodes known, by judged status.\n# TYPE mesh_nodes gauge\n");
    for (status, count) in by_status {
        let _ = writeln!(text, "mesh_nodes{{status=\"{}\"}} {count}", status.as_str());
    }
    text.push_str("# HELP mesh_problems Things that are wrong now.\n# TYPE mesh_problems gauge\n");
    let _ = writeln!(text, "mesh_problems {problems}");
    let streams = counters.open_streams.load(Ordering::Relaxed);
    text.push_str(
        "# HELP mesh_event_streams Event streams that are open.\n# TYPE mesh_event_streams gauge\n",
    );
    let _ = writeln!(text, "mesh_event_streams {streams}");
    if let Some((at, ttl)) = lease {
        let age = at.elapsed();
        let left = ttl.saturating_sub(age).as_secs_f64();
        let gauges = [
            ("lease_age_seconds", "Time since this node's lease in etcd was renewed.", age.as_secs_f64()),
            (
                "lease_ttl_seconds",
                "Time until this node's lease in etcd runs out unless it is renewed.",
                left,
            ),
        ];
        for (name, help, value) in gauges {
            let _ =
                write!(text, "# HELP mesh_{name} {help}\n# TYPE mesh_{name} gauge\nmesh_{name} {value:.3}\n");
        }
    }
    if let Some(age) = age {
        text.push_str("# HELP mesh_heartbeat_age_seconds Time since this node's last written heartbeat.\n");
        let _ =
            write!(text, "# TYPE mesh_heartbeat_age_seconds gauge\nmesh_heartbeat_age_seconds {age:.3}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::decoded;

    #[test]
    fn query_values_are_decoded() {
        for (text, value) in
            [("a%2Fb+c", "a/b c"), ("100%", "100%"), ("%zz", "%zz"), ("%c3%a4", "ä"), ("%4", "%4")]
        {
            assert_eq!(decoded(text), value);
        }
    }
}

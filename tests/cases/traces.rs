//! Traces: each exchange belongs to one, which goes on from hop to hop.

use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::web;

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The trace that the one access line for `path` names.
async fn trace_id(node: &mut Node, target: &str, path: &str) -> String {
    let line = node.proxy().wait_log(&[&format!("INFO [{target}] Request "), path, " trace_id="]).await;
    line.rsplit_once(" trace_id=").unwrap().1.to_owned()
}

#[tokio::test]
async fn a_trace_begins_at_the_first_sidecar_and_is_the_same_at_the_agent() {
    let mesh = Mesh::new();
    let (mut near, mut far) = mesh.pair().await;
    let request =
        web::get_with("/agents/grok/begun", &[("traceparent", "00-no-trace-01"), ("tracestate", "a=1")]);
    web::send(near.outbound(), request).await;
    let seen = far.agent().last();
    let [traceparent] = &seen.all("traceparent")[..] else { panic!("{:?}", seen.headers) };
    let [version, id, parent, flags] = traceparent.split('-').collect::<Vec<_>>()[..] else {
        panic!("{traceparent}")
    };
    assert_eq!((version, id.len(), parent.len(), flags), ("00", 32, 16, "03"), "{traceparent}");
    assert!(seen.all("tracestate").is_empty(), "it belongs to a trace that nobody can name");
    assert_eq!(trace_id(&mut near, "Outbound", "GET /begun").await, id);
    assert_eq!(trace_id(&mut far, "AgentChannel", "GET /begun").await, id);
}

#[tokio::test]
async fn a_trace_of_the_caller_passes_as_it_is_where_nothing_is_recorded() {
    let mesh = Mesh::new();
    let (mut near, mut far) = mesh.pair().await;
    let said = [("traceparent", TRACEPARENT), ("tracestate", "a=1,b=2"), ("baggage", "user=7, key = v;p=1")];
    web::send(near.outbound(), web::get_with("/agents/grok/passed?secret=1", &said)).await;
    for (name, value) in said {
        assert_eq!(far.agent().last().all(name), [value], "{name}");
    }
    assert_eq!(trace_id(&mut near, "Outbound", "GET /passed").await, TRACE_ID);
    assert_eq!(trace_id(&mut far, "AgentChannel", "GET /passed").await, TRACE_ID);
}

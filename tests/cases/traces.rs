//! Traces: each exchange belongs to one, which goes on from hop to hop.

use std::net::SocketAddr;
use std::path::PathBuf;

use http::Method;
use mesh_tests::ca::{Ca, Spec};
use mesh_tests::collector::{Collector, Span};
use mesh_tests::loopback::Loopback;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::{eventually, web};
use serde_json::{Value, json};

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

/// Two nodes whose daemons send their spans to `collector`.
async fn traced_pair(mesh: &Mesh, collector: &Collector) -> (Node, Node) {
    let traced = |config: &mut Value| {
        config["telemetry"] = json!({"otlp": {"endpoint": collector.endpoint()}});
    };
    let near = mesh.node("ct110").agent("opus").with(traced).start().await;
    let far = mesh.node("ct111").agent("grok").with(traced).start().await;
    near.reaches("ct111").await;
    (near, far)
}

/// The span of one daemon for requests of this path.
fn is_of<'a>(daemon: &'a str, node: &'a str, path: &'a str) -> impl Fn(&Span) -> bool + use<'a> {
    move |span| {
        span.resource["service.name"] == daemon
            && span.resource["mesh.node"] == node
            && span.attributes.get("url.path").is_some_and(|each| each == path)
    }
}

#[tokio::test]
async fn a_delegation_over_two_sidecars_is_a_tree_of_spans() {
    let mesh = Mesh::new();
    let host = Loopback::take();
    let collector = Collector::start(host.port(4318)).await;
    let (near, far) = traced_pair(&mesh, &collector).await;
    let task = json!({"fromAgent": "opus", "message": "the task is nobody's business"});
    let request = web::request(Method::POST, "/agents/grok/api/message?secret=1")
        .header("traceparent", TRACEPARENT)
        .header("tracestate", "a=1,b=2")
        .header("baggage", "user=7, key = v;p=1")
        .header("authorization", "Bearer hidden-token")
        .header("content-type", "application/json")
        .body(web::full(task.to_string()))
        .unwrap();
    assert_eq!(web::send(near.outbound(), request).await.status, 200);
    let client = collector.span("the caller's span", is_of("mesh-proxy", "ct110", "/api/message")).await;
    let server = collector.span("the called one's", is_of("mesh-proxy", "ct111", "/api/message")).await;
    assert_eq!((client.trace_id.as_str(), server.trace_id.as_str()), (TRACE_ID, TRACE_ID));
    assert_eq!(client.parent, "00f067aa0ba902b7");
    assert_eq!(server.parent, client.id);
    let seen = far.agent().last();
    assert_eq!(seen.all("traceparent"), [format!("00-{TRACE_ID}-{}-01", server.id)]);
    assert_eq!(seen.all("tracestate"), ["a=1,b=2"]);
    assert_eq!(seen.all("baggage"), ["user=7, key = v;p=1"], "baggage is the callers' own");

    assert_eq!((client.kind, server.kind), (3, 2));
    assert_eq!((client.error.as_deref(), server.error.as_deref()), (None, None));
    for (span, node, peer) in [(&client, "ct110", "ct111"), (&server, "ct111", "ct110")] {
        assert_eq!(span.name, "POST /api/message");
        assert_eq!(span.resource["service.instance.id"], node);
        assert!(span.took_ns > 0);
        for (name, value) in [
            ("http.request.method", "POST"),
            ("http.response.status_code", "200"),
            ("mesh.peer", peer),
            ("mesh.agent", "grok"),
            ("mesh.outcome", "complete"),
        ] {
            assert_eq!(span.attributes[name], value, "{name} of {span:?}");
        }
    }
    assert_eq!(client.attributes["server.address"], "ct111.mesh");
    assert_eq!(client.attributes["mesh.attempts"], "1");
    assert_eq!(server.attributes["http.route"], "/api/message");
    assert!(server.attributes["network.peer.address"].starts_with("127."), "{server:?}");
    for hidden in ["secret", "hidden-token", "nobody's business", "user=7"] {
        assert!(!collector.saw(hidden), "{hidden} went to the collector");
    }
}

#[tokio::test]
async fn registryd_records_what_it_is_asked_by_peers_and_its_own_writes() {
    let mesh = Mesh::new();
    let host = Loopback::take();
    let collector = Collector::start(host.port(4318)).await;
    let (near, _far) = traced_pair(&mesh, &collector).await;
    near.get("/nodes/ct111/api/mesh").await;
    let server = collector.span("the sidecar's", is_of("mesh-proxy", "ct111", "/api/mesh")).await;
    let below = |span: &Span| span.parent == server.id;
    let registry = collector.span("registryd's", below).await;
    assert_eq!((registry.name.as_str(), &registry.trace_id), ("GET /api/mesh", &server.trace_id));
    assert_eq!(registry.resource["service.name"], "registryd");
    assert_eq!(registry.attributes["mesh.peer"], "ct110");
    let beat = |span: &Span| span.name == "registry update" && span.attributes["mesh.heartbeat"] == "true";
    let beat = collector.span("a heartbeat", beat).await;
    assert_eq!((beat.attributes["mesh.store"].as_str(), beat.parent.as_str()), ("file", ""));
}

#[tokio::test]
async fn a_failed_request_is_a_failed_span_and_one_that_is_not_sampled_is_none() {
    let mesh = Mesh::new();
    let host = Loopback::take();
    let collector = Collector::start(host.port(4318)).await;
    let (near, mut far) = traced_pair(&mesh, &collector).await;
    let unsampled = TRACEPARENT.replace("b7-01", "b7-00");
    web::send(near.outbound(), web::get_with("/agents/grok/quiet", &[("traceparent", &unsampled)])).await;
    assert_eq!(far.agent().last().all("traceparent"), [unsampled]);
    far.stop_agent().await;
    assert_eq!(near.get("/agents/grok/failed").await.status, 502);
    let server = collector.span("the called one's", is_of("mesh-proxy", "ct111", "/failed")).await;
    let client = collector.span("the caller's span", is_of("mesh-proxy", "ct110", "/failed")).await;
    assert_eq!(client.parent, "", "the trace begins there");
    assert_eq!((server.parent, &server.trace_id), (client.id, &client.trace_id));
    // The sidecar may still have had a connection that the agent was closing.
    let code = client.error.clone().unwrap();
    assert!(["backend_unreachable", "backend_failed"].contains(&code.as_str()), "{code}");
    for (error, attributes) in [(client.error, client.attributes), (server.error, server.attributes)] {
        assert_eq!(error.as_ref(), Some(&code));
        assert_eq!((&attributes["error.type"], &attributes["mesh.code"]), (&code, &code));
    }
    assert!(!collector.spans().iter().any(|span| is_of("mesh-proxy", "ct110", "/quiet")(span)));
    assert!(!collector.spans().iter().any(|span| is_of("mesh-proxy", "ct111", "/quiet")(span)));
}

/// The value of one of the sidecar's metrics.
async fn metric(admin: SocketAddr, name: &str) -> u64 {
    let text = web::get(admin, "/metrics").await.text();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).expect(name);
    line.parse().unwrap()
}

#[tokio::test]
async fn a_collector_that_is_away_holds_up_no_request_and_what_has_no_room_is_counted() {
    let mesh = Mesh::new();
    let host = Loopback::take();
    let (address, admin) = (host.port(4318), host.port(9901));
    let plan = mesh.node("ct110").agent("opus").with(|config| {
        config["telemetry"] = json!({"otlp": {"endpoint": format!("http://{address}"), "max_queue": 10}});
        config["proxy"]["admin"] = json!({"listen": admin.to_string()});
    });
    let mut node = plan.prepare().await;
    node.start_proxy().await;
    // Those that are on their way when it fails are held too.
    for number in 0..600 {
        let answer = node.get_from_peer(&mesh, "ct111", &format!("/request/{number}")).await;
        assert_eq!(answer.status, 200);
    }
    let told = ["WARN [Telemetry]", "takes no traces", "Connection refused"];
    node.proxy().wait_log(&told).await;
    assert_eq!(node.proxy().lines_with(&["takes no traces"]).len(), 1, "it is told once");
    let dropped = metric(admin, "mesh_proxy_spans_dropped_total").await;
    assert!((1..600).contains(&dropped), "{dropped} dropped");
    assert_eq!(metric(admin, "mesh_proxy_spans_exported_total").await, 0);

    // It takes what waited, and nothing is sent twice.
    let collector = Collector::start(address).await;
    node.proxy()
        .wait_log(&["INFO [Telemetry]", "takes traces again", &format!("{dropped} spans were dropped")])
        .await;
    let left = 600 - dropped;
    eventually("what waited is there", async || (collector.spans().len() as u64 == left).then_some(())).await;
    eventually("it is counted", async || {
        (metric(admin, "mesh_proxy_spans_exported_total").await == left).then_some(())
    })
    .await;
    assert_eq!(metric(admin, "mesh_proxy_spans_dropped_total").await, dropped);
}

#[tokio::test]
async fn the_last_spans_are_sent_before_the_end() {
    let mesh = Mesh::new();
    let host = Loopback::take();
    let collector = Collector::start(host.port(4318)).await;
    let headers = host_file(&mesh, "Authorization: Bearer hidden-token\n# a remark\n\nx-tenant: 7\n");
    let plan = mesh.node("ct110").agent("opus").with(|config| {
        config["telemetry"] = json!({"otlp": {"endpoint": collector.endpoint(), "headers_file": headers}});
    });
    let mut node = plan.prepare().await;
    node.start_proxy().await;
    node.get_from_peer(&mesh, "ct111", "/last").await;
    assert!(node.proxy().stop().await.success());
    assert!(collector.spans().iter().any(|span| is_of("mesh-proxy", "ct110", "/last")(span)));
    assert_eq!(collector.headers()["authorization"], "Bearer hidden-token");
    assert_eq!(collector.headers()["x-tenant"], "7");
    assert!(node.proxy().lines_with(&["hidden-token"]).is_empty());
}

#[tokio::test]
async fn a_collector_that_does_not_answer_holds_up_neither_requests_nor_the_end() {
    let mesh = Mesh::new();
    let host = Loopback::take();
    // Connections are accepted by the system, and nobody reads them.
    let _silent = mesh_tests::loopback::listen(host.port(4318)).await;
    let plan = mesh.node("ct110").agent("opus").with(|config| {
        config["telemetry"] = json!({"otlp": {"endpoint": format!("http://{}", host.port(4318))}});
    });
    let mut node = plan.prepare().await;
    node.start_proxy().await;
    assert_eq!(node.get_from_peer(&mesh, "ct111", "/asked").await.status, 200);
    assert!(node.proxy().stop().await.success());
}

fn host_file(mesh: &Mesh, content: &str) -> PathBuf {
    let path = mesh.folder().join("otlp-headers");
    std::fs::write(&path, content).unwrap();
    path
}

#[tokio::test]
async fn what_a_collector_refuses_is_dropped_and_what_it_cannot_take_now_is_not() {
    let mesh = Mesh::new();
    let host = Loopback::take();
    let admin = host.port(9901);
    let collector = Collector::start(host.port(4318)).await;
    let plan = mesh.node("ct110").agent("opus").with(|config| {
        config["telemetry"] = json!({"otlp": {"endpoint": collector.endpoint()}});
        config["proxy"]["admin"] = json!({"listen": admin.to_string()});
    });
    let mut node = plan.prepare().await;
    node.start_proxy().await;
    collector.answers(400);
    node.get_from_peer(&mesh, "ct111", "/refused").await;
    node.proxy().wait_log(&["WARN [Telemetry]", "it answered 400"]).await;
    eventually("it is counted", async || {
        (metric(admin, "mesh_proxy_spans_dropped_total").await == 1).then_some(())
    })
    .await;
    collector.answers(503);
    node.get_from_peer(&mesh, "ct111", "/later").await;
    eventually("it was asked", async || collector.headers().contains_key("content-type").then_some(())).await;
    collector.answers(0);
    collector.span("it came later", is_of("mesh-proxy", "ct110", "/later")).await;
    assert_eq!(metric(admin, "mesh_proxy_spans_dropped_total").await, 1);
}

/// A node that sends its spans to `collector`, and trusts what the CA vouches for.
async fn over_tls(mesh: &Mesh, node: &str, collector: &Collector, ca: &Ca) -> Node {
    let path = mesh.folder().join(format!("{node}-collector-ca.pem"));
    std::fs::write(&path, ca.bundle_pem()).unwrap();
    let plan = mesh.node(node).agent("opus").with(|config| {
        config["telemetry"] = json!({"otlp": {"endpoint": collector.endpoint(), "ca_path": path}});
    });
    let mut node = plan.prepare().await;
    node.start_proxy().await;
    node
}

#[tokio::test]
async fn a_collector_with_tls_is_trusted_as_its_ca_says() {
    let mesh = Mesh::new();
    let (ca, host) = (Ca::new(), Loopback::take());
    let spec = Spec { cn: None, dns: Vec::new(), ips: vec![host.ip()], ..Spec::node("collector") };
    let collector = Collector::with_tls(host.port(4318), &ca.issue(&spec)).await;
    let node = over_tls(&mesh, "ct110", &collector, &ca).await;
    assert_eq!(node.get_from_peer(&mesh, "ct111", "/safe").await.status, 200);
    collector.span("it came over TLS", is_of("mesh-proxy", "ct110", "/safe")).await;
    assert_eq!(collector.refused(), 0);
}

#[tokio::test]
async fn a_collector_with_a_certificate_that_is_not_trusted_gets_nothing() {
    let mesh = Mesh::new();
    let ca = Ca::new();
    let of = |ip| Spec { cn: None, dns: Vec::new(), ips: vec![ip], ..Spec::node("collector") };
    let (one, other) = (Loopback::take(), Loopback::take());
    let foreign = Collector::with_tls(one.port(4318), &Ca::new().issue(&of(one.ip()))).await;
    let misnamed = Collector::with_tls(other.port(4318), &ca.issue(&of(one.ip()))).await;
    for (name, collector, reason) in
        [("ct110", &foreign, "UnknownIssuer"), ("ct112", &misnamed, "certificate not valid for name")]
    {
        let mut node = over_tls(&mesh, name, collector, &ca).await;
        assert_eq!(node.get_from_peer(&mesh, "ct111", "/secret").await.status, 200);
        eventually("it tried again", async || (collector.refused() >= 2).then_some(())).await;
        let told = "WARN [Telemetry]";
        let line = node.proxy().wait_log(&[told, "takes no traces"]).await;
        assert!(line.contains(reason) && line.contains("telemetry.otlp.ca_path"), "{line}");
        assert_eq!(node.proxy().lines_with(&[told]).len(), 1);
        assert!(collector.spans().is_empty() && collector.headers().is_empty() && !collector.saw("secret"));
    }
}

//! What a supervisor on the host asks the sidecar: alive, ready, figures.

use mesh_tests::mesh::Mesh;
use mesh_tests::tls::Client;
use mesh_tests::{eventually, web};
use serde_json::json;

#[tokio::test]
async fn health_readiness_and_metrics() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").agent("opus");
    let listen = format!("{}:3002", plan.ip());
    let mut node = plan.with(|config| config["proxy"]["admin"] = json!({"listen": listen})).prepare().await;
    node.start_proxy().await;
    let admin = node.port(3002);
    assert_eq!(web::get(admin, "/healthz").await.status, 200);
    let answer = web::get(admin, "/readyz").await;
    assert!(answer.status == 503 && answer.text().contains("registryd"), "{}", answer.text());
    node.start_registryd().await;
    eventually("ready", async || (web::get(admin, "/readyz").await.status == 200).then_some(())).await;
    let count = async |name: &str| -> u64 {
        let metrics = web::get(admin, "/metrics").await.text();
        let name = format!("mesh_proxy_{name}_total ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)).expect(&name).parse().unwrap()
    };
    let before = (count("inbound_requests").await, count("inbound_connections").await);
    node.get_from_peer(&mesh, "ct111", "/x").await;
    assert_eq!(
        (count("inbound_requests").await, count("inbound_connections").await),
        (before.0 + 1, before.1 + 1)
    );
    Client::anonymous(&mesh.ca).refused(node.inbound(), "ct110").await;
    eventually("the refusal is counted", async || {
        (count("inbound_handshake_failures").await == 1).then_some(())
    })
    .await;
    // Its own node is a peer like any other: one connection for all requests.
    let (dials, errors) = (count("outbound_dials").await, count("sidecar_errors").await);
    for _ in 0..10 {
        assert_eq!(node.get("/nodes/ct110/x").await.status, 200);
    }
    node.get("/nodes/ct199/x").await.problem(404, "unknown_node");
    assert_eq!((count("outbound_dials").await, count("sidecar_errors").await), (dials + 1, errors + 1));
    let metrics = web::get(admin, "/metrics").await;
    assert_eq!(
        metrics.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    for line in metrics.text().lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("mesh_") && value.parse::<f64>().is_ok(), "{line}");
    }
    for (series, most) in [
        ("roster_age_seconds ", 60.0),
        ("worker_lag_seconds ", 60.0),
        ("certificate_not_after_timestamp_seconds ", 1e10),
        ("slots_max{limit=\"backend.max_requests\"} ", 1e6),
        ("slots_used{limit=\"limits.max_connections\"} ", 100.0),
        ("connections_total{direction=\"inbound\",side=\"downstream\"} ", 100.0),
        (
            "requests_total{direction=\"outbound\",peer=\"ct110\",agent=\"\",class=\"2xx\",outcome=\"complete\"} ",
            100.0,
        ),
    ] {
        let text = metrics.text();
        let value = text.lines().find_map(|line| line.strip_prefix("mesh_proxy_")?.strip_prefix(series));
        let value: f64 = value.unwrap_or_else(|| panic!("no {series} in {text}")).parse().unwrap();
        assert!((0.0..=most).contains(&value), "{series}{value}");
    }
    assert!(metrics.text().ends_with("# EOF\n"));
    assert_eq!(web::get(admin, "/").await.status, 404);
}

/// What strangers, peers and local programs make up becomes no series.
#[tokio::test]
async fn the_metrics_do_not_grow_with_what_others_say() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").agent("opus");
    let listen = format!("{}:3002", plan.ip());
    let mut node = plan.with(|config| config["proxy"]["admin"] = json!({"listen": listen})).start().await;
    let admin = node.port(3002);
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111"));
    let round = async |number: usize| {
        let made_up = format!("zzz{number}");
        let inbound = web::get_with(&format!("/{made_up}?{made_up}"), &[("x-mesh-agent", &made_up)]);
        client.send(node.inbound(), "ct110", inbound).await;
        node.get(&format!("/nodes/{made_up}/x")).await;
        node.get(&format!("/agents/{made_up}/x")).await;
        node.get(&format!("http://{made_up}.example.org/")).await;
        let headers = [("x-mesh-node", "ct110"), ("x-mesh-agent", &*made_up)];
        web::send(node.outbound(), web::get_with("/x", &headers)).await;
        web::raw(node.inbound(), made_up.as_bytes()).await;
    };
    let series = async || {
        let metrics = web::get(admin, "/metrics").await.text();
        let metrics = metrics.lines().filter(|line| !line.starts_with('#'));
        let mut series: Vec<_> = metrics.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect();
        series.sort();
        series
    };
    for number in 0..3 {
        round(number).await;
    }
    let before = series().await;
    assert!(!before.iter().any(|series| series.contains("zzz")), "{before:?}");
    for number in 3..20 {
        round(number).await;
    }
    assert_eq!(series().await, before);
    assert!(node.proxy().is_running());
}

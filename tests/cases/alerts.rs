//! What alerts, the dashboard and the documents say of metrics is what the daemons give.

use std::collections::BTreeSet;

use mesh_proxy::metrics::METRICS;
use mesh_tests::mesh::Mesh;
use mesh_tests::{eventually, web};
use serde_json::json;

const RULES: &str = include_str!("../../deploy/prometheus/mesh.rules.yaml");
const RULE_TESTS: &str = include_str!("../../deploy/prometheus/mesh.rules.test.yaml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/mesh.json");
const DOCUMENT: &str = include_str!("../../deploy/docs/metrics.md");
const TELEMETRY: &str = include_str!("../../deploy/docs/telemetry.md");

/// The metrics that registryd gives only in some states.
const SOMETIMES: [&str; 2] = ["mesh_lease_age_seconds", "mesh_lease_ttl_seconds"];

/// The names that a text has of metrics, as queries have them.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("mesh_") && word.len() > "mesh_".len()).map(str::to_owned).collect()
}

/// What registryd gives, as name and kind.
async fn of_registryd() -> BTreeSet<(String, String)> {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").agent("opus");
    let listen = format!("{}:9902", plan.ip());
    let mut node =
        plan.with(|config| config["registryd"]["metrics"] = json!({"listen": listen})).prepare().await;
    node.start_registryd().await;
    let metrics = node.port(9902);
    let text = eventually("a heartbeat was written", async || {
        let text = web::get(metrics, "/metrics").await.text();
        text.contains("mesh_heartbeat_age_seconds").then_some(text)
    })
    .await;
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    kinds.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

#[tokio::test]
async fn every_metric_that_is_named_exists() {
    let registryd = of_registryd().await;
    let mut known: BTreeSet<String> = registryd.iter().map(|(name, _)| name.clone()).collect();
    known.extend(SOMETIMES.map(str::to_owned));
    for metric in METRICS.definitions() {
        match metric.kind {
            "histogram" => {
                known.extend(["bucket", "sum", "count"].map(|part| format!("{}_{part}", metric.name)));
            }
            _ => {
                known.insert(metric.name.clone());
            }
        }
    }
    for (what, text) in [("the rules", RULES), ("their tests", RULE_TESTS), ("the dashboard", DASHBOARD)] {
        let unknown: Vec<_> = named(text).into_iter().filter(|name| !known.contains(name)).collect();
        assert!(unknown.is_empty(), "{what} name what neither daemon gives: {unknown:?}");
    }

    // The table of registryd has a row for each of its metrics, and no other.
    let rows = DOCUMENT.lines().filter(|line| line.starts_with("| `mesh_") && !line.contains("`mesh_proxy_"));
    let documented: BTreeSet<(String, String)> = rows
        .map(|row| {
            let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
            (cells[1].to_owned(), cells[2].to_owned())
        })
        .filter(|(name, _)| !SOMETIMES.contains(&name.as_str()))
        .collect();
    assert_eq!(documented, registryd);
}

/// Each alert says what to do somewhere: in its description, and in the document, which lists them all.
#[test]
fn every_alert_is_in_the_document() {
    let alerts = RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let alerts: BTreeSet<_> = alerts.collect();
    let rows = TELEMETRY.lines().filter_map(|line| line.strip_prefix("| `Mesh")?.split_once('`'));
    let listed: Vec<String> = rows.map(|(name, _)| format!("Mesh{name}")).collect();
    assert_eq!(listed.iter().map(String::as_str).collect::<BTreeSet<_>>(), alerts);
    assert!(RULE_TESTS.contains("a healthy mesh raises none"));
}

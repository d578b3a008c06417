//! What a supervisor on the host asks the sidecar: alive, ready, figures.

use mesh_tests::mesh::Mesh;
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
    node.get_from_peer(&mesh, "ct111", "/x").await;
    let metrics = web::get(admin, "/metrics").await;
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for line in metrics.text().lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("mesh_") && value.parse::<f64>().is_ok(), "{line}");
    }
    assert_eq!(web::get(admin, "/").await.status, 404);
}

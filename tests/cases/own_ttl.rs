//! A node is judged by the threshold that it publishes, not by the reader's.

use std::time::Duration;

use mesh_tests::eventually;
use mesh_tests::mesh::Mesh;
use serde_json::json;

#[tokio::test]
async fn a_reader_with_a_short_threshold_makes_nobody_stale() {
    let mesh = Mesh::new();
    let timed = |beat: u64, stale: u64| {
        move |config: &mut serde_json::Value| {
            config["mesh"]["heartbeat_interval_ms"] = json!(beat);
            config["mesh"]["stale_threshold_ms"] = json!(stale);
        }
    };
    let (mut slow, mut quick) = (
        mesh.node("ct110").with(timed(4000, 12_000)).prepare().await,
        mesh.node("ct111").with(timed(200, 800)).prepare().await,
    );
    slow.start_registryd().await;
    quick.start_registryd().await;
    eventually("both are known", async || {
        (quick.local("/mesh/nodes").await?.json().as_array()?.len() == 2).then_some(())
    })
    .await;
    assert_eq!(mesh.entry("ct110").unwrap()["metadata"]["mesh"]["ttlMs"], 12_000);
    // Several times the reader's own threshold.
    for _ in 0..20 {
        let nodes = quick.local("/mesh/nodes?node=ct110").await.unwrap().json();
        assert_eq!(nodes[0]["status"], "online", "{nodes}");
        assert_eq!(mesh.entry("ct110").unwrap()["status"], "online");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    // And the slow reader notices at the other's pace.
    quick.registryd().kill();
    let killed = std::time::Instant::now();
    eventually("ct111 is offline", async || {
        (slow.local("/mesh/nodes?node=ct111").await?.json()[0]["status"] == "offline").then_some(())
    })
    .await;
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
}

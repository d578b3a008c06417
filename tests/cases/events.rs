//! Changes of the mesh as server-sent events on the outbound port, and `meshctl` following them.

use std::process::Command;

use http::Method;
use hyper::body::Incoming;
use mesh_tests::eventually;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::{Daemon, text};
use mesh_tests::web;
use serde_json::{Value, json};

/// A reader of `/mesh/events`.
struct Reader {
    body: Incoming,
    pending: String,
    /// What a client sends as `Last-Event-ID` when it comes back.
    last_id: String,
}

impl Reader {
    async fn open(node: &Node, last_id: Option<&str>) -> Self {
        let mut request = web::request(Method::GET, "/mesh/events");
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        let response = web::open(node.outbound(), request.body(web::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            body: response.into_body(),
            pending: String::new(),
            last_id: last_id.unwrap_or_default().into(),
        }
    }

    /// The next event's name and data; comments are skipped, ids remembered.
    async fn next(&mut self) -> (String, Value) {
        loop {
            while let Some((block, rest)) = self.pending.split_once("\n\n") {
                let field = |name: &str| {
                    block
                        .lines()
                        .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
                };
                let (id, event, data) = (field("id"), field("event"), field("data"));
                self.pending = rest.to_owned();
                self.last_id = id.unwrap_or(std::mem::take(&mut self.last_id));
                if let (Some(event), Some(data)) = (event, data) {
                    return (event, serde_json::from_str(&data).unwrap());
                }
            }
            let data = web::next_data(&mut self.body).await.expect("the stream of events ended");
            self.pending.push_str(&text(&data));
        }
    }

    /// Reads up to this event of this node; what else happens meanwhile is skipped.
    async fn until(&mut self, event: &str, node: &str) -> Value {
        loop {
            let (name, data) = self.next().await;
            if name == event && data["node"] == node {
                assert_eq!(data["event"], event);
                return data;
            }
        }
    }
}

#[tokio::test]
async fn a_reader_that_comes_back_gets_exactly_what_it_missed() {
    let mesh = Mesh::new();
    let mut node = mesh.start("ct110", "opus").await;
    let settled = async |node: &Node, name: &str| {
        eventually("it is known", async || {
            let nodes = node.get(&format!("/mesh/nodes?node={name}")).await;
            (nodes.status == 200 && nodes.json().as_array()?.len() == 1).then_some(())
        })
        .await;
    };
    // Even a reader that saw no event can resume: it was told where it began.
    let mut silent = Reader::open(&node, None).await;
    let start = text(&web::next_data(&mut silent.body).await.unwrap());
    silent.last_id = start.lines().find_map(|line| line.strip_prefix("id: ")).expect("an id").into();
    let mut first = Reader::open(&node, None).await;
    mesh.register("ct150", "127.1.2.3", 3000, &["scout"]);
    let joined = first.until("joined", "ct150").await;
    assert_eq!((&joined["status"], &joined["agents"]), (&json!("online"), &json!(["scout"])));
    let (beginning, last_id) = (silent.last_id.clone(), first.last_id.clone());
    drop((first, silent));

    mesh.register("ct151", "127.1.2.4", 3000, &[]);
    settled(&node, "ct151").await;
    mesh.amend("ct150", |entry| entry["agents"] = json!(["ranger"]));
    eventually("the change is known", async || {
        (!node.get("/mesh/nodes?agent=ranger").await.json().as_array()?.is_empty()).then_some(())
    })
    .await;
    let mut again = Reader::open(&node, Some(&last_id)).await;
    mesh.register("ct152", "127.1.2.5", 3000, &[]);
    let mut told = Vec::new();
    for _ in 0..3 {
        let (event, data) = again.next().await;
        told.push(format!("{event} {}", data["node"].as_str().unwrap()));
    }
    assert_eq!(told, ["joined ct151", "updated ct150", "joined ct152"]);
    let mut silent = Reader::open(&node, Some(&beginning)).await;
    assert_eq!(silent.next().await.1["node"], "ct150");

    // Another run cannot know what happened in between: it says so, and goes on.
    let last_id = again.last_id.clone();
    assert!(node.registryd().stop().await.success());
    node.start_registryd().await;
    for id in [last_id.as_str(), "nonsense"] {
        let mut late = Reader::open(&node, Some(id)).await;
        let (event, data) = late.next().await;
        assert_eq!(event, "missed");
        assert!(data["detail"].as_str().unwrap().contains("/mesh/nodes"), "{data}");
        let name = format!("ct16{}", id.len() % 10);
        mesh.register(&name, "127.1.2.6", 3000, &[]);
        late.until("joined", &name).await;
    }
}

#[tokio::test]
async fn every_kind_of_change_is_told() {
    let mesh = Mesh::new();
    let quick = |config: &mut Value| {
        config["mesh"]["heartbeat_interval_ms"] = json!(300);
        config["mesh"]["stale_threshold_ms"] = json!(6000);
    };
    let one = mesh.node("ct110").agent("opus").with(quick).start().await;
    let mut events = Reader::open(&one, None).await;
    let mut two = mesh.node("ct111").agent("grok").with(quick).start().await;
    events.until("joined", "ct111").await;
    two.stop_agent().await;
    // The sidecar finds out when somebody asks for the agent, at the latest.
    two.get("/nodes/ct111/x").await;
    assert_eq!(events.until("degraded", "ct111").await["status"], "degraded");
    two.start_agent("grok").await;
    assert_eq!(events.until("recovered", "ct111").await["status"], "online");
    mesh.register("ct150", "127.1.2.3", 3000, &[]);
    events.until("joined", "ct150").await;
    mesh.amend("ct150", |entry| entry["agents"] = json!(["scout"]));
    assert_eq!(events.until("updated", "ct150").await["agents"], json!(["scout"]));
    two.registryd().kill();
    assert_eq!(events.until("stale", "ct111").await["status"], "offline");
    two.start_registryd().await;
    events.until("recovered", "ct111").await;
    // A goodbye is for a node whose sidecar has stopped too.
    two.proxy().stop().await;
    assert!(two.registryd().stop().await.success());
    assert_eq!(events.until("left", "ct111").await["status"], "offline");
}

fn follow(node: &Node, arguments: &[&str]) -> Daemon {
    let mut command: Command = node.command("meshctl");
    Daemon::start("meshctl", command.args(arguments))
}

#[tokio::test]
async fn meshctl_shows_changes_live() {
    let mesh = Mesh::new();
    let mut node = mesh.start("ct110", "opus").await;
    let (mut watch, mut nodes) = (follow(&node, &["watch"]), follow(&node, &["nodes", "--watch"]));
    nodes.wait_log(&["ct110 (here)", "online"]).await;
    // Whether it is connected shows only in what it prints, so the mesh changes until it does.
    let mut count = 0;
    eventually("meshctl watch follows", async || {
        count += 1;
        mesh.register("ct150", "127.1.2.3", 3000, &[&format!("scout-{count}")]);
        mesh.amend("ct150", |_| {});
        (!watch.lines_with(&["ct150"]).is_empty()).then_some(())
    })
    .await;
    mesh.register("ct151", "127.1.2.4", 3007, &["ranger"]);
    watch.wait_log(&["joined", "ct151", "online"]).await;
    nodes.wait_log(&["ct151", "ranger", "3007"]).await;
    mesh.amend("ct151", |entry| entry["agents"] = json!(["tracker"]));
    watch.wait_log(&["updated", "ct151"]).await;
    nodes.wait_log(&["ct151", "tracker"]).await;

    // Both outlive a restart of registryd; the one that has to says that it cannot know everything.
    node.registryd().kill();
    node.start_registryd().await;
    watch.wait_log(&["missed", "read /mesh/nodes"]).await;
    mesh.register("ct152", "127.1.2.5", 3000, &[]);
    watch.wait_log(&["joined", "ct152"]).await;
    nodes.wait_log(&["ct152"]).await;
}

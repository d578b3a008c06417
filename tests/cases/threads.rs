//! A sidecar with several threads (`proxy.threads`): each carries requests in both directions, and what all of them do
//! adds up.

use http::Method;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::StoppedThread;
use mesh_tests::tls::Client;
use mesh_tests::web;
use mesh_tests::{eventually, within};
use serde_json::{Value, json};

const WORKERS: [&str; 2] = ["worker-0", "worker-1"];

/// A node with two threads.
async fn with_two_threads(mesh: &Mesh, change: impl FnOnce(&mut Value)) -> Node {
    let plan = mesh.node("ct110").agent("opus");
    let listen = format!("{}:3002", plan.ip());
    let plan = plan.with(|config| {
        config["proxy"]["threads"] = json!(2);
        config["proxy"]["admin"] = json!({"listen": listen});
        config["proxy"]["timeouts"]["drain_ms"] = json!(25_000);
    });
    plan.with(change).start().await
}

/// While the value lives, only the other thread takes new connections.
fn stopped(node: &Node, worker: &str) -> StoppedThread {
    StoppedThread::named(node.proxy.as_ref().unwrap().pid(), worker)
}

/// The sum of the series that contain all `labels`.
async fn sum(node: &Node, metric: &str, labels: &[&str]) -> u64 {
    let text = web::get(node.port(3002), "/metrics").await.text();
    let series = text.lines().filter(|line| {
        line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    series.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn each_carries_delegations_in_both_directions_and_their_figures_add_up() {
    let mesh = Mesh::new();
    let (node, other) = tokio::join!(with_two_threads(&mesh, |_| ()), mesh.start("ct111", "grok"));
    tokio::join!(node.reaches("ct111"), other.reaches("ct110"));
    let task = json!({"fromAgent": "opus", "message": "hello"});
    for worker in WORKERS {
        let others_work = stopped(&node, worker);
        for _ in 0..10 {
            let answer = node.post("/agents/grok/api/message", &task).await;
            assert_eq!(answer.json()["response"], "grok heard: hello", "without {worker}");
            let request = web::request(Method::POST, "/api/message").body(web::full(task.to_string()));
            let answer = node.from_peer(&mesh, "ct112", request.unwrap()).await;
            assert_eq!(answer.json()["response"], "opus heard: hello", "without {worker}");
        }
        drop(others_work);
    }
    // From sidecar to sidecar, whichever thread has the connection.
    for _ in 0..10 {
        let answer = other.post("/agents/opus/api/message", &task).await;
        assert_eq!(answer.json()["response"], "opus heard: hello");
    }
    for (labels, expected) in [
        (&["direction=\"outbound\"", "peer=\"ct111\"", "agent=\"grok\""][..], 20),
        (&["direction=\"inbound\"", "peer=\"ct112\""][..], 20),
        (&["direction=\"inbound\"", "peer=\"ct111\"", "agent=\"opus\""][..], 10),
    ] {
        let done = [labels, &["class=\"2xx\"", "outcome=\"complete\""]].concat();
        eventually(&format!("{expected} of {labels:?}"), async || {
            (sum(&node, "mesh_proxy_requests_total", &done).await == expected).then_some(())
        })
        .await;
        assert_eq!(sum(&node, "mesh_proxy_requests_total", labels).await, expected, "{labels:?}");
    }
    let upstream = ["direction=\"outbound\"", "side=\"upstream\""];
    assert_eq!(sum(&node, "mesh_proxy_connections_total", &upstream).await, 2, "one for each thread");
    eventually("none is under way", async || {
        (sum(&node, "mesh_proxy_requests_in_flight", &[]).await == 0).then_some(())
    })
    .await;
    assert_eq!(other.agent().requests().iter().filter(|seen| seen.target == "/api/message").count(), 20);
}

#[tokio::test]
async fn a_limit_holds_for_all_of_them_together() {
    let mesh = Mesh::new();
    let limits = |config: &mut Value| config["proxy"]["limits"] = json!({"max_requests_per_peer": 3});
    let node = with_two_threads(&mesh, limits).await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct112")).alpn(&["http/1.1"]);
    let hang = || web::request(Method::GET, "/hang").body(web::empty()).unwrap();
    let mut hanging = Vec::new();
    // Two on one thread, one on the other.
    for worker in [WORKERS[0], WORKERS[0], WORKERS[1]] {
        let others_work = stopped(&node, worker);
        let mut connection = client.http(node.inbound(), "ct110").await;
        hanging.push(tokio::spawn(async move { connection.open(hang()).await.map(drop) }));
        eventually("the agent has it", async || {
            (node.agent().requests().len() == hanging.len()).then_some(())
        })
        .await;
        drop(others_work);
    }
    for worker in WORKERS {
        let others_work = stopped(&node, worker);
        let refused = node.from_peer(&mesh, "ct112", hang()).await;
        refused.problem(429, "too_many_requests");
        let other_peer = node.get_from_peer(&mesh, "ct113", "/x").await;
        assert_eq!(other_peer.status, 200);
        drop(others_work);
    }
    hanging.pop().unwrap().abort();
    node.agent().gone().await;
    eventually("its place is free, for both threads", async || {
        let answer = node.get_from_peer(&mesh, "ct112", "/x").await;
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn told_to_stop_it_waits_for_the_requests_of_each() {
    let mesh = Mesh::new();
    let (mut node, other) = tokio::join!(with_two_threads(&mesh, |_| ()), mesh.start("ct111", "grok"));
    node.reaches("ct111").await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct112")).alpn(&["http/1.1"]);
    let stream = |target: &str| web::request(Method::GET, target).body(web::empty()).unwrap();
    let mut open = Vec::new();
    for worker in WORKERS {
        let others_work = stopped(&node, worker);
        let mut connection = client.http(node.inbound(), "ct110").await;
        let (inbound, its_answer) = tokio::join!(connection.open(stream("/stream")), node.agent().stream());
        open.push((inbound.unwrap().into_body(), its_answer));
        let (outbound, its_answer) =
            tokio::join!(web::open(node.outbound(), stream("/nodes/ct111/stream")), other.agent().stream());
        open.push((outbound.unwrap().into_body(), its_answer));
        drop(others_work);
    }
    node.proxy().signal(libc::SIGTERM);
    node.proxy().wait_log(&["[Mesh] stopping; 2 inbound and 2 outbound requests finish first"]).await;
    for (mut body, answer) in open {
        answer.send(web::piece("the rest")).unwrap();
        web::expect_data(&mut body, "the rest").await;
        drop(answer);
        assert_eq!(web::next_data(&mut body).await, None);
    }
    assert!(within("the sidecar's end", node.proxy().exited()).await.success());
    assert!(node.proxy().lines_with(&["are cut off"]).is_empty());
}

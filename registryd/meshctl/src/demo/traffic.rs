//! Everyday traffic between the demo's agents: short requests, streamed answers, and failures now and then.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use http_body_util::BodyExt;
use mesh_client::Daemon;
use mesh_shared::message::MessageRequest;
use tokio::time::sleep;

use crate::demo::Node;

/// Factors for the time between two requests of one kind, so that requests come irregularly.
const RHYTHM: [f64; 5] = [0.6, 1.3, 0.9, 1.7, 0.5];
/// How long agents take, in ms.
const THINKING: [u32; 7] = [20, 45, 30, 180, 25, 60, 420];

/// One kind of request, made by a node again and again.
struct Habit {
    node: usize,
    every: Duration,
    what: What,
}

enum What {
    /// A path below the node's outbound port.
    Get(&'static str),
    /// The same, of which the agent is told how long to take.
    Think(&'static str),
    /// A task for the node's own agent.
    Task(&'static str),
}

/// Keeps requests going between the nodes; does not return.
pub async fn flow(nodes: &[Node]) {
    let habit = |node, every_ms, what| Habit { node, every: Duration::from_millis(every_ms), what };
    let habits = [
        habit(0, 700, What::Think("/agents/grok/api/think")),
        habit(0, 1_100, What::Think("/agents/scribe/api/think")),
        habit(1, 900, What::Think("/agents/opus/api/think")),
        habit(2, 1_300, What::Think("/agents/grok/api/think")),
        habit(3, 1_700, What::Think("/agents/scribe/api/think")),
        habit(0, 3_000, What::Task("@grok Which of these two proofs is the shorter one?")),
        habit(0, 5_000, What::Task("@grok @scribe Write down what we have found out.")),
        habit(0, 2_000, What::Get("/agents/grok/api/story/24")),
        habit(1, 3_000, What::Get("/agents/scribe/api/story/90")),
        habit(3, 4_000, What::Get("/agents/opus/api/story/12")),
        habit(2, 6_000, What::Get("/nodes/ct113/api/story/40")),
        habit(1, 7_000, What::Get("/agents/scribe/api/flaky")),
        habit(2, 11_000, What::Get("/nodes/ct113/api/admin/keys")),
        habit(0, 19_000, What::Get("/agents/nobody/api/message")),
    ];
    join_all(habits.iter().filter_map(|habit| Some(repeat(habit, nodes.get(habit.node)?)))).await;
}

async fn repeat(habit: &Habit, node: &Node) {
    let mut count = 0;
    loop {
        sleep(habit.every.mul_f64(RHYTHM[count % RHYTHM.len()])).await;
        // What becomes of it shows on the dashboard.
        let _ = once(habit, node, THINKING[count % THINKING.len()]).await;
        count += 1;
    }
}

async fn once(habit: &Habit, node: &Node, thinking_ms: u32) -> Option<()> {
    let sidecar = Daemon::Sidecar(node.outbound);
    let none = HeaderMap::new;
    let answer = match habit.what {
        What::Get(path) => sidecar.open(Method::GET, path, none(), Bytes::new()).await,
        What::Think(path) => {
            sidecar.open(Method::GET, &format!("{path}/{thinking_ms}"), none(), Bytes::new()).await
        }
        What::Task(message) => {
            let task = MessageRequest {
                from_agent: "you".into(),
                message: message.into(),
                ..MessageRequest::default()
            };
            let mut headers = none();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            let body = serde_json::to_vec(&task).ok()?;
            Daemon::Agent(node.backend).open(Method::POST, "/api/message", headers, body.into()).await
        }
    };
    let mut body = answer.ok()?.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    Some(())
}

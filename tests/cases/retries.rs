//! Requests that are sent again because nothing of them was processed, and those that are not: a task is done once.

use http::Method;
use http_body_util::BodyExt;
use mesh_tests::by_hand::ByHand;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::web::{self, Answer, Body};
use mesh_tests::within;
use tokio::task::JoinHandle;

/// Codes of errors (RFC 9113, section 7).
const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// A node, and a peer that hosts scout.
async fn node_and_peer(mesh: &Mesh) -> (Node, ByHand) {
    let peer = ByHand::start(mesh, "ct150", &["scout"]).await;
    (mesh.start("ct110", "opus").await, peer)
}

/// A task on its way to scout.
fn post(node: &Node, body: Body) -> JoinHandle<Answer> {
    let outbound = node.outbound();
    let request = web::request(Method::POST, "/agents/scout/task").body(body).unwrap();
    tokio::spawn(async move { web::send(outbound, request).await })
}

async fn answer_to(task: JoinHandle<Answer>) -> Answer {
    within("the answer to the task", task).await.unwrap()
}

/// Text in which every missing, doubled or moved byte shows.
fn text(bytes: usize) -> Vec<u8> {
    (0..).flat_map(|number| format!("{number};").into_bytes()).take(bytes).collect()
}

/// Checks that no request came in between: the next one that the peer gets is the one that is sent now.
async fn nothing_else_came(node: &Node, peer: &mut ByHand) {
    let marker = post(node, web::full("the next task"));
    let mut asked = peer.asked().await;
    assert_eq!(mesh_tests::process::text(&asked.body().await), "the next task");
    asked.answer("done");
    assert_eq!(answer_to(marker).await.text(), "done");
}

#[tokio::test]
async fn a_task_that_the_peer_refuses_is_sent_again_whole() {
    let mesh = Mesh::new();
    let (mut node, mut peer) = node_and_peer(&mesh).await;
    let body = text(60_000);
    let task = post(&node, web::full(body.clone()));
    let mut first = peer.asked().await;
    assert!(first.body().await == body);
    first.reset(REFUSED_STREAM);
    let mut second = peer.asked().await;
    assert!(second.body().await == body, "what was sent again is something else");
    second.answer("done");
    let answer = answer_to(task).await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "done"));
    assert_eq!(answer.header("x-mesh-served-by"), Some("ct150"));
    nothing_else_came(&node, &mut peer).await;
    node.proxy()
        .wait_log(&["INFO [Outbound] Request ", "POST /task", " bytes_in=60000 ", " attempts=2"])
        .await;
}

#[tokio::test]
async fn a_task_behind_the_last_stream_of_a_connection_is_sent_again_on_another_one() {
    let mesh = Mesh::new();
    let (node, mut peer) = node_and_peer(&mesh).await;
    let earlier = post(&node, web::full("the earlier task"));
    let mut bystander = peer.asked().await;
    bystander.body().await;
    let body = text(60_000);
    let task = post(&node, web::full(body.clone()));
    let mut first = peer.asked().await;
    assert_eq!((bystander.connection, first.connection), (1, 1));
    assert!(first.body().await == body);
    first.go_away(bystander.stream, NO_ERROR);
    let mut second = peer.asked().await;
    assert_eq!(second.connection, 2);
    assert!(second.body().await == body, "what was sent again is something else");
    second.answer("done");
    assert_eq!(answer_to(task).await.text(), "done");
    // What the peer had taken ends where it was.
    bystander.answer("done before");
    assert_eq!(answer_to(earlier).await.text(), "done before");
    nothing_else_came(&node, &mut peer).await;
    assert_eq!(peer.connections(), 2);
}

#[tokio::test]
async fn what_has_not_come_yet_follows_in_the_second_attempt() {
    let mesh = Mesh::new();
    let (node, mut peer) = node_and_peer(&mesh).await;
    let body = text(300_000);
    let (sender, coming) = web::channel();
    let task = post(&node, coming);
    sender.send(web::piece(body[..1_000].to_vec())).unwrap();
    let mut first = peer.asked().await;
    assert!(first.piece().await.unwrap() == body[..1_000]);
    first.reset(REFUSED_STREAM);
    let mut second = peer.asked().await;
    assert!(second.piece().await.unwrap() == body[..1_000]);
    for rest in body[1_000..].chunks(50_000) {
        sender.send(web::piece(rest.to_vec())).unwrap();
    }
    drop(sender);
    assert!(second.body().await == body[1_000..]);
    second.answer("done");
    assert_eq!(answer_to(task).await.text(), "done");
    nothing_else_came(&node, &mut peer).await;
}

#[tokio::test]
async fn a_task_of_which_too_much_has_gone_out_is_the_callers_to_repeat() {
    let mesh = Mesh::new();
    let (node, mut peer) = node_and_peer(&mesh).await;
    for go_away in [false, true] {
        let body = text(200_000);
        let task = post(&node, web::full(body.clone()));
        let mut only = peer.asked().await;
        assert!(only.body().await == body);
        if go_away {
            only.go_away(only.stream - 2, NO_ERROR);
        } else {
            only.reset(REFUSED_STREAM);
        }
        let answer = answer_to(task).await;
        answer.problem(502, "peer_failed");
        // Nothing of it was processed.
        assert_eq!(answer.header("x-mesh-retryable"), Some("true"));
        assert_eq!(answer.header("x-should-retry"), None);
        nothing_else_came(&node, &mut peer).await;
    }
}

#[tokio::test]
async fn a_task_that_is_refused_again_and_again_is_given_back_after_three_attempts() {
    let mesh = Mesh::new();
    let (node, mut peer) = node_and_peer(&mesh).await;
    let task = post(&node, web::full("a task"));
    for _ in 0..3 {
        let mut asked = peer.asked().await;
        assert_eq!(asked.body().await, b"a task");
        asked.reset(REFUSED_STREAM);
    }
    let answer = answer_to(task).await;
    answer.problem(502, "peer_failed");
    assert_eq!(answer.header("x-mesh-retryable"), Some("true"));
    nothing_else_came(&node, &mut peer).await;
}

#[tokio::test]
async fn what_one_node_refuses_another_one_does() {
    let mesh = Mesh::new();
    let mut refusing = ByHand::start(&mesh, "ct150", &["scout"]).await;
    let (other, _address) = mesh.peer("ct151", &["scout"]).await;
    let node = mesh.start("ct110", "opus").await;
    let refusals = tokio::spawn(async move {
        for refused in 0.. {
            let mut asked = refusing.asked().await;
            match asked.body().await {
                body if body == b"the last" => return (refused, asked.answer("done")),
                _ => asked.reset(REFUSED_STREAM),
            }
        }
        unreachable!()
    });
    // Some sessions belong to the node that refuses.
    for number in 0..20 {
        let request = web::request(Method::POST, &format!("/agents/scout/echo?{number}"))
            .header("x-mesh-session", format!("session {number}"))
            .body(web::full(format!("task {number}")))
            .unwrap();
        let answer = web::send(node.outbound(), request).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, format!("task {number}")));
        assert_eq!(answer.header("x-mesh-served-by"), Some("ct151"));
    }
    let done: Vec<_> = other.example.requests().into_iter().map(|request| request.target).collect();
    let each: Vec<_> = (0..20).map(|number| format!("/echo?{number}")).collect();
    assert_eq!(done, each, "each once");
    let last = web::request(Method::POST, "/nodes/ct150/x").body(web::full("the last")).unwrap();
    assert_eq!(web::send(node.outbound(), last).await.text(), "done");
    let (refused, ()) = within("the end of the refusals", refusals).await.unwrap();
    assert!((1..20).contains(&refused), "{refused} of 20 were refused");
}

#[tokio::test]
async fn a_task_that_may_have_been_processed_is_sent_once() {
    let mesh = Mesh::new();
    let (node, mut peer) = node_and_peer(&mesh).await;
    enum Failure {
        Reset(u32),
        /// The last stream, counted from the task's, and the code.
        GoAway(i32, u32),
        Close,
    }
    for failure in [
        Failure::Reset(NO_ERROR),
        Failure::Reset(INTERNAL_ERROR),
        Failure::Reset(CANCEL),
        Failure::Reset(ENHANCE_YOUR_CALM),
        Failure::GoAway(0, NO_ERROR),
        Failure::GoAway(2, NO_ERROR),
        Failure::GoAway(-2, INTERNAL_ERROR),
        Failure::GoAway(-2, ENHANCE_YOUR_CALM),
        Failure::Close,
    ] {
        let task = post(&node, web::full("a task"));
        let mut only = peer.asked().await;
        assert_eq!(only.body().await, b"a task");
        match failure {
            Failure::Reset(code) => only.reset(code),
            Failure::GoAway(last, code) => {
                only.go_away(only.stream.saturating_add_signed(last), code);
                only.close();
            }
            Failure::Close => only.close(),
        }
        let answer = answer_to(task).await;
        answer.problem(502, "peer_failed");
        assert_eq!(answer.header("x-mesh-retryable"), Some("false"));
        assert_eq!(answer.header("x-should-retry"), Some("false"));
        nothing_else_came(&node, &mut peer).await;
    }
}

#[tokio::test]
async fn a_refusal_after_the_answer_began_only_ends_it() {
    let mesh = Mesh::new();
    let (node, mut peer) = node_and_peer(&mesh).await;
    let outbound = node.outbound();
    let request = web::request(Method::POST, "/agents/scout/task").body(web::full("a task")).unwrap();
    let task = tokio::spawn(async move { web::open(outbound, request).await.unwrap() });
    let mut only = peer.asked().await;
    only.body().await;
    only.begin_answer();
    let answer = within("the head of the answer", task).await.unwrap();
    assert_eq!(answer.status(), 200);
    only.reset(REFUSED_STREAM);
    let end = within("the end of the answer", answer.into_body().collect()).await;
    assert!(end.is_err(), "an answer that broke off looks whole");
    nothing_else_came(&node, &mut peer).await;
}

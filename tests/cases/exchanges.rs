//! A request and its answer as one: deadlines, cancellation, how an answer ended, and what errors say of a repeat.

use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::web::{self, next_data, piece};
use mesh_tests::{eventually, within};
use serde_json::json;

/// The one access line of a sidecar for a path.
async fn line(node: &mut Node, target: &str, path: &str) -> String {
    node.proxy().wait_log(&[&format!("INFO [{target}] Request "), path]).await
}

#[tokio::test]
async fn both_sides_have_one_line_for_a_request() {
    let mesh = Mesh::new();
    let (mut near, mut far) = mesh.pair().await;
    let answer = near.get("/agents/grok/seen?secret=1").await;
    assert_eq!(answer.header("x-mesh-served-by"), Some("ct111"));
    let near_line = line(&mut near, "Outbound", "GET /seen").await;
    for part in [
        " status=200 ",
        " duration_ms=",
        " agent=",
        "grok",
        " node=",
        "ct111",
        " caller=127.",
        " bytes_in=0 ",
        " attempts=1",
        " first_byte_ms=",
        " ended=",
        "complete",
    ] {
        assert!(near_line.contains(part), "{part}: {near_line}");
    }
    let far_line = line(&mut far, "AgentChannel", "peer.cn=ct110 GET /seen").await;
    assert!(far_line.contains(" status=200 ") && far_line.contains("complete"), "{far_line}");
    assert!(!near_line.contains("secret") && !far_line.contains("secret"), "the query is shown");
    assert_eq!(near.proxy().lines_with(&["GET /seen"]).len(), 1);
    assert_eq!(far.proxy().lines_with(&["GET /seen"]).len(), 1);
}

#[tokio::test]
async fn an_answer_that_the_caller_gives_up_is_told_on_both_sides() {
    let mesh = Mesh::new();
    let (mut near, mut far) = mesh.pair().await;
    let response = web::open(near.outbound(), web::get_with("/nodes/ct111/stream", &[])).await.unwrap();
    let sender = far.agent().stream().await;
    sender.send(piece("begun")).unwrap();
    let mut body = response.into_body();
    assert_eq!(next_data(&mut body).await.unwrap(), "begun");
    drop(body);
    for (node, target) in [(&mut near, "Outbound"), (&mut far, "AgentChannel")] {
        let told = line(node, target, "GET /stream").await;
        assert!(told.contains("status=200") && told.contains("cut_by_caller"), "{told}");
        assert!(told.contains("bytes_out=5 "), "{told}");
    }
}

#[tokio::test]
async fn an_answer_that_the_agent_breaks_off_is_told_on_both_sides() {
    let mesh = Mesh::new();
    let (mut near, mut far) = mesh.pair().await;
    let response = web::open(near.outbound(), web::get_with("/nodes/ct111/stream", &[])).await.unwrap();
    let sender = far.agent().stream().await;
    sender.send(piece("begun")).unwrap();
    let mut body = response.into_body();
    assert_eq!(next_data(&mut body).await.unwrap(), "begun");
    sender.send(Err("the agent fails".into())).unwrap();
    assert!(within("the end of the answer", body.frame()).await.is_none_or(|frame| frame.is_err()));
    for (node, target) in [(&mut near, "Outbound"), (&mut far, "AgentChannel")] {
        let told = line(node, target, "GET /stream").await;
        assert!(told.contains("status=200") && told.contains("cut_by_upstream"), "{told}");
    }
}

#[tokio::test]
async fn a_head_request_is_complete_without_a_body() {
    let mesh = Mesh::new();
    let (mut near, mut far) = mesh.pair().await;
    let request =
        web::request(Method::HEAD, "/nodes/ct111/large").header("host", "localhost").body(web::empty());
    web::send(near.outbound(), request.unwrap()).await;
    for (node, target) in [(&mut near, "Outbound"), (&mut far, "AgentChannel")] {
        let told = line(node, target, "HEAD /large").await;
        assert!(told.contains("complete"), "{told}");
    }
}

#[tokio::test]
async fn the_work_behind_ends_with_its_caller() {
    let mesh = Mesh::new();
    let (near, mut far) = mesh.pair().await;
    let outbound = near.outbound();
    let call = tokio::spawn(async move { web::get(outbound, "/nodes/ct111/hang").await.status });
    eventually("the request arrives", async || far.agent().requests().pop()).await;
    call.abort();
    within("the work ends", far.agent().gone()).await;
    let told = line(&mut far, "AgentChannel", "GET /hang").await;
    assert!(told.contains("cut_by_caller"), "{told}");
}

#[tokio::test]
async fn a_deadline_ends_the_work_and_the_answer_says_so() {
    let mesh = Mesh::new();
    let (mut near, far) = mesh.pair().await;
    for (header, value) in [("x-mesh-timeout-ms", "300"), ("grpc-timeout", "300m")] {
        let answer = web::send(near.outbound(), web::get_with("/nodes/ct111/hang", &[(header, value)])).await;
        let detail = answer.problem(504, "deadline_exceeded");
        // The far sidecar keeps to what is left, and may be the one that says it.
        assert!(detail.contains("the time that the request allows"), "{detail}");
        assert_eq!(answer.header("x-mesh-retryable"), Some("false"), "{header}");
        assert_eq!(answer.header("x-should-retry"), Some("false"), "{header}");
        within("the work ends", far.agent().gone()).await;
        let seen = far.agent().last().all(header);
        let left: u64 = seen[0].trim_end_matches('m').parse().unwrap();
        assert!((1..=300).contains(&left) && seen.len() == 1, "the agent was told {seen:?}");
    }
    let told = line(&mut near, "Outbound", "GET /hang").await;
    assert!(told.contains("deadline_exceeded"), "{told}");
}

#[tokio::test]
async fn a_deadline_before_anything_was_sent_leaves_a_repeat_safe() {
    let mesh = Mesh::new();
    let quick = |config: &mut serde_json::Value| {
        config["proxy"]["timeouts"] = json!({"handshake_ms": 2000});
    };
    let node = mesh.node("ct110").agent("opus").with(quick).start().await;
    // Takes connections and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    mesh.register("ct150", "127.0.0.1", silent.local_addr().unwrap().port(), &["scout"]);
    node.comes_to("/nodes/ct150/x", Some("peer_timeout")).await;
    let answer =
        web::send(node.outbound(), web::get_with("/nodes/ct150/x", &[("x-mesh-timeout-ms", "300")])).await;
    answer.problem(504, "deadline_exceeded");
    assert_eq!(answer.header("x-mesh-retryable"), Some("true"));
}

#[tokio::test]
async fn a_deadline_ends_an_answer_that_has_begun() {
    let mesh = Mesh::new();
    let (mut near, far) = mesh.pair().await;
    let request = web::get_with("/nodes/ct111/stream", &[("x-mesh-timeout-ms", "1000")]);
    let response = web::open(near.outbound(), request).await.unwrap();
    let sender = far.agent().stream().await;
    sender.send(piece("begun")).unwrap();
    let mut body = response.into_body();
    assert_eq!(next_data(&mut body).await.unwrap(), "begun");
    let end = within("the end of the answer", body.frame()).await;
    assert!(end.is_none_or(|frame| frame.is_err()), "the answer went on");
    let told = line(&mut near, "Outbound", "GET /stream").await;
    assert!(told.contains("status=200") && !told.contains("complete"), "{told}");
}

#[tokio::test]
async fn a_deadline_that_is_not_a_time_is_refused() {
    let mesh = Mesh::new();
    let (near, far) = mesh.pair().await;
    for (header, value) in [("x-mesh-timeout-ms", "soon"), ("x-mesh-timeout-ms", "-1"), ("grpc-timeout", "1")]
    {
        let answer = web::send(near.outbound(), web::get_with("/nodes/ct111/x", &[(header, value)])).await;
        let detail = answer.problem(400, "bad_request");
        assert!(detail.contains(header), "{detail}");
    }
    assert!(far.agent().requests().is_empty());
}

#[tokio::test]
async fn an_answer_that_falls_silent_is_given_up_where_that_is_configured() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").agent("opus");
    let mut near =
        plan.with(|config| config["proxy"]["timeouts"] = json!({"stream_idle_ms": 500})).start().await;
    let far = mesh.start("ct111", "grok").await;
    near.reaches("ct111").await;
    let response = web::open(near.outbound(), web::get_with("/nodes/ct111/stream", &[])).await.unwrap();
    let sender = far.agent().stream().await;
    let mut body = response.into_body();
    // Longer than the limit in all, but never silent for so long.
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        sender.send(piece("more")).unwrap();
        assert_eq!(next_data(&mut body).await.unwrap(), "more");
    }
    assert!(within("the end of the answer", body.frame()).await.is_none_or(|frame| frame.is_err()));
    let told = line(&mut near, "Outbound", "GET /stream").await;
    assert!(told.contains("cut_by_sidecar") && told.contains("silent"), "{told}");
}

#[tokio::test]
async fn errors_say_whether_a_repeat_is_safe() {
    let mesh = Mesh::new();
    let (near, mut far) = mesh.pair().await;
    let safe = |answer: &web::Answer| {
        let retryable = answer.header("x-mesh-retryable").map(str::to_owned);
        (retryable, answer.header("x-should-retry").map(str::to_owned))
    };
    // The agent had the request and closed.
    far.stop_agent().await;
    let backend = mesh_tests::loopback::listen(far.backend()).await;
    tokio::spawn(async move {
        use tokio::io::AsyncReadExt;
        while let Ok((mut stream, _)) = backend.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
        }
    });
    let answer = near.post("/nodes/ct111/api/message", &json!({"message": "x"})).await;
    answer.problem(502, "backend_failed");
    assert_eq!(safe(&answer), (Some("false".into()), Some("false".into())));
    let answer = near.get("/nodes/ct199/x").await;
    assert_eq!(safe(&answer), (Some("true".into()), None));
}

#[tokio::test]
async fn no_text_of_a_request_passes_for_a_field_of_its_line() {
    let mesh = Mesh::new();
    let (near, mut far) = mesh.pair().await;
    near.post("/nodes/ct111/api/message", &json!({"fromAgent": "opus", "message": "I am peer.cn=ct999"}))
        .await;
    near.get("/nodes/ct111/peer.cn=ct999").await;
    far.proxy().wait_log(&["I am "]).await;
    line(&mut far, "AgentChannel", "GET /peer.cn").await;
    assert!(far.proxy().lines_with(&["peer.cn=ct999"]).is_empty());
    assert_eq!(far.proxy().lines_with(&["[AgentChannel]", "peer.cn=ct110", "ct999"]).len(), 2);
}

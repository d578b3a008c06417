//! An agent on several nodes of which some cannot be reached: a task is lost only with a node that had it.

use std::time::Duration;

use mesh_tests::eventually;
use mesh_tests::failover::Failover;
use mesh_tests::mesh::Mesh;
use mesh_tests::web;
use serde_json::json;

/// The long form is in tests/soak.
#[tokio::test]
async fn tasks_go_to_the_node_that_is_well_and_none_is_done_twice() {
    let report = Failover { posts: 300, every: Duration::from_millis(50) }.run().await;
    println!("{report}");
    assert!(report.after > 20, "{report}");
    assert!(report.failed < 15, "{report}");
}

#[tokio::test]
async fn a_node_that_cannot_be_reached_is_tried_when_there_is_no_other() {
    let mesh = Mesh::new();
    let mut one = mesh.start("ct110", "opus").await;
    let mut two = mesh.start("ct111", "grok").await;
    one.reaches("ct111").await;
    two.proxy().kill();
    for _ in 0..5 {
        let answer = one.get("/agents/grok/x").await;
        assert!(matches!(answer.header("x-mesh-error"), Some("peer_unreachable" | "peer_failed")));
    }
    one.proxy().wait_log(&["WARN", "ct111 is not used for"]).await;
    two.start_proxy().await;
    assert_eq!(one.get("/agents/grok/x").await.status, 200, "at once, although it is ejected");
    one.proxy().wait_log(&["ct111 can be reached again"]).await;
}

#[tokio::test]
async fn a_task_for_an_agent_that_is_away_on_one_node_goes_to_another_that_hosts_it() {
    let mesh = Mesh::new();
    let (mut caller, mut away, mut well) =
        tokio::join!(mesh.start("ct110", "opus"), mesh.start("ct111", "grok"), mesh.start("ct112", "grok"));
    for node in ["ct111", "ct112"] {
        caller.reaches(node).await;
    }
    // From now on, the roster says that all is well.
    caller.registryd().kill();
    away.stop_agent().await;
    // A connection that the agent has left may be used once more.
    caller.comes_to("/nodes/ct111/x", Some("backend_unreachable")).await;
    let before = well.agent().requests().len();
    for number in 0..40 {
        let answer = caller.post(&format!("/agents/grok/echo?{number}"), &json!({"message": number})).await;
        assert_eq!((answer.status.as_u16(), answer.json()["message"].as_u64()), (200, Some(number)));
        assert_eq!(answer.header("x-mesh-served-by"), Some("ct112"));
        // In all longer than a node whose agent was away is passed over.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let done: Vec<_> =
        well.agent().requests().into_iter().skip(before).map(|request| request.target).collect();
    let each: Vec<_> = (0..40).map(|number| format!("/echo?{number}")).collect();
    assert_eq!(
        done.into_iter().filter(|target| target.starts_with("/echo")).collect::<Vec<_>>(),
        each,
        "each once"
    );
    // Whoever names the node, or finds the agent away everywhere, is told.
    caller.get("/nodes/ct111/x").await.problem(502, "backend_unreachable");
    well.stop_agent().await;
    let nobody = caller.comes_to("/agents/grok/x", Some("backend_unreachable")).await;
    nobody.problem(502, "backend_unreachable");
    assert_eq!(nobody.header("x-mesh-retryable"), Some("true"));
}

#[tokio::test]
async fn four_hundred_websockets_at_once_lose_none() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let mesh = Mesh::new();
    let one = mesh.start("ct110", "opus").await;
    // On a busy machine the last of them wait long for the agent.
    let patient = |config: &mut serde_json::Value| config["proxy"]["backend"]["queue_ms"] = json!(60_000);
    let _two = mesh.node("ct111").agent("grok").with(patient).start().await;
    one.reaches("ct111").await;
    let outbound = one.outbound();
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..400 {
        opening.spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(outbound).await.unwrap();
            let ask = "GET /nodes/ct111/socket HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n\
                       upgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       sec-websocket-version: 13\r\n\r\n";
            stream.write_all(ask.as_bytes()).await.unwrap();
            let mut status = [0; 12];
            stream.read_exact(&mut status).await.unwrap();
            (String::from_utf8_lossy(&status).into_owned(), stream)
        });
    }
    let opened = mesh_tests::within("all are open", opening.join_all()).await;
    let lost: Vec<_> = opened.iter().filter(|(status, _)| status != "HTTP/1.1 101").collect();
    assert!(lost.is_empty(), "{} of 400 were lost: {:?}", lost.len(), lost[0].0);
    assert_eq!(one.get("/nodes/ct111/api/mesh/ping").await.status, 200);
}

/// Which node serves a request of this session.
async fn served_by(node: &mesh_tests::mesh::Node, header: &str, session: &str) -> Option<String> {
    let request = web::get_with("/agents/grok/x", &[(header, session)]);
    let answer = web::send(node.outbound(), request).await;
    answer.header("x-mesh-served-by").map(Into::into)
}

#[tokio::test]
async fn a_session_stays_on_its_node_and_comes_back_to_it() {
    let mesh = Mesh::new();
    let (one, mut two, three) =
        tokio::join!(mesh.start("ct110", "opus"), mesh.start("ct111", "grok"), mesh.start("ct112", "grok"));
    tokio::join!(one.reaches("ct111"), one.reaches("ct112"));
    let mut homes = Vec::new();
    for session in 0..20 {
        homes.push(served_by(&one, "x-mesh-session", &format!("caller {session}")).await.unwrap());
    }
    for node in ["ct111", "ct112"] {
        assert!(homes.iter().any(|home| home == node), "{homes:?}");
    }
    for (session, home) in homes.iter().enumerate() {
        assert_eq!(
            served_by(&one, "x-mesh-session", &format!("caller {session}")).await.as_ref(),
            Some(home)
        );
    }
    two.proxy().kill();
    for session in 0..20 {
        let by = served_by(&one, "x-mesh-session", &format!("caller {session}")).await;
        assert_eq!(by.as_deref(), Some("ct112"), "session {session}");
    }
    two.start_proxy().await;
    for (session, home) in homes.iter().enumerate() {
        eventually("the session is where it was", async || {
            let by = served_by(&one, "x-mesh-session", &format!("caller {session}")).await;
            (by.as_ref() == Some(home)).then_some(())
        })
        .await;
    }
    drop(three);
}

#[tokio::test]
async fn a_session_that_a_server_issued_is_continued_there() {
    let mesh = Mesh::new();
    let (mut one, two, three) =
        tokio::join!(mesh.start("ct110", "opus"), mesh.start("ct111", "grok"), mesh.start("ct112", "grok"));
    tokio::join!(one.reaches("ct111"), one.reaches("ct112"));
    for number in 0..10 {
        let id = format!("issued-{number}");
        let answer = one.get(&format!("/agents/grok/session/{id}")).await;
        assert_eq!(answer.header("mcp-session-id"), Some(id.as_str()));
        let issuer = answer.header("x-mesh-served-by").map(String::from);
        for _ in 0..3 {
            assert_eq!(served_by(&one, "mcp-session-id", &id).await, issuer);
        }
    }
    // Another process of the caller's sidecar knows as much.
    let mut issuers = Vec::new();
    for number in 0..10 {
        issuers.push(served_by(&one, "mcp-session-id", &format!("issued-{number}")).await);
    }
    one.proxy().kill();
    one.start_proxy().await;
    tokio::join!(one.reaches("ct111"), one.reaches("ct112"));
    for (number, issuer) in issuers.iter().enumerate() {
        assert_eq!(served_by(&one, "mcp-session-id", &format!("issued-{number}")).await, *issuer);
    }
    // The node is gone: another one gets the request and can say that it does not know the session.
    let first = one.get("/agents/grok/session/lost").await;
    let (gone, other) =
        if first.header("x-mesh-served-by") == Some("ct111") { (two, "ct112") } else { (three, "ct111") };
    drop(gone);
    assert_eq!(served_by(&one, "mcp-session-id", "lost").await.as_deref(), Some(other));
}

//! The live view: what a sidecar carries at the moment, and what has just ended, for whoever may look.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use mesh_shared::live::{Direction, MAX_PEERS_READERS, MAX_READERS};
use mesh_tests::ca::{Ca, Spec};
use mesh_tests::eventually;
use mesh_tests::live::{self, Reader};
use mesh_tests::loopback::Loopback;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::{run, text};
use mesh_tests::tls::{Client, PeerOptions};
use mesh_tests::web;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Two nodes, of which ct111 tells ct110 what it carries.
pub async fn pair(mesh: &Mesh) -> (Node, Node) {
    let far = mesh.node("ct111").agent("grok");
    let far = far.with(|config| config["proxy"]["live"] = json!({"peers": ["ct110"]}));
    let (near, far) = tokio::join!(mesh.start("ct110", "opus"), far.start());
    near.reaches("ct111").await;
    (near, far)
}

#[tokio::test]
async fn a_stream_is_shown_while_it_runs_and_told_when_it_has_ended() {
    let mesh = Mesh::new();
    let (near, far) = pair(&mesh).await;
    let mut of_near = Reader::open(&near, "/v1/live").await.unwrap();
    // Asked over the mesh.
    let mut of_far = Reader::open(&near, "/v1/live?node=ct111").await.unwrap();
    let first = of_far.next().await.unwrap();
    assert_eq!((first.node.as_str(), first.ended.len(), first.ended_omitted), ("ct111", 0, 0));
    assert_eq!(first.version, env!("CARGO_PKG_VERSION"));
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let request = web::get_with("/agents/grok/stream?secret=hush", &[("traceparent", &parent)]);
    let response = web::open(near.outbound(), request).await.unwrap();
    let answer = far.agent().stream().await;
    answer.send(web::piece("some bytes")).unwrap();

    let shown = of_near.in_flight("/stream").await;
    assert_eq!((shown.direction, shown.method.as_str()), (Direction::Outbound, "GET"));
    assert_eq!((shown.node.unwrap().as_str(), shown.agent.unwrap().as_str()), ("ct111", "grok"));
    assert_eq!((shown.peer, shown.as_agent, shown.attempts, shown.routine), (None, None, 1, false));
    let inbound = of_far.in_flight("/stream").await;
    assert_eq!((shown.trace_id.as_deref(), inbound.trace_id.as_deref()), (Some(trace), Some(trace)));
    assert_eq!((inbound.direction, inbound.peer.as_deref()), (Direction::Inbound, Some("ct110")));
    assert_eq!((inbound.agent.unwrap().as_str(), inbound.node, inbound.attempts), ("grok", None, 0));
    let with_bytes = of_near
        .until("its head and bytes are seen", |update| {
            let shown = update.in_flight.iter().find(|each| each.path == "/stream")?;
            (shown.bytes_out > 0).then(|| (shown.clone(), update.at_ms))
        })
        .await;
    let (shown, at) = with_bytes;
    assert_eq!((shown.status, shown.bytes_out), (Some(200), 10));
    assert!(shown.began_ms <= at && at - shown.began_ms < 60_000, "{shown:?} at {at}");

    drop(answer);
    assert_eq!(web::Answer::read(response).await.unwrap().text(), "some bytes");
    let ended = of_near.ended("/stream").await;
    assert_eq!((ended.exchange.id, ended.outcome.as_str()), (shown.id, "complete"));
    assert_eq!((ended.exchange.status, ended.exchange.bytes_out), (Some(200), 10));
    assert!(ended.first_byte_ms.is_some_and(|ms| ms <= ended.duration_ms), "{ended:?}");
    assert_eq!((ended.code, ended.reason), (None, None));
    assert_eq!(serde_json::to_value(&ended.tries).unwrap(), json!([{"node": "ct111"}]));
    let gone = |update: &mesh_shared::live::LiveUpdate| {
        update.in_flight.iter().all(|each| each.path != "/stream").then_some(())
    };
    of_near.until("it is gone", gone).await;
    let ended = of_far.ended("/stream").await;
    assert_eq!((ended.exchange.id, ended.tries.len()), (inbound.id, 0));
    of_far.until("it is gone there", gone).await;
    // Nothing but metadata.
    for raw in [&of_near.raw, &of_far.raw] {
        assert!(!raw.contains("hush") && !raw.contains("some bytes") && !raw.contains('?'), "{raw}");
    }
}

#[tokio::test]
async fn what_sidecars_say_to_each_other_is_marked() {
    let mesh = Mesh::new();
    let (near, far) = pair(&mesh).await;
    let mut reader = Reader::open(&near, "/v1/live?node=ct111").await.unwrap();
    assert_eq!(near.get("/nodes/ct111/api/mesh/ping").await.status, 200);
    assert_eq!(near.get("/nodes/ct111/API/mesh/./ping/").await.status, 200);
    assert_eq!(near.get("/nodes/ct111/x").await.status, 200);
    assert!(reader.ended("/api/mesh/ping").await.exchange.routine);
    let mut reader = Reader::open(&far, "/v1/live").await.unwrap();
    let live = reader.in_flight("/api/mesh/live").await;
    assert!(live.routine && live.peer.as_deref() == Some("ct110"), "{live:?}");
    near.get("/nodes/ct111/x").await;
    assert!(!reader.ended("/x").await.exchange.routine);
    // What is asked of registryd is, too.
    let mut reader = Reader::open(&near, "/v1/live").await.unwrap();
    near.get("/mesh/nodes").await;
    assert!(reader.ended("/mesh/nodes").await.exchange.routine);
}

#[tokio::test]
async fn a_failover_and_a_refusal_are_told_with_their_reasons() {
    let mesh = Mesh::new();
    // Nobody listens there.
    let absent = Loopback::take();
    mesh.register("ct111", &absent.ip().to_string(), 3000, &["grok"]);
    let (near, far) = tokio::join!(mesh.start("ct110", "opus"), mesh.start("ct112", "grok"));
    near.reaches("ct112").await;
    let mut reader = Reader::open(&near, "/v1/live").await.unwrap();
    reader.next().await;
    // A session whose home is the node that is away.
    let ended = eventually("a request is tried on both nodes", async || {
        for session in 0..20 {
            let path = format!("/agents/grok/session-{session}");
            let request = web::get_with(&path, &[("x-mesh-session", &format!("caller {session}"))]);
            assert_eq!(web::send(near.outbound(), request).await.status, 200);
        }
        let update = reader.next().await.unwrap();
        update.ended.into_iter().find(|ended| ended.tries.len() == 2)
    })
    .await;
    let expected = json!([{"node": "ct111", "error": "peer_unreachable"}, {"node": "ct112"}]);
    assert_eq!(serde_json::to_value(&ended.tries).unwrap(), expected);
    assert_eq!((ended.exchange.attempts, ended.outcome.as_str()), (2, "complete"));
    assert_eq!(ended.exchange.node.unwrap().as_str(), "ct112");

    // An error of this sidecar, one before it is known where to, and one of the far one.
    near.get("/nodes/ct111/away").await.problem(502, "peer_unreachable");
    let ended = reader.ended("/away").await;
    assert_eq!((ended.outcome.as_str(), ended.code.as_deref()), ("error", Some("peer_unreachable")));
    assert_eq!((ended.exchange.status, ended.exchange.attempts), (Some(502), 1));
    assert!(ended.reason.unwrap().contains("ct111"));
    let expected = json!([{"node": "ct111", "error": "peer_unreachable"}]);
    assert_eq!(serde_json::to_value(&ended.tries).unwrap(), expected);
    near.get("/nowhere").await.problem(400, "no_destination");
    let ended = reader.ended("/nowhere").await;
    assert_eq!((ended.code.as_deref(), ended.tries.len()), (Some("no_destination"), 0));
    let mut far = far;
    far.stop_agent().await;
    near.comes_to("/nodes/ct112/stopped", Some("backend_unreachable")).await;
    near.get("/nodes/ct112/gone").await.problem(502, "backend_unreachable");
    let ended = reader.ended("/gone").await;
    assert_eq!((ended.outcome.as_str(), ended.code.as_deref()), ("complete", Some("backend_unreachable")));

    // A caller that goes away.
    let stream = TcpStream::connect(near.outbound()).await.unwrap();
    far.start_agent("grok").await;
    let mut connection = web::Connection::over(stream).await;
    let asking =
        tokio::spawn(async move { connection.open(web::get_with("/nodes/ct112/hang", &[])).await.is_ok() });
    let shown = reader.in_flight("/hang").await;
    assert_eq!((shown.status, shown.node.unwrap().as_str(), shown.attempts), (None, "ct112", 1));
    asking.abort();
    let ended = reader.ended("/hang").await;
    assert_eq!((ended.outcome.as_str(), ended.exchange.status), ("cut_by_caller", None));
    assert_eq!((ended.exchange.node.unwrap().as_str(), ended.exchange.attempts), ("ct112", 1));
}

#[tokio::test]
async fn only_named_peers_and_operators_may_look() {
    let mesh = Mesh::new();
    let (mut near, far) = pair(&mesh).await;
    let mut permitted = Reader::of_peer(&mesh, "ct110", &far).await.unwrap();
    assert_eq!(permitted.next().await.unwrap().node.as_str(), "ct111");
    for target in ["/api/mesh/live", "/api/mesh/live/", "//api/mesh/%6Cive?x=1", "/API/mesh/x/../live"] {
        let detail = far.get_from_peer(&mesh, "ct113", target).await.problem(403, "live_not_permitted");
        assert!(detail.contains("ct113") && detail.contains("proxy.live.peers"), "{detail}");
    }
    // An agent of a node that is named is another identity.
    let agent = mesh_tests::tls::Client::new(&mesh.ca, &mesh.ca.node("opus@ct110"));
    let request = web::get_with("/api/mesh/live", &[]);
    agent.send(far.inbound(), "ct111", request).await.problem(403, "live_not_permitted");
    let post = web::request(http::Method::POST, "/api/mesh/live").body(web::empty()).unwrap();
    far.from_peer(&mesh, "ct110", post).await.problem(405, "method_not_allowed");
    assert!(far.agent().requests().iter().all(|request| !request.target.contains("live")));

    // Other programs of the host of a peer that is named.
    for target in
        ["/nodes/ct111/api/mesh/live", "/agents/grok/api//mesh/live/", "/nodes/ct111/api/mesh/%6cive"]
    {
        let detail = near.get(target).await.problem(403, "live_not_permitted");
        assert!(detail.contains("proxy.admin.socket"), "{detail}");
    }
    // The node that is asked refuses in its own words.
    let refused = Reader::open(&far, "/v1/live?node=ct110").await.err().unwrap();
    let detail = refused.problem(403, "live_not_permitted");
    assert!(detail.contains("peer ct111") && detail.contains("proxy.live.peers"), "{detail}");
    let refused = Reader::open(&near, "/v1/live?node=ct119").await.err().unwrap();
    refused.problem(404, "unknown_node");
    Reader::open(&near, "/v1/live?node=a/b").await.err().unwrap().problem(400, "bad_destination");
    Reader::open(&near, "/v1/status").await.err().unwrap().problem(400, "bad_destination");
    near.proxy().wait_log(&["live_not_permitted"]).await;
}

#[tokio::test]
async fn a_node_without_the_view_is_named() {
    let mesh = Mesh::new();
    let near = mesh.start("ct110", "opus").await;
    let (_peer, _address) = mesh.peer("ct119", &[]).await;
    near.reaches("ct119").await;
    let refused = Reader::open(&near, "/v1/live?node=ct119").await.err().unwrap();
    let detail = refused.problem(502, "live_unsupported");
    assert!(detail.contains("ct119.mesh has no live view"), "{detail}");
}

#[tokio::test]
async fn there_are_at_most_sixteen_readers() {
    let mesh = Mesh::new();
    let (near, far) = pair(&mesh).await;
    let mut readers = Vec::new();
    for number in 0..MAX_READERS {
        let reader = match number % 2 {
            0 => Reader::open(&far, "/v1/live").await,
            _ => Reader::of_peer(&mesh, "ct110", &far).await,
        };
        readers.push(reader.unwrap());
    }
    let code = "live_too_many_readers";
    Reader::open(&far, "/v1/live").await.err().unwrap().problem(503, code);
    Reader::of_peer(&mesh, "ct110", &far).await.err().unwrap().problem(503, code);
    Reader::open(&near, "/v1/live?node=ct111").await.err().unwrap().problem(503, code);
    for reader in &mut readers {
        reader.next().await.unwrap();
    }
    readers.pop();
    let mut again =
        eventually("the place of one that went is free", async || Reader::open(&far, "/v1/live").await.ok())
            .await;
    again.next().await.unwrap();
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_up_nobody_and_what_it_misses_is_counted() {
    let mesh = Mesh::new();
    let (near, far) = pair(&mesh).await;
    // Each line is long.
    let stream = TcpStream::connect(near.outbound()).await.unwrap();
    let sender = web::h2(stream).await;
    let mut hanging = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let mut sender = sender.clone();
        hanging.spawn(async move {
            sender.ready().await.unwrap();
            let request = web::request(http::Method::GET, "http://ct111.mesh/hang");
            sender.send_request(request.body(web::empty()).unwrap()).await.map(drop)
        });
    }
    let mut stalled = Reader::open(&near, "/v1/live").await.unwrap();
    let mut reader = Reader::open(&near, "/v1/live").await.unwrap();
    reader.until("all hang", |update| (update.in_flight_total >= 200).then_some(())).await;
    // Both have been told of nothing that ended since: what ends from now on is counted by path.
    let mut sent = 0;
    let (mut ended, mut lines) = (0, 0);
    let missed = mesh_tests::within("the stalled reader's lines are full", async {
        loop {
            for _ in 0..20 {
                assert_eq!(near.get("/nodes/ct111/x").await.status, 200);
                sent += 1;
            }
            let update = reader.next().await.unwrap();
            lines += 1;
            assert_eq!(update.ended_omitted, 0, "of the reader that reads");
            ended += update.ended.iter().filter(|each| each.exchange.path == "/x").count();
            // Far more than the system and the sidecar keep for somebody.
            if lines >= 15 {
                break;
            }
        }
        // What waits, then what is told from now on.
        let mut missed = 0;
        while missed == 0 {
            let update = stalled.next().await.unwrap();
            missed += update.ended_omitted;
        }
        missed
    })
    .await;
    assert!(missed >= 20 && missed <= 10 * sent, "{missed} of {sent}");
    let rest = reader.until("the last ones", |update| {
        ended += update.ended.iter().filter(|each| each.exchange.path == "/x").count();
        (ended as u64 >= sent).then_some(ended as u64)
    });
    assert_eq!(rest.await, sent);
    assert_eq!(far.agent().requests().iter().filter(|each| each.target == "/x").count() as u64, sent);
    hanging.abort_all();
}

#[tokio::test]
async fn the_socket_is_for_the_sidecars_group_and_its_default_place_is_no_condition() {
    let mesh = Mesh::new();
    let mut node = mesh.start("ct110", "opus").await;
    let path = live::socket(&node);
    let found = fs::metadata(&path).unwrap();
    assert_eq!((found.file_type().is_socket(), found.mode() & 0o777), (true, 0o660));
    // What a killed process left is replaced.
    node.proxy().kill();
    node.start_proxy().await;
    Reader::open(&node, "/v1/live").await.unwrap();
    node.proxy().stop().await;
    // Something else is there.
    fs::remove_file(&path).unwrap();
    fs::write(&path, "mine").unwrap();
    node.start_proxy().await;
    let line = node.proxy().wait_log(&["WARN [Mesh] cannot listen on", "proxy.admin.socket"]).await;
    assert!(
        line.contains("something that is not a socket is there") && line.contains("meshctl top"),
        "{line}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    node.has_roster().await;

    let long = mesh.folder().join("s".repeat(120));
    let plan = mesh.node("ct111").with(|config| config["proxy"]["state_dir"] = json!(long));
    let mut node = plan.start().await;
    node.proxy().wait_log(&["WARN [Mesh] cannot listen on", "at most 107 bytes"]).await;
}

#[tokio::test]
async fn a_named_socket_has_to_be_there() {
    let mesh = Mesh::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.sock");
    let plan = |name: &str, path: &std::path::Path| {
        mesh.node(name).with(|config| config["proxy"]["admin"] = json!({"socket": path}))
    };
    let node = plan("ct110", &path).start().await;
    assert!(fs::metadata(&path).unwrap().file_type().is_socket() && !live::socket(&node).exists());
    let request = web::request(http::Method::GET, "/v1/other").body(web::empty()).unwrap();
    web::on_socket(&path, request).await.unwrap().problem(400, "bad_destination");
    let refused = async |plan: mesh_tests::mesh::Plan| {
        let output = run(&mut plan.prepare().await.command("mesh-proxy"));
        (output.status.code(), text(&output.stderr) + &text(&output.stdout))
    };
    let (code, told) = refused(plan("ct111", &path)).await;
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("(proxy.admin.socket): another process listens there"), "{told}");
    let (code, told) = refused(plan("ct112", &folder.path().join("s".repeat(108)))).await;
    assert_eq!(code, Some(78), "{told}");
    assert!(told.contains("proxy.admin.socket: ") && told.contains("at most 107 bytes"), "{told}");
}

#[tokio::test]
async fn a_sidecar_that_stops_waits_for_no_reader_of_a_peer() {
    let mesh = Mesh::new();
    let (near, mut far) = pair(&mesh).await;
    let mut of_peer = Reader::open(&near, "/v1/live?node=ct111").await.unwrap();
    let mut own = Reader::open(&far, "/v1/live").await.unwrap();
    of_peer.next().await.unwrap();
    own.next().await.unwrap();
    let begun = std::time::Instant::now();
    let told = far.proxy().stop().await;
    assert!(told.success());
    assert!(far.proxy().lines_with(&["are cut off"]).is_empty(), "after {:?}", begun.elapsed());
    while of_peer.next().await.is_some() {}
}

#[tokio::test]
async fn who_is_no_longer_named_loses_the_view_with_a_reload() {
    let mesh = Mesh::new();
    let (_near, mut far) = pair(&mesh).await;
    let mut reader = Reader::of_peer(&mesh, "ct110", &far).await.unwrap();
    let mut own = Reader::open(&far, "/v1/live").await.unwrap();
    reader.next().await.unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&far.config_path).unwrap()).unwrap();
    config["proxy"]["live"]["peers"] = json!(["ct113"]);
    fs::write(&far.config_path, config.to_string()).unwrap();
    far.proxy().signal(libc::SIGHUP);
    far.proxy().wait_log(&["policy reloaded"]).await;
    mesh_tests::within("the peer's answer ends", async { while reader.next().await.is_some() {} }).await;
    let refused = Reader::of_peer(&mesh, "ct110", &far).await.err().unwrap();
    refused.problem(403, "live_not_permitted");
    let mut other = Reader::of_peer(&mesh, "ct113", &far).await.unwrap();
    other.next().await.unwrap();
    own.next().await.unwrap();

    // So does one that may not call any more.
    config["proxy"]["policy"] = json!({"deny": ["ct113"]});
    fs::write(&far.config_path, config.to_string()).unwrap();
    far.proxy().signal(libc::SIGHUP);
    mesh_tests::within("the other peer's answer ends", async { while other.next().await.is_some() {} }).await;
    own.next().await.unwrap();
}

#[tokio::test]
async fn readers_on_other_nodes_leave_places_for_those_here() {
    let mesh = Mesh::new();
    let (near, far) = pair(&mesh).await;
    let mut readers = Vec::new();
    for _ in 0..MAX_PEERS_READERS {
        readers.push(Reader::of_peer(&mesh, "ct110", &far).await.unwrap());
    }
    let refused = Reader::open(&near, "/v1/live?node=ct111").await.err().unwrap();
    refused.problem(503, "live_too_many_readers");
    Reader::open(&far, "/v1/live").await.unwrap().next().await.unwrap();
}

#[tokio::test]
async fn looking_at_a_node_moves_no_task_away_from_it() {
    let mesh = Mesh::new();
    let (near, far) = pair(&mesh).await;
    let other = mesh.start("ct112", "grok").await;
    near.reaches("ct112").await;
    let mut reader = Reader::open(&near, "/v1/live?node=ct111").await.unwrap();
    reader.next().await.unwrap();
    for _ in 0..40 {
        assert_eq!(near.get("/agents/grok/x").await.status, 200);
    }
    for node in [&far, &other] {
        let got = node.agent().requests().iter().filter(|request| request.target == "/x").count();
        assert!(got > 0, "{} got none", node.name);
    }
}

#[tokio::test]
async fn a_connection_that_is_refused_before_a_request_is_told_with_its_reason() {
    let mesh = Mesh::new();
    let revoked = mesh.ca.node("ct113");
    let list = mesh.folder().join("crl.pem");
    fs::write(&list, mesh.ca.crl_pem(&[&revoked])).unwrap();
    let plan = mesh.node("ct110").agent("opus").with(|config| {
        config["proxy"]["crl_path"] = json!(list);
        config["proxy"]["policy"] = json!({"deny": ["ct114"]});
        config["proxy"]["limits"] = json!({"max_connections": 8, "max_connections_per_peer": 1});
    });
    let mut node = plan.start().await;
    let mut reader = Reader::open(&node, "/v1/live").await.unwrap();
    let first = reader.next().await.unwrap();
    assert_eq!((first.refused.len(), first.refused_omitted), (0, 0));
    let issue = |change: fn(&mut Spec)| {
        let mut spec = Spec::node("ct111");
        change(&mut spec);
        mesh.ca.issue(&spec)
    };
    let steering = issue(|spec| spec.cn = Some("a\u{1b}[2J b".into()));
    for (client, cause, reason) in [
        (Client::anonymous(&mesh.ca), "no_certificate", "peer did not return a certificate"),
        (Client::new(&mesh.ca, &Ca::new().node("ct111")), "unknown_issuer", "from an unknown issuer"),
        (Client::new(&mesh.ca, &issue(|spec| spec.until = 2025)), "outside_validity", "has expired"),
        (Client::new(&mesh.ca, &revoked), "revoked", "is revoked"),
        (Client::new(&mesh.ca, &steering), "bad_certificate", "a"),
    ] {
        client.refused(node.inbound(), "ct110").await;
        let told = reader.refused(cause).await;
        assert!(told.reason.contains(reason) && told.peer.is_none(), "{told:?}");
        assert_eq!((told.address.to_string().as_str(), told.id > 0), ("127.0.0.1", true));
        assert!(told.reason.chars().all(|c| !c.is_control()) && told.reason.len() < 300, "{told:?}");
        node.proxy().wait_log(&["TLS handshake failed from 127.0.0.1: ", reason]).await;
    }
    let mut stream = TcpStream::connect(node.inbound()).await.unwrap();
    stream.write_all(b"GET /secret HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let told = reader.refused("not_tls").await;
    assert!(told.reason.contains("not a TLS client"), "{told:?}");

    // Who it is, is proved from here on.
    let denied = Client::new(&mesh.ca, &mesh.ca.node("ct114"));
    drop(denied.connect(node.inbound(), "ct110").await.unwrap());
    let told = reader.refused("policy").await;
    assert_eq!(
        (told.peer.as_deref(), told.reason.as_str()),
        (Some("ct114"), "not allowed to connect by proxy.policy")
    );
    let answer = denied.send(node.inbound(), "ct110", web::get_with("/asked", &[])).await;
    answer.problem(403, "peer_not_allowed");
    let ended = reader.ended("/asked").await;
    assert!(ended.failed() && ended.code.as_deref() == Some("peer_not_allowed"), "{ended:?}");
    let busy = Client::new(&mesh.ca, &mesh.ca.node("ct115"));
    let _held = busy.connect(node.inbound(), "ct110").await.unwrap();
    let told = eventually("its share is used up", async || {
        busy.refused(node.inbound(), "ct110").await;
        let update = reader.next().await.unwrap();
        update.refused.into_iter().find(|each| each.cause == "limit")
    })
    .await;
    assert_eq!(told.peer.as_deref(), Some("ct115"));
    assert!(told.reason.contains("proxy.limits.max_connections_per_peer"), "{told:?}");
    assert!(!reader.raw.contains("secret"));
}

#[tokio::test]
async fn a_flood_of_refused_connections_displaces_nothing_and_is_counted() {
    let mesh = Mesh::new();
    let (near, mut far) = pair(&mesh).await;
    let mut reader = Reader::open(&near, "/v1/live?node=ct111").await.unwrap();
    reader.next().await.unwrap();
    let stranger = Client::anonymous(&mesh.ca);
    const FLOOD: u64 = 60;
    for _ in 0..FLOOD {
        stranger.refused(far.inbound(), "ct111").await;
    }
    assert_eq!(near.get("/nodes/ct111/amid").await.status, 200);
    let (mut told, mut omitted, mut amid) = (0, 0, false);
    reader
        .until("all are counted", |update| {
            told += update.refused.len() as u64;
            omitted += update.refused_omitted;
            amid |= update.ended.iter().any(|each| each.exchange.path == "/amid");
            (told + omitted >= FLOOD && amid).then_some(())
        })
        .await;
    assert_eq!(told + omitted, FLOOD);
    // As many as the log has lines of their own for.
    let lines = far.proxy().lines_with(&["TLS handshake failed from"]).len();
    assert!(told >= 8 && told == lines as u64 && omitted > 0, "{told} told, {lines} lines");
}

#[tokio::test]
async fn a_call_to_a_node_whose_certificate_is_refused_is_told_with_its_reason() {
    let mesh = Mesh::new();
    let options = PeerOptions { identity: Ca::new().node("ct150"), ..PeerOptions::good(&mesh.ca, "ct150") };
    let (_peer, _address) = mesh.peer_with("ct150", &[], options).await;
    let node = mesh.start("ct110", "opus").await;
    node.comes_to("/nodes/ct150/first", Some("peer_untrusted")).await;
    let mut reader = Reader::open(&node, "/v1/live").await.unwrap();
    reader.next().await.unwrap();
    node.get("/nodes/ct150/refused").await.problem(502, "peer_untrusted");
    let ended = reader.ended("/refused").await;
    assert!(ended.failed() && ended.code.as_deref() == Some("peer_untrusted"), "{ended:?}");
    let reason = ended.reason.unwrap();
    assert!(reason.contains("ct150") && reason.contains("unknown issuer"), "{reason}");
}

//! What lies between two sidecars: connections that are used again, sessions that are resumed, h2 where both
//! speak it, and http/1.1 with a peer that does not.

use std::process::Command;
use std::time::Duration;

use http::{Method, StatusCode};
use mesh_tests::eventually;
use mesh_tests::loopback::Loopback;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::{self, Daemon, succeed};
use mesh_tests::tls::{Client, Peer, PeerOptions};
use mesh_tests::web;
use rustls::HandshakeKind;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn sidecars_speak_h2_on_one_connection() {
    let mesh = Mesh::new();
    let (peer, _address) = mesh.peer("ct150", &[]).await;
    let node = mesh.start("ct110", "opus").await;
    node.reaches("ct150").await;
    for _ in 0..30 {
        assert_eq!(node.post("/nodes/ct150/echo", &json!(1)).await.text(), "1");
    }
    let accepted = peer.accepted();
    assert_eq!(accepted.len(), 1, "{accepted:?}");
    assert_eq!(accepted[0].alpn.as_deref(), Some("h2"));
    assert_eq!(accepted[0].server_name.as_deref(), Some("ct150.mesh"));
}

#[tokio::test]
async fn many_requests_at_once_share_the_h2_connection() {
    let mesh = Mesh::new();
    let (peer, _address) = mesh.peer("ct150", &[]).await;
    let node = mesh.start("ct110", "opus").await;
    let outbound = node.outbound();
    // Nothing is connected yet.
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..50 {
        waiting.spawn(async move {
            let request = web::request(Method::GET, "/nodes/ct150/hang").body(web::empty()).unwrap();
            web::open(outbound, request).await
        });
    }
    eventually("all 50 arrive together", async || {
        let arrived = peer.example.requests().iter().filter(|seen| seen.target == "/hang").count();
        (arrived == 50).then_some(())
    })
    .await;
    assert_eq!(peer.accepted().len(), 1, "connections");
    // And all of them are cancelled when their clients go.
    drop(waiting);
    for _ in 0..50 {
        peer.example.gone().await;
    }
}

/// Requests to `target`, all open at once on one h2c connection; they end with what is returned.
async fn open_at_once(node: &Node, target: &str, count: usize) -> tokio::task::JoinSet<StatusCode> {
    let h2 = web::h2(TcpStream::connect(node.outbound()).await.unwrap()).await;
    let mut open = tokio::task::JoinSet::new();
    for _ in 0..count {
        let (mut h2, uri) = (h2.clone(), format!("http://localhost{target}"));
        open.spawn(async move {
            h2.ready().await.unwrap();
            let request = web::request(Method::GET, &uri).body(web::empty()).unwrap();
            h2.send_request(request).await.unwrap().status()
        });
    }
    open
}

#[tokio::test]
async fn a_connection_that_nobody_needs_is_closed() {
    let mesh = Mesh::new();
    let (peer, _address) = mesh.peer("ct150", &[]).await;
    let plan = mesh.node("ct110").agent("opus");
    let plan = plan.with(|config| config["proxy"]["timeouts"] = json!({"pool_idle_ms": 300}));
    let node = plan.start().await;
    node.comes_to("/nodes/ct150/x", None).await;
    eventually("another request finds no connection", async || {
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(node.get("/nodes/ct150/x").await.status, 200);
        (peer.accepted().len() > 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn more_requests_than_one_h2_connection_takes_open_another() {
    let mesh = Mesh::new();
    let (peer, _address) = mesh.peer("ct150", &[]).await;
    let plan = mesh.node("ct110").agent("opus");
    let most = 16 * 100;
    let plan = plan.with(|config| {
        config["proxy"]["limits"] = json!({"max_streams": 10_000});
        config["proxy"]["outbound"]["max_requests_per_node"] = json!(most);
    });
    let node = plan.start().await;
    node.reaches("ct150").await;
    let mut open = open_at_once(&node, "/nodes/ct150/hang", most).await;
    let hanging = || peer.example.requests().iter().filter(|seen| seen.target == "/hang").count();
    eventually("all arrive together", async || (hanging() == most).then_some(())).await;
    assert_eq!(peer.accepted().len(), 16, "a request that waits for a connection makes none of its own");
    // Beyond that nobody waits without being told.
    let detail = node.get("/nodes/ct150/x").await.problem(503, "peer_busy");
    assert!(detail.contains("1600 requests from this host to ct150.mesh"), "{detail}");
    // The mesh's own paths are how one learns how the node is.
    assert_eq!(node.get("/nodes/ct150/api/mesh/ping").await.status, 200);
    open.abort_all();
    while open.join_next().await.is_some() {}
    node.comes_to("/nodes/ct150/x", None).await;
    for _ in 0..most {
        peer.example.gone().await;
    }
}

#[tokio::test]
async fn bodies_that_nobody_reads_hold_up_no_others() {
    let mesh = Mesh::new();
    let (one, two) = mesh.pair().await;
    let big = bytes::Bytes::from(vec![b'x'; 9 << 20]);
    let mut deaf = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let (outbound, big) = (one.outbound(), big.clone());
        deaf.spawn(async move {
            let request = web::request(Method::POST, "/nodes/ct111/deaf").body(web::full(big)).unwrap();
            web::open(outbound, request).await.map(drop)
        });
    }
    // Answers whose readers stop after the head.
    let mut unread = Vec::new();
    for _ in 0..12 {
        let request = web::request(Method::GET, "/nodes/ct111/large").body(web::empty()).unwrap();
        unread.push(web::open(one.outbound(), request).await.unwrap());
    }
    eventually("the uploads have arrived", async || {
        let arrived = two.agent().requests().iter().filter(|seen| seen.target == "/deaf").count();
        (arrived == 12).then_some(())
    })
    .await;
    let task = json!({"fromAgent": "opus", "message": "x".repeat(200_000)});
    for _ in 0..3 {
        let answer = one.post("/nodes/ct111/api/message", &task).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(one.get("/nodes/ct111/large").await.body.len(), 4 << 20);
    }
    assert_eq!(unread.len() + deaf.len(), 24);
}

#[tokio::test]
async fn a_peer_that_moved_gets_its_requests_at_the_new_place() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let (old, _old_address) = mesh.peer("ct150", &[]).await;
    node.comes_to("/nodes/ct150/before", None).await;
    // The old place goes on answering on the connection that is open, as a host that is being replaced does.
    let next = Loopback::take();
    let new = Peer::start(next.port(3000), "ct150", PeerOptions::good(&mesh.ca, "ct150")).await;
    mesh.amend("ct150", |entry| entry["host"] = json!(next.ip().to_string()));
    eventually("requests arrive at the new place", async || {
        assert_eq!(node.get("/nodes/ct150/after").await.status, 200);
        new.example.requests().last().map(drop)
    })
    .await;
    let before = old.example.requests().len();
    for _ in 0..5 {
        assert_eq!(node.get("/nodes/ct150/after").await.status, 200);
    }
    assert_eq!(old.example.requests().len(), before);
}

#[tokio::test]
async fn with_a_peer_that_speaks_only_http_1_1_connections_are_pooled() {
    let mesh = Mesh::new();
    let options = PeerOptions { alpn: vec!["http/1.1"], ..PeerOptions::good(&mesh.ca, "ct150") };
    let (peer, _address) = mesh.peer_with("ct150", &[], options).await;
    let node = mesh.start("ct110", "opus").await;
    node.reaches("ct150").await;
    for _ in 0..30 {
        assert_eq!(node.post("/nodes/ct150/echo", &json!(1)).await.text(), "1");
    }
    let accepted = peer.accepted();
    assert!(accepted.len() <= 3, "{} handshakes for 30 requests one after the other", accepted.len());
    assert_eq!(accepted[0].alpn.as_deref(), Some("http/1.1"));
}

#[tokio::test]
async fn a_connection_is_used_for_a_second_less_than_the_peer_keeps_it() {
    let mesh = Mesh::new();
    let options = PeerOptions { alpn: vec!["http/1.1"], ..PeerOptions::good(&mesh.ca, "ct150") };
    let (peer, _address) = mesh.peer_with("ct150", &[], options).await;
    let node = mesh.start("ct110", "opus").await;
    node.comes_to("/nodes/ct150/close", None).await;
    for (keeps, again) in [("60", true), ("2", false), ("1", false), ("0", false), ("60", true)] {
        let answer = node.get(&format!("/nodes/ct150/keep-alive/{keeps}")).await;
        assert_eq!(answer.status, 200);
        // The header is of one hop.
        assert_eq!(answer.header("keep-alive"), None);
        let before = peer.accepted().len();
        // The peer itself keeps all of them.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(node.get("/nodes/ct150/close").await.text(), "closed");
        assert_eq!(peer.accepted().len() == before, again, "timeout={keeps}");
    }
}

#[tokio::test]
async fn a_connection_whose_peer_does_not_say_is_used_for_less_than_node_js_keeps_it() {
    let mesh = Mesh::new();
    let options = PeerOptions { alpn: vec!["http/1.1"], ..PeerOptions::good(&mesh.ca, "ct150") };
    let (peer, _address) = mesh.peer_with("ct150", &[], options).await;
    let node = mesh.start("ct110", "opus").await;
    node.comes_to("/nodes/ct150/close", None).await;
    assert_eq!(node.get("/nodes/ct150/one").await.status, 200);
    let before = peer.accepted().len();
    assert_eq!(node.get("/nodes/ct150/another").await.status, 200);
    assert_eq!(peer.accepted().len(), before);
    tokio::time::sleep(Duration::from_millis(4500)).await;
    assert_eq!(node.get("/nodes/ct150/late").await.status, 200);
    assert_eq!(peer.accepted().len(), before + 1);
}

#[tokio::test]
async fn a_connection_with_many_cancelled_requests_gets_no_more_and_those_on_it_go_on() {
    let mesh = Mesh::new();
    let (peer, _address) = mesh.peer("ct150", &[]).await;
    let node = mesh.start("ct110", "opus").await;
    node.reaches("ct150").await;
    let request = web::request(Method::GET, "/nodes/ct150/stream").body(web::empty()).unwrap();
    let (bystander, answer) = tokio::join!(web::open(node.outbound(), request), peer.example.stream());
    let mut bystander = bystander.unwrap();
    let mut goes_on = async || {
        answer.send(web::piece("for you")).unwrap();
        web::expect_data(bystander.body_mut(), "for you").await;
    };
    let arrived = || peer.example.requests().iter().filter(|seen| seen.target == "/hang").count();
    let cancel = async |count: usize| {
        let before = arrived();
        let open = open_at_once(&node, "/nodes/ct150/hang", count).await;
        eventually("they arrive", async || (arrived() == before + count).then_some(())).await;
        drop(open);
        for _ in 0..count {
            peer.example.gone().await;
        }
    };
    for _ in 0..9 {
        cancel(50).await;
        goes_on().await;
    }
    cancel(49).await;
    assert_eq!(node.get("/nodes/ct150/x").await.status, 200);
    assert_eq!(peer.accepted().len(), 1, "499 are borne");
    cancel(1).await;
    for _ in 0..10 {
        assert_eq!(node.get("/nodes/ct150/x").await.status, 200);
        goes_on().await;
    }
    assert_eq!(peer.accepted().len(), 2, "one more, for all that come later");
}

#[tokio::test]
async fn a_peer_that_changes_what_it_speaks_is_followed() {
    let mesh = Mesh::new();
    let options = |alpn| PeerOptions { alpn: vec![alpn], ..PeerOptions::good(&mesh.ca, "ct150") };
    let (mut peer, address) = mesh.peer_with("ct150", &[], options("http/1.1")).await;
    let node = mesh.start("ct110", "opus").await;
    for alpn in ["h2", "http/1.1"] {
        node.comes_to("/nodes/ct150/x", None).await;
        peer.stop().await;
        peer = Peer::start(address.port(3000), "ct150", options(alpn)).await;
        node.comes_to("/nodes/ct150/x", None).await;
        let accepted = peer.accepted();
        assert!(accepted.iter().all(|each| each.alpn.as_deref() == Some(alpn)), "{accepted:?}");
    }
}

#[tokio::test]
async fn a_peer_that_resets_connections_is_an_error_at_once() {
    let mesh = Mesh::new();
    for alpn in ["h2", "http/1.1"] {
        let name = if alpn == "h2" { "ct150" } else { "ct151" };
        let options = PeerOptions { alpn: vec![alpn], resets: true, ..PeerOptions::good(&mesh.ca, name) };
        let (peer, address) = mesh.peer_with(name, &[], options).await;
        let node = mesh.start(&format!("{name}-caller"), "opus").await;
        let target = format!("/nodes/{name}/x");
        node.comes_to(&target, Some("peer_failed")).await;
        for _ in 0..20 {
            let started = std::time::Instant::now();
            let answer = node.get(&target).await;
            answer.problem(502, answer.header("x-mesh-error").unwrap_or("none"));
            assert!(
                started.elapsed() < Duration::from_secs(9),
                "only the time limit of a handshake ended it"
            );
        }
        assert!(peer.accepted().len() > 20);
        peer.stop().await;
        let _peer = Peer::start(address.port(3000), name, PeerOptions::good(&mesh.ca, name)).await;
        node.comes_to(&target, None).await;
    }
}

#[tokio::test]
async fn a_peer_without_alpn_is_spoken_to_in_http_1_1() {
    let mesh = Mesh::new();
    let options = PeerOptions { alpn: vec![], ..PeerOptions::good(&mesh.ca, "ct150") };
    let (_peer, _address) = mesh.peer_with("ct150", &[], options).await;
    let node = mesh.start("ct110", "opus").await;
    assert_eq!(node.comes_to("/nodes/ct150/x", None).await.text(), "GET /x");
}

#[tokio::test]
async fn sessions_with_a_peer_are_resumed() {
    for version in rustls::ALL_VERSIONS {
        let mesh = Mesh::new();
        let options = PeerOptions {
            alpn: vec!["http/1.1"],
            versions: vec![version],
            ..PeerOptions::good(&mesh.ca, "ct150")
        };
        let (peer, _address) = mesh.peer_with("ct150", &[], options).await;
        let plan = mesh.node("ct110").agent("opus");
        let plan = plan.with(|config| config["proxy"]["tls"]["min_version"] = "1.2".into());
        let node = plan.start().await;
        node.comes_to("/nodes/ct150/close", None).await;
        for _ in 0..3 {
            assert_eq!(node.get("/nodes/ct150/close").await.text(), "closed");
        }
        let resumed: Vec<_> = peer.accepted().iter().map(|accepted| accepted.resumed).collect();
        assert!(resumed.len() >= 4 && !resumed[0], "{version:?}: {resumed:?}");
        assert!(resumed[1..].iter().filter(|resumed| **resumed).count() >= 2, "{version:?}: {resumed:?}");
    }
}

#[tokio::test]
async fn a_peers_session_with_us_is_resumed_and_keeps_its_identity() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").with(|config| config["proxy"]["tls"]["min_version"] = "1.2".into());
    let mut node = plan.prepare().await;
    node.start_proxy().await;
    for version in rustls::ALL_VERSIONS {
        let client = Client::versions(&mesh.ca, &mesh.ca.node("ct111"), &[version]);
        let mut kinds = Vec::new();
        for _ in 0..3 {
            let mut stream = client.connect(node.inbound(), "ct110").await.unwrap();
            kinds.push(stream.get_ref().1.handshake_kind());
            stream
                .write_all(b"GET /api/mesh/ping HTTP/1.1\r\nhost: ct110.mesh\r\nconnection: close\r\n\r\n")
                .await
                .unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            let answer = mesh_tests::process::text(&answer);
            assert!(answer.contains("\"cn\":\"ct111\""), "{answer}");
        }
        assert_eq!(kinds[0], Some(HandshakeKind::Full), "{version:?}");
        assert!(kinds[1..].contains(&Some(HandshakeKind::Resumed)), "{version:?}: {kinds:?}");
    }
}

#[tokio::test]
async fn a_plain_nodejs_https_server_is_a_peer_and_its_client_too() {
    let mesh = Mesh::new();
    let address = Loopback::take();
    let identity = mesh.ca.node("ct150");
    let folder = mesh.folder().join("nodejs");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("node.crt"), &identity.chain_pem).unwrap();
    std::fs::write(folder.join("node.key"), &identity.key_pem).unwrap();
    let node = mesh.start("ct110", "opus").await;

    let mut command = Command::new("node");
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/cases/peer.js"))
        .args([address.ip().to_string(), "3000".into()])
        .args([folder.join("node.crt"), folder.join("node.key"), mesh.bundle_path()])
        .args([node.ip().to_string(), "3000".into()]);
    let mut nodejs = Daemon::start("nodejs", &mut command);
    nodejs.wait_log(&["listening"]).await;
    mesh.register("ct150", &address.ip().to_string(), 3000, &["scout"]);
    node.comes_to("/nodes/ct150/hello", None).await;

    let body = json!({"fromAgent": "opus", "message": "Grüße"});
    let answer = node.post("/nodes/ct150/api/message?x=1", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let told = answer.json();
    assert_eq!(told["cn"], "ct110", "{told}");
    assert_eq!(
        (&told["method"], &told["url"], &told["http"]),
        (&json!("POST"), &json!("/api/message?x=1"), &json!("1.1"))
    );
    assert_eq!(told["body"], body.to_string());

    // Streams from it arrive chunk by chunk too.
    let request = web::request(Method::GET, "/nodes/ct150/stream").body(web::empty()).unwrap();
    let mut response = web::open(node.outbound(), request).await.unwrap();
    web::expect_data(response.body_mut(), "data: 1\n\n").await;
    // It sends the rest only when asked.
    assert_eq!(node.get("/nodes/ct150/release").await.status, 200);
    web::expect_data(response.body_mut(), "data: 2\n\n").await;

    // Its own https client, with rejectUnauthorized, reaches our inbound side.
    let answer = node.get("/nodes/ct150/dial-back").await.json();
    assert_eq!((&answer["status"], &answer["cn"]), (&json!("ok"), &json!("ct150")), "{answer}");
}

#[tokio::test]
async fn new_certificates_are_used_after_sighup() {
    let mesh = Mesh::new();
    let (peer, _address) = mesh.peer("ct150", &[]).await;
    let mut node = mesh.start("ct110", "opus").await;
    node.reaches("ct150").await;
    let renewed = mesh.ca.node("ct110");
    std::fs::write(node.folder().join("node.crt"), &renewed.chain_pem).unwrap();
    // Half of a renewal is not used.
    node.proxy().signal(libc::SIGHUP);
    node.proxy()
        .wait_log(&["ERROR", "certificates not reloaded", "does not belong to the certificate"])
        .await;
    assert_eq!(node.get("/nodes/ct150/x").await.status, 200);
    std::fs::write(node.folder().join("node.key"), &renewed.key_pem).unwrap();
    node.proxy().signal(libc::SIGHUP);
    node.proxy().wait_log(&["INFO", "certificates reloaded"]).await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111"));
    let stream = client.connect(node.inbound(), "ct110").await.unwrap();
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], renewed.leaf()[0]);
    assert_eq!(node.get("/nodes/ct150/x").await.status, 200);
    assert_eq!(peer.accepted().len(), 2, "the old connection was used with the new certificate");
}

#[tokio::test]
async fn several_threads_share_the_work_and_everything_else() {
    let mesh = Mesh::new();
    let (peer, _address) = mesh.peer("ct150", &[]).await;
    let threads = |config: &mut serde_json::Value| config["proxy"]["threads"] = json!(3);
    let mut node = mesh.node("ct110").with(threads).agent("opus").start().await;
    node.reaches("ct150").await;
    for _ in 0..60 {
        assert_eq!(node.post("/nodes/ct150/echo", &json!(1)).await.text(), "1");
    }
    assert!(peer.accepted().len() <= 3, "one connection for each thread is enough");
    // All of them take new certificates, and all of them end.
    let renewed = mesh.ca.node("ct110");
    std::fs::write(node.folder().join("node.crt"), &renewed.chain_pem).unwrap();
    std::fs::write(node.folder().join("node.key"), &renewed.key_pem).unwrap();
    node.proxy().signal(libc::SIGHUP);
    node.proxy().wait_log(&["INFO", "certificates reloaded"]).await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111"));
    for _ in 0..20 {
        let stream = client.connect(node.inbound(), "ct110").await.unwrap();
        assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], renewed.leaf()[0]);
    }
    assert!(node.proxy().stop().await.success());
}

#[tokio::test]
async fn a_peer_that_never_completes_its_request_is_cut_off() {
    let mesh = Mesh::new();
    let limits = |config: &mut serde_json::Value| config["proxy"]["timeouts"] = json!({"header_ms": 300});
    let mut node = mesh.node("ct110").with(limits).agent("opus").prepare().await;
    node.start_proxy().await;
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111")).alpn(&["http/1.1"]);
    let mut stream = client.connect(node.inbound(), "ct110").await.unwrap();
    stream.write_all(b"GET /x HTTP/1.1\r\nhost: x\r\n").await.unwrap();
    let mut rest = Vec::new();
    // Closed, with or without a word.
    let _ = mesh_tests::within("the end of the connection", stream.read_to_end(&mut rest)).await;
    assert!(node.agent().requests().is_empty());
}

#[tokio::test]
async fn on_sigterm_nobody_comes_in_and_requests_in_flight_end() {
    let mesh = Mesh::new();
    let patient = |config: &mut serde_json::Value| config["proxy"]["timeouts"] = json!({"drain_ms": 20_000});
    let mut node = mesh.node("ct110").with(patient).agent("opus").start().await;
    let request = web::request(Method::GET, "/nodes/ct110/stream").body(web::empty()).unwrap();
    let mut response = web::open(node.outbound(), request).await.unwrap();
    let stream = node.agent().stream().await;
    stream.send(web::piece("one")).unwrap();
    web::expect_data(response.body_mut(), "one").await;
    node.proxy().signal(libc::SIGTERM);
    node.proxy().wait_log(&["[Mesh] stopping"]).await;
    // Its own request came in through inbound, so outbound stays open until it is answered.
    eventually("the port is closed", async || tokio::net::TcpStream::connect(node.inbound()).await.err())
        .await;
    assert_eq!(node.get("/mesh/nodes").await.status, 200);
    stream.send(web::piece("two")).unwrap();
    web::expect_data(response.body_mut(), "two").await;
    drop(stream);
    assert!(web::next_data(response.body_mut()).await.is_none());
    assert!(node.proxy().exited().await.success());
}

/// An accept(2) that fails with ENFILE, as where the whole system is out of files, while the file that the variable
/// names is there.
const FULL_TABLE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags) {
    if (access(getenv("MESH_TEST_FULL"), F_OK) == 0) { errno = ENFILE; return -1; }
    int (*real)(int, struct sockaddr *, socklen_t *, int) = dlsym(RTLD_NEXT, "accept4");
    return real(fd, address, length, flags);
}
"#;

#[tokio::test]
async fn where_the_system_is_out_of_files_the_sidecar_waits_and_does_not_spin() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").agent("opus").prepare().await;
    let (source, library) = (node.folder().join("full.c"), node.folder().join("full.so"));
    let full = node.folder().join("full");
    std::fs::write(&source, FULL_TABLE).unwrap();
    let mut cc = Command::new("cc");
    succeed(cc.args(["-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl"));
    node.start_registryd().await;
    let mut command = node.command("mesh-proxy");
    command.env("LD_PRELOAD", &library).env("MESH_TEST_FULL", &full);
    node.proxy = Some(Daemon::start("ct110 mesh-proxy", &mut command));
    node.proxy().wait_log(&["[Mesh] mesh-proxy ready"]).await;
    node.has_roster().await;
    std::fs::write(&full, "").unwrap();
    let waiting = TcpStream::connect(node.outbound()).await.unwrap();
    node.proxy().wait_log(&["WARN [Mesh] cannot accept connections on ", "trying again"]).await;
    let before = process::cpu_ticks(node.proxy().pid());
    tokio::time::sleep(Duration::from_secs(2)).await;
    // A loop that spins takes 200 ticks, with a line for each of thousands of tries.
    let took = process::cpu_ticks(node.proxy().pid()) - before;
    assert!(took < 50, "{took} ticks of a hundredth of a second");
    assert!(node.proxy().lines_with(&["cannot accept connections"]).len() < 3);
    // Who waited is served.
    std::fs::remove_file(&full).unwrap();
    let request = web::request(Method::GET, "/mesh/nodes").body(web::empty()).unwrap();
    assert_eq!(web::Connection::over(waiting).await.send(request).await.status, 200);
}

//! A connection lives only as long as its peer is trusted, in either direction, and ends in the middle of what it does.

use std::fs;
use std::time::{Duration, Instant};

use http::Method;
use http_body_util::BodyExt;
use mesh_tests::ca::Issued;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::supervised::Streams;
use mesh_tests::{eventually, web, within};
use serde_json::json;

/// Two nodes with a revocation list in this file, the one that is called with this certificate, and what the calling
/// one reads of a stream of the other.
async fn streaming(
    mesh: &Mesh,
    crl: &std::path::Path,
    called: &Issued,
) -> (Node, Node, http::Response<hyper::body::Incoming>) {
    let plan = |name: &str, agent: &str| {
        mesh.node(name).agent(agent).with(|config| config["proxy"]["crl_path"] = json!(crl))
    };
    let certified = plan("ct111", "grok").with(|config| {
        for (key, content) in [("cert_path", &called.chain_pem), ("key_path", &called.key_pem)] {
            fs::write(config["mesh"]["tls"][key].as_str().unwrap(), content).unwrap();
        }
    });
    let (one, two) = tokio::join!(plan("ct110", "opus").start(), certified.start());
    one.reaches("ct111").await;
    let request = web::request(Method::GET, "/nodes/ct111/stream").body(web::empty()).unwrap();
    let mut response = web::open(one.outbound(), request).await.unwrap();
    let stream = two.agent().stream().await;
    stream.send(web::piece("one")).unwrap();
    web::expect_data(response.body_mut(), "one").await;
    // Only the connection can end it.
    std::mem::forget(stream);
    (one, two, response)
}

async fn is_cut(mut response: http::Response<hyper::body::Incoming>) {
    let rest = within("the stream is cut", response.body_mut().frame()).await;
    assert!(matches!(rest, Some(Err(_))), "{rest:?}");
}

#[tokio::test]
async fn what_a_node_reads_from_a_peer_that_is_revoked_is_cut() {
    let mesh = Mesh::new();
    let crl = mesh.folder().join("crl.pem");
    let called = mesh.ca.node("ct111");
    fs::write(&crl, mesh.ca.crl_pem(&[])).unwrap();
    let (mut one, _two, response) = streaming(&mesh, &crl, &called).await;
    // Noticed without a signal.
    fs::write(&crl, mesh.ca.crl_pem(&[&called])).unwrap();
    one.proxy().wait_log(&["WARN", "[Outbound]", "cutting off", "ct111", "certificate is revoked"]).await;
    is_cut(response).await;
    one.get("/nodes/ct111/x").await.problem(502, "peer_untrusted");
}

#[tokio::test]
async fn with_a_revocation_list_end_the_connections_that_it_covered() {
    let mesh = Mesh::new();
    let crl = mesh.folder().join("crl.pem");
    fs::write(&crl, mesh.ca.crl_pem_ending(Duration::from_secs(20), &[])).unwrap();
    let (mut one, mut two, response) = streaming(&mesh, &crl, &mesh.ca.node("ct111")).await;
    is_cut(response).await;
    // Whoever was first has ended it for both.
    eventually("one of them says so", async || {
        let log = [one.proxy().log(), two.proxy().log()].concat();
        let told =
            |line: &&String| line.contains("cutting off") && line.contains("revocation list has expired");
        log.iter().find(told).cloned()
    })
    .await;
    // No session is resumed past it.
    for _ in 0..3 {
        one.get("/nodes/ct111/x").await.problem(502, "peer_untrusted");
    }
    fs::write(&crl, mesh.ca.crl_pem(&[])).unwrap();
    for node in [&mut one, &mut two] {
        node.proxy().signal(libc::SIGHUP);
    }
    one.comes_to("/nodes/ct111/x", None).await;
}

#[tokio::test]
async fn what_begins_late_in_the_life_of_a_certificate_goes_on_when_the_peer_has_a_new_one() {
    let mesh = Mesh::new();
    let life = Duration::from_secs(20);
    let (ends, old) = (Instant::now() + life, mesh.ca.ending("ct111", life));
    let (mut plan, mut files) = (mesh.node("ct111").agent("grok"), Vec::new());
    plan = plan.with(|config| {
        let tls = &config["mesh"]["tls"];
        files = ["cert_path", "key_path"].map(|key| tls[key].as_str().unwrap().to_owned()).into();
    });
    let put = |issued: &Issued| {
        fs::write(&files[0], &issued.chain_pem).unwrap();
        fs::write(&files[1], &issued.key_pem).unwrap();
    };
    put(&old);
    let (mut one, mut two) = tokio::join!(mesh.start("ct110", "opus"), plan.start());
    one.reaches("ct111").await;
    put(&mesh.ca.node("ct111"));
    two.proxy().signal(libc::SIGHUP);
    two.proxy().wait_log(&["certificates reloaded"]).await;
    // The connection of before is in use all the time.
    let mut stream = None;
    while Instant::now() < ends + Duration::from_secs(2) {
        assert_eq!(one.get("/nodes/ct111/x").await.status, 200);
        if stream.is_none() && ends - Instant::now() < life / 4 {
            stream = Some(Streams::open(&one, "/nodes/ct111/stream", &two, 1).await);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut stream = stream.unwrap();
    stream.flow().await;
    stream.end().await;
    let cut = one.proxy().lines_with(&["cutting off"]);
    assert!(cut.is_empty(), "it was closed when nothing used it any more: {cut:?}");
}

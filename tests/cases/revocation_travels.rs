//! Revocation lists travel by themselves: one node's file is enough for the whole mesh, and nobody can take a revocation
//! back.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use http::Method;
use http_body_util::BodyExt;
use mesh_shared::local_api::CRL;
use mesh_tests::ca::{Ca, Issued, Spec, params};
use mesh_tests::mesh::{Mesh, Node, Plan};
use mesh_tests::process::{Daemon, succeed};
use mesh_tests::tls::{Client, PeerOptions};
use mesh_tests::web::{self, Answer};
use mesh_tests::{eventually, within};
use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, SerialNumber, date_time_ymd};
use serde_json::json;

use super::meshctl::ca;

const DAY: Duration = Duration::from_secs(86_400);

/// A node whose certificate the real CA in `folder` issued, with a copy of the bundle, or beside the CA's own files.
fn certified(mesh: &Mesh, folder: &Path, name: &str, agent: &str, at_ca: bool) -> (Plan, Issued) {
    let of_ca = folder.join("rivet-ca");
    let read = |file: String| fs::read_to_string(of_ca.join(file)).unwrap();
    let (certificate, key) = (read(format!("issued/{name}.crt")), read(format!("issued/{name}.key")));
    let own = mesh.folder().join(format!("trust-{name}"));
    fs::create_dir(&own).unwrap();
    let bundle = match at_ca {
        true => of_ca.join("intermediate/ca-chain.pem"),
        false => own.join("ca-chain.pem"),
    };
    if !at_ca {
        fs::copy(of_ca.join("intermediate/ca-chain.pem"), &bundle).unwrap();
    }
    let plan = mesh.node(name).agent(agent).with(|config| {
        for (key, content) in [("cert_path", &certificate), ("key_path", &key)] {
            fs::write(config["mesh"]["tls"][key].as_str().unwrap(), content).unwrap();
        }
        config["mesh"]["tls"]["ca_path"] = json!(bundle);
    });
    (plan, Issued { cert_pem: String::new(), chain_pem: certificate, key_pem: key, serial: Vec::new() })
}

async fn stream(from: &Node, to: &Node) -> http::Response<hyper::body::Incoming> {
    let target = format!("/nodes/{}/stream", to.name);
    let request = web::request(Method::GET, &target).body(web::empty()).unwrap();
    let mut response = web::open(from.outbound(), request).await.unwrap();
    let sender = to.agent().stream().await;
    sender.send(web::piece("one")).unwrap();
    web::expect_data(response.body_mut(), "one").await;
    // Only the connection can end it.
    std::mem::forget(sender);
    response
}

async fn is_cut(mut response: http::Response<hyper::body::Incoming>) {
    let rest = within("the stream is cut", response.body_mut().frame()).await;
    assert!(matches!(rest, Some(Err(_))), "{rest:?}");
}

#[tokio::test]
async fn one_file_on_one_node_is_enough_for_all() {
    let mesh = Mesh::new();
    let folder = tempfile::tempdir().unwrap();
    succeed(&mut ca(folder.path(), &["init"]));
    let names = ["ct110", "ct111", "ct112", "ct113", "ct114"];
    for name in names {
        succeed(&mut ca(folder.path(), &["issue-node", name]));
    }
    let plan = |name, agent, at_ca| certified(&mesh, folder.path(), name, agent, at_ca);
    let gone = plan("ct111", "grok", false);
    // One that demands lists has a copy that nobody brings up to date.
    let strict = mesh.folder().join("strict.pem");
    fs::copy(folder.path().join("rivet-ca/intermediate/crl.pem"), &strict).unwrap();
    let demanding =
        plan("ct113", "hermes", false).0.with(|config| config["proxy"]["crl_path"] = json!(strict));
    let (mut one, two, mut three, mut four, mut five) = tokio::join!(
        plan("ct110", "opus", true).0.start(),
        gone.0.start(),
        plan("ct112", "scout", false).0.start(),
        demanding.start(),
        plan("ct114", "ada", false).0.start(),
    );
    for node in [&one, &three, &four, &five] {
        tokio::join!(node.reaches("ct111"), two.reaches(&node.name));
    }
    // In both directions, with nodes that have nothing to do with the CA's files.
    let (called, caller) = (stream(&three, &two).await, stream(&two, &five).await);

    succeed(&mut ca(folder.path(), &["revoke", "ct111"]));
    is_cut(called).await;
    is_cut(caller).await;
    let client = Client::trusting(
        &fs::read_to_string(mesh.folder().join("trust-ct112/ca-chain.pem")).unwrap(),
        &gone.1,
    );
    for node in [&mut one, &mut three, &mut four, &mut five] {
        let name = node.name.clone();
        eventually(&format!("{name} refuses ct111"), async || {
            let answer = node.get("/nodes/ct111/x").await;
            (answer.header("x-mesh-error") == Some("peer_untrusted")).then_some(())
        })
        .await;
        client.refused(node.inbound(), &name).await;
        assert!(
            node.proxy().lines_with(&["is older than the one in use"]).is_empty(),
            "nobody put a file back"
        );
    }
    three.proxy().wait_log(&["cutting off the connection to ct111", "certificate is revoked"]).await;
    five.proxy().wait_log(&["cutting off peer.cn=ct111", "certificate is revoked"]).await;
    // The others go on with each other, and what a peer said counts after a restart as well.
    one.reaches("ct113").await;
    assert!(three.proxy().stop().await.success());
    three.start_proxy().await;
    client.refused(three.inbound(), "ct112").await;
    three.comes_to("/nodes/ct111/x", Some("peer_untrusted")).await;
    three.reaches("ct110").await;
}

/// Sends lists as the member ct119 does.
async fn push(mesh: &Mesh, node: &Node, body: impl Into<bytes::Bytes>) -> Answer {
    let request = web::request(Method::POST, CRL).body(web::full(body)).unwrap();
    node.from_peer(mesh, "ct119", request).await
}

async fn taken(mesh: &Mesh, node: &Node, lists: &str) -> u64 {
    // Others may have used up what a peer may send in a second.
    let answer = eventually("lists may be sent", async || {
        Some(push(mesh, node, lists.to_owned()).await).filter(|answer| answer.status != 429)
    })
    .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["taken"].as_u64().unwrap()
}

/// A list that somebody signed who is no CA.
fn list_by_leaf(cn: &str) -> String {
    let mut leaf = params(&Spec::node(cn));
    leaf.key_usages.clear();
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2026, 1, 1),
        next_update: date_time_ymd(2090, 1, 1),
        crl_number: SerialNumber::from(99u64),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(&Issuer::new(leaf, KeyPair::generate().unwrap())).unwrap().pem().unwrap()
}

#[tokio::test]
async fn no_member_can_take_a_revocation_back() {
    let mesh = Mesh::new();
    let (gone, other) = (mesh.ca.node("ct111"), mesh.ca.node("ct112"));
    let mut node = mesh.node("ct110").prepare().await;
    node.start_proxy().await;
    let now = SystemTime::now();
    let made = |days: u32, revoked: &[&Issued]| mesh.ca.crl_pem_made(now - days * DAY, revoked);
    let (client, bystander) = (Client::new(&mesh.ca, &gone), Client::new(&mesh.ca, &other));
    let open = client.connect(node.inbound(), "ct110").await.unwrap();
    let list = made(5, &[&gone]);
    assert_eq!(taken(&mesh, &node, &list).await, 1);
    node.proxy().wait_log(&["cutting off peer.cn=ct111", "certificate is revoked"]).await;
    drop(open);
    client.refused(node.inbound(), "ct110").await;

    let namesake = mesh.ca.namesake();
    for (what, lists) in [
        ("the same", list.clone()),
        ("an older one", made(6, &[])),
        ("one from the future", mesh.ca.crl_pem_made(now + DAY, &[])),
        ("another CA that calls itself the same", namesake.crl_pem_made(now - DAY, &[&other])),
        ("another CA", Ca::new().crl_pem_made(now - DAY, &[&other])),
        ("a leaf", list_by_leaf("ct119")),
        ("none", String::new()),
        ("no lists", mesh.ca.bundle_pem()),
        ("all of them", made(6, &[]) + &namesake.crl_pem_made(now - DAY, &[&other]) + &list_by_leaf("ct119")),
    ] {
        assert_eq!(taken(&mesh, &node, &lists).await, 0, "{what}");
        client.refused(node.inbound(), "ct110").await;
        drop(
            bystander
                .connect(node.inbound(), "ct110")
                .await
                .unwrap_or_else(|error| panic!("{what}: {error}")),
        );
    }
    let given = node.get_from_peer(&mesh, "ct112", CRL).await;
    assert_eq!((given.status.as_u16(), given.text()), (200, list.clone()));
    let tag = given.header("etag").unwrap().to_owned();
    let again = node.from_peer(&mesh, "ct112", web::get_with(CRL, &[("if-none-match", &tag)])).await;
    assert_eq!((again.status.as_u16(), again.body.len()), (304, 0));
    // What is newer counts, among others as well.
    let seen = node.proxy().log().len();
    assert_eq!(taken(&mesh, &node, &(list + &made(1, &[&gone, &other]))).await, 1);
    node.proxy().wait_log_after(seen, &["newer revocation lists are in use"]).await;
    bystander.refused(node.inbound(), "ct110").await;
}

#[tokio::test]
async fn garbage_and_floods_are_bounded() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    node.start_proxy().await;
    let list = mesh.ca.crl_pem_made(SystemTime::now() - DAY, &[]);
    let answer = push(&mesh, &node, "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n").await;
    answer.problem(400, "bad_request");
    push(&mesh, &node, list.repeat(65)).await.problem(400, "bad_request");
    push(&mesh, &node, vec![b'x'; (1 << 20) + 1]).await.problem(413, "body_too_large");
    let chunked = {
        let (sender, body) = web::channel();
        for _ in 0..33 {
            sender.send(web::piece(vec![b'x'; 32 << 10])).unwrap();
        }
        web::request(Method::POST, CRL).body(body).unwrap()
    };
    eventually("the rate of before is over", async || {
        (push(&mesh, &node, "").await.status != 429).then_some(())
    })
    .await;
    node.from_peer(&mesh, "ct118", chunked).await.problem(413, "body_too_large");
    for method in [Method::PUT, Method::DELETE] {
        let request = web::request(method, "/api/mesh/%63rl/").body(web::empty()).unwrap();
        node.from_peer(&mesh, "ct118", request).await.problem(405, "method_not_allowed");
    }

    let flood = (0..60).map(|_| push(&mesh, &node, mesh.ca.namesake().crl_pem(&[])));
    let answers = futures_util::future::join_all(flood).await;
    let limited = answers.iter().filter(|answer| answer.status == 429).count();
    assert!(limited >= 30, "{limited}");
    assert!(answers.iter().all(|answer| matches!(answer.status.as_u16(), 200 | 429)));
    // Others are not kept from theirs.
    let request = web::request(Method::POST, CRL).body(web::full(list.clone())).unwrap();
    let answer = node.from_peer(&mesh, "ct112", request).await;
    assert_eq!((answer.status.as_u16(), answer.json()["taken"].as_u64()), (200, Some(1)));
    // It is in use a moment later.
    eventually("the list is passed on", async || {
        (node.get_from_peer(&mesh, "ct112", CRL).await.text() == list).then_some(())
    })
    .await;
}

#[tokio::test]
async fn peers_without_a_sidecar_are_left_alone() {
    let mesh = Mesh::new();
    let (peer, _address) = mesh.peer_with("ct150", &[], PeerOptions::good(&mesh.ca, "ct150")).await;
    let (mut one, mut two) = mesh.pair().await;
    for node in [&mut one, &mut two] {
        node.proxy().stop().await;
        let mut command = node.command("mesh-proxy");
        let mut proxy = Daemon::start("mesh-proxy", command.env("MESH_LOG", "info,Mesh=debug"));
        proxy.wait_log(&["[Mesh] mesh-proxy ready"]).await;
        node.proxy = Some(proxy);
        node.reaches("ct150").await;
    }
    let made = |days: u32| mesh.ca.crl_pem_made(SystemTime::now() - days * DAY, &[]);
    for (days, asked) in [(5, 1), (4, 1), (3, 1)] {
        let list = made(days);
        assert_eq!(taken(&mesh, &one, &list).await, 1);
        eventually("the other sidecar has it", async || {
            (two.get_from_peer(&mesh, "ct119", CRL).await.text() == list).then_some(())
        })
        .await;
        eventually("it was asked", async || (peer.example.asked_for_lists() >= asked).then_some(())).await;
        for node in [&mut one, &mut two] {
            node.proxy().wait_log(&["exchanging no revocation lists with ct150 for a while"]).await;
        }
    }
    // Once by each sidecar.
    assert!(peer.example.asked_for_lists() <= 2, "{}", peer.example.asked_for_lists());
}

//! Certificates, keys and revocation lists as files that change while the sidecar runs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime};

use mesh_tests::ca::Issued;
use mesh_tests::eventually;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::{run, text};
use mesh_tests::tls::{Client, Peer, PeerOptions};
use rustls::NamedGroup;
use serde_json::json;

const DAY: Duration = Duration::from_secs(86_400);

fn write(folder: &Path, identity: &Issued) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("tls.crt"), &identity.chain_pem).unwrap();
    fs::write(folder.join("tls.key"), &identity.key_pem).unwrap();
}

/// What a node presents to a client.
async fn presented(mesh: &Mesh, node: &Node) -> Vec<u8> {
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111"));
    let stream = client.connect(node.inbound(), &node.name).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

async fn presents(mesh: &Mesh, node: &Node, identity: &Issued) {
    eventually("the new certificate is presented", async || {
        (presented(mesh, node).await == identity.leaf()[0].to_vec()).then_some(())
    })
    .await;
}

fn status(node: &Node) -> String {
    text(&run(node.command("meshctl").arg("status")).stdout)
}

#[tokio::test]
async fn a_link_that_is_swapped_is_noticed_without_a_signal() {
    let mesh = Mesh::new();
    let (first, second) = (mesh.ca.node("ct110"), mesh.ca.node("ct110"));
    // As Kubernetes mounts a secret: the files are links below a link that is swapped.
    let volume = mesh.folder().join("volume");
    write(&volume.join("..1"), &first);
    write(&volume.join("..2"), &second);
    symlink("..1", volume.join("..data")).unwrap();
    for file in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{file}"), volume.join(file)).unwrap();
    }
    let plan = mesh.node("ct110").with(|config| {
        config["mesh"]["tls"]["cert_path"] = json!(volume.join("tls.crt"));
        config["mesh"]["tls"]["key_path"] = json!(volume.join("tls.key"));
    });
    let mut node = plan.prepare().await;
    node.start_proxy().await;
    assert_eq!(presented(&mesh, &node).await, first.leaf()[0].to_vec());
    symlink("..2", volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    presents(&mesh, &node, &second).await;
    node.proxy().wait_log(&["certificates reloaded"]).await;
    assert_eq!(node.proxy().lines_with(&["certificates reloaded"]).len(), 1);
    assert!(node.proxy().lines_with(&["WARN", "not reloaded"]).is_empty());
}

#[tokio::test]
async fn files_that_do_not_fit_change_nothing_and_are_told_once() {
    let mesh = Mesh::new();
    let (first, second) = (mesh.ca.node("ct110"), mesh.ca.node("ct110"));
    let folder = mesh.folder().join("own");
    write(&folder, &first);
    let plan = mesh.node("ct110").agent("opus").with(|config| {
        config["mesh"]["tls"]["cert_path"] = json!(folder.join("tls.crt"));
        config["mesh"]["tls"]["key_path"] = json!(folder.join("tls.key"));
    });
    let mut node = plan.start().await;
    fs::write(folder.join("tls.key"), &second.key_pem).unwrap();
    let told = ["WARN [Mesh] certificates not reloaded", "does not belong to the certificate"];
    node.proxy().wait_log(&told).await;
    assert_eq!(presented(&mesh, &node).await, first.leaf()[0].to_vec());
    eventually("meshctl status tells", async || {
        status(&node).contains("does not belong to the certificate").then_some(())
    })
    .await;
    // Other content that does not fit either is told as well.
    fs::write(folder.join("tls.crt"), "-----BEGIN CERTIFICATE-----\n").unwrap();
    node.proxy().wait_log(&["WARN [Mesh] certificates not reloaded", "tls.crt: line 1:", "cut off"]).await;
    assert_eq!(node.proxy().lines_with(&told).len(), 1);
    fs::write(folder.join("tls.crt"), &second.chain_pem).unwrap();
    presents(&mesh, &node, &second).await;
    eventually("meshctl status tells no more", async || {
        (!status(&node).contains("not reloaded")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_list_never_goes_back_to_an_older_one() {
    let mesh = Mesh::new();
    let gone = mesh.ca.node("ct112");
    let crl = mesh.folder().join("crl.pem");
    let now = SystemTime::now();
    let old = mesh.ca.crl_pem_made(now - 10 * DAY, &[]);
    let new = mesh.ca.crl_pem_made(now - 5 * DAY, &[&gone]);
    fs::write(&crl, &old).unwrap();
    let plan = mesh.node("ct110").agent("opus").with(|config| config["proxy"]["crl_path"] = json!(crl));
    let mut node = plan.start().await;
    let client = Client::new(&mesh.ca, &gone);
    let stream = client.connect(node.inbound(), "ct110").await.unwrap();
    // Noticed by itself, and the open connection ends with it.
    fs::write(&crl, &new).unwrap();
    node.proxy().wait_log(&["cutting off peer.cn=ct112", "certificate is revoked"]).await;
    drop(stream);
    for both in [old.clone(), format!("{old}{new}"), format!("{new}{old}"), old.clone()] {
        let seen = node.proxy().log().len();
        fs::write(&crl, &both).unwrap();
        node.proxy().signal(libc::SIGHUP);
        node.proxy().wait_log_after(seen, &["certificates reloaded"]).await;
        client.refused(node.inbound(), "ct110").await;
    }
    node.proxy().wait_log(&["WARN [Mesh]", "is older than the one in use"]).await;
    eventually("meshctl status tells", async || {
        status(&node).contains("is older than the one in use").then_some(())
    })
    .await;
    // Nor after a restart.
    assert!(node.proxy().stop().await.success());
    node.start_proxy().await;
    client.refused(node.inbound(), "ct110").await;
    assert_eq!(node.get_from_peer(&mesh, "ct111", "/api/mesh/ping").await.status, 200);
}

#[tokio::test]
async fn a_list_from_the_future_does_not_count_before_its_time() {
    let mesh = Mesh::new();
    let peer = mesh.ca.node("ct111");
    let crl = mesh.folder().join("crl.pem");
    let now = SystemTime::now();
    let coming = mesh.ca.crl_pem_made(now + Duration::from_secs(12), &[&peer]);
    fs::write(&crl, mesh.ca.crl_pem_made(now - DAY, &[]) + &coming).unwrap();
    let plan = mesh.node("ct110").with(|config| config["proxy"]["crl_path"] = json!(crl));
    let mut node = plan.prepare().await;
    let told = text(&run(node.command("mesh-proxy").arg("check")).stdout);
    assert!(told.contains("warn revocation lists") && told.contains("made in the future"), "{told}");
    node.start_proxy().await;
    node.proxy().wait_log(&["WARN [Mesh]", "made in the future"]).await;
    let client = Client::new(&mesh.ca, &peer);
    let stream = client.connect(node.inbound(), "ct110").await.unwrap();
    // Its time comes: without another look at the files.
    node.proxy().wait_log(&["cutting off peer.cn=ct111", "certificate is revoked"]).await;
    drop(stream);
    client.refused(node.inbound(), "ct110").await;
}

#[tokio::test]
async fn a_list_that_ends_soon_is_told_days_before() {
    let mesh = Mesh::new();
    let crl = mesh.folder().join("crl.pem");
    fs::write(&crl, mesh.ca.crl_pem_ending(2 * DAY + Duration::from_secs(1800), &[])).unwrap();
    let plan = mesh.node("ct110").agent("opus").with(|config| config["proxy"]["crl_path"] = json!(crl));
    let mut node = plan.start().await;
    node.proxy().wait_log(&["WARN [Mesh] the revocation list of", "ends in 48 hours"]).await;
    eventually("meshctl status tells", async || status(&node).contains("ends in 48 hours").then_some(()))
        .await;
    fs::write(&crl, mesh.ca.crl_pem(&[])).unwrap();
    eventually("it is renewed", async || (!status(&node).contains("hours; from then on")).then_some(()))
        .await;
    assert_eq!(node.proxy().lines_with(&["ends in 48 hours"]).len(), 1);
}

#[tokio::test]
async fn tls_1_3_with_a_post_quantum_group_unless_told_otherwise() {
    let mesh = Mesh::new();
    let identity = mesh.ca.node("ct111");
    let mut node = mesh.node("ct110").prepare().await;
    node.start_proxy().await;
    let group = async |node: &Node| {
        let stream = Client::new(&mesh.ca, &identity).connect(node.inbound(), &node.name).await.unwrap();
        stream.get_ref().1.negotiated_key_exchange_group().unwrap().name()
    };
    assert_eq!(group(&node).await, NamedGroup::X25519MLKEM768);
    let old = Client::versions(&mesh.ca, &identity, &[&rustls::version::TLS12]);
    old.refused(node.inbound(), "ct110").await;
    node.proxy().wait_log(&["TLS handshake failed", "proxy.tls.min_version"]).await;

    let plan =
        mesh.node("ct112").with(|config| config["proxy"]["tls"] = json!({"groups": ["X25519", "secp384r1"]}));
    let mut without = plan.prepare().await;
    without.start_proxy().await;
    assert_eq!(group(&without).await, NamedGroup::X25519);
}

#[tokio::test]
async fn a_peer_that_speaks_older_tls_alone_is_told_as_such() {
    let mesh = Mesh::new();
    let options =
        PeerOptions { versions: vec![&rustls::version::TLS12], ..PeerOptions::good(&mesh.ca, "ct150") };
    let (_peer, _address): (Peer, _) = mesh.peer_with("ct150", &[], options).await;
    let node = mesh.start("ct110", "opus").await;
    let answer = node.comes_to("/nodes/ct150/x", Some("peer_unreachable")).await;
    let detail = answer.problem(502, "peer_unreachable");
    assert!(detail.contains("proxy.tls.min_version"), "{detail}");
}

#[tokio::test]
async fn a_firewall_that_drops_large_handshakes_is_hinted_at() {
    let mesh = Mesh::new();
    // Takes connections and never says a word.
    let address = mesh_tests::loopback::Loopback::take();
    let listener = mesh_tests::loopback::listen(address.port(3000)).await;
    mesh.register("ct150", &address.ip().to_string(), 3000, &[]);
    let plan = mesh.node("ct110").agent("opus");
    let node = plan.with(|config| config["proxy"]["timeouts"]["handshake_ms"] = json!(1000)).start().await;
    let answer = node.comes_to("/nodes/ct150/x", Some("peer_timeout")).await;
    let detail = answer.problem(504, "peer_timeout");
    assert!(detail.contains("X25519MLKEM768 out of proxy.tls.groups"), "{detail}");
    drop(listener);
}

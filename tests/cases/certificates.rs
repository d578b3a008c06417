//! Certificates and keys as people make them: every usual form of file works.

use std::fs;
use std::path::Path;
use std::process::Command;

use http::Method;
use mesh_tests::ca::Issued;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::{command, run, succeed, text};
use mesh_tests::tls::Client;
use mesh_tests::web;
use serde_json::json;

use super::meshctl::ca;

fn openssl(folder: &Path, line: &str) -> String {
    succeed(Command::new("openssl").current_dir(folder).args(line.split_whitespace()))
}

/// A root and an intermediate made by openssl in `folder`; `ca-chain.pem` holds both.
fn openssl_ca(folder: &Path) {
    fs::write(
        folder.join("ca.ext"),
        "[root]\nbasicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n\
         [intermediate]\nbasicConstraints=critical,CA:true,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n\
         subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n",
    )
    .unwrap();
    openssl(folder, "genrsa -out root.key 2048");
    openssl(folder, "req -new -key root.key -subj /CN=OpensslRoot -out root.csr");
    openssl(
        folder,
        "x509 -req -in root.csr -signkey root.key -days 30 -extfile ca.ext -extensions root -out root.crt",
    );
    openssl(folder, "ecparam -name prime256v1 -genkey -noout -out int.key");
    openssl(folder, "req -new -key int.key -subj /CN=OpensslIntermediate -out int.csr");
    openssl(
        folder,
        "x509 -req -in int.csr -CA root.crt -CAkey root.key -CAcreateserial -days 30 -extfile ca.ext \
         -extensions intermediate -out int.crt",
    );
    let bundle = fs::read_to_string(folder.join("int.crt")).unwrap()
        + &fs::read_to_string(folder.join("root.crt")).unwrap();
    fs::write(folder.join("ca-chain.pem"), bundle).unwrap();
}

/// Signs `key` (a file in `folder`) for a subject; gives the leaf's PEM.
fn openssl_leaf(folder: &Path, key: &str, subject: &str, extensions: &str, more: &[&str]) -> String {
    fs::write(folder.join("leaf.ext"), extensions).unwrap();
    openssl(folder, &format!("req -new -key {key} -subj {subject} -out leaf.csr"));
    let line =
        "x509 -req -in leaf.csr -CA int.crt -CAkey int.key -CAcreateserial -extfile leaf.ext -out leaf.crt";
    let days: &[&str] = if more.contains(&"-days") { &[] } else { &["-days", "30"] };
    succeed(Command::new("openssl").current_dir(folder).args(line.split_whitespace()).args(days).args(more));
    fs::read_to_string(folder.join("leaf.crt")).unwrap()
}

const NODE_EXTENSIONS: &str = "subjectAltName=DNS:ct110.mesh,IP:127.0.0.1\nextendedKeyUsage=clientAuth,serverAuth\n\
     keyUsage=critical,digitalSignature\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n";

/// Gives ct110 a certificate of an openssl CA, with more options for its `x509` command.
pub fn openssl_node(mesh: &Mesh, node: &Node, more: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    openssl_ca(folder.path());
    openssl(folder.path(), "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out leaf.key");
    let leaf = openssl_leaf(folder.path(), "leaf.key", "/CN=ct110", NODE_EXTENSIONS, more);
    fs::write(node.folder().join("node.crt"), leaf).unwrap();
    fs::copy(folder.path().join("leaf.key"), node.folder().join("node.key")).unwrap();
    fs::copy(folder.path().join("ca-chain.pem"), mesh.bundle_path()).unwrap();
}

/// Runs mesh-proxy with these files and has a peer with the same files ping it.
async fn serves(mesh: &Mesh, node: &mut Node, what: &str, certificate: &str, key: &str) {
    fs::write(node.folder().join("node.crt"), certificate).unwrap();
    fs::write(node.folder().join("node.key"), key).unwrap();
    let checked = run(command("mesh-proxy").arg("check").arg("--config").arg(&node.config_path));
    assert!(checked.status.success(), "{what}: {}{}", text(&checked.stdout), text(&checked.stderr));
    node.start_proxy().await;

    // The trust bundle on disk is openssl's, so this client trusts nothing else either.
    let inbound = node.inbound().to_string();
    let mut ping = Command::new("openssl");
    ping.args(["s_client", "-quiet", "-verify_return_error", "-servername", "ct110.mesh"])
        .args(["-verify_hostname", "ct110.mesh", "-connect", &inbound, "-CAfile"])
        .arg(mesh.bundle_path())
        .arg("-cert")
        .arg(node.folder().join("node.crt"))
        .arg("-key")
        .arg(node.folder().join("node.key"));
    let output = super::piped(
        &mut ping,
        b"GET /api/mesh/ping HTTP/1.1\r\nhost: ct110.mesh\r\nconnection: close\r\n\r\n",
    );
    assert!(output.contains("\"cn\":\"ct110"), "{what}: {output}");
    node.proxy = None;
}

#[tokio::test]
async fn every_usual_form_of_certificate_and_key_file_works() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    openssl_ca(at);
    fs::copy(at.join("ca-chain.pem"), mesh.bundle_path()).unwrap();

    // The same RSA key as PKCS#1 and PKCS#8, the same EC key as SEC1 (with and without parameters) and PKCS#8.
    openssl(at, "genrsa -traditional -out rsa1.key 2048");
    openssl(at, "pkcs8 -topk8 -nocrypt -in rsa1.key -out rsa8.key");
    openssl(at, "ecparam -name prime256v1 -genkey -noout -out ec1.key");
    openssl(at, "ecparam -name prime256v1 -out ec.params");
    openssl(at, "pkcs8 -topk8 -nocrypt -in ec1.key -out ec8.key");
    openssl(at, "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out ec384.key");
    openssl(at, "genpkey -algorithm ED25519 -out ed.key");
    let file = |name: &str| fs::read_to_string(at.join(name)).unwrap();
    let rsa = openssl_leaf(at, "rsa1.key", "/O=Test/CN=ct110", NODE_EXTENSIONS, &[]);
    let ec = openssl_leaf(at, "ec1.key", "/CN=ct110", NODE_EXTENSIONS, &[]);
    let ec_mesh = openssl_leaf(at, "ec1.key", "/CN=ct110.mesh/O=Behind", NODE_EXTENSIONS, &[]);
    let ec384 = openssl_leaf(at, "ec384.key", "/CN=ct110", NODE_EXTENSIONS, &[]);
    let ed = openssl_leaf(at, "ed.key", "/CN=ct110", NODE_EXTENSIONS, &[]);
    let with_text = openssl(at, "x509 -in leaf.crt -text");
    assert!(
        file("rsa1.key").contains("BEGIN RSA PRIVATE KEY")
            && file("ec1.key").contains("BEGIN EC PRIVATE KEY")
    );

    let intermediate = file("int.crt");
    for (what, certificate, key) in [
        ("RSA, PKCS#1, leaf alone", rsa.clone(), file("rsa1.key")),
        ("RSA, PKCS#8, with chain", rsa.clone() + &intermediate, file("rsa8.key")),
        ("RSA, with the whole chain and the root", rsa + &intermediate + &file("root.crt"), file("rsa8.key")),
        ("EC, SEC1, leaf alone", ec.clone(), file("ec1.key")),
        ("EC, SEC1 behind its parameters", ec.clone(), file("ec.params") + &file("ec1.key")),
        ("EC, PKCS#8, with chain", ec.clone() + &intermediate, file("ec8.key")),
        ("EC, P-384", ec384, file("ec384.key")),
        ("Ed25519", ed, file("ed.key")),
        ("CN=ct110.mesh", ec_mesh, file("ec1.key")),
        (
            "trailing blank lines",
            ec.clone() + "\n\n  \n" + &intermediate + "\n\n\n",
            file("ec8.key") + "\n\n",
        ),
        ("CRLF line ends", ec.replace('\n', "\r\n"), file("ec8.key").replace('\n', "\r\n")),
        ("no final line end", ec.trim_end().into(), file("ec8.key").trim_end().into()),
        ("text before the PEM block", with_text, file("ed.key")),
    ] {
        serves(&mesh, &mut node, what, &certificate, &key).await;
    }
}

#[tokio::test]
async fn a_certificate_with_two_common_names_is_refused_on_both_sides() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    let folder = tempfile::tempdir().unwrap();
    openssl_ca(folder.path());
    openssl(folder.path(), "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out leaf.key");
    let issue = |subject: &str| openssl_leaf(folder.path(), "leaf.key", subject, NODE_EXTENSIONS, &[]);
    let (good, two) = (issue("/CN=ct110"), issue("/CN=ct110/CN=ct111"));
    let key = fs::read_to_string(folder.path().join("leaf.key")).unwrap();
    fs::copy(folder.path().join("ca-chain.pem"), mesh.bundle_path()).unwrap();

    fs::write(node.folder().join("node.key"), &key).unwrap();
    fs::write(node.folder().join("node.crt"), &two).unwrap();
    let checked = run(command("mesh-proxy").arg("check").arg("--config").arg(&node.config_path));
    assert_eq!(checked.status.code(), Some(1));
    assert!(text(&checked.stdout).contains("2 common names"), "{}", text(&checked.stdout));

    fs::write(node.folder().join("node.crt"), good).unwrap();
    node.start_proxy().await;
    // The client does not get as far as verifying the server: its own trust does not matter.
    let bad = Issued { cert_pem: two.clone(), chain_pem: two, key_pem: key, serial: Vec::new() };
    let trusting = mesh_tests::tls::Client::trusting(&fs::read_to_string(mesh.bundle_path()).unwrap(), &bad);
    trusting.refused(node.inbound(), "ct110").await;
    node.proxy()
        .wait_log(&["WARN [AgentChannel] TLS handshake failed from 127.0.0.1: ", "2 common names"])
        .await;
}

#[tokio::test]
async fn a_peer_may_send_its_leaf_alone_or_with_its_chain() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    node.start_proxy().await;
    let identity = mesh.ca.node("ct111");
    for client in [Client::new(&mesh.ca, &identity), Client::leaf_alone(&mesh.ca, &identity)] {
        let request = web::request(Method::GET, "/api/mesh/ping").body(web::empty()).unwrap();
        assert_eq!(client.send(node.inbound(), "ct110", request).await.status, 200);
    }
}

/// What `meshctl ca` issued under a name: with its intermediate, and as a leaf that is sent alone.
fn issued(folder: &Path, name: &str) -> [Issued; 2] {
    let read = |end: &str| fs::read_to_string(folder.join(format!("rivet-ca/issued/{name}.{end}"))).unwrap();
    let (chain_pem, key_pem) = (read("crt"), read("key"));
    let end = "-----END CERTIFICATE-----\n";
    let cert_pem = chain_pem[..chain_pem.find(end).unwrap() + end.len()].to_owned();
    let alone = Issued { chain_pem: cert_pem.clone(), cert_pem, key_pem, serial: Vec::new() };
    [Issued { chain_pem, ..alone.clone() }, alone]
}

/// A node with a certificate of `meshctl ca`, which looks at its revocation list.
async fn node_of_meshctl(mesh: &Mesh, name: &str) -> Node {
    succeed(&mut ca(mesh.folder(), &["issue-node", name]));
    let dir = mesh.folder().join("rivet-ca");
    let plan = mesh.node(name).with(|config| {
        config["mesh"]["tls"] = json!({
            "ca_path": dir.join("intermediate/ca-chain.pem"),
            "cert_path": dir.join(format!("issued/{name}.crt")),
            "key_path": dir.join(format!("issued/{name}.key")),
        });
        config["proxy"]["crl_path"] = json!(dir.join("intermediate/crl.pem"));
    });
    let mut node = plan.prepare().await;
    node.start_proxy().await;
    node
}

/// A client of `node` that presents `identity` and trusts what is trusted now.
fn client(mesh: &Mesh, identity: &Issued) -> Client {
    let bundle = mesh.folder().join("rivet-ca/intermediate/ca-chain.pem");
    Client::trusting(&fs::read_to_string(bundle).unwrap(), identity)
}

async fn is_served(mesh: &Mesh, node: &Node, identity: &Issued) {
    let request = web::request(Method::GET, "/api/mesh/ping").body(web::empty()).unwrap();
    assert_eq!(client(mesh, identity).send(node.inbound(), &node.name, request).await.status, 200);
}

async fn reload(node: &mut Node) {
    let before = node.proxy().log().len();
    node.proxy().signal(libc::SIGHUP);
    node.proxy().wait_log_after(before, &["certificates reloaded"]).await;
}

#[tokio::test]
async fn certificates_of_the_old_and_the_new_intermediate_work_side_by_side() {
    let mesh = Mesh::new();
    let at = mesh.folder();
    succeed(&mut ca(at, &["init"]));
    let mut node = node_of_meshctl(&mesh, "ct110").await;
    succeed(&mut ca(at, &["issue-node", "ct111"]));

    let told = succeed(&mut ca(at, &["renew-intermediate"]));
    let reload_first = told.find("systemctl reload mesh-proxy").expect("reload is advised");
    assert!(reload_first < told.find("ca renew").unwrap(), "{told}");
    succeed(&mut ca(at, &["issue-node", "ct112"]));
    let (old, new) = (issued(at, "ct111"), issued(at, "ct112"));
    reload(&mut node).await;
    for identity in old.iter().chain(&new) {
        is_served(&mesh, &node, identity).await;
    }

    // The node itself goes over to the new one.
    succeed(&mut ca(at, &["renew", "ct110"]));
    reload(&mut node).await;
    for identity in old.iter().chain(&new) {
        is_served(&mesh, &node, identity).await;
    }
    succeed(&mut ca(at, &["verify"]));
    succeed(node.command("mesh-proxy").arg("check"));

    // What the old one signed can still be revoked, and nothing else suffers.
    succeed(&mut ca(at, &["revoke", "ct111"]));
    reload(&mut node).await;
    client(&mesh, &old[0]).refused(node.inbound(), "ct110").await;
    node.proxy().wait_log(&["TLS handshake failed", "certificate is revoked"]).await;
    is_served(&mesh, &node, &new[0]).await;
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_and_no_other() {
    let mesh = Mesh::new();
    let at = mesh.folder();
    succeed(&mut ca(at, &["init"]));
    let mut node = node_of_meshctl(&mesh, "ct110").await;
    for name in ["ct111", "ct112"] {
        succeed(&mut ca(at, &["issue-node", name]));
    }
    let (kept, gone) = (issued(at, "ct111"), issued(at, "ct112"));
    is_served(&mesh, &node, &gone[0]).await;
    let unknown = run(&mut ca(at, &["revoke", "ct199"]));
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("there is no certificate of ct199"), "{}", text(&unknown.stderr));
    let told = succeed(&mut ca(at, &["revoke", "ct112.mesh"]));
    assert!(told.contains("proxy.crl_path") && told.contains("reload"), "{told}");
    let list = succeed(&mut ca(at, &["list"]));
    assert!(list.lines().any(|line| line.starts_with("ct112 ") && line.contains("revoked")), "{list}");

    reload(&mut node).await;
    for identity in &gone {
        client(&mesh, identity).refused(node.inbound(), "ct110").await;
    }
    node.proxy().wait_log(&["TLS handshake failed", "certificate is revoked"]).await;
    is_served(&mesh, &node, &kept[0]).await;

    // Its owner may come back with another certificate, and openssl reads the list as well.
    succeed(&mut ca(at, &["renew", "ct112"]));
    is_served(&mesh, &node, &issued(at, "ct112")[0]).await;
    let stolen = at.join("stolen.crt");
    fs::write(&stolen, &gone[0].cert_pem).unwrap();
    let mut verify = Command::new("openssl");
    verify.current_dir(at.join("rivet-ca/intermediate")).args([
        "verify",
        "-crl_check",
        "-CRLfile",
        "crl.pem",
    ]);
    verify.args(["-CAfile", "ca-chain.pem"]).arg(&stolen);
    let output = run(&mut verify);
    assert!(text(&output.stderr).contains("certificate revoked"), "{}", text(&output.stderr));
}

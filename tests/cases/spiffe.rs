//! Certificates of SPIFFE's own authorities have a URI and no common name: the configuration says whose they are.

use std::fs;

use mesh_tests::ca::{Ca, Issued, Spec};
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::tls::{Client, PeerOptions};
use mesh_tests::web;
use serde_json::json;

const WEB: &str = "spiffe://example.org/ns/default/sa/web";

fn svid(ca: &Ca, cn: Option<&str>, uris: &[&str]) -> Issued {
    let uris = uris.iter().map(|uri| (*uri).to_owned()).collect();
    ca.issue(&Spec { cn: cn.map(Into::into), dns: Vec::new(), uris, ..Spec::node("x") })
}

async fn mapping(mesh: &Mesh, identity: &str) -> Node {
    let crl = mesh.folder().join("crl.pem");
    fs::write(&crl, mesh.ca.crl_pem(&[])).unwrap();
    let plan = mesh.node("ct110").agent("opus").with(|config| {
        config["proxy"]["tls"] = json!({"spiffe": [{"id": WEB, "identity": identity}]});
        config["proxy"]["crl_path"] = json!(crl);
    });
    plan.start().await
}

#[tokio::test]
async fn whoever_comes_in_with_a_mapped_id_is_who_it_is_mapped_to() {
    let mesh = Mesh::new();
    let mut node = mapping(&mesh, "ct115").await;
    let get = || web::get_with("/x", &[("x-mesh-peer-cn", "ct999")]);
    let known = svid(&mesh.ca, None, &[WEB]);
    let answer = Client::new(&mesh.ca, &known).send(node.inbound(), "ct110", get()).await;
    assert_eq!(answer.status, 200);
    let seen = node.agent().last();
    assert_eq!(seen.all("x-mesh-peer-cn"), ["ct115"]);
    assert_eq!(seen.all("x-forwarded-client-cert"), [format!("Subject=\"\";URI={WEB}")]);
    node.proxy().wait_log(&["Request peer.cn=ct115 GET /x"]).await;

    // A common name counts, whatever else there is.
    let named = svid(&mesh.ca, Some("ct112"), &[WEB]);
    assert_eq!(Client::new(&mesh.ca, &named).send(node.inbound(), "ct110", get()).await.status, 200);
    assert_eq!(node.agent().last().all("x-mesh-peer-cn"), ["ct112"]);

    let other = "spiffe://example.org/ns/default/sa/other";
    for (uris, told) in [
        (
            vec![other],
            "its SPIFFE ID spiffe://example.org/ns/default/sa/other is nobody's in proxy.tls.spiffe",
        ),
        (vec!["spiffe://mesh/node/ct115"], "its SPIFFE ID spiffe://mesh/node/ct115 is nobody's"),
        (vec!["spiffe://example.org/ns/default/sa/web/"], "its URI is not a SPIFFE ID"),
        (vec!["SPIFFE://example.org/ns/default/sa/web"], "its URI is not a SPIFFE ID"),
        (vec![WEB, other], "2 URIs in place of one"),
        (vec![other, WEB], "2 URIs in place of one"),
        (vec![WEB, "https://example.org/"], "2 URIs in place of one"),
        (vec![], "no common name"),
    ] {
        let skip = node.proxy().log().len();
        let refused = svid(&mesh.ca, None, &uris);
        Client::new(&mesh.ca, &refused).refused(node.inbound(), "ct110").await;
        node.proxy().wait_log_after(skip, &["TLS handshake failed", told]).await;
    }
    let foreign = svid(&Ca::new(), None, &[WEB]);
    Client::new(&mesh.ca, &foreign).refused(node.inbound(), "ct110").await;
    fs::write(mesh.folder().join("crl.pem"), mesh.ca.crl_pem(&[&known])).unwrap();
    node.proxy().wait_log(&["certificates reloaded"]).await;
    Client::new(&mesh.ca, &known).refused(node.inbound(), "ct110").await;
}

#[tokio::test]
async fn a_server_with_a_mapped_id_is_that_node_and_no_other() {
    let mesh = Mesh::new();
    let known = svid(&mesh.ca, None, &[WEB]);
    let identities = [
        ("ct115", known.clone()),
        ("ct116", known.clone()),
        ("ct117", svid(&mesh.ca, None, &["spiffe://example.org/ns/default/sa/other"])),
        ("ct118", svid(&Ca::new(), None, &[WEB])),
        // Its name says what its common name does not.
        ("ct119", svid(&mesh.ca, Some("ct119"), &[WEB])),
    ];
    let mut peers = Vec::new();
    for (name, identity) in identities {
        let options = PeerOptions { identity, ..PeerOptions::good(&mesh.ca, name) };
        peers.push(mesh.peer_with(name, &[], options).await);
    }
    let mut node = mapping(&mesh, "ct115").await;
    node.comes_to("/nodes/ct115/x", None).await;
    assert_eq!(peers[0].0.example.last().target, "/x");
    let told = node.get("/nodes/ct116/x").await.problem(502, "peer_identity_mismatch");
    assert!(told.contains("it is the certificate of ct115, not of ct116.mesh"), "{told}");
    let told = node.get("/nodes/ct117/x").await.problem(502, "peer_untrusted");
    assert!(told.contains("spiffe://example.org/ns/default/sa/other"), "{told}");
    let told = node.get("/nodes/ct118/x").await.problem(502, "peer_untrusted");
    assert!(told.contains("unknown issuer"), "{told}");
    node.get("/nodes/ct119/x").await.problem(502, "peer_identity_mismatch");
    for (peer, _) in &peers[1..] {
        assert!(peer.example.requests().is_empty());
    }
    fs::write(mesh.folder().join("crl.pem"), mesh.ca.crl_pem(&[&known])).unwrap();
    node.proxy().wait_log(&["certificates reloaded"]).await;
    let told = node.get("/nodes/ct115/x").await.problem(502, "peer_untrusted");
    assert!(told.contains("certificate is revoked"), "{told}");
}

#[tokio::test]
async fn an_id_that_is_mapped_to_an_agent_names_no_server() {
    let mesh = Mesh::new();
    let identity = svid(&mesh.ca, None, &[WEB]);
    let options = PeerOptions { identity: identity.clone(), ..PeerOptions::good(&mesh.ca, "ct115") };
    let _peer = mesh.peer_with("ct115", &[], options).await;
    let node = mapping(&mesh, "web@ct115").await;
    node.comes_to("/nodes/ct115/x", Some("peer_identity_mismatch")).await;
    let get = web::get_with("/x", &[]);
    assert_eq!(Client::new(&mesh.ca, &identity).send(node.inbound(), "ct110", get).await.status, 200);
    let seen = node.agent().last();
    assert_eq!(
        (seen.all("x-mesh-peer-cn"), seen.all("x-mesh-from-agent")),
        (vec!["web@ct115".into()], vec!["web".into()])
    );
}

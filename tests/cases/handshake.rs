//! Inbound handshakes: who comes in, who does not, and the line that says why.

use std::time::Duration;

use http::Method;
use mesh_tests::ca::{Ca, Issued, Spec, self_signed};
use mesh_tests::eventually;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::{Daemon, run, text};
use mesh_tests::tls::Client;
use mesh_tests::web::{self, Answer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const FAILED: &str = "WARN [AgentChannel] TLS handshake failed from 127.0.0.1: ";

async fn sidecar(mesh: &Mesh) -> Node {
    let mut node = mesh
        .node("ct110")
        .with(|config| {
            config["proxy"]["timeouts"]["handshake_ms"] = 1000.into();
            config["proxy"]["tls"]["min_version"] = 1.2.into();
        })
        .prepare()
        .await;
    node.start_proxy().await;
    node
}

#[tokio::test]
async fn tls_1_3_and_1_2_with_h2_and_http_1_1() {
    let mesh = Mesh::new();
    let node = sidecar(&mesh).await;
    let identity = mesh.ca.node("ct111");
    for (version, protocol) in [
        (&rustls::version::TLS13, "h2"),
        (&rustls::version::TLS13, "http/1.1"),
        (&rustls::version::TLS12, "h2"),
        (&rustls::version::TLS12, "http/1.1"),
    ] {
        let client = Client::versions(&mesh.ca, &identity, &[version]).alpn(&[protocol]);
        let stream = client.connect(node.inbound(), "ct110").await.unwrap();
        let session = stream.get_ref().1;
        assert_eq!(session.protocol_version(), Some(version.version));
        assert_eq!(session.alpn_protocol(), Some(protocol.as_bytes()));
        let answer = match protocol {
            "h2" => {
                let request =
                    web::request(Method::GET, "https://ct110.mesh/api/mesh/ping").body(web::empty()).unwrap();
                Answer::read(web::h2(stream).await.send_request(request).await.unwrap()).await.unwrap()
            }
            _ => {
                let request = web::request(Method::GET, "/api/mesh/ping").body(web::empty()).unwrap();
                web::Connection::over(stream).await.send(request).await
            }
        };
        assert_eq!(answer.json()["cn"], "ct111", "{version:?} {protocol}");
    }
    // Who can do both gets h2; who asks for nothing gets HTTP/1.1.
    let both = Client::new(&mesh.ca, &identity).alpn(&["http/1.1", "h2"]);
    let stream = both.connect(node.inbound(), "ct110").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(node.get_from_peer(&mesh, "ct111", "/api/mesh/ping").await.status, 200);
}

#[tokio::test]
async fn older_versions_of_tls_are_refused() {
    let mesh = Mesh::new();
    let mut node = sidecar(&mesh).await;
    let told = super::piped(
        std::process::Command::new("openssl")
            .args(["s_client", "-tls1_1", "-cipher", "ALL@SECLEVEL=0", "-connect"])
            .arg(node.inbound().to_string()),
        b"",
    );
    assert!(!told.contains("Cipher    : ECDHE"), "{told}");
    node.proxy().wait_log(&[FAILED]).await;
}

#[tokio::test]
async fn every_bad_certificate_is_refused_with_one_line_that_says_why() {
    let mesh = Mesh::new();
    let mut node = sidecar(&mesh).await;
    let (foreign, namesake) = (Ca::new(), mesh.ca.namesake());
    let issue = |change: fn(&mut Spec)| {
        let mut spec = Spec::node("ct111");
        change(&mut spec);
        mesh.ca.issue(&spec)
    };
    let unknown = "certificate is from an unknown issuer (no chain to the mesh CA)";
    let mut cases: Vec<(&str, Option<Issued>, &str)> = vec![
        ("none", None, "peer did not return a certificate"),
        ("foreign CA", Some(foreign.node("ct111")), unknown),
        ("foreign CA of the same name", Some(namesake.node("ct111")), "certificate has a bad signature"),
        ("self-signed", Some(self_signed(&Spec::node("ct111"))), unknown),
        ("expired", Some(issue(|spec| spec.until = 2025)), "certificate has expired"),
        (
            "not yet valid",
            Some(issue(|spec| spec.from = 2089)),
            "certificate is not valid yet (is a clock wrong?)",
        ),
        (
            "server only",
            Some(issue(|spec| spec.client = false)),
            "certificate is not for TLS clients (extended key usage clientAuth)",
        ),
        ("no CN", Some(issue(|spec| spec.cn = None)), "no common name"),
        ("unusable CN", Some(issue(|spec| spec.cn = Some("any body".into()))), "\"any body\""),
        ("dotted CN", Some(issue(|spec| spec.cn = Some("ct111.example.org".into()))), "ct111.example.org"),
    ];
    // Signed by an expired or foreign issuer that calls itself like ours.
    let mut impostor = foreign.node("ct111");
    impostor.chain_pem = impostor.cert_pem.clone() + &mesh.ca.bundle_pem();
    cases.push(("foreign leaf in front of our chain", Some(impostor), unknown));

    for (what, identity, reason) in cases {
        // A new one each time, because lines with the same reason are grouped after the first few.
        assert!(node.proxy().stop().await.success());
        node.start_proxy().await;
        for version in rustls::ALL_VERSIONS {
            let seen = node.proxy().log().len();
            let client = match &identity {
                Some(identity) => Client::versions(&mesh.ca, identity, &[version]),
                None => Client::anonymous(&mesh.ca),
            };
            client.refused(node.inbound(), "ct110").await;
            node.proxy().wait_log_after(seen, &[FAILED, reason]).await;
            let log = node.proxy().log();
            let lines: Vec<_> = log[seen..].iter().filter(|line| line.contains("[AgentChannel]")).collect();
            assert_eq!(lines.len(), 1, "{what}: more than one line {lines:?}");
        }
    }
    assert_eq!(node.get_from_peer(&mesh, "ct111", "/api/mesh/ping").await.status, 200);
}

#[tokio::test]
async fn what_is_no_tls_at_all_is_refused_with_a_line() {
    let mesh = Mesh::new();
    let mut node = sidecar(&mesh).await;

    let told = web::raw(node.inbound(), b"GET /api/mesh/ping HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(!told.starts_with("HTTP/1.1 200"), "plain HTTP was answered: {told}");
    node.proxy().wait_log(&[FAILED, "not a TLS client"]).await;

    let seen = node.proxy().log().len();
    web::raw(node.inbound(), &[0xff; 300]).await;
    node.proxy().wait_log_after(seen, &[FAILED, "not a TLS client"]).await;

    // Connects and goes.
    let seen = node.proxy().log().len();
    let mut stream = TcpStream::connect(node.inbound()).await.unwrap();
    stream.write_all(&[0x16, 0x03, 0x01]).await.unwrap();
    drop(stream);
    node.proxy().wait_log_after(seen, &[FAILED, "connection closed during the handshake"]).await;

    // Connects and says nothing.
    let seen = node.proxy().log().len();
    let silent = TcpStream::connect(node.inbound()).await.unwrap();
    node.proxy().wait_log_after(seen, &[FAILED, "timed out after 1000 ms"]).await;
    drop(silent);
    assert_eq!(node.get_from_peer(&mesh, "ct111", "/api/mesh/ping").await.status, 200);
}

#[tokio::test]
async fn strangers_take_no_peers_place() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").with(|config| {
        config["proxy"]["limits"] = serde_json::json!({"max_connections": 4});
    });
    let mut node = plan.prepare().await;
    node.start_proxy().await;
    // Half of the eight handshakes that there may be at once are for one address.
    let mut silent = Vec::new();
    for _ in 0..5 {
        silent.push(TcpStream::connect(node.inbound()).await.unwrap());
    }
    node.proxy().wait_log(&[FAILED, "too many handshakes are under way"]).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
    let stream = socket.connect(node.inbound()).await.unwrap();
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111"));
    let mut connection = web::Connection::over(client.over(stream, "ct110").await.unwrap()).await;
    let ping = || web::request(Method::GET, "/api/mesh/ping").body(web::empty()).unwrap();
    assert_eq!(connection.send(ping()).await.status, 200);
    drop(silent);
    eventually("the address may come again", async || {
        let stream = client.connect(node.inbound(), "ct110").await.ok()?;
        let answer = web::Connection::over(stream).await.open(ping()).await.ok()?;
        (answer.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn where_files_are_few_connections_are_too() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").agent("opus").prepare().await;
    node.start_registryd().await;
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -n 256; exec \"$0\""]).arg(mesh_tests::process::binary("mesh-proxy"));
    command.env("MESH_CONFIG", &node.config_path);
    node.proxy = Some(Daemon::start("ct110 mesh-proxy", &mut command));
    node.proxy()
        .wait_log(&[
            "WARN [Mesh] this process may open 256 files, enough for 39 connections a side, not 10000",
        ])
        .await;
    // That line comes before it listens.
    node.proxy().wait_log(&["[Mesh] mesh-proxy ready"]).await;
    node.has_roster().await;
    // However many come, this host's own agent gets through.
    let mut many = Vec::new();
    for _ in 0..300 {
        many.push(TcpStream::connect(node.inbound()).await.unwrap());
    }
    node.proxy().wait_log(&[FAILED, "too many handshakes are under way"]).await;
    assert_eq!(node.get("/mesh/agents").await.status, 200);
    assert_eq!(many.len(), 300);
}

#[tokio::test]
async fn nodes_agents_and_devices_come_in_under_their_own_names() {
    let mesh = Mesh::new();
    let mut node = sidecar(&mesh).await;
    for (cn, shown) in [
        ("ct111", "peer.cn=ct111 "),
        ("ct111.mesh", "peer.cn=ct111 "),
        ("opus@ct111", "peer.cn=opus@ct111 "),
        ("device:phone", "peer.cn=device:phone "),
    ] {
        let seen = node.proxy().log().len();
        let mut spec = Spec::node("ct111");
        spec.cn = Some(cn.into());
        let request = web::request(Method::GET, "/api/mesh/ping").body(web::empty()).unwrap();
        let answer =
            Client::new(&mesh.ca, &mesh.ca.issue(&spec)).send(node.inbound(), "ct110", request).await;
        assert_eq!(answer.status, 200, "{cn}");
        node.proxy()
            .wait_log_after(seen, &["INFO [AgentChannel] ", shown, "/api/mesh/ping", "status=200"])
            .await;
    }
}

#[tokio::test]
async fn policy_lets_only_the_listed_peers_in() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").agent("opus").with(|config| {
        config["proxy"]["policy"] = serde_json::json!({"allow": ["ct111", "ct112"], "deny": ["ct112"]});
    });
    let mut node = plan.prepare().await;
    node.start_proxy().await;
    assert_eq!(node.get_from_peer(&mesh, "ct111", "/anything").await.status, 200);
    for refused in ["ct112", "ct113"] {
        node.get_from_peer(&mesh, refused, "/anything").await.problem(403, "peer_not_allowed");
    }
    assert_eq!(node.agent().requests().len(), 1);
}

#[tokio::test]
async fn a_revoked_certificate_is_refused() {
    let mesh = Mesh::new();
    let revoked = mesh.ca.node("ct112");
    let crl = mesh.folder().join("ca/crl.pem");
    std::fs::write(&crl, mesh.ca.crl_pem(&[&revoked])).unwrap();
    let plan =
        mesh.node("ct110").with(|config| config["proxy"]["crl_path"] = crl.display().to_string().into());
    let mut node = plan.prepare().await;
    node.start_proxy().await;
    assert_eq!(node.get_from_peer(&mesh, "ct111", "/api/mesh/ping").await.status, 200);
    Client::new(&mesh.ca, &revoked).refused(node.inbound(), "ct110").await;
    node.proxy().wait_log(&[FAILED, "certificate is revoked"]).await;
}

#[tokio::test]
async fn a_revocation_list_that_has_ended_lets_nobody_in() {
    let mesh = Mesh::new();
    let crl = mesh.folder().join("ca/crl.pem");
    std::fs::write(&crl, mesh.ca.crl_pem(&[])).unwrap();
    let plan =
        mesh.node("ct110").with(|config| config["proxy"]["crl_path"] = crl.display().to_string().into());
    let mut node = plan.prepare().await;
    let check = || text(&run(node.command("mesh-proxy").arg("check")).stdout);
    assert!(check().contains("crl.pem: 0 revoked, "), "{}", check());
    node.start_proxy().await;
    let ping = node.get_from_peer(&mesh, "ct111", "/api/mesh/ping").await;
    assert_eq!(ping.status, 200);
    // With a list that has ended it starts no more; a running one goes on with what it has, and says so.
    std::fs::write(&crl, mesh.ca.crl_pem_until(2026, &[&mesh.ca.node("ct112")])).unwrap();
    let told = text(&run(node.command("mesh-proxy").arg("check")).stdout);
    assert!(told.contains("FAIL revocation lists ") && told.contains("crl.pem: 1 revoked, ended"), "{told}");
    node.proxy().signal(libc::SIGHUP);
    node.proxy().wait_log(&["ERROR", "certificates not reloaded", "revocation list has expired"]).await;
    assert_eq!(node.get_from_peer(&mesh, "ct111", "/api/mesh/ping").await.status, 200);
    let second = run(&mut node.command("mesh-proxy"));
    assert!(!second.status.success());
}

#[tokio::test]
async fn a_peer_that_is_trusted_no_more_is_cut_off_and_nobody_else() {
    let mesh = Mesh::new();
    let (kept, gone) = (mesh.ca.node("ct111"), mesh.ca.node("ct112"));
    let crl = mesh.folder().join("ca/crl.pem");
    std::fs::write(&crl, mesh.ca.crl_pem(&[])).unwrap();
    let plan = mesh.node("ct110").agent("opus");
    let plan = plan.with(|config| config["proxy"]["crl_path"] = crl.display().to_string().into());
    let mut node = plan.prepare().await;
    node.start_proxy().await;
    let clients = [(&kept, "h2"), (&gone, "h2"), (&kept, "http/1.1"), (&gone, "http/1.1")];
    let (mut waiting, mut streams) = (tokio::task::JoinSet::new(), Vec::new());
    let clients = clients.map(|(identity, protocol)| {
        (Client::new(&mesh.ca, identity).alpn(&[protocol]), std::ptr::eq(identity, &gone), protocol)
    });
    for (client, is_gone, protocol) in &clients {
        let stream = client.connect(node.inbound(), "ct110").await.unwrap();
        let request = web::request(Method::GET, "https://ct110.mesh/stream").body(web::empty()).unwrap();
        // The head of the answer is here, the rest is not.
        let response = match *protocol {
            "h2" => web::h2(stream).await.send_request(request).await.unwrap(),
            _ => web::Connection::over(stream).await.open(request).await.unwrap(),
        };
        let is_gone = *is_gone;
        waiting.spawn(async move { (is_gone, Answer::read(response).await) });
        streams.push(node.agent().stream().await);
    }
    std::fs::write(&crl, mesh.ca.crl_pem(&[&gone])).unwrap();
    node.proxy().signal(libc::SIGHUP);
    node.proxy()
        .wait_log(&["WARN [AgentChannel] cutting off peer.cn=ct112 from 127.0.0.1: certificate is revoked"])
        .await;
    // Those that go on wait for the rest of their answers.
    for _ in 0..2 {
        let (is_gone, outcome) = waiting.join_next().await.unwrap().unwrap();
        assert!(is_gone && outcome.is_err(), "{outcome:?}");
    }
    drop(streams);
    for _ in 0..2 {
        let (is_gone, outcome) = waiting.join_next().await.unwrap().unwrap();
        assert!(!is_gone && outcome.is_ok(), "{outcome:?}");
    }
    // Sessions of before do not help.
    for (client, is_gone, _) in &clients[2..] {
        match is_gone {
            true => drop(client.refused(node.inbound(), "ct110").await),
            false => {
                let ping = web::request(Method::GET, "/api/mesh/ping").body(web::empty()).unwrap();
                assert_eq!(client.send(node.inbound(), "ct110", ping).await.status, 200);
            }
        }
    }
    mesh_tests::eventually("both are told", async || {
        (node.proxy().lines_with(&["cutting off"]).len() == 2).then_some(())
    })
    .await;
    // Whose answers were cut off, and by whom, stands in their lines too.
    mesh_tests::eventually("their requests are told", async || {
        let cut = ["peer.cn=ct112", "GET /stream", "ended=cut_by_sidecar"];
        (node.proxy().lines_with(&cut).len() == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_peer_whose_certificate_ends_is_cut_off() {
    let mesh = Mesh::new();
    let mut node = sidecar(&mesh).await;
    let client = Client::new(&mesh.ca, &mesh.ca.ending("ct111", Duration::from_secs(6)));
    let mut connection = client.http(node.inbound(), "ct110").await;
    let ping = || web::request(Method::GET, "/api/mesh/ping").body(web::empty()).unwrap();
    assert_eq!(connection.send(ping()).await.status, 200);
    node.proxy().wait_log(&["cutting off peer.cn=ct111", "certificate has expired"]).await;
    assert!(connection.open(ping()).await.is_err());
    // The session of before does not help.
    client.refused(node.inbound(), "ct110").await;
    node.proxy().wait_log(&[FAILED, "certificate has expired"]).await;
}

#[tokio::test]
async fn peers_come_in_on_every_address_unless_told_otherwise() {
    let mesh = Mesh::new();
    // Below those that the system gives to connections, one of which could take it meanwhile.
    let port = (20_000..30_000).find(|port| std::net::TcpListener::bind(("::", *port)).is_ok()).unwrap();
    let plan = mesh.node("ct110").agent("opus").with(|config| {
        config["mesh"]["agent_channel_port"] = port.into();
        config["proxy"].as_object_mut().unwrap().remove("inbound");
    });
    let mut node = plan.prepare().await;
    node.start_proxy().await;
    for address in ["127.0.0.1", "127.9.8.7", "::1"] {
        let request = web::request(Method::GET, "/api/mesh/ping").body(web::empty()).unwrap();
        let client = Client::new(&mesh.ca, &mesh.ca.node("ct111"));
        let answer =
            client.send((address.parse::<std::net::IpAddr>().unwrap(), port).into(), "ct110", request).await;
        assert_eq!(answer.status, 200, "{address}");
    }
}

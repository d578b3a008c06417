//! Certificates are renewed over the mesh by themselves, and nothing breaks while the CA is away.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use http::Method;
use mesh_tests::ca::{Ca, Issued, Spec, params};
use mesh_tests::fake_ca::{Answers, FakeCa};
use mesh_tests::loopback::Loopback;
use mesh_tests::mesh::{Mesh, Node, Plan};
use mesh_tests::process::{Daemon, run, succeed, text};
use mesh_tests::tls::Client;
use mesh_tests::web;
use mesh_tests::{DEADLINE, eventually, eventually_within};
use rcgen::{Issuer, KeyPair};
use serde_json::json;

use super::meshctl::ca;

const HOUR: Duration = Duration::from_secs(3600);
const GENERATION: &str = "20260101T000000Z-1";

/// A node as `meshctl join` leaves it, with this certificate; `ct110` has the CA.
fn joined(mesh: &Mesh, name: &str, agent: &str, identity: &Issued) -> Plan {
    let tls = tls(mesh, name);
    fs::create_dir_all(tls.join(GENERATION)).unwrap();
    symlink(GENERATION, tls.join("current")).unwrap();
    let (certificate, key) = (tls.join("current/node.crt"), tls.join("current/node.key"));
    fs::write(&certificate, &identity.chain_pem).unwrap();
    fs::write(&key, &identity.key_pem).unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    fs::write(tls.join("ca-chain.pem"), mesh.ca.bundle_pem()).unwrap();
    mesh.node(name).agent(agent).with(|config| {
        config["mesh"]["tls"] =
            json!({"ca_path": tls.join("ca-chain.pem"), "cert_path": certificate, "key_path": key});
        config["mesh"]["ca"] = json!({"node": "ct110"});
        config["proxy"]["ca_socket"] = json!(socket(mesh));
    })
}

fn tls(mesh: &Mesh, name: &str) -> PathBuf {
    mesh.folder().join(format!("tls-{name}"))
}

fn socket(mesh: &Mesh) -> PathBuf {
    mesh.folder().join("ca.sock")
}

/// What a node presents to a client.
async fn presented(mesh: &Mesh, node: &Node) -> Vec<u8> {
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct199"));
    let stream = client.connect(node.inbound(), &node.name).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

async fn presents_another(mesh: &Mesh, node: &Node, than: &Issued) {
    let what = format!("{} presents its new certificate", node.name);
    eventually_within(2 * DEADLINE, &what, async || {
        (presented(mesh, node).await != than.leaf()[0].to_vec()).then_some(())
    })
    .await;
}

fn status(node: &Node) -> String {
    text(&run(node.command("meshctl").arg("status")).stdout)
}

/// Requests from one node to another until it is told to end; those that failed.
struct Load {
    end: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Load {
    fn begin(from: &Node, to: &Node) -> Self {
        let (end, done): (Arc<AtomicBool>, Arc<AtomicUsize>) = Default::default();
        let (outbound, target) = (from.outbound(), format!("/nodes/{}/x", to.name));
        let task = tokio::spawn({
            let (end, done) = (end.clone(), done.clone());
            async move {
                let mut failed = Vec::new();
                while !end.load(Ordering::Relaxed) {
                    let answer = web::get(outbound, &target).await;
                    if answer.status != 200 {
                        failed.push(answer.text());
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                failed
            }
        });
        Self { end, done, task }
    }

    async fn end(self) -> usize {
        self.end.store(true, Ordering::Relaxed);
        let failed = self.task.await.unwrap();
        assert!(failed.is_empty(), "{failed:?}");
        self.done.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn a_certificate_past_half_its_life_is_renewed_without_losing_a_request() {
    let mesh = Mesh::new();
    let ca = FakeCa::start(&socket(&mesh), mesh.ca.clone());
    // Half of it is over when all is under way.
    let (before, after) = (Duration::from_secs(185), Duration::from_secs(215));
    let old = ["ct110", "ct111"].map(|name| mesh.ca.made(name, before, after));
    let (one, mut two, three) = tokio::join!(
        joined(&mesh, "ct110", "opus", &old[0]).start(),
        joined(&mesh, "ct111", "grok", &old[1]).start(),
        mesh.start("ct112", "scout"),
    );
    tokio::join!(two.reaches("ct112"), three.reaches("ct111"), three.reaches("ct110"));
    let loads = [Load::begin(&two, &three), Load::begin(&three, &two), Load::begin(&three, &one)];
    let request = web::request(Method::GET, "/nodes/ct111/stream").body(web::empty()).unwrap();
    let mut response = web::open(three.outbound(), request).await.unwrap();
    let stream = two.agent().stream().await;
    stream.send(web::piece("before")).unwrap();
    web::expect_data(response.body_mut(), "before").await;

    presents_another(&mesh, &one, &old[0]).await;
    presents_another(&mesh, &two, &old[1]).await;
    two.proxy().wait_log(&["this node's certificate was renewed"]).await;
    // What was under way goes on, and what begins now takes the new one.
    stream.send(web::piece("after")).unwrap();
    web::expect_data(response.body_mut(), "after").await;
    for load in loads {
        assert!(load.end().await > 10);
    }
    let asked = ca.asked();
    for name in ["ct110", "ct111"] {
        assert!(asked.iter().any(|peer| peer == name), "{asked:?}");
    }

    let folder = tls(&mesh, "ct111");
    let mode = |path: PathBuf| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(folder.join("current/node.key")), 0o600);
    assert_ne!(fs::read_to_string(folder.join("current/node.key")).unwrap(), old[1].key_pem);
    assert_eq!(fs::read_to_string(folder.join(GENERATION).join("node.key")).unwrap(), old[1].key_pem);
    // It starts with them as well, and leaves them alone: they are young.
    let times = ca.asked().len();
    assert!(two.proxy().stop().await.success());
    two.start_proxy().await;
    three.reaches("ct111").await;
    assert_eq!(ca.asked().len(), times);
}

#[tokio::test]
async fn while_the_ca_is_away_all_goes_on_and_an_operator_is_told() {
    let mesh = Mesh::new();
    let old = mesh.ca.ending("ct111", HOUR);
    let first = mesh.ca.node("ct110");
    let (mut one, mut two) = tokio::join!(
        joined(&mesh, "ct110", "opus", &first).start(),
        joined(&mesh, "ct111", "grok", &old).start(),
    );
    two.reaches("ct110").await;
    two.get("/nodes/ct110/api/mesh/ca/bundle").await.problem(404, "no_ca_here");
    let told = "this node's certificate ends in 59 minutes, and cannot be renewed";
    two.proxy().wait_log(&["WARN [Mesh]", told]).await;
    eventually("meshctl status tells", async || status(&two).contains(told).then_some(())).await;
    // A socket that nobody listens on any more.
    drop(std::os::unix::net::UnixListener::bind(socket(&mesh)).unwrap());
    let detail = two.get("/nodes/ct110/API/mesh/ca/bundle/").await.problem(503, "ca_unavailable");
    assert!(detail.contains("mesh-ca.service"), "{detail}");
    one.reaches("ct111").await;

    let ca = FakeCa::start(&socket(&mesh), mesh.ca.clone());
    for (answers, reason) in [
        (Answers::Problem(403, "renewal_refused"), "as the test wants it"),
        (Answers::Certificate(mesh.ca.ending("ct111", 2 * HOUR).chain_pem), "for another key"),
        (Answers::Certificate("-----BEGIN CERTIFICATE-----".into()), "cannot be read"),
    ] {
        ca.behave(|ca| ca.answers = answers);
        // It tries at once when it starts.
        two.proxy().stop().await;
        two.start_proxy().await;
        two.proxy().wait_log(&["WARN [Mesh]", "cannot be renewed", reason]).await;
        assert_eq!(presented(&mesh, &two).await, old.leaf()[0].to_vec());
    }
    ca.behave(|ca| ca.answers = Answers::Well);
    two.proxy().stop().await;
    two.start_proxy().await;
    presents_another(&mesh, &two, &old).await;
    eventually("meshctl status tells no more", async || (!status(&two).contains(told)).then_some(())).await;
    assert!(one.proxy().is_running());
}

#[tokio::test]
async fn what_the_ca_publishes_is_taken_where_it_fits() {
    let mesh = Mesh::new();
    let ca = FakeCa::start(&socket(&mesh), mesh.ca.clone());
    let gone = mesh.ca.node("ct150");
    let (first, second) = (mesh.ca.node("ct110"), mesh.ca.node("ct111"));
    let (_one, mut two) = tokio::join!(
        joined(&mesh, "ct110", "opus", &first).start(),
        joined(&mesh, "ct111", "grok", &second).start(),
    );
    two.reaches("ct110").await;
    // A revocation, from the CA's process alone.
    let client = Client::new(&mesh.ca, &gone);
    let open = client.connect(two.inbound(), "ct111").await.unwrap();
    ca.behave(|ca| ca.crl = mesh.ca.crl_pem(&[&gone]));
    two.proxy().wait_log(&["cutting off peer.cn=ct150", "certificate is revoked"]).await;
    drop(open);

    // A CA that comes on top; then one that would leave nobody's certificate good.
    let other = Ca::new();
    let (both, alone) = (mesh.ca.bundle_pem() + &other.bundle_pem(), other.bundle_pem());
    ca.behave(|ca| ca.chain.clone_from(&both));
    let path = tls(&mesh, "ct111").join("ca-chain.pem");
    eventually("the bundle is replaced", async || (fs::read_to_string(&path).unwrap() == both).then_some(()))
        .await;
    let stranger = Client::trusting(&mesh.ca.bundle_pem(), &other.node("ct160"));
    eventually("who was certified by it comes in", async || {
        let request = web::request(Method::GET, "/api/mesh/ping").body(web::empty()).unwrap();
        let stream = stranger.connect(two.inbound(), "ct111").await.ok()?;
        let mut connection = web::Connection::over(stream).await;
        connection.open(request).await.ok().filter(|answer| answer.status() == 200).map(drop)
    })
    .await;
    ca.behave(|ca| ca.chain.clone_from(&alone));
    two.proxy()
        .wait_log(&["WARN [Mesh] the CA of ct110 publishes certificates that differ", "would not accept"])
        .await;
    assert_eq!(fs::read_to_string(&path).unwrap(), both);
    eventually("meshctl status tells", async || {
        status(&two).contains("publishes certificates that differ").then_some(())
    })
    .await;
}

/// A leaf that the CA in `folder` made days ago, past half its life.
fn made_days_ago(folder: &Path, node: &str) -> Issued {
    let of_ca = |file: &str| fs::read_to_string(folder.join("rivet-ca/intermediate").join(file)).unwrap();
    let key = KeyPair::from_pem(&of_ca("intermediate.key")).unwrap();
    let chain = of_ca("ca-chain.pem");
    let end = "-----END CERTIFICATE-----\n";
    let intermediate = &chain[..chain.find(end).unwrap() + end.len()];
    let issuer = Issuer::from_ca_cert_pem(intermediate, key).unwrap();
    let mut leaf = params(&Spec::node(node));
    let now = SystemTime::now();
    leaf.not_before = (now - 96 * HOUR).into();
    leaf.not_after = (now + 72 * HOUR).into();
    let key = KeyPair::generate().unwrap();
    let signed = leaf.signed_by(&key, &issuer).unwrap().pem();
    let chain_pem = signed.clone() + intermediate;
    Issued { cert_pem: signed, chain_pem, key_pem: key.serialize_pem(), serial: Vec::new() }
}

#[tokio::test]
async fn the_ca_of_meshctl_renews_and_revokes_over_the_mesh() {
    let mesh = Mesh::new();
    let folder = tempfile::tempdir().unwrap();
    succeed(&mut ca(folder.path(), &["init"]));
    let bundle = fs::read_to_string(folder.path().join("rivet-ca/intermediate/ca-chain.pem")).unwrap();
    let address = Loopback::take();
    let mut serve = ca(folder.path(), &["serve", "--listen", &address.port(3005).to_string()]);
    serve.arg("--socket").arg(socket(&mesh)).arg("--config").arg(mesh.folder().join("none"));
    let mut serving = Daemon::start("ca", &mut serve);
    serving.wait_log(&["[Enrolment] ca ready"]).await;
    let old = ["ct110", "ct111", "ct112"].map(|name| made_days_ago(folder.path(), name));
    let plan = |name, agent, identity| {
        let plan = joined(&mesh, name, agent, identity);
        fs::write(tls(&mesh, name).join("ca-chain.pem"), &bundle).unwrap();
        plan
    };
    let (mut one, two, three) = tokio::join!(
        plan("ct110", "opus", &old[0]).start(),
        plan("ct111", "grok", &old[1]).start(),
        plan("ct112", "scout", &old[2]).start(),
    );
    for (node, old) in [(&one, &old[0]), (&two, &old[1]), (&three, &old[2])] {
        let client = Client::trusting(&bundle, old);
        let what = format!("{} presents a certificate of the CA's", node.name);
        eventually_within(2 * DEADLINE, &what, async || {
            let stream = client.connect(node.inbound(), &node.name).await.ok()?;
            let presented = stream.get_ref().1.peer_certificates()?[0].to_vec();
            (presented != old.leaf()[0].to_vec()).then_some(())
        })
        .await;
        serving.wait_log(&[&format!("renewed {} peer.cn={}", node.name, node.name)]).await;
    }
    tokio::join!(two.reaches("ct112"), three.reaches("ct110"));
    // The CA's process publishes what meshctl revokes, and all nodes refuse it.
    succeed(&mut ca(folder.path(), &["revoke", "ct111"]));
    one.proxy().wait_log(&["newer revocation lists are in use"]).await;
    for node in [&one, &three] {
        node.comes_to("/nodes/ct111/x", Some("peer_untrusted")).await;
    }
}

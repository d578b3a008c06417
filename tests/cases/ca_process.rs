//! The CA's process on its unix socket, as the sidecar of its host uses it: renewals, proven by the certificate in use, and
//! what every node trusts.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use mesh_shared::enrolment::{BUNDLE_PATH, RENEW_PATH, renewal_message};
use mesh_tests::loopback::Loopback;
use mesh_tests::process::{Daemon, command, run, succeed, text};
use mesh_tests::skipped;
use mesh_tests::web::{self, Answer};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::SignatureScheme;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use tempfile::TempDir;

struct Office {
    folder: TempDir,
    process: Daemon,
    _address: Loopback,
}

/// A member with its certificate and key.
struct Member {
    chain: String,
    key: PrivateKeyDer<'static>,
}

/// A request for a certificate, and its key.
struct Asked {
    pem: String,
    der: Vec<u8>,
    pair: KeyPair,
}

impl Office {
    async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("mesh-ca-").tempdir().unwrap();
        let address = Loopback::take();
        succeed(ca(&folder, &["init"]).arg("--root-dir").arg(folder.path().join("root")));
        let mut serve = ca(&folder, &["serve", "--listen", &address.port(3005).to_string()]);
        serve
            .arg("--socket")
            .arg(folder.path().join("ca.sock"))
            .arg("--config")
            .arg(folder.path().join("none"));
        let mut process = Daemon::start("ca", &mut serve);
        process.wait_log(&["[Enrolment] ca ready"]).await;
        Self { folder, process, _address: address }
    }

    fn ca(&self, arguments: &[&str]) -> Command {
        ca(&self.folder, arguments)
    }

    fn issued(&self, name: &str) -> Member {
        let path = |kind: &str| self.folder.path().join(format!("ca/issued/{name}.{kind}"));
        Member {
            chain: fs::read_to_string(path("crt")).unwrap(),
            key: PrivateKeyDer::from_pem_file(path("key")).unwrap(),
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("ca.sock")
    }

    async fn renew(&self, peer: &str, member: &Member, asked: &Asked) -> Answer {
        self.send(peer, member, asked, &signed(&member.key, &renewal_message(&asked.der))).await
    }

    async fn send(&self, peer: &str, member: &Member, asked: &Asked, signature: &[u8]) -> Answer {
        let body = json!({
            "certificate": member.chain, "csr": asked.pem, "signature": STANDARD.encode(signature),
            "scheme": u16::from(SignatureScheme::ECDSA_NISTP256_SHA256),
        });
        let request = web::request(Method::POST, RENEW_PATH).header("x-mesh-peer-cn", peer);
        self.ask(request.body(web::full(body.to_string())).unwrap()).await
    }

    async fn ask(&self, request: http::Request<web::Body>) -> Answer {
        web::on_socket(&self.socket(), request).await.expect("the socket answers")
    }
}

fn ca(folder: &TempDir, arguments: &[&str]) -> Command {
    let mut meshctl = command("meshctl");
    meshctl.arg("ca").args(arguments).arg("--dir").arg(folder.path().join("ca"));
    meshctl
}

fn asked(name: &str) -> Asked {
    let pair = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let request = params.serialize_request(&pair).unwrap();
    Asked { pem: request.pem().unwrap(), der: request.der().to_vec(), pair }
}

fn signed(key: &PrivateKeyDer<'_>, message: &[u8]) -> Vec<u8> {
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(key).unwrap();
    key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).unwrap().sign(message).unwrap()
}

#[tokio::test]
async fn a_member_renews_by_the_certificate_that_it_has() {
    let mut office = Office::start().await;
    succeed(&mut office.ca(&["issue-node", "ct111", "10.0.0.111", "--agents", "grok", "--days", "7"]));
    succeed(&mut office.ca(&["issue-agent", "opus@ct111"]));
    let (node, agent) = (office.issued("ct111"), office.issued("opus@ct111"));
    let request = asked("ct111");
    let answer = office.renew("ct111", &node, &request).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let renewed = answer.json();
    let path = office.folder.path().join("renewed.crt");
    fs::write(&path, renewed["certificate"].as_str().unwrap()).unwrap();
    let leaf = mesh_shared::certificate::read_leaf(&path).unwrap().1;
    assert_eq!(leaf.dns_names, ["ct111.mesh"]);
    assert_eq!(leaf.addresses, ["10.0.0.111".parse::<std::net::IpAddr>().unwrap()]);
    assert!(leaf.spiffe_ids.iter().any(|id| id.to_string() == "spiffe://mesh/agent/grok@ct111"), "{leaf:?}");
    assert_eq!((leaf.not_after - leaf.not_before) / 86_400, 7);
    assert!(renewed["chain"].as_str().unwrap().contains("BEGIN CERTIFICATE"));
    assert!(renewed["crl"].as_str().unwrap().contains("BEGIN X509 CRL"));
    office.process.wait_log(&["[Enrolment] renewed ct111 peer.cn=ct111"]).await;
    // The answer was lost: the same request gets the same certificate, by the old certificate.
    let again = office.renew("ct111", &node, &request).await;
    assert_eq!(again.json()["certificate"], renewed["certificate"]);
    // A node renews for its agents.
    assert_eq!(office.renew("ct111", &agent, &asked("opus@ct111")).await.status, 200);
    // The new certificate renews the next, with another key.
    let next = Member {
        chain: renewed["certificate"].as_str().unwrap().into(),
        key: PrivateKeyDer::Pkcs8(request.pair.serialize_der().into()),
    };
    let same_key = office.renew("ct111", &next, &request).await.problem(403, "renewal_refused");
    assert!(same_key.contains("asks with the key that it has"), "{same_key}");
    assert_eq!(office.renew("ct111", &next, &asked("ct111")).await.status, 200);
    succeed(&mut office.ca(&["verify"]));
}

#[tokio::test]
async fn a_member_renews_nothing_that_is_not_its_own() {
    let mut office = Office::start().await;
    for name in ["ct111", "ct112", "ct113"] {
        succeed(&mut office.ca(&["issue-node", name]));
    }
    let (own, other, revoked) = (office.issued("ct111"), office.issued("ct112"), office.issued("ct113"));
    succeed(&mut office.ca(&["revoke", "ct113"]));
    let (for_own, for_other) = (asked("ct111"), asked("ct112"));
    let message = |asked: &Asked| renewal_message(&asked.der);
    let foreign = mesh_tests::ca::Ca::new().node("ct111");
    let foreign = Member { chain: foreign.chain_pem.clone(), key: foreign.key() };
    let mixed = Member { chain: own.chain.clone(), key: other.key.clone_key() };
    let plain = signed(&own.key, &for_own.der);
    for (answer, reason) in [
        (office.renew("ct112", &own, &for_own).await, "ct112 presents the certificate of ct111"),
        (office.renew("ct111", &own, &for_other).await, "ct111 asks for a certificate of ct112"),
        (office.renew("ct111", &mixed, &for_own).await, "not signed with the key of the certificate in use"),
        (
            office.send("ct111", &own, &for_own, &plain).await,
            "not signed with the key of the certificate in use",
        ),
        (
            office.send("ct111", &own, &for_own, &signed(&own.key, &message(&for_other))).await,
            "not signed with the key of the certificate in use",
        ),
        (office.renew("ct111", &foreign, &for_own).await, "unknown issuer"),
        (office.renew("ct113", &revoked, &asked("ct113")).await, "certificate is revoked"),
    ] {
        assert_eq!(answer.status, 403, "{reason}: {}", answer.text());
        let detail = answer.problem(403, "renewal_refused");
        assert!(detail.contains(reason), "{reason:?} is not in {detail:?}");
        office.process.wait_log(&["WARN [Enrolment] renewal refused peer.cn=", reason]).await;
    }
    // The sidecar says who asks, once.
    let unnamed = web::request(Method::POST, RENEW_PATH).body(web::full("{}")).unwrap();
    assert_eq!(office.ask(unnamed).await.status, 403);
    let twice =
        web::request(Method::POST, RENEW_PATH).header("x-mesh-peer-cn", "a").header("x-mesh-peer-cn", "b");
    assert_eq!(office.ask(twice.body(web::full("{}")).unwrap()).await.status, 403);
    // None of it has used up the good request.
    assert_eq!(office.renew("ct111", &own, &for_own).await.status, 200);
}

#[tokio::test]
async fn who_renews_too_often_has_to_wait() {
    let office = Office::start().await;
    for name in ["ct111", "ct112"] {
        succeed(&mut office.ca(&["issue-node", name]));
    }
    let (one, two) = (office.issued("ct111"), office.issued("ct112"));
    let mut last = office.renew("ct111", &one, &asked("ct111")).await;
    for _ in 0..10 {
        if last.status != 200 {
            break;
        }
        last = office.renew("ct111", &one, &asked("ct111")).await;
    }
    last.problem(429, "renewal_too_soon");
    let wait: u64 = last.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(office.renew("ct112", &two, &asked("ct112")).await.status, 200);
}

/// As registryd and mesh-proxy do.
#[tokio::test]
async fn the_service_manager_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let manager = std::os::unix::net::UnixDatagram::bind(folder.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    let told = || {
        let mut message = [0; 100];
        let length = manager.recv(&mut message).unwrap();
        text(&message[..length]).trim().to_owned()
    };
    succeed(ca(&folder, &["init"]).arg("--root-dir").arg(folder.path().join("root")));
    let address = Loopback::take();
    let mut serve = ca(&folder, &["serve", "--listen", &address.port(3005).to_string()]);
    serve.arg("--socket").arg(folder.path().join("ca.sock")).arg("--config").arg(folder.path().join("none"));
    serve.env("NOTIFY_SOCKET", folder.path().join("notify")).env("WATCHDOG_USEC", "200000");
    let mut process = Daemon::start("ca", &mut serve);
    // The first signs of life may come before or after.
    let mut first = vec![told(), told()];
    first.sort();
    assert_eq!(first, ["READY=1", "WATCHDOG=1"]);
    assert_eq!(told(), "WATCHDOG=1");
    process.signal(libc::SIGTERM);
    while told() != "STOPPING=1" {}
    assert!(process.exited().await.success());
}

/// The folder belongs to the CA's user, and so does what root puts into it.
#[tokio::test]
async fn root_invites_as_the_folders_owner() {
    let office = Office::start().await;
    let folder = office.folder.path();
    let owned = run(Command::new("chown").args(["-R", "65534:65534"]).arg(folder));
    if !owned.status.success() {
        return skipped("files cannot be given to another user (that needs root)");
    }
    succeed(Command::new("chmod").args(["755"]).arg(folder));
    succeed(command("meshctl").args(["invite", "ct112", "--dir"]).arg(folder.join("ca")));
    for entry in fs::read_dir(folder.join("ca/invites")).unwrap() {
        let entry = entry.unwrap();
        let found = entry.metadata().unwrap();
        assert_eq!(found.uid(), 65534, "{}", entry.path().display());
        assert_eq!(found.mode() & 0o077, 0, "{}", entry.path().display());
    }
}

#[test]
fn the_units_leave_little_open() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd");
    for unit in ["mesh-ca.service", "mesh-ca-renew.service", "mesh-proxy.service", "registryd.service"] {
        let mut analyze = Command::new("systemd-analyze");
        analyze.args(["security", "--offline=true", "--no-pager", "--threshold=19"]).arg(units.join(unit));
        match analyze.output() {
            Ok(output) => assert!(output.status.success(), "{unit}: {}", text(&output.stdout)),
            Err(_) => return skipped("no systemd-analyze here"),
        }
    }
}

#[tokio::test]
async fn what_nodes_trust_is_read_again_only_when_it_changed() {
    let mut office = Office::start().await;
    let get = |tag: &str| {
        web::request(Method::GET, BUNDLE_PATH).header("if-none-match", tag).body(web::empty()).unwrap()
    };
    let first = office.ask(get("\"none\"")).await;
    assert_eq!(first.status, 200);
    let chain = fs::read_to_string(office.folder.path().join("ca/intermediate/ca-chain.pem")).unwrap();
    assert_eq!(first.json()["chain"], chain.as_str());
    let tag = first.header("etag").unwrap().to_owned();
    assert_eq!(office.ask(get(&tag)).await.status, 304);
    succeed(&mut office.ca(&["issue-node", "ct111"]));
    succeed(&mut office.ca(&["revoke", "ct111"]));
    let changed = office.ask(get(&tag)).await;
    assert_eq!(changed.status, 200);
    assert_ne!(changed.json()["crl"], first.json()["crl"]);
    let elsewhere = web::request(Method::GET, "/api/mesh").body(web::empty()).unwrap();
    assert_eq!(office.ask(elsewhere).await.status, 404);
    // Told to stop, it stops and leaves no socket behind.
    assert!(office.process.stop().await.success());
    assert!(!office.socket().exists());
}

//! Joining without copying keys: `ca init`, `ca serve`, `invite` and `join` alone make a mesh, and nobody gets in who was
//! not invited.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use mesh_enrolment::{Address, ENROLMENT_NAME, Token};
use mesh_shared::certificate::provider;
use mesh_tests::agent::Agent;
use mesh_tests::loopback::Loopback;
use mesh_tests::process::{Daemon, command, install, run, succeed, text};
use mesh_tests::web::{self, Answer, Connection};
use mesh_tests::{eventually, within};
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::spawn_blocking;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A CA in a folder, its process, and the address where hosts find it.
struct Office {
    folder: TempDir,
    address: Loopback,
    process: Option<Daemon>,
}

const PORT: u16 = 3005;

impl Office {
    /// A CA whose process runs.
    async fn start() -> Self {
        let mut office = Self::make();
        office.serve().await;
        office
    }

    fn make() -> Self {
        let folder = tempfile::Builder::new().prefix("mesh-join-").tempdir().unwrap();
        let office = Self { folder, address: Loopback::take(), process: None };
        succeed(office.ca(&["init"]).arg("--root-dir").arg(office.path("root")));
        office
    }

    async fn serve(&mut self) {
        let mut serve = self.ca(&["serve", "--listen", &self.address.port(PORT).to_string()]);
        // The first node of the tests stands on the CA's host.
        serve.arg("--socket").arg(self.socket()).arg("--config").arg(self.path("ct110/mesh.yaml"));
        let mut process = Daemon::start("ca", &mut serve);
        process.wait_log(&["[Enrolment] ca ready"]).await;
        self.process = Some(process);
    }

    fn log(&mut self) -> &mut Daemon {
        self.process.as_mut().unwrap()
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    fn socket(&self) -> PathBuf {
        self.path("ca.sock")
    }

    fn ca(&self, arguments: &[&str]) -> Command {
        let mut meshctl = command("meshctl");
        meshctl.arg("ca").args(arguments).arg("--dir").arg(self.path("ca"));
        meshctl
    }

    /// The token of an invitation.
    fn invite(&self, arguments: &[&str]) -> String {
        let output = run(command("meshctl").arg("invite").args(arguments).arg("--dir").arg(self.path("ca")));
        assert!(output.status.success(), "{}", text(&output.stderr));
        let told = text(&output.stdout);
        assert_eq!(told.lines().count(), 1, "one command and nothing else: {told}");
        told.split_whitespace().find(|word| word.len() > 60).unwrap().to_owned()
    }

    /// `meshctl join` of an agent or device.
    fn join(&self, token: &str, out: &str) -> Command {
        let mut join = command("meshctl");
        join.args(["join", token, "--out"]).arg(self.path(out));
        join
    }

    /// `meshctl join` of a node with its files below its own folder, and all of its addresses on one of loopback.
    fn join_node(&self, token: &str, name: &str, ip: IpAddr) -> Command {
        let folder = self.path(name);
        fs::create_dir_all(folder.join("registry")).unwrap();
        let mut join = command("meshctl");
        join.args(["join", token, "--user", "root", "--group", "root"]);
        join.arg("--config").arg(folder.join("mesh.yaml")).arg("--state-dir").arg(folder.join("var/state"));
        for setting in [
            format!("mesh.storage_dir={}", folder.join("registry").display()),
            format!("registryd.socket={}", folder.join("registryd.sock").display()),
            format!("mesh.advertise_host={ip}"),
            format!("proxy.inbound.address={ip}"),
            format!("proxy.outbound.listen={ip}:3001"),
            format!("proxy.backend.address={ip}:8080"),
            // Nobody answers there: only what join wrote tells where the seed is.
            format!("registryd.dns={{\"upstream\":[\"{ip}:9\"]}}"),
            "mesh.heartbeat_interval_ms=500".into(),
            "mesh.stale_threshold_ms=60000".into(),
        ] {
            join.args(["--set", &setting]);
        }
        join
    }

    /// What the enrolment port answers to a secret and a request.
    async fn enrol(&self, secret: &str, csr: &str) -> Answer {
        self.post("/enroll", json!({"secret": secret, "csr": csr}).to_string()).await
    }

    async fn post(&self, path: &str, body: String) -> Answer {
        let stream = within("connect", TcpStream::connect(self.address.port(PORT))).await.unwrap();
        let mut connection = Connection::over(self.tls(stream).await).await;
        let request = web::request(Method::POST, path).header("host", ENROLMENT_NAME);
        connection.send(request.body(web::full(body)).unwrap()).await
    }

    async fn tls(&self, stream: TcpStream) -> tokio_rustls::client::TlsStream<TcpStream> {
        let root = CertificateDer::from_pem_file(self.path("root/root.crt")).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(root).unwrap();
        let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let config = config.unwrap().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from(ENROLMENT_NAME).unwrap();
        within("handshake", TlsConnector::from(Arc::new(config)).connect(name, stream)).await.unwrap()
    }

    fn verified(&self) {
        let output = run(&mut self.ca(&["verify"]));
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    }
}

/// Runs a command off the test's thread, which plays the servers meanwhile.
async fn output(mut command: Command) -> Output {
    spawn_blocking(move || run(&mut command)).await.unwrap()
}

/// What a command says that fails.
async fn refused(command: Command) -> String {
    let output = output(command).await;
    assert_eq!(output.status.code(), Some(1), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stderr)
}

fn csr(name: &str) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

fn secret(token: &str) -> String {
    token.parse::<Token>().unwrap().secret.to_text().to_string()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode()
        & 0o777
}

/// A `systemctl` that writes down what it is asked and waits until a test has started the units.
fn systemctl(folder: &Path) -> String {
    let bin = folder.join("bin");
    fs::create_dir_all(&bin).unwrap();
    let script = folder.join("systemctl.sh");
    let text = format!(
        "#!/bin/sh\necho \"$@\" >> {0}/called\nwhile [ ! -e {0}/started ]; do sleep 0.05; done\n",
        folder.display()
    );
    fs::write(&script, text).unwrap();
    install(&script, &bin.join("systemctl"));
    format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())
}

/// A node that joined; its processes end with it.
struct Joined {
    address: Loopback,
    _daemons: [Daemon; 2],
    _agent: Agent,
}

async fn joins(office: &Office, name: &str, agent: &str, on_the_cas_host: bool) -> (Joined, String) {
    let token = office.invite(&[name, "--agents", agent]);
    let (address, folder) = (Loopback::take(), office.path(name));
    let agent = Agent::start(address.port(8080), agent).await;
    let mut join = office.join_node(&token, name, address.ip());
    if on_the_cas_host {
        join.arg("--ca-socket").arg(office.socket());
    }
    join.env("PATH", systemctl(&folder));
    let joining = tokio::spawn(output(join));
    eventually("systemctl is asked to start the units", async || {
        folder.join("called").exists().then_some(())
    })
    .await;
    let start = |program: &str| {
        let mut command = command(program);
        Daemon::start(&format!("{name} {program}"), command.env("MESH_CONFIG", folder.join("mesh.yaml")))
    };
    let (mut registryd, mut proxy) = (start("registryd"), start("mesh-proxy"));
    registryd.wait_log(&["registryd ready"]).await;
    proxy.wait_log(&["mesh-proxy ready"]).await;
    fs::write(folder.join("started"), "").unwrap();
    let output = joining.await.unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(fs::read_to_string(folder.join("called")).unwrap(), "enable --now registryd mesh-proxy\n");
    (Joined { address, _daemons: [registryd, proxy], _agent: agent }, text(&output.stdout))
}

#[tokio::test(flavor = "multi_thread")]
async fn invitations_alone_make_a_mesh_of_three() {
    let office = Office::start().await;
    let (one, told) = joins(&office, "ct110", "opus", true).await;
    assert!(told.contains("registered, as the first node"), "{told}");
    let (two, told) = joins(&office, "ct111", "grok", false).await;
    assert!(told.contains("ct110 is reached and knows this node"), "{told}");
    let (three, _) = joins(&office, "ct112", "scout", false).await;

    let state = office.path("ct112/var/state/tls");
    for (file, expected) in [
        (".", 0o750),
        ("ca-chain.pem", 0o640),
        ("crl.pem", 0o640),
        ("current/node.crt", 0o640),
        ("current/node.key", 0o600),
    ] {
        assert_eq!(mode(&state.join(file)), expected, "{file}");
    }
    assert_eq!(mode(&office.path("ct112/var")) & 0o555, 0o555, "mesh-proxy gets to its folder");
    assert!(fs::symlink_metadata(state.join("current")).unwrap().is_symlink());
    assert!(!state.join("joining").exists());
    // No key is anywhere but on its host.
    for name in ["ct110", "ct111", "ct112"] {
        assert!(office.path(&format!("ca/issued/{name}.crt")).exists());
        assert!(!office.path(&format!("ca/issued/{name}.key")).exists());
        let config = fs::read_to_string(office.path(name).join("mesh.yaml")).unwrap();
        assert!(config.contains("ca: {\"node\":\"ct110\"}"), "{config}");
    }
    let leaf = mesh_shared::certificate::read_leaf(&state.join("current/node.crt")).unwrap().1;
    let ids: Vec<_> = leaf.spiffe_ids.iter().map(ToString::to_string).collect();
    assert_eq!(ids, ["spiffe://mesh/node/ct112", "spiffe://mesh/agent/scout@ct112"]);
    assert_eq!((leaf.not_after - leaf.not_before) / 86_400, 7);

    // A delegation between two nodes that joined, neither of which is the seed.
    let task = json!({"fromAgent": "scout", "message": "look"});
    let answer = eventually("ct112 delegates to grok", async || {
        let answer = web::post(three.address.port(3001), "/agents/grok/api/message", &task).await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert_eq!(answer.json()["agent"], "grok", "{}", answer.text());
    for (from, agent) in [(&one, "scout"), (&two, "opus")] {
        eventually(&format!("{agent} is reached"), async || {
            let path = format!("/agents/{agent}/x");
            (web::get(from.address.port(3001), &path).await.status == 200).then_some(())
        })
        .await;
    }
    office.verified();
}

#[tokio::test]
async fn an_interrupted_join_goes_on_and_a_token_serves_one_key() {
    let mut office = Office::start().await;
    let token = office.invite(&["ct112"]);
    let ip = office.address.ip();
    let join = |office: &Office, folder: &str| {
        let mut join = office.join_node(&token, folder, ip);
        join.arg("--no-start");
        join
    };
    // The CA is away: the key is kept.
    office.process = None;
    let told = refused(join(&office, "ct112")).await;
    assert!(told.contains("cannot reach the CA's process"), "{told}");
    let pending = office.path("ct112/var/state/tls/joining");
    let key_of = |folder: &Path| {
        let keys = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let keys: Vec<_> = keys.filter(|path| path.extension().is_some_and(|kind| kind == "key")).collect();
        fs::read_to_string(&keys[0]).unwrap()
    };
    assert_eq!(mode(&pending), 0o700);
    let key = key_of(&pending);
    office.serve().await;
    assert!(output(join(&office, "ct112")).await.status.success());
    let current = office.path("ct112/var/state/tls/current");
    assert_eq!(fs::read_to_string(current.join("node.key")).unwrap(), key);
    let certificate = fs::read_to_string(current.join("node.crt")).unwrap();
    // Again, also after the folder was put back as it was before the answer came: the same certificate.
    assert!(output(join(&office, "ct112")).await.status.success());
    assert_eq!(office.log().lines_with(&["[Enrolment] enrolled"]).len(), 1);
    // The units do not start: the certificate is there, and the same command goes on.
    let broken = office.path("broken");
    fs::create_dir(&broken).unwrap();
    fs::write(office.path("broken.sh"), "#!/bin/sh\nexit 3\n").unwrap();
    install(&office.path("broken.sh"), &broken.join("systemctl"));
    let mut start = office.join_node(&token, "ct112", ip);
    start.env("PATH", format!("{}:{}", broken.display(), std::env::var("PATH").unwrap()));
    let told = refused(start).await;
    assert!(told.contains("`systemctl enable --now registryd mesh-proxy` failed (exit status: 3)"), "{told}");
    let folder = office.path("ct112/var/state/tls");
    fs::remove_file(folder.join("joined.json")).unwrap();
    fs::create_dir(&pending).unwrap();
    let name = mesh_enrolment::hex(&token.parse::<Token>().unwrap().secret.digest())[..16].to_owned();
    fs::write(pending.join(format!("{name}.key")), &key).unwrap();
    let pair = KeyPair::from_pem(&key).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "ct112");
    let request = params.serialize_request(&pair).unwrap().pem().unwrap();
    fs::write(pending.join(format!("{name}.csr")), &request).unwrap();
    assert!(output(join(&office, "ct112")).await.status.success());
    assert_eq!(fs::read_to_string(current.join("node.crt")).unwrap(), certificate);
    office.log().wait_log(&["enrolled again ct112"]).await;

    // Whoever else got hold of the token is refused, and it is told.
    let told = refused(join(&office, "thief")).await;
    assert!(told.contains("refused the token"), "{told}");
    let line = office.log().wait_log(&["WARN", "the token was stolen, or used twice"]).await;
    assert!(line.contains("meshctl ca revoke ct112"), "{line}");

    // The same request with another invitation: a key is certified once.
    let other = office.invite(&["ct112"]);
    assert_eq!(office.enrol(&secret(&other), &request).await.status, 403);
    office
        .log()
        .wait_log(&["refused", "a certificate for the key of this signing request was issued already"])
        .await;
    office.verified();
}

#[tokio::test]
async fn who_was_not_invited_is_told_nothing() {
    let mut office = Office::start().await;
    let good = office.invite(&["ct112"]);
    let short = office.invite(&["ct113", "--ttl", "1s"]);
    let used = office.invite(&["--device", "phone-1"]);
    let joined = output(office.join(&used, "phone")).await;
    assert!(joined.status.success(), "{}", text(&joined.stderr));
    for (file, expected) in [("phone-1.crt", 0o644), ("phone-1.key", 0o600), ("ca-chain.pem", 0o644)] {
        assert_eq!(mode(&office.path("phone").join(file)), expected, "{file}");
    }
    tokio::time::sleep(Duration::from_millis(1100)).await;

    let wrong = mesh_enrolment::Secret::random().unwrap().to_text().to_string();
    let (mut answers, good_csr) = (Vec::new(), csr("ct112"));
    let forged = good_csr.replacen('A', "B", 1);
    for (secret, csr, reason) in [
        (wrong.as_str(), good_csr.as_str(), "there is no such invitation"),
        (&secret(&short), &csr("ct113"), "has ended"),
        (&secret(&used), &csr("device:phone-1"), "the token was stolen, or used twice"),
        (&secret(&good), &csr("ct111"), "is for ct112, but the request is for ct111"),
        (&secret(&good), &csr("opus@ct112"), "is for ct112, but the request is for opus@ct112"),
        (&secret(&good), "no request", "the certificate request cannot be used"),
        (&secret(&good), &forged, "the certificate request cannot be used"),
        ("../../x", &good_csr, "something that is not a secret"),
    ] {
        let answer = office.enrol(secret, csr).await;
        assert_eq!(answer.status, 403, "{reason}: {}", answer.text());
        answers.push(answer.text());
        let line = office.log().wait_log(&["[Enrolment] refused from=", reason]).await;
        assert!(!line.contains(secret), "the secret is in the log: {line}");
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert!(answers[0].contains("enrolment_refused"), "{}", answers[0]);
    // None of it has spent the good one.
    let answer = office.enrol(&secret(&good), &good_csr).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let log = office.log().log().join("\n");
    for token in [&good, &short, &used] {
        assert!(!log.contains(&secret(token)));
    }
    office.verified();
}

#[tokio::test]
async fn a_token_that_was_cut_asks_nobody() {
    let office = Office::make();
    let token = office.invite(&["ct112", "--address", "192.0.2.1"]);
    for bad in [&token[..token.len() - 1], &token[1..], &token.replacen('A', "B", 1), "x"] {
        let told = refused(office.join_node(bad, "ct112", office.address.ip())).await;
        assert!(told.contains("the token is incomplete"), "{told}");
    }
    let told =
        text(&run(command("meshctl").arg("invite").arg("ct112").arg("--dir").arg(office.path("ca"))).stderr);
    assert!(told.contains("name its host with --address"), "{told}");
}

/// The same token that sends its holder elsewhere.
fn redirected(token: &str, to: SocketAddr) -> String {
    let token = token.parse::<Token>().unwrap();
    let addresses = vec![Address { host: to.ip().to_string(), port: to.port() }];
    Token { addresses, ..token }.to_text().to_string()
}

/// A TLS server with this certificate, and what it hears from those who trust it.
async fn impostor(
    at: SocketAddr,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> tokio::task::JoinHandle<Vec<u8>> {
    let config =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
    let listener = TcpListener::bind(at).await.unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        if let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await {
            let _ = stream.read_to_end(&mut heard).await;
        }
        heard
    })
}

#[tokio::test]
async fn nobody_stands_in_for_the_ca() {
    let office = Office::start().await;
    let token = office.invite(&["ct112"]);
    // Another CA's process.
    let other = Office::start().await;
    let elsewhere = redirected(&token, other.address.port(PORT));
    let told = refused(office.join_node(&elsewhere, "ct112", office.address.ip())).await;
    assert!(
        told.contains("is not the CA that the token names: its certificate is not from that CA"),
        "{told}"
    );

    // No member's certificate gets the name.
    let told = refused(office.ca(&["issue-node", "ct113", ENROLMENT_NAME])).await;
    assert!(told.contains("the name of the CA's own process"), "{told}");
    assert_eq!(
        run(command("meshctl")
            .args(["invite", "ct113", "--san", ENROLMENT_NAME, "--dir"])
            .arg(office.path("ca")))
        .status
        .code(),
        Some(2)
    );
    succeed(&mut office.ca(&["issue-node", "ct111"]));
    succeed(&mut office.ca(&["issue-agent", "opus@ct111"]));
    let read = |name: &str| CertificateDer::pem_file_iter(office.path(name)).unwrap().map(Result::unwrap);
    let above: Vec<_> = read("ca/intermediate/ca-chain.pem").collect();
    let mut cases = Vec::new();
    for (name, reason) in [
        ("ct111", "certificate is not for the name that was dialled"),
        ("opus@ct111", "certificate is not for"),
    ] {
        let mut chain: Vec<_> = read(&format!("ca/issued/{name}.crt")).take(1).collect();
        chain.extend(above.iter().cloned());
        let key = PrivateKeyDer::from_pem_file(office.path(&format!("ca/issued/{name}.key"))).unwrap();
        cases.push((chain, key, reason));
    }
    // One that another program signed with the CA's key for a node, with that name.
    let signing =
        KeyPair::from_pem(&fs::read_to_string(office.path("ca/intermediate/intermediate.key")).unwrap());
    let issuer = Issuer::from_ca_cert_der(&above[0], signing.unwrap()).unwrap();
    let mut params = CertificateParams::new(vec![ENROLMENT_NAME.into(), "ct114.mesh".into()]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "ct114");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let pair = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&pair, &issuer).unwrap();
    let chain = std::iter::once(leaf.der().clone()).chain(above.iter().cloned()).collect();
    let key = PrivateKeyDer::Pkcs8(pair.serialize_der().into());
    cases.push((chain, key, "it shows the certificate of a member of the mesh"));
    for (chain, key, reason) in cases {
        let address = Loopback::take();
        let heard = impostor(address.port(PORT), chain, key).await;
        let told =
            refused(office.join_node(&redirected(&token, address.port(PORT)), "ct112", address.ip())).await;
        assert!(told.contains("is not the CA that the token names") && told.contains(reason), "{told}");
        assert_eq!(within("the end of the impostor", heard).await.unwrap(), b"", "it heard something");
    }
    // The other way round: the CA's certificate is no member's.
    let stream = TcpStream::connect(office.address.port(PORT)).await.unwrap();
    let tls = office.tls(stream).await;
    let shown = tls.get_ref().1.peer_certificates().unwrap()[0].clone();
    assert!(mesh_shared::certificate::Leaf::parse(&shown).is_err());
    drop(tls);
    let mut join = office.join_node(&token, "ct112", office.address.ip());
    join.arg("--no-start");
    assert!(output(join).await.status.success());
}

#[tokio::test]
async fn floods_are_bounded_and_keep_nobody_out() {
    let mut office = Office::start().await;
    let to = office.address.port(PORT);
    let from = |address: &Loopback| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(address.port(0)).unwrap();
        socket.connect(to)
    };
    // Connections that say nothing: those of one address are few.
    let silent = Loopback::take();
    let mut open = Vec::new();
    for _ in 0..64 {
        open.push(from(&silent).await.unwrap());
    }
    let mut closed = 0;
    for stream in &mut open {
        let ended = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut [0; 1])).await;
        closed += usize::from(ended.is_ok());
    }
    assert!(closed >= 48, "{closed} of 64 were closed");
    // Guesses: after some, those from there are not even heard.
    let guessing = Loopback::take();
    let mut heard = 0;
    for _ in 0..14 {
        let stream = from(&guessing).await.unwrap();
        let secret = mesh_enrolment::Secret::random().unwrap().to_text().to_string();
        let root = CertificateDer::from_pem_file(office.path("root/root.crt")).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(root).unwrap();
        let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let config = config.unwrap().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from(ENROLMENT_NAME).unwrap();
        let Ok(tls) = TlsConnector::from(Arc::new(config)).connect(name, stream).await else { continue };
        let mut connection = Connection::over(tls).await;
        let body = json!({"secret": secret, "csr": csr("ct112")}).to_string();
        let request = web::request(Method::POST, "/enroll").body(web::full(body)).unwrap();
        assert_eq!(connection.send(request).await.status, 403);
        heard += 1;
    }
    // One more may have come back meanwhile.
    assert!((10..=13).contains(&heard), "{heard} of 14 were heard");
    // A body beyond the limit, and paths that are not there.
    let large = office.post("/enroll", "x".repeat(300 * 1024)).await;
    assert_eq!(large.status, 403);
    office.log().wait_log(&["refused", "not a request to enrol"]).await;
    assert_eq!(office.post("/api/mesh/ca/renew", "{}".into()).await.status, 404);

    let token = office.invite(&["ct112"]);
    let mut join = office.join_node(&token, "ct112", office.address.ip());
    join.arg("--no-start");
    let joined = output(join).await;
    assert!(joined.status.success(), "{}", text(&joined.stderr));
}

#[tokio::test]
async fn a_configuration_that_is_there_is_kept_or_told() {
    let office = Office::start().await;
    let token = office.invite(&["ct112"]);
    let config = office.path("ct112/mesh.yaml");
    let mut join = office.join_node(&token, "ct112", office.address.ip());
    join.arg("--no-start");
    let text_of = |tls: &str, node: &str| {
        let tls = office.path(tls);
        json!({"mesh": {"enabled": true, "node_name": node, "tls": {
            "ca_path": tls.join("ca-chain.pem"), "cert_path": tls.join("current/node.crt"),
            "key_path": tls.join("current/node.key"),
        }}})
        .to_string()
    };
    fs::write(&config, text_of("elsewhere", "ct113")).unwrap();
    let told = refused(join).await;
    for key in [
        "mesh.node_name: ct112 (it is ct113)",
        "mesh.tls.cert_path:",
        "mesh.tls.key_path:",
        "mesh.tls.ca_path:",
    ] {
        assert!(told.contains(key), "{key} is not in {told}");
    }
    // The token is still good.
    let kept = text_of("ct112/var/state/tls", "ct112");
    fs::write(&config, &kept).unwrap();
    let mut join = office.join_node(&token, "ct112", office.address.ip());
    let joined = output({
        join.arg("--no-start");
        join
    })
    .await;
    assert!(joined.status.success(), "{}", text(&joined.stderr));
    let told = text(&joined.stdout);
    assert!(told.contains("which was there and is kept"), "{told}");
    assert!(told.contains("the CA's host is not a node yet, so nothing renews this certificate"), "{told}");
    assert_eq!(fs::read_to_string(&config).unwrap(), kept);

    // The example, which every installation has, is no configuration of anybody.
    let token = office.invite(&["ct115"]);
    let mut join = office.join_node(&token, "ct115", office.address.ip());
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/mesh.yaml"),
        office.path("ct115/mesh.yaml"),
    )
    .unwrap();
    assert!(
        output({
            join.arg("--no-start");
            join
        })
        .await
        .status
        .success()
    );
    assert!(fs::read_to_string(office.path("ct115/mesh.yaml")).unwrap().contains("node_name: \"ct115\""));
}

/// Killed at any instant, the CA's process leaves a folder that is whole, and a join that was cut off goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_ca_leaves_a_whole_folder() {
    let mut office = Office::start().await;
    for round in 0..12u64 {
        let name = format!("phone-{round}");
        let token = office.invite(&["--device", &name]);
        let joining = tokio::spawn(output(office.join(&token, &name)));
        tokio::time::sleep(Duration::from_millis(10 + 12 * round)).await;
        office.log().kill();
        let first = joining.await.unwrap();
        office.serve().await;
        office.verified();
        if !first.status.success() {
            let again = output(office.join(&token, &name)).await;
            // Only where the kill fell between the index and the certificate is the key spent.
            let told = text(&again.stderr);
            assert!(again.status.success() || told.contains("refused the token"), "{told}");
            if !again.status.success() {
                office.log().wait_log(&["refused", &name, "was issued already"]).await;
            }
        }
        office.verified();
    }
}

//! Bad certificates and chains, presented by a client to a sidecar's inbound side and by a server that a sidecar dials. Each is
//! refused in the handshake, with its own reason in the log or in the answer, and a good one beside it is accepted.

use std::path::Path;
use std::process::Command;

use mesh_tests::ca::{Ca, Issued, Spec, params, self_signed};
use mesh_tests::eventually;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::tls::{Client, PeerOptions};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DnType, DnValue,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    NameConstraints, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use serde_json::json;

const FAILED: &str = "WARN [AgentChannel] TLS handshake failed from 127.0.0.1: ";
const UNKNOWN: &str = "unknown issuer";
const EXPIRED: &str = "has expired";
const EARLY: &str = "not valid yet";
const SIGNATURE: &str = "bad signature";
const WEAK: &str = "signed in a way that is not accepted";
const UNREADABLE: &str = "cannot be read";

/// Who is to refuse a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// The inbound side: it is presented by a client.
    Inbound,
    /// The outbound side: it is presented by the server that was dialled.
    Outbound,
    Both,
}

struct Bad {
    what: &'static str,
    by: By,
    identity: Issued,
    /// Part of the reason.
    reason: &'static str,
}

/// A CA of the test's own, below which chains may be as bad as can be.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    /// What a peer sends behind its leaf.
    chain_pem: String,
    serial: Vec<u8>,
}

impl Authority {
    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        params.not_before = date_time_ymd(2024, 1, 1);
        params.not_after = date_time_ymd(2090, 1, 1);
        params
    }

    fn root(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (mut params, key) = (Self::params(name), KeyPair::generate().unwrap());
        change(&mut params);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem, chain_pem: String::new(), serial: Vec::new() }
    }

    fn below(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (mut params, key) = (Self::params(name), KeyPair::generate().unwrap());
        let serial = name.as_bytes().iter().rev().take(8).copied().collect::<Vec<_>>();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        change(&mut params);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        let chain_pem = pem.clone() + &self.chain_pem;
        Self { issuer: Issuer::new(params, key), pem, chain_pem, serial }
    }

    fn leaf(&self, params: CertificateParams) -> Issued {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued {
            cert_pem: certificate.pem(),
            chain_pem: certificate.pem() + &self.chain_pem,
            key_pem: key.serialize_pem(),
            serial: Vec::new(),
        }
    }

    fn crl(&self, revoked: &[&[u8]]) -> String {
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

const NODE: &str = "ct150";

fn good() -> CertificateParams {
    params(&Spec::node(NODE))
}

fn changed(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = good();
    change(&mut params);
    params
}

fn named(value: impl Into<DnValue>) -> CertificateParams {
    let value = value.into();
    changed(|params| params.distinguished_name.push(DnType::CommonName, value))
}

/// One that is signed well and then changed.
fn tampered(issued: &Issued, change: impl FnOnce(&mut Vec<u8>)) -> Issued {
    let mut der = issued.leaf()[0].to_vec();
    change(&mut der);
    let pem = pem(&der);
    let rest = issued.chain_pem.strip_prefix(&issued.cert_pem).unwrap();
    Issued { chain_pem: pem.clone() + rest, cert_pem: pem, ..issued.clone() }
}

fn pem(der: &[u8]) -> String {
    let mut input = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut input, der).unwrap();
    let output = Command::new("openssl").args(["base64", "-in"]).arg(input.path()).output().unwrap();
    let body = String::from_utf8(output.stdout).unwrap();
    format!("-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n")
}

fn openssl(folder: &Path, args: &[&str]) {
    let output = Command::new("openssl").current_dir(folder).args(args).output().unwrap();
    assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A leaf that openssl makes below `authority`, with these options; `extensions` empty: version 1.
fn by_openssl(authority: &Authority, extensions: &str, options: &[&str]) -> Issued {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("ca.pem"), &authority.pem).unwrap();
    std::fs::write(file("ca.key"), authority.issuer.key().serialize_pem()).unwrap();
    signed_by_openssl(folder.path(), extensions, options, &authority.chain_pem)
}

/// The same with ca.pem and ca.key in a folder; `chain` goes behind the leaf.
fn signed_by_openssl(folder: &Path, extensions: &str, options: &[&str], chain: &str) -> Issued {
    let key = KeyPair::generate().unwrap();
    std::fs::write(folder.join("leaf.key"), key.serialize_pem()).unwrap();
    std::fs::write(folder.join("ext"), extensions).unwrap();
    let subject = format!("/CN={NODE}");
    openssl(folder, &["req", "-new", "-key", "leaf.key", "-subj", &subject, "-out", "leaf.csr"]);
    let mut args =
        vec!["x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", "7"];
    args.extend(["-days", "30", "-out", "leaf.pem"]);
    if !extensions.is_empty() {
        args.extend(["-extfile", "ext"]);
    }
    args.extend(options);
    openssl(folder, &args);
    let cert_pem = std::fs::read_to_string(folder.join("leaf.pem")).unwrap();
    Issued { chain_pem: cert_pem.clone() + chain, cert_pem, key_pem: key.serialize_pem(), serial: vec![7] }
}

/// A chain whose intermediate, below `root`, has a key that openssl makes with these options.
fn below_weak_key(root: &Authority, key: &[&str]) -> Issued {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mut args = vec!["genpkey", "-out", "ca.key"];
    args.extend(key);
    openssl(path, &args);
    std::fs::write(path.join("root.pem"), &root.pem).unwrap();
    std::fs::write(path.join("root.key"), root.issuer.key().serialize_pem()).unwrap();
    let extensions = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n";
    std::fs::write(path.join("ca.ext"), extensions).unwrap();
    openssl(path, &["req", "-new", "-key", "ca.key", "-subj", "/CN=Weak", "-out", "ca.csr"]);
    openssl(
        path,
        &[
            "x509",
            "-req",
            "-in",
            "ca.csr",
            "-CA",
            "root.pem",
            "-CAkey",
            "root.key",
            "-set_serial",
            "8",
            "-days",
            "30",
            "-extfile",
            "ca.ext",
            "-out",
            "ca.pem",
        ],
    );
    let chain = std::fs::read_to_string(path.join("ca.pem")).unwrap();
    signed_by_openssl(path, &leaf_extensions(), &["-sha256"], &chain)
}

fn leaf_extensions() -> String {
    format!(
        "subjectAltName=DNS:{NODE}.mesh\nextendedKeyUsage=serverAuth,clientAuth\nkeyUsage=digitalSignature\n"
    )
}

fn bad_leaves(ca: &Ca, root: &Authority) -> Vec<Bad> {
    use By::{Both, Inbound, Outbound};
    use ExtendedKeyUsagePurpose as Eku;
    let of = |what, by, identity, reason| Bad { what, by, identity, reason };
    let leaf = |what, by, params, reason| Bad { what, by, identity: ca.sign(params), reason };
    let usage = |purposes: &[Eku]| {
        let purposes = purposes.to_vec();
        changed(|params| params.extended_key_usages = purposes)
    };
    let sans = |names: Vec<SanType>| changed(|params| params.subject_alt_names = names);
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let intact = ca.sign(good());
    let twice = CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 0x03, 0x82, 0x01, b'x']);
    let mut critical = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
    critical.set_criticality(true);
    let mut no_name = good();
    no_name.distinguished_name = rcgen::DistinguishedName::new();
    let mut other_key = intact.clone();
    other_key.key_pem = KeyPair::generate().unwrap().serialize_pem();
    vec![
        leaf("expired", Both, changed(|p| p.not_after = date_time_ymd(2025, 1, 1)), EXPIRED),
        leaf("not yet valid", Both, changed(|p| p.not_before = date_time_ymd(2089, 1, 1)), EARLY),
        leaf(
            "ends before it begins",
            Both,
            changed(|p| (p.not_before, p.not_after) = (date_time_ymd(2027, 1, 1), date_time_ymd(2020, 1, 1))),
            EXPIRED,
        ),
        leaf("for servers only", Inbound, usage(&[Eku::ServerAuth]), "clientAuth"),
        leaf("for clients only", Outbound, usage(&[Eku::ClientAuth]), "serverAuth"),
        leaf("for signing code, as a client", Inbound, usage(&[Eku::CodeSigning]), "clientAuth"),
        leaf("for signing code, as a server", Outbound, usage(&[Eku::CodeSigning]), "serverAuth"),
        leaf(
            "for mail, as a client",
            Inbound,
            usage(&[Eku::EmailProtection, Eku::TimeStamping]),
            "clientAuth",
        ),
        leaf(
            "for mail, as a server",
            Outbound,
            usage(&[Eku::EmailProtection, Eku::TimeStamping]),
            "serverAuth",
        ),
        leaf("no subject", Both, no_name, "no common name"),
        leaf("empty CN", Both, named(""), "CN \"\""),
        leaf("CN with a space", Both, named("ct 150"), "\"ct 150\""),
        leaf("CN of another domain", Both, named("ct150.example.org"), "ct150.example.org"),
        leaf("CN for all", Both, named("*.mesh"), "\"*.mesh\""),
        leaf("CN with a zero", Both, named("ct150\0.evil"), "\\0"),
        leaf("CN with a line break", Both, named("ct150\nct151"), "\\n"),
        leaf("CN that looks alike", Both, named("\u{441}t150"), "t150"),
        leaf("CN of two nodes", Both, named("ct150,ct151"), "ct150,ct151"),
        leaf("CN of an agent on nothing", Both, named("opus@"), "\"opus@\""),
        leaf("CN of two agents", Both, named("opus@grok@ct150"), "opus@grok@ct150"),
        leaf("CN of no device", Both, named("device:"), "device name"),
        leaf("CN too long", Both, named("c".repeat(300)), "ccc"),
        leaf("another node", Outbound, named("ct151"), "ct151"),
        leaf("an agent", Outbound, named("opus@ct150"), "opus@ct150"),
        leaf("a device", Outbound, named("device:phone"), "device:phone"),
        leaf("no alternative name", Outbound, sans(vec![]), "not for the name"),
        leaf("alternative name of another node", Outbound, sans(vec![dns("ct151.mesh")]), "not for the name"),
        leaf("alternative name outside", Outbound, sans(vec![dns("ct150.mesh.example")]), "not for the name"),
        leaf(
            "an address alone",
            Outbound,
            sans(vec![SanType::IpAddress("127.0.0.1".parse().unwrap())]),
            "not for the name",
        ),
        leaf(
            "a CA's",
            Both,
            changed(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            "is that of a CA",
        ),
        leaf(
            "an unknown critical extension",
            Both,
            changed(|p| p.custom_extensions.push(critical)),
            "must be understood",
        ),
        leaf("an extension twice", Both, changed(|p| p.custom_extensions.push(twice)), "an extension twice"),
        of("self-signed", Both, self_signed(&Spec::node(NODE)), UNKNOWN),
        of("signature changed", Both, tampered(&intact, |der| *der.last_mut().unwrap() ^= 1), SIGNATURE),
        of("serial number changed", Both, tampered(&intact, |der| der[18] ^= 1), SIGNATURE),
        of("cut off", Both, tampered(&intact, |der| der.truncate(der.len() - 7)), UNREADABLE),
        of("something behind it", Both, tampered(&intact, |der| der.push(0)), UNREADABLE),
        of(
            "no certificate at all",
            Both,
            tampered(&intact, |der| *der = b"certificate".to_vec()),
            UNREADABLE,
        ),
        of("key of another", Both, other_key, SIGNATURE),
        of("version 1", Both, by_openssl(root, "", &["-sha256"]), "version 3"),
        of("SHA-1", Both, by_openssl(root, &leaf_extensions(), &["-sha1"]), WEAK),
        of("MD5", Both, below_weak_key_md5(root), WEAK),
    ]
}

/// EC keys do not go with MD5.
fn below_weak_key_md5(root: &Authority) -> Issued {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    openssl(path, &["genrsa", "-out", "ca.key", "2048"]);
    let key = KeyPair::from_pem(&std::fs::read_to_string(path.join("ca.key")).unwrap()).unwrap();
    let params = Authority::params("RSA");
    let authority = params.signed_by(&key, &root.issuer).unwrap().pem();
    std::fs::write(path.join("ca.pem"), &authority).unwrap();
    signed_by_openssl(path, &leaf_extensions(), &["-md5"], &authority)
}

fn bad_chains(ca: &Ca, root: &Authority, ended: &Authority, coming: &Authority) -> Vec<Bad> {
    use By::{Both, Inbound, Outbound};
    let of = |what, by, identity, reason| Bad { what, by, identity, reason };
    let below = |what, change: &dyn Fn(&mut CertificateParams), reason| {
        of(what, Both, root.below(what, |params| change(params)).leaf(good()), reason)
    };
    let constrained = |permitted: &str, excluded: &str| {
        let tree = |name: &str| match name {
            "" => vec![],
            name => vec![GeneralSubtree::DnsName(name.into())],
        };
        Some(NameConstraints { permitted_subtrees: tree(permitted), excluded_subtrees: tree(excluded) })
    };
    let usage = |purpose: ExtendedKeyUsagePurpose, what| {
        root.below(what, |params| params.extended_key_usages = vec![purpose]).leaf(good())
    };
    let foreign = Ca::new();
    let mut in_front = foreign.node(NODE);
    in_front.chain_pem = in_front.cert_pem.clone() + &ca.bundle_pem();
    let intermediate = root.below("Intermediate", |_| {});
    let mut alone = intermediate.leaf(good());
    alone.chain_pem = alone.cert_pem.clone();
    // A leaf of the mesh that signs: with itself in the chain, and with a chain up to the CA.
    let (signing_key, mut as_ca) = (KeyPair::generate().unwrap(), params(&Spec::node("ct151")));
    let signing = as_ca.signed_by(&signing_key, &root.issuer).unwrap().pem();
    as_ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let leaf_signs = Authority {
        issuer: Issuer::new(as_ca, signing_key),
        pem: signing.clone(),
        chain_pem: signing,
        serial: Vec::new(),
    };
    let short = root.below("Short", |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let mut deep = root.below("Deep 0", |_| {});
    for depth in 1..8 {
        deep = deep.below(&format!("Deep {depth}"), |_| {});
    }
    vec![
        of("foreign CA", Both, foreign.node(NODE), UNKNOWN),
        of("foreign CA of the same name", Both, ca.namesake().node(NODE), SIGNATURE),
        of("foreign leaf in front of our chain", Both, in_front, UNKNOWN),
        of("intermediate not sent", Both, alone, UNKNOWN),
        of("signed by a leaf", Both, leaf_signs.leaf(good()), "is not a CA's"),
        below("intermediate expired", &|p| p.not_after = date_time_ymd(2025, 1, 1), EXPIRED),
        below("intermediate not yet valid", &|p| p.not_before = date_time_ymd(2089, 1, 1), EARLY),
        below("intermediate is no CA", &|p| p.is_ca = IsCa::ExplicitNoCa, "CA:FALSE"),
        below("intermediate without basic constraints", &|p| p.is_ca = IsCa::NoCa, "no basic constraints"),
        below(
            "intermediate may not sign",
            &|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature],
            "lacks keyCertSign",
        ),
        below(
            "names that the CA may not issue",
            &|p| p.name_constraints = constrained("example.org", ""),
            "name constraints",
        ),
        below(
            "names that are excluded",
            &|p| p.name_constraints = constrained("", "mesh"),
            "name constraints",
        ),
        of(
            "CA for servers only",
            Inbound,
            usage(ExtendedKeyUsagePurpose::ServerAuth, "Servers"),
            "clientAuth",
        ),
        of(
            "CA for clients only",
            Outbound,
            usage(ExtendedKeyUsagePurpose::ClientAuth, "Clients"),
            "serverAuth",
        ),
        of("path too long", Both, short.below("Below", |_| {}).leaf(good()), "path length"),
        of("far too many CAs", Both, deep.leaf(good()), "too many CAs"),
        of("root has ended", Both, ended.leaf(good()), UNKNOWN),
        of("root begins later", Both, coming.leaf(good()), UNKNOWN),
        of(
            "CA with a short RSA key",
            Both,
            below_weak_key(root, &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]),
            SIGNATURE,
        ),
        of(
            "CA with a key on another curve",
            Both,
            below_weak_key(root, &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"]),
            WEAK,
        ),
    ]
}

/// A sidecar that trusts the mesh's CA and these, with registryd.
async fn sidecar(mesh: &Mesh, more: &[&Authority], lists: Option<String>) -> Node {
    let bundle = more.iter().fold(mesh.ca.bundle_pem(), |bundle, authority| bundle + &authority.pem);
    std::fs::write(mesh.bundle_path(), bundle).unwrap();
    let path = mesh.folder().join("ca/lists.pem");
    if let Some(lists) = &lists {
        std::fs::write(&path, lists).unwrap();
    }
    let plan = mesh.node("ct110").agent("opus").with(|config| {
        // Each address may fail as often as it likes.
        config["proxy"]["timeouts"]["handshake_ms"] = json!(2000);
        if lists.is_some() {
            config["proxy"]["crl_path"] = json!(path);
        }
    });
    plan.start().await
}

/// Both directions of one case. The log groups lines that are alike, so the sidecar starts anew for each.
async fn refused(mesh: &Mesh, node: &mut Node, bad: &Bad) {
    let Bad { what, by, identity, reason } = bad;
    if *by != By::Outbound {
        let seen = node.proxy().log().len();
        Client::new(&mesh.ca, identity).refused(node.inbound(), "ct110").await;
        eprintln!("{what}: refused as a client");
        node.proxy().wait_log_after(seen, &[FAILED, reason]).await;
    }
    if *by != By::Inbound {
        let options = PeerOptions { identity: identity.clone(), ..PeerOptions::good(&mesh.ca, NODE) };
        let (peer, _address) = mesh.peer_with(NODE, &[], options).await;
        let told = eventually(&format!("{what}: {reason}"), async || {
            let answer = node.get(&format!("/nodes/{NODE}/secret")).await;
            // Until registryd has seen the entry, and while the address is that of the peer before.
            let problem: serde_json::Value = serde_json::from_str(&answer.text()).unwrap_or_default();
            let detail = problem["detail"].as_str().unwrap_or_default();
            (peer.example.connections() > 0 && detail.contains(reason)).then_some(answer)
        })
        .await;
        let code = told.header("x-mesh-error").unwrap_or_default().to_owned();
        assert!(["peer_untrusted", "peer_identity_mismatch"].contains(&code.as_str()), "{what}: {code}");
        assert_eq!(told.status, 502, "{what}");
        assert!(peer.example.requests().is_empty(), "{what}: something was sent");
    }
}

/// A good certificate beside the bad ones, both ways.
async fn accepted(mesh: &Mesh, node: &Node, identity: Issued) {
    let client = Client::new(&mesh.ca, &identity);
    let ping =
        mesh_tests::web::request(http::Method::GET, "/api/mesh/ping").body(mesh_tests::web::empty()).unwrap();
    let answer = client.send(node.inbound(), "ct110", ping).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["cn"], NODE);
    let (peer, _address) =
        mesh.peer_with(NODE, &[], PeerOptions { identity, ..PeerOptions::good(&mesh.ca, NODE) }).await;
    node.comes_to(&format!("/nodes/{NODE}/hello"), None).await;
    assert!(!peer.example.requests().is_empty());
}

async fn all_are_refused(mesh: &Mesh, node: &mut Node, all: &[Bad], good: &[Issued]) {
    for (index, bad) in all.iter().enumerate() {
        if index % 3 == 0 {
            assert!(node.proxy().stop().await.success());
            node.start_proxy().await;
        }
        refused(mesh, node, bad).await;
    }
    for identity in good {
        accepted(mesh, node, identity.clone()).await;
    }
}

#[tokio::test]
async fn every_bad_leaf_is_refused_in_both_directions() {
    let mesh = Mesh::new();
    let root = Authority::root("Second Root", |_| {});
    let all = bad_leaves(&mesh.ca, &root);
    assert!(all.len() >= 40, "{}", all.len());
    let mut node = sidecar(&mesh, &[&root], None).await;
    let by_openssl = by_openssl(&root, &leaf_extensions(), &["-sha256"]);
    all_are_refused(&mesh, &mut node, &all, &[mesh.ca.sign(good()), by_openssl]).await;
}

#[tokio::test]
async fn every_bad_chain_is_refused_in_both_directions() {
    let mesh = Mesh::new();
    let root = Authority::root("Second Root", |_| {});
    let ended = Authority::root("Ended Root", |params| params.not_after = date_time_ymd(2025, 1, 1));
    let coming = Authority::root("Coming Root", |params| params.not_before = date_time_ymd(2089, 1, 1));
    let all = bad_chains(&mesh.ca, &root, &ended, &coming);
    let mut node = sidecar(&mesh, &[&root, &ended, &coming], None).await;
    let good = [mesh.ca.sign(good()), root.below("Good", |_| {}).leaf(good())];
    all_are_refused(&mesh, &mut node, &all, &good).await;
}

#[tokio::test]
async fn what_is_revoked_or_covered_by_no_list_is_refused_in_both_directions() {
    let mesh = Mesh::new();
    let root = Authority::root("Second Root", |_| {});
    let (revoked_ca, covered, uncovered) =
        (root.below("Revoked", |_| {}), root.below("Covered", |_| {}), root.below("Uncovered", |_| {}));
    let revoked = mesh.ca.sign(good());
    let lists = [
        mesh.ca.crl_pem(&[&revoked]),
        root.crl(&[&revoked_ca.serial]),
        revoked_ca.crl(&[]),
        covered.crl(&[]),
    ];
    let ended_list = root.below("Ended List", |_| {});
    let list = {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2025, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&ended_list.issuer).unwrap().pem().unwrap()
    };
    let mut node = sidecar(&mesh, &[&root], Some(lists.concat() + &list)).await;
    let of = |what, identity, reason| Bad { what, by: By::Both, identity, reason };
    let all = [
        of("revoked", revoked, "is revoked"),
        of("revoked CA", revoked_ca.leaf(good()), "is revoked"),
        of("no list of its CA", uncovered.leaf(good()), "covered by no revocation list"),
        of("list has ended", ended_list.leaf(good()), "revocation list has expired"),
    ];
    all_are_refused(&mesh, &mut node, &all, &[mesh.ca.sign(good()), covered.leaf(good())]).await;
}

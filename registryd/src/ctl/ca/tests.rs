use std::os::unix::fs::PermissionsExt;

use rustls::pki_types::UnixTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;

struct Folder {
    temp: tempfile::TempDir,
    ca: Ca,
}

fn folder() -> Folder {
    let temp = tempfile::tempdir().unwrap();
    let ca = Ca::at(temp.path().join("shared/rivet-ca"));
    Folder { ca, temp }
}

impl Folder {
    fn root_dir(&self) -> PathBuf {
        self.temp.path().join("root")
    }

    fn made(self) -> Self {
        self.ca.init(&self.root_dir(), KeyType::EcP256).unwrap();
        self
    }

    fn issue(&self, cn: &str, names: &[&str]) -> Result<Issued, CaError> {
        let names = names.iter().map(ToString::to_string).collect();
        self.ca.issue(&Order::new(cn.parse().unwrap(), names))
    }

    fn problems(&self) -> Vec<String> {
        let all = self.ca.examine(UnixTime::now()).unwrap();
        all.into_iter().flat_map(|each| each.problems).collect()
    }
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn a_node_certificate_is_what_the_reference_document_asks_for() {
    let folder = folder().made();
    let issued =
        folder.issue("ct110", &["192.168.10.110", "FD00::110", "host.example", "ct110.mesh"]).unwrap();
    assert_eq!(issued.leaf.common_name, "ct110");
    assert_eq!(issued.leaf.dns_names, ["ct110.mesh", "host.example"]);
    assert_eq!(
        issued.leaf.addresses,
        ["192.168.10.110".parse::<IpAddr>().unwrap(), "fd00::110".parse().unwrap()]
    );
    assert!((89..=90).contains(&issued.leaf.days_left(UnixTime::now())));

    let chain = certificate::read_certificates("certificate", &issued.certificate).unwrap();
    let trusted = certificate::read_certificates("trust bundle", &folder.ca.chain_path()).unwrap();
    assert_eq!((chain.len(), trusted.len()), (2, 2));
    assert_eq!(chain[1], trusted[0]);
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !usage.any);
    assert!(leaf.key_usage().unwrap().unwrap().value.digital_signature());
    assert_eq!(leaf.raw_serial().len(), 20);
    assert_eq!(leaf.public_key().parsed().unwrap().key_size(), 256);
    let (_, intermediate) = X509Certificate::from_der(&chain[1]).unwrap();
    let constraints = intermediate.basic_constraints().unwrap().unwrap().value;
    assert!(constraints.ca && constraints.path_len_constraint == Some(0));

    for key in [&issued.key, &folder.ca.intermediate_key_path(), &folder.root_dir().join("root.key")] {
        assert_eq!(mode(key), 0o600, "{}", key.display());
    }
    assert_eq!(mode(&issued.certificate), 0o644);
    assert_eq!(mode(&folder.root_dir()), 0o700);
    assert_eq!(folder.problems(), [""; 0]);
}

#[test]
fn every_kind_of_key_and_identity_is_accepted_by_the_verifiers_of_peers() {
    use KeyType::*;
    let folder = folder();
    folder.ca.init(&folder.root_dir(), EcP384).unwrap();
    for (node, key_type) in [("a", EcP256), ("b", EcP384), ("c", Rsa2048)] {
        let order = Order { key_type, ..Order::new(node.parse().unwrap(), Vec::new()) };
        folder.ca.issue(&order).unwrap();
    }
    folder.issue("opus@ct110", &[]).unwrap();
    folder.issue("device:phone-1", &[]).unwrap();
    assert_eq!(folder.problems(), [""; 0]);
    let kinds: Vec<_> = folder.ca.examine(UnixTime::now()).unwrap().iter().map(|each| each.kind).collect();
    use super::examine::Kind::*;
    assert_eq!(kinds, [Authority, Authority, Node, Node, Node, Device, Agent]);

    let rsa = Folder { ca: Ca::at(folder.temp.path().join("rsa")), temp: tempfile::tempdir().unwrap() };
    rsa.ca.init(&rsa.root_dir(), Rsa2048).unwrap();
    rsa.issue("ct110", &[]).unwrap();
    assert_eq!(rsa.problems(), [""; 0]);
}

#[test]
fn nothing_is_overwritten() {
    let folder = folder().made();
    folder.issue("ct110", &[]).unwrap();
    let all = || -> Vec<_> {
        let (certificate, key) = folder.ca.issued_paths("ct110");
        let files = [certificate, key, folder.ca.chain_path(), folder.ca.intermediate_key_path()];
        files.map(|path| std::fs::read(path).unwrap()).into()
    };
    let before = all();
    assert!(matches!(folder.issue("ct110", &[]), Err(CaError::Exists { .. })));
    assert!(matches!(folder.issue("CT110.mesh", &[]), Err(CaError::Exists { .. })));
    assert!(matches!(folder.ca.init(&folder.root_dir(), KeyType::EcP256), Err(CaError::Exists { .. })));
    let elsewhere = folder.temp.path().join("other-root");
    assert!(matches!(folder.ca.init(&elsewhere, KeyType::EcP256), Err(CaError::Exists { .. })));
    assert_eq!(before, all());
    assert!(!elsewhere.exists());
}

#[test]
fn what_was_interrupted_is_noticed() {
    let folder = folder().made();
    let issued = folder.issue("ct110", &[]).unwrap();
    std::fs::remove_file(&issued.certificate).unwrap();
    assert!(matches!(folder.issue("ct110", &[]), Err(CaError::HalfIssued { .. })));
    assert!(folder.problems()[0].contains("key without a certificate"));

    std::fs::remove_file(folder.ca.chain_path()).unwrap();
    assert!(matches!(folder.ca.init(&folder.root_dir(), KeyType::EcP256), Err(CaError::HalfMade { .. })));
    assert!(matches!(folder.issue("ct111", &[]), Err(CaError::HalfMade { .. })));
    assert!(matches!(Ca::at("/nonexistent").examine(UnixTime::now()), Err(CaError::NoCa { .. })));
}

#[test]
fn orders_that_make_no_sense_are_refused() {
    let folder = folder().made();
    assert!(matches!(folder.issue("ct110", &["ct111.mesh"]), Err(CaError::NameOfOther { .. })));
    for bad in ["a b", "*", "http://x", "10.0.0.1:3000", ""] {
        assert!(matches!(folder.issue("ct110", &[bad]), Err(CaError::AlternativeName(_))), "{bad:?}");
    }
    let inside = Ca::at(folder.temp.path().join("x"));
    let error = inside.init(&folder.temp.path().join("x/root"), KeyType::EcP256);
    assert!(matches!(error, Err(CaError::RootInside { .. })), "{error:?}");
    assert!(!folder.temp.path().join("x").exists());
}

#[test]
fn renewal_keeps_the_names_and_replaces_the_key() {
    let folder = folder().made();
    let old = folder.issue("ct110", &["10.0.0.1"]).unwrap();
    let old_key = std::fs::read(&old.key).unwrap();
    let new = folder.ca.renew(&"ct110".parse().unwrap(), 30, KeyType::EcP256).unwrap();
    assert_eq!((&new.leaf.dns_names, &new.leaf.addresses), (&old.leaf.dns_names, &old.leaf.addresses));
    assert!((29..=30).contains(&new.leaf.days_left(UnixTime::now())));
    assert_ne!(old_key, std::fs::read(&new.key).unwrap());
    assert_eq!(mode(&new.key), 0o600);
    assert_eq!(folder.problems(), [""; 0]);
    let unknown = folder.ca.renew(&"ct111".parse().unwrap(), 30, KeyType::EcP256);
    assert!(matches!(unknown, Err(CaError::NothingToRenew { .. })));
}

#[test]
fn what_cannot_work_is_found() {
    let folder = folder().made();
    let issued = folder.issue("ct110", &[]).unwrap();
    let later = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        UnixTime::now().as_secs() + 80 * 86_400 + 60,
    ));
    let remarks = |now| -> Vec<_> {
        folder.ca.examine(now).unwrap().into_iter().flat_map(|each| each.remarks).collect()
    };
    assert!(remarks(later)[0].contains("ends in 9 days"));

    std::fs::set_permissions(&issued.key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(folder.problems()[0].contains("can be read by everyone"));
    std::fs::set_permissions(&issued.key, std::fs::Permissions::from_mode(0o600)).unwrap();

    let other = super::tests::folder().made();
    let foreign = other.issue("ct111", &[]).unwrap();
    let (certificate, key) = folder.ca.issued_paths("ct111");
    std::fs::copy(&foreign.certificate, &certificate).unwrap();
    std::fs::copy(&foreign.key, &key).unwrap();
    assert!(folder.problems()[0].contains("unknown issuer"), "{:?}", folder.problems());

    std::fs::copy(&issued.certificate, &certificate).unwrap();
    let problems = folder.problems();
    assert!(
        problems[0].contains("are not the same") && problems[1].contains("does not belong"),
        "{problems:?}"
    );
}

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mesh_shared::certificate;
use mesh_shared::spiffe::TrustDomain;
use rcgen::IsCa;
use rustls::pki_types::UnixTime;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::authority::dated;
use crate::certificate::Certificate;
use crate::key::read_pair;

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
        self.ca.init(&self.root_dir(), KeyType::EcP256, &TrustDomain::default()).unwrap();
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

    for key in [&issued.key, &folder.ca.signing_key_path(), &folder.root_dir().join("root.key")] {
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
    folder.ca.init(&folder.root_dir(), EcP384, &TrustDomain::default()).unwrap();
    for (node, key_type) in [("a", EcP256), ("b", EcP384), ("c", Rsa2048), ("d", Ed25519)] {
        let order = Order { key_type, ..Order::new(node.parse().unwrap(), Vec::new()) };
        folder.ca.issue(&order).unwrap();
    }
    folder.issue("opus@ct110", &[]).unwrap();
    folder.issue("device:phone-1", &[]).unwrap();
    assert_eq!(folder.problems(), [""; 0]);
    let kinds: Vec<_> = folder.ca.examine(UnixTime::now()).unwrap().iter().map(|each| each.kind).collect();
    use super::Kind::*;
    assert_eq!(kinds, [Authority, Authority, Node, Node, Node, Node, Device, Agent]);

    let kind = |node: &str| {
        let (path, _) = folder.ca.issued_paths(node);
        Certificate::of(&certificate::read_certificates("certificate", &path).unwrap()[0]).key_type
    };
    for (node, key_type) in [("a", EcP256), ("b", EcP384), ("c", Rsa2048), ("d", Ed25519)] {
        folder.ca.renew(&node.parse().unwrap(), &Renewal::of(90)).unwrap();
        assert_eq!(kind(node), Some(key_type), "renewal keeps the kind of key");
    }
    folder.ca.renew(&"c".parse().unwrap(), &Renewal { key_type: Some(EcP256), ..Renewal::of(90) }).unwrap();
    assert_eq!(kind("c"), Some(EcP256));
    assert_eq!(folder.problems(), [""; 0]);

    let rsa = Folder { ca: Ca::at(folder.temp.path().join("rsa")), temp: tempfile::tempdir().unwrap() };
    rsa.ca.init(&rsa.root_dir(), Rsa2048, &TrustDomain::default()).unwrap();
    rsa.issue("ct110", &[]).unwrap();
    assert_eq!(rsa.problems(), [""; 0]);
}

#[test]
fn nothing_is_overwritten() {
    let folder = folder().made();
    folder.issue("ct110", &[]).unwrap();
    let all = || -> Vec<_> {
        let (certificate, key) = folder.ca.issued_paths("ct110");
        let files = [certificate, key, folder.ca.chain_path(), folder.ca.signing_key_path()];
        files.map(|path| std::fs::read(path).unwrap()).into()
    };
    let before = all();
    assert!(matches!(folder.issue("ct110", &[]), Err(CaError::Exists { .. })));
    assert!(matches!(folder.issue("CT110.mesh", &[]), Err(CaError::Exists { .. })));
    assert!(matches!(
        folder.ca.init(&folder.root_dir(), KeyType::EcP256, &TrustDomain::default()),
        Err(CaError::Exists { .. })
    ));
    let elsewhere = folder.temp.path().join("other-root");
    assert!(matches!(
        folder.ca.init(&elsewhere, KeyType::EcP256, &TrustDomain::default()),
        Err(CaError::Exists { .. })
    ));
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
    assert!(matches!(
        folder.ca.init(&folder.root_dir(), KeyType::EcP256, &TrustDomain::default()),
        Err(CaError::HalfMade { .. })
    ));
    assert!(matches!(folder.issue("ct111", &[]), Err(CaError::HalfMade { .. })));
    assert!(matches!(Ca::at("/nonexistent").examine(UnixTime::now()), Err(CaError::NoCa { .. })));
}

#[test]
fn a_leaf_among_the_authorities_signs_nothing_and_keeps_nobody_from_being_revoked() {
    let folder = folder().made();
    let issued = folder.issue("ct110", &[]).unwrap();
    let chain = folder.ca.chain_path();
    let with_leaf =
        std::fs::read_to_string(&chain).unwrap() + &std::fs::read_to_string(&issued.certificate).unwrap();
    std::fs::write(&chain, &with_leaf).unwrap();
    assert!(folder.problems()[0].contains("is not a CA's (CA:FALSE)"), "{:?}", folder.problems());
    let refused = folder.issue("ct111", &[]).unwrap_err().to_string();
    assert!(refused.contains("ca-chain.pem: line ") && refused.contains("CN=ct110"), "{refused}");
    folder.ca.revoke(&Which::Named("ct110".parse().unwrap()), Reason::default(), CRL_DAYS).unwrap();
    folder.ca.renew_intermediate(&folder.root_dir(), None).unwrap();
    folder.issue("ct111", &[]).unwrap();
    assert_eq!(folder.problems(), [""; 0]);
}

#[test]
fn numbers_of_lists_never_fall() {
    use x509_parser::prelude::CertificateRevocationList;
    let folder = folder().made();
    for node in ["a", "b", "c"] {
        folder.issue(node, &[]).unwrap();
    }
    let made = || {
        let list = mesh_shared::revocation::read(&folder.ca.crl_path()).unwrap().remove(0);
        let (_, parsed) = CertificateRevocationList::from_der(&list.der).unwrap();
        (list.this_update, parsed.crl_number().unwrap().clone())
    };
    let revoke = |node: &str| {
        folder.ca.revoke(&Which::Named(node.parse().unwrap()), Reason::default(), CRL_DAYS).map(drop).unwrap()
    };
    let saved = std::fs::read(folder.ca.crl_path()).unwrap();
    let mut last = made();
    for node in ["a", "b"] {
        revoke(node);
        assert!(made() > last);
        last = made();
    }
    // An old folder is put back.
    std::fs::write(folder.ca.crl_path(), saved).unwrap();
    revoke("c");
    assert!(made() > last);
}

#[test]
fn orders_that_make_no_sense_are_refused() {
    let folder = folder().made();
    assert!(matches!(folder.issue("ct110", &["ct111.mesh"]), Err(CaError::NameOfOther { .. })));
    for bad in ["a b", "*", "http://x", "10.0.0.1:3000", ""] {
        assert!(matches!(folder.issue("ct110", &[bad]), Err(CaError::AlternativeName(_))), "{bad:?}");
    }
    let inside = Ca::at(folder.temp.path().join("x"));
    let error = inside.init(&folder.temp.path().join("x/root"), KeyType::EcP256, &TrustDomain::default());
    assert!(matches!(error, Err(CaError::RootInside { .. })), "{error:?}");
    assert!(!folder.temp.path().join("x").exists());
}

#[test]
fn renewal_keeps_the_names_and_replaces_the_key() {
    let folder = folder().made();
    let old = folder.issue("ct110", &["10.0.0.1"]).unwrap();
    let old_key = std::fs::read(&old.key).unwrap();
    let new = folder.ca.renew(&"ct110".parse().unwrap(), &Renewal::of(30)).unwrap();
    assert_eq!((&new.leaf.dns_names, &new.leaf.addresses), (&old.leaf.dns_names, &old.leaf.addresses));
    assert!((29..=30).contains(&new.leaf.days_left(UnixTime::now())));
    assert_ne!(old_key, std::fs::read(&new.key).unwrap());
    assert_eq!(mode(&new.key), 0o600);
    assert_eq!(folder.problems(), [""; 0]);
    let unknown = folder.ca.renew(&"ct111".parse().unwrap(), &Renewal::of(30));
    assert!(matches!(unknown, Err(CaError::NothingToRenew { .. })));
}

fn asks(ca: &Ca, cn: &str) -> SigningRequest {
    assert!(ca.chain_path().exists());
    let request = NewRequest::make(&cn.parse().unwrap(), KeyType::EcP256).unwrap();
    SigningRequest::from_pem(&request.request_pem).unwrap()
}

#[test]
fn a_certificate_that_was_revoked_after_it_was_judged_is_not_renewed() {
    let folder = folder().made();
    let identity = "ct111".parse().unwrap();
    let signed = folder.ca.sign(&asks(&folder.ca, "ct111"), &Order::new(identity, Vec::new())).unwrap();
    let held = certificate::read_certificates("certificate", &signed.certificate).unwrap();
    folder.ca.accepted(held.clone()).unwrap();
    let which = Which::Named("ct111".parse().unwrap());
    folder.ca.revoke(&which, Reason::default(), 14).unwrap();
    let renewed = folder.ca.sign_renewal(&asks(&folder.ca, "ct111"), &held[0], 7);
    assert!(matches!(renewed, Err(CaError::Revoked { .. })));
}

#[test]
fn a_renewal_with_an_earlier_certificate_brings_nothing_back() {
    let folder = folder().made();
    let order = |agents: &[&str]| Order {
        agents: agents.iter().map(|agent| agent.parse().unwrap()).collect(),
        ..Order::new("ct111".parse().unwrap(), Vec::new())
    };
    let first = folder.ca.sign(&asks(&folder.ca, "ct111"), &order(&["grok", "scout"])).unwrap();
    let held = certificate::read_certificates("certificate", &first.certificate).unwrap();
    folder.ca.sign(&asks(&folder.ca, "ct111"), &order(&["scout"])).unwrap();
    let renewed = folder.ca.sign_renewal(&asks(&folder.ca, "ct111"), &held[0], 7).unwrap();
    assert_eq!(renewed.leaf.agents().iter().map(ToString::to_string).collect::<Vec<_>>(), ["scout"]);
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
    assert!(remarks(later).iter().any(|remark| remark.contains("ends in 9 days")));

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

#[test]
fn ends_are_told_in_whole_days() {
    let told = [90, 1, 0, -1, -2, -99].map(ends);
    assert_eq!(
        told,
        [
            "ends in 90 days",
            "ends in 1 day",
            "ends in less than a day",
            "ended less than a day ago",
            "ended 1 day ago",
            "ended 98 days ago"
        ]
    );
}

#[test]
fn a_root_that_exists_is_never_to_be_removed() {
    let folder = folder().made();
    let other = Ca::at(folder.temp.path().join("other/ca"));
    let again = || other.init(&folder.root_dir(), KeyType::EcP256, &TrustDomain::default()).unwrap_err();
    assert!(matches!(again(), CaError::RootExists { .. }), "{}", again());
    let (certificate, key) = (folder.root_dir().join("root.crt"), folder.root_dir().join("root.key"));
    std::fs::rename(&certificate, folder.temp.path().join("kept")).unwrap();
    assert!(matches!(again(), CaError::RootKeyAlone { .. }), "{}", again());
    assert!(!again().to_string().contains("remove"), "{}", again());
    std::fs::rename(folder.temp.path().join("kept"), &certificate).unwrap();
    std::fs::remove_file(&key).unwrap();
    assert!(matches!(again(), CaError::RootHalfMade { .. }), "{}", again());
    std::fs::copy(folder.ca.signing_key_path(), &key).unwrap();
    assert!(matches!(again(), CaError::OtherKey { .. }), "{}", again());
    assert!(!folder.temp.path().join("other").exists());
}

/// The common names in ca-chain.pem.
fn chain(ca: &Ca) -> Vec<String> {
    ca.authorities().unwrap().iter().map(|authority| authority.certificate.shown()).collect()
}

#[test]
fn a_new_intermediate_signs_and_the_old_one_stays_trusted() {
    let folder = folder().made();
    folder.issue("ct110", &[]).unwrap();
    let before = chain(&folder.ca);
    let new = folder.ca.renew_intermediate(&folder.root_dir(), None).unwrap();
    assert_eq!(chain(&folder.ca), [new.cn.as_str(), &before[0], &before[1]]);
    let kept = new.former_key.unwrap();
    for key in [&kept, &folder.ca.signing_key_path()] {
        assert_eq!(mode(key), 0o600, "{}", key.display());
    }
    let issued = folder.issue("ct111", &[]).unwrap();
    let sent = certificate::read_certificates("certificate", &issued.certificate).unwrap();
    assert_eq!(Certificate::of(&sent[1]).cn, Some(new.cn));
    assert_eq!(folder.problems(), [""; 0]);
    let all = folder.ca.examine(UnixTime::now()).unwrap();
    assert!(all.iter().all(|each| each.remarks.is_empty()), "{all:?}");

    let elsewhere = super::tests::folder().made();
    let foreign = folder.ca.renew_intermediate(&elsewhere.root_dir(), None);
    assert!(matches!(foreign, Err(CaError::OtherRoot { .. })), "{foreign:?}");
    let root_key = folder.ca.clone().signing_with(Some(folder.root_dir().join("root.key")));
    let named = root_key.renew_intermediate(&folder.root_dir(), None);
    assert!(matches!(named, Err(CaError::RootKeyNamed { .. })), "{named:?}");
    let away = folder.ca.renew_intermediate(&folder.temp.path().join("none"), None);
    assert!(matches!(away, Err(CaError::NoRoot { .. })), "{away:?}");
    assert_eq!(chain(&folder.ca).len(), 3);
}

#[test]
fn a_renewal_of_the_intermediate_that_was_interrupted_goes_on() {
    let folder = folder().made();
    let old_key = std::fs::read(folder.ca.signing_key_path()).unwrap();
    let new = folder.ca.renew_intermediate(&folder.root_dir(), None).unwrap();
    // As after a crash right before the new key got its name.
    let fresh = folder.ca.signing_key_path().with_file_name("intermediate.key.new");
    std::fs::rename(folder.ca.signing_key_path(), &fresh).unwrap();
    std::fs::write(folder.ca.signing_key_path(), old_key).unwrap();
    std::fs::set_permissions(folder.ca.signing_key_path(), std::fs::Permissions::from_mode(0o600)).unwrap();
    folder.issue("ct110", &[]).unwrap();
    assert_eq!(folder.problems(), [""; 0]);
    let again = folder.ca.renew_intermediate(&folder.root_dir(), None).unwrap();
    assert_eq!((&again.cn, again.former_key), (&new.cn, new.former_key));
    assert_eq!(chain(&folder.ca).len(), 3);
    assert!(!fresh.exists());
    folder.issue("ct111", &[]).unwrap();
    assert_eq!(folder.problems(), [""; 0]);
}

#[test]
fn an_intermediate_whose_key_is_lost_is_replaced_only_on_purpose() {
    let folder = folder().made();
    let key = folder.ca.signing_key_path();
    std::fs::remove_file(&key).unwrap();
    let missing = folder.ca.renew_intermediate(&folder.root_dir(), None);
    assert!(matches!(missing, Err(CaError::NoSigningKey { .. })), "{missing:?}");
    let ca = folder.ca.clone().signing_with(Some(key.clone()));
    assert_eq!(ca.renew_intermediate(&folder.root_dir(), None).unwrap().former_key, None);
    folder.issue("ct110", &[]).unwrap();
    assert_eq!(folder.problems(), [""; 0]);
}

fn revoked(ca: &Ca) -> Vec<String> {
    let all = ca.examine(UnixTime::now()).unwrap();
    let gone = all.into_iter().filter(|each| each.state == State::Revoked);
    gone.filter_map(|each| each.cn).collect()
}

#[test]
fn a_list_keeps_what_is_in_it_and_every_intermediate_has_one() {
    let folder = folder().made();
    for name in ["ct110", "ct111", "ct112", "opus@ct110"] {
        folder.issue(name, &[]).unwrap();
    }
    let named = |name: &str| Which::Named(name.parse().unwrap());
    // As made by others, without a list.
    std::fs::remove_file(folder.ca.crl_path()).unwrap();
    folder.ca.renew_intermediate(&folder.root_dir(), None).unwrap();
    folder.issue("ct113", &[]).unwrap();
    folder.ca.revoke(&named("ct110.mesh"), Reason::default(), CRL_DAYS).unwrap();
    let lists = || std::fs::read_to_string(folder.ca.crl_path()).unwrap().matches("BEGIN X509 CRL").count();
    assert_eq!((lists(), revoked(&folder.ca)), (2, vec!["ct110".into()]));
    folder.ca.revoke(&named("ct113"), Reason::default(), CRL_DAYS).unwrap();
    folder.ca.revoke(&named("opus@ct110"), Reason::default(), CRL_DAYS).unwrap();
    let serial = folder.ca.examine(UnixTime::now()).unwrap();
    let serial =
        serial.iter().find(|each| each.cn.as_deref() == Some("ct112")).unwrap().serial.clone().unwrap();
    let written = serial.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).unwrap().to_uppercase());
    folder
        .ca
        .revoke(&Which::Serial(written.collect::<Vec<_>>().join(":")), Reason::default(), CRL_DAYS)
        .unwrap();
    assert_eq!(
        (lists(), revoked(&folder.ca)),
        (2, ["ct110", "ct112", "ct113", "opus@ct110"].map(Into::into).into())
    );
    assert_eq!(mode(&folder.ca.crl_path()), 0o644);
    let again = folder.ca.revoke(&named("ct110"), Reason::default(), CRL_DAYS).unwrap();
    assert!(again[0].before.is_some(), "{again:?}");

    let other = super::tests::folder().made();
    let foreign = other.issue("ct119", &[]).unwrap();
    let before = std::fs::read(folder.ca.crl_path()).unwrap();
    for which in [named("ct119"), Which::Serial("1234".into()), Which::File(foreign.certificate)] {
        let refused = folder.ca.revoke(&which, Reason::default(), CRL_DAYS);
        assert!(matches!(refused, Err(CaError::NothingToRevoke(_))), "{refused:?}");
    }
    assert_eq!(before, std::fs::read(folder.ca.crl_path()).unwrap());
    // A third intermediate, with a list as well.
    folder.ca.renew_intermediate(&folder.root_dir(), None).unwrap();
    assert_eq!((lists(), revoked(&folder.ca).len()), (3, 4));
}

#[test]
fn a_certificate_that_was_renewed_can_still_be_revoked() {
    let folder = folder().made();
    let stolen = folder.issue("ct110", &[]).unwrap();
    let stolen_copy = folder.temp.path().join("stolen.crt");
    std::fs::copy(&stolen.certificate, &stolen_copy).unwrap();
    folder.ca.renew(&"ct110".parse().unwrap(), &Renewal::of(90)).unwrap();
    let by_file = folder.ca.revoke(&Which::File(stolen_copy), Reason::default(), CRL_DAYS).unwrap();
    assert_eq!(revoked(&folder.ca), [""; 0]);
    let by_name =
        folder.ca.revoke(&Which::Named("ct110".parse().unwrap()), Reason::default(), CRL_DAYS).unwrap();
    assert_eq!(by_name.len(), 2, "the new one and the one before: {by_name:?}");
    assert!(by_name.iter().any(|each| each.serial == by_file[0].serial && each.before.is_some()));
    assert_eq!(revoked(&folder.ca), ["ct110"]);
    folder.ca.renew(&"ct110".parse().unwrap(), &Renewal::of(90)).unwrap();
    assert_eq!(revoked(&folder.ca), [""; 0]);
}

#[test]
fn an_intermediate_that_has_ended_is_no_dead_end() {
    let folder = folder().made();
    let root = std::fs::read_to_string(folder.root_dir().join("root.crt")).unwrap();
    let root_pair = read_pair(&folder.root_dir().join("root.key")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&root, root_pair).unwrap();
    let mut params = dated("Ended").unwrap();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.not_before = OffsetDateTime::now_utc() - Duration::days(9);
    params.not_after = OffsetDateTime::now_utc() - Duration::hours(26);
    let pair = KeyType::EcP384.generate().unwrap();
    let ended = params.signed_by(&pair, &issuer).unwrap();
    std::fs::write(folder.ca.chain_path(), ended.pem() + &root).unwrap();
    std::fs::write(folder.ca.signing_key_path(), pair.serialize_pem()).unwrap();

    let refused = folder.issue("ct110", &[]).unwrap_err().to_string();
    assert!(refused.contains("ended 1 day ago; `meshctl ca renew-intermediate`"), "{refused}");
    assert!(folder.problems()[0].contains("renew-intermediate"), "{:?}", folder.problems());
    folder.ca.renew_intermediate(&folder.root_dir(), None).unwrap();
    assert_eq!(chain(&folder.ca).len(), 2, "the new one and the root: {:?}", chain(&folder.ca));
    let issuing = &folder.ca.authorities().unwrap()[0];
    assert_eq!(issuing.certificate.key_type, Some(KeyType::EcP384));
    folder.issue("ct110", &[]).unwrap();
    let all = folder.ca.examine(UnixTime::now()).unwrap();
    assert!(all.iter().all(|each| each.state == State::Ok), "{all:?}");
}

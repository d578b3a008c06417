//! `meshctl ca` in the folder of a CA that RivetOS keeps with openssl: it is recognised and worked with as it is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use mesh_tests::process::{run, succeed, text};

use super::meshctl::ca;

fn openssl(folder: &Path, args: &[&str]) -> String {
    succeed(Command::new("openssl").current_dir(folder).args(args))
}

/// The part of the books that `openssl ca` needs.
const BOOKS: &str = "[ca]\ndefault_ca=int\n[int]\ndir=intermediate\nnew_certs_dir=$dir\ndatabase=$dir/index.txt\n\
    serial=$dir/int.srl\nprivate_key=$dir/int.key\ncertificate=$dir/int.crt\ndefault_md=sha256\ndefault_days=90\n\
    policy=loose\nunique_subject=no\ncopy_extensions=copy\ncrlnumber=$dir/crlnumber\ndefault_crl_days=30\n\
    [loose]\ncommonName=supplied\norganizationName=optional\norganizationalUnitName=optional\n\
    [server]\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature,keyEncipherment\n\
    extendedKeyUsage=serverAuth,clientAuth\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid,issuer\n\
    [client]\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth\n\
    subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid,issuer\n\
    [req]\ndistinguished_name=dn\n[dn]\n\
    [root]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n\
    [sub]\nbasicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n\
    subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid:always,issuer\n";

/// Such a CA in `at/rivet-ca`, its root beside it, with certificates of ct110, ct111, opus@ct111 and device:pixel; ct113's is
/// revoked.
fn rivetos(at: &Path) {
    let folder = at.join("rivet-ca");
    for below in ["intermediate", "issued"] {
        fs::create_dir_all(folder.join(below)).unwrap();
    }
    fs::create_dir(at.join("root")).unwrap();
    fs::write(folder.join("openssl.cnf"), BOOKS).unwrap();
    fs::write(folder.join("intermediate/index.txt"), "").unwrap();
    for book in ["crlnumber", "int.srl"] {
        fs::write(folder.join("intermediate").join(book), "1000\n").unwrap();
    }
    let (root_key, root) = ("../root/ca.key", "../root/ca.crt");
    for key in [root_key, "intermediate/int.key"] {
        openssl(&folder, &["genrsa", "-out", key, "2048"]);
    }
    let root_name = "/O=Rivet Collective/CN=Rivet Root CA";
    openssl(
        &folder,
        &[
            "req",
            "-new",
            "-x509",
            "-days",
            "3650",
            "-key",
            root_key,
            "-out",
            root,
            "-subj",
            root_name,
            "-extensions",
            "root",
            "-config",
            "openssl.cnf",
        ],
    );
    let name = "/O=Rivet Collective/CN=Rivet Intermediate CA";
    openssl(&folder, &["req", "-new", "-key", "intermediate/int.key", "-out", "int.csr", "-subj", name]);
    openssl(
        &folder,
        &[
            "x509",
            "-req",
            "-days",
            "1825",
            "-in",
            "int.csr",
            "-CA",
            root,
            "-CAkey",
            root_key,
            "-CAcreateserial",
            "-out",
            "intermediate/int.crt",
            "-extfile",
            "openssl.cnf",
            "-extensions",
            "sub",
        ],
    );
    let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
    fs::write(folder.join("intermediate/chain.pem"), read("intermediate/int.crt") + &read(root)).unwrap();
    for node in ["ct110", "ct111", "ct113"] {
        let names = format!(
            "subjectAltName=DNS:{node}.mesh,DNS:{node}-mcp.mesh,DNS:{node}-runtime-rpc.mesh,DNS:gate.mesh"
        );
        issue(&folder, node, &format!("CN={node}.mesh"), "server", &["-addext", &names]);
    }
    issue(&folder, "opus@ct111", "CN=opus@ct111", "client", &[]);
    issue(&folder, "device-pixel", "OU=client/CN=device:pixel", "client", &[]);
    openssl(&folder, &["ca", "-config", "openssl.cnf", "-revoke", "issued/ct113.crt"]);
    list_by_openssl(&folder);
}

fn issue(folder: &Path, file: &str, subject: &str, extensions: &str, more: &[&str]) {
    let (key, certificate) = (format!("issued/{file}.key"), format!("issued/{file}.crt"));
    openssl(folder, &["genrsa", "-out", &key, "2048"]);
    let subject = format!("/O=Rivet Collective/{subject}");
    let mut args = vec!["req", "-new", "-key", &key, "-out", "leaf.csr", "-subj", &subject];
    args.extend(more);
    openssl(folder, &args);
    openssl(
        folder,
        &[
            "ca",
            "-batch",
            "-notext",
            "-config",
            "openssl.cnf",
            "-extensions",
            extensions,
            "-in",
            "leaf.csr",
            "-out",
            &certificate,
        ],
    );
}

fn list_by_openssl(folder: &Path) {
    openssl(folder, &["ca", "-config", "openssl.cnf", "-gencrl", "-out", "crl.pem"]);
}

/// The serial numbers in the list, and its own number.
fn revoked(folder: &Path) -> (Vec<String>, u64) {
    let shown = openssl(folder, &["crl", "-in", "crl.pem", "-noout", "-text", "-crlnumber"]);
    let serials =
        shown.lines().filter_map(|line| line.trim().strip_prefix("Serial Number: ")).map(str::to_owned);
    let number = shown.lines().find_map(|line| line.strip_prefix("crlNumber=0x")).unwrap();
    (serials.collect(), u64::from_str_radix(number, 16).unwrap())
}

#[test]
fn it_is_recognised_and_no_second_one_is_made() {
    let temp = tempfile::tempdir().unwrap();
    let at = temp.path();
    rivetos(at);
    let output = run(&mut ca(at, &["init"]));
    let told = text(&output.stderr);
    assert!(!output.status.success() && told.contains("a RivetOS CA is already in"), "{told}");
    assert!(
        !at.join("rivet-ca/intermediate/ca-chain.pem").exists()
            && !at.join("rivet-ca/intermediate/crl.pem").exists()
    );
    let told = succeed(&mut ca(at, &["verify"]));
    assert!(told.contains("6 of 7 certificates work, 1 is revoked"), "{told}");
    // Also of what is left of one.
    fs::remove_dir_all(at.join("rivet-ca/intermediate")).unwrap();
    let told = text(&run(&mut ca(at, &["init"])).stderr);
    assert!(told.contains("certificates were issued in") && told.contains("put its files back"), "{told}");
}

#[test]
fn a_renewal_keeps_what_rivetos_writes() {
    let temp = tempfile::tempdir().unwrap();
    let (at, folder) = (temp.path(), temp.path().join("rivet-ca"));
    rivetos(at);
    for name in ["ct110", "opus@ct111", "device:pixel"] {
        succeed(&mut ca(at, &["renew", name]));
    }
    let shown = openssl(
        &folder,
        &[
            "x509",
            "-in",
            "issued/ct110.crt",
            "-noout",
            "-nameopt",
            "RFC2253",
            "-subject",
            "-ext",
            "subjectAltName",
        ],
    );
    for part in
        ["CN=ct110.mesh", "O=Rivet Collective", "ct110-mcp.mesh", "ct110-runtime-rpc.mesh", "gate.mesh"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let shown = openssl(
        &folder,
        &["x509", "-in", "issued/device-pixel.crt", "-noout", "-nameopt", "RFC2253", "-subject"],
    );
    assert!(shown.contains("OU=client") && shown.contains("device:pixel"), "{shown}");
    for file in ["ct110", "opus@ct111", "device-pixel"] {
        openssl(&folder, &["verify", "-CAfile", "intermediate/chain.pem", &format!("issued/{file}.crt")]);
    }
    assert!(!folder.join("issued/device:pixel.crt").exists());
    succeed(&mut ca(at, &["verify"]));
    // The name of another node is not taken along.
    succeed(&mut ca(at, &["issue-node", "gate"]));
    let told = text(&run(&mut ca(at, &["renew", "ct111"])).stderr);
    assert!(told.contains("gate.mesh is the name of another node"), "{told}");
}

#[test]
fn what_either_revokes_stays_revoked() {
    let temp = tempfile::tempdir().unwrap();
    let (at, folder) = (temp.path(), temp.path().join("rivet-ca"));
    rivetos(at);
    let (before, number) = revoked(&folder);
    assert_eq!(before.len(), 1);
    succeed(&mut ca(at, &["renew", "ct111"]));
    // openssl's books know it as valid, as those that openssl issued.
    let books = fs::read_to_string(folder.join("intermediate/index.txt")).unwrap();
    let serial = openssl(&folder, &["x509", "-in", "issued/ct111.crt", "-noout", "-serial"]);
    let serial = serial.trim().trim_start_matches("serial=").to_owned();
    assert!(books.lines().any(|line| line.starts_with("V\t") && line.contains(&serial)), "{serial}: {books}");
    let told = succeed(&mut ca(at, &["revoke", "ct111"]));
    // Both certificates of it, and the agent that lives there is named.
    assert!(told.contains("meshctl ca revoke opus@ct111"), "{told}");
    let (both, higher) = revoked(&folder);
    assert!(both.len() == 3 && both.contains(&before[0]) && higher > number, "{both:?} {higher}");
    // openssl makes its next list from its own books.
    list_by_openssl(&folder);
    let (again, next) = revoked(&folder);
    assert!(both.iter().all(|serial| again.contains(serial)) && next > higher, "{again:?} {next}");
    openssl(&folder, &["ca", "-config", "openssl.cnf", "-revoke", "issued/device-pixel.crt"]);
    list_by_openssl(&folder);
    succeed(&mut ca(at, &["revoke", "ct110", "--with-agents"]));
    let (all, last) = revoked(&folder);
    assert!(all.len() == 5 && last > next, "{all:?} {last}");
}

#[test]
fn an_intermediate_is_renewed_with_its_root() {
    let temp = tempfile::tempdir().unwrap();
    let (at, folder) = (temp.path(), temp.path().join("rivet-ca"));
    rivetos(at);
    succeed(&mut ca(at, &["renew-intermediate"]));
    succeed(&mut ca(at, &["issue-node", "ct112"]));
    for node in ["ct110", "ct112"] {
        openssl(&folder, &["verify", "-CAfile", "intermediate/chain.pem", &format!("issued/{node}.crt")]);
    }
    // RivetOS signs with the same one from now on.
    let modulus = |args: &[&str]| openssl(&folder, args);
    assert_eq!(
        modulus(&["x509", "-in", "intermediate/int.crt", "-noout", "-pubkey"]),
        modulus(&["pkey", "-in", "intermediate/int.key", "-pubout"])
    );
    succeed(&mut ca(at, &["verify"]));
}

#[test]
fn a_signing_key_that_others_can_read_is_a_failure() {
    let temp = tempfile::tempdir().unwrap();
    let at = temp.path();
    rivetos(at);
    let key = at.join("rivet-ca/intermediate/int.key");
    let set = |mode| fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    for mode in [0o640, 0o604, 0o660] {
        set(mode);
        let output = run(&mut ca(at, &["verify"]));
        let told = text(&output.stdout);
        assert!(!output.status.success() && told.contains("int.key is open to others"), "{told}");
    }
    set(0o600);
    succeed(&mut ca(at, &["verify"]));
    // So is the root's key in the shared folder, and one that is encrypted says so.
    fs::copy(at.join("root/ca.key"), at.join("rivet-ca/intermediate/root.key")).unwrap();
    let told = text(&run(&mut ca(at, &["verify"])).stdout);
    assert!(told.contains("the root's key is in the CA's folder"), "{told}");
    fs::remove_file(at.join("rivet-ca/intermediate/root.key")).unwrap();
    for form in [&["-traditional"][..], &[]] {
        let mut args =
            vec!["rsa", "-in", "int.key", "-aes128", "-passout", "pass:secret", "-out", "locked.pem"];
        args.extend(form);
        openssl(&at.join("rivet-ca/intermediate"), &args);
        let locked = at.join("rivet-ca/intermediate/locked.pem");
        let output = run(&mut ca(at, &["issue-node", "ct112", "--signing-key", locked.to_str().unwrap()]));
        let told = text(&output.stderr);
        assert!(told.contains("line 1 is encrypted; decrypt it with"), "{told}");
    }
}

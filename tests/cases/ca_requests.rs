//! Signing requests: keys that stay on their hosts, and requests that ask for more than they get.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use mesh_tests::process::{command, run, succeed, text};

use super::meshctl::{ca, refused};

fn csr(at: &Path, name: &str) -> String {
    fs::create_dir_all(at.join("host")).unwrap();
    succeed(command("meshctl").args(["csr", name, "--out"]).arg(at.join("host")));
    let key = at.join(format!("host/{name}.key"));
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    at.join(format!("host/{name}.csr")).to_str().unwrap().to_owned()
}

fn shown(at: &Path, name: &str) -> String {
    let certificate = at.join(format!("rivet-ca/issued/{name}.crt"));
    succeed(Command::new("openssl").args(["x509", "-noout", "-text", "-in"]).arg(certificate))
}

#[test]
fn a_request_is_signed_once_and_gets_what_the_ca_was_told() {
    let temp = tempfile::tempdir().unwrap();
    let at = temp.path();
    succeed(ca(at, &["init"]).args(["--trust-domain", "example.org"]));
    let request = csr(at, "ct112");
    let told =
        succeed(&mut ca(at, &["sign", &request, "10.0.0.112", "--agents", "grok,scout", "--days", "7"]));
    assert!(told.contains("rivet-ca/issued/ct112.crt"), "{told}");
    let text = shown(at, "ct112");
    for part in [
        "DNS:ct112.mesh",
        "IP Address:10.0.0.112",
        "URI:spiffe://example.org/node/ct112",
        "URI:spiffe://example.org/agent/grok@ct112",
        "URI:spiffe://example.org/agent/scout@ct112",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let public = |file: &Path, line: &str| succeed(Command::new("openssl").args(line.split(' ')).arg(file));
    assert_eq!(
        public(&at.join("rivet-ca/issued/ct112.crt"), "x509 -noout -pubkey -in"),
        public(&at.join("host/ct112.key"), "pkey -pubout -in")
    );
    assert!(!at.join("rivet-ca/issued/ct112.key").exists());
    succeed(&mut ca(at, &["verify"]));
    // A copy of it is worth nothing.
    assert!(refused(&mut ca(at, &["sign", &request])).contains("was issued already"));
    assert!(refused(&mut ca(at, &["renew", "ct112"])).contains("made where it is used"));
    let told = succeed(&mut ca(at, &["renew", "--all", "--within", "3000"]));
    assert!(told.contains("0 renewed, 0 failed") && told.contains("1 are renewed by their owners"), "{told}");
    // With a new key, it keeps what it has.
    fs::rename(at.join("host"), at.join("old")).unwrap();
    let request = csr(at, "ct112");
    succeed(&mut ca(at, &["sign", &request]));
    let text = shown(at, "ct112");
    assert!(text.contains("10.0.0.112") && text.contains("agent/scout@ct112"), "{text}");
    for name in ["opus@ct112", "device:phone-1"] {
        let request = csr(at, name);
        succeed(&mut ca(at, &["sign", &request]));
    }
    assert!(shown(at, "opus@ct112").contains("URI:spiffe://example.org/agent/opus@ct112"));
    assert!(shown(at, "device:phone-1").contains("URI:spiffe://example.org/device/phone-1"));
    let other = csr(at, "opus@ct113");
    let told = refused(&mut ca(at, &["sign", &other, "--agents", "grok"]));
    assert!(told.contains("only a node can host agents"), "{told}");
    succeed(&mut ca(at, &["verify"]));
}

#[test]
fn what_a_request_asks_for_beyond_its_key_is_ignored() {
    let temp = tempfile::tempdir().unwrap();
    let at = temp.path();
    succeed(&mut ca(at, &["init"]));
    let request = at.join("greedy.csr");
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout"]).arg(at.join("greedy.key"));
    openssl.args(["-subj", "/O=Evil/CN=ct112", "-addext", "basicConstraints=critical,CA:TRUE", "-addext"]);
    openssl.args(["subjectAltName=DNS:ct110.mesh,URI:spiffe://mesh/node/ct110", "-addext"]);
    openssl.args(["keyUsage=keyCertSign", "-addext", "nsComment=x", "-out"]).arg(&request);
    succeed(&mut openssl);
    succeed(&mut ca(at, &["sign", request.to_str().unwrap()]));
    let text = shown(at, "ct112");
    assert!(
        !text.contains("ct110") && !text.contains("Evil") && !text.contains("Certificate Sign"),
        "{text}"
    );
    assert!(text.contains("CA:FALSE") && text.contains("URI:spiffe://mesh/node/ct112"), "{text}");
    succeed(&mut ca(at, &["verify"]));
}

#[test]
fn requests_that_prove_nothing_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let at = temp.path();
    succeed(&mut ca(at, &["init"]));
    let openssl = |line: &str| succeed(Command::new("openssl").current_dir(at).args(line.split(' ')));
    for (file, key, subject) in [
        ("short", "rsa:1024", "/CN=ct112"),
        ("nobody", "rsa:2048", "/O=x"),
        ("two", "rsa:2048", "/CN=ct112/CN=ct110"),
        ("strange", "rsa:2048", "/CN=ct_112"),
    ] {
        openssl(&format!("req -new -newkey {key} -nodes -keyout {file}.key -out {file}.csr -subj {subject}"));
    }
    openssl("ecparam -name secp256k1 -genkey -noout -out odd.key");
    openssl("req -new -key odd.key -out odd.csr -subj /CN=ct112");
    // One byte of the name is another one, so the signature is wrong.
    openssl("req -in two.csr -outform DER -out two.der");
    let good = csr(at, "ct112");
    openssl("req -in host/ct112.csr -outform DER -out good.der");
    let mut der = fs::read(at.join("good.der")).unwrap();
    let place = der.windows(5).position(|part| part == b"ct112").unwrap();
    der[place + 4] = b'0';
    fs::write(at.join("forged.der"), der).unwrap();
    openssl("req -inform DER -in forged.der -out forged.csr");
    let text_of = fs::read_to_string(&good).unwrap();
    fs::write(at.join("twice.csr"), text_of.repeat(2)).unwrap();
    fs::write(at.join("long.csr"), "x".repeat(20_000)).unwrap();
    fs::write(at.join("empty.csr"), "").unwrap();
    for (file, reason) in [
        ("short", "has a key that is not accepted"),
        ("nobody", "must have exactly one common name, and has 0"),
        ("two", "must have exactly one common name, and has 2"),
        ("strange", "names nobody in the mesh"),
        ("odd", "has a key that is not accepted"),
        ("forged", "is not signed with the key that it is for"),
        ("twice", "exactly one"),
        ("long", "is longer than"),
        ("empty", "exactly one"),
    ] {
        let output = run(&mut ca(at, &["sign", at.join(format!("{file}.csr")).to_str().unwrap()]));
        let told = text(&output.stderr);
        assert!(output.status.code() == Some(1) && told.contains(reason), "{file}: {told}");
    }
    assert_eq!(fs::read_dir(at.join("rivet-ca/issued")).unwrap().count(), 0);
    succeed(&mut ca(at, &["sign", &good]));
}

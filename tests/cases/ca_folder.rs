//! The CA's folder while it is changed: by many at once, by one that is killed at any instant, and after an old copy was put back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mesh_shared::certificate::{MaterialError, join_key, read_certificates};
use mesh_tests::process::{run, succeed, text};
use serde_json::Value;

use super::meshctl::{ca, refused};

fn folder(at: &Path) -> PathBuf {
    at.join("rivet-ca")
}

fn index(at: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder(at).join("issued/index.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

/// A pair as mesh-proxy reads it when it starts.
fn read_pair(at: &Path, name: &str) -> Result<(), MaterialError> {
    let issued = folder(at).join("issued");
    let (certificate, key) = (issued.join(format!("{name}.crt")), issued.join(format!("{name}.key")));
    let chain = read_certificates("certificate", &certificate)?;
    join_key(&chain, &certificate, &key).map(drop)
}

fn pair_works(at: &Path, name: &str) {
    read_pair(at, name).unwrap();
}

#[test]
fn forty_renewals_at_once_leave_pairs_that_match() {
    let temp = tempfile::tempdir().unwrap();
    let at = temp.path();
    succeed(&mut ca(at, &["init"]));
    let nodes = ["ct110", "ct111", "ct112", "ct113"];
    for node in nodes {
        succeed(&mut ca(at, &["issue-node", node, "--days", "10"]));
    }
    let renewals: Vec<_> = (0..40)
        .map(|i| {
            ca(at, &["renew", nodes[i % 4]]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for mut renewal in renewals {
        // A sidecar that starts meanwhile has a pair to start with; it reads again where one was replaced under its eyes.
        while renewal.try_wait().unwrap().is_none() {
            for node in nodes {
                assert!((0..10).any(|_| read_pair(at, node).is_ok()), "{node}: {:?}", read_pair(at, node));
            }
        }
        let output = renewal.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    succeed(&mut ca(at, &["verify"]));
    for node in nodes {
        pair_works(at, node);
    }
    let issued = index(at).iter().filter(|event| event["event"] == "issued").count();
    assert_eq!(issued, 44);
    assert_eq!(fs::read_dir(folder(at).join("issued/superseded")).unwrap().count(), 40);
    // Timers of two hosts at once renew each one once.
    for node in nodes {
        succeed(&mut ca(at, &["renew", node, "--days", "10"]));
    }
    let timers: Vec<_> = (0..6)
        .map(|_| ca(at, &["renew", "--all"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
        .collect();
    for mut timer in timers {
        assert!(timer.wait().unwrap().success());
    }
    assert_eq!(index(at).len(), 44 + 4 + 4);
    succeed(&mut ca(at, &["verify"]));
}

/// Runs a command and kills it after a while; gives whether it came to its end before.
fn killed_after(mut command: Command, delay: Duration) -> bool {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(delay);
    let ended = child.try_wait().unwrap().is_some();
    // Its own child, by its number.
    let _ = child.kill();
    child.wait().unwrap();
    ended
}

#[test]
fn a_command_killed_at_any_instant_leaves_a_folder_that_works() {
    const ROUNDS: u32 = 16;
    let temp = tempfile::tempdir().unwrap();
    let at = temp.path();
    succeed(&mut ca(at, &["init"]));
    succeed(&mut ca(at, &["issue-node", "ct110", "10.0.0.110"]));
    for (number, kind) in ["renew", "issue", "sign", "revoke", "renew-intermediate"].into_iter().enumerate() {
        let requests = at.join(format!("requests-{kind}"));
        fs::create_dir(&requests).unwrap();
        let command = |round: u32| {
            let name = format!("n{number}-{round}");
            match kind {
                "renew" => ca(at, &["renew", "ct110"]),
                "issue" => ca(at, &["issue-node", &name]),
                "sign" => ca(at, &["sign", requests.join(format!("{name}.csr")).to_str().unwrap()]),
                "revoke" => ca(at, &["revoke", &name, "--reason", "key-compromise"]),
                _ => ca(at, &["renew-intermediate"]),
            }
        };
        let prepare = |round: u32| {
            let name = format!("n{number}-{round}");
            match kind {
                "sign" => drop(succeed(
                    mesh_tests::process::command("meshctl").args(["csr", &name, "--out"]).arg(&requests),
                )),
                "revoke" => drop(succeed(&mut ca(at, &["issue-node", &name]))),
                _ => {}
            }
        };
        // As long as it takes undisturbed, now and here.
        prepare(ROUNDS);
        let started = Instant::now();
        succeed(&mut command(ROUNDS));
        let whole = started.elapsed();
        for round in 0..ROUNDS {
            prepare(round);
            killed_after(command(round), whole * round / ROUNDS);
            pair_works(at, "ct110");
            let output = run(&mut ca(at, &["verify"]));
            let told = text(&output.stdout);
            assert!(output.status.success(), "{kind}, round {round}: {told}{}", text(&output.stderr));
            index(at);
            if kind == "issue" {
                // Whether it was issued or not, the name can be used.
                let again = run(&mut command(round));
                let there = text(&again.stderr).contains("nothing is overwritten");
                assert!(again.status.success() || there, "round {round}: {}", text(&again.stderr));
                pair_works(at, &format!("n{number}-{round}"));
            }
        }
        succeed(command(ROUNDS + 1).arg("--help"));
    }
    succeed(&mut ca(at, &["renew-intermediate"]));
    succeed(&mut ca(at, &["issue-node", "last"]));
    succeed(&mut ca(at, &["verify"]));
    // Nothing of what was interrupted is left.
    for below in ["issued", "issued/superseded", "intermediate", ""] {
        for entry in fs::read_dir(folder(at).join(below)).unwrap() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            assert!(!name.ends_with(".tmp") && !name.ends_with(".new"), "{below}/{name}");
        }
    }
}

#[test]
fn a_folder_older_than_the_index_is_taken_in() {
    let temp = tempfile::tempdir().unwrap();
    let at = temp.path();
    succeed(&mut ca(at, &["init"]));
    for arguments in
        [["issue-node", "ct110"], ["issue-node", "ct111"], ["renew", "ct110"], ["revoke", "ct111"]]
    {
        succeed(&mut ca(at, &arguments));
    }
    let path = folder(at).join("issued/index.jsonl");
    fs::remove_file(&path).unwrap();
    let listed = || -> Vec<(String, String)> {
        let listed: Value = serde_json::from_str(&succeed(ca(at, &["list"]).arg("--json"))).unwrap();
        let leaves = listed.as_array().unwrap().iter().filter(|each| each["kind"] == "node");
        let told = |each: &Value, key: &str| each[key].as_str().unwrap().to_owned();
        leaves.map(|each| (told(each, "cn"), told(each, "state"))).collect()
    };
    let all = [("ct110", "ok"), ("ct110", "superseded"), ("ct111", "revoked")];
    let all = all.map(|(cn, state)| (cn.to_owned(), state.to_owned()));
    assert_eq!(listed(), all);
    assert!(!path.exists(), "who only looks writes nothing");
    succeed(&mut ca(at, &["renew", "ct110"]));
    let events: Vec<_> = index(at).iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(events, ["issued", "issued", "issued", "revoked", "issued"]);
    // What was cut off and what nobody knows keeps nothing from going on.
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}{{\"event\":\"later\"}}\n{{\"event\":\"iss")).unwrap();
    succeed(&mut ca(at, &["issue-node", "ct112"]));
    assert!(fs::read_to_string(&path).unwrap().lines().last().unwrap().contains("\"ct112\""));
    assert_eq!(listed().len(), 5);
}

#[test]
fn a_certificate_whose_files_are_gone_can_be_revoked_and_an_old_list_takes_nothing_back() {
    let temp = tempfile::tempdir().unwrap();
    let at = temp.path();
    succeed(&mut ca(at, &["init"]));
    succeed(&mut ca(at, &["issue-node", "ct110"]));
    succeed(&mut ca(at, &["issue-node", "ct111"]));
    for file in ["ct110.crt", "ct110.key"] {
        fs::remove_file(folder(at).join("issued").join(file)).unwrap();
    }
    let crl = folder(at).join("intermediate/crl.pem");
    let old = fs::read(&crl).unwrap();
    let told = succeed(&mut ca(at, &["revoke", "ct110", "--reason", "key-compromise"]));
    assert!(told.contains("revoked CN=ct110") && told.contains("is valid until"), "{told}");
    let shown = || {
        let mut openssl = Command::new("openssl");
        succeed(openssl.args(["crl", "-noout", "-text", "-in"]).arg(&crl))
    };
    assert!(shown().contains("Key Compromise"), "{}", shown());
    let revoked = index(at).into_iter().find(|event| event["event"] == "revoked").unwrap();
    assert_eq!((&revoked["name"], &revoked["why"]), (&"ct110".into(), &"keyCompromise".into()));
    fs::write(&crl, old).unwrap();
    let told = succeed(&mut ca(at, &["refresh-lists"]));
    assert!(told.contains("a new revocation list"), "{told}");
    assert!(shown().contains("Key Compromise"), "{}", shown());
}

/// Runs a command some hours from now.
fn later(command: Command, hours: u32) -> Command {
    let mut faked = Command::new("faketime");
    faked.args(["-f", &format!("+{hours}h")]).arg(command.get_program()).args(command.get_args());
    faked
}

#[test]
fn lists_count_for_days_and_are_signed_anew_in_time() {
    let temp = tempfile::tempdir().unwrap();
    let at = temp.path();
    succeed(&mut ca(at, &["init"]));
    succeed(&mut ca(at, &["issue-node", "ct110"]));
    succeed(&mut ca(at, &["revoke", "ct110", "--crl-days", "4"]));
    let end = |command: &mut Command| -> i64 {
        let told: Value = serde_json::from_str(&succeed(command.arg("--json"))).unwrap();
        told["crlEnds"].as_i64().unwrap()
    };
    let first = end(&mut ca(at, &["refresh-lists"]));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    assert!((first - now - 4 * 86_400).abs() < 600, "{first} {now}");
    let refresh = |hours| later(ca(at, &["refresh-lists", "--json"]), hours);
    let at_40h: Value = serde_json::from_str(&succeed(&mut refresh(40))).unwrap();
    assert_eq!(at_40h["crlEnds"], first, "not before half its life");
    let at_50h: Value = serde_json::from_str(&succeed(&mut refresh(50))).unwrap();
    assert!(at_50h["crlEnds"].as_i64().unwrap() > first + 10 * 86_400, "{at_50h}");
    // The daily timer's command does it too.
    let told = succeed(&mut later(ca(at, &["renew", "--all"]), 50 + 8 * 24));
    assert!(told.contains("signed a new revocation list"), "{told}");
    succeed(&mut ca(at, &["verify"]));
}

#[test]
fn a_root_is_replaced_and_what_nothing_depends_on_is_retired() {
    let temp = tempfile::tempdir().unwrap();
    let at = temp.path();
    succeed(&mut ca(at, &["init"]));
    succeed(&mut ca(at, &["issue-node", "ct110"]));
    let authorities = || -> Vec<String> {
        let listed: Value = serde_json::from_str(&succeed(ca(at, &["list"]).arg("--json"))).unwrap();
        let found = listed.as_array().unwrap().iter().filter(|each| each["kind"] == "authority");
        found.map(|each| each["cn"].as_str().unwrap().to_owned()).collect()
    };
    let [intermediate, root] = authorities().try_into().unwrap();
    succeed(&mut ca(at, &["renew-root"]));
    for key in fs::read_dir(at.join("root")).unwrap().map(|entry| entry.unwrap().path()) {
        let mode = fs::metadata(&key).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if key.extension().unwrap() == "key" { 0o600 } else { 0o644 }, "{}", key.display());
    }
    assert!(refused(&mut ca(at, &["retire", &intermediate])).contains("signs what is issued"));
    succeed(&mut ca(at, &["renew-intermediate"]));
    assert_eq!(authorities().len(), 4);
    succeed(&mut ca(at, &["verify"]));
    let told = refused(&mut ca(at, &["retire", &intermediate]));
    assert!(told.contains("depend on") && told.contains("ct110"), "{told}");
    succeed(&mut ca(at, &["renew", "ct110"]));
    let told = refused(&mut ca(at, &["retire", &intermediate]));
    assert!(told.contains("ct110 from before its renewal"), "{told}");
    assert!(refused(&mut ca(at, &["retire", &root])).contains(&intermediate));
    succeed(&mut ca(at, &["retire", &intermediate, "--force"]));
    // Nothing depends on it any more; its mark is enough of a name.
    succeed(&mut ca(at, &["retire", root.rsplit(' ').next().unwrap()]));
    assert_eq!(authorities().len(), 2);
    succeed(&mut ca(at, &["verify"]));
    let mut verify = Command::new("openssl");
    let issued = folder(at).join("issued/ct110.crt");
    verify
        .args(["verify", "-CAfile"])
        .arg(at.join("root/root.crt"))
        .arg("-untrusted")
        .args([&issued, &issued]);
    succeed(&mut verify);
}

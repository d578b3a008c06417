//! The log: it holds up nobody, its lines are whole, it can be JSON, and the journal gets its fields.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use mesh_tests::eventually_within;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::{Daemon, Unread, text};
use mesh_tests::web;
use serde_json::{Value, json};

/// Starts a daemon whose log goes to a pipe that is full already.
fn start_blocked(node: &Node, binary: &str) -> (Daemon, Unread) {
    let mut command = node.command(binary);
    // Each request leaves many lines.
    Daemon::start_blocked(binary, command.env("MESH_LOG", "trace"))
}

async fn registryd_answers(node: &Node) {
    mesh_tests::eventually("registryd answers", async || {
        node.local("/v1/status").await.filter(|answer| answer.status == 200)
    })
    .await;
}

/// What says that mesh-proxy is ready is in the log.
async fn proxy_accepts(node: &Node) {
    mesh_tests::eventually("mesh-proxy accepts connections", async || {
        tokio::net::TcpStream::connect(node.outbound()).await.ok()
    })
    .await;
    node.has_roster().await;
}

async fn dropped(node: &Node) -> u64 {
    let metrics = web::get(node.port(3002), "/metrics").await.text();
    let count = metrics.lines().find_map(|line| line.strip_prefix("mesh_proxy_log_lines_dropped_total "));
    count.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_no_request_and_tells_later_what_is_missing() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").agent("opus");
    let admin = format!("{}:3002", plan.ip());
    let plan = plan.with(|config| config["proxy"]["admin"] = json!({"listen": admin}));
    let mut node = plan.prepare().await;
    let (registryd, _unread) = start_blocked(&node, "registryd");
    node.registryd = Some(registryd);
    registryd_answers(&node).await;
    let (proxy, unread) = start_blocked(&node, "mesh-proxy");
    node.proxy = Some(proxy);
    proxy_accepts(&node).await;
    let (node, limit) = (&mut node, Duration::from_secs(120));
    eventually_within(limit, "more lines than there is room for", async || {
        assert_eq!(node.get("/nodes/ct110/x").await.status, 200);
        (dropped(node).await > 0).then_some(())
    })
    .await;
    assert_eq!(node.get("/mesh/nodes").await.status, 200);

    unread.drain(node.proxy());
    let told = node.proxy().wait_log(&["WARN [Log] ", " lines were dropped here"]).await;
    let (_, count) = told.split_once("dropped=").unwrap();
    assert!(count.parse::<u64>().unwrap() > 0, "{told}");
    assert_eq!(node.get("/nodes/ct110/y").await.status, 200);
    assert!(node.proxy().stop().await.success());
    // What was told at the end was still written.
    node.proxy().wait_log(&["INFO [Mesh] stopping"]).await;
    // Between the dropped lines, all are whole.
    let whole = |line: &String| line.is_empty() || line.contains(" [") || line.starts_with("filled");
    let broken: Vec<_> = node.proxy().log().into_iter().filter(|line| !whole(line)).collect();
    assert!(broken.is_empty(), "{broken:?}");
}

#[tokio::test]
async fn a_log_that_nobody_reads_does_not_keep_a_daemon_from_ending() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").agent("opus").prepare().await;
    let (registryd, _unread) = start_blocked(&node, "registryd");
    node.registryd = Some(registryd);
    registryd_answers(&node).await;
    let (proxy, _unread) = start_blocked(&node, "mesh-proxy");
    node.proxy = Some(proxy);
    proxy_accepts(&node).await;
    assert!(node.proxy().stop().await.success());
    assert!(node.registryd().stop().await.success());
}

#[tokio::test]
async fn json_has_an_object_with_the_same_names_on_each_line() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").agent("opus").prepare().await;
    let registryd = Daemon::start("registryd", node.command("registryd").env("MESH_LOG_FORMAT", "json"));
    node.registryd = Some(registryd);
    registryd_answers(&node).await;
    let proxy = Daemon::start("mesh-proxy", node.command("mesh-proxy").args(["--log-format", "json"]));
    node.proxy = Some(proxy);
    proxy_accepts(&node).await;
    node.get_from_peer(&mesh, "ct111", "/x\u{202e}\"").await;
    node.proxy().wait_log(&["AgentChannel", "ct111"]).await;
    assert!(node.proxy().stop().await.success());
    assert!(node.registryd().stop().await.success());
    let line = node.proxy().lines_with(&["AgentChannel", "ct111"]).remove(0);
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["trace_id"].as_str().map(str::len), Some(32), "{line}");
    for (daemon, target, ready) in [
        (node.proxy.unwrap(), "Mesh", "mesh-proxy ready"),
        (node.registryd.unwrap(), "Registry", "registryd ready"),
    ] {
        let lines: Vec<Value> =
            daemon.log().iter().map(|line| serde_json::from_str(line).expect(line)).collect();
        for line in &lines {
            let text = |name: &str| line[name].as_str().unwrap_or_else(|| panic!("no {name} in {line}"));
            let time = text("time");
            assert!(time.len() > 20 && &time[10..11] == "T" && time.ends_with('Z'), "{line}");
            assert!(["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&text("level")), "{line}");
            assert!(!text("target").is_empty() && !text("message").is_empty(), "{line}");
        }
        let is_ready =
            |line: &&Value| line["message"].as_str().is_some_and(|message| message.starts_with(ready));
        assert_eq!(lines.iter().find(is_ready).expect("a ready line")["target"], target);
    }
}

/// A flood of failures is a few lines, which say how many there were.
#[tokio::test]
async fn junk_on_the_port_fills_no_log() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").agent("opus").prepare().await;
    node.start_proxy().await;
    for _ in 0..500 {
        web::raw(node.inbound(), b"GET / HTTP/1.1\r\n\r\n").await;
    }
    let failed = ["WARN [AgentChannel] TLS handshake failed from 127.0.0.1: not a TLS client"];
    assert!(!node.proxy().lines_with(&failed).is_empty());
    // What was not written one by one is told at the end at the latest.
    assert!(node.proxy().stop().await.success());
    node.proxy().wait_log(&["INFO [Mesh] stopping"]).await;
    let told: Vec<_> = node.proxy().lines_with(&["not a TLS client"]);
    let single = node.proxy().lines_with(&failed).len();
    let more = |line: &String| -> usize {
        let (_, more) = line.split_once(" … and ").unwrap();
        more.split_once(" more like it").unwrap().0.parse().unwrap()
    };
    let summed_up: Vec<_> = told.iter().filter(|line| line.contains(" … and ")).collect();
    assert_eq!(single + summed_up.iter().map(|line| more(line)).sum::<usize>(), 500, "{told:?}");
    assert!(told.len() < 100, "{told:?}");
}

#[tokio::test]
async fn a_form_that_does_not_exist_is_refused() {
    let mesh = Mesh::new();
    let node = mesh.node("ct110").prepare().await;
    for binary in ["mesh-proxy", "registryd"] {
        let output = mesh_tests::process::run(node.command(binary).args(["run", "--log-format", "xml"]));
        let told = mesh_tests::process::text(&output.stderr);
        assert!(!output.status.success() && told.contains("text, json"), "{told}");
    }
}

/// The fields of an entry that a daemon sent to the journal.
fn entry(journal: &UnixDatagram) -> BTreeMap<String, String> {
    let mut bytes = vec![0; 1 << 16];
    let length = journal.recv(&mut bytes).expect("an entry in time");
    let fields = text(&bytes[..length]);
    let fields = fields.lines().map(|line| line.split_once('=').expect(line));
    fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Waits for the entry whose message has this in it.
fn entry_with(journal: &UnixDatagram, part: &str) -> BTreeMap<String, String> {
    std::iter::repeat_with(|| entry(journal)).find(|entry| entry["MESSAGE"].contains(part)).unwrap()
}

/// The journal's socket, in a mount namespace of the daemon's own.
const UNDER_JOURNAL: &str = r#"mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal &&
mount --bind "$0" /run/systemd/journal && exec 3>&1 && JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/3) &&
export JOURNAL_STREAM && exec 3>&- && exec "$@""#;

#[tokio::test]
async fn the_journal_gets_priorities_and_fields_and_the_lines_as_they_are() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").agent("opus").prepare().await;
    let folder = node.folder().join("journal");
    std::fs::create_dir(&folder).unwrap();
    let journal = UnixDatagram::bind(folder.join("socket")).unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let start = |node: &Node, arguments: &[&str]| {
        let proxy = node.command("mesh-proxy");
        let mut inside = Command::new("unshare");
        inside.args(["--map-root-user", "--mount", "sh", "-c", UNDER_JOURNAL]).arg(&folder);
        inside.arg(proxy.get_program()).args(arguments);
        inside.envs(proxy.get_envs().filter_map(|(key, value)| Some((key, value?))));
        Daemon::start("mesh-proxy", &mut inside)
    };
    node.proxy = Some(start(&node, &[]));
    let ready = entry_with(&journal, "mesh-proxy ready");
    assert!(ready["MESSAGE"].starts_with("INFO [Mesh] mesh-proxy ready node=ct110"), "{ready:?}");
    assert_eq!((ready["PRIORITY"].as_str(), ready["MESH_TARGET"].as_str()), ("6", "Mesh"));
    assert_eq!(ready["SYSLOG_IDENTIFIER"], "mesh-proxy");

    node.get_from_peer(&mesh, "ct111", "/seen").await;
    let seen = entry_with(&journal, "GET /seen");
    let beginning = "INFO [AgentChannel] Request peer.cn=ct111 GET /seen status=200 duration_ms=";
    assert!(seen["MESSAGE"].starts_with(beginning), "{seen:?}");
    assert!(seen["MESSAGE"].ends_with(&format!(" trace_id={}", seen["MESH_TRACE_ID"])), "{seen:?}");
    for (name, value) in
        [("PEER_CN", "ct111"), ("METHOD", "GET"), ("PATH", "/seen"), ("STATUS", "200"), ("ENDED", "complete")]
    {
        assert_eq!(seen[&format!("MESH_{name}")], value, "{seen:?}");
    }
    web::raw(node.inbound(), b"GET / HTTP/1.1\r\n\r\n").await;
    let refused = entry_with(&journal, "TLS handshake failed");
    assert_eq!(refused["PRIORITY"], "4");
    assert!(node.proxy().stop().await.success());
    assert!(node.proxy().log().is_empty(), "it is in the journal already: {:?}", node.proxy().log());

    node.proxy = Some(start(&node, &["--log-format", "json"]));
    let ready = entry_with(&journal, "mesh-proxy ready");
    let line: Value = serde_json::from_str(&ready["MESSAGE"]).unwrap();
    assert_eq!((ready["PRIORITY"].as_str(), line["level"].as_str()), ("6", Some("INFO")));
}

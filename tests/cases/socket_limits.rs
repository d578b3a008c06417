//! registryd's socket: programs that leak connections cost their node nothing, and only the sidecar speaks for peers.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use http::Method;
use mesh_tests::eventually;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::{self, Daemon, text};
use mesh_tests::web;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Starts registryd with so few descriptors.
fn start_with(node: &mut Node, descriptors: u64) {
    let mut command = node.command("registryd");
    let limit = libc::rlimit { rlim_cur: descriptors, rlim_max: descriptors };
    // SAFETY: a plain system call, without memory that it writes.
    #[allow(unsafe_code, reason = "std cannot set a child's limits")]
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    node.registryd = Some(Daemon::start("registryd", &mut command));
}

#[tokio::test]
async fn leaked_streams_and_idle_connections_cost_the_node_nothing() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").agent("opus").prepare().await;
    start_with(&mut node, 128);
    node.start_proxy().await;
    node.has_roster().await;
    let mut held = Vec::new();
    for i in 0..200 {
        let mut stream = UnixStream::connect(node.socket()).await.unwrap();
        if i % 2 == 0 {
            stream.write_all(b"GET /mesh/events HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        }
        held.push(stream);
    }
    let answer = eventually("there are as many streams as may be", async || {
        // As long as there are fewer, this becomes one, which does not end.
        let answer = timeout(Duration::from_secs(1), node.local("/mesh/events")).await.ok()??;
        (answer.status == 503).then_some(answer)
    });
    answer.await.problem(503, "too_many_streams");
    // Beats are written, and whoever asks is answered.
    let before = mesh.entry("ct110").unwrap()["lastSeen"].as_u64();
    eventually("a beat", async || mesh.entry("ct110").filter(|entry| entry["lastSeen"].as_u64() > before))
        .await;
    assert_eq!(node.local("/mesh/nodes").await.unwrap().status, 200);
    assert_eq!(node.get("/mesh/nodes").await.status, 200);
    drop(held);
    eventually("places are free again", async || {
        let metrics = node.local("/metrics").await?.text();
        metrics.contains("mesh_event_streams 0\n").then_some(())
    })
    .await;
}

#[tokio::test]
async fn other_users_of_the_socket_read_and_nothing_else() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    for path in [mesh.folder(), node.folder()] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    std::fs::set_permissions(node.socket(), PermissionsExt::from_mode(0o666)).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let mut curl = Command::new("setpriv");
        curl.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "curl",
            "--silent",
            "--max-time",
            "10",
        ]);
        curl.args(["--write-out", " %{http_code}", "--unix-socket"]).arg(node.socket()).args(arguments);
        text(&process::run(&mut curl).stdout)
    };
    assert!(as_nobody(&["http://x/mesh/nodes"]).ends_with(" 200"));
    for arguments in [
        &["--request", "POST", "--header", "x-mesh-peer-cn: ct112", "--data", "{}", "http://x/api/mesh/join"]
            [..],
        &["--header", "x-mesh-peer-cn: ct112", "http://x/api/mesh"],
        &["--request", "PUT", "--data", "{\"status\":\"updating\"}", "http://x/v1/status"],
        &["--request", "PUT", "--data", "{}", "http://x/v1/sidecar"],
    ] {
        let answer = as_nobody(arguments);
        assert!(answer.contains("not_the_sidecar") && answer.ends_with(" 403"), "{arguments:?}: {answer}");
    }
    // The sidecar itself is believed, whose user this is.
    let body = json!({"status": "online"}).to_string();
    let request = web::request(Method::PUT, "/v1/status").body(web::full(body)).unwrap();
    assert_eq!(web::on_socket(&node.socket(), request).await.unwrap().status, 204);
}

#[tokio::test]
async fn a_reader_waits_for_the_next_revision() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let revision = |answer: &web::Answer| answer.header("x-mesh-revision").unwrap().to_owned();
    let mut known = revision(&node.get("/mesh/nodes").await);
    // Once nothing moves any more, a question with the revision waits.
    let started = loop {
        let started = std::time::Instant::now();
        let answer = node.local(&format!("/mesh/nodes?wait={known}")).await.unwrap();
        if revision(&answer) == known {
            break started;
        }
        known = revision(&answer);
    };
    assert!(started.elapsed() > Duration::from_secs(5));
    let target = format!("/mesh/nodes?wait={known}&node=ct150");
    let waiting = node.get(&target);
    let registering = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        mesh.register("ct150", "127.1.2.3", 3000, &["scout"]);
    };
    let (answer, ()) = tokio::join!(waiting, registering);
    assert_eq!(answer.json()[0]["name"], "ct150");
    assert!(revision(&answer) > known);
    node.local("/mesh/nodes?wait=x").await.unwrap().problem(400, "bad_request");
}

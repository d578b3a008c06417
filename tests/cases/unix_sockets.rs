//! Listeners on unix sockets: whoever may open the file may use the mesh, and nobody else.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use mesh_tests::mesh::{Mesh, Plan};
use mesh_tests::process::{self, text};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::spawn_blocking;

/// What comes back for `request` on a connection of its own.
async fn raw(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn get(target: &str, more: &str) -> String {
    let host = target.strip_prefix("http://").and_then(|rest| rest.split('/').next()).unwrap_or("localhost");
    format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}\r\n")
}

/// A folder that everybody may enter, and a path in it.
fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let path = folder.path().join("outbound.sock");
    (folder, path)
}

fn listening(plan: Plan, listeners: Value) -> Plan {
    plan.with(|config| config["proxy"]["outbound"]["listeners"] = listeners)
}

fn at(path: &Path) -> String {
    format!("unix:{}", path.display())
}

async fn refused(plan: Plan) -> String {
    let node = plan.prepare().await;
    let output = process::run(&mut node.command("mesh-proxy"));
    assert!(!output.status.success());
    text(&output.stderr) + &text(&output.stdout)
}

#[tokio::test]
async fn each_way_of_naming_a_destination_works_there() {
    let mesh = Mesh::new();
    let ((_folder, all), (_other, one)) = (place(), place());
    let _far = mesh.start("ct111", "grok").await;
    let listeners = json!([{"listen": at(&all)}, {"listen": at(&one), "agent": "grok"}]);
    let mut near = listening(mesh.node("ct110").agent("opus"), listeners).start().await;
    near.reaches("ct111").await;
    for (path, target, more) in [
        (&all, "/nodes/ct111/x", ""),
        (&all, "/agents/grok/x", ""),
        (&all, "/x", "x-mesh-node: ct111\r\n"),
        (&all, "/x", "x-mesh-agent: grok\r\n"),
        (&all, "http://ct111.mesh/x", ""),
        (&all, "http://grok.agent.mesh/x", ""),
        (&one, "/x", ""),
    ] {
        let answer = raw(path, &get(target, more)).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("GET /x"), "{target}: {answer}");
        assert!(answer.contains("x-mesh-served-by: ct111"), "{answer}");
    }
    // Some libraries make up a host.
    let answer = raw(&all, &get("/nodes/ct111/x", "").replace("localhost", "unix")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let answer = raw(&all, &get("http://example.org/", "")).await;
    assert!(answer.contains("not_in_mesh"), "{answer}");
    let tunnel = "CONNECT grok.agent.mesh:80 HTTP/1.1\r\nhost: grok.agent.mesh:80\r\n\r\n";
    let answer = raw(&all, &(tunnel.to_owned() + &get("/x", ""))).await;
    assert!(answer.ends_with("GET /x"), "{answer}");
    let answer = raw(&all, &get("/mesh/nodes", "")).await;
    assert!(answer.contains("ct111"), "{answer}");
    // A web page has no way to a unix socket; what says that it is one is refused all the same.
    let answer = raw(&all, &get("/nodes/ct111/x", "origin: http://example.org\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    near.proxy().wait_log(&["Request GET /x", "agent=grok", "node=ct111", "ended=complete"]).await;
}

#[tokio::test]
async fn only_those_may_connect_whom_the_configuration_names() {
    let mesh = Mesh::new();
    let ((_folder, private), (_other, shared)) = (place(), place());
    let _far = mesh.start("ct111", "grok").await;
    let listeners = json!([
        {"listen": at(&private), "mode": "0600"},
        {"listen": at(&shared), "mode": "0660", "group": "nogroup"},
    ]);
    let near = listening(mesh.node("ct110").agent("opus"), listeners).start().await;
    near.reaches("ct111").await;
    let modes = [&private, &shared].map(|path| {
        let found = fs::metadata(path).unwrap();
        (found.file_type().is_socket(), found.mode() & 0o777)
    });
    assert_eq!(modes, [(true, 0o600), (true, 0o660)]);
    let ask = async |path: &Path, as_other: bool| {
        let mut command = Command::new(if as_other { "setpriv" } else { "curl" });
        if as_other {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "curl"]);
        }
        command.args(["-s", "--noproxy", "*", "--max-time", "20", "--unix-socket"]).arg(path);
        command.arg("http://localhost/nodes/ct111/x");
        // The agent answers from this thread.
        text(&spawn_blocking(move || process::run(&mut command)).await.unwrap().stdout)
    };
    for (path, as_other, answer) in [
        (&private, false, "GET /x"),
        (&private, true, ""),
        (&shared, false, "GET /x"),
        (&shared, true, "GET /x"),
    ] {
        assert_eq!(ask(path, as_other).await, answer, "{path:?} {as_other}");
    }
}

#[tokio::test]
async fn what_a_process_left_behind_is_replaced_and_nothing_else_is_touched() {
    let mesh = Mesh::new();
    let (_folder, path) = place();
    let plan = |name: &str| listening(mesh.node(name), json!([{"listen": at(&path)}]));
    // Dropped, it leaves its file.
    drop(UnixListener::bind(&path).unwrap());
    let mut node = plan("ct110").agent("opus").start().await;
    assert!(raw(&path, &get("/mesh/nodes", "")).await.starts_with("HTTP/1.1 200 "));
    // It is taken by a process that lives.
    let told = refused(plan("ct111")).await;
    let key = format!("cannot listen on {} (proxy.outbound.listeners[0])", at(&path));
    assert!(told.contains(&format!("{key}: another process listens there")), "{told}");
    node.proxy().stop().await;
    node.start_proxy().await;
    assert!(raw(&path, &get("/mesh/nodes", "")).await.starts_with("HTTP/1.1 200 "));
    node.proxy().stop().await;
    fs::remove_file(&path).unwrap();
    fs::write(&path, "mine").unwrap();
    let told = refused(plan("ct112")).await;
    assert!(told.contains(&format!("{key}: something that is not a socket is there")), "{told}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}

#[tokio::test]
async fn an_unknown_group_is_told() {
    let mesh = Mesh::new();
    let (_folder, path) = place();
    let listeners = json!([{"listen": at(&path), "group": "nobody-has-this"}]);
    let told = refused(listening(mesh.node("ct110"), listeners)).await;
    assert!(told.contains("there is no group nobody-has-this on this host"), "{told}");
}

//! Agents of one host are told apart by the listener that they use, and whoever they call sees which one it was.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use http::{Method, Request};
use http_body_util::BodyExt;
use mesh_tests::agent::Recorded;
use mesh_tests::ca::{Ca, Issued, Spec};
use mesh_tests::mesh::{Mesh, Node, Plan};
use mesh_tests::process::{self, text};
use mesh_tests::web::{self, Answer, Body};
use mesh_tests::{eventually, within};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::{JoinSet, spawn_blocking};

/// Ports of listeners.
const OPUS: u16 = 3111;
const SCOUT: u16 = 3112;

/// A node with a listener for opus and one for scout, and more.
fn plan(mesh: &Mesh, more: &[Value]) -> Plan {
    let plan = mesh.node("ct110").agent("opus");
    let at = |port: u16| format!("{}:{port}", plan.ip());
    let mut listeners = vec![
        json!({"listen": at(OPUS), "as_agent": "opus"}),
        json!({"listen": at(SCOUT), "as_agent": "scout"}),
    ];
    listeners.extend_from_slice(more);
    plan.with(|config| config["proxy"]["outbound"]["listeners"] = json!(listeners))
}

/// Puts an agent's certificate beside the node's.
fn beside(plan: &Plan, agent: &str, issued: &Issued) {
    let certificate = PathBuf::from(plan.config["mesh"]["tls"]["cert_path"].as_str().unwrap());
    write(&certificate.with_file_name(format!("{agent}@ct110")), issued);
}

fn write(stem: &Path, issued: &Issued) {
    let with = |ending: &str| format!("{}.{ending}", stem.display());
    fs::write(with("key"), &issued.key_pem).unwrap();
    fs::set_permissions(with("key"), Permissions::from_mode(0o600)).unwrap();
    fs::write(with("crt"), &issued.chain_pem).unwrap();
}

fn request(target: &str, headers: &[(&str, &str)]) -> Request<Body> {
    web::get_with(target, headers)
}

async fn get(node: &Node, port: u16, target: &str) -> Answer {
    web::get(node.port(port), target).await
}

/// Who called, as the far agent saw it: as proved, and as said.
fn caller(seen: &Recorded) -> (String, String) {
    (seen.all("x-mesh-peer-cn").join(","), seen.all("x-mesh-from-agent").join(","))
}

#[tokio::test]
async fn who_comes_in_on_an_agents_listener_calls_as_that_agent() {
    let mesh = Mesh::new();
    let near = plan(&mesh, &[]);
    beside(&near, "opus", &mesh.ca.agent("opus", "ct110"));
    let (mut near, mut far) = tokio::join!(near.start(), mesh.start("ct111", "grok"));
    near.reaches("ct111").await;
    let called = async |port: u16, headers: &[(&str, &str)]| {
        let answer = web::send(near.port(port), request("/agents/grok/x", headers)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        far.agent().last()
    };
    let forged = [
        ("x-mesh-peer-cn", "root@ct110"),
        ("x-mesh-from-agent", "root"),
        ("x_mesh_from_agent", "root"),
        ("x-forwarded-client-cert", "URI=spiffe://mesh/agent/root@ct110"),
    ];
    let names = |proved: &str, said: &str| (proved.to_owned(), said.to_owned());
    // With a certificate of its own it is proved, without one the node vouches for it, and a program that acts as the
    // node is nobody in particular, whatever it says.
    for (port, proved, said) in [(OPUS, "opus@ct110", "opus"), (SCOUT, "ct110", "scout"), (3001, "ct110", "")]
    {
        for headers in [&[][..], &forged] {
            let seen = called(port, headers).await;
            assert_eq!(caller(&seen), names(proved, said), "{port} {headers:?}");
            assert!(seen.all("x_mesh_from_agent").is_empty(), "{seen:?}");
        }
    }
    let seen = called(OPUS, &[]).await;
    assert_eq!(
        seen.all("x-forwarded-client-cert"),
        ["Subject=\"CN=opus@ct110\";URI=spiffe://mesh/agent/opus@ct110"]
    );
    near.proxy().wait_log(&["Request GET /x", "as_agent=opus@ct110", "ended=complete"]).await;
    near.proxy().wait_log(&["Request GET /x", "as_agent=scout@ct110"]).await;
    assert!(near.proxy().lines_with(&["Request GET /x", "as_agent=ct110"]).is_empty());
    far.proxy().wait_log(&["Request peer.cn=opus@ct110 GET /x"]).await;

    // A tunnel is the same program's.
    let tunnel = "CONNECT grok.agent.mesh:80 HTTP/1.1\r\nhost: grok.agent.mesh:80\r\n\r\n\
                  GET /inside HTTP/1.1\r\nhost: grok.agent.mesh\r\nconnection: close\r\n\r\n";
    let answer = web::raw(near.port(OPUS), tunnel.as_bytes()).await;
    assert!(answer.ends_with("GET /inside"), "{answer}");
    assert_eq!(caller(&far.agent().last()), names("opus@ct110", "opus"));
}

#[tokio::test]
async fn no_connection_of_one_identity_ever_carries_another_ones_request() {
    let mesh = Mesh::new();
    let near = plan(&mesh, &[]).with(|config| config["proxy"]["threads"] = json!(3));
    beside(&near, "opus", &mesh.ca.agent("opus", "ct110"));
    beside(&near, "scout", &mesh.ca.agent("scout", "ct110"));
    let (near, far) = tokio::join!(near.start(), mesh.start("ct111", "grok"));
    near.reaches("ct111").await;
    for round in 0..3 {
        let mut asked = JoinSet::new();
        for i in 0..90 {
            let (port, name) = [(OPUS, "opus@ct110"), (SCOUT, "scout@ct110"), (3001, "ct110")][i % 3];
            let addr = near.port(port);
            // Every tenth needs HTTP/1.1 all the way, for which there are other connections.
            let upgrade: &[(&str, &str)] = &[("connection", "upgrade"), ("upgrade", "websocket")];
            let (headers, status) = if i % 10 == 9 { (upgrade, 101) } else { (&[][..], 200) };
            asked.spawn(async move {
                let asked = request(&format!("/agents/grok/{name}/{round}/{i}"), headers);
                assert_eq!(web::open(addr, asked).await.unwrap().status(), status);
            });
        }
        while let Some(done) = asked.join_next().await {
            done.unwrap();
        }
    }
    let seen = far.agent().requests();
    assert_eq!(seen.len(), 270);
    for each in seen {
        let name = each.target.split('/').nth(1).unwrap().to_owned();
        assert_eq!(each.all("x-mesh-peer-cn"), [name], "{}", each.target);
    }
}

#[tokio::test]
async fn a_certificate_that_comes_or_changes_is_used_and_a_bad_one_is_never_replaced_by_the_nodes() {
    let mesh = Mesh::new();
    let near = plan(&mesh, &[]);
    let at = PathBuf::from(near.config["mesh"]["tls"]["cert_path"].as_str().unwrap());
    let stem = at.with_file_name("opus@ct110");
    let (mut near, far) = tokio::join!(near.start(), mesh.start("ct111", "grok"));
    near.reaches("ct111").await;
    assert_eq!(get(&near, OPUS, "/nodes/ct111/x").await.status, 200);
    assert_eq!(caller(&far.agent().last()).0, "ct110");
    for (what, bad) in [
        ("it names grok@ct110", mesh.ca.agent("grok", "ct110")),
        ("it names opus@ct111", mesh.ca.agent("opus", "ct111")),
        ("it names ct110", mesh.ca.node("ct110")),
        ("unknown issuer", Ca::new().agent("opus", "ct110")),
        (
            "expired",
            mesh.ca.issue(&Spec {
                cn: Some("opus@ct110".into()),
                from: 2020,
                until: 2021,
                ..Spec::node("x")
            }),
        ),
    ] {
        write(&stem, &bad);
        let told = eventually(what, async || {
            let answer = get(&near, OPUS, "/nodes/ct111/x").await;
            (answer.status == 503 && answer.text().contains(what)).then_some(answer)
        })
        .await
        .problem(503, "identity_unusable");
        assert!(told.contains("opus@ct110"), "{told}");
        // Nobody else is concerned.
        assert_eq!(near.get("/nodes/ct111/x").await.status, 200);
        assert_eq!(get(&near, SCOUT, "/nodes/ct111/x").await.status, 200);
    }
    near.proxy().wait_log(&["WARN", "the identity opus@ct110 cannot be used", "it names grok@ct110"]).await;
    write(&stem, &mesh.ca.agent("opus", "ct110"));
    eventually("it is used", async || {
        let answer = get(&near, OPUS, "/nodes/ct111/x").await;
        (answer.status == 200 && caller(&far.agent().last()).0 == "opus@ct110").then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_an_agent_reads_is_cut_when_its_certificate_is_revoked_and_nothing_else() {
    let mesh = Mesh::new();
    let crl = mesh.folder().join("crl.pem");
    fs::write(&crl, mesh.ca.crl_pem(&[])).unwrap();
    let near = plan(&mesh, &[]).with(|config| config["proxy"]["crl_path"] = json!(crl));
    let opus = mesh.ca.agent("opus", "ct110");
    beside(&near, "opus", &opus);
    // The other side knows of no list.
    let (mut near, far) = tokio::join!(near.start(), mesh.start("ct111", "grok"));
    near.reaches("ct111").await;
    let mut streams = Vec::new();
    for port in [OPUS, 3001] {
        let mut answer = web::open(near.port(port), request("/nodes/ct111/stream", &[])).await.unwrap();
        let stream = far.agent().stream().await;
        stream.send(web::piece("one")).unwrap();
        web::expect_data(answer.body_mut(), "one").await;
        streams.push((answer, stream));
    }
    fs::write(&crl, mesh.ca.crl_pem(&[&opus])).unwrap();
    let line = "cutting off the connection to ct111 of agent opus: its own certificate is revoked";
    near.proxy().wait_log(&["WARN", "[Outbound]", line]).await;
    let rest = within("the agent's stream is cut", streams[0].0.body_mut().frame()).await;
    assert!(matches!(rest, Some(Err(_))), "{rest:?}");
    streams[1].1.send(web::piece("two")).unwrap();
    web::expect_data(streams[1].0.body_mut(), "two").await;
    let told = get(&near, OPUS, "/nodes/ct111/x").await.problem(503, "identity_unusable");
    assert!(told.contains("certificate is revoked"), "{told}");
    assert_eq!(near.get("/nodes/ct111/x").await.status, 200);
}

#[tokio::test]
async fn a_peer_that_refuses_an_agent_is_passed_over_for_nobody_else() {
    // Of a CA that only the caller trusts. (A revocation would reach the caller too.)
    let (mesh, other) = (Mesh::new(), Ca::new());
    let bundle = mesh.folder().join("both.pem");
    fs::write(&bundle, mesh.ca.bundle_pem() + &other.bundle_pem()).unwrap();
    let near = plan(&mesh, &[]).with(|config| config["mesh"]["tls"]["ca_path"] = json!(bundle));
    beside(&near, "opus", &other.agent("opus", "ct110"));
    let (near, mut far) = tokio::join!(near.start(), mesh.start("ct111", "grok"));
    near.reaches("ct111").await;
    for _ in 0..3 {
        get(&near, OPUS, "/agents/grok/x").await.problem(502, "peer_refused_us");
        assert_eq!(near.get("/agents/grok/x").await.status, 200);
    }
    far.proxy().wait_log(&["TLS handshake failed"]).await;
    assert!(near.proxy.as_ref().unwrap().lines_with(&["ct111 is not used for"]).is_empty());
}

/// A folder that everybody may enter, and a socket in it.
fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let path = folder.path().join("agent.sock");
    (folder, path)
}

#[tokio::test]
async fn the_kernel_tells_whose_program_is_on_a_unix_socket() {
    let mesh = Mesh::new();
    let ((_one, by_name), (_two, by_number)) = (place(), place());
    let listener = |path: &Path, users: Value| json!({"listen": format!("unix:{}", path.display()), "as_agent": "opus", "users": users});
    let more = [listener(&by_name, json!(["nobody"])), listener(&by_number, json!([0, "1"]))];
    let (mut near, far) = tokio::join!(plan(&mesh, &more).start(), mesh.start("ct111", "grok"));
    near.reaches("ct111").await;
    let ask = async |path: &Path, nobody: bool| {
        let mut command = Command::new(if nobody { "setpriv" } else { "curl" });
        if nobody {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "curl"]);
        }
        command.args(["-s", "--noproxy", "*", "--max-time", "20", "--unix-socket"]).arg(path);
        command.arg("http://localhost/nodes/ct111/x");
        text(&spawn_blocking(move || process::run(&mut command)).await.unwrap().stdout)
    };
    for (path, nobody, answer) in [
        (&by_name, true, "GET /x"),
        (&by_name, false, ""),
        (&by_number, true, ""),
        (&by_number, false, "GET /x"),
    ] {
        assert_eq!(ask(path, nobody).await, answer, "{path:?} {nobody}");
    }
    assert_eq!(far.agent().requests().len(), 2);
    let key = "(proxy.outbound.listeners[2].users)";
    near.proxy().wait_log(&["WARN [Outbound] refusing a connection of user 0 to unix:", key]).await;
    near.proxy().wait_log(&["refusing a connection of user 65534", "listeners[3].users"]).await;
}

#[tokio::test]
async fn what_cannot_be_is_told_at_the_start() {
    let mesh = Mesh::new();
    let (_folder, path) = place();
    let unix = format!("unix:{}", path.display());
    for (i, (listener, told)) in [
        (
            json!({"listen": unix, "as_agent": "opus", "users": ["nobody-of-this-name"]}),
            "there is no user nobody-of-this-name on this host (proxy.outbound.listeners[2].users)",
        ),
        (
            json!({"listen": "127.0.0.1:3999", "as_agent": "opus", "users": ["nobody"]}),
            "proxy.outbound.listeners[2].users: is for unix sockets only: TCP does not tell who connects; listen on unix:/path",
        ),
        (json!({"listen": unix, "users": []}), "proxy.outbound.listeners[2].users: is empty, so nobody could connect"),
        (json!({"listen": unix, "as_agent": "a b"}), "is not an agent name"),
        (json!({"listen": unix, "as_agent": "opus", "cert_path": "/x"}), "cert_path: needs key_path"),
        (
            json!({"listen": unix, "as_agent": "opus", "cert_path": "/x", "key_path": "/y"}),
            "an earlier listener of the same agent has another one",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let node = plan(&mesh, &[listener]).prepare().await;
        let output = process::run(&mut node.command("mesh-proxy"));
        assert!(!output.status.success(), "{i}");
        let all = text(&output.stderr) + &text(&output.stdout);
        assert!(all.contains(told), "{i}: {all}");
        fs::rename(node.folder(), node.folder().with_extension(i.to_string())).unwrap();
    }
}

#[tokio::test]
async fn rules_tell_agents_of_this_host_apart() {
    let mesh = Mesh::new();
    let rules = json!([
        {"as_agent": "opus", "node": "ct111", "method": "POST", "action": "allow"},
        {"as_agent": "scout", "method": "GET", "action": "allow"},
    ]);
    let near =
        plan(&mesh, &[]).with(|config| config["proxy"]["outbound"]["policy"] = json!({"rules": rules}));
    let (mut near, _far) = tokio::join!(near.prepare(), mesh.start("ct111", "grok"));
    near.start_registryd().await;
    near.start_proxy().await;
    eventually("ct111 is known", async || {
        (get(&near, SCOUT, "/nodes/ct111/x").await.status == 200).then_some(())
    })
    .await;
    for (port, method, status) in [
        (OPUS, Method::POST, 200),
        (OPUS, Method::GET, 403),
        (SCOUT, Method::GET, 200),
        (SCOUT, Method::POST, 403),
        (3001, Method::GET, 403),
        (3001, Method::POST, 403),
    ] {
        let request = web::request(method.clone(), "/nodes/ct111/x").body(web::empty()).unwrap();
        assert_eq!(web::send(near.port(port), request).await.status, status, "{port} {method}");
    }
    near.proxy().wait_log(&["WARN [Policy] refused a request of opus@ct110 to ct111.mesh"]).await;
    let explain = |agent: &str| {
        let mut command = near.command("meshctl");
        command.args(["policy", "explain", "--outbound", "--as-agent", agent, "ct111", "POST", "/x"]);
        text(&process::run(&mut command).stdout)
    };
    assert!(explain("opus").starts_with("allow: proxy.outbound.policy.rules[0]"), "{}", explain("opus"));
    assert!(explain("scout").starts_with("deny"), "{}", explain("scout"));
}

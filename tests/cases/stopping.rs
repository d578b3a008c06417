//! A sidecar that is told to stop: what it still does, in which order, and what it says meanwhile.

use std::os::unix::net::UnixDatagram;

use http::Method;
use hyper::body::Incoming;
use mesh_tests::mesh::{Mesh, Node, Plan};
use mesh_tests::process::{Daemon, text};
use mesh_tests::supervised::{self, Load, Streams, Supervised};
use mesh_tests::tls::Client;
use mesh_tests::web::{self, BodySender};
use mesh_tests::{eventually, within};
use serde_json::json;
use tokio::net::TcpStream;

/// Nothing is cut off before the test ends it.
fn patient(plan: Plan) -> Plan {
    plan.with(|config| config["proxy"]["timeouts"]["drain_ms"] = 25_000.into())
}

/// Two nodes, and a task for the agent of the second one that is not finished.
struct Busy {
    mesh: Mesh,
    caller: Node,
    node: Node,
    answer: Incoming,
    task: BodySender,
}

impl Busy {
    async fn start(change: impl FnOnce(Plan) -> Plan) -> Self {
        let mesh = Mesh::new();
        let caller = mesh.start("ct110", "opus").await;
        let node = change(patient(mesh.node("ct111").agent("grok"))).start().await;
        tokio::join!(caller.reaches("ct111"), node.reaches("ct110"));
        let (answer, task) = begin(&caller, &node).await;
        Self { mesh, caller, node, answer, task }
    }

    async fn told_to_stop(&mut self) {
        self.node.proxy().signal(libc::SIGTERM);
        self.node
            .proxy()
            .wait_log(&["[Mesh] stopping; 1 inbound and 0 outbound requests finish first"])
            .await;
    }

    /// The task goes on and ends in order, and with it the sidecar.
    async fn ends_well(mut self) {
        self.task.send(web::piece("two")).unwrap();
        web::expect_data(&mut self.answer, "two").await;
        drop(self.task);
        assert!(web::next_data(&mut self.answer).await.is_none());
        assert!(self.node.proxy().exited().await.success());
        assert!(self.node.proxy().lines_with(&["are cut off"]).is_empty());
    }
}

async fn begin(caller: &Node, node: &Node) -> (Incoming, BodySender) {
    let target = format!("/nodes/{}/stream", node.name);
    let request = web::request(Method::GET, &target).body(web::empty()).unwrap();
    let (answer, task) = tokio::join!(web::open(caller.outbound(), request), node.agent().stream());
    let mut answer = answer.unwrap().into_body();
    task.send(web::piece("one")).unwrap();
    web::expect_data(&mut answer, "one").await;
    (answer, task)
}

async fn refuses(port: std::net::SocketAddr) {
    eventually("the port is closed", async || TcpStream::connect(port).await.err()).await;
}

#[tokio::test]
async fn an_agent_that_finishes_a_task_can_still_call_others() {
    let mut busy = Busy::start(|plan| plan).await;
    let mut kept = web::Connection::over(TcpStream::connect(busy.node.outbound()).await.unwrap()).await;
    let ask = || web::request(Method::GET, "/nodes/ct110/x").body(web::empty()).unwrap();
    assert_eq!(kept.send(ask()).await.status, 200);
    busy.told_to_stop().await;
    refuses(busy.node.inbound()).await;
    for _ in 0..3 {
        assert_eq!(busy.node.get("/nodes/ct110/x").await.text(), "GET /x");
        let answer = kept.send(ask()).await;
        assert_eq!((answer.status.as_u16(), answer.header("connection")), (200, None));
    }
    // What it has begun itself is waited for as well.
    let (mut called, call) = begin(&busy.node, &busy.caller).await;
    drop(busy.task);
    assert!(web::next_data(&mut busy.answer).await.is_none());
    refuses(busy.node.outbound()).await;
    call.send(web::piece("two")).unwrap();
    web::expect_data(&mut called, "two").await;
    assert!(busy.node.proxy().is_running());
    drop(call);
    assert!(web::next_data(&mut called).await.is_none());
    assert!(busy.node.proxy().exited().await.success());
}

#[tokio::test]
async fn its_node_is_updating_until_a_sidecar_works_again() {
    let mut busy = Busy::start(|plan| plan).await;
    busy.told_to_stop().await;
    let status = async |mesh: &Mesh, wanted: &str| {
        eventually(&format!("ct111 is {wanted}"), async || {
            (mesh.entry("ct111").unwrap()["status"] == wanted).then_some(())
        })
        .await;
    };
    status(&busy.mesh, "updating").await;
    eventually("the caller's sidecar knows", async || {
        let answer = busy.caller.get("/agents/grok/x").await;
        (answer.header("x-mesh-error") == Some("agent_offline")).then_some(())
    })
    .await;
    let shown = busy.node.local("/v1/status").await.unwrap().json();
    assert_eq!(shown["sidecar"]["draining"], true, "{shown}");
    assert_eq!(shown["sidecar"]["pid"], busy.node.proxy().pid(), "{shown}");
    // Restarted meanwhile, registryd does not take it for the operator's word.
    assert!(busy.node.registryd().stop().await.success());
    busy.node.start_registryd().await;
    drop(busy.task);
    assert!(busy.node.proxy().exited().await.success());
    busy.node.start_proxy().await;
    status(&busy.mesh, "online").await;
    busy.caller.comes_to("/agents/grok/x", None).await;
}

#[tokio::test]
async fn a_client_of_http_1_1_is_told_with_its_answer_that_it_was_the_last() {
    let mut busy = Busy::start(|plan| plan).await;
    let client = Client::new(&busy.mesh.ca, &busy.mesh.ca.node("ct112")).alpn(&["http/1.1"]);
    let mut peer = client.http(busy.node.inbound(), "ct111").await;
    let (body, upload) = web::channel();
    let asked = peer.open(web::request(Method::POST, "/upload").body(upload).unwrap());
    let answered = async {
        body.send(web::piece("x")).unwrap();
        assert_eq!(busy.node.agent.as_ref().unwrap().example.upload().await.unwrap(), "x");
        let proxy = busy.node.proxy.as_mut().unwrap();
        proxy.signal(libc::SIGTERM);
        proxy.wait_log(&["[Mesh] stopping; 2 inbound and 0 outbound requests finish first"]).await;
        drop(body);
    };
    let (answer, ()) = tokio::join!(asked, answered);
    let answer = web::Answer::read(answer.unwrap()).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.header("connection")), (200, Some("close")));
    busy.ends_well().await;
}

#[tokio::test]
async fn whoever_is_in_the_middle_of_a_handshake_is_no_crowd() {
    let mut busy = Busy::start(|plan| plan).await;
    let early = TcpStream::connect(busy.node.inbound()).await.unwrap();
    let silent = TcpStream::connect(busy.node.inbound()).await.unwrap();
    // Both were accepted once a later one has been served.
    busy.node.get_from_peer(&busy.mesh, "ct112", "/x").await;
    busy.told_to_stop().await;
    let client = Client::new(&busy.mesh.ca, &busy.mesh.ca.node("ct112"));
    // Served once, or closed: on a busy machine it may come too late for more.
    if let Ok(stream) = client.over(early, "ct111").await {
        let mut connection = web::Connection::over(stream).await;
        let asked = connection.open(web::request(Method::GET, "/x").body(web::empty()).unwrap()).await;
        if let Ok(answer) = asked {
            assert_eq!(answer.headers()["connection"], "close");
        }
    }
    let proxy = busy.node.proxy.as_ref().unwrap();
    assert!(proxy.lines_with(&["slots are in use"]).is_empty());
    busy.ends_well().await;
    drop(silent);
}

#[tokio::test]
async fn supervisors_are_answered_until_the_end() {
    let mut busy = Busy::start(|plan| {
        let listen = plan.ip();
        plan.with(|config| config["proxy"]["admin"] = json!({"listen": format!("{listen}:3002")}))
    })
    .await;
    let admin = busy.node.port(3002);
    assert_eq!(web::get(admin, "/readyz").await.status, 200);
    busy.told_to_stop().await;
    let answer = web::get(admin, "/readyz").await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (503, "draining\n"));
    assert_eq!(web::get(admin, "/healthz").await.status, 200);
    assert_eq!(web::get(admin, "/metrics").await.status, 200);
    busy.ends_well().await;
}

#[tokio::test]
async fn told_twice_it_ends_at_once() {
    for second in [libc::SIGTERM, libc::SIGINT] {
        let mut busy = Busy::start(|plan| plan).await;
        busy.told_to_stop().await;
        busy.node.proxy().signal(second);
        let line = "1 inbound and 0 outbound requests were under way when it was told to stop once more";
        busy.node.proxy().wait_log(&["WARN [Mesh]", line]).await;
        assert!(busy.node.proxy().exited().await.success());
        drop(busy.task);
    }
}

#[tokio::test]
async fn the_service_manager_hears_what_it_waits_for_and_stays_patient() {
    let mesh = Mesh::new();
    let mut node = patient(mesh.node("ct110").agent("opus")).prepare().await;
    let path = node.folder().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(mesh_tests::DEADLINE)).unwrap();
    let told = || {
        let mut message = [0; 1000];
        let length = manager.recv(&mut message).unwrap();
        text(&message[..length])
    };
    node.start_registryd().await;
    node.proxy = Some(Daemon::start("mesh-proxy", node.command("mesh-proxy").env("NOTIFY_SOCKET", &path)));
    assert_eq!(told(), "READY=1\n");
    node.has_roster().await;
    node.reaches("ct110").await;
    let (_answer, task) = begin(&node, &node).await;
    node.proxy().signal(libc::SIGTERM);
    assert_eq!(told(), "STOPPING=1\n");
    let waiting =
        "STATUS=stopping; 1 inbound and 1 outbound requests finish first\nEXTEND_TIMEOUT_USEC=30000000\n";
    // At once, and for as long as it lasts.
    assert_eq!((told().as_str(), told().as_str()), (waiting, waiting));
    eventually("both are logged", async || {
        let line = "INFO [Mesh] stopping; 1 inbound and 1 outbound requests finish first";
        (node.proxy().lines_with(&[line]).len() == 2).then_some(())
    })
    .await;
    drop(task);
    assert!(node.proxy().exited().await.success());
}

#[tokio::test]
async fn with_sockets_of_a_supervisor_a_restart_refuses_nobody() {
    let mesh = Mesh::new();
    let mut near = patient(mesh.node("ct110").agent("opus")).prepare().await;
    near.start_registryd().await;
    let mut sidecar = Supervised::start(&near).await;
    near.has_roster().await;
    let far = mesh.start("ct111", "grok").await;
    near.reaches("ct111").await;
    let sent = supervised::restarts(&near, &far, &mut sidecar, 200, 20, 3).await;
    assert!(sent > 200, "{sent}");
}

#[tokio::test]
async fn a_peer_waits_for_the_restart_of_the_node_that_it_calls() {
    let mesh = Mesh::new();
    let near = mesh.start("ct110", "opus").await;
    let mut far = patient(mesh.node("ct111").agent("grok")).prepare().await;
    far.start_registryd().await;
    let mut sidecar = Supervised::start(&far).await;
    far.has_roster().await;
    near.reaches("ct111").await;
    let sent = supervised::restarts(&near, &far, &mut sidecar, 200, 20, 3).await;
    assert!(sent > 200, "{sent}");
}

#[tokio::test]
async fn sockets_are_known_by_their_addresses_too_and_wrong_ones_are_named() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").agent("opus").prepare().await;
    node.start_registryd().await;
    // As systemd names all sockets of one unit.
    let sidecar = Supervised::named(&node, ["mesh-proxy.socket"; 2]).await;
    node.has_roster().await;
    node.reaches("ct110").await;
    drop(sidecar);
    let elsewhere = std::net::TcpListener::bind(node.port(3009)).unwrap();
    let mut strange = supervised::start_with(&node, &[(elsewhere, "else")]);
    strange.wait_log(&["ERROR [Mesh] cannot start", "\"else\"", "inbound, outbound and admin"]).await;
    assert_eq!(strange.exited().await.code(), Some(1));
}

#[tokio::test]
async fn nothing_is_lost_between_a_listener_that_closes_and_its_last_connections() {
    let mesh = Mesh::new();
    let mut node = patient(mesh.node("ct110").agent("opus")).prepare().await;
    node.start_registryd().await;
    let mut sidecar = Supervised::start(&node).await;
    node.has_roster().await;
    node.reaches("ct110").await;
    // Through outbound and the same sidecar's inbound.
    let load = Load::start(node.outbound(), "/mesh/nodes", 200);
    let open = Streams::open(&node, "/nodes/ct110/stream", &node, 5).await;
    load.more(50).await;
    sidecar.daemon.signal(libc::SIGTERM);
    load.more(50).await;
    within("the streams end", open.end()).await;
    sidecar.start_again().await;
    load.more(50).await;
    load.end().await;
}

#[tokio::test]
async fn what_is_left_over_after_the_drain_time_is_counted() {
    let mut busy =
        Busy::start(|plan| plan.with(|config| config["proxy"]["timeouts"]["drain_ms"] = 500.into())).await;
    busy.node.proxy().signal(libc::SIGTERM);
    let line = "1 inbound and 0 outbound requests after 500 ms (proxy.timeouts.drain_ms); they are cut off";
    busy.node.proxy().wait_log(&["WARN [Mesh]", line]).await;
    assert!(busy.node.proxy().exited().await.success());
    drop(busy.task);
}

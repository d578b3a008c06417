//! What a supervisor on the host asks the sidecar: alive, ready, figures.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::process::{Daemon, StoppedThread, text};
use mesh_tests::tls::Client;
use mesh_tests::{eventually, web};
use serde_json::json;

#[tokio::test]
async fn health_readiness_and_metrics() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").agent("opus");
    let listen = format!("{}:3002", plan.ip());
    let mut node = plan.with(|config| config["proxy"]["admin"] = json!({"listen": listen})).prepare().await;
    node.start_proxy().await;
    let admin = node.port(3002);
    assert_eq!(web::get(admin, "/healthz").await.status, 200);
    let answer = web::get(admin, "/readyz").await;
    assert!(answer.status == 503 && answer.text().contains("registryd"), "{}", answer.text());
    node.start_registryd().await;
    eventually("ready", async || (web::get(admin, "/readyz").await.status == 200).then_some(())).await;
    let count = async |name: &str| -> u64 {
        let metrics = web::get(admin, "/metrics").await.text();
        let name = format!("mesh_proxy_{name}_total ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)).expect(&name).parse().unwrap()
    };
    let before = (count("inbound_requests").await, count("inbound_connections").await);
    node.get_from_peer(&mesh, "ct111", "/x").await;
    assert_eq!(
        (count("inbound_requests").await, count("inbound_connections").await),
        (before.0 + 1, before.1 + 1)
    );
    Client::anonymous(&mesh.ca).refused(node.inbound(), "ct110").await;
    eventually("the refusal is counted", async || {
        (count("inbound_handshake_failures").await == 1).then_some(())
    })
    .await;
    // Its own node is a peer like any other: one connection for all requests.
    let (dials, errors) = (count("outbound_dials").await, count("sidecar_errors").await);
    for _ in 0..10 {
        assert_eq!(node.get("/nodes/ct110/x").await.status, 200);
    }
    node.get("/nodes/ct199/x").await.problem(404, "unknown_node");
    assert_eq!((count("outbound_dials").await, count("sidecar_errors").await), (dials + 1, errors + 1));
    let metrics = web::get(admin, "/metrics").await;
    assert_eq!(
        metrics.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    for line in metrics.text().lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("mesh_") && value.parse::<f64>().is_ok(), "{line}");
    }
    for (series, most) in [
        ("roster_age_seconds ", 60.0),
        ("worker_lag_seconds ", 60.0),
        ("certificate_not_after_timestamp_seconds ", 1e10),
        ("slots_max{limit=\"backend.max_requests\"} ", 1e6),
        ("slots_used{limit=\"limits.max_connections\"} ", 100.0),
        ("connections_total{direction=\"inbound\",side=\"downstream\"} ", 100.0),
        (
            "requests_total{direction=\"outbound\",peer=\"ct110\",agent=\"\",class=\"2xx\",outcome=\"complete\"} ",
            100.0,
        ),
    ] {
        let text = metrics.text();
        let value = text.lines().find_map(|line| line.strip_prefix("mesh_proxy_")?.strip_prefix(series));
        let value: f64 = value.unwrap_or_else(|| panic!("no {series} in {text}")).parse().unwrap();
        assert!((0.0..=most).contains(&value), "{series}{value}");
    }
    assert!(metrics.text().ends_with("# EOF\n"));
    assert_eq!(web::get(admin, "/").await.status, 404);
}

/// A node whose sidecar has an admin listener, which is returned.
async fn with_admin(mesh: &Mesh) -> (Node, std::net::SocketAddr) {
    let plan = mesh.node("ct110").agent("opus");
    let listen = format!("{}:3002", plan.ip());
    let mut node = plan.with(|config| config["proxy"]["admin"] = json!({"listen": listen})).prepare().await;
    node.start_proxy().await;
    let admin = node.port(3002);
    (node, admin)
}

#[tokio::test]
async fn no_web_page_and_no_rebound_name_reads_the_figures() {
    let mesh = Mesh::new();
    let (_node, admin) = with_admin(&mesh).await;
    let status = async |headers: &[(&str, &str)]| {
        web::send(admin, web::get_with("/metrics", headers)).await.status.as_u16()
    };
    for host in ["localhost:3002", "127.0.0.1", "[::1]:3002"] {
        assert_eq!(status(&[("host", host)]).await, 200, "{host}");
    }
    assert_eq!(status(&[("host", "localhost"), ("sec-fetch-site", "none")]).await, 200);
    for headers in [
        [("host", "rebound.example:3002"), ("x", "y")],
        [("host", "192.168.1.1"), ("x", "y")],
        [("host", "localhost"), ("origin", "https://evil.example")],
        [("host", "localhost"), ("sec-fetch-site", "cross-site")],
    ] {
        assert_eq!(status(&headers).await, 403, "{headers:?}");
    }
    let told =
        web::raw(admin, b"GET /metrics HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 403") && !told.contains("mesh_"), "{told}");
    // A prober that names nobody.
    let told = web::raw(admin, b"GET /healthz HTTP/1.0\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.0 200"), "{told}");
}

#[tokio::test]
async fn the_places_are_limited_and_come_back() {
    let mesh = Mesh::new();
    let (_node, admin) = with_admin(&mesh).await;
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(tokio::net::TcpStream::connect(admin).await.unwrap());
    }
    let told = web::raw(admin, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert_eq!(told.await, "", "one too many is closed");
    drop(silent);
    eventually("places come back", async || {
        let told = web::raw(admin, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        told.await.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
}

/// What a service manager with a watchdog hears.
struct Watchdog(UnixDatagram);

impl Watchdog {
    fn start(node: &Node, binary: &str) -> (Self, Daemon) {
        let path = node.folder().join(format!("{binary}.notify"));
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut command = node.command(binary);
        let daemon =
            Daemon::start(binary, command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "800000"));
        (Self(socket), daemon)
    }

    /// Waits for the next sign of life.
    fn hears(&self) {
        self.0.set_read_timeout(Some(mesh_tests::DEADLINE)).unwrap();
        let mut message = [0; 1000];
        loop {
            let length = self.0.recv(&mut message).unwrap();
            if text(&message[..length]) == "WATCHDOG=1\n" {
                return;
            }
        }
    }

    /// Reads what is there.
    fn catch_up(&self) {
        self.0.set_nonblocking(true).unwrap();
        while self.0.recv(&mut [0; 1000]).is_ok() {}
        self.0.set_nonblocking(false).unwrap();
    }

    /// Hears nothing for much longer than the watchdog allows.
    fn is_left_alone(&self) {
        let mut message = [0; 1000];
        self.catch_up();
        self.0.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let heard = self.0.recv(&mut message);
        assert_eq!(heard.unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

#[tokio::test]
async fn a_worker_that_does_not_turn_is_named_and_the_service_manager_not_quieted() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").agent("opus");
    let listen = format!("{}:3002", plan.ip());
    let plan = plan.with(|config| {
        config["proxy"]["admin"] = json!({"listen": listen});
        config["proxy"]["threads"] = 2.into();
    });
    let mut node = plan.prepare().await;
    let (watchdog, daemon) = Watchdog::start(&node, "mesh-proxy");
    node.proxy = Some(daemon);
    watchdog.hears();
    watchdog.hears();
    let admin = node.port(3002);
    assert_eq!(web::get(admin, "/healthz").await.text(), "ok\n");
    let stopped = StoppedThread::named(node.proxy().pid(), "worker-1");
    let answer = eventually("/healthz fails", async || {
        watchdog.catch_up();
        Some(web::get(admin, "/healthz").await).filter(|answer| answer.status == 503)
    })
    .await;
    assert!(answer.text().starts_with("worker-1 has done nothing for "), "{}", answer.text());
    watchdog.is_left_alone();
    drop(stopped);
    eventually("/healthz recovers", async || (web::get(admin, "/healthz").await.status == 200).then_some(()))
        .await;
    watchdog.hears();
}

#[tokio::test]
async fn registryd_quiets_the_service_manager_only_while_it_turns() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").agent("opus").prepare().await;
    let (watchdog, daemon) = Watchdog::start(&node, "registryd");
    node.registryd = Some(daemon);
    watchdog.hears();
    watchdog.hears();
    node.registryd().freeze().await;
    watchdog.is_left_alone();
    node.registryd().signal(libc::SIGCONT);
    watchdog.hears();
}

/// What strangers, peers and local programs make up becomes no series.
#[tokio::test]
async fn the_metrics_do_not_grow_with_what_others_say() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").agent("opus");
    let listen = format!("{}:3002", plan.ip());
    let mut node = plan.with(|config| config["proxy"]["admin"] = json!({"listen": listen})).start().await;
    let admin = node.port(3002);
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct111"));
    let round = async |number: usize| {
        let made_up = format!("zzz{number}");
        let inbound = web::get_with(&format!("/{made_up}?{made_up}"), &[("x-mesh-agent", &made_up)]);
        client.send(node.inbound(), "ct110", inbound).await;
        node.get(&format!("/nodes/{made_up}/x")).await;
        node.get(&format!("/agents/{made_up}/x")).await;
        node.get(&format!("http://{made_up}.example.org/")).await;
        let headers = [("x-mesh-node", "ct110"), ("x-mesh-agent", &*made_up)];
        web::send(node.outbound(), web::get_with("/x", &headers)).await;
        web::raw(node.inbound(), made_up.as_bytes()).await;
    };
    let series = async || {
        let metrics = web::get(admin, "/metrics").await.text();
        let metrics = metrics.lines().filter(|line| !line.starts_with('#'));
        let mut series: Vec<_> = metrics.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect();
        series.sort();
        series
    };
    for number in 0..3 {
        round(number).await;
    }
    let before = series().await;
    assert!(!before.iter().any(|series| series.contains("zzz")), "{before:?}");
    for number in 3..20 {
        round(number).await;
    }
    assert_eq!(series().await, before);
    assert!(node.proxy().is_running());
}

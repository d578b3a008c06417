//! How long one peer waits for its answers while another one floods the sidecar, beside what it waits when all is quiet.

use std::time::{Duration, Instant};

use http::{Method, Request};
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::tls::Client;
use mesh_tests::web::{self, Body};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const REQUESTS: usize = 4_000;
/// A flood may make the slowest hundredth of another peer's answers this much slower.
const MOST: f64 = 3.0;

fn get(path: &str) -> Request<Body> {
    web::request(Method::GET, &format!("https://ct111.mesh{path}")).body(web::empty()).unwrap()
}

/// The 99th percentile of the answers to one request after the other.
async fn p99(mesh: &Mesh, node: &Node) -> Duration {
    let client = Client::new(&mesh.ca, &mesh.ca.node("ct112")).alpn(&["http/1.1"]);
    let mut connection = client.http(node.inbound(), "ct111").await;
    let mut took = Vec::new();
    for _ in 0..REQUESTS {
        let started = Instant::now();
        let answer = connection.send(get("/x")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        took.push(started.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    took.sort();
    took[REQUESTS * 99 / 100]
}

/// What one peer does to the sidecar, at a pace that one core of a test machine leaves room for.
#[derive(Debug, Clone, Copy)]
enum Flood {
    Silence,
    Connections,
    Hanging,
    Cancels,
    Unread,
}

async fn flood(kind: Flood, client: Client, node: std::net::SocketAddr) {
    let mut held = Vec::new();
    let mut open = JoinSet::new();
    let h2 = web::h2(client.connect(node, "ct111").await.unwrap()).await;
    loop {
        let mut h2 = h2.clone();
        match kind {
            Flood::Silence => held.extend(TcpStream::connect(node).await),
            Flood::Connections => drop(client.connect(node, "ct111").await),
            Flood::Hanging => drop(open.spawn(async move { drop(h2.send_request(get("/hang")).await) })),
            Flood::Cancels => {
                let sent = h2.send_request(get("/hang"));
                let _ = tokio::time::timeout(Duration::from_millis(1), sent).await;
            }
            Flood::Unread if open.len() < 300 => {
                open.spawn(async move {
                    let unread = h2.send_request(get("/large")).await;
                    std::future::pending::<()>().await;
                    drop(unread);
                });
            }
            Flood::Unread => {}
        }
        while open.try_join_next().is_some() {}
        if held.len() > 500 {
            held.remove(0);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_one_peer_is_not_felt_by_another() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct111").agent("grok").prepare().await;
    node.start_proxy().await;
    let quiet = p99(&mesh, &node).await;
    println!("quiet: p99 {quiet:?}");
    let mut worst: f64 = 0.0;
    for kind in [Flood::Silence, Flood::Connections, Flood::Hanging, Flood::Cancels, Flood::Unread] {
        let client = Client::new(&mesh.ca, &mesh.ca.node("ct150")).alpn(&["h2"]);
        let flood = tokio::spawn(flood(kind, client, node.inbound()));
        let busy = p99(&mesh, &node).await;
        flood.abort();
        let ratio = busy.as_secs_f64() / quiet.as_secs_f64();
        println!("{kind:?}: p99 {busy:?}, {ratio:.2} times the quiet one");
        worst = worst.max(ratio);
    }
    assert!(worst <= MOST, "{worst:.2}");
}

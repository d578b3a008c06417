//! A node with several addresses: the first that works is used, whatever the others do.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use mesh_tests::eventually;
use mesh_tests::loopback::Loopback;
use mesh_tests::mesh::{Mesh, Node, entry};
use mesh_tests::tls::{Peer, PeerOptions};
use serde_json::json;
use socket2::{Domain, Socket, Type};

/// A mesh in which ct150 listens on `good`, and its name leads to `addresses`.
async fn mesh_with_peer(mesh: &Mesh, good: SocketAddr, addresses: &[IpAddr]) -> (Node, Peer) {
    let peer = Peer::start(good, "ct150", PeerOptions::good(&mesh.ca, "ct150")).await;
    mesh.dns.set_all("ct150.mesh", addresses);
    mesh.register("ct150", "127.1.2.3", peer.addr.port(), &[]);
    let node = mesh.start("ct110", "opus").await;
    eventually("the name is resolved", async || {
        let nodes = node.local("/mesh/nodes?node=ct150").await?.json();
        (nodes[0]["addresses"].as_array()?.len() == addresses.len()).then_some(())
    })
    .await;
    (node, peer)
}

/// A listener that takes no more connections: who connects hears nothing.
fn silent(address: SocketAddr) -> (Socket, Vec<Socket>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&address.into()).unwrap();
    listener.listen(0).unwrap();
    let waiting = (0..4).map(|_| {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        // In progress for as long as nobody accepts.
        let _ = client.connect(&address.into());
        client
    });
    let waiting = waiting.collect();
    (listener, waiting)
}

#[tokio::test]
async fn an_address_that_refuses_is_passed_over() {
    let mesh = Mesh::new();
    let (bad, good) = (Loopback::take(), Loopback::take());
    let (node, _peer) = mesh_with_peer(&mesh, good.port(3000), &[bad.ip(), good.ip()]).await;
    assert_eq!(node.get("/nodes/ct150/x").await.text(), "GET /x");
}

#[tokio::test]
async fn an_address_that_is_silent_holds_nothing_up() {
    let mesh = Mesh::new();
    let (bad, good) = (Loopback::take(), Loopback::take());
    let _silent = silent(bad.port(3000));
    // Both orders, since a resolver may turn them round.
    let (node, _peer) = mesh_with_peer(&mesh, good.port(3000), &[bad.ip(), good.ip()]).await;
    assert_eq!(node.get("/nodes/ct150/x").await.text(), "GET /x");
    mesh.register("ct151", "127.1.2.3", 3000, &[]);
    let peer = Peer::start(good.port(3001), "ct151", PeerOptions::good(&mesh.ca, "ct151")).await;
    let _also_silent = silent(bad.port(3001));
    mesh.dns.set_all("ct151.mesh", &[good.ip(), bad.ip()]);
    mesh.amend("ct151", |entry| entry["port"] = json!(3001));
    node.reaches("ct151").await;
    drop(peer);
}

#[tokio::test]
async fn peers_are_reached_by_ipv6_and_ipv4_alike() {
    let mesh = Mesh::new();
    let six = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let (node, peer) = mesh_with_peer(&mesh, SocketAddr::new(six, 0), &[six]).await;
    assert_eq!(node.get("/nodes/ct150/x").await.text(), "GET /x");
    assert!(peer.addr.is_ipv6());

    // Listed with an IPv6 address where nobody listens: IPv4 is tried next.
    let mesh = Mesh::new();
    let good = Loopback::take();
    let (node, _peer) = mesh_with_peer(&mesh, good.port(3000), &[six, good.ip()]).await;
    assert_eq!(node.get("/nodes/ct150/x").await.text(), "GET /x");
}

#[tokio::test]
async fn when_none_works_each_is_named() {
    let mesh = Mesh::new();
    let (one, two, elsewhere) = (Loopback::take(), Loopback::take(), Loopback::take());
    let (node, _peer) = mesh_with_peer(&mesh, elsewhere.port(3000), &[one.ip(), two.ip()]).await;
    let detail = node.get("/nodes/ct150/x").await.problem(502, "peer_unreachable");
    for address in [one.port(3000), two.port(3000)] {
        assert!(detail.contains(&format!("{address}: Connection refused")), "{detail}");
    }
}

/// Servers that the configuration names count for the names of a few nodes; of many, only for those that have no address
/// of their own in the registry.
#[tokio::test]
async fn in_a_large_mesh_no_server_is_asked_for_a_node_that_registered_an_address() {
    let mesh = Mesh::new();
    mesh.edit_registry(|registry| {
        for i in 0..60 {
            let name = format!("ct2{i:02}");
            let node = entry(&name, &format!("10.0.2.{}", i + 1), 3000, &[]);
            registry["nodes"][format!("id-{name}")] = node;
        }
        registry["nodes"]["id-ct300"] = entry("ct300", "ct300.mesh", 3000, &[]);
    });
    mesh.dns.set("ct300.mesh", [10, 0, 3, 0]);
    mesh.dns.set("ct200.mesh", [10, 0, 9, 9]);
    let mut node = mesh.node("ct110").prepare().await;
    node.start_registryd().await;
    let addresses = async |name: &str| {
        let nodes = node.local(&format!("/mesh/nodes?node={name}")).await?.json();
        Some(nodes.get(0)?["addresses"].clone())
    };
    eventually("the name is resolved", async || {
        (addresses("ct300").await? == json!(["10.0.3.0"])).then_some(())
    })
    .await;
    let of = |name: &str| mesh.dns.asked().iter().filter(|asked| *asked == name).count();
    // A lookup again after its time: by then all others would have been asked for, too.
    eventually("the name is asked for again", async || (of("ct300.mesh") > 2).then_some(())).await;
    assert_eq!(addresses("ct200").await, Some(json!(["10.0.2.1"])));
    let asked = mesh.dns.asked();
    let literal: Vec<&String> = asked.iter().filter(|name| name.starts_with("ct2")).collect();
    assert!(literal.is_empty(), "{literal:?}");
}

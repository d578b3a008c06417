//! What the harness itself promises.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use http::Method;
use mesh_tests::agent::Agent;
use mesh_tests::ca::Ca;
use mesh_tests::loopback::Loopback;
use mesh_tests::tls::{Client, Peer, PeerOptions};
use mesh_tests::{eventually_within, web, within};

#[tokio::test]
async fn a_client_and_a_peer_of_one_ca_talk_and_others_do_not() {
    let (ca, foreign, address) = (Ca::new(), Ca::new(), Loopback::take());
    let peer = Peer::start(address.port(3000), "grok", PeerOptions::good(&ca, "ct111")).await;
    let client = Client::new(&ca, &ca.node("ct110"));
    let request = web::request(Method::GET, "/a?b").body(web::empty()).unwrap();
    assert_eq!(client.send(peer.addr, "ct111", request).await.text(), "GET /a?b");

    let client = client.alpn(&["h2"]);
    let mut h2 = web::h2(client.connect(peer.addr, "ct111").await.unwrap()).await;
    let request = web::request(Method::GET, "https://ct111.mesh/c").body(web::empty()).unwrap();
    let answer = web::Answer::read(h2.send_request(request).await.unwrap()).await.unwrap();
    assert_eq!(answer.text(), "GET /c");
    assert_eq!(peer.accepted()[1].alpn.as_deref(), Some("h2"));

    Client::anonymous(&ca).refused(peer.addr, "ct111").await;
    Client::new(&ca, &foreign.node("ct110")).refused(peer.addr, "ct111").await;
    assert_eq!(peer.accepted().len(), 2);
    assert!(client.connect(peer.addr, "ct112").await.is_err(), "the name was not checked");
}

#[tokio::test]
async fn an_agent_streams_and_upgrades() {
    let address = Loopback::take();
    let agent = Agent::start(address.port(8080), "grok").await;
    let request = web::request(Method::GET, "/stream").body(web::empty()).unwrap();
    let (mut response, stream) =
        tokio::join!(async { web::open(address.port(8080), request).await.unwrap() }, agent.example.stream());
    stream.send(web::piece("one")).unwrap();
    web::expect_data(response.body_mut(), "one").await;
    drop(stream);
    assert_eq!(web::next_data(response.body_mut()).await, None);
}

#[tokio::test]
async fn waiting_ends_whether_the_probe_waits_or_not() {
    let limit = Duration::from_millis(50);
    let ready = eventually_within::<()>(limit, "pigs fly", async || None);
    let pending = eventually_within::<()>(limit, "pigs fly", async || std::future::pending().await);
    let both = async {
        (AssertUnwindSafe(ready).catch_unwind().await, AssertUnwindSafe(pending).catch_unwind().await)
    };
    let (ready, pending) = within("the end of both", both).await;
    assert!(ready.is_err() && pending.is_err());
}

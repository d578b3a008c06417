use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::SOA;
use tokio::net::UdpSocket;

use super::*;

/// A DNS server on loopback that counts its questions; the answer is made by `script`, `None` is silence.
struct FakeDns {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

async fn fake_dns(script: impl Fn(&Query, &mut Message) -> bool + Send + 'static) -> FakeDns {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let request = Message::from_vec(&buffer[..length]).unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
            let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
            reply.metadata.recursion_available = true;
            reply.add_queries(request.queries.clone());
            if script(&request.queries[0], &mut reply) {
                socket.send_to(&reply.to_vec().unwrap(), client).await.unwrap();
            }
        }
    });
    FakeDns { address, asked }
}

fn soa(zone: &str, minimum: u32) -> Record {
    let zone: Name = zone.parse().unwrap();
    let soa = SOA::new(zone.clone(), zone.clone(), 1, 1, 1, 1, minimum);
    Record::from_rdata(zone, minimum, RData::SOA(soa))
}

fn add(reply: &mut Message, query: &Query, ttl: u32, address: &str) {
    let address: IpAddr = address.parse().unwrap();
    let wanted = if address.is_ipv4() { RecordType::A } else { RecordType::AAAA };
    if query.query_type() == wanted {
        reply.add_answer(Record::from_rdata(query.name().clone(), ttl, RData::from(address)));
    }
}

/// Files of a host that asks `server`, and has these lines in its hosts file.
fn host_files(server: Option<SocketAddr>, hosts: &str) -> (tempfile::TempDir, Sources) {
    host_files_asking(server.map(|_| "127.0.0.254"), hosts)
}

fn host_files_asking(server: Option<&str>, hosts: &str) -> (tempfile::TempDir, Sources) {
    let folder = tempfile::tempdir().unwrap();
    let sources =
        Sources { resolv_conf: folder.path().join("resolv.conf"), hosts: folder.path().join("hosts") };
    // Port 53 is not ours to bind: servers are given as upstream; the host's own is one that nobody runs.
    let resolv_conf =
        server.map_or_else(String::new, |server| format!("nameserver {server}\nsearch example.org\n"));
    std::fs::write(&sources.resolv_conf, resolv_conf).unwrap();
    std::fs::write(&sources.hosts, hosts).unwrap();
    (folder, sources)
}

fn resolver(upstream: &[SocketAddr], sources: Sources) -> Resolver {
    Resolver::with_sources(&config::Dns { upstream: upstream.into(), listen: None }, sources)
}

fn ct111() -> NodeName {
    "ct111".parse().unwrap()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn answers_are_interleaved_and_cached_and_never_searched() {
    let dns = fake_dns(|query, reply| {
        assert_eq!(query.name().to_string(), "ct111.mesh.");
        for address in ["10.0.0.1", "10.0.0.2", "10.0.0.1", "0.0.0.0", "fd00::1", "fe80::1"] {
            add(reply, query, 60, address);
        }
        true
    })
    .await;
    let (_folder, sources) = host_files(Some(dns.address), "");
    let resolver = resolver(&[dns.address], sources);
    for _ in 0..3 {
        let got = resolver.resolve(&ct111(), "10.9.9.9", false).await;
        assert_eq!(got.addresses, ips(&["fd00::1", "10.0.0.1", "10.0.0.2"]));
        assert_eq!(got.problem, None);
        assert!((50..=60).contains(&got.valid_for.as_secs()), "{got:?}");
    }
    assert_eq!(dns.asked.load(Ordering::SeqCst), 2, "one question for each family");
}

#[tokio::test]
async fn a_name_that_does_not_exist_falls_back_quietly_and_is_remembered() {
    let dns = fake_dns(|_, reply| {
        reply.metadata.response_code = ResponseCode::NXDomain;
        reply.add_authority(soa("mesh.", 86_400));
        true
    })
    .await;
    let (_folder, sources) = host_files(Some(dns.address), "10.0.0.7 other.lan\n");
    let resolver = resolver(&[dns.address], sources);
    let got = resolver.resolve(&ct111(), "10.9.9.9", false).await;
    assert_eq!((got.addresses, got.problem), (ips(&["10.9.9.9"]), None));
    assert!(got.valid_for <= Duration::from_secs(60), "{:?}", got.valid_for);
    assert_eq!(resolver.resolve(&ct111(), "other.lan", false).await.addresses, ips(&["10.0.0.7"]));
    assert_eq!(dns.asked.load(Ordering::SeqCst), 2, "the second time from the cache");

    let own_name = resolver.resolve(&ct111(), "ct111.mesh", false).await;
    assert!(own_name.addresses.is_empty());
    assert!(own_name.problem.unwrap().contains("ct111.mesh does not exist in DNS"));
    let other_node = resolver.resolve(&ct111(), "ct110.mesh", false).await;
    assert!(other_node.addresses.is_empty());
    assert!(other_node.problem.unwrap().contains("ct110.mesh, is the name of another node"));
}

#[tokio::test]
async fn a_failing_server_is_a_problem_that_costs_no_address() {
    let failing = fake_dns(|_, reply| {
        reply.metadata.response_code = ResponseCode::ServFail;
        true
    })
    .await;
    let silent = fake_dns(|_, _| false).await;
    for (dns, word) in [(failing, "SERVFAIL"), (silent, "did not answer in time")] {
        let (_folder, sources) = host_files(Some(dns.address), "");
        let resolver = resolver(&[dns.address], sources);
        let started = std::time::Instant::now();
        let got = resolver.resolve(&ct111(), "fd00::9", false).await;
        assert_eq!(got.addresses, ips(&["fd00::9"]));
        let problem = got.problem.unwrap();
        assert!(problem.contains(word) && problem.contains(&dns.address.to_string()), "{problem}");
        assert!(started.elapsed() < LOOKUP_MAX + Duration::from_secs(1), "{:?}", started.elapsed());
        assert_eq!(got.valid_for, RETRY);
    }
}

#[tokio::test]
async fn the_second_server_is_asked_when_the_first_is_silent() {
    let silent = fake_dns(|_, _| false).await;
    let dns = fake_dns(|query, reply| {
        add(reply, query, 60, "10.0.0.1");
        true
    })
    .await;
    let (_folder, sources) = host_files(Some(dns.address), "");
    let resolver = resolver(&[silent.address, dns.address], sources);
    let got = resolver.resolve(&ct111(), "10.9.9.9", false).await;
    assert_eq!((got.addresses, got.problem), (ips(&["10.0.0.1"]), None));
    let started = std::time::Instant::now();
    assert_eq!(
        resolver.resolve(&"ct112".parse().unwrap(), "10.9.9.9", false).await.addresses,
        ips(&["10.0.0.1"])
    );
    assert!(started.elapsed() < Duration::from_secs(1), "the silent one is not asked first again");
}

#[tokio::test]
async fn a_lost_second_family_does_not_hold_up_the_first() {
    let dns = fake_dns(|query, reply| {
        add(reply, query, 60, "10.0.0.1");
        query.query_type() == RecordType::A
    })
    .await;
    let (_folder, sources) = host_files(Some(dns.address), "");
    let started = std::time::Instant::now();
    let got = resolver(&[dns.address], sources).resolve(&ct111(), "10.9.9.9", false).await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(got.addresses, ips(&["10.0.0.1"]));
    assert_eq!(got.valid_for, PROVISIONAL);
}

#[tokio::test]
async fn the_hosts_file_counts_with_the_hosts_resolver_but_not_our_own_block() {
    let hosts = "10.0.0.5 CT111.mesh\nfd00::5 ct111.mesh\n# mesh begin\n10.0.0.6 ct112.mesh\n# mesh end\n";
    let (_folder, sources) = host_files(None, hosts);
    let by_host = resolver(&[], sources.clone());
    assert_eq!(by_host.resolve(&ct111(), "10.9.9.9", false).await.addresses, ips(&["fd00::5", "10.0.0.5"]));
    let got = by_host.resolve(&"ct112".parse().unwrap(), "10.9.9.9", false).await;
    assert_eq!((got.addresses, got.problem), (ips(&["10.9.9.9"]), None), "no resolver at all is no problem");

    let dns = fake_dns(|query, reply| {
        add(reply, query, 60, "10.0.0.1");
        true
    })
    .await;
    let configured = resolver(&[dns.address], sources.clone());
    assert_eq!(configured.resolve(&ct111(), "10.9.9.9", false).await.addresses, ips(&["10.0.0.1"]));

    std::fs::write(&sources.hosts, "10.0.0.55 ct111.mesh\n").unwrap();
    *by_host.system.current.lock().await = None;
    assert_eq!(by_host.resolve(&ct111(), "10.9.9.9", false).await.addresses, ips(&["10.0.0.55"]));
}

#[test]
fn families_take_turns() {
    let all = ips(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "::ffff:10.0.0.2"]);
    assert_eq!(interleaved(all), ips(&["fd00::1", "10.0.0.1", "10.0.0.2", "10.0.0.3"]));
}

#[tokio::test]
async fn a_registered_address_is_not_asked_of_the_hosts_resolver() {
    // Nobody answers there: a question would take its time and be told.
    let (_folder, sources) = host_files_asking(Some("127.0.0.254"), "");
    let resolver = resolver(&[], sources);
    let started = std::time::Instant::now();
    let got = resolver.resolve(&ct111(), "10.9.9.9", false).await;
    assert_eq!((got.addresses, got.problem), (ips(&["10.9.9.9"]), None));
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn addresses_that_no_node_can_have_are_not_dialled() {
    let dns = fake_dns(|_, reply| {
        reply.metadata.response_code = ResponseCode::NXDomain;
        true
    })
    .await;
    let (_folder, sources) =
        host_files(Some(dns.address), "127.0.0.1 here.lan\n169.254.169.254 metadata.lan\n");
    let resolver = resolver(&[dns.address], sources);
    for host in ["169.254.169.254", "0.0.0.0", "127.0.0.1", "here.lan", "metadata.lan"] {
        let got = resolver.resolve(&ct111(), host, false).await;
        assert!(got.addresses.is_empty() && got.problem.is_some(), "{host}: {got:?}");
    }
    for host in ["127.0.0.1", "here.lan"] {
        assert_eq!(resolver.resolve(&ct111(), host, true).await.addresses, ips(&["127.0.0.1"]), "{host}");
    }
}

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use mesh_shared::NodeName;

use super::zone::ZoneNode;
use mesh_shared::config::Config;

use super::*;
use crate::state::own_claims;

fn zone(agents: usize) -> Zone {
    let own: NodeName = "ct110".parse().unwrap();
    let node = ZoneNode {
        name: own.clone(),
        known: true,
        addresses: Some(vec!["192.168.10.110".parse().unwrap()]),
        port: 3000,
        agents: (0..agents).map(|i| format!("agent-number-{i}")).collect(),
        healthy: true,
    };
    Zone::new(own, 1, [node])
}

fn query(kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Query::query("ct110.mesh.".parse::<Name>().unwrap(), kind));
    message.to_vec().unwrap()
}

async fn ask_udp(server: SocketAddr, request: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(request, server).await.unwrap();
    let mut reply = [0; 4096];
    let (length, _) = socket.recv_from(&mut reply).await.unwrap();
    Message::from_vec(&reply[..length]).unwrap()
}

#[tokio::test]
async fn udp_and_tcp_answer_on_one_port_as_the_zone_changes() {
    let server = DnsServer::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = server.local_addr();
    let (publish, zones) = watch::channel(None);
    let running = tokio::spawn(server.run(zones, state(), 8));

    assert_eq!(ask_udp(address, &query(RecordType::A)).await.metadata.response_code, ResponseCode::ServFail);
    publish.send_replace(Some(zone(60)));
    assert_eq!(ask_udp(address, &query(RecordType::A)).await.answers.len(), 1);
    assert!(ask_udp(address, &query(RecordType::TXT)).await.metadata.truncation);

    // Two requests in one go, both answered, in order.
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut requests = Vec::new();
    for kind in [RecordType::TXT, RecordType::A] {
        let request = query(kind);
        requests.extend((request.len() as u16).to_be_bytes());
        requests.extend(request);
    }
    stream.write_all(&requests).await.unwrap();
    for kind in [RecordType::TXT, RecordType::A] {
        let mut reply = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut reply).await.unwrap();
        let reply = Message::from_vec(&reply).unwrap();
        assert!(!reply.metadata.truncation);
        assert_eq!(reply.answers[0].record_type(), kind);
    }
    running.abort();
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_key_and_address_also_where_udp_is_shared() {
    let first = DnsServer::bind("127.0.77.1:5353".parse().unwrap()).await.unwrap();
    let error = DnsServer::bind(first.local_addr()).await.unwrap_err().to_string();
    for part in ["registryd.dns.listen", "127.0.77.1:5353", "name another address or port"] {
        assert!(error.contains(part), "{error}");
    }
    let elsewhere = DnsServer::bind("192.0.2.1:5353".parse().unwrap()).await.unwrap_err().to_string();
    assert!(elsewhere.contains("this host has no such address"), "{elsewhere}");
}

fn state() -> Arc<State> {
    let config = Config::parse("mesh: {enabled: true, node_name: ct110, tls: true}").unwrap();
    let own = own_claims(&config);
    Arc::new(State::new(Arc::new(config), own))
}

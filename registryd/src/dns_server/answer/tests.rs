use std::str::FromStr;

use hickory_proto::rr::{Name, RData};

use super::super::zone::{ZoneNode, arpa_name};
use super::*;

fn node(name: &str, addresses: &[&str], agents: &[&str]) -> ZoneNode {
    ZoneNode {
        name: name.parse().unwrap(),
        known: true,
        addresses: Some(addresses.iter().map(|a| a.parse().unwrap()).collect()),
        port: 3000,
        agents: agents.iter().map(|a| a.to_string()).collect(),
        healthy: true,
    }
}

fn zone() -> Zone {
    let pending = ZoneNode { addresses: None, ..node("ct113", &[], &[]) };
    let nodes = [
        node("ct110", &["192.168.10.110", "fd00::110"], &["opus", "grok"]),
        node("ct111", &["192.168.10.111"], &[]),
        pending,
    ];
    Zone::new("ct110".parse().unwrap(), 7, nodes)
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    message
}

fn ask_with(zone: Option<&Zone>, message: &Message, transport: Transport) -> Message {
    Message::from_vec(&answer(zone, &message.to_vec().unwrap(), transport).unwrap()).unwrap()
}

fn ask(name: &str, kind: RecordType) -> Message {
    ask_with(Some(&zone()), &query(name, kind), Transport::Udp)
}

fn texts(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

#[test]
fn every_record_type_is_answered_from_the_zone() {
    assert_eq!(texts(&ask("ct110.mesh.", RecordType::A)), ["192.168.10.110"]);
    assert_eq!(texts(&ask("ct110.mesh.", RecordType::AAAA)), ["fd00::110"]);
    assert_eq!(texts(&ask("ct110.mesh.", RecordType::SRV)), ["0 0 3000 ct110.mesh."]);
    assert_eq!(texts(&ask("_mesh._tcp.ct110.mesh.", RecordType::SRV)), ["0 0 3000 ct110.mesh."]);
    assert_eq!(texts(&ask("mesh.", RecordType::NS)), ["ct110.mesh."]);
    assert_eq!(texts(&ask("mesh.", RecordType::SOA)), ["ct110.mesh. hostmaster.mesh. 7 60 10 3600 5"]);
    assert_eq!(texts(&ask("110.10.168.192.in-addr.arpa.", RecordType::PTR)), ["ct110.mesh."]);
    let reverse = arpa_name("fd00::110".parse().unwrap()).to_string();
    assert_eq!(texts(&ask(&reverse, RecordType::PTR)), ["ct110.mesh."]);
    let txt = ask("ct110.mesh.", RecordType::TXT);
    let RData::TXT(txt) = &txt.answers[0].data else { panic!("no TXT") };
    let strings: Vec<_> = txt.txt_data.iter().map(|s| String::from_utf8_lossy(s)).collect();
    assert_eq!(strings, ["agent=opus", "agent=grok"]);
}

#[test]
fn answers_are_authoritative_and_keep_the_case_of_the_question() {
    let reply = ask("CT110.Mesh.", RecordType::A);
    assert!(reply.metadata.authoritative && !reply.metadata.recursion_available);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(reply.answers[0].name.eq_case(&Name::from_str("CT110.Mesh.").unwrap()));
    assert_eq!(reply.answers[0].ttl, TTL);
}

#[test]
fn what_is_not_there_is_nxdomain_or_no_data_with_the_soa() {
    for (name, kind, code) in [
        ("ct999.mesh.", RecordType::A, ResponseCode::NXDomain),
        ("a.ct110.mesh.", RecordType::A, ResponseCode::NXDomain),
        ("_tcp.ct999.mesh.", RecordType::SRV, ResponseCode::NXDomain),
        ("ct110.mesh.", RecordType::MX, ResponseCode::NoError),
        ("ct111.mesh.", RecordType::AAAA, ResponseCode::NoError),
        ("ct111.mesh.", RecordType::TXT, ResponseCode::NoError),
        ("_tcp.ct110.mesh.", RecordType::A, ResponseCode::NoError),
        ("mesh.", RecordType::A, ResponseCode::NoError),
    ] {
        let reply = ask(name, kind);
        assert_eq!(reply.metadata.response_code, code, "{name} {kind}");
        assert!(reply.answers.is_empty() && reply.metadata.authoritative, "{name} {kind}");
        assert_eq!(reply.authorities[0].record_type(), RecordType::SOA, "{name} {kind}");
    }
}

#[test]
fn what_is_not_known_yet_is_servfail_never_nxdomain() {
    assert_eq!(ask("ct113.mesh.", RecordType::A).metadata.response_code, ResponseCode::ServFail);
    assert_eq!(ask("ct113.mesh.", RecordType::SRV).metadata.response_code, ResponseCode::NoError);
    for (name, code) in [
        ("ct110.mesh.", ResponseCode::ServFail),
        ("mesh.", ResponseCode::ServFail),
        ("110.10.168.192.in-addr.arpa.", ResponseCode::ServFail),
        ("example.org.", ResponseCode::Refused),
    ] {
        let reply = ask_with(None, &query(name, RecordType::A), Transport::Udp);
        assert_eq!(reply.metadata.response_code, code, "{name}");
    }
}

#[test]
fn everything_outside_is_refused() {
    for name in ["example.org.", ".", "mesh.example.", "9.9.9.9.in-addr.arpa.", "amesh."] {
        let reply = ask(name, RecordType::PTR);
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused, "{name}");
        assert!(!reply.metadata.authoritative);
    }
    assert_eq!(ask("mesh.", RecordType::AXFR).metadata.response_code, ResponseCode::Refused);
    let mut chaos = query("version.mesh.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(ask_with(Some(&zone()), &chaos, Transport::Udp).metadata.response_code, ResponseCode::Refused);
}

#[test]
fn a_large_answer_is_truncated_over_udp_and_complete_over_tcp() {
    let agents: Vec<String> = (0..60).map(|i| format!("agent-number-{i}")).collect();
    let agents: Vec<&str> = agents.iter().map(String::as_str).collect();
    let zone = Zone::new("ct1".parse().unwrap(), 1, [node("ct1", &["10.0.0.1"], &agents)]);
    let mut message = query("ct1.mesh.", RecordType::TXT);
    let plain = ask_with(Some(&zone), &message, Transport::Udp);
    assert!(plain.metadata.truncation && plain.answers.is_empty() && plain.queries.len() == 1);
    let full = ask_with(Some(&zone), &message, Transport::Tcp);
    assert!(!full.metadata.truncation && full.answers.len() == 1);

    // 60 strings of about 22 bytes are more than 1232 as well; 40 are not.
    let zone = Zone::new("ct1".parse().unwrap(), 1, [node("ct1", &["10.0.0.1"], &agents[..40])]);
    assert!(ask_with(Some(&zone), &message, Transport::Udp).metadata.truncation);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    message.set_edns(edns);
    let reply = ask_with(Some(&zone), &message, Transport::Udp);
    assert!(!reply.metadata.truncation && reply.answers.len() == 1);
    assert_eq!(reply.edns.as_ref().map(Edns::max_payload), Some(UDP_PAYLOAD_MAX));
}

#[test]
fn additional_records_give_way_before_truncation() {
    let addresses: Vec<String> = (1..=60).map(|i| format!("10.0.0.{i}")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let zone = Zone::new("ct1".parse().unwrap(), 1, [node("ct1", &addresses, &[])]);
    let reply = ask_with(Some(&zone), &query("ct1.mesh.", RecordType::SRV), Transport::Udp);
    assert!(!reply.metadata.truncation && reply.answers.len() == 1 && reply.additionals.is_empty());
}

#[test]
fn any_is_answered_over_tcp_only() {
    let message = query("ct110.mesh.", RecordType::ANY);
    assert!(ask_with(Some(&zone()), &message, Transport::Udp).metadata.truncation);
    assert_eq!(ask_with(Some(&zone()), &message, Transport::Tcp).answers.len(), 4);
}

#[test]
fn odd_requests_get_the_code_that_says_so() {
    let code = |bytes: &[u8]| {
        Message::from_vec(&answer(Some(&zone()), bytes, Transport::Udp).unwrap())
            .unwrap()
            .metadata
            .response_code
    };
    let good = query("ct110.mesh.", RecordType::A).to_vec().unwrap();

    let mut update = good.clone();
    update[2] = 5 << 3;
    assert_eq!(code(&update), ResponseCode::NotImp);
    let mut unassigned = good.clone();
    unassigned[2] = 15 << 3;
    assert_eq!(code(&unassigned), ResponseCode::NotImp);

    let mut two = query("ct110.mesh.", RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&two.to_vec().unwrap()), ResponseCode::FormErr);
    let mut none = good.clone();
    none[5] = 0;
    assert_eq!(code(&none), ResponseCode::FormErr);
    let mut many = good.clone();
    many[4..6].copy_from_slice(&[0xff, 0xff]);
    assert_eq!(code(&many), ResponseCode::FormErr);
    assert_eq!(code(&good[..good.len() - 3]), ResponseCode::FormErr);

    let mut newer = query("ct110.mesh.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    newer.set_edns(edns);
    let reply = ask_with(Some(&zone()), &newer, Transport::Udp);
    // 16 is both BADVERS and BADSIG.
    assert_eq!(u16::from(reply.metadata.response_code), 16);
    assert_eq!(reply.edns.unwrap().version(), 0);

    assert_eq!(answer(Some(&zone()), &good[..11], Transport::Udp), None);
    let mut response = good.clone();
    response[2] |= 0x80;
    assert_eq!(answer(Some(&zone()), &response, Transport::Udp), None);
}

#[test]
fn of_two_nodes_with_one_name_the_first_counts() {
    let zone = Zone::new(
        "a".parse().unwrap(),
        1,
        [node("ct1", &["10.0.0.1"], &[]), node("ct1", &["10.0.0.2"], &[])],
    );
    let reply = ask_with(Some(&zone), &query("ct1.mesh.", RecordType::A), Transport::Udp);
    assert_eq!(texts(&reply), ["10.0.0.1"]);
    let reply = ask_with(Some(&zone), &query("2.0.0.10.in-addr.arpa.", RecordType::PTR), Transport::Udp);
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
}

#[test]
fn an_agent_leads_to_the_nodes_that_take_its_tasks() {
    let sick = ZoneNode { healthy: false, ..node("ct112", &["10.0.0.112"], &["grok", "sick.one"]) };
    let nodes = [
        node("ct110", &["10.0.0.110", "fd00::110"], &["opus", "grok"]),
        node("ct111", &["10.0.0.111"], &["Grok"]),
        sick,
    ];
    let zone = Zone::new("ct110".parse().unwrap(), 7, nodes);
    let ask = |name: &str, kind| ask_with(Some(&zone), &query(name, kind), Transport::Udp);
    assert_eq!(texts(&ask("grok.agent.mesh.", RecordType::A)), ["10.0.0.110", "10.0.0.111"]);
    assert_eq!(texts(&ask("GROK.Agent.mesh.", RecordType::AAAA)), ["fd00::110"]);
    let srv = ["0 0 3000 ct110.mesh.", "0 0 3000 ct111.mesh."];
    assert_eq!(texts(&ask("grok.agent.mesh.", RecordType::SRV)), srv);
    assert_eq!(texts(&ask("_mesh._tcp.grok.agent.mesh.", RecordType::SRV)), srv);
    for (name, code) in [
        // Hosted, by nobody who takes its tasks now.
        ("sick.one.agent.mesh.", ResponseCode::NoError),
        ("agent.mesh.", ResponseCode::NoError),
        ("_tcp.grok.agent.mesh.", ResponseCode::NoError),
        ("nobody.agent.mesh.", ResponseCode::NXDomain),
        ("_mesh._tcp.agent.mesh.", ResponseCode::NXDomain),
    ] {
        let reply = ask(name, RecordType::A);
        assert_eq!((reply.metadata.response_code, reply.answers.len()), (code, 0), "{name}");
    }
    // A node of that name is still found.
    let zone = Zone::new("agent".parse().unwrap(), 1, [node("agent", &["10.0.0.1"], &["opus"])]);
    for name in ["agent.mesh.", "opus.agent.mesh."] {
        let reply = ask_with(Some(&zone), &query(name, RecordType::A), Transport::Udp);
        assert_eq!(texts(&reply), ["10.0.0.1"], "{name}");
    }
}

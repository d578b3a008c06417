//! How the DNS server answers: from bytes to bytes, no socket.

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use mesh_shared::name::MESH_ZONE;

use super::zone::{TTL, Zone};

/// The largest UDP answer, in bytes: fits an unfragmented IPv6 packet (DNS flag day 2020).
const UDP_PAYLOAD_MAX: u16 = 1232;
/// The largest UDP answer to a client without EDNS, in bytes (RFC 1035, 4.2.1).
const UDP_PAYLOAD_PLAIN: u16 = 512;

/// How a request came in; decides how large the answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A datagram; an answer that is too large is marked as truncated.
    Udp,
    /// A connection; the answer is complete.
    Tcp,
}

/// Answers one request, whatever its bytes are; `zone` is `None` while nothing is known yet.
///
/// `None` where an answer would be wrong: not even a DNS header, or itself an answer (two servers would
/// otherwise talk to each other forever).
pub fn answer(zone: Option<&Zone>, request: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let header = Header::read(&mut BinDecoder::new(request)).ok()?;
    if header.message_type == MessageType::Response {
        return None;
    }
    let mut reply = Message::response(header.id, header.op_code);
    reply.metadata = Metadata::response_from_request(&header.metadata);
    let mut limit = match transport {
        Transport::Udp => UDP_PAYLOAD_PLAIN,
        Transport::Tcp => u16::MAX,
    };
    // The count is checked before the body is decoded: it decides how much the decoder allocates.
    if header.op_code != OpCode::Query {
        reply.metadata.response_code = ResponseCode::NotImp;
        return encode(reply, limit);
    }
    let query = match header.counts.queries {
        1 => Message::from_vec(request).ok(),
        _ => None,
    };
    let Some((question, edns)) =
        query.and_then(|query| Some((query.queries.into_iter().next()?, query.edns)))
    else {
        reply.metadata.response_code = ResponseCode::FormErr;
        return encode(reply, limit);
    };
    reply.add_query(question.clone());
    if let Some(edns) = edns {
        let mut own = Edns::new();
        own.set_max_payload(UDP_PAYLOAD_MAX);
        reply.set_edns(own);
        if transport == Transport::Udp {
            limit = edns.max_payload().clamp(UDP_PAYLOAD_PLAIN, UDP_PAYLOAD_MAX);
        }
        if edns.version() > 0 {
            reply.metadata.response_code = ResponseCode::BADVERS;
            return encode(reply, limit);
        }
    }
    fill(&mut reply, zone, &question, transport);
    encode(reply, limit)
}

fn fill(reply: &mut Message, zone: Option<&Zone>, question: &Query, transport: Transport) {
    let (name, kind) = (question.name(), question.query_type());
    let meta = &mut reply.metadata;
    if question.query_class() != DNSClass::IN || matches!(kind, RecordType::AXFR | RecordType::IXFR) {
        meta.response_code = ResponseCode::Refused;
        return;
    }
    let Some(zone) = zone else {
        let top = name.iter().next_back();
        let ours = top.is_some_and(|top| {
            [MESH_ZONE, "arpa"].iter().any(|zone| top.eq_ignore_ascii_case(zone.as_bytes()))
        });
        meta.response_code = if ours { ResponseCode::ServFail } else { ResponseCode::Refused };
        return;
    };
    if kind == RecordType::ANY && transport == Transport::Udp && !zone.is_outside(name) {
        // Everything at once only over a connection, whose address cannot be forged (RFC 8482, 4.4).
        meta.truncation = true;
        return;
    }
    match zone.say(name, kind) {
        Ok(said) => {
            // The name as it was asked, in that case: some resolvers compare.
            let record = |data| Record::from_rdata(name.clone(), TTL, data);
            reply.answers = said.answers.into_iter().map(record).collect();
            reply.additionals = said.additionals;
        }
        Err(code) => {
            meta.response_code = code;
            if code != ResponseCode::NXDomain {
                return;
            }
        }
    }
    meta.authoritative = true;
    if reply.answers.is_empty() {
        reply.authorities.push(zone.soa());
    }
}

/// The bytes of a reply that fits `limit`: complete, or else without additional records (nobody needs them), or
/// else empty and marked as truncated, so that the client comes back over TCP.
fn encode(mut reply: Message, limit: u16) -> Option<Vec<u8>> {
    let fits = |reply: &Message| reply.to_vec().ok().filter(|bytes| bytes.len() <= usize::from(limit));
    if let Some(bytes) = fits(&reply) {
        return Some(bytes);
    }
    reply.additionals.clear();
    fits(&reply).or_else(|| fits(&reply.truncate()))
}

#[cfg(test)]
mod tests;

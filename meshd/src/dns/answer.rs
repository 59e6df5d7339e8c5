//! From a question to what is done with it: plain, without sockets. Nothing in a question can make it panic.

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use hickory_proto::serialize::binary::BinDecoder;
use mesh_core::plan::Names;

use super::upstream::Over;

/// What is done with a message.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Nothing: it is no question.
    Drop,
    /// This is the answer.
    Reply(Vec<u8>),
    /// The resolvers are asked. Where they do not know the name, this is the answer, if there is one.
    Forward(Option<Vec<u8>>),
}

/// Decides about a message. `search` are the suffixes that callers' resolvers append to short names.
pub(super) fn decide(bytes: &[u8], names: &Names, search: &[String], ttl: Duration, over: Over) -> Verdict {
    if bytes.len() < HEADER || bytes[2] & QR != 0 {
        return Verdict::Drop;
    }
    if bytes[4..6] != [0, 1] {
        return Verdict::Forward(None);
    }
    let Some(query) = question_of(bytes) else {
        return Verdict::Reply(header_only(bytes, ResponseCode::FormErr));
    };
    let is_query = bytes[2] & OPCODE == 0;
    if !is_query || !matches!(query.query_class(), DNSClass::IN | DNSClass::ANY) {
        return Verdict::Forward(None);
    }
    let name = query.name().to_ascii().to_ascii_lowercase();
    let name = name.trim_end_matches('.');
    if let Some(addresses) = names.find(name) {
        return Verdict::Reply(reply(bytes, &query, addresses, ttl, over));
    }
    // A short name with a search suffix may as well be the name of a real host: that one comes first.
    let short = search.iter().filter_map(|suffix| name.strip_suffix(suffix.as_str())?.strip_suffix('.'));
    let addresses = short.into_iter().find_map(|short| names.exact.get(short));
    Verdict::Forward(addresses.map(|addresses| reply(bytes, &query, addresses, ttl, over)))
}

/// Reads the one question of a message. What follows it may be of kinds that are not read here.
pub(super) fn question_of(message: &[u8]) -> Option<Query> {
    let mut decoder = BinDecoder::new(message);
    decoder.read_slice(HEADER).ok()?;
    Message::read_queries(&mut decoder, 1).ok()?.pop()
}

/// Returns SERVFAIL to a question.
pub(super) fn failure(question: &[u8]) -> Vec<u8> {
    header_only(question, ResponseCode::ServFail)
}

/// Whether a reply says that the name does not exist.
pub(super) fn is_unknown_name(reply: &[u8]) -> bool {
    reply_code(reply) == Some(u16::from(ResponseCode::NXDomain))
}

/// Returns the response code of a reply, without the upper bits of EDNS.
pub(super) fn reply_code(reply: &[u8]) -> Option<u16> {
    reply.get(3).map(|flags| u16::from(flags & 0x0f))
}

/// Writes the addresses of the family asked for; none for other types, which is NODATA: the name exists.
fn reply(bytes: &[u8], query: &Query, addresses: &[IpAddr], ttl: Duration, over: Over) -> Vec<u8> {
    let Ok(question) = Message::from_vec(bytes) else { return header_only(bytes, ResponseCode::FormErr) };
    let mut reply = Message::response(question.metadata.id, OpCode::Query);
    reply.metadata.recursion_desired = question.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.authoritative = true;
    reply.add_query(query.clone());
    let ttl = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
    let wanted = addresses.iter().filter_map(|address| match (query.query_type(), address) {
        (RecordType::A, IpAddr::V4(address)) => Some(RData::A((*address).into())),
        (RecordType::AAAA, IpAddr::V6(address)) => Some(RData::AAAA((*address).into())),
        _ => None,
    });
    let records = wanted.take(MAX_ANSWERS).map(|data| Record::from_rdata(query.name().clone(), ttl, data));
    reply.add_answers(records);
    if question.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP);
        reply.set_edns(edns);
    }
    let most = match over {
        Over::Udp => question.edns.as_ref().map_or(PLAIN_UDP, Edns::max_payload).clamp(PLAIN_UDP, MAX_UDP),
        Over::Tcp => u16::MAX,
    };
    let fits = |bytes: &Vec<u8>| bytes.len() <= usize::from(most);
    let whole = reply.to_vec().ok().filter(fits);
    let shortened = || reply.truncate().to_vec().ok();
    whole.or_else(shortened).unwrap_or_else(|| header_only(bytes, ResponseCode::ServFail))
}

/// Writes a reply without any section: what can be said about a question that cannot be read.
fn header_only(question: &[u8], code: ResponseCode) -> Vec<u8> {
    let id = [question.first().copied().unwrap_or(0), question.get(1).copied().unwrap_or(0)];
    let mut reply = Message::error_msg(u16::from_be_bytes(id), OpCode::Query, code);
    reply.metadata.message_type = MessageType::Response;
    reply.metadata.recursion_available = true;
    reply.metadata.recursion_desired = question.get(2).is_some_and(|flags| flags & RD != 0);
    // The question goes along where it can be read: some callers look at nothing else.
    reply.add_queries(question_of(question));
    reply.to_vec().unwrap_or_default()
}

/// Length of a header (RFC 1035, section 4.1.1).
const HEADER: usize = 12;
/// "This is a response", in the third byte.
const QR: u8 = 0x80;
/// The kind of query, in the third byte; 0 is the ordinary one.
const OPCODE: u8 = 0x78;
/// "Recursion desired", in the third byte.
const RD: u8 = 0x01;
/// Longest datagram without EDNS (RFC 1035, section 4.2.1).
const PLAIN_UDP: u16 = 512;
/// Longest datagram that is not fragmented anywhere (DNS flag day 2020).
const MAX_UDP: u16 = 1232;
/// Most addresses in an answer: more help no caller.
const MAX_ANSWERS: usize = 64;

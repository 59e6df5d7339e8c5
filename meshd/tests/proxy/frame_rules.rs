//! The rules of HTTP/2 frame by frame, as callers and as other hosts meet them: what RFC 9113 and RFC 7541 call an error
//! ends the stream or the connection with the code they name, and what they allow is answered. The titles are those of
//! summerwind/h2spec (2.6.0), in its order; each case says what it expects of its own.

use mesh_core::identity::sni;
use mesh_proto::registration::Protocol;
use meshd::transport::{Dialer, Expect, HopTarget, LinkStream, SocketOptions, Transport, dial_hop};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::bad_frames::*;
use super::hop::{Authority, HOST, destination, workload};
use super::lab::*;
use super::plan::*;

mod allowed;
mod broken;

/// What must come of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Stream 1 is answered with 200.
    Answer,
    /// A PING behind it is answered, and nothing has ended.
    Alive,
    /// Its stream is reset with this code.
    Reset(u32),
    /// The connection ends with this code, or with PROTOCOL_ERROR: the parser does not always name the more specific one.
    Goaway(u32),
    /// One or the other, with this code: RFC 9113 lets an endpoint treat a stream's error as its connection's.
    Either(u32),
    /// The first frame is SETTINGS.
    SettingsFirst,
    /// A SETTINGS is acknowledged.
    Acknowledged,
    /// A PING is answered in its own words, once.
    Echo,
    /// The first DATA of the answer is of so many bytes.
    Data(usize),
    /// The connection ends, however.
    Ended,
}
use Wanted::*;

/// Its title, what is sent, what must come of it.
struct Case(&'static str, Vec<Step>, Wanted);

/// What is done, one after the other.
enum Step {
    Send(Vec<u8>),
    /// Reads until stream 1 has ended at the other side.
    Answered,
    /// Reads until DATA has come.
    Began,
}

/// Everything is sent at once.
fn case(title: &'static str, frames: &[Vec<u8>], wanted: Wanted) -> Case {
    Case(title, vec![Step::Send(frames.concat())], wanted)
}

/// The last part is sent when a window of 1 is full.
fn after_one(title: &'static str, then: &[Vec<u8>], wanted: Wanted) -> Case {
    let first = [settings_of(&[(4, 1)]), get(1)].concat();
    Case(title, vec![Step::Send(first), Step::Began, Step::Send(then.concat())], wanted)
}

/// The last part is sent when stream 1 is over.
fn after_answer(title: &'static str, first: Vec<u8>, then: Vec<u8>, wanted: Wanted) -> Case {
    Case(title, vec![Step::Send(first), Step::Answered, Step::Send(then)], wanted)
}

fn get(id: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, id, &get_block(&[]))
}

/// One that is not answered at once.
fn slow_get(id: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, id, &get_block(&[("x-want-delay-ms", "700")]))
}

fn post_block(more: &[(&str, &str)]) -> Vec<u8> {
    let usual = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "reviews")];
    block(&[&usual, more, &[INSTANCE]].concat())
}

fn post(id: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, id, &post_block(&[]))
}

fn data(id: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    frame(DATA, flags, id, payload)
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

fn settings_of(pairs: &[(u16, u32)]) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &pairs.iter().flat_map(|(id, value)| setting(*id, *value)).collect::<Vec<_>>())
}

fn window(id: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, id, &by.to_be_bytes())
}

fn reset(id: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, id, &code.to_be_bytes())
}

fn priority(id: u32, on: u32, weight: u8) -> Vec<u8> {
    frame(PRIORITY, 0, id, &[&on.to_be_bytes()[..], &[weight]].concat())
}

/// A GET whose block ends in these octets of HPACK.
fn encoded(octets: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, &[&get_block(&[]), octets].concat())
}

/// The octets in front of the fields.
fn encoded_first(octets: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, &[octets, &get_block(&[])].concat())
}

fn head(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(fields))
}

/// A head without one of the usual fields, with others.
fn head_without(name: &str, more: &[(&'static str, &'static str)]) -> Vec<u8> {
    let all = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "reviews")];
    let kept = all.into_iter().filter(|(kept, _)| *kept != name);
    head(&kept.chain(more.iter().copied()).chain([INSTANCE]).collect::<Vec<_>>())
}

fn all() -> Vec<Case> {
    [allowed::cases(), broken::connections(), broken::frames(), broken::requests()]
        .into_iter()
        .flatten()
        .collect()
}

/// A frame that was read.
struct Frame {
    kind: u8,
    flags: u8,
    id: u32,
    payload: Vec<u8>,
}

async fn next(read: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let mut header = [0; 9];
    read.read_exact(&mut header).await.ok()?;
    let [a, b, c, kind, flags, id @ ..] = header;
    let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
    read.read_exact(&mut payload).await.ok()?;
    Some(Frame { kind, flags, id: u32::from_be_bytes(id), payload })
}

fn code_at(payload: &[u8], at: usize) -> u32 {
    payload.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(u32::MAX, u32::from_be_bytes)
}

/// What came of it: the first frame that decides, as [`Wanted`] has it.
async fn outcome(
    steps: Vec<Step>,
    wanted: Wanted,
    stream: impl AsyncRead + AsyncWrite,
) -> Result<(), String> {
    let (mut read, mut write) = tokio::io::split(Box::pin(stream));
    let mut seen = Vec::new();
    let mut begin = opening();
    for step in steps {
        match step {
            Step::Send(frames) => {
                begin.extend(frames);
                // What was refused may be closed already.
                let _ = write.write_all(&std::mem::take(&mut begin)).await;
            }
            Step::Answered | Step::Began => loop {
                let frame = next(&mut read).await.ok_or("ended before its answer")?;
                let is_last = frame.id == 1 && frame.flags & END_STREAM != 0 && frame.kind <= HEADERS;
                if is_last || (matches!(step, Step::Began) && frame.kind == DATA) {
                    break;
                }
            },
        }
    }
    if matches!(wanted, Alive | Echo) {
        let _ = write.write_all(&frame(PING, 0, 0, b"are you?")).await;
    }
    let _ = write.flush().await;
    while let Some(frame) = next(&mut read).await {
        seen.push((frame.kind, frame.flags, frame.id, frame.payload.len()));
        let is_first = seen.len() == 1;
        let got = match frame.kind {
            SETTINGS if is_first && wanted == SettingsFirst && frame.flags & ACK == 0 => SettingsFirst,
            // Of ours there are two, the one at the beginning included.
            SETTINGS if frame.flags & ACK != 0 => {
                let acknowledged =
                    seen.iter().filter(|frame| frame.0 == SETTINGS && frame.1 & ACK != 0).count();
                if acknowledged == 2 && wanted == Acknowledged { Acknowledged } else { continue }
            }
            PING if frame.flags & ACK != 0 && frame.payload == b"are you?" => {
                if wanted == Echo {
                    Echo
                } else {
                    Alive
                }
            }
            PING if frame.flags & ACK != 0 && wanted == Echo => return Err(format!("{:?}", frame.payload)),
            GOAWAY => Goaway(code_at(&frame.payload, 4)),
            RST_STREAM => Reset(code_at(&frame.payload, 0)),
            HEADERS if matches!(wanted, Data(_)) => continue,
            HEADERS if frame.payload.contains(&0x88) => Answer,
            DATA if matches!(wanted, Data(_) | Alive) => Data(frame.payload.len()),
            _ => continue,
        };
        let fits = match wanted {
            Either(code) => [Reset(code), Goaway(code), Goaway(PROTOCOL_ERROR)].contains(&got),
            Ended if matches!(got, Goaway(_)) => continue,
            Goaway(_) if got == Answer => continue,
            Goaway(code) => [Goaway(code), Goaway(PROTOCOL_ERROR)].contains(&got),
            wanted => got == wanted,
        };
        return if fits { Ok(()) } else { Err(format!("{got:?}")) };
    }
    if wanted == Ended { Ok(()) } else { Err(format!("ended after {seen:?}")) }
}

async fn judge(case: Case, stream: impl AsyncRead + AsyncWrite) -> Option<String> {
    let Case(title, steps, wanted) = case;
    let outcome = tokio::time::timeout(LIMIT, outcome(steps, wanted, stream)).await;
    let told = outcome.unwrap_or_else(|_| Err("nothing".into())).err()?;
    Some(format!("{title}: wanted {wanted:?}, got {told}"))
}

#[tokio::test]
async fn callers_are_told_what_the_rules_of_frames_say() {
    let backend = Backend::http1("v1").await;
    let lab = start(plan(vec![("*", vec![simple(cluster("reviews", vec![local(backend.address)]))])]));
    let mut wrong = Vec::new();
    for case in all() {
        let stream = TcpStream::connect(lab.address).await.expect("a connection");
        wrong.extend(judge(case, stream).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn other_hosts_are_told_what_the_rules_of_frames_say() {
    let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
    let there = destination(&authority, backend.address, Protocol::Http, Transport::Tcp);
    let mut wrong = Vec::new();
    for case in all() {
        wrong.extend(judge(case, hop(&authority, &there).await).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A hop of our own making: what another host may send, whatever program it runs.
pub(super) async fn hop(authority: &Authority, there: &Lab) -> LinkStream {
    let dialer = Dialer::new(authority.credentials(&["web"]), SocketOptions::default());
    let (expect, from) = (Expect::Identity(workload("reviews")), workload("web"));
    let sni = sni::format(PORT, "", HOST);
    let target = HopTarget {
        address: there.address,
        sni: &sni,
        expect: &expect,
        from: &from,
        transport: Transport::Tcp,
    };
    dial_hop(&dialer, target).await.expect("a hop")
}

#[tokio::test]
async fn a_preface_that_is_none_is_no_http2() {
    let backend = Backend::http1("v1").await;
    let lab = start(plan(vec![("*", vec![simple(cluster("reviews", vec![local(backend.address)]))])]));
    // h2spec's 3.5: on a port that speaks both it is a bad request of HTTP/1.
    let read = bytes(lab.address, b"INVALID CONNECTION PREFACE\r\n\r\n").await;
    assert!(read.starts_with("HTTP/1.1 400 ") && read.contains("connection: close"), "{read:?}");

    let authority = Authority::new();
    let there = destination(&authority, backend.address, Protocol::Http, Transport::Tcp);
    let mut hop = hop(&authority, &there).await;
    hop.write_all(b"INVALID CONNECTION PREFACE\r\n\r\n").await.expect("open");
    hop.flush().await.expect("open");
    let mut read = Vec::new();
    let end = tokio::time::timeout(LIMIT, hop.read_to_end(&mut read)).await;
    assert!(end.is_ok(), "it stays open");
}

const PADDED: u8 = 8;
const PRIORITIZED: u8 = 0x20;
const ACK: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

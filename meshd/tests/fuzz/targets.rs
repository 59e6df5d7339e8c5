//! What is fuzzed, with what it begins from.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Cursor;
use std::sync::Arc;

use mesh_core::compile;
use mesh_core::endpoint::Moment;
use mesh_core::explain::explain;
use mesh_core::plan::{Names, Node, Plan, Workload};
use mesh_core::wire::guard::Limits;
use mesh_core::wire::http2::{FrameLimits, Frames};
use mesh_core::wire::{client_hello as hello, http1 as guard, sniff as sniffing};
use mesh_core::world::World;
use mesh_proto::command::{HostId, Revision};
use mesh_proto::explain::Ask;
use mesh_proto::registration::Registration;
use mesh_proto::value::Labels;
use mesh_proto::watch::{Change, Stored};
use mesh_proto::yaml;
use meshd::transport::FrameStream;

/// Every file of rules that we have: examples, and the rules of the golden cases.
pub(super) fn rules() -> Vec<Vec<u8>> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.join("../examples"), root.join("core/cases")];
    while let Some(folder) = folders.pop() {
        let mut paths: Vec<_> = std::fs::read_dir(&folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "yaml") {
                let text = std::fs::read_to_string(&path).expect("a text");
                found.push(rules_of(&text).into_bytes());
            }
        }
    }
    assert!(found.len() > 20, "{} files", found.len());
    found
}

/// The indented block behind `rules: |`, else all of the text.
fn rules_of(text: &str) -> String {
    let Some((_, behind)) = text.split_once("\nrules: |\n") else { return text.to_owned() };
    let block = behind.lines().take_while(|line| line.is_empty() || line.starts_with("  "));
    block.flat_map(|line| [line.get(2..).unwrap_or_default(), "\n"]).collect()
}

pub(super) const YAML_WORDS: &[&[u8]] = &[
    b"\n---\n",
    b"&a ",
    b"*a",
    b"<<: *a",
    b"[",
    b"]",
    b"{",
    b"}",
    b": ",
    b"- ",
    b"\n",
    b"\t",
    b"\"",
    b"'",
    b"|\n",
    b"*",
    b".",
    b"~",
    b"null",
    b"true",
    b"!!binary ",
    b"%",
    b"\xef\xbb\xbf",
    b"\0",
    b"\xff",
    b"spec:",
    b"metadata: {name: a}",
    b"hosts: ['*.example.com']",
    b"exportTo: ['.']",
    b"delegate: {name: a}",
    b"regex: '(a|b)*'",
    b"subset: v1",
    b"port: {number: 80}",
    b"kind: VirtualService",
    b"kind: DestinationRule",
    b"kind: ServiceEntry",
    b"kind: Sidecar",
    b"kind: Gateway",
    b"kind: WorkloadGroup",
    b"kind: PeerAuthentication",
    b"kind: AuthorizationPolicy",
    b"kind: RequestAuthentication",
    b"kind: Telemetry",
    b"portLevelMtls: {80: {mode: STRICT}}",
    b"rules: [{from: [{source: {serviceAccounts: [a/b]}}], to: [{operation: {paths: ['/{*}']}}]}]",
    b"when: [{key: 'request.headers[a]', values: ['*']}]",
    b"jwtRules: [{issuer: a, jwks: '{\"keys\": [{\"kty\": \"oct\"}]}'}]",
    b"accessLogging: [{filter: {expression: '!(response.code in [1])'}}]",
    b"selector: {matchLabels: {app: a}}",
    b"workloadSelector: {labels: {app: a}}",
    b"gateways: [mesh, a]",
    b"mirror: {host: a}",
    b"resolution: DNS",
    b"addresses: [10.0.0.0/8]",
    b"captureMode: NONE",
    b"1h",
    b"0s",
    b"%REQ(a)%",
];

/// The door: what is taken in is taken in again in the form in which it is stored.
pub(super) fn yaml(bytes: &[u8]) -> u64 {
    let Ok(text) = std::str::from_utf8(bytes) else { return 0 };
    let (documents, mut findings) = yaml::read("fuzz.yaml", text);
    assert!(documents.len() <= yaml::MAX_DOCUMENTS, "{} documents", documents.len());
    assert!(findings.len() <= yaml::MAX_FINDINGS + 1, "{} findings", findings.len());
    for document in &documents {
        let stored = serde_json::to_string(&document.object).expect("every object is JSON");
        let read = serde_json::from_str(&stored).unwrap_or_else(|error| panic!("{error}: {stored}"));
        assert_eq!(document.object, read, "{stored}");
        findings.extend(mesh_proto::validate::validate(&document.object));
    }
    let words: usize = findings.iter().map(|finding| finding.message.len()).sum();
    assert!(words <= 4_096 * findings.len(), "{words} bytes of {} findings", findings.len());
    let mut codes: Vec<_> = findings.iter().map(|finding| format!("{:?}", finding.code)).collect();
    codes.sort();
    codes.dedup();
    number(&(codes, documents.len().min(8)))
}

/// Whatever validation lets through becomes a Plan, which tells of requests; step by step it is the same Plan.
pub(super) fn compile(bytes: &[u8]) -> u64 {
    let Ok(text) = std::str::from_utf8(bytes) else { return 0 };
    let (documents, _) = yaml::read("fuzz.yaml", text);
    let sound = documents
        .into_iter()
        .map(|document| document.object)
        .filter(|object| mesh_proto::validate::validate(object).iter().all(|finding| !finding.is_error()));
    let (mut world, node) = (world(), node());
    let mut plan = compile::compile(&world, &node, None);
    for object in sound.take(16) {
        world.revision.0 += 1;
        let at = world.revision;
        let stored = Stored { object, created: at, changed: at };
        world.absorb(&Change::Resource { key: stored.object.key(), stored: Some(stored.into()) });
        plan = compile::compile(&world, &node, Some(&plan));
    }
    let fresh = compile::compile(&world, &node, None);
    assert_eq!(told(&plan), told(&fresh));
    let mut outcomes = Vec::new();
    for authority in ["a", "b.default:9080", "www.example.com", ""] {
        let ask = Ask {
            method: "GET".into(),
            scheme: "http".into(),
            authority: authority.into(),
            target: "/v2/x?y=z".into(),
            headers: vec![("end-user".into(), "jason".into())],
            any_caller: true,
            ..empty_ask()
        };
        let told = explain(&world, &plan, &ask, Moment(1));
        outcomes.push(told.map_or(0, |told| told.destinations.len() + 1));
    }
    number(&(outcomes, plan.problems.len(), plan.clusters.len(), plan.doors.open.len()))
}

fn empty_ask() -> Ask {
    serde_json::from_value(serde_json::json!({"method": "", "scheme": "", "authority": "", "target": ""}))
        .expect("an ask")
}

/// What of a Plan must be the same however it came about.
fn told(plan: &Plan) -> Vec<String> {
    let clusters =
        plan.clusters.iter().map(|(name, cluster)| format!("{name} {}", cluster.endpoints.all.len()));
    let mut told: Vec<String> = clusters.chain(plan.problems.iter().cloned()).collect();
    for outbound in &plan.outbounds {
        for (number, table) in &outbound.ports {
            let hosts =
                table.http.iter().map(|(name, host)| format!("{number} {name} {}", host.routes.len()));
            told.extend(hosts.chain(table.tls.iter().map(|(name, _)| format!("{number} {name} tls"))));
        }
        told.extend(outbound.addresses.keys().map(|at| format!("{at:?}")));
    }
    told.extend(plan.names.exact.keys().map(ToString::to_string));
    told.sort();
    told
}

fn world() -> World {
    let mut world = World::default();
    world.revision = Revision(1);
    world.mesh.domain = "cluster.local".into();
    world.mesh.trust_domain = "cluster.local".into();
    for id in 1..=2_u64 {
        let host = serde_json::from_value(serde_json::json!({
            "name": format!("vm{id}"), "public_key": "", "wrap_key": "", "voter_eligible": false,
            "liveness": "live", "facts": {"address": format!("198.18.0.{id}:15008"), "version": "0"},
        }));
        world.absorb(&Change::Host { id: HostId(id), host: Some(host.expect("a host")) });
        let mut registration = Registration::default();
        for (service, port) in [("a", 80), ("b", 9080), ("reviews", 80)] {
            let instance: mesh_proto::registration::Instance = serde_json::from_value(serde_json::json!({
                "service": service, "labels": {"version": format!("v{id}"), "app": service},
                "ports": [{"number": port, "name": "http", "target": "127.0.0.1:8080"}],
            }))
            .expect("an instance");
            registration.instances.insert(service.into(), instance.into());
        }
        world.absorb(&Change::Registration { host: HostId(id), registration: Some(registration) });
    }
    world
}

fn node() -> Arc<Node> {
    let labels = Labels::from([("app".to_owned(), "a".to_owned())]);
    let caller = Workload { namespace: "default".into(), account: "a".into(), labels, ..Workload::default() };
    Arc::new(Node {
        host: HostId(1),
        name: "vm1".into(),
        domain: "cluster.local".into(),
        trust_domain: "cluster.local".into(),
        labels: Labels::from([("istio".to_owned(), "ingressgateway".to_owned())]),
        callers: vec![caller],
        ..Node::default()
    })
}

pub(super) const HTTP1_WORDS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\n",
    b"POST /a HTTP/1.1\r\n",
    b"HTTP/1.1",
    b"Host: reviews\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"hello",
    b"\0",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n",
    b"\xff\xfe",
    b"Content-Length: 99999999999\r\n",
    b"X: y\r\n",
    b"HEAD /x HTTP/1.0\r\n",
    b"Trailer: x\r\n",
    b"fffffff\r\n",
    b"5;a=b\r\n",
];

pub(super) fn http1_seeds() -> Vec<Vec<u8>> {
    [
        &b"GET / HTTP/1.1\r\nHost: reviews\r\n\r\n"[..],
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: b\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05hello",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
    ]
    .map(<[u8]>::to_vec)
    .to_vec()
}

/// Shown in pieces, what passes is what passes of it at once; and no more is held back than a head may have.
pub(super) fn http1(bytes: &[u8]) -> u64 {
    let limits = Limits::default();
    let whole = guard::Requests::new(limits).admit(bytes);
    assert!(whole.pass <= bytes.len(), "{whole:?}");
    let mut requests = guard::Requests::new(limits);
    let (mut passed, mut refused) = (0, None);
    let mut shown = 0;
    let step = 1 + bytes.len() / 7;
    while shown < bytes.len() && refused.is_none() {
        shown = bytes.len().min(shown + step);
        let seen = requests.admit(&bytes[passed..shown]);
        passed += seen.pass;
        refused = seen.refused;
    }
    // Why a head is none may be seen earlier where more of it is there.
    let status =
        |refused: Option<guard::Refused>| refused.map(|refused| (refused.refusal.status, refused.part));
    assert_eq!(status(refused), status(whole.refused));
    // What passes of a body before it is refused depends on how it came.
    if whole.refused.is_none_or(|refused| refused.part == guard::Part::Head) {
        assert_eq!(passed, whole.pass);
    }
    number(&(format!("{:?}", whole.refused), requests.begun().min(4), requests.is_switching()))
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

pub(super) const HTTP2_WORDS: &[&[u8]] = &[
    b"\0\0\x05\x01\x05\0\0\0\x01\x82\x84\x86\x41\x00",
    b"\0\0\x03\x01\x04\0\0\0\x01\x82\x84\x86",
    b"\0\0\x08\x06\0\0\0\0\0abcdefgh",
    b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08",
    b"\0\0\x04\x08\0\0\0\0\0\x7f\xff\xff\xff",
    b"\0\0\x05\0\0\0\0\0\x01hello",
    b"\0\0\x00\x09\x04\0\0\0\x01",
    b"\0\0\x06\x04\0\0\0\0\0\0\x04\xff\xff\xff\xff",
    b"\0\0\0\x04\x01\0\0\0\0",
    b"\0\0\x05\x02\0\0\0\0\x03\0\0\0\0\x01",
    b"\xff\xff\xff\x00\0\0\0\0\x01",
    b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0",
];

pub(super) fn http2_seeds() -> Vec<Vec<u8>> {
    HTTP2_WORDS.iter().map(|frame| [PREFACE, frame].concat()).collect()
}

/// Followed in pieces it comes to the same as at once.
pub(super) fn http2(bytes: &[u8]) -> u64 {
    let mut whole = Frames::new(FrameLimits::default());
    let flood = whole.follow(bytes, 1);
    assert!(flood.is_none_or(|flood| flood.pass <= bytes.len()));
    let mut frames = Frames::new(FrameLimits::default());
    let mut passed = 0;
    for piece in bytes.chunks(1 + bytes.len() / 5) {
        if let Some(flood) = frames.follow(piece, 1) {
            passed += flood.pass;
            break;
        }
        passed += piece.len();
    }
    assert_eq!(passed, flood.map_or(bytes.len(), |flood| flood.pass));
    assert_eq!((frames.has_begun(), frames.is_in_block()), (whole.has_begun(), whole.is_in_block()));
    assert!(frames.calm(1_024).len() <= 64 * 1_024);
    number(&(flood.map(|flood| flood.reason), whole.has_begun(), whole.is_in_block()))
}

pub(super) const HELLO_WORDS: &[&[u8]] = &[
    b"\x16\x03\x01",
    b"\x00\x00",
    b"\xff\xff",
    b"\x00\x10\x00\x0e\x00\x0c\x02h2\x08http/1.1",
    b"\0\0\0\x10\0\x0e\0\0\x0bexample.com",
];

pub(super) fn hello_seeds() -> Vec<Vec<u8>> {
    let extensions = b"\0\0\0\x10\0\x0e\0\0\x0bexample.com\0\x10\0\x0b\0\x09\x08http/1.1";
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend(b"\0\0\x02\x13\x01\x01\0");
    body.extend(u16::try_from(extensions.len()).expect("short").to_be_bytes());
    body.extend(extensions);
    let length = u8::try_from(body.len()).expect("short");
    let message = [&[1, 0, 0, length], body.as_slice()].concat();
    let record = |part: &[u8]| {
        let length = u8::try_from(part.len()).expect("short");
        [&[22, 3, 1, 0, length], part].concat()
    };
    let (first, second) = message.split_at(40);
    vec![record(&message), [record(first), record(second)].concat()]
}

/// What a part of it is, all of it is.
pub(super) fn client_hello(bytes: &[u8]) -> u64 {
    let whole = hello::parse(bytes);
    for part in 1..8 {
        let begin = hello::parse(&bytes[..bytes.len() * part / 8]);
        assert!(begin == hello::Parsed::More || begin == whole, "{begin:?}, and then {whole:?}");
    }
    match whole {
        hello::Parsed::Hello(hello) => number(&(1, hello.server_name.is_some(), hello.protocols.len())),
        hello::Parsed::More => 2,
        hello::Parsed::Malformed => 3,
    }
}

pub(super) fn proxy_header_seeds() -> Vec<Vec<u8>> {
    let mut second = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f".to_vec();
    second.extend([192, 0, 2, 8, 127, 0, 0, 1, 0xdc, 4, 0, 80, 4, 0, 0]);
    let mut six = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
    six.extend([7; 36]);
    let first = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n".to_vec();
    vec![
        first,
        b"PROXY TCP6 2001:db8::7 ::1 1 2\r\nGET /".to_vec(),
        b"PROXY UNKNOWN\r\n".to_vec(),
        second,
        six,
    ]
}

pub(super) const PROXY_HEADER_WORDS: &[&[u8]] = &[
    b"PROXY ",
    b"TCP4 ",
    b"TCP6 ",
    b"UNKNOWN",
    b"\r\n",
    b" ",
    b"65535",
    b"::",
    b"255.255.255.255",
    b"\0\r\nQUIT\n",
];

/// What a part of it is, all of it is; it is no longer than it may be, and than what is there.
pub(super) fn proxy_header(bytes: &[u8]) -> u64 {
    use mesh_core::wire::proxy_header::{MAX_BYTES, Parsed, parse};
    let whole = parse(bytes);
    for part in 1..8 {
        let begin = parse(&bytes[..bytes.len() * part / 8]);
        assert!(begin == Parsed::More || begin == whole, "{begin:?}, and then {whole:?}");
    }
    if let Parsed::Header { length, .. } = whole {
        assert!(length <= bytes.len().min(MAX_BYTES), "{length}");
    }
    assert!(bytes.len() < MAX_BYTES || whole != Parsed::More);
    number(&format!("{whole:?}"))
}

/// What a part of it is, all of it is; and it is told from its first bytes.
pub(super) fn sniff(bytes: &[u8]) -> u64 {
    let whole = sniffing::sniff(bytes);
    assert!(bytes.len() < sniffing::ENOUGH_BYTES || whole != sniffing::Sniff::More);
    for end in 0..bytes.len().min(2 * sniffing::ENOUGH_BYTES) {
        let begin = sniffing::sniff(&bytes[..end]);
        assert!(begin == sniffing::Sniff::More || begin == whole, "{begin:?}, and then {whole:?}");
    }
    number(&format!("{whole:?}"))
}

pub(super) const DNS_WORDS: &[&[u8]] = &[
    b"\x07reviews\x07default\x00",
    b"\xc0\x0c",
    b"\x00\x01\x00\x01",
    b"\x00\x1c\x00\x01",
    b"\x00\xff\x00\xff",
    b"\x3f",
    b"\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x00",
    b"\xff\xff",
];

pub(super) fn dns_seeds() -> Vec<Vec<u8>> {
    let question =
        |name: &[u8], kind: u8| [b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0", name, &[0, kind, 0, 1]].concat();
    vec![
        question(b"\x07reviews\x07default\0", 1),
        question(b"\x07reviews\x07default\0", 28),
        question(b"\x03www\x07example\x03com\0", 255),
        [question(b"\x07reviews\x07default\0", 1), b"\0\0\x29\x10\0\0\0\0\0\0\0".to_vec()].concat(),
    ]
}

/// An answer is to the question that was asked, and not larger than its transport carries.
pub(super) fn dns(bytes: &[u8]) -> u64 {
    let mut names = Names::default();
    let addresses: Arc<[_]> = (1..=200).map(|last| std::net::IpAddr::from([240, 240, 0, last])).collect();
    names.exact.insert("reviews.default".into(), addresses.clone());
    names.wildcard.push((".example.com".into(), addresses));
    let answer = meshd::dns::answer_of_the_mesh(bytes, &names);
    if let Some(answer) = &answer {
        assert_eq!(answer[..2], bytes[..2], "the id");
        assert!(answer[2] & 0x80 != 0, "an answer");
        assert!(answer.len() <= 4_096, "{} bytes over UDP", answer.len());
    }
    number(&answer.map(|answer| (answer[2], answer[3], answer.len() / 64)))
}

pub(super) fn frame_seeds() -> Vec<Vec<u8>> {
    vec![b"\0\0\0\x05hello\0\0\0\0\0\0\0\x02{}".to_vec(), b"\0\0\x10\0".to_vec()]
}

/// What is received was sent, frame by frame; nothing is stored for what is only announced.
pub(super) fn frames(bytes: &[u8]) -> u64 {
    const LIMIT: usize = 4_096;
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let mut stream = FrameStream::new(Cursor::new(bytes.to_vec()), LIMIT);
        let (mut taken, mut count) = (0, 0_u64);
        let end = loop {
            match stream.recv().await {
                Ok(Some(frame)) => {
                    assert!(frame.len() <= LIMIT);
                    assert_eq!(frame, bytes[taken + 4..taken + 4 + frame.len()]);
                    taken += 4 + frame.len();
                    count += 1;
                }
                Ok(None) => {
                    assert_eq!(taken, bytes.len());
                    break 0;
                }
                Err(meshd::transport::FrameError::TooLong { .. }) => break 1,
                Err(_) => break 2,
            }
        };
        number(&(end, count.min(4)))
    })
}

fn number(outcome: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    outcome.hash(&mut hasher);
    hasher.finish()
}

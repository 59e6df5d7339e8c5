use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use mesh_core::plan::Names;

use super::*;
use crate::drain;

fn names() -> Names {
    let mut names = Names::default();
    let both: Arc<[IpAddr]> = ["240.240.0.7".parse().unwrap(), "2001:2::7".parse().unwrap()].into();
    for name in ["reviews", "reviews.default", "reviews.default.svc.cluster.local"] {
        names.exact.insert(name.into(), both.clone());
    }
    names.exact.insert("v4.mesh".into(), ["240.240.0.8".parse().unwrap()].into());
    let many: Vec<IpAddr> = (0..100).map(|at| IpAddr::from([198, 18, 0, at])).collect();
    names.exact.insert("many.mesh".into(), many.into());
    names.wildcard.push((".wild.example".into(), ["240.240.0.9".parse().unwrap()].into()));
    names
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn decide(message: &Message, over: Over) -> Verdict {
    let search = ["corp.example".to_owned()];
    answer::decide(&message.to_vec().unwrap(), &names(), &search, Duration::from_secs(5), over)
}

fn reply(message: &Message) -> Message {
    match decide(message, Over::Udp) {
        Verdict::Reply(reply) => Message::from_vec(&reply).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn addresses(reply: &Message) -> Vec<String> {
    reply.answers.iter().map(|record| record.data.to_string()).collect()
}

#[test]
fn each_family_has_its_own_answer() {
    for name in ["reviews.", "Reviews.Default.", "reviews.default.svc.cluster.local."] {
        let four = reply(&question(name, RecordType::A));
        assert_eq!(addresses(&four), ["240.240.0.7"]);
        assert_eq!((four.metadata.id, four.answers[0].ttl), (77, 5));
        assert_eq!(four.queries[0].name().to_ascii(), name, "as the caller spelt it");
        assert_eq!(addresses(&reply(&question(name, RecordType::AAAA))), ["2001:2::7"]);
    }
    assert_eq!(addresses(&reply(&question("a.wild.example.", RecordType::A))), ["240.240.0.9"]);
}

#[test]
fn what_a_mesh_name_does_not_have_is_no_data_rather_than_no_name() {
    for kind in
        [RecordType::AAAA, RecordType::MX, RecordType::ANY, RecordType::HTTPS, RecordType::Unknown(65280)]
    {
        let reply = reply(&question("v4.mesh.", kind));
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{kind}");
        assert!(reply.answers.is_empty(), "{kind}");
    }
}

#[test]
fn other_names_classes_and_orders_are_forwarded() {
    let chaos = {
        let mut message = question("reviews.", RecordType::TXT);
        message.queries[0].query_class = DNSClass::CH;
        message
    };
    for message in [question("example.com.", RecordType::A), question("wild.example.", RecordType::A), chaos]
    {
        assert!(matches!(decide(&message, Over::Udp), Verdict::Forward(None)));
    }
}

#[test]
fn a_search_suffix_is_understood_but_does_not_hide_a_real_host() {
    let Verdict::Forward(Some(instead)) =
        decide(&question("reviews.corp.example.", RecordType::A), Over::Udp)
    else {
        panic!("asked elsewhere first");
    };
    assert_eq!(addresses(&Message::from_vec(&instead).unwrap()), ["240.240.0.7"]);
}

#[test]
fn answers_are_bounded_and_say_so_when_they_do_not_fit() {
    let message = question("many.mesh.", RecordType::A);
    let plain = reply(&message);
    assert!(plain.metadata.truncation && plain.answers.is_empty());
    let Verdict::Reply(whole) = decide(&message, Over::Tcp) else { panic!() };
    assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 64);
    let mut edns = question("many.mesh.", RecordType::A);
    edns.set_edns(Edns::new());
    edns.edns.as_mut().unwrap().set_max_payload(4096);
    let reply = reply(&edns);
    assert!(reply.to_vec().unwrap().len() <= 1232 && reply.edns.is_some());
}

#[test]
fn nothing_in_a_message_makes_it_panic() {
    let mut rng = fastrand::Rng::with_seed(7);
    let valid = question("reviews.default.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    for _ in 0..20_000 {
        let mut bytes = valid.clone();
        for _ in 0..rng.usize(1..6) {
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
        }
        bytes.truncate(rng.usize(..=bytes.len()));
        let _ = answer::decide(&bytes, &names(), &[], Duration::ZERO, Over::Udp);
        let _ = answer::failure(&bytes);
    }
    let answer = answer::decide(&valid[..20], &names(), &[], Duration::ZERO, Over::Udp);
    let Verdict::Reply(bytes) = answer else { panic!("{answer:?}") };
    assert_eq!(Message::from_vec(&bytes).unwrap().metadata.response_code, ResponseCode::FormErr);
    assert!(matches!(answer::decide(&[0; 5], &names(), &[], Duration::ZERO, Over::Udp), Verdict::Drop));
}

#[test]
fn resolv_conf_is_read_as_the_c_library_does() {
    let text = "# x\nnameserver 192.0.2.1\nnameserver fd00::1 ; y\nnameserver fe80::1%eth0\nsearch A.example. b.example\noptions ndots:2\n";
    let resolvers = Resolvers::parse(text);
    assert_eq!(
        resolvers.servers,
        ["192.0.2.1:53".parse().unwrap(), "[fd00::1]:53".parse::<SocketAddr>().unwrap()]
    );
    assert_eq!(resolvers.search, ["a.example", "b.example"]);
}

/// meshd's DNS on a free port, in front of the resolvers given.
struct Serving {
    address: SocketAddr,
    drain: drain::Drain,
    dns: Dns,
}

fn in_front_of(servers: Vec<SocketAddr>, timeout: Duration) -> Serving {
    let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap(), &Listeners::default()).unwrap();
    let plans = Arc::new(ArcSwap::from_pointee(Plan { names: Arc::new(names()), ..Plan::default() }));
    let resolvers = Resolvers { servers, search: vec!["corp.example".into()] };
    let settings = Settings { resolvers, timeout, ttl: Duration::from_secs(5), mark: 0x6d65 };
    let (drain, draining) = drain::channel();
    let dns = serve(vec![sockets], plans, settings, &draining);
    Serving { address: dns.addresses()[0], drain, dns }
}

impl Serving {
    async fn udp(&self, question: &[u8]) -> Vec<u8> {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(question, self.address).await.unwrap();
        let mut reply = vec![0; 65_535];
        let length = within(socket.recv(&mut reply)).await.unwrap();
        reply.truncate(length);
        reply
    }

    async fn tcp(&self, question: &[u8]) -> Vec<u8> {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        write_message(&mut stream, question).await.unwrap();
        within(read_message(&mut stream)).await.unwrap()
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("in time")
}

/// A resolver that gives one reply to everything, over UDP and TCP.
async fn resolver(reply: Option<Vec<u8>>) -> SocketAddr {
    // A port that is free over UDP may be taken over TCP.
    let (udp, tcp) = loop {
        let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = tokio::net::TcpListener::bind(udp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let address = udp.local_addr().unwrap();
    task::spawn("resolver", async move {
        let mut buffer = [0; 4096];
        loop {
            tokio::select! {
                Ok((_, from)) = udp.recv_from(&mut buffer) => {
                    if let Some(reply) = &reply {
                        // A stranger's guess comes first, and must not be believed.
                        let mut forged = reply.clone();
                        forged[0] ^= 0xff;
                        udp.send_to(&forged, from).await.unwrap();
                        udp.send_to(reply, from).await.unwrap();
                    }
                }
                Ok((mut stream, _)) = tcp.accept() => {
                    let _ = read_message(&mut stream).await;
                    if let Some(reply) = &reply {
                        let _ = write_message(&mut stream, reply).await;
                    }
                }
            }
        }
    });
    address
}

/// A reply with a record of a type that nobody knows, and some bytes after the end.
fn strange_reply(question: &Message) -> Vec<u8> {
    let mut reply = Message::response(question.metadata.id, OpCode::Query);
    reply.add_query(question.queries[0].clone());
    let data = RData::Unknown {
        code: RecordType::Unknown(65_280),
        rdata: hickory_proto::rr::rdata::NULL::with(vec![1, 2, 3]),
    };
    reply.add_answer(Record::from_rdata(question.queries[0].name().clone(), 9, data));
    let mut bytes = reply.to_vec().unwrap();
    bytes.extend([0xde, 0xad]);
    bytes
}

fn code_of(reply: &[u8]) -> ResponseCode {
    Message::from_vec(reply).unwrap().metadata.response_code
}

#[tokio::test]
async fn names_of_the_mesh_are_answered_over_both_protocols() {
    let serving = in_front_of(Vec::new(), Duration::from_secs(1));
    let question = question("reviews.", RecordType::A).to_vec().unwrap();
    for reply in [serving.udp(&question).await, serving.tcp(&question).await] {
        assert_eq!(addresses(&Message::from_vec(&reply).unwrap()), ["240.240.0.7"]);
    }
}

#[tokio::test]
async fn other_answers_pass_byte_for_byte() {
    let question = question("example.com.", RecordType::Unknown(65_280));
    let strange = strange_reply(&question);
    let serving = in_front_of(vec![resolver(Some(strange.clone())).await], Duration::from_secs(5));
    let question = question.to_vec().unwrap();
    assert_eq!(serving.udp(&question).await, strange);
    assert_eq!(serving.tcp(&question).await, strange);
}

#[tokio::test]
async fn a_silent_resolver_leaves_time_for_the_next() {
    let question = question("example.com.", RecordType::A);
    let reply = strange_reply(&question);
    let servers = vec![resolver(None).await, resolver(Some(reply.clone())).await];
    let serving = in_front_of(servers, Duration::from_millis(400));
    assert_eq!(serving.udp(&question.to_vec().unwrap()).await, reply);
}

#[tokio::test]
async fn when_no_resolver_answers_the_caller_is_told() {
    let question = question("example.com.", RecordType::A).to_vec().unwrap();
    for servers in [vec![], vec![resolver(None).await]] {
        let serving = in_front_of(servers, Duration::from_millis(100));
        assert_eq!(code_of(&serving.udp(&question).await), ResponseCode::ServFail);
        assert_eq!(code_of(&serving.tcp(&question).await), ResponseCode::ServFail);
    }
}

#[tokio::test]
async fn a_suffixed_name_is_the_worlds_if_it_has_it_and_else_the_meshs() {
    let question = question("reviews.corp.example.", RecordType::A);
    let real = strange_reply(&question);
    let serving = in_front_of(vec![resolver(Some(real.clone())).await], Duration::from_secs(5));
    assert_eq!(serving.udp(&question.to_vec().unwrap()).await, real);

    let mut unknown = Message::error_msg(77, OpCode::Query, ResponseCode::NXDomain);
    unknown.metadata.message_type = MessageType::Response;
    unknown.add_query(question.queries[0].clone());
    let serving = in_front_of(vec![resolver(Some(unknown.to_vec().unwrap())).await], Duration::from_secs(5));
    let reply = serving.udp(&question.to_vec().unwrap()).await;
    assert_eq!(addresses(&Message::from_vec(&reply).unwrap()), ["240.240.0.7"]);
}

#[tokio::test]
async fn draining_ends_it() {
    let serving = in_front_of(Vec::new(), Duration::from_secs(1));
    serving.drain.start();
    within(serving.dns.stop()).await;
    assert_eq!(within(serving.drain.finished(Duration::from_secs(10))).await, 0);
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_key() {
    let taken = Sockets::bind("127.0.0.1:0".parse().unwrap(), &Listeners::default()).unwrap();
    let mut config = Config::default();
    config.listen.dns = vec![taken.address];
    let plans = Arc::new(ArcSwap::from_pointee(Plan::default()));
    let error = start(&config, plans, Vec::new(), &drain::channel().1, &Listeners::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains(&taken.address.to_string()) && error.contains("listen.dns"), "{error}");
}

#[test]
fn meshd_never_asks_itself() {
    let mut config = Config::default();
    config.dns.upstreams = vec!["127.0.0.1:15053".parse().unwrap(), "192.0.2.1:53".parse().unwrap()];
    assert_eq!(upstreams(&config), ["192.0.2.1:53".parse().unwrap()]);
}

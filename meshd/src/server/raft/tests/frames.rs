//! What released versions say to each other is read, and means what it meant: `tests/formats/README.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_core::world::World;
use mesh_proto::api::{JoinRequest, Joined};
use mesh_proto::command::{Command, Entry as Written, HostId, Liveness, Revision};
use mesh_proto::registration::{Health, Probe, Protocol};
use mesh_proto::resource::Spec;
use mesh_proto::watch::{Down, Hello, PublicWorld, Up};
use raft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, VoteRequest, VoteResponse,
};
use raft::{Entry, EntryPayload, SnapshotMeta, StoredMembership, Vote};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::network::{Message, Opinion, Question, Reading};
use super::super::{NodeId, Types};
use super::id;

/// One frame of the wire, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Frame {
    /// Server to server: the kind byte and what follows it.
    Raft(u8, Value),
    /// A chunk of a snapshot: head and data.
    Chunk(Value, String),
    Appended(Value),
    Voted(Value),
    Opinion(Value),
    Reading(Value),
    Hello(Value),
    Up(Value),
    Down(Value),
    Join(Value),
    Joined(Value),
}

fn formats() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats")
}

/// A log with every command in it, in the words of 0.1.0. Join entries 3 and 13 make the hosts of those ids.
fn commands() -> Vec<Value> {
    let facts = |last: u8| {
        json!({"address": format!("198.18.0.{last}:15008"), "version": "0.1.0", "labels": {"zone": "a"},
            "locality": "r/z/s", "voter": "prefer"})
    };
    let host = |name: &str, last: u8| json!({"name": name, "public_key": "cHVibGlj", "wrap_key": "d3JhcA==", "facts": facts(last)});
    let token = |id: &str, role: &str| json!({"create_token": {"id": id, "verifier": "dg==", "role": role, "expires": 9_000_000, "author": "uid 0 on vm1"}});
    let ask = json!({"host": "h", "https": true, "headers": [["x-probe", "1"]]});
    let instance = json!({"service": "reviews", "group": "reviews", "namespace": "shop", "account": "shop",
        "labels": {"version": "v1"}, "weight": 3, "locality": "r/z/t", "health": "unhealthy",
        "ports": [{"number": 9080, "name": "http", "protocol": "HTTP", "target": "127.0.0.1:9080"}],
        "check": {"http": {"path": "/health", "port": 81, "ask": ask}, "interval_ms": 500, "timeout_ms": 100,
            "initial_delay_ms": 5, "unhealthy_threshold": 3, "healthy_threshold": 2}});
    let outside = json!({"service": "mail", "ports": [{"number": 25, "target": "203.0.113.5:25"}], "address": "203.0.113.5"});
    let object = |kind: &str, name: &str, spec: Value| {
        json!({"key": format!("{kind} shop/{name}"), "expect": "absent", "object": {"apiVersion": "networking.istio.io/v1",
            "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec}})
    };
    let entry = json!({"hosts": ["api.example.com"], "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}],
        "resolution": "DNS"});
    let rule = json!({"hosts": ["reviews"], "http": [{"match": [{"uri": {"prefix": "/a"}}], "timeout": "2s",
        "route": [{"destination": {"host": "reviews", "subset": "v1"}, "weight": 100}]}]});
    let subsets = json!({"host": "reviews", "subsets": [{"name": "v1", "labels": {"version": "v1"}}]});
    let join = |token: &str, name: &str, last: u8| json!({"token": token, "host": host(name, last)});
    let mut first = join("t1", "vm2", 2);
    first["voter_wanted"] = json!(true);
    vec![
        json!({"bootstrap": {"mesh": {"id": "m", "trust_domain": "cluster.local", "domain": "cluster.local",
            "roots": ["cm9vdA=="], "created": 1}, "sealed_root": {"1": "sealed"}, "host": host("vm1", 1)}}),
        token("t1", "auto"),
        json!({"join": first}),
        json!({"seal_root": {"holder": 3, "sealed": "sealed too"}}),
        json!({"update_host": {"host": 3, "facts": facts(22)}}),
        token("t2", "voter_eligible"),
        json!({"revoke_token": {"id": "t2"}}),
        json!({"register": {"host": 3, "registration": {"instances": {"r": instance, "mail": outside}}}}),
        json!({"health": {"host": 3, "flips": {"r": "draining"}}}),
        json!({"liveness": {"changes": {"1": "suspect"}}}),
        json!({"change": {"reason": "apply rules.yaml", "changes": [object("ServiceEntry", "api", entry),
            object("VirtualService", "reviews", rule), object("DestinationRule", "reviews", subsets)]}}),
        token("t3", "agent"),
        json!({"join": join("t3", "vm3", 3)}),
        json!({"remove_host": {"host": 13}}),
    ]
}

/// What this version writes: the log, what it comes to, and all else that is said.
fn written() -> Vec<Frame> {
    let (mut world, mut entries, mut downs) = (World::default(), Vec::new(), Vec::new());
    for (command, index) in commands().into_iter().zip(1..) {
        let command: Command = serde_json::from_value(command).expect("a command");
        let author = "uid 0 on vm1".to_owned();
        let key = (index == 11).then(|| "k".to_owned());
        let entry = Written { at: mesh_proto::command::Timestamp(index), author, key, command };
        let from = world.revision;
        let applied = world.apply(Revision(index), &entry);
        assert!(applied.result.is_ok(), "{index}: {:?}", applied.result);
        downs.push(Down::Delta { from, to: Revision(index), changes: applied.changes });
        entries.push(Entry::<Types> { log_id: id(2, index), payload: EntryPayload::Normal(Arc::new(entry)) });
    }
    let (vote, last) = (Vote::<NodeId>::new_committed(2, 1), Some(id(2, 14)));
    let members = raft::Membership::new(vec![[1, 3].into()], None);
    entries.insert(0, Entry { log_id: id(1, 0), payload: EntryPayload::Membership(members) });
    entries.push(Entry { log_id: id(2, 15), payload: EntryPayload::Blank });
    let meta = SnapshotMeta {
        last_log_id: last,
        last_membership: StoredMembership::default(),
        snapshot_id: "2-1-14".into(),
    };
    let chunk = InstallSnapshotRequest::<Types> { vote, meta, offset: 0, data: Vec::new(), done: true };
    let append = AppendEntriesRequest::<Types> { vote, prev_log_id: None, entries, leader_commit: last };
    let up = json!({"live": 14, "problems": ["a: b"], "clock_ms": 5, "health": {"r": "healthy"},
        "facts": commands()[4]["update_host"]["facts"], "registration": commands()[7]["register"]["registration"]});
    let up: Up = serde_json::from_value(up).expect("an Up");
    let hello = Hello { mesh: "m".into(), from: Some(Revision(7)), version: "0.1.0".into() };
    let bookmark =
        Down::Bookmark { at: Revision(14), servers: [(HostId(3), ([198, 18, 0, 2], 15008).into())].into() };
    let join: JoinRequest = serde_json::from_value(json!({"token": "t1", "proof": "cA==", "binding": "",
        "host": commands()[2]["join"]["host"], "csr": "Yw==", "clock_ms": 5}))
    .expect("a request to join");
    let joined = Joined {
        id: HostId(3),
        mesh: world.mesh.clone(),
        chain: vec!["Yw==".into()],
        may_vote: true,
        servers: [(HostId(1), ([198, 18, 0, 1], 15008).into())].into(),
    };
    let mut frames = vec![
        Frame::Raft(1, value(&append)),
        Frame::Raft(2, value(&VoteRequest::<NodeId> { vote, last_log_id: last })),
        Frame::Raft(3, value(&Question { last_log_id: last })),
        Frame::Raft(6, json!({"index": 14, "id": "T2-N1.14", "offset": 8})),
        Frame::Raft(
            5,
            value(
                &serde_json::from_value::<Written>(json!({"at": 5, "author": "a",
            "command": {"revoke_token": {"id": "t"}}}))
                .expect("an entry"),
            ),
        ),
        Frame::Chunk(value(&chunk), serde_json::to_string(&world.whole()).expect("JSON")),
        Frame::Appended(value(&Ok::<_, ()>(AppendEntriesResponse::<NodeId>::Success))),
        Frame::Voted(value(&Ok::<_, ()>(VoteResponse::<NodeId> {
            vote,
            vote_granted: true,
            last_log_id: last,
        }))),
        Frame::Opinion(value(&Opinion { silence_ms: Some(5), log_is_longer: true })),
        Frame::Reading(value(&Reading { newer: Some("unknown field `x`".into()) })),
        Frame::Hello(value(&hello)),
        Frame::Up(value(&up)),
        Frame::Down(value(&Down::World(world.public()))),
        Frame::Down(value(&bookmark)),
        Frame::Join(value(&join)),
        Frame::Joined(value(&joined)),
    ];
    frames.extend(downs.iter().map(|down| Frame::Down(value(down))));
    frames
}

/// What a version's frames come to.
#[derive(Default)]
struct Said {
    /// By the log.
    by_log: World,
    by_snapshot: World,
    by_world: World,
    by_deltas: World,
    others: usize,
}

impl Said {
    fn read(&mut self, frame: Frame) {
        self.others += 1;
        match frame {
            Frame::Raft(kind, body) => self.raft(&[vec![kind], bytes(&body)].concat()),
            Frame::Chunk(head, data) => {
                let head = bytes(&head);
                let length = (head.len() as u64).to_be_bytes();
                self.raft(&[&[4], &length[..], &head, data.as_bytes()].concat());
            }
            Frame::Appended(answer) => {
                let answer: Result<AppendEntriesResponse<NodeId>, ()> = typed(answer);
                assert!(matches!(answer, Ok(AppendEntriesResponse::Success)));
            }
            Frame::Voted(answer) => {
                let answer: Result<VoteResponse<NodeId>, ()> = typed(answer);
                assert!(
                    answer.is_ok_and(|answer| answer.vote_granted && answer.last_log_id == Some(id(2, 14)))
                );
            }
            Frame::Opinion(opinion) => {
                let opinion: Opinion = typed(opinion);
                assert!(opinion.silence_ms == Some(5) && opinion.log_is_longer);
            }
            Frame::Reading(reading) => {
                assert_eq!(typed::<Reading>(reading).newer.as_deref(), Some("unknown field `x`"));
            }
            Frame::Hello(hello) => {
                let expected = Hello { mesh: "m".into(), from: Some(Revision(7)), version: "0.1.0".into() };
                assert_eq!(typed::<Hello>(hello), expected);
            }
            Frame::Up(up) => is_said(&typed(up)),
            Frame::Down(down) => self.down(typed(down)),
            Frame::Join(join) => {
                let join: JoinRequest = typed(join);
                assert_eq!((join.token.as_str(), join.proof.as_str(), join.clock_ms), ("t1", "cA==", 5));
                assert_eq!((join.host.name.as_str(), join.host.wrap_key.as_str()), ("vm2", "d3JhcA=="));
            }
            Frame::Joined(joined) => {
                let joined: Joined = typed(joined);
                assert_eq!((joined.id, joined.mesh.id.as_str(), joined.may_vote), (HostId(3), "m", true));
                assert_eq!(joined.servers[&HostId(1)], ([198, 18, 0, 1], 15008).into());
            }
        }
    }

    fn raft(&mut self, frame: &[u8]) {
        match Message::decode(frame).expect("read") {
            Message::Append(append) => {
                assert_eq!((append.vote, append.leader_commit), (Vote::new_committed(2, 1), Some(id(2, 14))));
                for entry in append.entries {
                    if let EntryPayload::Normal(command) = entry.payload {
                        self.by_log.apply(Revision(entry.log_id.index), &command);
                    }
                }
            }
            Message::Vote(request) => assert_eq!(request.last_log_id, Some(id(2, 14))),
            Message::Ask(question) => assert_eq!(question.last_log_id, Some(id(2, 14))),
            Message::Wanted(wanted) => assert_eq!(
                serde_json::to_value(wanted).expect("JSON"),
                json!({"index": 14, "id": "T2-N1.14", "offset": 8})
            ),
            Message::Read(entry) => {
                let entry: Written = serde_json::from_slice(&entry).expect("an entry");
                assert!(matches!(entry.command, Command::RevokeToken { id } if id == "t"));
            }
            Message::Snapshot(chunk) => {
                assert!(chunk.done && chunk.meta.last_log_id == Some(id(2, 14)));
                let read = mesh_core::world::ReadSnapshot(None);
                self.by_snapshot = mesh_proto::exact::exactly_seed(read, &chunk.data).expect("a World");
            }
        }
    }

    fn down(&mut self, down: Down) {
        match down {
            Down::World(world) => self.by_world = World::from_public(&world),
            Down::Delta { from, to, changes } => {
                assert_eq!(from, self.by_deltas.revision);
                self.by_deltas.absorb_all(to, &changes);
            }
            Down::Bookmark { at, servers } => {
                assert_eq!((at, servers.len()), (Revision(14), 1));
                assert_eq!(servers[&HostId(3)], ([198, 18, 0, 2], 15008).into());
            }
        }
    }
}

fn is_said(up: &Up) {
    assert_eq!((up.live, up.clock_ms, up.goodbye), (Revision(14), 5, false));
    assert_eq!(up.problems, ["a: b"]);
    assert_eq!(up.health, BTreeMap::from([("r".to_owned(), Health::Healthy)]));
    assert_eq!(up.facts.as_ref().expect("facts").address, ([198, 18, 0, 22], 15008).into());
    assert_eq!(up.registration.as_ref().expect("an offer").instances.len(), 2);
}

/// What every version must make of that log.
fn is_meant(world: &World) {
    assert_eq!(
        world.hosts.iter().map(|(id, host)| (id.0, host.name.as_str())).collect::<Vec<_>>(),
        [(1, "vm1"), (3, "vm2")]
    );
    let vm2 = world.hosts.get(&HostId(3)).expect("joined");
    assert!(vm2.voter_eligible, "the token of role auto, where the mesh had too few that may vote");
    assert_eq!(vm2.facts.address, ([198, 18, 0, 22], 15008).into());
    assert_eq!(vm2.facts.labels.get("zone").map(String::as_str), Some("a"));
    assert_eq!(world.hosts.get(&HostId(1)).expect("the first").liveness, Liveness::Suspect);
    let offer = world.registrations.get(&HostId(3)).expect("an offer");
    let reviews = &offer.instances["r"];
    assert_eq!(
        (reviews.health, reviews.weight, reviews.ports[0].protocol),
        (Health::Draining, 3, Protocol::Http)
    );
    let check = reviews.check.as_ref().expect("a check");
    assert!(
        matches!(&check.probe, Probe::Http { path, port: Some(81), ask } if path == "/health" && ask.https)
    );
    assert_eq!(world.resources.len(), 3);
    let rule = world.resources.get(&"VirtualService shop/reviews".parse().expect("a key")).expect("a rule");
    assert_eq!((rule.created, rule.changed), (Revision(11), Revision(11)));
    let Spec::VirtualService(rule) = &rule.object.spec else { panic!("{rule:?}") };
    assert_eq!(rule.http[0].route[0].destination.as_ref().map(|to| to.subset.as_str()), Some("v1"));
    assert!(world.addresses.get(&"api.example.com".to_owned()).is_some());
}

#[test]
fn what_released_versions_say_is_read_and_means_what_it_meant() {
    let mut versions = 0;
    for version in fs::read_dir(formats()).expect("listed").flatten() {
        let Ok(lines) = fs::read_to_string(version.path().join("frames.jsonl")) else { continue };
        check(lines.lines().map(|line| serde_json::from_str(line).expect("a frame")));
        versions += 1;
    }
    assert!(versions > 0);
}

/// With `UPDATE=1` it stays below `tests/formats`, where there is none of this version.
#[test]
fn what_this_version_says_is_read_too() {
    let kept = formats().join(env!("CARGO_PKG_VERSION")).join("frames.jsonl");
    let lines: Vec<String> =
        written().iter().map(|frame| serde_json::to_string(frame).expect("JSON")).collect();
    if std::env::var_os("UPDATE").is_some() && !kept.exists() {
        fs::write(&kept, lines.join("\n") + "\n").expect("written");
    }

    check(lines.iter().map(|line| serde_json::from_str(line).expect("a frame")));
}

fn check(frames: impl Iterator<Item = Frame>) {
    let mut said = Said::default();
    frames.for_each(|frame| said.read(frame));
    is_meant(&said.by_log);
    assert_eq!(said.by_snapshot, said.by_log, "a snapshot holds what the log led to");
    let public: PublicWorld = said.by_log.public();
    assert_eq!(said.by_world.public(), public);
    assert_eq!(said.by_deltas.public(), public);
    assert!(said.others > 25, "{} frames", said.others);
    let private = &said.by_log.private;
    assert_eq!(private.sealed_root.len(), 2);
    assert_eq!(private.tokens.keys().collect::<Vec<_>>(), ["t1", "t3"]);
}

fn value(frame: &impl Serialize) -> Value {
    serde_json::to_value(frame).expect("JSON")
}

fn bytes(json: &Value) -> Vec<u8> {
    serde_json::to_vec(json).expect("JSON")
}

fn typed<T: serde::de::DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).expect("read")
}

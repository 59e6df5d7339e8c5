//! What must be true of servers together.

use std::time::{Duration, Instant};

use mesh_proto::api::{Call, ErrorCode, HostRole, Request, Response};
use mesh_proto::command::{HostId, Liveness, Revision};
use mesh_proto::watch::Up;

use super::mesh::{Medium, Mesh, call_from, code, facts, order, wall_ms};

#[tokio::test(flavor = "multi_thread")]
async fn first_host_writes_alone_and_two_more_make_three_voters() {
    let mut mesh = Mesh::init().await;
    mesh.apply(1, "alone", "k1").await.expect("one voter writes");

    let second = mesh.join("vm2").await;
    mesh.until("a standby", |mesh| mesh.server(1).members().len() == 2).await;
    assert_eq!(mesh.voters(1), [HostId(1)], "two hosts stay at one voter");
    let third = mesh.join("vm3").await;

    mesh.until("three voters", |mesh| mesh.voters(1).len() == 3).await;
    mesh.apply(third, "together", "k2").await.expect("a follower passes it on");
    assert_eq!(mesh.names(second).await.expect("read"), ["alone", "together"]);
    let sealed = &mesh.world(1).private.sealed_root;
    assert_eq!(sealed[&second.to_string()], "sealed for wrap key of vm2");
}

#[tokio::test(flavor = "multi_thread")]
async fn fourth_host_is_an_agent() {
    let (mut mesh, ..) = Mesh::of_three().await;
    let line = mesh.token().await;
    let joined = mesh.try_join("vm4", &line, wall_ms()).await.expect("joins");
    assert!(!joined.may_vote);
    assert_eq!(joined.servers.len(), 3);
    assert!(!mesh.world(1).hosts[&joined.id].voter_eligible);
    mesh.kill(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_from_before_a_voter_died_lets_its_successor_vote() {
    let (mut mesh, _, third) = Mesh::of_three().await;
    let line = mesh.token().await;
    mesh.kill(third);
    mesh.until("vm3 is gone", |mesh| mesh.world(1).hosts[&HostId(third)].liveness == Liveness::Gone).await;

    let joined = mesh.try_join("vm3", &line, wall_ms()).await.expect("the name is free");

    assert!(joined.may_vote && mesh.world(1).hosts[&joined.id].voter_eligible);
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_within_two_seconds_of_the_leaders_death() {
    let (mut mesh, second, _) = Mesh::of_three().await;
    mesh.apply(second, "before", "k1").await.expect("write");

    mesh.kill(1);
    let gap = mesh.apply_until_done(second, "after").await;

    assert!(gap < Duration::from_secs(2), "{gap:?}");
    assert_eq!(mesh.names(second).await.expect("read"), ["after", "before"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_looks_at_its_timer_less_often_than_its_leader_beats() {
    let (mesh, second, third) = Mesh::of_three().await;
    let leader = mesh.server(1).leader().expect("a leader").0;
    let looks = |id: u64| mesh.server(id).election_looks();
    let before = [1, second, third].map(looks);
    let beats =
        || looks(leader) - before[[1, second, third].iter().position(|id| *id == leader).expect("one")];

    mesh.until("a few heartbeats", |_| beats() >= 10).await;

    for (id, before) in [1, second, third].into_iter().zip(before) {
        let since = looks(id) - before;
        assert!(id == leader || since <= 15, "follower {id} looked {since} times during 10 heartbeats");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_keeps_every_acknowledged_write() {
    let (mut mesh, second, third) = Mesh::of_three().await;
    let mut acknowledged = Vec::new();
    for number in 0..30 {
        let name = format!("entry-{number:02}");
        mesh.apply(1, &name, &name).await.expect("write");
        acknowledged.push(name);
    }
    for id in [1, second, third] {
        mesh.kill(id);
    }
    for id in [1, second, third] {
        mesh.start(HostId(id)).await.expect("starts again");
    }

    mesh.apply_until_done(third, "later").await;

    acknowledged.push("later".to_owned());
    assert_eq!(mesh.names(second).await.expect("read"), acknowledged);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_quorum_is_told_within_three_seconds_with_names() {
    let (mut mesh, second, third) = Mesh::of_three().await;
    let leader = mesh.server(1).leader().expect("a leader").0;
    let dead: Vec<u64> = [1, second, third].into_iter().filter(|id| *id != leader).collect();
    for id in &dead {
        mesh.kill(*id);
    }

    let began = Instant::now();
    let (_, first) = code(mesh.apply(leader, "lost", "k1").await);
    assert!(began.elapsed() < Duration::from_millis(3_500), "{:?}", began.elapsed());
    assert!(first.contains("no quorum: 1 of 3 voters reachable"), "{first}");

    let began = Instant::now();
    let (why, known) = code(mesh.apply(leader, "lost again", "k2").await);
    assert!(began.elapsed() < Duration::from_millis(200), "known at once: {:?}", began.elapsed());
    assert_eq!(why, ErrorCode::NoQuorum);
    assert!(known.contains("vm2, vm3 do not answer since"), "{known}");

    let Response::Status(status) = mesh.call(leader, Request::Status).await.expect("status") else {
        panic!()
    };
    assert!(status.no_quorum.is_some_and(|reason| reason.contains("1 of 3")));
    assert_eq!(mesh.world(leader).hosts.len(), 3, "reading goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_left_alone_names_the_missing_too() {
    let (mut mesh, second, third) = Mesh::of_three().await;
    mesh.kill(1);
    mesh.kill(third);

    let began = Instant::now();
    let (why, message) = code(mesh.apply(second, "lost", "k1").await);

    assert!(began.elapsed() < Duration::from_millis(3_500), "{:?}", began.elapsed());
    assert_eq!(why, ErrorCode::NoQuorum);
    assert!(message.contains("1 of 3 voters reachable (vm1, vm3 do not answer"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn voter_that_was_cut_off_does_not_depose_the_leader() {
    let (mesh, second, third) = Mesh::of_three().await;
    let leader = mesh.server(1).leader().expect("a leader").0;
    let lonely = if leader == third { second } else { third };
    let term = mesh.server(leader).consensus.term();

    mesh.cut(lonely, true);
    tokio::time::sleep(Duration::from_secs(3)).await;
    mesh.cut(lonely, false);
    mesh.apply_until_done(lonely, "back").await;

    assert_eq!(mesh.server(leader).consensus.term(), term);
    assert_eq!(mesh.server(lonely).leader(), Some(HostId(leader)));
}

#[tokio::test(flavor = "multi_thread")]
async fn same_key_is_applied_once() {
    let (mesh, second, _) = Mesh::of_three().await;
    let first = mesh.apply(second, "once", "the key").await.expect("applied");
    let other = mesh.apply(1, "twice", "the key").await.expect("answered as before");
    assert_eq!((other.revision, &other.results), (first.revision, &first.results));
    assert_eq!(mesh.names(1).await.expect("read"), ["once"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback_is_a_new_revision_and_shows_in_history() {
    let mesh = Mesh::init().await;
    let first = mesh.apply(1, "kept", "k1").await.expect("applied");
    mesh.apply(1, "undone", "k2").await.expect("applied");
    let back = Request::Rollback { to: first.revision, dry_run: false, key: "k3".to_owned() };
    mesh.call(1, back).await.expect("rolled back");
    assert_eq!(mesh.names(1).await.expect("read"), ["kept"]);
    let Response::History(history) = mesh.call(1, Request::History { limit: 2 }).await.expect("history")
    else {
        panic!()
    };
    let reasons: Vec<&str> = history.iter().map(|change| change.reason.as_str()).collect();
    assert_eq!(reasons[1], "apply undone");
    assert!(reasons[0].contains("rollback"), "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn token_is_used_once_and_refusals_differ() {
    let mut mesh = Mesh::init().await;
    let line = mesh.token().await;
    let joined = mesh.try_join("vm2", &line, wall_ms()).await.expect("joins");
    assert_eq!(joined.chain, [format!("spiffe://cluster.local/host/{}", joined.id)]);
    let again = mesh.try_join("vm2", &line, wall_ms()).await.expect("the same host gets its answer again");
    assert_eq!(again.id, joined.id);

    let (_, used) = code(mesh.try_join("vm3", &line, wall_ms()).await);
    assert!(used.contains("was used already, by host vm2"), "{used}");

    let (_, unknown) = code(mesh.try_join("vm3", &line.replacen("mj1.", "mj1.x", 1), wall_ms()).await);
    assert!(unknown.contains("is not one of this mesh"), "{unknown}");

    let fresh = mesh.token().await;
    let (why, taken) = code(mesh.try_join("vm2", &fresh, wall_ms()).await);
    assert_eq!(why, ErrorCode::Conflict);
    assert!(taken.contains(&format!("(id {}, 127.0.0.1:15008)", joined.id)), "{taken}");

    let (_, clock) = code(mesh.try_join("vm3", &fresh, wall_ms() + 3_600_000).await);
    assert!(clock.contains("3600 s ahead") || clock.contains("3599 s ahead"), "{clock}");

    let mut forged = mesh_proto::token::Token::parse(&fresh).expect("a token");
    forged.secret = [0; 16];
    let (why, proof) = code(mesh.try_join("vm3", &forged.reveal(), wall_ms()).await);
    assert_eq!(why, ErrorCode::Forbidden);
    assert!(proof.contains("does not hold"), "{proof}");
    mesh.try_join("vm3", &fresh, wall_ms()).await.expect("refusals used nothing up");
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_resumes_on_another_server_without_a_whole_world() {
    let (mesh, second, _) = Mesh::of_three().await;
    let mut agent = mesh.agent(1, second, None).await;
    let first = mesh.apply(1, "one", "k1").await.expect("write").revision;
    agent.follow("the first entry", |world| world.revision >= first && world.resources.len() == 1).await;
    assert_eq!(agent.worlds, 1);

    let mirror = std::mem::take(&mut agent.world);
    drop(agent);
    for name in ["two", "three"] {
        mesh.apply(1, name, name).await.expect("write");
    }
    let mut agent = mesh.agent(second, second, Some(mirror.revision)).await;
    agent.world = mirror;
    agent.follow("what came meanwhile", |world| world.resources.len() == 3).await;

    assert_eq!(agent.worlds, 0);
    assert_eq!(agent.world.public(), mesh.world(1).public());
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_sees_no_secret() {
    let mesh = Mesh::init().await;
    let _line = mesh.token().await;
    let mut agent = mesh.agent(1, 1, None).await;
    agent.follow("a world", |world| !world.hosts.is_empty()).await;
    assert_eq!(agent.world.private, mesh_core::world::Private::default());
    assert!(!mesh.world(1).private.tokens.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_that_does_not_read_delays_nobody() {
    let mesh = Mesh::init().await;
    let mut lazy = mesh.agent(1, 1, None).await;
    let mut keen = mesh.agent(1, 1, None).await;
    for number in 0..300 {
        let name = format!("entry-{number}");
        mesh.apply(1, &name, &name).await.expect("write");
    }
    keen.follow("all of it", |world| world.resources.len() == 300).await;
    lazy.follow("all of it, late", |world| world.resources.len() == 300).await;
    assert_eq!(lazy.world, keen.world);
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_ends_when_every_live_host_runs_it() {
    let (mesh, second, third) = Mesh::of_three().await;
    let revision = mesh.apply(1, "rule", "k1").await.expect("write").revision;
    let mut agents = Vec::new();
    for (server, host) in [(1, 1), (second, second), (second, third)] {
        agents.push(mesh.agent(server, host, None).await);
    }
    for agent in &mut agents[..2] {
        agent.say(Up { live: revision, ..Up::default() }).await;
    }
    agents[2].say(Up { live: Revision(1), problems: vec!["too new".to_owned()], ..Up::default() }).await;

    let wait = |timeout_ms| mesh.call(second, Request::Wait { revision, timeout_ms });
    let Response::Waited { live, behind, problems } = wait(400).await.expect("told") else { panic!() };
    assert_eq!(live, ["vm1", "vm2"]);
    assert_eq!(behind["vm3"], Revision(1));
    assert_eq!(problems, ["vm3: too new"]);

    agents[2].say(Up { live: revision, ..Up::default() }).await;
    let Response::Waited { live, behind, .. } = wait(5_000).await.expect("told") else { panic!() };
    assert_eq!((live.len(), behind.len()), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn registration_heard_by_a_follower_reaches_the_world_and_leaves_with_a_goodbye() {
    let (mesh, second, third) = Mesh::of_three().await;
    let registration = serde_json::from_value(serde_json::json!({"instances": {"reviews-1": {
        "service": "reviews", "ports": [{"number": 9080, "name": "http", "target": "127.0.0.1:9080"}]}}}));
    let mut agent = mesh.agent(second, third, None).await;
    let up = Up { registration: Some(registration.expect("a registration")), ..Up::default() };
    agent.say(up).await;
    let host = HostId(third);
    mesh.until("registered", |mesh| mesh.world(1).registrations.contains_key(&host)).await;

    let began = Instant::now();
    agent.say(Up { goodbye: true, ..Up::default() }).await;
    mesh.until("left", |mesh| mesh.world(1).hosts[&host].liveness == Liveness::Left).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());

    let mut agent = mesh.agent(1, third, None).await;
    agent.say(Up { facts: Some(facts()), ..Up::default() }).await;
    mesh.until("back", |mesh| mesh.world(1).hosts[&host].liveness == Liveness::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_stream_makes_a_host_suspect() {
    let mesh = Mesh::init().await;
    let agent = mesh.agent(1, 1, None).await;
    mesh.until("heard", |mesh| mesh.server(1).keeper.acknowledgements().contains_key(&HostId(1))).await;
    let began = Instant::now();
    drop(agent);
    mesh.until("suspect", |mesh| mesh.world(1).hosts[&HostId(1)].liveness == Liveness::Suspect).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn status_names_roles() {
    let (mesh, second, _) = Mesh::of_three().await;
    let Response::Status(status) = mesh.call(second, Request::Status).await.expect("status") else {
        panic!()
    };
    assert_eq!(status.mesh, super::mesh::MESH);
    assert_eq!(status.no_quorum, None);
    let roles: Vec<HostRole> = status.hosts.iter().map(|host| host.role).collect();
    assert_eq!(roles.iter().filter(|role| **role == HostRole::Leader).count(), 1);
    assert_eq!(roles.iter().filter(|role| **role == HostRole::Voter).count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn host_that_is_no_server_cannot_report_or_hide_its_name() {
    let (mut mesh, ..) = Mesh::of_three().await;
    let line = mesh.token().await;
    let agent = mesh.try_join("vm4", &line, wall_ms()).await.expect("joins").id.0;
    let report = Call {
        author: String::new(),
        request: Request::Report(std::collections::BTreeMap::default()),
        relayed: true,
    };
    let (why, _) = code(call_from(&mesh.server(1), agent, &report).await);
    assert_eq!(why, ErrorCode::Forbidden);

    let apply = Request::Apply(order("named", "k1"));
    let call = Call { author: "uid 0 on vm1".to_owned(), request: apply, relayed: false };
    call_from(&mesh.server(1), agent, &call).await.expect("applied");
    let history = mesh.world(1).private.history.back().expect("an entry").author.clone();
    assert_eq!(history, "uid 0 on vm4");
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_and_log_together_make_the_world_again() {
    let mut mesh = Mesh::init().await;
    for number in 0..40 {
        let name = format!("entry-{number:02}");
        mesh.apply(1, &name, &name).await.expect("write");
        if number == 20 {
            mesh.server(1).consensus.snapshot_now().await;
            mesh.until("a snapshot", |mesh| {
                mesh.folder(1).join("snapshots").read_dir().is_ok_and(|mut all| all.next().is_some())
            })
            .await;
        }
    }
    let before = mesh.world(1);
    mesh.kill(1);
    mesh.start(HostId(1)).await.expect("starts again");
    mesh.apply_until_done(1, "later").await;
    assert_eq!(mesh.world(1).resources.len(), 41);
    assert_eq!(mesh.world(1).hosts, before.hosts);
}

#[tokio::test(flavor = "multi_thread")]
async fn voter_whose_log_is_gone_does_not_begin_anew() {
    let mut mesh = Mesh::init().await;
    mesh.apply(1, "kept", "k1").await.expect("write");
    mesh.server(1).stop().await;
    mesh.kill(1);
    let log = mesh.folder(1).join("raft.redb");
    let kept = mesh.folder(1).join("kept.redb");
    std::fs::rename(&log, &kept).expect("moved away");

    let refused = mesh.start(HostId(1)).await.expect_err("refused");

    assert!(refused.needs_person(), "{refused}");
    assert!(refused.to_string().contains("raft.redb is gone, and this host has had one"), "{refused}");
    assert!(!log.exists(), "none is begun in its place");
    std::fs::rename(&kept, &log).expect("put back");
    mesh.start(HostId(1)).await.expect("starts again");
    mesh.apply_until_done(1, "later").await;
    assert_eq!(mesh.names(1).await.expect("read"), ["kept", "later"]);
}

/// Forms three voters over real sockets, kills the leader, writes on, and brings it back.
async fn live_through_the_death_of_a_leader(medium: Medium) {
    let (mut mesh, second, third) = Mesh::of_three_over(medium).await;
    mesh.apply(third, "before", "k1").await.expect("write");

    mesh.kill(1);
    let gap = mesh.apply_until_done(second, "after").await;
    assert!(gap < Duration::from_secs(2), "{medium:?}: {gap:?}");

    mesh.start(HostId(1)).await.expect("starts again");
    mesh.apply_until_done(1, "back").await;
    assert_eq!(mesh.names(1).await.expect("read"), ["after", "back", "before"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn mesh_lives_through_the_death_of_a_leader_over_quic() {
    live_through_the_death_of_a_leader(Medium::Quic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mesh_lives_through_the_death_of_a_leader_where_udp_is_blocked() {
    live_through_the_death_of_a_leader(Medium::Tcp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_disk_refuses_writes_keeps_reads_and_heals() {
    let mesh = Mesh::init().await;
    mesh.apply(1, "before", "k1").await.expect("write");
    mesh.server(1).consensus.fail_next_write();

    let (why, message) = code(mesh.apply(1, "lost", "k2").await);

    assert_eq!(why, ErrorCode::Unavailable, "{message}");
    assert!(message.contains("raft.redb"), "{message}");
    assert_eq!(mesh.world(1).resources.len(), 1, "reading goes on");
    mesh.apply_until_done(1, "after").await;
    assert!(mesh.names(1).await.expect("read").contains(&"before".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_whose_disk_failed_comes_back() {
    let (mesh, second, _) = Mesh::of_three().await;
    let before = mesh.server(second).consensus.opened();
    mesh.server(second).consensus.fail_next_write();
    mesh.apply_until_done(1, "meanwhile").await;
    mesh.until("opened anew", |mesh| mesh.server(second).consensus.opened() != before).await;
    mesh.until("caught up", |mesh| mesh.world(second).resources.len() == 1).await;
    assert_eq!(mesh.server(second).failure(), None);
}

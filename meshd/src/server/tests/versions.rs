//! Meshes of which some hosts are newer than others: a rolling upgrade, host by host.

use mesh_core::world::World;
use mesh_proto::api::{ErrorCode, Request, Response};
use mesh_proto::command::{HostFacts, HostId};
use mesh_proto::watch::Up;
use serde_json::{Value, json};

use super::mesh::{Mesh, call_in, code, facts};

fn told(world: &World) -> Value {
    serde_json::to_value(world.whole()).expect("JSON")
}

async fn problems(mesh: &Mesh, of: u64) -> Vec<String> {
    match mesh.call(1, Request::Status).await {
        Ok(Response::Status(status)) => {
            let host = status.hosts.into_iter().find(|host| host.id == HostId(of));
            host.expect("a host").problems
        }
        other => panic!("{other:?}"),
    }
}

/// The safety net: whatever a newer leader writes, an older voter takes all of it or nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_cannot_read_an_entry_falls_behind_by_name_and_catches_up_after_its_upgrade() {
    let (mesh, _, third) = Mesh::of_three().await;
    mesh.apply(1, "before", "k0").await.expect("written");
    mesh.until("all have it", |mesh| mesh.world(third).revision == mesh.world(1).revision).await;
    let mut agent = mesh.agent(third, third, None).await;
    agent.follow("its World", |world| world.resources.len() == 1).await;
    mesh.set_older(third, true);

    mesh.apply(1, "newer", "k1").await.expect("the majority goes on");

    mesh.until("it refuses", |mesh| mesh.server(third).consensus.behind().is_some()).await;
    let why = format!(
        "the log holds what meshd {} does not know (unknown field `command.wave`): upgrade this host",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(mesh.server(third).consensus.behind().as_ref(), Some(&why));
    assert_eq!(mesh.world(third).resources.len(), 1, "nothing is half read");
    assert_eq!(problems(&mesh, third).await, [why.as_str()]);
    agent.until_ended().await;
    let mut agent = mesh.agent(third, third, None).await;
    agent.until_ended().await;
    assert_eq!(agent.worlds, 0, "agents are sent to servers that know the present");

    mesh.set_older(third, false);

    mesh.until("it has caught up", |mesh| told(&mesh.world(third)) == told(&mesh.world(1))).await;
    assert_eq!(mesh.server(third).consensus.behind(), None);
    assert!(problems(&mesh, third).await.is_empty());
}

/// The gate: a leader that knows of an older member asks it before it writes.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_voter_cannot_read_is_not_written_until_it_is_upgraded() {
    let (mesh, _, third) = Mesh::of_three().await;
    let mut agent = mesh.agent(1, third, None).await;
    let older = HostFacts { version: "0.0.9".to_owned(), ..facts() };
    agent.say(Up { facts: Some(older), ..Up::default() }).await;
    let version =
        |mesh: &Mesh| mesh.world(1).hosts.get(&HostId(third)).map(|host| host.facts.version.clone());
    mesh.until("its version is known", |mesh| version(mesh).as_deref() == Some("0.0.9")).await;
    mesh.apply(1, "known-to-both", "k0").await.expect("both can read it");
    mesh.set_older(third, true);

    let (code, message) = code(mesh.apply(1, "newer", "k1").await);

    assert_eq!(code, ErrorCode::Unavailable);
    assert_eq!(
        message,
        "nothing was changed: vm3, a server with meshd 0.0.9, cannot read it (unknown field `command.wave`): upgrade meshd \
         there first"
    );
    assert_eq!(mesh.names(1).await.expect("read"), ["known-to-both"]);
    assert_eq!(mesh.server(third).consensus.behind(), None);

    mesh.cut(third, true);
    mesh.apply_until_done(1, "one-that-is-away-is-not-waited-for").await;
    mesh.cut(third, false);
    mesh.set_older(third, false);
    mesh.until("it has caught up", |mesh| told(&mesh.world(third)) == told(&mesh.world(1))).await;
    mesh.apply(1, "newer", "k2").await.expect("written after the upgrade");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_of_a_newer_meshctl_is_refused_with_the_name_of_who_is_older() {
    let mesh = Mesh::init().await;
    let order = json!({"batch": {"changes": [], "reason": "r", "prune": true}, "dry_run": false, "strict": false, "key": "k"});
    for (request, what) in [
        (json!({"apply": order}), "unknown field `request.batch.prune`"),
        (json!({"evict": {"host": "vm1"}}), "unknown variant `evict`"),
    ] {
        let answer =
            call_in(&mesh.server(1), 1, &json!({"author": "uid 0 on vm1", "request": request})).await;

        let (code, message) = code(answer);
        assert_eq!(code, ErrorCode::Invalid);
        assert_eq!(
            message,
            format!(
                "vm1 runs meshd {}, which does not know this ({what}); nothing was changed: upgrade meshd there",
                env!("CARGO_PKG_VERSION")
            )
        );
    }
}

/// A host that is upgraded before its servers goes on: what they understand of its offer is taken, the rest is named.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_newer_than_its_server_is_heard() {
    let mesh = Mesh::init().await;
    let mut agent = mesh.agent(1, 1, None).await;
    let plain = json!({"service": "reviews", "ports": [{"number": 80, "target": "127.0.0.1:80"}], "tier": 1});
    let mail =
        json!({"service": "mail", "ports": [{"number": 25, "target": "127.0.0.1:25", "protocol": "SMTP"}]});

    agent
        .say_json(&json!({"live": 1, "load": 0.5, "registration": {"instances": {"r": plain, "m": mail}}}))
        .await;

    agent
        .follow("what is understood is registered", |world| {
            world.registrations.get(&HostId(1)).is_some_and(|offer| offer.instances.keys().eq(["r"]))
        })
        .await;
    assert_eq!(
        problems(&mesh, 1).await,
        ["instance m is not known to the mesh (unknown variant `SMTP`): it needs a newer meshd on vm1"]
    );
}

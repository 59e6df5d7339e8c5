//! What near and far mean for a caller: zones, and labels shared.

use mesh_proto::resource::{Kind, ObjectKey};

use super::*;
use crate::balance::Hint;
use crate::balance::fixture::{assert_shares, count};
use crate::plan::{Action, Locality};

fn rule(policy: &str) -> String {
    format!(
        "{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: reviews}}, \
         spec: {{host: reviews, trafficPolicy: {policy}}}}}"
    )
}

fn mesh(spec: &str) -> String {
    let metadata = "metadata: {name: default, namespace: istio-system}";
    format!("{{apiVersion: mesh.istio.io/v1alpha1, kind: MeshConfig, {metadata}, spec: {spec}}}")
}

#[test]
fn zones_count_by_where_the_callers_of_the_same_account_are() {
    let mut world = world();
    for (id, zone) in [(1, "eu/a"), (2, "eu/b")] {
        let mut host = mesh_proto::watch::Host::clone(&world.hosts[&HostId(id)]);
        host.facts.locality = zone.into();
        world.absorb(&Change::Host { id: HostId(id), host: Some(host) });
    }
    apply(&mut world, &rule("{loadBalancer: {zoneAwareLbSetting: {enabled: true, minClusterSize: 1}}}"));
    let at = |account: &str| {
        let mut node = Node::clone(&node());
        node.locality = Locality::parse("eu/a");
        node.callers =
            vec![Workload { namespace: "default".into(), account: account.into(), ..Workload::default() }];
        let plan = compile(&world, &Arc::new(node), None);
        let cluster = &plan.clusters[&name("")];
        count(cluster, &Hint::default(), 10_000, 1)
    };
    // Two instances each here and there, both of reviews' own account: half of the callers, half of the endpoints.
    assert_shares(&at("reviews"), &[1, 1, 0, 0]);
    // Nobody of that account is anywhere: every host stands for a caller.
    assert_shares(&at("batch"), &[1, 1, 0, 0]);
    // The mesh's setting holds where the rule has none of its own.
    let key = ObjectKey::new(Kind::DestinationRule, "default", "reviews");
    world.resources.remove(&key);
    apply(&mut world, &mesh("{zoneAwareLbSetting: {minClusterSize: 9}}"));
    let mut node = Node::clone(&node());
    node.locality = Locality::parse("eu/a");
    let plan = compile(&world, &Arc::new(node), None);
    let counts = count(&plan.clusters[&name("")], &Hint::default(), 10_000, 2);
    assert_shares(&counts, &[1; 4]);
}

#[test]
fn the_mesh_may_order_endpoints_by_labels_too() {
    let mut world = world();
    apply(&mut world, &mesh("{localityLbSetting: {failoverPriority: [version]}}"));
    apply(&mut world, &rule("{outlierDetection: {}}"));
    let mut node = Node::clone(&node());
    node.callers = ["v1", "v2"]
        .map(|version| Workload {
            namespace: "default".into(),
            labels: [("version".to_owned(), version.to_owned())].into(),
            ..Workload::default()
        })
        .into();
    let plan = compile(&world, &Arc::new(node), None);
    for (caller, expected) in [(0, [1, 0, 1, 0]), (1, [0, 1, 0, 1])] {
        let host = plan.outbounds[caller].ports[&9080].http.find("reviews").expect("a host");
        let Action::Forward(forward) = &host.routes[0].action else { panic!("it forwards") };
        let cluster = forward.destinations[0].cluster.as_ref().expect("a cluster");
        let counts = count(cluster, &Hint::default(), 10_000, 3);
        assert_shares(&counts, &expected);
    }
}

/// Source: Istio `GetEffectiveLbSetting`: a setting for zones wins over one for localities, also where it says no.
#[test]
fn zones_that_do_not_count_let_no_locality_count() {
    let mut world = world();
    for (id, zone) in [(1, "eu/a"), (2, "us/a")] {
        let mut host = mesh_proto::watch::Host::clone(&world.hosts[&HostId(id)]);
        host.facts.locality = zone.into();
        world.absorb(&Change::Host { id: HostId(id), host: Some(host) });
    }
    let at = |world: &World| {
        let mut node = Node::clone(&node());
        node.locality = Locality::parse("eu/a");
        let plan = compile(world, &Arc::new(node), None);
        count(&plan.clusters[&name("")], &Hint::default(), 10_000, 4)
    };
    apply(&mut world, &rule("{outlierDetection: {}}"));
    assert_shares(&at(&world), &[1, 1, 0, 0]);
    apply(&mut world, &mesh("{zoneAwareLbSetting: {enabled: false}, localityLbSetting: {enabled: true}}"));
    assert_shares(&at(&world), &[1; 4]);
    apply(&mut world, &rule("{outlierDetection: {}, loadBalancer: {localityLbSetting: {enabled: true}}}"));
    assert_shares(&at(&world), &[1, 1, 0, 0]);
    apply(&mut world, &rule("{outlierDetection: {}, loadBalancer: {zoneAwareLbSetting: {enabled: false}}}"));
    assert_shares(&at(&world), &[1; 4]);
}

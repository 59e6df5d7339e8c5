//! What the fields of a `DestinationRule` and a `ServiceEntry` become.

use std::time::Duration;

use super::*;
use crate::plan::{HashKey, ProxyVersion, RetryBudget, TlsMaterial, TlsOrigination, UpstreamTls, Warmup};

/// Compiles the rule `policy` for `reviews`; returns its cluster.
fn with_policy(policy: &str) -> Arc<crate::plan::Cluster> {
    let mut world = world();
    apply(&mut world, &rule("reviews", policy));
    compile(&world, &node(), None).clusters[&name("")].clone()
}

fn rule(host: &str, policy: &str) -> String {
    let policy = policy.replace('\n', "\n  ");
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {host}}}\nspec:\n  host: {host}\n  trafficPolicy: {policy}\n"
    )
}

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

#[test]
fn connection_pool_settings_become_limits() {
    let limits = &with_policy(
        "{connectionPool: {tcp: {maxConnections: 1, connectTimeout: 2s, idleTimeout: 3s, maxConnectionDuration: 4s, \
         tcpKeepalive: {probes: 5, time: 6s, interval: 7s}}, http: {http1MaxPendingRequests: 8, http2MaxRequests: 9, \
         maxRequestsPerConnection: 10, maxRetries: 11, maxConcurrentStreams: 12, \
         http2KeepAlive: {interval: 13s, timeout: 14s}}}}",
    )
    .limits;
    assert_eq!((limits.max_connections, limits.connect_timeout), (Some(1), seconds(2)));
    assert_eq!((limits.idle_timeout, limits.tcp_idle_timeout), (Some(seconds(3)), Some(seconds(3))));
    assert_eq!(limits.max_connection_duration, Some(seconds(4)));
    assert_eq!(limits.tcp_keepalive, Some((Some(5), Some(seconds(6)), Some(seconds(7)))));
    assert_eq!((limits.max_pending, limits.max_requests), (Some(8), Some(9)));
    assert_eq!((limits.max_requests_per_connection, limits.max_retries), (Some(10), Some(11)));
    assert_eq!(limits.max_concurrent_streams, Some(12));
    assert_eq!(limits.http2_keep_alive, Some((seconds(13), seconds(14))));
}

#[test]
fn idle_timeouts_of_http_and_tcp_stand_apart() {
    let idle = |policy: &str| {
        let limits = with_policy(policy).limits.clone();
        (limits.idle_timeout, limits.tcp_idle_timeout)
    };
    let hour = Some(seconds(3_600));
    assert_eq!(idle("{connectionPool: {http: {idleTimeout: 5s}}}"), (Some(seconds(5)), hour));
    assert_eq!(
        idle("{connectionPool: {tcp: {idleTimeout: 0s}, http: {idleTimeout: 5s}}}"),
        (Some(seconds(5)), None)
    );
    assert_eq!(idle("{connectionPool: {tcp: {maxConnections: 1}}}"), (hour, hour));
}

#[test]
fn a_retry_budget_has_istios_defaults() {
    let budget = |policy: &str| with_policy(policy).limits.retry_budget;
    let given = "{retryBudget: {percent: 12.5, budgetInterval: 3s, minRetryConcurrency: 7}}";
    assert_eq!(
        budget(given),
        Some(RetryBudget { parts_per_million: 125_000, at_least: 7, interval: seconds(3) })
    );
    assert_eq!(
        budget("{retryBudget: {minRetryConcurrency: 3}}"),
        Some(RetryBudget { parts_per_million: 200_000, at_least: 3, interval: Duration::ZERO })
    );
    assert_eq!(budget("{loadBalancer: {simple: RANDOM}}"), None);
}

#[test]
fn settings_of_a_port_leave_what_only_the_whole_policy_has() {
    let cluster = with_policy(
        "{proxyProtocol: {version: V2}, retryBudget: {percent: 1}, loadBalancer: {simple: RANDOM}, \
         portLevelSettings: [{port: {number: 9080}, connectionPool: {tcp: {maxConnections: 1}}}]}",
    );
    assert_eq!(cluster.proxy_protocol, Some(ProxyVersion::V2));
    assert!(cluster.limits.retry_budget.is_some());
    assert!(matches!(cluster.balancer, Balancer::LeastRequest));
}

#[test]
fn every_spelling_of_a_balancer_is_one() {
    let simple = |name: &str| {
        let cluster = with_policy(&format!("{{loadBalancer: {{simple: {name}}}}}"));
        crate::views::balancing(&cluster.balancer)
    };
    for (name, expected) in [
        ("UNSPECIFIED", "least request"),
        ("LEAST_CONN", "least request"),
        ("LEAST_REQUEST", "least request"),
        ("ROUND_ROBIN", "round robin"),
        ("RANDOM", "random"),
        ("PASSTHROUGH", "passthrough"),
    ] {
        assert_eq!(simple(name), expected, "{name}");
    }
}

#[test]
fn warmup_holds_where_weights_count() {
    let warmup = |policy: &str| with_policy(policy).warmup;
    assert_eq!(
        warmup("{loadBalancer: {warmup: {duration: 30s, minimumPercent: 25, aggression: 2}}}"),
        Some(Warmup { duration: seconds(30), minimum: 0.25, aggression: 2.0 })
    );
    assert_eq!(
        warmup("{loadBalancer: {simple: ROUND_ROBIN, warmupDurationSecs: 30s}}"),
        Some(Warmup { duration: seconds(30), minimum: 0.1, aggression: 1.0 })
    );
    assert_eq!(warmup("{loadBalancer: {simple: RANDOM, warmup: {duration: 30s}}}"), None);
}

#[test]
fn cookies_are_made_with_their_attributes() {
    let cluster = with_policy(
        "{loadBalancer: {consistentHash: {httpCookie: {name: u, ttl: 5s, \
         attributes: [{name: SameSite, value: Strict}, {name: Secure}, {name: \"x; y\"}]}}}}",
    );
    let Balancer::RingHash { policy, .. } = &cluster.balancer else { panic!("a ring") };
    let HashKey::Cookie { attributes, .. } = &policy.key else { panic!("a cookie") };
    assert_eq!(attributes, "; SameSite=Strict; Secure");
}

#[test]
fn outlier_detection_reads_every_field() {
    let outlier = |policy: &str| with_policy(policy).outlier.clone().expect("watched");
    let split = outlier(
        "{outlierDetection: {splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 3}}",
    );
    assert_eq!(split.consecutive_local, Some(3));
    assert_eq!(
        outlier("{outlierDetection: {splitExternalLocalOriginErrors: true}}").consecutive_local,
        Some(5)
    );
    let codes =
        outlier("{outlierDetection: {outlierDetectionHttpErrorCodes: [429, 500], minHealthPercent: 30}}");
    assert_eq!(
        (codes.consecutive_local, codes.error_codes.clone(), codes.min_health_percent),
        (None, vec![429, 500], 30)
    );
}

const EXTERNAL: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ext}
spec:
  hosts: [ext.example.com]
  resolution: STATIC
  subjectAltNames: [spiffe://other/ext]
  ports: [{number: 443, name: http, protocol: HTTP}]
  endpoints: [{address: 192.0.2.1}]
";

fn external_tls(policy: &str) -> UpstreamTls {
    let mut world = world();
    apply(&mut world, EXTERNAL);
    apply(&mut world, &rule("ext.example.com", policy).replace("name: ext.example.com}", "name: ext}"));
    let name = ClusterName { host: "ext.example.com".into(), port: 443, subset: "".into() };
    compile(&world, &node(), None).clusters[&name].tls.clone()
}

fn originate(policy: &str) -> TlsOrigination {
    match external_tls(policy) {
        UpstreamTls::Originate(settings) => (*settings).clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_servers_certificate_must_show_follows_the_rule() {
    let entry = vec!["spiffe://other/ext".to_owned()];
    // Rule; whether the Host counts; the names of which one must be there.
    let cases = [
        ("{tls: {mode: SIMPLE}}", true, entry.clone()),
        ("{tls: {mode: SIMPLE, sni: a.example.com}}", false, entry.clone()),
        ("{tls: {mode: SIMPLE, subjectAltNames: [b]}}", false, vec!["b".to_owned()]),
        ("{tls: {mode: SIMPLE, insecureSkipVerify: true}}", false, entry),
    ];
    for (policy, host, names) in cases {
        let settings = originate(policy);
        assert_eq!((settings.check_host, settings.subject_alt_names), (host, names), "{policy}");
    }
}

#[test]
fn tls_material_comes_from_files_or_a_secret() {
    let files = originate(
        "{tls: {mode: MUTUAL, clientCertificate: /c, privateKey: /k, caCertificates: /r, caCrl: /l, sni: s}}",
    );
    assert!(files.mutual);
    assert_eq!((files.sni.as_str(), files.ca_crl.as_str()), ("s", "/l"));
    let (ca_certificates, client_certificate, private_key) = ("/r".into(), "/c".into(), "/k".into());
    assert_eq!(files.material, TlsMaterial::Files { ca_certificates, client_certificate, private_key });
    let secret = originate("{tls: {mode: SIMPLE, credentialName: ext-tls}}");
    assert_eq!((secret.mutual, secret.material), (false, TlsMaterial::Secret("ext-tls".into())));
    assert_eq!(external_tls("{tls: {mode: DISABLE}}"), UpstreamTls::Disable);
}

#[test]
fn istio_mutual_asks_for_the_name_of_a_hop_unless_told_another() {
    for (policy, sni) in [
        ("{tls: {mode: ISTIO_MUTUAL}}", "outbound_.443_._.ext.example.com"),
        ("{tls: {mode: ISTIO_MUTUAL, sni: a.example.com}}", "a.example.com"),
    ] {
        let UpstreamTls::Mesh(settings) = external_tls(policy) else { panic!("the mesh's TLS") };
        assert_eq!((settings.sni.as_str(), &settings.material), (sni, &TlsMaterial::Mesh));
        assert_eq!(settings.subject_alt_names, ["spiffe://other/ext"]);
    }
}

#[test]
fn a_unix_socket_is_an_endpoint() {
    let mut world = world();
    apply(&mut world, &EXTERNAL.replace("192.0.2.1", "unix:///run/app.sock"));
    let name = ClusterName { host: "ext.example.com".into(), port: 443, subset: "".into() };
    let plan = compile(&world, &node(), None);
    assert_eq!(plan.clusters[&name].endpoints.all[0].via, Via::Socket("/run/app.sock".into()));
}

#[test]
fn dynamic_names_are_those_of_each_request() {
    let mut world = world();
    let entry = EXTERNAL
        .replace("hosts: [ext.example.com]", "hosts: [\"*.example.com\"]")
        .replace("STATIC", "DYNAMIC_DNS")
        .replace("  endpoints: [{address: 192.0.2.1}]\n", "")
        .replace("protocol: HTTP}", "protocol: HTTP, targetPort: 8443}");
    apply(&mut world, &entry);
    let name = ClusterName { host: "*.example.com".into(), port: 443, subset: "".into() };
    let plan = compile(&world, &node(), None);
    assert!(matches!(plan.clusters[&name].balancer, Balancer::ByName { port: 8443 }));
}

const SELECTED: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: everybody}
spec: {host: reviews, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: some}
spec:
  host: reviews
  workloadSelector: {matchLabels: {app: web}}
  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews}}]}]}
";

/// The cluster that a caller's route to `reviews` leads to.
fn destination(plan: &Plan, caller: usize) -> Arc<crate::plan::Cluster> {
    let table = &plan.outbounds[caller].ports[&9080];
    let host = crate::route::find_host(table, "reviews.default.svc.cluster.local").expect("a host");
    let crate::plan::Action::Forward(forward) = &host.routes[0].action else { panic!("forwards") };
    forward.destinations[0].cluster.clone().expect("a cluster")
}

fn labelled(labels: &[&str]) -> Arc<Node> {
    let callers = labels.iter().map(|app| Workload {
        namespace: "default".into(),
        account: "a".into(),
        labels: [("app".to_owned(), (*app).to_owned()), ("rack".to_owned(), (*app).to_owned())].into(),
        ..Workload::default()
    });
    Arc::new(Node { callers: callers.collect(), ..Node::clone(&node()) })
}

#[test]
fn a_rule_for_some_workloads_holds_for_those_only() {
    let mut world = world();
    apply(&mut world, SELECTED);
    let plan = compile(&world, &labelled(&["web", "other"]), None);
    assert!(matches!(destination(&plan, 0).balancer, Balancer::RoundRobin));
    assert!(matches!(destination(&plan, 1).balancer, Balancer::Random));
    // One that selects others is nothing to a caller.
    let key = mesh_proto::resource::ObjectKey::new(
        mesh_proto::resource::Kind::DestinationRule,
        "default",
        "everybody",
    );
    world.resources.remove(&key);
    let plan = compile(&world, &labelled(&["web", "other"]), None);
    assert!(matches!(destination(&plan, 1).balancer, Balancer::LeastRequest));
}

#[test]
fn failover_priority_ranks_by_shared_labels() {
    let mut world = world();
    let policy = "{outlierDetection: {}, loadBalancer: {localityLbSetting: {failoverPriority: [version=v2, \
                  kubernetes.io/hostname]}}}";
    apply(&mut world, &rule("reviews", policy));
    let plan = compile(&world, &node(), None);
    let cluster = &plan.clusters[&name("")];
    // Instances v1 and v2 on this host, then on the other.
    let mut rng = crate::balance::chance::SeededRng(1);
    let mut picked = || {
        let hint = crate::balance::Hint::default();
        let moment = crate::endpoint::Moment(1);
        crate::balance::pick(cluster, &hint, moment, &mut rng).map(|endpoint| endpoint.id.to_string())
    };
    assert!((0..20).all(|_| picked().as_deref() == Some("reviews-v2@vm1")));
    crate::balance::fixture::eject(cluster, 1);
    assert!((0..20).all(|_| picked().as_deref() == Some("reviews-v2@vm2")));
    // Whose first label differs is as far as any other such.
    crate::balance::fixture::eject(cluster, 3);
    let far: std::collections::BTreeSet<_> = (0..100).filter_map(|_| picked()).collect();
    assert!(far.iter().eq(["reviews-v1@vm1", "reviews-v1@vm2"]), "{far:?}");
    // Without outlier detection nobody would ever be left for another: labels do not count.
    let without = with_policy("{loadBalancer: {localityLbSetting: {failoverPriority: [version]}}}");
    assert_eq!(without.endpoints.members(), 4);
}

#[test]
fn a_tunnel_names_its_target_and_how_it_is_asked_for() {
    let detour = |policy: &str| *with_policy(policy).detour.clone().expect("a detour");
    let plain = detour("{tunnel: {targetHost: db.example.com, targetPort: 5432}}");
    assert_eq!((plain.authority.as_str(), plain.post, plain.http2), ("db.example.com:5432", false, false));
    let post = detour(
        "{tunnel: {protocol: POST, targetHost: \"2001:db8::1\", targetPort: 1}, connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}",
    );
    assert_eq!((post.authority.as_str(), post.post, post.http2), ("[2001:db8::1]:1", true, true));
}

#[test]
fn accounts_of_endpoints_are_names_their_certificates_may_show() {
    let mut world = world();
    apply(&mut world, &EXTERNAL.replace("192.0.2.1}", "192.0.2.1, serviceAccount: db, network: one}"));
    apply(&mut world, &rule("ext.example.com", "{tls: {mode: SIMPLE}}"));
    let name = ClusterName { host: "ext.example.com".into(), port: 443, subset: "".into() };
    let node = Node { trust_domain: "mesh.example".into(), ..Node::clone(&node()) };
    let plan = compile(&world, &Arc::new(node), None);
    let UpstreamTls::Originate(settings) = &plan.clusters[&name].tls else { panic!("TLS") };
    let names = ["spiffe://other/ext", "spiffe://mesh.example/ns/default/sa/db"];
    assert_eq!(settings.subject_alt_names, names);
}

#[test]
fn entries_of_one_host_bring_their_endpoints_together() {
    let mut world = world();
    let entry = |name: &str, address: &str, target: u16| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec: {{hosts: [a.com], \
             resolution: STATIC, ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {target}}}], endpoints: \
             [{{address: {address}}}]}}\n"
        )
    };
    apply(&mut world, &entry("one", "192.0.2.1", 8080));
    let before = compile(&world, &node(), None);
    apply(&mut world, &entry("two", "192.0.2.2", 9090));
    let both = |plan: &Plan| {
        let name = ClusterName { host: "a.com".into(), port: 80, subset: "".into() };
        let vias = plan.clusters[&name].endpoints.all.iter().map(|endpoint| endpoint.via.clone());
        vias.collect::<Vec<_>>()
    };
    let wanted = [([192, 0, 2, 1], 8080), ([192, 0, 2, 2], 9090)].map(|address| Via::Plain(address.into()));
    assert_eq!(both(&compile(&world, &node(), None)), wanted);
    assert_eq!(both(&compile(&world, &node(), Some(&before))), wanted);
}

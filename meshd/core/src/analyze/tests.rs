use std::collections::BTreeMap;

use mesh_proto::command::{HostId, Precondition, ResourceChange};
use mesh_proto::finding::Severity;
use mesh_proto::registration::{Health, Instance, PortBinding, Protocol, Registration};
use mesh_proto::watch::Change;

use std::sync::Arc;

use mesh_proto::command::Revision;
use mesh_proto::value::Labels;
use mesh_proto::watch::Stored;

use super::*;

fn world() -> World {
    let mut world = World::default();
    world.mesh.domain = "cluster.local".into();
    let instance = Instance {
        service: "reviews".into(),
        group: None,
        namespace: "default".into(),
        account: "default".into(),
        labels: Labels::new(),
        ports: vec![PortBinding {
            number: 9080,
            name: String::new(),
            protocol: Protocol::Http,
            target: ([127, 0, 0, 1], 1).into(),
        }],
        address: None,
        weight: 1,
        locality: None,
        check: None,
        health: Health::Healthy,
    };
    let registration = Registration { instances: BTreeMap::from([("r".to_owned(), instance.into())]) };
    world.absorb(&Change::Registration { host: HostId(1), registration: Some(registration) });
    world
}

fn batch(yaml: &str) -> Batch {
    let (documents, findings) = mesh_proto::yaml::read("rules.yaml", yaml);
    assert!(findings.iter().all(|finding| !finding.is_error()), "{findings:?}");
    let change = |object: mesh_proto::resource::Object| ResourceChange {
        key: object.key(),
        object: Some(object),
        expect: Precondition::Any,
    };
    Batch {
        changes: documents.into_iter().map(|document| change(document.object)).collect(),
        reason: String::new(),
    }
}

fn texts(yaml: &str) -> Vec<String> {
    check(&world(), &batch(yaml)).iter().map(ToString::to_string).collect()
}

#[test]
fn missing_destinations_are_told_with_what_exists() {
    let found = texts(
        r"
kind: DestinationRule
apiVersion: networking.istio.io/v1
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1}, {name: v2}]}
---
kind: VirtualService
apiVersion: networking.istio.io/v1
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{uri: {prefix: /a}}]
    route: [{destination: {host: reviews, subset: v3, port: {number: 80}}}]
  - match: [{uri: {prefix: /b}}]
    route: [{destination: {host: reviews.default}}]
",
    );
    let wanted = [
        "warning: VirtualService default/reviews: spec.http[0].route[0].destination.port.number: Referenced host:port not found: \"reviews:80\": reviews.default.svc.cluster.local has no port 80 (has: 9080): requests are answered 503",
        "warning: VirtualService default/reviews: spec.http[0].route[0].destination.subset: Referenced host+subset in destinationrule not found: \"reviews+v3\": subset \"v3\" is not in any DestinationRule for reviews.default.svc.cluster.local (has: v1, v2): requests are answered 503",
        "warning: VirtualService default/reviews: spec.http[1].route[0].destination.host: Referenced host not found: \"reviews.default\": no service that namespace default sees has the host reviews.default (default has: reviews): requests are answered 503; a name with a dot is not completed; write reviews.default.svc.cluster.local",
    ];
    assert_eq!(found, wanted);
}

#[test]
fn shadowed_routes_and_second_rules_are_told() {
    let found = texts(
        r#"
kind: VirtualService
apiVersion: networking.istio.io/v1
metadata: {name: a}
spec:
  hosts: [reviews]
  http:
  - route: [{destination: {host: reviews}}]
  - match: [{uri: {prefix: /late}}]
    directResponse: {status: 200}
---
kind: VirtualService
apiVersion: networking.istio.io/v1
metadata: {name: b}
spec:
  hosts: [reviews, revews]
  http:
  - directResponse: {status: 200}
    headers: {response: {set: {x: "%UNKNOWN%"}}}
"#,
    );
    assert_eq!(found.len(), 4, "{found:#?}");
    assert!(found[0].contains(
        "spec.http[1]: VirtualService rule http[1] not used (http[0] before it takes every request)"
    ));
    assert!(found[1].contains(
        "those of VirtualService default/a count (it is older, or the first by namespace and name)"
    ));
    assert!(found[2].contains("host revews.default.svc.cluster.local is no service"));
    assert!(found[3].contains("\"%UNKNOWN%\" is not a variable"));
}

#[test]
fn a_service_entry_for_a_service_and_a_rule_for_nobody_are_told() {
    let found = texts(
        r"
kind: ServiceEntry
apiVersion: networking.istio.io/v1
metadata: {name: twice}
spec:
  hosts: [reviews.default.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 192.0.2.1}]
---
kind: DestinationRule
apiVersion: networking.istio.io/v1
metadata: {name: nobody}
spec: {host: nobody}
",
    );
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains("no service has host nobody.default.svc.cluster.local (default has: reviews)"));
    assert!(found[1].contains("is a registered service of namespace default already"));
}

#[test]
fn a_batch_is_told_what_it_breaks_for_others_but_not_what_was_broken_before() {
    let mut world = world();
    let rules = r"
kind: VirtualService
apiVersion: networking.istio.io/v1
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http: [{route: [{destination: {host: reviews, subset: v1}}]}]
---
kind: DestinationRule
apiVersion: networking.istio.io/v1
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1}]}
---
kind: DestinationRule
apiVersion: networking.istio.io/v1
metadata: {name: nobody}
spec: {host: nobody}
";
    for change in batch(rules).changes {
        let object = change.object.expect("an object");
        let stored = Stored { object, created: Revision(1), changed: Revision(1) };
        world.resources.insert(change.key, Arc::new(stored));
    }
    let gone = ObjectKey::new(Kind::DestinationRule, "default", "reviews");
    let delete = Batch {
        changes: vec![ResourceChange { key: gone, object: None, expect: Precondition::Any }],
        reason: String::new(),
    };
    let found = check(&world, &delete);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((found[0].severity, &*found[0].code), (Severity::Warning, "IST0101"));
}

/// Everything `analyze` says of rules, as code and text.
fn thoroughly(rules: &str) -> Vec<(String, String)> {
    let world = sketch::after(&world(), &batch(rules));
    let found = thorough(&world);
    found
        .into_iter()
        .map(|finding| (finding.code.to_string(), format!("{}: {}", finding.path, finding.message)))
        .collect()
}

fn has(found: &[(String, String)], code: &str, text: &str) -> bool {
    found.iter().any(|(is, message)| is == code && message.contains(text))
}

#[test]
fn a_route_whose_requests_are_all_taken_before_is_told() {
    let rule = |second: &str| {
        format!(
            "kind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {{name: a}}\nspec:\n  hosts: [reviews]\n  http:\n  \
             - match: [{{uri: {{prefix: /api}}}}]\n    route: [{{destination: {{host: reviews}}}}]\n  \
             - match: {second}\n    route: [{{destination: {{host: reviews}}}}]\n"
        )
    };
    let shadowed = |second: &str| {
        has(&thoroughly(&rule(second)), "IST0130", "rule #1 not used (all matches used by prior rules")
    };

    assert!(shadowed("[{uri: {prefix: /api/v1}, headers: {a: {exact: b}}}]"));
    assert!(shadowed("[{uri: {exact: /api}}, {uri: {prefix: /api}, sourceLabels: {a: b}}]"));
    assert!(!shadowed("[{uri: {prefix: /ap}}]"));
    assert!(!shadowed("[{uri: {prefix: /API/v1}, ignoreUriCase: true}]"));
    assert!(!shadowed("[{uri: {regex: /api/.*}}]"));
    let one_of_two = thoroughly(&rule("[{uri: {prefix: /b}}, {uri: {prefix: /api/v1}}]"));
    assert!(has(&one_of_two, "IST0131", "rule #1 match #1 is not used"), "{one_of_two:?}");
}

#[test]
fn routes_of_connections_that_are_taken_before_are_told() {
    let rule = |routes: &str| {
        let text = format!(
            "kind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {{name: a}}\nspec:\n  hosts: ['*.example.com']\n{routes}"
        );
        let mut found = thoroughly(&text);
        found.retain(|(code, _)| code.starts_with("IST013"));
        found
    };
    let to = "route: [{destination: {host: reviews}}]";
    let one = |code: &str, text: &str| vec![(code.to_owned(), text.to_owned())];

    let same = rule(&format!("  tcp: [{{match: [{{port: 1}}], {to}}}, {{match: [{{port: 1}}], {to}}}]"));
    assert_eq!(
        same,
        one("IST0130", "spec.tcp[1]: VirtualService rule #1 not used (all matches used by prior rules)")
    );
    let after_all = rule(&format!("  tcp: [{{{to}}}, {{match: [{{port: 1}}], {to}}}]"));
    let text = "spec.tcp[1]: VirtualService rule #1 not used (tcp[0] before it takes every connection)";
    assert_eq!(after_all, one("IST0130", text));
    let part = rule(&format!(
        "  tls: [{{match: [{{sniHosts: ['*.example.com']}}], {to}}}, {{match: [{{sniHosts: [a.example.com], port: 1}}, {{sniHosts: \
         [a.example.com], gateways: [mesh]}}], {to}}}]"
    ));
    let text = "spec.tls[1].match[0]: VirtualService rule #1 match #0 is not used (duplicate/overlapping match in rule #0)";
    assert_eq!(part, one("IST0131", text));
    let narrower_first = rule(&format!(
        "  tls: [{{match: [{{sniHosts: [a.example.com]}}], {to}}}, {{match: [{{sniHosts: ['*.example.com']}}], {to}}}]"
    ));
    assert!(narrower_first.is_empty(), "{narrower_first:?}");
}

#[test]
fn what_only_others_see_is_no_conflict() {
    let entry = |name: &str, protocol: &str, export_to: &str| {
        format!(
            "---\nkind: ServiceEntry\napiVersion: networking.istio.io/v1\nmetadata: {{name: {name}}}\nspec: {{hosts: [out.example], \
             exportTo: [{export_to}], resolution: DNS, ports: [{{number: 443, name: x, protocol: {protocol}}}]}}\n"
        )
    };
    let told = |one: &str, other: &str| {
        let found = thoroughly(&[entry("a", "TLS", one), entry("b", "HTTPS", other)].concat());
        found.iter().filter(|(code, _)| code == "IST0177").count()
    };
    assert_eq!(told("one", "other"), 0);
    assert_eq!(told("one", "'*'"), 2);
    assert_eq!(told("one", "one"), 2);
    assert_eq!(told("default", "'.'"), 2);
}

#[test]
fn gateways_are_held_against_hosts_of_their_namespaces_and_selectors_that_meet() {
    let gateway = |name: &str, selector: &str, host: &str| {
        format!(
            "---\nkind: Gateway\napiVersion: networking.istio.io/v1\nmetadata: {{name: {name}}}\nspec: {{selector: {selector}, servers: \
             [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ['{host}']}}]}}\n"
        )
    };
    let rule = "---\nkind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {name: r}\nspec: {hosts: [a.example], gateways: [g], http: [{route: [{destination: {host: reviews}}]}]}\n";
    let missing = |host: &str| {
        let found = thoroughly(&format!("{}{rule}", gateway("g", "{a: b}", host)));
        found.iter().filter(|(code, _)| code == "IST0132").count()
    };
    assert_eq!(["./a.example", "default/*", "*/a.example", "a.example"].map(missing), [0; 4]);
    assert_eq!(missing("other/a.example"), 1);
    let conflicts = |selector: &str| {
        let both = gateway("g", "{a: b}", "a.example") + &gateway("h", selector, "a.example");
        thoroughly(&both).iter().filter(|(code, _)| code == "IST0145").count()
    };
    assert_eq!((conflicts("{a: b, c: d}"), conflicts("{a: c}"), conflicts("{c: d}")), (2, 0, 0));
}

#[test]
fn files_without_services_say_nothing_of_whom_selectors_pick() {
    let rules = "kind: Sidecar\napiVersion: networking.istio.io/v1\nmetadata: {name: s}\nspec: {workloadSelector: {labels: {app: x}}, egress: [{hosts: ['*/*']}]}\n---\nkind: ServiceEntry\napiVersion: networking.istio.io/v1\nmetadata: {name: e}\nspec: {hosts: [e.example], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], workloadSelector: {labels: {app: x}}}\n";
    let told = |host: &str| {
        let registration = Registration::clone(&world().registrations[&HostId(1)]);
        let instances =
            registration.instances.into_iter().map(|(id, one)| (id, Instance::clone(&one))).collect();
        let (documents, _) = mesh_proto::yaml::read("rules.yaml", rules);
        let objects = documents.into_iter().map(|document| document.object).collect();
        let world =
            sketch::of_files(&BTreeMap::from([(host.to_owned(), instances)]), objects).expect("a sketch");
        thorough(&world).iter().map(|finding| finding.code.to_string()).collect::<BTreeSet<_>>()
    };
    assert!(told(sketch::ASSUMED).is_empty());
    assert_eq!(told("vm1"), ["IST0101", "IST0127", "no-endpoint"].map(str::to_owned).into());
}

#[test]
fn what_can_never_be_is_told() {
    let found = thoroughly(
        r"
kind: VirtualService
apiVersion: networking.istio.io/v1
metadata: {name: a}
spec:
  hosts: [reviews]
  http:
  - match: [{uri: {regex: 'api/.*'}}, {uri: {exact: '/a?b=c'}}, {method: {exact: get}}]
    timeout: 2s
    retries: {attempts: 3, perTryTimeout: 1s}
    route: [{destination: {host: reviews}}]
",
    );
    assert!(has(&found, "never-matches", "match[0].uri: never matches: paths begin with /"), "{found:?}");
    assert!(has(&found, "never-matches", "a path has no query"), "{found:?}");
    assert!(has(&found, "never-matches", "write \"GET\""), "{found:?}");
    assert!(has(
        &found,
        "retries-do-not-fit",
        "4 tries of 1s each may take 4s, but the timeout of the whole is 2s: only 2 fit"
    ));
}

#[test]
fn subsets_without_instance_and_rules_that_are_not_merged_are_told() {
    let found = thoroughly(
        r"
kind: DestinationRule
apiVersion: networking.istio.io/v1
metadata: {name: a}
spec: {host: reviews, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v1, labels: {version: v9}}]}
---
kind: DestinationRule
apiVersion: networking.istio.io/v1
metadata: {name: b}
spec: {host: reviews, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v1}]}
---
kind: ServiceEntry
apiVersion: networking.istio.io/v1
metadata: {name: nobody}
spec: {hosts: [nobody.example], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], workloadSelector: {labels: {app: x}}}
",
    );
    assert!(
        has(&found, "IST0173", "The Subset v1 defined in the DestinationRule does not select any"),
        "{found:?}"
    );
    assert!(has(&found, "policy-not-merged", "DestinationRule default/a comes first"), "{found:?}");
    assert!(has(&found, "subset-not-merged", "spec.subsets[0]: subset \"v1\""), "{found:?}");
    assert!(has(&found, "IST0127", "following labels: app=x"), "{found:?}");
    assert!(has(&found, "no-endpoint", "host nobody.example has no endpoint"), "{found:?}");
}

#[test]
fn objects_that_get_in_each_others_way_are_told() {
    let gateway = |name: &str| {
        format!(
            "---\nkind: Gateway\napiVersion: networking.istio.io/v1\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: edge}}\n  servers:\n  - {{port: {{number: 443, name: https, protocol: HTTPS}}, hosts: [a.example], tls: {{mode: SIMPLE, credentialName: a}}}}\n"
        )
    };
    let entry = |name: &str, protocol: &str| {
        format!(
            "---\nkind: ServiceEntry\napiVersion: networking.istio.io/v1\nmetadata: {{name: {name}}}\nspec: {{hosts: [out.example], resolution: DNS, ports: [{{number: 443, name: x, protocol: {protocol}}}]}}\n"
        )
    };
    let inside = "---\nkind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {name: inside}\nspec: {hosts: [reviews], http: [{fault: {delay: {fixedDelay: 1s, percent: 5}}, route: [{destination: {host: reviews, subset: v1}}]}]}\n";
    let visitors = "---\nkind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {name: visitors}\nspec: {hosts: [a.example], gateways: [one], http: [{route: [{destination: {host: reviews}}]}]}\n";
    let yaml = [
        gateway("one"),
        gateway("two"),
        entry("tls", "TLS"),
        entry("https", "HTTPS"),
        inside.into(),
        visitors.into(),
    ];
    let found = thoroughly(&yaml.concat());
    let text = "Conflict with gateways default/one (workload selector app=edge, port 443, hosts a.example)";
    assert!(has(&found, "IST0145", text), "{found:?}");
    assert!(
        has(&found, "IST0138", "Duplicate certificate in multiple gateways [default/one default/two]"),
        "{found:?}"
    );
    let text = "Multiple ServiceEntries (default/https, default/tls) define the same host \"out.example\" and port 443";
    assert!(has(&found, "IST0177", text), "{found:?}");
    assert!(has(
        &found,
        "IST0140",
        "Subset in virtual service default/inside has no effect on ingress gateway default/visitors"
    ));
    assert!(has(&found, "IST0002", "HTTPRoute.fault.delay.percent is deprecated"), "{found:?}");
}

#[test]
fn a_gateway_that_no_host_opens_is_told_of_a_mesh_and_not_of_files() {
    let yaml = r"
kind: Gateway
apiVersion: networking.istio.io/v1
metadata: {name: edge}
spec: {selector: {istio: edge}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}
";
    let host = |labels: serde_json::Value| -> mesh_proto::watch::Host {
        serde_json::from_value(serde_json::json!({
            "name": "vm1", "public_key": "", "wrap_key": "", "voter_eligible": false, "liveness": "live",
            "facts": {"address": "192.0.2.1:15008", "version": "0", "labels": labels},
        }))
        .expect("a host")
    };
    let told = |id: &str, labels: serde_json::Value| {
        let mut world = sketch::after(&world(), &batch(yaml));
        world.mesh.id = id.into();
        world.absorb(&Change::Host { id: HostId(1), host: Some(host(labels)) });
        let found = thorough(&world).into_iter().map(|finding| finding.to_string());
        found.filter(|text| text.contains("selector not found")).collect::<Vec<_>>()
    };

    let found = told("mesh", serde_json::json!({"istio": "other"}));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("Referenced selector not found: \"istio=edge\""), "{}", found[0]);
    assert!(told("mesh", serde_json::json!({"istio": "edge", "zone": "a"})).is_empty());
    assert!(told(sketch::ID, serde_json::json!({})).is_empty());
}

#[test]
fn objects_for_the_same_workloads_are_told_with_who_counts() {
    let one = |kind: &str, name: &str, spec: &str| {
        let group = if kind == "Telemetry" { "telemetry" } else { "networking" };
        format!(
            "---\nkind: {kind}\napiVersion: {group}.istio.io/v1\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        )
    };
    let rules = [
        one("Sidecar", "a", "{workloadSelector: {labels: {version: v1}}, egress: [{hosts: ['*/*']}]}"),
        one("Sidecar", "b", "{workloadSelector: {labels: {app: reviews}}, egress: [{hosts: ['*/*']}]}"),
        one("Sidecar", "all", "{egress: [{hosts: ['*/*']}]}"),
        one("Telemetry", "one", "{accessLogging: [{}]}"),
        one("Telemetry", "two", "{accessLogging: [{disabled: true}]}"),
        one(
            "Telemetry",
            "nobody",
            "{selector: {matchLabels: {app: nobody}}, accessLogging: [{disabled: true}]}",
        ),
    ];
    let mut world = world();
    let mut registration = Registration::clone(&world.registrations[&HostId(1)]);
    for instance in registration.instances.values_mut() {
        let labels = [("app", "reviews"), ("version", "v1")].map(|(name, value)| (name.into(), value.into()));
        Arc::make_mut(instance).labels.extend(labels);
    }
    world.absorb(&Change::Registration { host: HostId(1), registration: Some(registration) });
    let told = |rules: &[String]| {
        let world = sketch::after(&world, &batch(&rules.concat()));
        let found = thorough(&world).into_iter();
        found.map(|one| (one.code.to_string(), format!("{}: {}", one.path, one.message))).collect::<Vec<_>>()
    };

    let found = told(&rules);
    let sidecars = found.iter().filter(|(code, _)| code == "IST0110").collect::<Vec<_>>();
    assert_eq!(sidecars.len(), 2, "{found:?}");
    assert!(sidecars[0].1.starts_with(
        "spec.workloadSelector: The Sidecars [a b] in namespace \"default\" select the same workload pod"
    ));
    assert!(sidecars[0].1.contains("a counts, as the oldest"), "{}", sidecars[0].1);
    assert!(!found.iter().any(|(code, _)| code == "IST0111"), "{found:?}");
    let text = "The Telemetries [one two] in namespace \"default\" have no workload selector";
    assert!(has(&found, "IST0160", text), "{found:?}");
    assert!(has(&found, "IST0101", "spec.selector: Referenced selector not found: \"app=nobody\""));
    let text = "The Telemetry one in namespace \"default\" with empty providers will be ignored";
    assert!(has(&found, "IST0157", text), "{found:?}");
    assert_eq!(found.iter().filter(|(code, _)| code == "IST0157").count(), 1, "disabled ones go nowhere");

    let mesh = "---\nkind: MeshConfig\napiVersion: mesh.istio.io/v1alpha1\nmetadata: {name: default, namespace: \
                istio-system}\nspec: {accessLogFile: /dev/stdout}\n";
    let with_default = told(&[rules[3].clone(), mesh.to_owned()]);
    assert!(!with_default.iter().any(|(code, _)| code == "IST0157"), "{with_default:?}");
}

#[test]
fn conflicts_are_told_at_apply_as_warnings() {
    let rules = |name: &str| {
        format!(
            "---\nkind: DestinationRule\napiVersion: networking.istio.io/v1\nmetadata: {{name: {name}}}\nspec: {{host: reviews, \
             trafficPolicy: {{loadBalancer: {{simple: RANDOM}}}}}}\n---\nkind: Sidecar\napiVersion: \
             networking.istio.io/v1\nmetadata: {{name: {name}}}\nspec: {{}}\n---\nkind: Gateway\napiVersion: \
             networking.istio.io/v1\nmetadata: {{name: {name}}}\nspec: {{selector: {{a: b}}, servers: [{{port: {{number: 80, \
             name: http, protocol: HTTP}}, hosts: [a.com]}}]}}\n"
        )
    };
    let found = all(&sketch::after(&world(), &batch(&[rules("one"), rules("two")].concat())));
    let codes: BTreeSet<_> = found.iter().map(|finding| finding.code.to_string()).collect();
    assert_eq!(codes, ["IST0111", "IST0145", "policy-not-merged"].map(str::to_owned).into(), "{found:#?}");
    assert!(found.iter().all(|finding| finding.severity == Severity::Warning), "{found:#?}");
}

/// An object that has to do with others in every way that findings come from: hosts shared, destinations, delegates.
fn any_object((kind, one, other, version): (u8, u8, u8, u8)) -> (ObjectKey, Option<String>) {
    let hosts = ["reviews", "e0.test", "e1.test", "E2.test", "other"];
    let host = |number: u8| hosts[usize::from(number) % hosts.len()];
    let (from, to) = (host(one), host(other));
    let route = format!("route: [{{destination: {{host: {to}, subset: v{version}}}}}]");
    let (name, text) = match kind % 10 {
        0 | 1 => ("VirtualService", format!("{{hosts: [{from}], http: [{{{route}}}]}}")),
        2 => (
            "VirtualService",
            format!("{{hosts: [{from}, {to}], tcp: [{{route: [{{destination: {{host: {to}}}}}]}}]}}"),
        ),
        3 => (
            "VirtualService",
            format!(
                "{{hosts: [{from}], http: [{{delegate: {{name: o{other}}}}}, {{mirror: {{host: {to}}}, {route}}}]}}"
            ),
        ),
        4 => ("VirtualService", format!("{{http: [{{{route}}}]}}")),
        5 => ("DestinationRule", format!("{{host: {from}, subsets: [{{name: v{version}}}]}}")),
        6 => ("DestinationRule", format!("{{host: '*.test', subsets: [{{name: v{version}}}]}}")),
        7 | 8 => (
            "ServiceEntry",
            format!(
                "{{hosts: [e{one}.test, e{other}.test], ports: [{{number: 80, name: x, protocol: {}}}], resolution: DNS}}",
                if version == 0 { "HTTP" } else { "TCP" }
            ),
        ),
        _ => ("DestinationRule", String::new()),
    };
    let kind: Kind = name.parse().expect("a kind");
    let key = ObjectKey::new(kind, "default", format!("o{one}"));
    // Now and then one goes.
    let object = format!(
        "apiVersion: networking.istio.io/v1\nkind: {name}\nmetadata: {{name: o{one}, namespace: default}}\nspec: {text}\n"
    );
    (key, (!text.is_empty() && version < 3).then_some(object))
}

fn changes(objects: &[(u8, u8, u8, u8)]) -> Batch {
    let mut all = std::collections::BTreeMap::new();
    for (key, text) in objects.iter().copied().map(any_object) {
        let object = text.map(|text| {
            let (documents, findings) = mesh_proto::yaml::read("rules.yaml", &text);
            assert_eq!(documents.len(), 1, "{text}: {findings:?}");
            documents.into_iter().next().expect("one").object
        });
        all.insert(key.clone(), ResourceChange { key, object, expect: Precondition::Any });
    }
    Batch { changes: all.into_values().collect(), reason: String::new() }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..proptest::test_runner::Config::with_cases(600) })]

    /// What a batch is told by the part of the World around it is what it is told by the whole.
    #[test]
    fn nothing_that_the_whole_would_tell_is_missed_in_the_part(
        before in proptest::collection::vec((0_u8..9, 0_u8..4, 0_u8..4, 0_u8..3), 0..8),
        now in proptest::collection::vec((0_u8..10, 0_u8..4, 0_u8..4, 0_u8..5), 1..3),
    ) {
        let mut world = world();
        for (age, change) in (1..).zip(changes(&before).changes) {
            let (created, changed) = (Revision(age), Revision(age));
            let stored = change.object.map(|object| Stored { object, created, changed });
            world.absorb(&Change::Resource { key: change.key, stored: stored.map(Box::new) });
        }
        let batch = changes(&now);
        let after = sketch::after(&world, &batch);
        proptest::prop_assert_eq!(check(&world, &batch), check_whole(&world, &after, &batch));
    }
}

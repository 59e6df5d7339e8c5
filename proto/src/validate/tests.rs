use crate::yaml;

/// Returns what is said about a specification, without places.
fn about(kind: &str, spec: &str) -> Vec<String> {
    let text =
        format!("apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: a}}\nspec:\n{spec}\n");
    let (documents, findings) = yaml::read("a.yaml", &text);
    assert!(findings.is_empty(), "{findings:?}");
    super::validate(&documents[0].object)
        .into_iter()
        .map(|finding| {
            assert_eq!(finding.object.as_deref(), Some(format!("{kind} default/a").as_str()));
            format!("{}: {}", finding.path, finding.message)
        })
        .collect()
}

#[test]
fn a_route_behind_a_catch_all_is_a_warning() {
    assert_eq!(
        about(
            "VirtualService",
            "  hosts: [a]\n  http:\n  - route: [{destination: {host: a}}]\n  - route: [{destination: {host: b}}]"
        ),
        ["spec.http[1]: is never reached: spec.http[0] takes every request"]
    );
}

#[test]
fn a_route_does_one_thing() {
    assert_eq!(
        about(
            "VirtualService",
            "  hosts: [a]\n  http:\n  - redirect: {uri: /}\n    route: [{destination: {host: a}}]\n    directResponse: {status: 200}"
        ),
        ["spec.http[0]: only one of route and redirect and directResponse may be set"]
    );
}

#[test]
fn weights_may_be_anything_but_negative_or_all_zero() {
    let weights = |first: i32, second: i32| {
        about(
            "VirtualService",
            &format!(
                "  hosts: [a]\n  http:\n  - route: [{{destination: {{host: a}}, weight: {first}}}, {{destination: {{host: b}}, weight: {second}}}]"
            ),
        )
    };
    assert!(weights(1, 2).is_empty());
    assert!(weights(0, 1).is_empty());
    assert_eq!(weights(0, 0), ["spec.http[0].route: the weights add up to 0: nothing would go anywhere"]);
    assert_eq!(weights(-1, 5), ["spec.http[0].route[0].weight: -1 is negative"]);
    let single =
        about("VirtualService", "  hosts: [a]\n  http: [{route: [{destination: {host: a}, weight: 0}]}]");
    assert!(single.is_empty());
}

#[test]
fn a_header_value_is_a_format_string() {
    let value = |value: &str| {
        about(
            "VirtualService",
            &format!("  hosts: [a]\n  http: [{{route: [{{destination: {{host: a}}}}], headers: {{request: {{set: {{x: {value:?}}}}}}}}}]"),
        )
        .is_empty()
    };
    assert!(value("plain"));
    assert!(value("100%%"));
    assert!(value("%REQ(x-id):12%-%PROTOCOL%"));
    assert!(!value("100%"));
    assert!(!value("%lower%"));
}

#[test]
fn subsets_have_names_of_their_own() {
    assert_eq!(
        about("DestinationRule", "  host: a\n  subsets: [{name: v1}, {name: v1}]"),
        ["spec.subsets[1].name: the subset \"v1\" is here twice (first at spec.subsets[0].name)"]
    );
}

#[test]
fn shares_of_a_locality_add_up_to_100() {
    assert_eq!(
        about(
            "DestinationRule",
            "  host: a\n  trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: r1/*, to: {r1/*: 60, r2/*: 30}}]}}}"
        ),
        [
            "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to: the shares add up to 90, not to 100"
        ]
    );
}

#[test]
fn an_endpoint_names_ports_of_its_service() {
    assert_eq!(
        about(
            "ServiceEntry",
            "  hosts: [a.com]\n  resolution: STATIC\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  endpoints: [{address: 192.0.2.1, ports: {web: 8080}}]"
        ),
        ["spec.endpoints[0].ports.web: \"web\" is no port of spec.ports (has: http)"]
    );
}

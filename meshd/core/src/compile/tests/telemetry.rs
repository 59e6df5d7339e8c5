//! Which `Telemetry` counts for whom, and what the mesh's settings say besides.

use super::*;
use crate::plan::{Metric, TagSource, Telling};
use mesh_proto::value::Labels;

const MESH: &str = "
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {name: default, namespace: istio-system}
spec:
  accessLogFile: /dev/stdout
  extensionProviders:
  - {name: otel, opentelemetry: {service: otel.example, port: 4318, http: {path: /v1/traces}}}
  - {name: file, envoyFileAccessLog: {path: /var/log/shop.log}}
  defaultProviders: {tracing: [otel]}
";

fn telemetry(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: telemetry.istio.io/v1, kind: Telemetry, metadata: {{name: {name}, namespace: {namespace}}}, spec: {spec}}}"
    )
}

/// Callers of one namespace that only labels tell apart, and one of another.
fn labelled() -> Arc<Node> {
    let mut node = Node::clone(&node());
    let caller = |namespace: &str, app: &str| Workload {
        namespace: namespace.into(),
        account: app.into(),
        labels: Labels::from([("app".to_owned(), app.to_owned())]),
        ..Workload::default()
    };
    node.callers = vec![caller("default", "a"), caller("default", "b"), caller("other", "a")];
    Arc::new(node)
}

fn tellings(world: &World) -> Vec<Arc<Telling>> {
    compile(world, &labelled(), None).outbounds.iter().map(|outbound| outbound.telling.clone()).collect()
}

#[test]
fn the_nearest_telemetry_counts_field_by_field() {
    let mut world = world();
    apply(&mut world, MESH);
    let root = "{tracing: [{randomSamplingPercentage: 50, customTags: {a: {literal: {value: root}}}}]}";
    apply(&mut world, &telemetry("istio-system", "root", root));
    apply(&mut world, &telemetry("default", "own", "{tracing: [{randomSamplingPercentage: 10}]}"));
    let of_a = "{selector: {matchLabels: {app: a}}, tracing: [{disableSpanReporting: true}], \
                accessLogging: [{providers: [{name: file}], match: {mode: SERVER}}]}";
    apply(&mut world, &telemetry("default", "a", of_a));

    let told = tellings(&world);

    let traced: Vec<_> = told.iter().map(|telling| telling.tracing.clone().expect("tracing")).collect();
    let facts: Vec<_> = traced.iter().map(|tracing| (tracing.sampling, tracing.reports)).collect();
    assert_eq!(facts, [(100_000, false), (100_000, true), (500_000, true)]);
    let tag = ("a".to_owned(), TagSource::Literal("root".into()));
    assert!(traced.iter().all(|tracing| tracing.tags == [tag.clone()]), "{traced:?}");
    // What is said of the called side says nothing of calls: the mesh's own log is left.
    let paths: Vec<_> = told.iter().map(|telling| telling.logs[0].target.path.clone()).collect();
    assert_eq!(paths, [None, None, None]);
}

#[test]
fn an_instance_is_told_of_by_its_service() {
    let mut world = world();
    apply(&mut world, MESH);
    let spec = "{targetRefs: [{kind: Service, name: reviews}], \
                accessLogging: [{providers: [{name: file}], filter: {expression: 'response.code >= 500'}}], \
                metrics: [{overrides: [{match: {metric: REQUEST_COUNT, mode: SERVER}, disabled: true}]}]}";
    apply(&mut world, &telemetry("default", "reviews", spec));

    let plan = compile(&world, &labelled(), None);

    let instance = &plan.inbound.instances["reviews-v1"];
    assert_eq!(instance.telling.logs[0].target.path.as_deref(), Some("/var/log/shop.log"));
    assert!(instance.telling.logs[0].filter.is_some());
    let metering = instance.telling.metering.as_ref().expect("something differs");
    let disabled: Vec<usize> = (0..metering.0.len()).filter(|at| metering.0[*at].disabled).collect();
    assert_eq!(disabled, [Metric::RequestCount as usize]);
    assert!(plan.outbounds.iter().all(|outbound| outbound.telling.metering.is_none()));
}

#[test]
fn what_names_no_provider_that_there_is_is_a_problem() {
    let mut world = world();
    apply(&mut world, &telemetry("default", "t", "{accessLogging: [{providers: [{name: loki}]}]}"));

    let plan = compile(&world, &labelled(), None);

    assert!(plan.problems.iter().any(|problem| problem.contains("\"loki\"")), "{:?}", plan.problems);
    assert!(plan.outbounds[0].telling.logs.is_empty());
}

#[test]
fn a_provider_that_is_for_something_else_is_a_problem() {
    for spec in [
        "{accessLogging: [{providers: [{name: prometheus}]}]}",
        "{tracing: [{providers: [{name: envoy}]}]}",
        "{metrics: [{providers: [{name: envoy}]}]}",
    ] {
        let mut world = world();
        apply(&mut world, &telemetry("default", "t", spec));
        let plan = compile(&world, &node(), None);
        assert!(
            plan.problems.iter().any(|problem| problem.contains("is for something else")),
            "{spec}: {:?}",
            plan.problems
        );
    }
}

#[test]
fn providers_that_istio_always_has_need_no_settings() {
    let mut world = world();
    apply(&mut world, &telemetry("default", "t", "{accessLogging: [{providers: [{name: envoy}]}]}"));

    let told = tellings(&world);

    assert_eq!(told[0].logs[0].target.path, None);
    assert!(told[2].logs.is_empty());
}

#[test]
fn numbers_go_to_prometheus_or_nowhere() {
    let told = |provider: &str| {
        let mut world = world();
        let own =
            MESH.replace("  defaultProviders", "  - {name: numbers, prometheus: {}}\n  defaultProviders");
        apply(&mut world, &own);
        let spec = format!("{{metrics: [{{providers: [{{name: {provider}}}]}}]}}");
        apply(&mut world, &telemetry("default", "t", &spec));
        let metering = tellings(&world)[0].metering.clone();
        metering.is_none_or(|metering| metering.0.iter().all(|rule| !rule.disabled))
    };
    assert!(told("numbers"));
    assert!(told("prometheus"));
    assert!(!told("otel"));
}

#[test]
fn labels_are_set_and_taken_away() {
    let mut world = world();
    let root = "{metrics: [{overrides: [{tagOverrides: {source_app: {operation: REMOVE}, stage: {value: \"'a'\"}}}]}]}";
    apply(&mut world, &telemetry("istio-system", "root", root));
    let own = "{metrics: [{overrides: [{match: {metric: REQUEST_COUNT}, tagOverrides: {stage: {value: \"'b'\"}}}]}]}";
    apply(&mut world, &telemetry("default", "own", own));

    let told = tellings(&world);

    let rule =
        |metric: Metric| told[0].metering.as_ref().expect("something differs").0[metric as usize].clone();
    assert_eq!(rule(Metric::RequestCount).removed, ["source_app"]);
    assert_eq!(rule(Metric::RequestCount).set, [("stage".to_owned(), "b".to_owned())]);
    assert_eq!(rule(Metric::RequestSize).set, [("stage".to_owned(), "a".to_owned())]);
}

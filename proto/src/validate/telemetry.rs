//! Rules of `Telemetry`.
//!
//! Source: Istio `ValidateTelemetry`, and the schema.

use super::{Check, each, security};
use crate::expression::Expression;
use crate::resource::{CustomTag, MetricsOverrides, ProviderRef, TagOperation, Telemetry};
use crate::yaml::join;

pub(super) fn check(check: &mut Check, spec: &Telemetry) {
    security::target(check, spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs);
    tracing(check, spec);
    for (path, metrics) in each("spec.metrics", &spec.metrics) {
        providers(check, &path, &metrics.providers);
        check.duration(format!("{path}.reportingInterval"), metrics.reporting_interval);
        for (path, one) in each(&format!("{path}.overrides"), &metrics.overrides) {
            overrides(check, &path, one);
        }
    }
    for (path, logging) in each("spec.accessLogging", &spec.access_logging) {
        providers(check, &path, &logging.providers);
        let Some(filter) = &logging.filter else { continue };
        // What is only not known here is said where it counts, at apply.
        if let Err(error) = Expression::parse(&filter.expression)
            && error.is_malformed
        {
            check.error(format!("{path}.filter.expression"), format!("is no expression: {error}"));
        }
    }
}

fn providers(check: &mut Check, path: &str, providers: &[ProviderRef]) {
    for (path, provider) in each(&format!("{path}.providers"), providers) {
        check.required(format!("{path}.name"), &provider.name);
    }
}

fn tracing(check: &mut Check, spec: &Telemetry) {
    if spec.tracing.len() > 1 {
        check.warning("spec.tracing[1]", "has several entries; write one, with all that holds for traces");
    }
    for (path, tracing) in each("spec.tracing", &spec.tracing) {
        if let Some(percent) = tracing.random_sampling_percentage {
            check.percent(format!("{path}.randomSamplingPercentage"), percent);
        }
        if tracing.providers.len() > 1 {
            check.warning(format!("{path}.providers"), "only the first provider of traces is used");
        }
        providers(check, &path, &tracing.providers);
        for (name, tag) in &tracing.custom_tags {
            let path = join(&format!("{path}.customTags"), name);
            if name.is_empty() {
                check.error(path.clone(), "a tag has a name");
            }
            custom_tag(check, &path, tag);
        }
    }
}

fn custom_tag(check: &mut Check, path: &str, tag: &CustomTag) {
    let sources = [
        ("literal.value", tag.literal.as_ref().map(|literal| &literal.value)),
        ("environment.name", tag.environment.as_ref().map(|variable| &variable.name)),
        ("header.name", tag.header.as_ref().map(|header| &header.name)),
        ("formatter.value", tag.formatter.as_ref().map(|format| &format.value)),
    ];
    let used = sources.iter().filter(|(_, source)| source.is_some()).count();
    if used > 1 {
        check.error(path, "only one of literal, environment, header and formatter may be set");
    }
    for (field, value) in sources.into_iter().filter_map(|(field, value)| value.map(|value| (field, value))) {
        check.required(format!("{path}.{field}"), value);
    }
}

fn overrides(check: &mut Check, path: &str, one: &MetricsOverrides) {
    if let Some(selector) = &one.r#match {
        if selector.custom_metric.as_deref() == Some("") {
            check.error(format!("{path}.match.customMetric"), "must not be empty");
        }
        if selector.custom_metric.is_some() && selector.metric.is_some() {
            check.error(format!("{path}.match"), "only one of metric and customMetric may be set");
        }
    }
    for (name, tag) in &one.tag_overrides {
        let path = join(&format!("{path}.tagOverrides"), name);
        if name.is_empty() {
            check.warning(path.clone(), "a tag has a name");
        }
        match tag.operation {
            TagOperation::Upsert => {
                check.required(format!("{path}.value"), &tag.value);
            }
            TagOperation::Remove if !tag.value.is_empty() => {
                check.error(format!("{path}.value"), "must not be set where the tag is removed");
            }
            TagOperation::Remove => {}
        }
    }
}

//! Values of honoured fields that are languages of their own: what meshd does not know of them is refused by name.

use std::collections::BTreeMap;

use crate::expression::Expression;
use crate::finding::Finding;
use crate::log_format::LogFormat;
use crate::resource::{
    AccessLogEncoding, MeshConfig, Object, OpenTelemetryProvider, OtlpHeader, ProviderLogFormat, Spec,
    TagOperation, Telemetry,
};
use crate::yaml::join;

/// Says what cannot be carried out.
pub(super) fn check(object: &Object) -> Vec<Finding> {
    let mut found = Vec::new();
    match &object.spec {
        Spec::Telemetry(spec) => telemetry(spec, &mut found),
        Spec::MeshConfig(spec) => mesh(spec, &mut found),
        _ => {}
    }
    found
}

fn refuse(found: &mut Vec<Finding>, path: impl Into<String>, message: impl Into<String>, hint: &str) {
    let finding = Finding::error("refused-value", path, message);
    found.push(if hint.is_empty() { finding } else { finding.with_hint(hint) });
}

fn telemetry(spec: &Telemetry, found: &mut Vec<Finding>) {
    let one = spec.target_ref.iter().map(|target| ("spec.targetRef".to_owned(), target));
    let several = spec.target_refs.iter().enumerate();
    for (path, target) in one.chain(several.map(|(at, target)| (format!("spec.targetRefs[{at}]"), target))) {
        if !matches!(target.group.as_str(), "" | "core") && target.kind == "Service" {
            let message = format!("there is no Service of group {:?}", target.group);
            refuse(found, format!("{path}.group"), message, "leave it out");
        }
    }
    for (at, logging) in spec.access_logging.iter().enumerate() {
        let Some(filter) = &logging.filter else { continue };
        if let Err(error) = Expression::condition(&filter.expression) {
            let path = format!("spec.accessLogging[{at}].filter.expression");
            refuse(found, path, error.to_string(), "");
        }
    }
    for (at, metrics) in spec.metrics.iter().enumerate() {
        for (number, one) in metrics.overrides.iter().enumerate() {
            for (name, tag) in &one.tag_overrides {
                let path = join(&format!("spec.metrics[{at}].overrides[{number}].tagOverrides"), name);
                let is_upsert = tag.operation == TagOperation::Upsert;
                if is_upsert && !matches!(Expression::parse(&tag.value), Ok(Expression::Text(_))) {
                    let message =
                        format!("{:?} is not a text: what differs by request is no label here", tag.value);
                    refuse(found, format!("{path}.value"), message, "write a text in quotes: \"'prod'\"");
                }
                if is_upsert && !is_label(name) {
                    refuse(found, path, format!("{name:?} is not the name of a label"), "");
                }
            }
        }
    }
}

/// Source: Prometheus "Data model".
fn is_label(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.is_empty() && name.chars().all(fits) && !name.starts_with(|c: char| c.is_ascii_digit())
}

fn mesh(spec: &MeshConfig, found: &mut Vec<Finding>) {
    let path = "spec.accessLogFormat";
    match (spec.access_log_encoding, spec.access_log_format.as_str()) {
        (_, "") => {}
        (AccessLogEncoding::Text, text) => {
            if let Err(error) = LogFormat::text(text) {
                refuse(found, path, error.to_string(), "");
            }
        }
        (AccessLogEncoding::Json, text) => match serde_json::from_str::<BTreeMap<String, String>>(text) {
            Ok(labels) => fields(&labels, path, found),
            Err(error) => {
                let hint = "with accessLogEncoding JSON it is an object of names and texts";
                refuse(found, path, format!("is no JSON object of texts: {error}"), hint);
            }
        },
    }
    log_path(&spec.access_log_file, "spec.accessLogFile", found);
    for (at, provider) in spec.extension_providers.iter().enumerate() {
        let path = format!("spec.extensionProviders[{at}]");
        let kinds = [
            provider.envoy_file_access_log.is_some(),
            provider.opentelemetry.is_some(),
            provider.prometheus.is_some(),
        ];
        if kinds.iter().filter(|is_there| **is_there).count() != 1 {
            let hint = "meshd takes envoyFileAccessLog, opentelemetry and prometheus";
            refuse(found, path.clone(), "a provider is one thing", hint);
        }
        if let Some(file) = &provider.envoy_file_access_log {
            let path = format!("{path}.envoyFileAccessLog");
            if file.path.is_empty() {
                refuse(found, format!("{path}.path"), "must be there", "");
            }
            log_path(&file.path, &format!("{path}.path"), found);
            if let Some(format) = &file.log_format {
                log_format(format, &format!("{path}.logFormat"), found);
            }
        }
        if let Some(traces) = &provider.opentelemetry {
            opentelemetry(traces, &format!("{path}.opentelemetry"), found);
        }
    }
}

fn log_path(path: &str, place: &str, found: &mut Vec<Finding>) {
    let is_sound = path.is_empty() || path.starts_with('/');
    if !is_sound || path.split('/').any(|part| part == "..") {
        refuse(
            found,
            place,
            format!("{path:?} is not the whole path of a file"),
            "write /dev/stdout or /var/log/…",
        );
    }
}

fn log_format(format: &ProviderLogFormat, path: &str, found: &mut Vec<Finding>) {
    if !format.text.is_empty()
        && let Err(error) = LogFormat::text(&format.text)
    {
        refuse(found, format!("{path}.text"), error.to_string(), "");
    }
    if let Some(labels) = &format.labels {
        fields(labels, &format!("{path}.labels"), found);
    }
}

fn fields(labels: &BTreeMap<String, String>, path: &str, found: &mut Vec<Finding>) {
    if let Err((name, error)) = LogFormat::labels(labels) {
        refuse(found, join(path, &name), error.to_string(), "");
    }
}

fn opentelemetry(settings: &OpenTelemetryProvider, path: &str, found: &mut Vec<Finding>) {
    if settings.service.is_empty() {
        refuse(found, format!("{path}.service"), "must be there", "");
    }
    if settings.port == 0 || settings.port > u16::MAX.into() {
        refuse(found, format!("{path}.port"), format!("{} is not a port", settings.port), "");
    }
    if settings.http.is_some() && settings.grpc.is_some() {
        refuse(found, format!("{path}.grpc"), "spans go over http or over grpc", "take one of them away");
    }
    if let Some(http) = &settings.http {
        if !http.path.is_empty() && !http.path.starts_with('/') {
            let message = format!("{:?} does not begin with /", http.path);
            refuse(found, format!("{path}.http.path"), message, "");
        }
        otlp_headers(&http.headers, &format!("{path}.http.headers"), found);
    }
    if let Some(grpc) = &settings.grpc {
        otlp_headers(&grpc.initial_metadata, &format!("{path}.grpc.initialMetadata"), found);
    }
}

fn otlp_headers(headers: &[OtlpHeader], path: &str, found: &mut Vec<Finding>) {
    for (at, header) in headers.iter().enumerate() {
        let name = http::HeaderName::from_bytes(header.name.as_bytes());
        if name.is_err() || http::HeaderValue::from_str(&header.value).is_err() {
            refuse(found, format!("{path}[{at}]"), "is no header of HTTP", "");
        }
    }
}

//! `Telemetry` and the mesh's settings make a [`Telling`] for each side of each workload.
//!
//! Three objects may speak about a workload: one of the root namespace, one of its own, one that selects it. What the
//! nearest says counts, field by field. Source: Istio `pilot/pkg/model/telemetry.go`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use mesh_proto::expression::Expression;
use mesh_proto::log_format::LogFormat;
use mesh_proto::resource::{
    AccessLogEncoding, AccessLogging, CustomTag, FileAccessLogProvider, IstioMetric, Kind, MeshConfig,
    MetricsOverrides, ProviderRef, Spec, TagOperation, Telemetry, TelemetryProvider, Tracing as TracingRule,
    WorkloadMode, WorkloadModeMatch,
};
use mesh_proto::value::Labels;
use mesh_proto::watch::Stored;

use super::Problems;
use super::hosts::{has_all, of_kind};
use super::mesh::Settings;
use crate::plan::{
    Carrier, Collector, LogTarget, Logging, Metering, Metric, TagSource, Telling, Tracing, Workload,
};
use crate::world::World;

/// What holds for telemetry.
pub(super) struct Rules<'a> {
    mesh: &'a Settings<'a>,
    root: Option<Rule<'a>>,
    by_namespace: BTreeMap<&'a str, Vec<Rule<'a>>>,
    problems: &'a Problems,
}

/// A `Telemetry`.
#[derive(Clone, Copy)]
struct Rule<'a> {
    stored: &'a Stored,
    spec: &'a Telemetry,
}

impl Rule<'_> {
    fn is_for_all(&self) -> bool {
        self.spec.selector.as_ref().is_none_or(|selector| selector.match_labels.is_empty())
            && self.spec.target_ref.is_none()
            && self.spec.target_refs.is_empty()
    }

    /// Whether it picks a workload; `service`: the short name of the service that it is an instance of.
    fn picks(&self, labels: &Labels, service: Option<&str>) -> bool {
        let targets: Vec<_> = self.spec.target_ref.iter().chain(&self.spec.target_refs).collect();
        if !targets.is_empty() {
            return targets.iter().any(|target| service == Some(target.name.as_str()));
        }
        let selector = self.spec.selector.as_ref();
        selector.is_some_and(|selector| {
            !selector.match_labels.is_empty() && has_all(labels, &selector.match_labels)
        })
    }
}

/// A side of a workload's traffic.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

impl Side {
    fn is_in(self, mode: WorkloadMode) -> bool {
        match mode {
            WorkloadMode::ClientAndServer => true,
            WorkloadMode::Client => self == Self::Client,
            WorkloadMode::Server => self == Self::Server,
        }
    }

    fn is_matched(self, part: Option<&WorkloadModeMatch>) -> bool {
        part.is_none_or(|part| self.is_in(part.mode))
    }
}

/// What a provider is.
enum Provider<'a> {
    Prometheus,
    File(LogTarget),
    Collector(&'a TelemetryProvider),
}

impl<'a> Rules<'a> {
    /// Reads them from the World.
    pub(super) fn load(world: &'a World, mesh: &'a Settings<'a>, problems: &'a Problems) -> Self {
        let mut all: Vec<Rule<'a>> = of_kind(world, Kind::Telemetry)
            .filter_map(|stored| match &stored.object.spec {
                Spec::Telemetry(spec) => Some(Rule { stored, spec }),
                _ => None,
            })
            .collect();
        all.sort_by_cached_key(|rule| (rule.stored.created, rule.stored.object.key()));
        let mut by_namespace: BTreeMap<&str, Vec<Rule<'a>>> = BTreeMap::new();
        for rule in all {
            by_namespace.entry(&rule.stored.object.metadata.namespace).or_default().push(rule);
        }
        let root = by_namespace.get(mesh.root_namespace());
        let root = root.and_then(|rules| rules.iter().find(|rule| rule.is_for_all())).copied();
        Self { mesh, root, by_namespace, problems }
    }

    /// What is told of the calls of a workload.
    pub(super) fn client(&self, workload: &Workload) -> Arc<Telling> {
        self.telling(&workload.namespace, &workload.labels, None, Side::Client)
    }

    /// What is told of the calls to an instance.
    pub(super) fn server(&self, namespace: &str, labels: &Labels, service: &str) -> Arc<Telling> {
        self.telling(namespace, labels, Some(service), Side::Server)
    }

    fn telling(&self, namespace: &str, labels: &Labels, service: Option<&str>, side: Side) -> Arc<Telling> {
        let own = self.by_namespace.get(namespace).map_or(&[][..], Vec::as_slice);
        let of_namespace = (namespace != self.mesh.root_namespace())
            .then(|| own.iter().find(|rule| rule.is_for_all()))
            .flatten();
        let of_workload = own.iter().find(|rule| rule.picks(labels, service));
        let rules: Vec<Rule<'_>> =
            [self.root.as_ref(), of_namespace, of_workload].into_iter().flatten().copied().collect();
        let mut told = Telling {
            metering: self.metering(&rules, side).map(Arc::new),
            logs: self.logs(&rules, side),
            tracing: self.tracing(&rules, side).map(Arc::new),
            ..Telling::default()
        };
        for logging in &told.logs {
            told.wanted.add(logging);
        }
        if told.tracing.is_some() {
            told.wanted.request.extend([http::header::USER_AGENT, HeaderName::from_static("x-request-id")]);
        }
        Arc::new(told)
    }

    /// Finds a provider that a rule names; one that is not there, or not for this (`use_of` tells what for), is a problem.
    fn provider<T>(
        &self,
        name: &str,
        (place, field): (&Rule<'_>, &str),
        use_of: impl FnOnce(Provider<'a>) -> Option<T>,
    ) -> Option<T> {
        let note = |why: &str| self.problems.note(format!("{}: {field}: {why}", place.stored.object.key()));
        let Some(found) = self.find(name) else {
            note(&format!("there is no provider {name:?} in extensionProviders of MeshConfig"));
            return None;
        };
        let used = use_of(found);
        if used.is_none() {
            note(&format!("the provider {name:?} is for something else: it is not used here"));
        }
        used
    }

    fn find(&self, name: &str) -> Option<Provider<'a>> {
        let config = self.mesh.config;
        let own = config.and_then(|config| config.extension_providers.iter().find(|one| one.name == name));
        match own {
            Some(provider) => match (&provider.envoy_file_access_log, &provider.opentelemetry) {
                (Some(file), _) => Some(Provider::File(file_target(file))),
                (_, Some(_)) => Some(Provider::Collector(provider)),
                _ => provider.prometheus.as_ref().map(|_| Provider::Prometheus),
            },
            // Those that Istio always has.
            None if name == "prometheus" => Some(Provider::Prometheus),
            None if name == "envoy" => {
                let path = config.map_or("", |config| config.access_log_file.as_str());
                let path = if path.is_empty() { STDOUT } else { path };
                Some(Provider::File(mesh_target(config, path)))
            }
            None => None,
        }
    }

    fn metering(&self, rules: &[Rule<'_>], side: Side) -> Option<Metering> {
        let mut providers = self.default(|providers| &providers.metrics);
        if providers.is_empty() {
            providers.push("prometheus".into());
        }
        let mut metering = Metering::default();
        let mut is_told = None;
        for rule in rules {
            for metrics in &rule.spec.metrics {
                providers = names_of(&metrics.providers, &providers);
                for name in &providers {
                    let counts = |found| matches!(found, Provider::Prometheus).then_some(());
                    self.provider(name, (rule, "metrics.providers"), counts);
                }
                for one in &metrics.overrides {
                    override_metrics(&mut metering, one, side);
                }
            }
            let prometheus = |name: &String| matches!(self.find(name), Some(Provider::Prometheus));
            if !rule.spec.metrics.is_empty() {
                is_told = Some(providers.iter().any(prometheus));
            }
        }
        if is_told == Some(false) {
            metering.0.iter_mut().for_each(|rule| rule.disabled = true);
        }
        (metering != Metering::default()).then_some(metering)
    }

    fn default(&self, which: fn(&mesh_proto::resource::DefaultProviders) -> &Vec<String>) -> Vec<String> {
        let providers = self.mesh.config.and_then(|config| config.default_providers.as_ref());
        providers.map(|providers| which(providers).clone()).unwrap_or_default()
    }

    fn logs(&self, rules: &[Rule<'_>], side: Side) -> Vec<Arc<Logging>> {
        let mut names = self.default(|providers| &providers.access_logging);
        let file =
            self.mesh.config.map(|config| config.access_log_file.as_str()).filter(|file| !file.is_empty());
        if names.is_empty() && file.is_some() {
            names.push("envoy".into());
        }
        let mut logs: BTreeMap<String, (LogTarget, Option<Expression>)> = BTreeMap::new();
        for name in &names {
            if let Some(Provider::File(target)) = self.find(name) {
                logs.insert(name.clone(), (target, None));
            }
        }
        for rule in rules {
            let parts: Vec<&AccessLogging> = rule
                .spec
                .access_logging
                .iter()
                .filter(|part| side.is_matched(part.r#match.as_ref()))
                .collect();
            if parts.iter().any(|part| !part.providers.is_empty()) {
                // What the levels above said of others does not count any more.
                logs.clear();
            }
            for part in parts {
                names = names_of(&part.providers, &names);
                if names.is_empty() {
                    self.problems.note(format!(
                        "{}: accessLogging names no provider, and MeshConfig has no default: nothing is logged",
                        rule.stored.object.key()
                    ));
                }
                for name in &names {
                    if part.disabled == Some(true) {
                        logs.remove(name);
                        continue;
                    }
                    let filter = part.filter.as_ref().map(|filter| filter.expression.as_str());
                    let filter = filter.and_then(|text| Expression::condition(text).ok());
                    let file = |found| if let Provider::File(target) = found { Some(target) } else { None };
                    if let Some(target) = self.provider(name, (rule, "accessLogging.providers"), file) {
                        logs.insert(name.clone(), (target, filter));
                    }
                }
            }
        }
        logs.into_values().map(|(target, filter)| Arc::new(Logging { target, filter })).collect()
    }

    fn tracing(&self, rules: &[Rule<'_>], side: Side) -> Option<Tracing> {
        let mut names = self.default(|providers| &providers.tracing);
        let config = self.mesh.config;
        if names.is_empty() && config.is_some_and(|config| config.enable_tracing) {
            let providers = config.map_or(&[][..], |config| &config.extension_providers);
            names
                .extend(providers.iter().find(|one| one.opentelemetry.is_some()).map(|one| one.name.clone()));
        }
        let mut made = Made::default();
        for rule in rules {
            let parts = rule.spec.tracing.iter().filter(|part| side.is_matched(part.r#match.as_ref()));
            for part in parts {
                names = names_of(&part.providers, &names);
                for name in names.iter().take(1) {
                    let collects = |found| matches!(found, Provider::Collector(_)).then_some(());
                    self.provider(name, (rule, "tracing.providers"), collects);
                }
                made.take(part);
            }
        }
        let Some(Provider::Collector(provider)) = self.find(names.first()?) else { return None };
        let collector = Arc::new(collector(provider)?);
        Some(Tracing {
            collector,
            sampling: made.sampling.unwrap_or(DEFAULT_SAMPLING),
            reports: !made.disabled,
            propagates: !made.silent,
            istio_tags: made.istio_tags,
            tags: made.tags,
        })
    }
}

/// The names that a part says, else those that the parts before it said, else the mesh's own.
fn names_of(said: &[ProviderRef], before: &[String]) -> Vec<String> {
    if said.is_empty() { before.to_vec() } else { said.iter().map(|one| one.name.clone()).collect() }
}

/// What the parts about traces say together.
struct Made {
    sampling: Option<u32>,
    disabled: bool,
    silent: bool,
    istio_tags: bool,
    tags: Vec<(String, TagSource)>,
}

impl Default for Made {
    fn default() -> Self {
        Self { sampling: None, disabled: false, silent: false, istio_tags: true, tags: Vec::new() }
    }
}

impl Made {
    fn take(&mut self, part: &TracingRule) {
        if let Some(percent) = part.random_sampling_percentage {
            self.sampling = Some(millionths(percent));
        }
        self.disabled = part.disable_span_reporting.unwrap_or(self.disabled);
        self.silent = part.disable_context_propagation.unwrap_or(self.silent);
        self.istio_tags = part.enable_istio_tags.unwrap_or(self.istio_tags);
        if !part.custom_tags.is_empty() {
            let tag = |(name, tag): (&String, &CustomTag)| Some((name.clone(), source(tag)?));
            self.tags = part.custom_tags.iter().filter_map(tag).collect();
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "kept between 0 and a million")]
fn millionths(percent: f64) -> u32 {
    (percent * 10_000.0).clamp(0.0, 1_000_000.0).round() as u32
}

fn source(tag: &CustomTag) -> Option<TagSource> {
    if let Some(literal) = &tag.literal {
        return Some(TagSource::Literal(literal.value.clone()));
    }
    let header = tag.header.as_ref()?;
    let name = HeaderName::from_bytes(header.name.to_ascii_lowercase().as_bytes()).ok()?;
    Some(TagSource::Header(name, header.default_value.clone()))
}

fn override_metrics(metering: &mut Metering, one: &MetricsOverrides, side: Side) {
    let which = one.r#match.as_ref();
    if !which.is_none_or(|which| side.is_in(which.mode)) {
        return;
    }
    let asked = which.and_then(|which| which.metric).unwrap_or_default();
    let of_asked =
        metering.0.iter_mut().enumerate().filter(|(at, _)| position(asked).is_none_or(|it| it == *at));
    for (_, rule) in of_asked {
        rule.disabled = one.disabled.unwrap_or(rule.disabled);
        for (name, tag) in &one.tag_overrides {
            rule.removed.retain(|other| other != name);
            rule.set.retain(|(other, _)| other != name);
            match tag.operation {
                TagOperation::Remove => rule.removed.push(name.clone()),
                TagOperation::Upsert => {
                    if let Ok(Expression::Text(text)) = Expression::parse(&tag.value) {
                        rule.set.push((name.clone(), text));
                    }
                }
            }
        }
    }
}

/// Returns which metric is meant; `None`: all.
fn position(metric: IstioMetric) -> Option<usize> {
    let metric = match metric {
        IstioMetric::AllMetrics => return None,
        IstioMetric::RequestCount => Metric::RequestCount,
        IstioMetric::RequestDuration => Metric::RequestDuration,
        IstioMetric::RequestSize => Metric::RequestSize,
        IstioMetric::ResponseSize => Metric::ResponseSize,
        IstioMetric::TcpOpenedConnections => Metric::TcpOpenedConnections,
        IstioMetric::TcpClosedConnections => Metric::TcpClosedConnections,
        IstioMetric::TcpSentBytes => Metric::TcpSentBytes,
        IstioMetric::TcpReceivedBytes => Metric::TcpReceivedBytes,
        IstioMetric::GrpcRequestMessages => Metric::GrpcRequestMessages,
        IstioMetric::GrpcResponseMessages => Metric::GrpcResponseMessages,
    };
    Some(metric as usize)
}

/// Where the lines go that `accessLogFile` asks for.
fn mesh_target(config: Option<&MeshConfig>, path: &str) -> LogTarget {
    let form = config.map_or("", |config| config.access_log_format.as_str());
    let is_json = config.is_some_and(|config| config.access_log_encoding == AccessLogEncoding::Json);
    let format = match (is_json, form) {
        (false, "") => LogFormat::istio(),
        (true, "") => LogFormat::json(),
        (false, text) => LogFormat::text(text).unwrap_or_else(|_| LogFormat::istio()),
        (true, text) => {
            let labels: Option<BTreeMap<String, String>> = serde_json::from_str(text).ok();
            let read = labels.and_then(|labels| LogFormat::labels(&labels).ok());
            read.unwrap_or_else(LogFormat::json)
        }
    };
    LogTarget { path: file(path), format }
}

fn file_target(provider: &FileAccessLogProvider) -> LogTarget {
    let format = provider.log_format.as_ref().map(|format| match &format.labels {
        Some(labels) if !labels.is_empty() => LogFormat::labels(labels).ok(),
        Some(_) => Some(LogFormat::json()),
        None => LogFormat::text(&format.text).ok().filter(|_| !format.text.is_empty()),
    });
    LogTarget { path: file(&provider.path), format: format.flatten().unwrap_or_else(LogFormat::istio) }
}

fn file(path: &str) -> Option<String> {
    (path != STDOUT).then(|| path.to_owned())
}

/// Source: Istio `otelConfig`: gRPC unless `http` is there.
fn collector(provider: &TelemetryProvider) -> Option<Collector> {
    let settings = provider.opentelemetry.as_ref()?;
    // `namespace/host`, as Istio writes the service of a provider.
    let host = settings.service.rsplit('/').next().unwrap_or_default();
    let (carrier, timeout, more) = match (&settings.http, &settings.grpc) {
        (Some(http), _) => {
            let path = if http.path.is_empty() { "/v1/traces" } else { &http.path };
            (Carrier::Http(path.to_owned()), http.timeout, http.headers.as_slice())
        }
        (None, Some(grpc)) => (Carrier::Grpc, grpc.timeout, grpc.initial_metadata.as_slice()),
        (None, None) => (Carrier::Grpc, None, &[][..]),
    };
    let headers = more.iter().filter_map(|header| {
        let name = HeaderName::from_bytes(header.name.to_ascii_lowercase().as_bytes()).ok()?;
        Some((name, HeaderValue::from_str(&header.value).ok()?))
    });
    Some(Collector {
        host: host.to_ascii_lowercase().into(),
        port: u16::try_from(settings.port).ok()?,
        carrier,
        headers: headers.collect(),
        timeout: timeout.map_or(Duration::from_secs(3), mesh_proto::value::Duration::get),
        max_tag_bytes: match settings.max_tag_length {
            0 => 256,
            most => most as usize,
        },
    })
}

const STDOUT: &str = "/dev/stdout";
/// One percent. Source: Istio.
const DEFAULT_SAMPLING: u32 = 10_000;

//! Spans of requests: begun with them, passed on in their headers, told to a collector ([`spans`]).

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::HeaderMap;
use mesh_core::plan::{Party, PartyField, TagSource, Tracing};
use mesh_core::trace::{self, Begun};

use super::worker::{Chance, Worker};
use crate::telemetry::otlp::{Span, Tag};

pub(crate) use spans::Tracer;

mod spans;

/// The span of a request under way.
#[derive(Debug)]
pub(crate) struct Trace {
    tracing: Arc<Tracing>,
    begun: Begun,
    is_server: bool,
    /// Tags that the request's headers gave, by their place among the rules' tags.
    tags: Vec<(usize, String)>,
}

/// What a span is told of its request when it ends.
pub(crate) struct Ended<'a> {
    pub(crate) party: &'a Party,
    pub(crate) name: &'a str,
    pub(crate) took: Duration,
    pub(crate) failed: bool,
}

impl Trace {
    /// Begins the span of a request.
    pub(crate) fn begin(tracing: &Arc<Tracing>, is_server: bool, headers: &HeaderMap) -> Self {
        let begun = trace::begin(trace::extract(headers), tracing.sampling, &mut Chance);
        let of_header = |(at, (_, source)): (usize, &(String, TagSource))| match source {
            TagSource::Literal(_) => None,
            TagSource::Header(field, default) => match headers.get(field) {
                Some(value) => Some((at, String::from_utf8_lossy(value.as_bytes()).into_owned())),
                None => Some((at, default.clone())).filter(|(_, default)| !default.is_empty()),
            },
        };
        let is_told = begun.sampled && tracing.reports;
        let all = tracing.tags.iter().enumerate();
        let tags = if is_told { all.filter_map(of_header).collect() } else { Vec::new() };
        Self { tracing: tracing.clone(), begun, is_server, tags }
    }

    /// Writes it into the headers that go on.
    pub(crate) fn inject(&self, headers: &mut HeaderMap) {
        if self.tracing.propagates {
            self.begun.inject(headers);
        }
    }

    /// Returns the id of its trace.
    pub(crate) fn id(&self) -> u128 {
        self.begun.trace
    }

    /// Whether anybody is told of it.
    pub(crate) fn is_told(&self) -> bool {
        self.begun.sampled && self.tracing.reports
    }

    /// Hands it over to be told.
    pub(crate) fn end<'t>(
        &'t self,
        worker: &Rc<Worker>,
        ended: &Ended<'t>,
        known: impl Iterator<Item = (&'t str, Tag<'t>)>,
    ) {
        let Self { tracing, begun, is_server, tags } = self;
        let most = tracing.collector.max_tag_bytes;
        let own = tracing.tags.iter().enumerate().filter_map(|(at, (name, source))| {
            let text = match source {
                TagSource::Literal(text) => text,
                TagSource::Header(..) => tags.iter().find(|(of, _)| *of == at).map(|(_, text)| text)?,
            };
            Some((name.as_str(), Tag::Text(text)))
        });
        let istio = ISTIO.into_iter().filter(|_| tracing.istio_tags);
        let istio = istio.filter_map(|(name, field)| Some((name, Tag::Text(ended.party.get(field)?))));
        let all = own.chain(known).chain(istio).map(|(name, tag)| match tag {
            Tag::Text(text) => (name, Tag::Text(cut(text, most))),
            number @ Tag::Number(_) => (name, number),
        });
        let now = SystemTime::now();
        let span = Span {
            trace: begun.trace,
            id: begun.id,
            parent: begun.parent,
            state: &begun.state,
            name: ended.name,
            is_server: *is_server,
            started: now - ended.took,
            ended: now,
            failed: ended.failed,
        };
        worker.tracer.tell(worker, (&tracing.collector, ended.party), &span, all);
    }
}

/// Source: Istio's `enableIstioTags`.
const ISTIO: [(&str, PartyField); 4] = [
    ("istio.canonical_service", PartyField::Service),
    ("istio.canonical_revision", PartyField::Revision),
    ("istio.namespace", PartyField::Namespace),
    ("istio.cluster_id", PartyField::TrustDomain),
];

fn cut(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

//! The text in which numbers are told: Prometheus' own, version 0.0.4, and OpenMetrics 1.0.0.
//!
//! Source: Prometheus "Exposition formats"; OpenMetrics, section "Text format".

use std::fmt::{Display, Write};

use super::catalog::{Kind, Metric};
use super::labels::push;

/// Which text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus' own, version 0.0.4.
    #[default]
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Exposition {
    /// Picks what a reader takes, by its `Accept`.
    pub fn of_accept(accept: Option<&str>) -> Self {
        let asks =
            |text: &str| text.split(',').any(|kind| kind.trim().starts_with("application/openmetrics-text"));
        if accept.is_some_and(asks) { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Returns its `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A text under way.
pub(super) struct Page {
    exposition: Exposition,
    text: String,
}

impl Page {
    pub(super) fn new(exposition: Exposition) -> Self {
        Self { exposition, text: String::with_capacity(1 << 16) }
    }

    /// Begins a metric: all of its samples follow.
    pub(super) fn begin(&mut self, metric: &Metric) {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let is_open = self.exposition == Exposition::OpenMetrics;
        let name = if is_open { metric.name.trim_end_matches("_total") } else { metric.name };
        let _ = writeln!(self.text, "# HELP {name} {}\n# TYPE {name} {kind}", metric.help.trim());
    }

    /// Writes a sample; `labels` without braces.
    pub(super) fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = if labels.is_empty() {
            writeln!(self.text, "{name} {value}")
        } else {
            writeln!(self.text, "{name}{{{labels}}} {value}")
        };
    }

    /// Writes the samples of a histogram: how many are at most at each bound, in order, then how many there are.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        labels: &str,
        within: impl Iterator<Item = (f64, u64)>,
        (count, sum): (u64, f64),
    ) {
        let bucket = format!("{name}_bucket");
        for (bound, count) in within {
            let bound = match self.exposition {
                Exposition::Prometheus => format!("{bound}"),
                Exposition::OpenMetrics => format!("{bound:?}"),
            };
            let mut all = labels.to_owned();
            push(&mut all, "le", &bound);
            self.sample(&bucket, &all, count);
        }
        let mut all = labels.to_owned();
        push(&mut all, "le", "+Inf");
        self.sample(&bucket, &all, count);
        self.sample(&format!("{name}_sum"), labels, sum);
        self.sample(&format!("{name}_count"), labels, count);
    }

    /// Ends the text.
    pub(super) fn end(mut self) -> String {
        if self.exposition == Exposition::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

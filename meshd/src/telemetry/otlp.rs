//! Spans, and how they are written for a collector: OTLP in protobuf, the few messages of it that spans need.
//!
//! Source: opentelemetry-proto, `collector/trace/v1`, `trace/v1`, `common/v1`.

use std::time::{SystemTime, UNIX_EPOCH};

/// A span that ended.
#[derive(Clone, Debug)]
pub struct Span {
    /// Of the whole trace.
    pub trace: u128,
    /// Of this span.
    pub id: u64,
    /// Of the one it is a part of; 0: none.
    pub parent: u64,
    /// `tracestate` as it came.
    pub state: String,
    /// What was done.
    pub name: String,
    /// Whether it is the called side's.
    pub is_server: bool,
    /// When it began.
    pub started: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// What is known of it.
    pub tags: Vec<(String, Tag)>,
    /// Whether it failed.
    pub failed: bool,
}

/// The value of a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tag {
    /// A text.
    Text(String),
    /// A whole number.
    Number(i64),
}

/// The spans of one service.
pub struct Resource<'a> {
    /// What is known of the service, `service.name` first.
    pub tags: Vec<(&'static str, String)>,
    /// Its spans.
    pub spans: Vec<&'a Span>,
}

/// Writes a request to export spans.
pub fn export(resources: &[Resource<'_>]) -> Vec<u8> {
    let mut request = Message::default();
    for resource in resources {
        request.message(1, |all| {
            all.message(1, |facts| {
                for (name, value) in &resource.tags {
                    facts.tag(1, name, &Tag::Text(value.clone()));
                }
            });
            all.message(2, |scope| {
                scope.message(1, |scope| {
                    scope.text(1, "meshd");
                    scope.text(2, env!("CARGO_PKG_VERSION"));
                });
                for span in &resource.spans {
                    scope.message(2, |message| write(span, message));
                }
            });
        });
    }
    request.0
}

fn write(span: &Span, message: &mut Message) {
    const CLIENT: u64 = 3;
    const SERVER: u64 = 2;
    const ERROR: u64 = 2;
    message.bytes(1, &span.trace.to_be_bytes());
    message.bytes(2, &span.id.to_be_bytes());
    message.text(3, &span.state);
    if span.parent != 0 {
        message.bytes(4, &span.parent.to_be_bytes());
    }
    message.text(5, &span.name);
    message.number(6, if span.is_server { SERVER } else { CLIENT });
    message.fixed(7, nanos(span.started));
    message.fixed(8, nanos(span.ended));
    for (name, value) in &span.tags {
        message.tag(9, name, value);
    }
    if span.failed {
        message.message(15, |status| status.number(3, ERROR));
    }
}

fn nanos(at: SystemTime) -> u64 {
    u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// A message of protobuf under way.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }

    fn key(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn fixed(&mut self, field: u64, value: u64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn text(&mut self, field: u64, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }

    fn tag(&mut self, field: u64, name: &str, value: &Tag) {
        self.message(field, |pair| {
            pair.text(1, name);
            pair.message(2, |any| match value {
                Tag::Text(text) => any.bytes(1, text.as_bytes()),
                Tag::Number(number) => any.number(3, number.cast_unsigned()),
            });
        });
    }
}

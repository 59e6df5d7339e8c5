//! How spans are written for a collector, and what it answers: OTLP in protobuf, the few messages of it that spans need.
//!
//! A span is written when it ends, behind the others of its service: no other form of it is kept.
//!
//! Source: opentelemetry-proto, `collector/trace/v1`, `trace/v1`, `common/v1`; "OTLP Specification 1.5".

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A span that ended, but for its tags.
#[derive(Clone, Debug)]
pub struct Span<'a> {
    /// Of the whole trace.
    pub trace: u128,
    /// Of this span.
    pub id: u64,
    /// Of the one it is a part of; 0: none.
    pub parent: u64,
    /// `tracestate` as it came.
    pub state: &'a str,
    /// What was done.
    pub name: &'a str,
    /// Whether it is the called side's.
    pub is_server: bool,
    /// When it began.
    pub started: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// Whether it failed.
    pub failed: bool,
}

/// The value of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag<'a> {
    /// A text.
    Text(&'a str),
    /// A whole number.
    Number(i64),
}

/// The spans of one service.
pub struct Resource<'a> {
    /// What is known of the service, `service.name` first.
    pub tags: Vec<(&'static str, &'a str)>,
    /// Its spans, as [`Spans`] has them.
    pub spans: &'a Spans,
}

/// Spans of one service, as they are sent.
#[derive(Debug, Default)]
pub struct Spans {
    /// Each with its length before it.
    bytes: Vec<u8>,
    count: u64,
}

/// What is to be done with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The collector has it, but for so many spans.
    Taken(u64),
    /// It may be sent again, not before so long.
    Again(Option<Duration>),
    /// It will never be taken.
    Refused,
}

impl Spans {
    /// Adds a span. `scratch` is memory to write it in, which the next takes again.
    pub fn add<'a>(
        &mut self,
        span: &Span<'_>,
        tags: impl Iterator<Item = (&'a str, Tag<'a>)>,
        scratch: &mut Vec<u8>,
    ) {
        scratch.clear();
        let mut one = Message(std::mem::take(scratch));
        write(span, tags, &mut one);
        let mut all = Message(std::mem::take(&mut self.bytes));
        all.bytes(2, &one.0);
        (self.bytes, *scratch) = (all.0, one.0);
        self.count += 1;
    }

    /// Returns how many there are.
    pub fn count(&self) -> u64 {
        self.count
    }
}

fn write<'a>(span: &Span<'_>, tags: impl Iterator<Item = (&'a str, Tag<'a>)>, message: &mut Message) {
    const CLIENT: u64 = 3;
    const SERVER: u64 = 2;
    const ERROR: u64 = 2;
    message.bytes(1, &span.trace.to_be_bytes());
    message.bytes(2, &span.id.to_be_bytes());
    message.text(3, span.state);
    if span.parent != 0 {
        message.bytes(4, &span.parent.to_be_bytes());
    }
    message.text(5, span.name);
    message.number(6, if span.is_server { SERVER } else { CLIENT });
    message.fixed(7, nanos(span.started));
    message.fixed(8, nanos(span.ended));
    for (name, value) in tags {
        message.tag(9, name, value);
    }
    if span.failed {
        message.message(15, |status| status.number(3, ERROR));
    }
}

/// Writes a request to export spans, after `room` bytes for whatever carries it. Lengths are counted first: a batch is
/// large, and is copied once.
pub fn export(resources: &[Resource<'_>], room: usize) -> Vec<u8> {
    let mut scope = Message::default();
    scope.text(1, "meshd");
    scope.text(2, env!("CARGO_PKG_VERSION"));
    let parts: Vec<(&Resource<'_>, Message, usize)> = resources
        .iter()
        .map(|resource| {
            let mut facts = Message::default();
            for (name, value) in &resource.tags {
                facts.tag(1, name, Tag::Text(value));
            }
            let spans = resource.spans.bytes.len();
            (resource, facts, 1 + with_length(scope.0.len()) + spans)
        })
        .collect();
    let whole = |facts: &Message, spans: usize| 1 + with_length(facts.0.len()) + 1 + with_length(spans);
    let total: usize = parts.iter().map(|(_, facts, spans)| 1 + with_length(whole(facts, *spans))).sum();
    let mut request = Message(Vec::with_capacity(room + total));
    request.0.resize(room, 0);
    for (resource, facts, spans) in &parts {
        request.begin(1, whole(facts, *spans));
        request.bytes(1, &facts.0);
        request.begin(2, *spans);
        request.bytes(1, &scope.0);
        request.0.extend_from_slice(&resource.spans.bytes);
    }
    debug_assert_eq!(request.0.len(), room + total, "counted as written");
    request.0
}

/// Reads what the answer to a request over HTTP means; `retry_after` as it came.
///
/// Source: OTLP, "OTLP/HTTP Response".
pub fn http_verdict(status: u16, retry_after: Option<&str>, body: &[u8]) -> Verdict {
    match status {
        200..=299 => Verdict::Taken(rejected(body)),
        429 | 502 | 503 | 504 => {
            let seconds = retry_after.and_then(|text| text.trim().parse().ok());
            Verdict::Again(seconds.map(Duration::from_secs))
        }
        _ => Verdict::Refused,
    }
}

/// Reads what a gRPC status means; `details`: what came as `grpc-status-details-bin`, decoded.
///
/// Source: OTLP, "Failures" and "OTLP/gRPC Throttling".
pub fn grpc_verdict(status: u32, details: &[u8], message: &[u8]) -> Verdict {
    const CANCELLED: u32 = 1;
    const DEADLINE_EXCEEDED: u32 = 4;
    const RESOURCE_EXHAUSTED: u32 = 8;
    const ABORTED: u32 = 10;
    const OUT_OF_RANGE: u32 = 11;
    const UNAVAILABLE: u32 = 14;
    const DATA_LOSS: u32 = 15;
    match status {
        0 => Verdict::Taken(rejected(message)),
        CANCELLED | DEADLINE_EXCEEDED | ABORTED | OUT_OF_RANGE | UNAVAILABLE | DATA_LOSS => {
            Verdict::Again(retry_info(details))
        }
        // Only where the collector says that it will recover.
        RESOURCE_EXHAUSTED => retry_info(details).map_or(Verdict::Refused, |wait| Verdict::Again(Some(wait))),
        _ => Verdict::Refused,
    }
}

/// Reads how many spans were not taken of a batch that was: `partial_success.rejected_spans`.
fn rejected(response: &[u8]) -> u64 {
    let partial = Fields(response).find(|(field, _)| *field == 1);
    let Some((_, Field::Bytes(partial))) = partial else { return 0 };
    let count = Fields(partial).find(|(field, _)| *field == 1);
    if let Some((_, Field::Number(count))) = count { count } else { 0 }
}

/// Reads how long to wait: `google.rpc.RetryInfo` among the details of a `google.rpc.Status`.
fn retry_info(details: &[u8]) -> Option<Duration> {
    let any = |(field, value)| if let (3, Field::Bytes(any)) = (field, value) { Some(any) } else { None };
    let info = Fields(details).filter_map(any).find_map(|any| {
        let is_info = |(field, value): &(u64, Field<'_>)| {
            *field == 1 && matches!(value, Field::Bytes(name) if name.ends_with(b"google.rpc.RetryInfo"))
        };
        let value =
            |(field, value)| if let (2, Field::Bytes(info)) = (field, value) { Some(info) } else { None };
        Fields(any).any(|field| is_info(&field)).then(|| Fields(any).find_map(value))?
    })?;
    let delay = Fields(info).find_map(|(field, value)| match (field, value) {
        (1, Field::Bytes(delay)) => Some(delay),
        _ => None,
    })?;
    let number = |wanted: u64| {
        let found = Fields(delay).find(|(field, _)| *field == wanted);
        if let Some((_, Field::Number(number))) = found { number } else { 0 }
    };
    let nanos = u32::try_from(number(2)).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    // What is negative is a huge number here.
    Some(Duration::new(u64::from(u32::try_from(number(1)).ok()?), nanos))
}

/// One field of a message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of four or eight bytes.
    Fixed,
}

/// The fields of a message from outside; what is malformed ends it.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Field<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => self.take(8).map(|_| Field::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Field::Fixed)?,
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
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

    /// Begins something of so many bytes.
    fn begin(&mut self, field: u64, bytes: usize) {
        self.key(field, 2);
        self.varint(bytes as u64);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.begin(field, bytes.len());
        self.0.extend_from_slice(bytes);
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

    /// Writes a `KeyValue`: its length is counted, not found out by writing it elsewhere first.
    fn tag(&mut self, field: u64, name: &str, value: Tag<'_>) {
        let name_bytes = 1 + with_length(name.len());
        let value_bytes = match value {
            Tag::Text(text) => 1 + with_length(text.len()),
            Tag::Number(number) => 1 + varint_bytes(number.cast_unsigned()),
        };
        self.begin(field, name_bytes + 1 + with_length(value_bytes));
        self.bytes(1, name.as_bytes());
        self.begin(2, value_bytes);
        match value {
            Tag::Text(text) => self.bytes(1, text.as_bytes()),
            Tag::Number(number) => self.number(3, number.cast_unsigned()),
        }
    }
}

/// Returns how many bytes so many take, with their length before them.
fn with_length(bytes: usize) -> usize {
    varint_bytes(bytes as u64) + bytes
}

fn varint_bytes(value: u64) -> usize {
    value.max(1).ilog2() as usize / 7 + 1
}

#[cfg(test)]
mod tests;

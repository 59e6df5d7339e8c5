//! The access log: one line for each request, in Envoy's default text or as JSON.
//!
//! Lines go through a bounded queue to a thread of their own. When the disk does not keep up, lines are dropped and
//! counted: traffic never waits for its log.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_core::resilience::Flags;
use mesh_core::route::template::iso_8601;
use serde::Serialize;

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Envoy's default format.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// The end of a file, made where it is not there.
    File(PathBuf),
}

/// What is told of a request. Text that is unknown is empty.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it began.
    pub started: SystemTime,
    /// Method.
    pub method: String,
    /// Path and query as the caller sent them.
    pub path: String,
    /// `HTTP/1.1` and so on.
    pub protocol: &'static str,
    /// Host.
    pub authority: String,
    /// Status; 0: no answer was begun.
    pub status: u16,
    /// Why it ended so.
    pub flags: Flags,
    /// A few words of detail, of meshd's own.
    pub details: &'static str,
    /// Bytes of the request's body.
    pub received_bytes: u64,
    /// Bytes of the answer's body.
    pub sent_bytes: u64,
    /// From the first byte of the request to the last of the answer.
    pub duration: Duration,
    /// Until the endpoint's head arrived.
    pub upstream_duration: Option<Duration>,
    /// `x-forwarded-for`.
    pub forwarded_for: String,
    /// `user-agent`.
    pub user_agent: String,
    /// `x-request-id`.
    pub request_id: String,
    /// Address of the endpoint.
    pub upstream_host: String,
    /// Cluster, `outbound|PORT|SUBSET|HOST`.
    pub upstream_cluster: String,
    /// The caller's address.
    pub downstream: String,
}

/// Writes the access log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLog {
    queue: SyncSender<Record>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// Opens the sink and starts the thread that writes. It ends when the last clone is dropped.
    pub fn start(format: Format, sink: &Sink) -> io::Result<Self> {
        let out: Box<dyn Write + Send> = match sink {
            Sink::Stdout => Box::new(io::stdout()),
            Sink::File(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
        };
        let (queue, records) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("meshd-access-log".to_owned());
        thread.spawn(move || write_all(format, &records, BufWriter::new(out)))?;
        Ok(Self { queue, dropped: Arc::default() })
    }

    /// Writes a record soon; drops it, counted, when the queue is full.
    pub fn write(&self, record: Record) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(record) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns how many lines were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Flushes whenever the queue is empty, so that lines are seen at once and bursts are cheap.
fn write_all(format: Format, records: &Receiver<Record>, mut out: impl Write) {
    while let Ok(first) = records.recv() {
        let mut next = Some(first);
        while let Some(record) = next {
            let line = match format {
                Format::Text => text(&record),
                Format::Json => json(&record),
            };
            if let Err(error) = out.write_all(line.as_bytes()) {
                tracing::warn!(%error, "cannot write the access log");
            }
            next = records.try_recv().ok();
        }
        let _ = out.flush();
    }
}

/// Source: Envoy's default access log format.
fn text(record: &Record) -> String {
    let upstream =
        record.upstream_duration.map_or_else(|| "-".to_owned(), |time| time.as_millis().to_string());
    format!(
        "[{}] \"{} {} {}\" {} {} {} {} {} {} \"{}\" \"{}\" \"{}\" \"{}\" \"{}\"\n",
        start_time(record),
        shown(&record.method),
        shown(&record.path),
        record.protocol,
        record.status,
        record.flags,
        record.received_bytes,
        record.sent_bytes,
        record.duration.as_millis(),
        upstream,
        shown(&record.forwarded_for),
        shown(&record.user_agent),
        shown(&record.request_id),
        shown(&record.authority),
        shown(&record.upstream_host),
    )
}

/// What came from outside: `-` where there is nothing, and nothing that could fake another field or line.
fn shown(text: &str) -> String {
    if text.is_empty() {
        return "-".to_owned();
    }
    text.chars()
        .flat_map(|c| if c == '"' || c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect()
}

#[derive(Serialize)]
struct Line<'a> {
    start_time: String,
    method: &'a str,
    path: &'a str,
    protocol: &'a str,
    authority: &'a str,
    response_code: u16,
    response_flags: String,
    response_code_details: &'a str,
    bytes_received: u64,
    bytes_sent: u64,
    duration: u128,
    upstream_service_time: Option<u128>,
    x_forwarded_for: &'a str,
    user_agent: &'a str,
    request_id: &'a str,
    upstream_host: &'a str,
    upstream_cluster: &'a str,
    downstream_remote_address: &'a str,
}

fn json(record: &Record) -> String {
    let line = Line {
        start_time: start_time(record),
        method: &record.method,
        path: &record.path,
        protocol: record.protocol,
        authority: &record.authority,
        response_code: record.status,
        response_flags: record.flags.to_string(),
        response_code_details: record.details,
        bytes_received: record.received_bytes,
        bytes_sent: record.sent_bytes,
        duration: record.duration.as_millis(),
        upstream_service_time: record.upstream_duration.map(|time| time.as_millis()),
        x_forwarded_for: &record.forwarded_for,
        user_agent: &record.user_agent,
        request_id: &record.request_id,
        upstream_host: &record.upstream_host,
        upstream_cluster: &record.upstream_cluster,
        downstream_remote_address: &record.downstream,
    };
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    text
}

fn start_time(record: &Record) -> String {
    let since = record.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    iso_8601(u64::try_from(since.as_millis()).unwrap_or(0))
}

/// Lines that may wait: about a tenth of a second of a busy proxy.
const QUEUE: usize = 8_192;

#[cfg(test)]
pub(super) fn lines(record: &Record) -> (String, String) {
    (text(record), json(record))
}

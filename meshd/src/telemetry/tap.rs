//! Requests shown as they end, to those who ask for them: `meshctl tap`.
//!
//! While nobody taps, a request costs one relaxed load. A tap keeps few requests for a short time: 100 a second, 200 at
//! once; what is more is counted and left out, so that looking never slows what is looked at. Values that let somebody in
//! are hidden before they are kept ([`redact`]).

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use http::HeaderMap;
use mesh_proto::command::Timestamp;
use mesh_proto::look::{TapAsk, TapFilter, Tapped, TappedRequest};
use tokio::sync::Notify;

use super::{Goal, Record};
use crate::config::Tap as Shown;

mod redact;

/// Everybody's taps of this host.
#[derive(Debug, Default)]
pub struct Tap {
    is_on: AtomicBool,
    taps: Mutex<Vec<Arc<Opened>>>,
}

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// This host shows no requests.
    #[error("this host shows no requests (proxy.tap = \"off\" in its meshd.toml)")]
    Off,
    /// Values are hidden here.
    #[error("this host hides values that let somebody in; proxy.tap = \"all\" in its meshd.toml shows them")]
    Hidden,
    /// Too many look already.
    #[error("{MOST_TAPS} taps are open on this host already; each ends 5 s after it was last asked about")]
    TooMany,
    /// A filter that cannot be.
    #[error("{0}")]
    Filter(String),
}

/// What is told of a request beyond its access-log record.
pub struct Told<'t> {
    /// The record.
    pub record: &'t Record,
    /// The calling workload, `namespace/account`.
    pub caller: &'t str,
    /// Attempts beyond the first.
    pub retries: u32,
    /// Fields of the request, as the caller sent them.
    pub headers: &'t HeaderMap,
}

/// One tap.
#[derive(Debug)]
struct Opened {
    ask: TapAsk,
    status: Status,
    state: Mutex<State>,
    came: Notify,
}

#[derive(Debug)]
struct State {
    kept: VecDeque<TappedRequest>,
    missed: u64,
    fitted: u64,
    /// Requests that may still be kept in this second.
    left: u32,
    second: Instant,
    asked: Instant,
}

/// Which status is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Any,
    Exactly(u16),
    /// `5xx`
    Class(u16),
}

impl Tap {
    /// Whether anybody looks.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Shows a request that has ended to whoever wants it.
    pub fn offer(&self, told: &Told<'_>) {
        let now = Instant::now();
        let taps: Vec<Arc<Opened>> = {
            let mut taps = lock(&self.taps);
            taps.retain(|tap| now.duration_since(lock(&tap.state).asked) < FORGOTTEN_AFTER);
            self.is_on.store(!taps.is_empty(), Ordering::Relaxed);
            taps.clone()
        };
        for tap in taps {
            tap.offer(told, now);
        }
    }

    /// Answers one call of a tap: what was seen since the last, waiting a little for the first.
    ///
    /// # Errors
    /// [`TapError`]
    pub async fn ask(&self, ask: &TapAsk, shown: Shown, host: &str) -> Result<Tapped, TapError> {
        match shown {
            Shown::Off => return Err(TapError::Off),
            Shown::Redacted if ask.secrets => return Err(TapError::Hidden),
            _ => {}
        }
        let tap = self.open(ask)?;
        let limit = usize::try_from(ask.limit).unwrap_or(KEPT).clamp(1, KEPT);
        let wait = Duration::from_millis(ask.wait_ms).min(LONGEST_WAIT);
        let came = tap.came.notified();
        tokio::pin!(came);
        came.as_mut().enable();
        if lock(&tap.state).kept.is_empty() && !ask.end {
            let _ = tokio::time::timeout(wait, came).await;
        }
        let mut state = lock(&tap.state);
        state.asked = Instant::now();
        let many = state.kept.len().min(limit);
        let requests = state.kept.drain(..many).collect();
        let missed = std::mem::take(&mut state.missed);
        drop(state);
        if ask.end {
            let mut taps = lock(&self.taps);
            taps.retain(|other| other.ask.id != ask.id);
            self.is_on.store(!taps.is_empty(), Ordering::Relaxed);
        }
        Ok(Tapped { host: host.to_owned(), requests, missed })
    }

    fn open(&self, ask: &TapAsk) -> Result<Arc<Opened>, TapError> {
        let now = Instant::now();
        let mut taps = lock(&self.taps);
        taps.retain(|tap| now.duration_since(lock(&tap.state).asked) < FORGOTTEN_AFTER);
        if let Some(tap) = taps.iter().find(|tap| tap.ask.id == ask.id) {
            lock(&tap.state).asked = now;
            return Ok(tap.clone());
        }
        if taps.len() >= MOST_TAPS {
            return Err(TapError::TooMany);
        }
        let tap = Arc::new(Opened::new(ask, now)?);
        taps.push(tap.clone());
        self.is_on.store(true, Ordering::Relaxed);
        Ok(tap)
    }
}

impl Opened {
    fn new(ask: &TapAsk, now: Instant) -> Result<Self, TapError> {
        let status = ask.filter.status.as_deref().map_or(Ok(Status::Any), Status::parse)?;
        let state =
            State { kept: VecDeque::new(), missed: 0, fitted: 0, left: PER_SECOND, second: now, asked: now };
        Ok(Self { ask: ask.clone(), status, state: Mutex::new(state), came: Notify::new() })
    }

    fn offer(&self, told: &Told<'_>, now: Instant) {
        if !self.status.fits(told.record.status) || !fits(&self.ask.filter, told) {
            return;
        }
        let mut state = lock(&self.state);
        state.fitted += 1;
        if self.ask.one_in > 1 && !state.fitted.is_multiple_of(u64::from(self.ask.one_in)) {
            return;
        }
        if now.duration_since(state.second) >= Duration::from_secs(1) {
            (state.second, state.left) = (now, PER_SECOND);
        }
        if state.left == 0 || state.kept.len() >= KEPT {
            state.missed += 1;
            return;
        }
        state.left -= 1;
        state.kept.push_back(shown(told, &self.ask));
        drop(state);
        self.came.notify_waiters();
    }
}

impl Status {
    fn parse(text: &str) -> Result<Self, TapError> {
        let wrong = || {
            TapError::Filter(format!(
                "status {text:?} is neither a number such as 503 nor a class such as 5xx"
            ))
        };
        if let Some(class) = text.strip_suffix("xx") {
            return class
                .parse()
                .ok()
                .filter(|class| (1..=5).contains(class))
                .map(Self::Class)
                .ok_or_else(wrong);
        }
        text.parse().ok().filter(|status| *status <= 999).map(Self::Exactly).ok_or_else(wrong)
    }

    fn fits(self, status: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Exactly(wanted) => status == wanted,
            Self::Class(class) => status / 100 == class,
        }
    }
}

fn fits(filter: &TapFilter, told: &Told<'_>) -> bool {
    let record = told.record;
    let service = |wanted: &String| {
        let asked = record.authority();
        let host = match &record.goal {
            Goal::Cluster(cluster) => &*cluster.name.host,
            Goal::Named(name) => name,
            Goal::Nowhere | Goal::Inbound(_) => asked.split(':').next().unwrap_or_default(),
        };
        is_named(host, wanted)
    };
    let caller =
        |wanted: &String| told.caller == wanted || told.caller.rsplit('/').next() == Some(wanted.as_str());
    let field = |(name, wanted): &(String, Option<String>)| {
        told.headers
            .get_all(name.as_str())
            .iter()
            .any(|value| wanted.as_ref().is_none_or(|wanted| value.as_bytes() == wanted.as_bytes()))
    };
    filter.service.as_ref().is_none_or(service)
        && filter.path.as_ref().is_none_or(|begin| record.path().starts_with(begin.as_str()))
        && filter.method.as_ref().is_none_or(|wanted| method_of(record).eq_ignore_ascii_case(wanted))
        && filter.from.as_ref().is_none_or(caller)
        && filter.headers.iter().all(field)
}

fn method_of(record: &Record) -> &str {
    record.method.as_ref().map_or("", http::Method::as_str)
}

/// `reviews` and `reviews.default` stand for `reviews.default.svc.cluster.local`.
fn is_named(host: &str, wanted: &str) -> bool {
    host.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn shown(told: &Told<'_>, ask: &TapAsk) -> TappedRequest {
    let record = told.record;
    let since = record.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    let number = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
    let path = if ask.secrets { record.path().into_owned() } else { redact::path(&record.path()) };
    let headers = if ask.headers { fields(told.headers, ask.secrets) } else { BTreeMap::new() };
    TappedRequest {
        at: Timestamp(number(since.as_millis())),
        from: told.caller.to_owned(),
        cluster: record.goal.to_string(),
        endpoint: record.upstream.as_ref().map_or_else(String::new, ToString::to_string),
        method: method_of(record).to_owned(),
        authority: cut(&record.authority()),
        path: cut(&path),
        protocol: mesh_core::route::template::protocol(record.version).to_owned(),
        status: record.status,
        flags: record.flags.to_string(),
        retries: told.retries,
        received_bytes: record.received_bytes,
        sent_bytes: record.sent_bytes,
        took_us: number(record.duration.as_micros()),
        id: record.request("x-request-id").map_or_else(String::new, |id| cut(&id)),
        headers,
    }
}

fn fields(headers: &HeaderMap, secrets: bool) -> BTreeMap<String, String> {
    let mut shown: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in headers.iter().take(MOST_FIELDS) {
        let name = name.as_str();
        let value = if !secrets && redact::is_sensitive(name) {
            redact::HIDDEN.to_owned()
        } else {
            cut(&String::from_utf8_lossy(value.as_bytes()))
        };
        let text = shown.entry(name.to_owned()).or_default();
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&value);
    }
    shown
}

/// Long text is of no use on a terminal, and kept two hundred times it is memory.
fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const MOST_TAPS: usize = 8;
/// Requests of one tap that wait to be fetched.
const KEPT: usize = 200;
/// Requests of one tap in a second.
const PER_SECOND: u32 = 100;
const FORGOTTEN_AFTER: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
const MOST_FIELDS: usize = 64;
const LONGEST_TEXT: usize = 512;

#[cfg(test)]
mod tests;

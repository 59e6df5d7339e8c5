//! Logs: to standard error, where systemd's journal reads them.

use std::fmt;
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use mesh_proto::command::Timestamp;
use mesh_proto::look::LogState;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, SubscriberBuilder};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{Log, LogFormat};

/// How much is logged, changed while meshd runs. Clones share it.
#[derive(Clone)]
pub(super) struct Levels(Arc<Inner>);

struct Inner {
    reload: Reload,
    configured: String,
    present: Mutex<Present>,
}

struct Present {
    level: String,
    until: Option<SystemTime>,
    /// How often it was set: what ends a level must not end a later one.
    times: u64,
}

impl Levels {
    /// Logs so much from now on, for a time or until meshd ends.
    ///
    /// # Errors
    /// When these are no directives.
    pub(super) fn set(&self, level: &str, during: Option<Duration>) -> std::result::Result<(), String> {
        crate::config::words::log_level(level)?;
        let times = self.put(level, during.and_then(|during| SystemTime::now().checked_add(during)))?;
        tracing::warn!(level, seconds = during.map(|during| during.as_secs()), "log level set");
        if let Some(during) = during {
            let levels = self.clone();
            crate::task::spawn("log level", async move {
                tokio::time::sleep(during).await;
                let is_last = levels.present().times == times;
                if is_last && levels.put(&levels.0.configured, None).is_ok() {
                    tracing::warn!(level = levels.0.configured, "log level as configured again");
                }
            });
        }
        Ok(())
    }

    /// Tells how much is logged.
    pub(super) fn state(&self, host: &str) -> LogState {
        let present = self.present();
        let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        LogState {
            host: host.to_owned(),
            level: present.level.clone(),
            configured: self.0.configured.clone(),
            until: present.until.map(|until| Timestamp(u64::try_from(since(until)).unwrap_or(u64::MAX))),
        }
    }

    fn put(&self, level: &str, until: Option<SystemTime>) -> std::result::Result<u64, String> {
        let filter = filter(level).map_err(|error| error.to_string())?;
        let mut present = self.present();
        (self.0.reload)(filter)?;
        let times = present.times + 1;
        *present = Present { level: level.to_owned(), until, times };
        Ok(times)
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.0.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// openraft and quinn tell of every heartbeat at info, and openraft of every voter that does not answer as an error;
/// what concerns an operator, meshd tells itself.
const QUIET: &str = "openraft=error,openraft::replication=off,openraft::core::raft_core=off,hickory_server=warn,hickory_proto=warn,quinn=warn,h2=warn,rustls=warn";

fn filter(directives: &str) -> std::result::Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    EnvFilter::try_new(format!("{QUIET},{directives}"))
}

/// Begins logging as the configuration says; `RUST_LOG` is louder.
pub(super) fn start(log: &Log) -> Result<Levels> {
    let configured = std::env::var("RUST_LOG").unwrap_or_else(|_| log.level.clone());
    let filter = filter(&configured).with_context(|| format!("log.level {configured:?}"))?;
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter);
    let to_journal = is_journal();
    let begun = match log.format {
        // The journal keeps the priority beside the object, which begins after it.
        LogFormat::Json => {
            let format = tracing_subscriber::fmt::format().json();
            let builder = builder.json().event_format(Lines { format, to_journal }).with_filter_reloading();
            begin(builder, SubscriberBuilder::reload_handle, SubscriberBuilder::try_init)
        }
        LogFormat::Auto if std::io::stderr().is_terminal() => {
            let builder = builder.with_target(false).with_filter_reloading();
            begin(builder, SubscriberBuilder::reload_handle, SubscriberBuilder::try_init)
        }
        // The journal stamps every line itself.
        LogFormat::Auto if to_journal => {
            let format = tracing_subscriber::fmt::format().without_time().with_ansi(false).with_target(false);
            let format = format.with_level(false);
            let builder = builder.event_format(Lines { format, to_journal }).with_filter_reloading();
            begin(builder, SubscriberBuilder::reload_handle, SubscriberBuilder::try_init)
        }
        LogFormat::Auto | LogFormat::Text => {
            let format = tracing_subscriber::fmt::format().with_ansi(false).with_target(false);
            let builder = builder.event_format(Lines { format, to_journal }).with_filter_reloading();
            begin(builder, SubscriberBuilder::reload_handle, SubscriberBuilder::try_init)
        }
    };
    let reload = begun.map_err(|error| anyhow::anyhow!("cannot begin logging: {error}"))?;
    tell_panics();
    let present = Mutex::new(Present { level: configured.clone(), until: None, times: 0 });
    Ok(Levels(Arc::new(Inner { reload, configured, present })))
}

type Reload = Box<dyn Fn(EnvFilter) -> std::result::Result<(), String> + Send + Sync>;
type Begun = std::result::Result<(), Box<dyn std::error::Error + Send + Sync + 'static>>;

/// Begins, and returns what changes the filter later. Builders of different formats have different types.
fn begin<B, S: 'static>(
    builder: B,
    handle: impl FnOnce(&B) -> tracing_subscriber::reload::Handle<EnvFilter, S>,
    start: impl FnOnce(B) -> Begun,
) -> std::result::Result<Reload, Box<dyn std::error::Error + Send + Sync + 'static>> {
    let handle = handle(&builder);
    start(builder)?;
    Ok(Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string())))
}

/// Tells why meshd ends, on standard error.
pub fn tell_error(error: &anyhow::Error) {
    let priority = if is_journal() { priority(Level::ERROR) } else { "" };
    // A message of many lines is many entries for the journal.
    for line in format!("meshd: {error:#}").lines() {
        eprintln!("{priority}{line}");
    }
}

/// Logs a panic as an error, in a line: on standard error the journal would take its lines for information.
fn tell_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(String::new, ToString::to_string);
        let thread = std::thread::current();
        let why = panic.payload_as_str().unwrap_or("it says nothing");
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace = match backtrace.status() {
            std::backtrace::BacktraceStatus::Captured => backtrace.to_string(),
            _ => String::new(),
        };
        tracing::error!(
            why,
            place,
            thread = thread.name().unwrap_or_default(),
            backtrace,
            "a part of meshd panicked"
        );
    }));
}

/// Whether systemd's journal reads standard error: it may be inherited, and then be redirected elsewhere.
///
/// Source: systemd.exec(5), `$JOURNAL_STREAM`.
fn is_journal() -> bool {
    let told = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    !std::io::stderr().is_terminal() && is_stream(&told, std::io::stderr().as_fd())
}

/// Whether a descriptor is the one that `DEVICE:INODE` names.
fn is_stream(told: &str, descriptor: BorrowedFd<'_>) -> bool {
    let Some((device, inode)) = told.split_once(':') else { return false };
    rustix::fs::fstat(descriptor)
        .is_ok_and(|is| device.parse() == Ok(is.st_dev) && inode.parse() == Ok(is.st_ino))
}

/// Lines of a log. For the journal with their priority in front, which it takes off. Source: sd-daemon(3).
struct Lines<F> {
    format: F,
    to_journal: bool,
}

impl<S, N, F> FormatEvent<S, N> for Lines<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.to_journal {
            writer.write_str(priority(*event.metadata().level()))?;
        }
        self.format.format_event(context, writer, event)
    }
}

/// The priorities of syslog, as `journalctl -p` knows them.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        Level::DEBUG | Level::TRACE => "<7>",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_the_stream_it_named_and_no_file_that_came_after() {
        let (stream, file) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let is = rustix::fs::fstat(&stream).unwrap();
        let told = format!("{}:{}", is.st_dev, is.st_ino);

        assert!(is_stream(&told, stream.as_fd()));
        assert!(!is_stream(&told, file.as_fd()));
        assert!(!is_stream("", stream.as_fd()) && !is_stream("8:x", stream.as_fd()));
    }
}

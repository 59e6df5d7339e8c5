//! Logs: to standard error, where systemd's journal reads them.

use std::fmt;
use std::io::IsTerminal;
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
    let begun = match log.format {
        LogFormat::Json => begin(
            builder.json().with_filter_reloading(),
            SubscriberBuilder::reload_handle,
            SubscriberBuilder::try_init,
        ),
        LogFormat::Auto if std::io::stderr().is_terminal() => {
            let builder = builder.with_target(false).with_filter_reloading();
            begin(builder, SubscriberBuilder::reload_handle, SubscriberBuilder::try_init)
        }
        // The journal stamps every line itself.
        LogFormat::Auto if is_journal() => {
            let format = tracing_subscriber::fmt::format().without_time().with_ansi(false).with_target(false);
            let builder = builder.event_format(Journal(format.with_level(false))).with_filter_reloading();
            begin(builder, SubscriberBuilder::reload_handle, SubscriberBuilder::try_init)
        }
        LogFormat::Auto | LogFormat::Text => {
            let builder = builder.with_ansi(false).with_target(false).with_filter_reloading();
            begin(builder, SubscriberBuilder::reload_handle, SubscriberBuilder::try_init)
        }
    };
    let reload = begun.map_err(|error| anyhow::anyhow!("cannot begin logging: {error}"))?;
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

/// Whether systemd's journal reads standard error.
fn is_journal() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal()
}

/// Lines for the journal: it stamps them itself, and takes their priority from the front. Source: sd-daemon(3).
struct Journal<F>(F);

impl<S, N, F> FormatEvent<S, N> for Journal<F>
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
        writer.write_str(priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
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

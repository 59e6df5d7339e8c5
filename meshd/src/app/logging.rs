//! Logs: to standard error, where systemd's journal reads them.

use std::fmt;
use std::io::IsTerminal;

use anyhow::{Context, Result};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{Log, LogFormat};

/// Begins logging as the configuration says; `RUST_LOG` is louder.
pub(super) fn start(log: &Log) -> Result<()> {
    let directives = std::env::var("RUST_LOG").unwrap_or_else(|_| log.level.clone());
    // openraft and quinn tell of every heartbeat at info, and openraft of every voter that does not answer as an error;
    // what concerns an operator, meshd tells itself.
    let quiet = "openraft=error,openraft::replication=off,hickory_server=warn,hickory_proto=warn,quinn=warn,h2=warn,rustls=warn";
    let filter = EnvFilter::try_new(format!("{quiet},{directives}"))
        .with_context(|| format!("log.level {directives:?}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let begun = match log.format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Auto if std::io::stderr().is_terminal() => builder.with_target(false).try_init(),
        // The journal stamps every line itself.
        LogFormat::Auto if is_journal() => {
            let format = tracing_subscriber::fmt::format().without_time().with_ansi(false).with_target(false);
            builder.event_format(Journal(format.with_level(false))).try_init()
        }
        LogFormat::Auto | LogFormat::Text => builder.with_ansi(false).with_target(false).try_init(),
    };
    begun.map_err(|error| anyhow::anyhow!("cannot begin logging: {error}"))
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

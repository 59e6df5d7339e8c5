//! Logs: to standard error, where systemd's journal reads them.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Begins logging as the configuration says; `RUST_LOG` is louder.
pub(super) fn start(log: &Log) -> Result<()> {
    let directives = std::env::var("RUST_LOG").unwrap_or_else(|_| log.level.clone());
    // openraft and quinn tell of every heartbeat at info, and openraft of every message to a host that is down as an
    // error; what concerns an operator, meshd tells itself.
    let quiet = "openraft=error,openraft::replication=off,hickory_server=warn,hickory_proto=warn,quinn=warn,h2=warn,rustls=warn";
    let filter = EnvFilter::try_new(format!("{quiet},{directives}"))
        .with_context(|| format!("log.level {directives:?}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let begun = match log.format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Auto if std::io::stderr().is_terminal() => builder.with_target(false).try_init(),
        // The journal stamps every line itself.
        LogFormat::Auto if std::env::var_os("JOURNAL_STREAM").is_some() => {
            builder.without_time().with_ansi(false).with_target(false).try_init()
        }
        LogFormat::Auto | LogFormat::Text => builder.with_ansi(false).with_target(false).try_init(),
    };
    begun.map_err(|error| anyhow::anyhow!("cannot begin logging: {error}"))
}

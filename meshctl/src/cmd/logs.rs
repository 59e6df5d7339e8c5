//! `meshctl logs level`: how much a meshd logs, told and changed while it runs.

use std::time::Duration;

use mesh_proto::api::{Request, Response};
use mesh_proto::look::{LogAsk, LogState};

use crate::client::{Client, answer};
use crate::exit::{Exit, Result};
use crate::output::{Format, Tone, paint, show};
use crate::words::{left, now_ms};

/// Runs `logs level`.
pub(crate) async fn level(
    level: Option<String>,
    during: Option<Duration>,
    format: Format,
    client: &Client,
) -> Result<Exit> {
    let seconds = during.map(|during| during.as_secs().max(1));
    let answer = client.call(&Request::LogLevel(LogAsk { level, seconds })).await?;
    let state = answer!(answer, Response::LogLevel(state) => state)?;
    show(format, std::slice::from_ref(&state), || text(&state, now_ms()))?;
    Ok(Exit::Done)
}

fn text(state: &LogState, now_ms: u64) -> String {
    let LogState { host, level, configured, until } = state;
    match until {
        Some(until) => {
            let left = left(now_ms, until.0);
            format!("{host} logs {}, for {left} more; then {configured}\n", paint(Tone::Warn, level))
        }
        None if level == configured => format!("{host} logs {level}\n"),
        None => format!("{host} logs {} until meshd ends; then {configured}\n", paint(Tone::Warn, level)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_proto::command::Timestamp;

    #[test]
    fn a_level_is_told_with_its_end() {
        let state = |level: &str, until| LogState {
            host: "vm2".into(),
            level: level.into(),
            configured: "info".into(),
            until,
        };
        let told = |state: &LogState| anstream::adapter::strip_str(&text(state, 1_000)).to_string();

        assert_eq!(told(&state("info", None)), "vm2 logs info\n");
        assert_eq!(
            told(&state("debug", Some(Timestamp(61_000)))),
            "vm2 logs debug, for 60s more; then info\n"
        );
        assert_eq!(told(&state("debug", None)), "vm2 logs debug until meshd ends; then info\n");
    }
}

//! `reload`: a successor with what is on disk takes the place of the meshd that runs.

use std::time::Duration;

use mesh_proto::api::{Request, Response};

use crate::client::{Client, answer};
use crate::exit::{Exit, Failure, Result};
use crate::output::say;

/// Asks for a successor, and waits until it answers.
pub(crate) async fn run(client: &Client) -> Result<Exit> {
    let (_, before) = who(client).await?;
    client.call(&Request::Reload).await?;
    let successor = async {
        loop {
            // Between the two, nobody answers for a moment.
            match who(client).await {
                Ok((version, pid)) if pid != before => return version,
                _ => tokio::time::sleep(BETWEEN_QUESTIONS).await,
            }
        }
    };
    let version = tokio::time::timeout(TAKES_OVER_WITHIN, successor).await.map_err(|_| {
        let seconds = TAKES_OVER_WITHIN.as_secs();
        Failure::new(
            Exit::NoAnswer,
            format!("no successor answers after {seconds} s; see journalctl -u meshd"),
        )
    })?;
    say(&format!(
        "meshd {version} has taken over; connections of the one before go on for up to 10 minutes\n"
    ))?;
    Ok(Exit::Done)
}

async fn who(client: &Client) -> Result<(String, u32)> {
    answer!(client.call(&Request::Version).await?, Response::Version { version, pid, .. } => (version, pid))
}

const BETWEEN_QUESTIONS: Duration = Duration::from_millis(50);
/// Shorter than the start of a unit may take.
const TAKES_OVER_WITHIN: Duration = Duration::from_mins(1);

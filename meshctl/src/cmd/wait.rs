//! After a change: waits until every live host runs it, and says so in one line.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_proto::api::{Request, Response};
use mesh_proto::command::Revision;

use crate::cli::Waiting;
use crate::client::{Client, PATIENCE, answer};
use crate::exit::{Exit, Failure, Result};
use crate::output::{Tone, paint, say, tell};
use crate::words::{count, short};

/// Waits for a revision as the user asked and prints the outcome.
///
/// `begun` is when the change was sent. Exit code 4 where a live host does not run it in time.
pub(crate) async fn for_hosts(
    client: &Client,
    revision: Revision,
    waiting: &Waiting,
    begun: Instant,
) -> Result<Exit> {
    if waiting.no_wait {
        say(&format!("revision {revision} kept by a majority ({})\n", short(begun.elapsed())))?;
        return Ok(Exit::Done);
    }
    let waited = ask(client, revision, waiting.timeout).await?;
    waited.tell(revision, begun.elapsed())
}

/// What `Wait` answered.
#[derive(Debug, Default)]
pub(crate) struct Waited {
    /// Hosts that run the revision.
    pub(crate) live: Vec<String>,
    /// Live hosts that do not, and what they run.
    pub(crate) behind: BTreeMap<String, Revision>,
    /// What hosts do not carry out, of this revision or of what was there before.
    pub(crate) problems: Vec<String>,
}

/// Asks the leader to wait.
pub(crate) async fn ask(client: &Client, revision: Revision, timeout: Duration) -> Result<Waited> {
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let answer =
        client.call_within(&Request::Wait { revision, timeout_ms }, timeout.saturating_add(PATIENCE)).await;
    let answer = answer.map_err(|failure| {
        Failure::new(
            failure.exit,
            format!("revision {revision} is kept, but not known to be live everywhere: {}", failure.message),
        )
    })?;
    answer!(answer, Response::Waited { live, behind, problems } => Waited { live, behind, problems })
}

impl Waited {
    /// Tells what became of a revision. Problems do not make it fail: it is live, and they may be older than it, or of
    /// other objects.
    fn tell(&self, revision: Revision, took: Duration) -> Result<Exit> {
        for problem in &self.problems {
            tell(&format!("{} {problem}", paint(Tone::Bad, "problem:")));
        }
        if self.behind.is_empty() {
            say(&(self.line(revision, took) + "\n"))?;
            return Ok(Exit::Done);
        }
        Err(Failure::no_answer(self.line(revision, took)))
    }

    /// The line: `revision 42 live on 3 of 3 hosts (41 ms)`.
    pub(crate) fn line(&self, revision: Revision, took: Duration) -> String {
        let all = self.live.len() + self.behind.len();
        let line = format!("revision {revision} live on {} of {}", self.live.len(), count(all, "host"));
        if self.behind.is_empty() {
            return format!("{line} ({})", short(took));
        }
        let behind: Vec<_> = self.behind.iter().map(|(host, runs)| format!("{host} (runs {runs})")).collect();
        format!(
            "{line} after {}; behind: {}. The revision is kept, and these hosts take it when they can: \
             look with `meshctl status`",
            short(took),
            behind.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waited(live: &[&str], behind: &[(&str, u64)]) -> Waited {
        Waited {
            live: live.iter().map(ToString::to_string).collect(),
            behind: behind.iter().map(|(host, runs)| ((*host).to_owned(), Revision(*runs))).collect(),
            problems: Vec::new(),
        }
    }

    #[test]
    fn the_line_counts_hosts_and_tells_the_time() {
        let line = waited(&["vm1", "vm2", "vm3"], &[]).line(Revision(42), Duration::from_millis(41));

        assert_eq!(line, "revision 42 live on 3 of 3 hosts (41 ms)");
    }

    #[test]
    fn hosts_behind_are_named_with_what_they_run() {
        let line = waited(&["vm1"], &[("vm3", 40)]).line(Revision(42), Duration::from_secs(30));

        assert_eq!(
            line,
            "revision 42 live on 1 of 2 hosts after 30.0 s; behind: vm3 (runs 40). The revision is kept, and these \
             hosts take it when they can: look with `meshctl status`"
        );
    }
}

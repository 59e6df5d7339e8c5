//! What was tried, on disk: a meshd that is restarted again and again orders no more than one that runs.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What was tried for one secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tried {
    /// When orders were begun in the last 24 h, and the last one; the oldest first.
    pub(super) begun: Vec<SystemTime>,
    /// How many failed, one after the other, the last one among them.
    pub(super) failures: u32,
    /// Why the last one failed; empty: it did not.
    pub(super) problem: String,
    /// How long the last certificate that came lives.
    pub(super) life: Option<Duration>,
}

/// What was tried for all secrets.
#[derive(Debug)]
pub(super) struct Records {
    path: PathBuf,
    all: BTreeMap<String, Row>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Row {
    /// Milliseconds since 1970.
    begun: Vec<u64>,
    failures: u32,
    problem: String,
    /// Seconds; 0: none has come yet.
    life: u64,
}

impl Records {
    /// Reads them; without, or with a file that nobody can read, nothing was tried.
    pub(super) fn load(folder: &Path) -> Self {
        let path = folder.join("orders.json");
        let read =
            fs::read(&path).map_err(|error| (error.kind() != io::ErrorKind::NotFound, error.to_string()));
        let parsed =
            read.and_then(|text| serde_json::from_slice(&text).map_err(|error| (true, error.to_string())));
        let all = parsed.unwrap_or_else(|(is_strange, error)| {
            if is_strange {
                tracing::warn!(path = %path.display(), error, "what was ordered before is not known");
            }
            BTreeMap::new()
        });
        Self { path, all }
    }

    /// An order begins. It counts as failed until it has ended.
    pub(super) fn begin(&mut self, secret: &str, now: SystemTime) {
        let row = self.all.entry(secret.to_owned()).or_default();
        let now = millis(now);
        row.begun.retain(|begun| now.abs_diff(*begun) <= KEPT_MS);
        row.begun.push(now);
        row.failures = row.failures.saturating_add(1);
        "was cut short: meshd ended meanwhile".clone_into(&mut row.problem);
        self.save();
    }

    /// It has ended, or could not begin; an empty `problem`: well. Tells whether that is news.
    pub(super) fn end(&mut self, secret: &str, problem: &str) -> bool {
        let row = self.all.entry(secret.to_owned()).or_default();
        if row.problem == problem && !problem.is_empty() {
            return false;
        }
        if problem.is_empty() {
            row.failures = 0;
        }
        problem.clone_into(&mut row.problem);
        self.save();
        true
    }

    /// A certificate has come that lives for so long.
    pub(super) fn came(&mut self, secret: &str, life: Duration) {
        self.all.entry(secret.to_owned()).or_default().life = life.as_secs();
    }

    /// Returns what was tried; what a clock that went wrong has left in the future was tried now.
    pub(super) fn of(&self, secret: &str, now: SystemTime) -> Tried {
        let row = self.all.get(secret).cloned().unwrap_or_default();
        let moment = |ms: &u64| (UNIX_EPOCH + Duration::from_millis(*ms)).min(now);
        Tried {
            begun: row.begun.iter().map(moment).collect(),
            failures: row.failures,
            problem: row.problem,
            life: (row.life > 0).then(|| Duration::from_secs(row.life)),
        }
    }

    fn save(&self) {
        let saved =
            serde_json::to_vec(&self.all).map_err(io::Error::from).and_then(|text| write(&self.path, &text));
        if let Err(error) = saved {
            tracing::warn!(path = %self.path.display(), %error, "what was ordered is not kept");
        }
    }
}

/// Writes a file that is meshd's alone: after a crash the old content or the new one is there.
pub(super) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let draft = path.with_extension("new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(folder)?.sync_all()
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A day, by which orders are counted.
const KEPT_MS: u64 = 86_400_000;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn what_was_tried_outlives_a_restart_and_a_cut_order_counts_as_failed() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("acme");
        let mut records = Records::load(&folder);
        records.begin("shop", at(10));
        records.end("shop", "no");
        records.begin("shop", at(100));

        let again = Records::load(&folder).of("shop", at(200));
        assert_eq!(again.begun, [at(10), at(100)]);
        assert_eq!(again.failures, 2);
        assert!(again.problem.contains("cut short"), "{again:?}");

        records.end("shop", "");
        assert_eq!(Records::load(&folder).of("shop", at(200)).failures, 0);
        // After a day, what was begun counts no longer.
        records.begin("shop", at(90_000));
        assert_eq!(records.of("shop", at(90_000)).begun, [at(90_000)]);
        let mode = |path: PathBuf| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!((mode(folder.clone()), mode(folder.join("orders.json"))), (0o700, 0o600));
    }

    #[test]
    fn a_clock_that_was_ahead_shuts_nobody_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut records = Records::load(folder.path());
        records.begin("shop", at(1_000_000_000));
        assert_eq!(records.of("shop", at(5)).begun, [at(5)]);
    }

    #[test]
    fn a_damaged_file_is_no_reason_to_stop() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("orders.json"), "{").expect("written");
        assert_eq!(Records::load(folder.path()).of("shop", at(0)), Tried::default());
    }
}

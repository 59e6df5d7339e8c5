//! `doctor`: what [`crate::doctor`] finds on this host, with what only its configuration, its state and other hosts tell.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use mesh_core::identity::Identity;
use mesh_core::world::World;
use mesh_proto::api::{Call, Request, Response, Status};
use mesh_proto::command::Liveness;
use mesh_proto::look::{Check, Checkup, Grade};
use tokio::task::JoinSet;

use super::requests::Requests;
use super::state::HostState;
use crate::config::{Config, ConfigError, Source};
use crate::doctor::{self, Patient};
use crate::identity::{HostKeys, Standing};
use crate::server;

/// Hosts that are asked at most; in a larger mesh, each looks at the first of them.
const MOST_PEERS: usize = 200;
/// How long another host may take to answer.
const PEER_LIMIT: Duration = Duration::from_secs(2);
/// How long the servers may take to tell how the mesh stands.
const STATUS_LIMIT: Duration = Duration::from_secs(5);
/// Clocks that differ more are told; certificates are valid from five minutes before they are made.
const CLOCK_WARNING_MS: i64 = 10_000;
const CLOCK_ERROR_MS: i64 = 240_000;

/// `meshd doctor`: looks at this host without a meshd that runs, and prints a [`Checkup`] as JSON.
///
/// # Errors
/// When standard output cannot be written.
pub fn doctor(source: &Source) -> Result<()> {
    let (config, mut checks) = match source.load() {
        Ok(config) => (config, vec![Check::good("configuration", readable(source))]),
        Err(error) => {
            (Config::default(), unreadable(source, &error, "meshd does not start: it ends with 78"))
        }
    };
    checks.extend(state(&config.host.data, false));
    checks.extend(files(&config.host.data));
    let host = config.host.name.clone();
    let reads = vec![source.path().to_owned(), config.services.directory.clone()];
    checks.extend(doctor::examine(&Patient {
        config,
        is_running: false,
        is_by_unit: source.is_default(),
        reads,
        name_to_ask: None,
    }));
    let checkup = Checkup { host, running: false, checks };
    super::print(&format!("{}\n", serde_json::to_string(&checkup)?))
}

impl Requests {
    /// Looks at this host, and at how it stands with the others.
    pub(super) async fn examine(&self) -> Checkup {
        let world = self.published.borrow().world.clone();
        let patient = Patient {
            config: self.looking.config.clone(),
            is_running: true,
            is_by_unit: false,
            reads: Vec::new(),
            name_to_ask: name_to_ask(&world),
        };
        let source = self.looking.source.clone();
        let local = tokio::task::spawn_blocking(move || {
            let mut checks = vec![configuration(&source, &patient.config)];
            checks.extend(state(&patient.config.host.data, true));
            checks.extend(doctor::examine(&patient));
            checks
        });
        let status = tokio::time::timeout(STATUS_LIMIT, self.answer_by_server(Request::Status, "doctor"));
        let (local, peers, status) = tokio::join!(local, self.peers(&world), status);
        let mut checks = local.unwrap_or_else(|error| {
            vec![Check::skipped("this host", format!("looking at it broke off ({error}): see the log"))]
        });
        checks.extend(rotation(&self.looking.certificates.borrow()));
        checks
            .extend(self.server.as_ref().and_then(|server| server.failure()).map(|why| takes_no_part(&why)));
        checks.extend(peers);
        let runs = self.plans.load().revision.0;
        checks.extend(match status {
            Ok(Ok(Response::Status(status))) => agreement(&self.name, runs, &status),
            Ok(Err(error)) => vec![no_agreement(&error.message)],
            _ => vec![no_agreement("no server answers in time")],
        });
        Checkup { host: self.name.clone(), running: true, checks }
    }

    /// Asks every live host who it is and what time it has.
    async fn peers(&self, world: &World) -> Vec<Check> {
        let live = world.hosts.iter().filter(|(id, host)| **id != self.id && host.liveness == Liveness::Live);
        let mut asked = JoinSet::new();
        for (id, host) in live.take(MOST_PEERS) {
            let (id, name, address) = (*id, host.name.clone(), host.facts.address);
            let hosts = self.hosts.clone();
            asked.spawn(async move {
                let call = Call { author: "doctor".into(), request: Request::Version, relayed: false };
                let (sent, began) = (wall_ms(), Instant::now());
                let answer = hosts.ask(id, address, &call, PEER_LIMIT).await;
                let half = i64::try_from(began.elapsed().as_millis() / 2).unwrap_or(0);
                let seen = match answer {
                    Ok(Response::Version { version, clock_ms, .. }) => {
                        // Its answer was made about half of the way after the question.
                        let ahead = i64::try_from(clock_ms).unwrap_or(0) - sent - half;
                        Ok(Seen { version, ahead_ms: (clock_ms > 0).then_some(ahead) })
                    }
                    Ok(_) => Err("it answered something else".to_owned()),
                    Err(error) => Err(error.message),
                };
                (format!("{name} ({address})"), seen)
            });
        }
        let mut seen = BTreeMap::new();
        while let Some(answer) = asked.join_next().await {
            seen.extend(answer.ok());
        }
        judge_peers(&seen)
    }
}

/// What another host says of itself.
struct Seen {
    version: String,
    /// Its clock, ahead of this host's.
    ahead_ms: Option<i64>,
}

fn judge_peers(seen: &BTreeMap<String, Result<Seen, String>>) -> Vec<Check> {
    let mut checks = Vec::new();
    let own = env!("CARGO_PKG_VERSION");
    let mut versions: BTreeMap<&str, usize> = BTreeMap::from([(own, 1)]);
    let mut worst: i64 = 0;
    for (name, answer) in seen {
        match answer {
            Err(why) => checks.push(Check::new(
                Grade::Error,
                "hosts",
                format!("{name} does not answer: {why}"),
                "calls between the two may fail",
                "meshctl doctor on that host; a firewall between them must let TCP 15008 pass",
            )),
            Ok(seen) => {
                *versions.entry(&seen.version).or_default() += 1;
                if let Some(ahead) = seen.ahead_ms {
                    worst = worst.max(ahead.abs());
                    checks.extend(clock(name, ahead));
                }
            }
        }
    }
    let answering = seen.values().filter(|answer| answer.is_ok()).count();
    if answering == seen.len() {
        let what = if seen.is_empty() {
            "no other host is live".into()
        } else {
            format!("all {answering} others answer")
        };
        checks.push(Check::good("hosts", what));
    }
    if worst < CLOCK_WARNING_MS && answering > 0 {
        checks.push(Check::good("clock", format!("within {worst} ms of every host that answers")));
    }
    if versions.len() > 1 {
        let list: Vec<String> =
            versions.iter().map(|(version, count)| format!("{version} on {count}")).collect();
        let why = "fine during an upgrade; what only the newer ones know waits for the others";
        checks.push(Check::new(
            Grade::Info,
            "versions",
            format!("hosts run different versions: {}", list.join(", ")),
            why,
            "upgrade the others: apt install ./meshd_NEWER.deb, one host at a time",
        ));
    } else {
        checks.push(Check::good("versions", format!("{own} everywhere")));
    }
    checks
}

fn clock(name: &str, ahead_ms: i64) -> Option<Check> {
    let grade = match ahead_ms.abs() {
        CLOCK_ERROR_MS.. => Grade::Error,
        CLOCK_WARNING_MS.. => Grade::Warning,
        _ => return None,
    };
    let side = if ahead_ms > 0 { "ahead of" } else { "behind" };
    Some(Check::new(
        grade,
        "clock",
        format!("{name} is {} s {side} this host", ahead_ms.abs() / 1_000),
        "above 5 minutes, hosts refuse each other's certificates",
        "on the one that is wrong: timedatectl set-ntp true (date -u on both says which)",
    ))
}

/// Whether the mesh agrees, and how far behind this host is.
fn agreement(name: &str, runs: u64, status: &Status) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some(why) = &status.no_quorum {
        checks.push(Check::new(
            Grade::Error,
            "quorum",
            why.clone(),
            "changes wait; traffic goes on by the last rules",
            "bring one of the named hosts back: systemctl start meshd there",
        ));
    } else {
        let leader = status.leader.as_deref().unwrap_or("none yet");
        let voters = status.hosts.iter().filter(|host| host.role.votes()).count();
        checks.push(Check::good("quorum", format!("{voters} voters, leader {leader}")));
        if voters == 2 {
            checks.push(Check::new(
                Grade::Warning,
                "quorum",
                "2 hosts vote",
                "either one that fails takes the quorum along",
                "let a third one in: meshctl token create",
            ));
        }
    }
    let behind = status.revision.0.saturating_sub(runs);
    checks.push(if behind == 0 {
        Check::good("revision", format!("this host runs {runs}, the newest"))
    } else {
        Check::new(
            if behind > 10 { Grade::Warning } else { Grade::Info },
            "revision",
            format!("this host runs {runs}, the mesh is at {}", status.revision.0),
            "its requests follow older rules",
            "again in a moment; then: meshctl status, journalctl -u meshd -p warning",
        )
    });
    for host in status.hosts.iter().filter(|host| host.name == name) {
        checks.extend(host.problems.iter().map(|problem| {
            let fix = "meshctl service list; journalctl -u meshd -p warning";
            Check::new(Grade::Warning, "services", problem.clone(), "the rest of this host works", fix)
        }));
    }
    checks
}

fn no_agreement(why: &str) -> Check {
    Check::new(
        Grade::Error,
        "quorum",
        format!("no server of the mesh answers: {why}"),
        "changes wait; traffic goes on by the last rules",
        "systemctl start meshd on the hosts that vote",
    )
}

/// What the renewal of certificates has met.
fn rotation(standings: &BTreeMap<Identity, Standing>) -> Vec<Check> {
    let failing = standings.iter().filter_map(|(identity, standing)| {
        let why = standing.error.as_ref()?;
        Some(Check::new(
            if standing.validity.is_none() { Grade::Error } else { Grade::Warning },
            "certificates",
            format!("{identity} gets no new one ({} tries): {why}", standing.failures),
            "when the present one ends, other hosts refuse it",
            "meshctl status: does a voter answer?",
        ))
    });
    failing.collect()
}

/// A file that was changed after the start, or that the next start would refuse.
fn configuration(source: &Source, running: &Config) -> Check {
    match source.load() {
        Ok(config) if config == *running => Check::good("configuration", readable(source)),
        Ok(_) => Check::new(
            Grade::Info,
            "configuration",
            format!("{} has changed since meshd began", source.path().display()),
            "meshd runs by what was there before",
            "systemctl reload meshd",
        ),
        Err(error) => {
            unreadable(source, &error, "this meshd goes on as it began; the next start ends with 78")
                .swap_remove(0)
        }
    }
}

fn readable(source: &Source) -> String {
    let path = source.path().display();
    if source.path().exists() {
        format!("{path} is understood")
    } else {
        format!("{path} is not there: defaults")
    }
}

fn unreadable(source: &Source, error: &ConfigError, why: &str) -> Vec<Check> {
    let fix = format!("edit {}; meshd config prints every key", source.path().display());
    let check = |what: String| Check::new(Grade::Error, "configuration", what, why, fix.clone());
    match error {
        ConfigError::Unreadable { .. } => vec![check(error.to_string())],
        ConfigError::Invalid(findings) => findings.iter().map(|finding| check(finding.to_string())).collect(),
    }
}

/// The files in the data folder: are they of a format that this version knows?
fn state(data: &Path, is_running: bool) -> Vec<Check> {
    let error = |what: String, fix: String| {
        vec![Check::new(Grade::Error, "state", what, "meshd does not start: it ends with 78", fix)]
    };
    match HostState::load(data) {
        // The folder itself is looked at elsewhere.
        Ok(None) if !data.exists() => Vec::new(),
        Ok(None) => error(
            format!("this host is in no mesh yet ({} is not there)", data.join("host.json").display()),
            "meshd init, or: meshd join ADDRESS < token".into(),
        ),
        // Only who meshd runs as, and root, may read it.
        Err(why) if !is_running && is_denied(&why) => {
            vec![Check::skipped("state", doctor::as_root(&format!("{why:#}")))]
        }
        Err(why) => {
            error(format!("{why:#}"), "install the version that wrote it, or restore the file".into())
        }
        Ok(Some(state)) => {
            let mesh = &state.mesh.id[..state.mesh.id.len().min(8)];
            let mirror = mirror(&data.join("mirror.json"));
            let good = Check::good("state", format!("{} (id {}) of mesh {mesh}", state.name, state.id));
            [good].into_iter().chain(mirror).collect()
        }
    }
}

fn is_denied(why: &anyhow::Error) -> bool {
    let mut causes = why.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.any(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// The keys and the server's files, where no meshd has them open: would the next start refuse them?
fn files(data: &Path) -> Vec<Check> {
    let Ok(Some(state)) = HostState::load(data) else { return Vec::new() };
    let keys = match HostKeys::open(data) {
        Ok(Some(_)) => None,
        Ok(None) => Some((true, format!("host.key and wrap.key are missing from {}", data.display()))),
        Err(error) => Some((error.needs_person(), error.to_string())),
    };
    let server =
        if state.may_serve { server::inspect(&data.join("server"), state.has_log()) } else { Vec::new() };
    let ends = "meshd does not start: it ends with 78";
    let asks =
        "meshd asks the other servers for another when it starts; where there is none, it ends with 78";
    let server = server.into_iter().map(|error| {
        (error.needs_person(), error.to_string(), if error.is_replaceable() { asks } else { ends })
    });
    let check = |(needs_person, what, why): (bool, String, &str)| {
        if !needs_person {
            return Check::skipped("state", what);
        }
        Check::new(Grade::Error, "state", what, why, "as it says; see docs/operations.md, Backup")
    };
    keys.map(|(needs_person, what)| (needs_person, what, ends)).into_iter().chain(server).map(check).collect()
}

/// Why the server of this host, which runs, takes no part.
fn takes_no_part(why: &str) -> Check {
    Check::new(
        Grade::Error,
        "state",
        format!("the server of this host takes no part: {why}"),
        "this host serves on by the last rules; one voter less answers",
        "room on the disk and a disk that works bring it back by itself; what is damaged: as it says, see docs/operations.md, Backup",
    )
}

/// A mirror of another format is put aside at the next start, and the World is sent again.
fn mirror(path: &Path) -> Option<Check> {
    let file = std::fs::File::open(path).ok()?;
    let mut line = String::new();
    std::io::BufReader::new(std::io::Read::take(file, 256)).read_line(&mut line).ok()?;
    (!line.starts_with(crate::agent::MIRROR_FORMAT)).then(|| {
        Check::new(
            Grade::Info,
            "state",
            format!("{} is of another format", path.display()),
            "after a restart this host serves only once a server has sent the World again",
            "systemctl reload meshd while a server answers: it is written anew",
        )
    })
}

/// A service of the mesh whose name programs may ask for.
fn name_to_ask(world: &World) -> Option<String> {
    world.addresses.keys().find(|host| !host.contains('*')).cloned()
}

pub(super) fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(version: &str, ahead_ms: i64) -> Seen {
        Seen { version: version.into(), ahead_ms: Some(ahead_ms) }
    }

    #[test]
    fn a_clock_an_hour_off_a_silent_host_and_another_version_are_told_by_name() {
        let others = BTreeMap::from([
            ("vm2 (10.0.0.2:15008)".to_owned(), Ok(seen("9.9.9", 3_600_000))),
            ("vm3 (10.0.0.3:15008)".to_owned(), Err("it did not answer within 2000 ms".into())),
            ("vm4 (10.0.0.4:15008)".to_owned(), Ok(seen(env!("CARGO_PKG_VERSION"), -20_000))),
        ]);

        let checks = judge_peers(&others);

        let told = |name: &str, grade: Grade, words: &str| {
            checks
                .iter()
                .any(|check| check.name == name && check.grade == grade && check.what.contains(words))
        };
        assert!(
            told("clock", Grade::Error, "vm2 (10.0.0.2:15008) is 3600 s ahead of this host"),
            "{checks:?}"
        );
        assert!(told("clock", Grade::Warning, "vm4 (10.0.0.4:15008) is 20 s behind this host"), "{checks:?}");
        assert!(told("hosts", Grade::Error, "vm3"), "{checks:?}");
        assert!(told("versions", Grade::Info, "9.9.9 on 1"), "{checks:?}");
    }

    #[test]
    fn a_mirror_of_another_format_is_told_with_what_writes_it_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mirror.json");
        std::fs::write(&path, format!("{}\n", crate::agent::MIRROR_FORMAT)).unwrap();
        assert_eq!(mirror(&path), None);
        std::fs::write(&path, "{\"format\": \"another\"}\n").unwrap();

        let told = mirror(&path).unwrap();

        assert!(
            told.what.contains("of another format") && told.fix.contains("systemctl reload meshd"),
            "{told:?}"
        );
    }

    #[test]
    fn a_newer_format_and_a_key_of_a_newer_version_are_told_before_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let known = include_str!("../../tests/formats/0.1.0/host.json");
        std::fs::write(folder.path().join("host.json"), known.replace("\"format\": 1", "\"format\": 99"))
            .unwrap();
        let file = folder.path().join("meshd.toml");
        std::fs::write(&file, "[future]\nkey = 1\n").unwrap();
        let source = Source { file: Some(file), ..Source::default() };

        let states = state(folder.path(), false);
        let configuration = unreadable(&source, &source.load().unwrap_err(), "");

        assert!(states[0].what.contains("newer meshd (format 99"), "{states:?}");
        assert!(configuration[0].what.contains("future"), "{configuration:?}");
    }
}

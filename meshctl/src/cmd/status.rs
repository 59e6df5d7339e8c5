//! `meshctl status` and `host list`: who is in the mesh and how it fares.

use mesh_proto::api::{HostRole, HostStatus, Request, Response, Status};
use mesh_proto::command::Liveness;
use std::fmt::Write as _;

use crate::client::{Client, answer};
use crate::exit::{Exit, Result};
use crate::output::{Columns, Format, Tone, paint, show};
use crate::words::count;

/// Seconds of clock difference that are worth a warning: certificates are valid from 60 s before they are made.
const CLOCK_LIMIT_MS: i64 = 10_000;

/// Runs `status`.
pub(crate) async fn run(format: Format, client: &Client) -> Result<Exit> {
    let status = ask(client).await?;
    show(format, std::slice::from_ref(&status), || whole(&status))?;
    Ok(if status.no_quorum.is_some() { Exit::NoAnswer } else { Exit::Done })
}

/// Runs `host list`.
pub(crate) async fn hosts(format: Format, client: &Client) -> Result<Exit> {
    let status = ask(client).await?;
    show(format, &status.hosts, || table(&status))?;
    Ok(Exit::Done)
}

/// Asks for the state of the mesh.
pub(crate) async fn ask(client: &Client) -> Result<Status> {
    let answer = client.call(&Request::Status).await?;
    answer!(answer, Response::Status(status) => *status)
}

fn whole(status: &Status) -> String {
    let mut text = table(status);
    text.push('\n');
    text.push_str(&line(status));
    if status.no_quorum.is_none() {
        text.push_str(&silent_voters(status));
    }
    for host in &status.hosts {
        for problem in &host.problems {
            let _ = writeln!(text, "{} {}: {problem}", paint(Tone::Bad, "problem:"), host.name);
        }
        if let Some(offset) = host.clock_offset_ms.filter(|offset| offset.abs() > CLOCK_LIMIT_MS) {
            let side = if offset > 0 { "ahead of" } else { "behind" };
            let _ = writeln!(
                text,
                "{} {}: its clock is {} s {side} the leader's; set the time (chrony, systemd-timesyncd)",
                paint(Tone::Warn, "warning:"),
                host.name,
                offset.abs() / 1_000
            );
        }
    }
    text
}

/// Voters that are gone: nothing is lost yet, and what to do so that it stays so.
fn silent_voters(status: &Status) -> String {
    let is_gone =
        |host: &&HostStatus| host.role.votes() && matches!(host.liveness, Liveness::Gone | Liveness::Left);
    let is_ready = |host: &HostStatus| host.role == HostRole::Standby && host.liveness == Liveness::Live;
    let what_next = if status.hosts.iter().any(is_ready) {
        "another host takes its vote within a minute"
    } else {
        "start it again, or let another host in that takes its vote (meshctl token create)"
    };
    let mut text = String::new();
    for host in status.hosts.iter().filter(is_gone) {
        let _ = writeln!(
            text,
            "{} {} has a vote and is gone: {what_next}",
            paint(Tone::Warn, "warning:"),
            host.name
        );
    }
    text
}

/// The line about the mesh as a whole.
fn line(status: &Status) -> String {
    if let Some(why) = &status.no_quorum {
        let why = why.strip_prefix("no quorum: ").unwrap_or(why);
        return format!(
            "{} {why}\nTraffic goes on by the last rules; changes wait until a majority of voters answers.\n",
            paint(Tone::Bad, "no quorum:")
        );
    }
    let live = status.hosts.iter().filter(|host| host.liveness == Liveness::Live).count();
    let voters =
        status.hosts.iter().filter(|host| matches!(host.role, HostRole::Leader | HostRole::Voter)).count();
    let leader = status.leader.as_deref().unwrap_or("none yet");
    format!(
        "mesh {} · {live} of {} live · {} · leader {leader} · revision {}\n",
        status.trust_domain,
        count(status.hosts.len(), "host"),
        count(voters, "voter"),
        status.revision
    )
}

fn table(status: &Status) -> String {
    let mut columns = Columns::new(["NAME", "ROLE", "ADDRESS", "STATE", "REVISION", "SERVICES", "VERSION"])
        .numbers(&[4, 5]);
    let mut hosts: Vec<_> = status.hosts.iter().collect();
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    for host in hosts {
        columns.toned([
            (host.name.clone(), Tone::Plain),
            role(host),
            (host.address.to_string(), Tone::Plain),
            state(host.liveness),
            revision(host, status.revision.0),
            services(host),
            (host.version.clone(), Tone::Plain),
        ]);
    }
    columns.render("no hosts")
}

/// The role of a host, the leader marked.
pub(crate) fn role(host: &HostStatus) -> (String, Tone) {
    match host.role {
        HostRole::Leader => ("leader *".into(), Tone::Good),
        HostRole::Voter => ("voter".into(), Tone::Plain),
        HostRole::Standby => ("standby".into(), Tone::Plain),
        HostRole::Agent => ("agent".into(), Tone::Plain),
    }
}

/// Whether a host answers.
pub(crate) fn state(liveness: Liveness) -> (String, Tone) {
    match liveness {
        Liveness::Live => ("live".into(), Tone::Good),
        Liveness::Suspect => ("suspect".into(), Tone::Warn),
        Liveness::Gone => ("gone".into(), Tone::Bad),
        Liveness::Left => ("stopped".into(), Tone::Dim),
    }
}

fn revision(host: &HostStatus, newest: u64) -> (String, Tone) {
    match host.live_revision {
        None => (String::new(), Tone::Dim),
        Some(live) if live.0 < newest && host.liveness == Liveness::Live => (live.to_string(), Tone::Warn),
        Some(live) => (live.to_string(), Tone::Plain),
    }
}

/// Healthy instances of all; those of a host that is not there serve nobody.
pub(crate) fn services(host: &HostStatus) -> (String, Tone) {
    if matches!(host.liveness, Liveness::Gone | Liveness::Left) {
        return (format!("0/{}", host.instances), Tone::Dim);
    }
    let tone = if host.healthy < host.instances { Tone::Warn } else { Tone::Plain };
    (format!("{}/{}", host.healthy, host.instances), tone)
}

/// The name of the host that answers, if it can be told in a few seconds.
pub(crate) async fn own_name(client: &Client) -> Option<String> {
    match client.ask(&Request::Status, std::time::Duration::from_secs(3)).await {
        Ok(Ok(Response::Status(status))) => Some(status.answered_by),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_proto::command::{HostId, Revision, VoterWish};

    fn host(id: u64, role: HostRole, liveness: Liveness, live: u64) -> HostStatus {
        HostStatus {
            id: HostId(id),
            name: format!("vm{id}"),
            address: format!("10.0.0.{id}:15008").parse().expect("address"),
            role,
            liveness,
            live_revision: Some(Revision(live)),
            version: "0.1.0".into(),
            instances: 2,
            healthy: if live == 42 { 2 } else { 1 },
            clock_offset_ms: Some(3),
            voter: VoterWish::Auto,
            problems: Vec::new(),
        }
    }

    fn status() -> Status {
        Status {
            mesh: "ab".into(),
            trust_domain: "cluster.local".into(),
            revision: Revision(42),
            leader: Some("vm1".into()),
            no_quorum: None,
            answered_by: "vm1".into(),
            hosts: vec![
                host(1, HostRole::Leader, Liveness::Live, 42),
                host(2, HostRole::Voter, Liveness::Live, 41),
                host(3, HostRole::Agent, Liveness::Gone, 40),
            ],
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn hosts_stand_in_a_table_and_the_mesh_in_a_line() {
        assert_eq!(
            plain(&whole(&status())),
            "\
NAME  ROLE      ADDRESS         STATE  REVISION  SERVICES  VERSION
vm1   leader *  10.0.0.1:15008  live         42       2/2  0.1.0
vm2   voter     10.0.0.2:15008  live         41       1/2  0.1.0
vm3   agent     10.0.0.3:15008  gone         40       0/2  0.1.0

mesh cluster.local · 2 of 3 hosts live · 2 voters · leader vm1 · revision 42
"
        );
    }

    #[test]
    fn a_voter_that_is_gone_is_told_with_what_takes_its_vote() {
        let mut status = status();
        status.hosts.push(host(4, HostRole::Voter, Liveness::Gone, 40));
        let text = plain(&whole(&status));
        assert!(text.ends_with(
            "warning: vm4 has a vote and is gone: start it again, or let another host in that takes its vote (meshctl token create)\n"
        ), "{text}");

        status.hosts.push(host(5, HostRole::Standby, Liveness::Live, 42));
        let text = plain(&whole(&status));
        assert!(
            text.ends_with(
                "warning: vm4 has a vote and is gone: another host takes its vote within a minute\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_lost_quorum_is_the_first_thing_said() {
        let mut status = status();
        status.no_quorum = Some("no quorum: 1 of 3 voters answers; missing: vm2, vm3".into());

        assert_eq!(
            plain(&line(&status)),
            "no quorum: 1 of 3 voters answers; missing: vm2, vm3\n\
             Traffic goes on by the last rules; changes wait until a majority of voters answers.\n"
        );
    }

    #[test]
    fn a_wrong_clock_gets_a_warning_with_a_remedy() {
        let mut status = status();
        status.hosts[1].clock_offset_ms = Some(-95_000);

        assert!(
            plain(&whole(&status))
                .contains("warning: vm2: its clock is 95 s behind the leader's; set the time")
        );
    }
}

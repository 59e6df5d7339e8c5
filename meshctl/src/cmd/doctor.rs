//! `meshctl doctor`: what ails hosts, each finding with its remedy.

use std::fmt::Write as _;
use std::time::Duration;

use mesh_proto::api::{Request, Response};
use mesh_proto::command::Liveness;
use mesh_proto::look::{Check, Checkup, Grade};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::{local, status};
use crate::cli::{DoctorArgs, Grave};
use crate::client::{Client, answer};
use crate::exit::{Exit, Failure, Result};
use crate::locate::Wish;
use crate::output::{Tone, paint, show, tell};
use crate::words::count;

/// A disk is measured, and other hosts are asked.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `doctor`.
pub(crate) async fn run(args: &DoctorArgs, wish: &Wish) -> Result<Exit> {
    let client = Client::find(wish)?;
    let checkups = if args.all {
        of_all(&client).await?
    } else if client.asks_another().is_none() && !is_answered(&client).await {
        vec![without_meshd(args)?]
    } else {
        vec![ask(&client).await?]
    };
    show(args.output.output, &checkups, || text(&checkups, args.verbose))?;
    let worst = checkups.iter().flat_map(|checkup| &checkup.checks).map(|check| check.grade).max();
    let fails = worst >= Some(least(args.fail_on));
    Ok(if fails { Exit::Refused } else { Exit::Done })
}

fn least(grave: Grave) -> Grade {
    match grave {
        Grave::Error => Grade::Error,
        Grave::Warning => Grade::Warning,
        Grave::Info => Grade::Info,
    }
}

/// Whether somebody listens; one who may not speak to us is somebody.
async fn is_answered(client: &Client) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    match UnixStream::connect(client.socket()).await {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ConnectionRefused | NotFound),
    }
}

async fn ask(client: &Client) -> Result<Checkup> {
    let answer = client.call_within(&Request::Doctor, PATIENCE).await?;
    answer!(answer, Response::Checkup(checkup) => *checkup)
}

async fn of_all(client: &Client) -> Result<Vec<Checkup>> {
    let status = status::ask(client).await?;
    let mut asked = JoinSet::new();
    for host in status.hosts {
        let client = client.on(&host.name);
        asked.spawn(async move {
            match host.liveness {
                Liveness::Live | Liveness::Suspect => {
                    ask(&client).await.unwrap_or_else(|failure| silent(host.name, failure.message))
                }
                Liveness::Gone => silent(host.name, "it is gone".into()),
                Liveness::Left => silent(host.name, "its meshd was stopped".into()),
            }
        });
    }
    let mut checkups = asked.join_all().await;
    checkups.sort_by(|a, b| a.host.cmp(&b.host));
    Ok(checkups)
}

fn silent(host: String, why: String) -> Checkup {
    let fix = "meshctl doctor on that host says more";
    let check = Check::new(Grade::Error, "meshd", why, "its instances are avoided", fix);
    Checkup { host, running: false, checks: vec![check] }
}

/// Lets the meshd binary look: it knows the configuration and the data folder.
fn without_meshd(args: &DoctorArgs) -> Result<Checkup> {
    let meshd = local::meshd()?;
    let mut command = std::process::Command::new(&meshd);
    command.arg("doctor");
    for (flag, path) in [("--config", &args.config), ("--data", &args.data)] {
        if let Some(path) = path {
            command.arg(flag).arg(path);
        }
    }
    let ended = command.output().map_err(|error| Failure::unreadable(&meshd, &error))?;
    serde_json::from_slice(&ended.stdout).map_err(|_| {
        tell(String::from_utf8_lossy(&ended.stderr).trim());
        let why =
            ended.status.code().map_or_else(|| "a signal".to_owned(), |code| format!("exit code {code}"));
        Failure::new(Exit::Unreadable, format!("{} doctor ended with {why}", meshd.display()))
    })
}

fn text(checkups: &[Checkup], verbose: bool) -> String {
    let mut text = String::new();
    for (at, checkup) in checkups.iter().enumerate() {
        if at > 0 {
            text.push('\n');
        }
        one(checkup, verbose, &mut text);
    }
    text
}

fn one(checkup: &Checkup, verbose: bool, text: &mut String) {
    let mut findings: Vec<&Check> =
        checkup.checks.iter().filter(|check| check.grade >= Grade::Info).collect();
    findings.sort_by(|a, b| b.grade.cmp(&a.grade).then(a.name.cmp(&b.name)));
    let needs = findings.iter().filter(|check| check.grade >= Grade::Warning).count();
    let state = if checkup.running { "" } else { ", meshd does not run" };
    let needs = if needs == 0 {
        "nothing needs you".to_owned()
    } else {
        format!("{} to see to", count(needs, "thing"))
    };
    let _ = writeln!(text, "{}{state}: {needs}", checkup.host);
    let width = findings.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    for check in findings {
        let _ = writeln!(
            text,
            "{}  {:width$}  {}",
            paint(tone(check.grade), &format!("{:7}", word(check.grade))),
            check.name,
            check.what
        );
        let blank = " ".repeat(7 + 2 + width + 2);
        if !check.why.is_empty() {
            let _ = writeln!(text, "{blank}{}", check.why);
        }
        if !check.fix.is_empty() {
            let _ = writeln!(text, "{blank}{} {}", paint(Tone::Dim, "fix:"), check.fix);
        }
    }
    let rest = |grade: Grade| checkup.checks.iter().filter(move |check| check.grade == grade);
    if verbose {
        for grade in [Grade::Good, Grade::Skipped] {
            for check in rest(grade) {
                let _ = writeln!(
                    text,
                    "{}  {}: {}",
                    paint(tone(grade), &format!("{:7}", word(grade))),
                    check.name,
                    check.what
                );
            }
        }
        return;
    }
    let mut names: Vec<&str> = rest(Grade::Good).map(|check| check.name.as_str()).collect();
    names.dedup();
    if !names.is_empty() {
        let _ = writeln!(text, "{}  {}", paint(Tone::Good, "well   "), names.join(", "));
    }
    for check in rest(Grade::Skipped) {
        let _ = writeln!(text, "{}  {}: {}", paint(Tone::Dim, "skipped"), check.name, check.what);
    }
}

fn word(grade: Grade) -> &'static str {
    match grade {
        Grade::Error => "error",
        Grade::Warning => "warning",
        Grade::Info => "info",
        Grade::Good => "well",
        Grade::Skipped => "skipped",
    }
}

fn tone(grade: Grade) -> Tone {
    match grade {
        Grade::Error => Tone::Bad,
        Grade::Warning => Tone::Warn,
        Grade::Info => Tone::Plain,
        Grade::Good => Tone::Good,
        Grade::Skipped => Tone::Dim,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first_with_its_remedy_and_what_is_well_in_a_line() {
        let checks = vec![
            Check::good("ports", "all 9 are open, and meshd's"),
            Check::new(
                Grade::Info,
                "containers",
                "what hangs on docker0 is not intercepted",
                "",
                "interfaces = [\"docker0\"]",
            ),
            Check::new(
                Grade::Error,
                "firewall",
                "TCP 15008 is dropped",
                "others cannot come",
                "ufw allow 15008",
            ),
            Check::good("disk", "room"),
            Check::skipped("conntrack", "not in use"),
        ];
        let checkup = Checkup { host: "vm1".into(), running: true, checks };

        let told = anstream::adapter::strip_str(&text(&[checkup], false)).to_string();

        assert_eq!(
            told,
            "\
vm1: 1 thing to see to
error    firewall    TCP 15008 is dropped
                     others cannot come
                     fix: ufw allow 15008
info     containers  what hangs on docker0 is not intercepted
                     fix: interfaces = [\"docker0\"]
well     ports, disk
skipped  conntrack: not in use
"
        );
    }
}

//! The commands of `meshctl` against a real mesh: looking before a change, changing, waiting, going back.

use anyhow::{Context, Result, ensure};
use mesh_lab::{Host, Lab, Output, eventually, story};
use rustix::process::Signal;
use serde_json::Value;

use crate::{canary, reviews_on_two_hosts};

/// What `-o json` printed.
fn items(output: &Output) -> Result<Vec<Value>> {
    let json: Value = serde_json::from_str(&output.stdout).context(output.stdout.clone())?;
    ensure!(json["version"] == 1, "{json}");
    Ok(json["items"].as_array().context("items")?.clone())
}

/// The rules as they are, with their revisions.
pub(crate) fn rules(host: &Host) -> Result<Vec<Value>> {
    items(&host.meshctl(&["get", "all", "-A", "-o", "json"])?.success()?)
}

/// The revision in `… revision 42 …`.
fn revision(text: &str) -> Result<String> {
    let number = text.split("revision ").nth(1).and_then(|rest| rest.split_whitespace().next());
    Ok(number.with_context(|| format!("no revision in {text}"))?.to_owned())
}

#[test]
fn a_change_is_looked_at_then_made_then_looked_up_then_deleted() {
    story("commands::a_change_is_looked_at_then_made_then_looked_up_then_deleted", || {
        let mut lab = Lab::mesh(2)?;
        let file = lab.file("rules.yaml", &canary(90, 10))?.display().to_string();
        let none = rules(lab.vm(1))?;

        for way in ["--dry-run", "--dry-run=client"] {
            let dry = lab.vm(1).meshctl(&["apply", "-f", &file, way])?.success()?;
            ensure!(
                dry.stdout.contains("virtualservice default/reviews") && dry.stdout.contains("dry run"),
                "{dry:?}"
            );
        }
        let diff = lab.vm(2).meshctl(&["diff", "-f", &file])?;
        ensure!(diff.code == Some(1) && diff.stdout.contains("virtualservice default/reviews"), "{diff:?}");
        ensure!(rules(lab.vm(1))? == none, "looking changed nothing");

        let applied = lab.vm(2).meshctl(&["apply", "-f", &file])?.success()?;
        ensure!(
            applied.stdout.contains("created") && applied.stdout.contains("live on 2 of 2 hosts"),
            "{applied:?}"
        );
        let diff = lab.vm(1).meshctl(&["diff", "-f", &file])?;
        ensure!(diff.code == Some(0) && diff.stdout == "nothing would change\n", "{diff:?}");

        // What `get -o yaml` and `-o json` print can be applied again, and says the same.
        for (format, name) in [("yaml", "again.yaml"), ("json", "again.json")] {
            let got = lab.vm(1).meshctl(&["get", "vs", "reviews", "-o", format])?.success()?.stdout;
            let text = if format == "json" {
                let json: Value = serde_json::from_str(&got)?;
                serde_json::to_string(&json["items"][0])?
            } else {
                got
            };
            let again = lab.file(name, &text)?.display().to_string();
            let applied = lab.vm(1).meshctl(&["apply", "-f", &again])?.success()?;
            ensure!(applied.stdout.contains("unchanged"), "{format}: {applied:?}\n{text}");
        }

        let dry = lab.vm(1).meshctl(&["delete", "vs", "reviews", "--dry-run"])?;
        ensure!(dry.code == Some(0), "{dry:?}");
        lab.vm(1).meshctl(&["get", "vs", "reviews"])?.success()?;
        let deleted = lab.vm(2).meshctl(&["delete", "vs", "reviews"])?.success()?;
        ensure!(
            deleted.stdout.contains("deleted") && deleted.stdout.contains("live on 2 of 2"),
            "{deleted:?}"
        );
        for command in [["get", "vs", "reviews"], ["delete", "vs", "reviews"]] {
            let gone = lab.vm(1).meshctl(&command)?;
            ensure!(gone.code == Some(1) && gone.stderr.contains("reviews"), "{gone:?}");
            ensure!(gone.stderr.lines().count() == 1, "one message: {gone:?}");
        }
        lab.vm(1).meshctl(&["apply", "-f", &file])?.success()?;
        lab.vm(1).meshctl(&["delete", "-f", &file])?.success()?;
        ensure!(rules(lab.vm(2))? == none, "{:?}", rules(lab.vm(2))?);
        Ok(())
    });
}

#[test]
fn history_tells_who_did_what_and_a_rollback_is_tried_before_it_is_done() {
    story("commands::history_tells_who_did_what_and_a_rollback_is_tried_before_it_is_done", || {
        let mut lab = Lab::mesh(2)?;
        let file = lab.file("ninety.yaml", &canary(90, 10))?.display().to_string();
        let first = revision(&lab.vm(1).meshctl(&["apply", &file])?.success()?.stdout)?;
        let file = lab.file("fifty.yaml", &canary(50, 50))?.display().to_string();
        lab.vm(2).meshctl(&["apply", &file])?.success()?;
        let fifty = rules(lab.vm(1))?;

        let history = items(&lab.vm(1).meshctl(&["history", "-o", "json"])?.success()?)?;
        let told = serde_json::to_string(&history)?;
        for word in ["ninety.yaml", "fifty.yaml", "on vm1", "on vm2", &first] {
            ensure!(told.contains(word), "{word} is not in {told}");
        }
        let tried = lab.vm(1).meshctl(&["rollback", &first, "--dry-run"])?.success()?;
        ensure!(tried.stdout.contains("reviews") && rules(lab.vm(1))? == fifty, "{tried:?}");
        let unknown = lab.vm(1).meshctl(&["rollback", "999999"])?;
        ensure!(unknown.code == Some(1) && unknown.stderr.contains("999999"), "{unknown:?}");
        ensure!(rules(lab.vm(1))? == fifty);

        let back = lab.vm(2).meshctl(&["rollback", &first])?.success()?;
        ensure!(back.stdout.contains("live on 2 of 2 hosts"), "{back:?}");
        let table = lab.vm(1).meshctl(&["get", "vs"])?.success()?.stdout;
        ensure!(table.contains("v1 90, v2 10"), "{table}");
        Ok(())
    });
}

#[test]
fn apply_waits_for_every_live_host_and_says_who_is_behind() {
    story("commands::apply_waits_for_every_live_host_and_says_who_is_behind", || {
        let mut lab = Lab::mesh(3)?;
        mesh_lab::eventually_within(std::time::Duration::from_secs(30), "three voters", || {
            let status = lab.vm(1).status()?;
            ensure!(status.hosts.iter().all(|host| host.role != "standby"), "{status:?}");
            ensure!(status.leader.as_deref() == Some("vm1"), "{status:?}");
            Ok(())
        })?;
        let [ninety, eighty, seventy] = [(90, 10), (80, 20), (70, 30)].map(|(v1, v2)| canary(v1, v2));
        let ninety = lab.file("ninety.yaml", &ninety)?.display().to_string();
        let eighty = lab.file("eighty.yaml", &eighty)?.display().to_string();
        let seventy = lab.file("seventy.yaml", &seventy)?.display().to_string();
        lab.vm(1).meshctl(&["apply", &ninety])?.success()?;

        lab.vm(3).running().signal(Signal::STOP)?;
        let late = lab.vm(1).meshctl(&["apply", &eighty, "--timeout", "500ms"])?;
        let unwaited = lab.vm(1).meshctl(&["apply", &seventy, "--no-wait"])?;
        lab.vm(3).running().signal(Signal::CONT)?;

        ensure!(late.code == Some(4) && late.stderr.contains("behind: vm3 (runs "), "{late:?}");
        ensure!(late.stderr.contains("The revision is kept"), "{late:?}");
        ensure!(unwaited.code == Some(0) && unwaited.stdout.contains("kept by a majority"), "{unwaited:?}");
        eventually("vm3 has caught up", || {
            let got = lab.vm(3).meshctl(&["get", "vs", "--stale"])?.success()?.stdout;
            ensure!(got.contains("v1 70, v2 30"), "{got}");
            Ok(())
        })?;
        let again = lab.vm(3).meshctl(&["apply", &ninety])?.success()?;
        ensure!(again.stdout.contains("live on 3 of 3 hosts"), "{again:?}");
        Ok(())
    });
}

#[test]
fn status_and_top_tell_of_the_whole_mesh_from_any_host() {
    story("commands::status_and_top_tell_of_the_whole_mesh_from_any_host", || {
        let mut lab = reviews_on_two_hosts()?;
        let rules = lab.file("rules.yaml", &canary(100, 0))?.display().to_string();
        let applied = revision(&lab.vm(1).meshctl(&["apply", &rules])?.success()?.stdout)?;

        let status = items(&lab.vm(3).meshctl(&["status", "-o", "json"])?.success()?)?;
        let hosts = status[0]["hosts"].as_array().context("hosts")?;
        ensure!(hosts.len() == 3, "{status:?}");
        let applied = applied.parse::<u64>()?;
        for host in hosts {
            // Later facts, such as a promotion, may have come since.
            let runs = host["live_revision"].as_u64() >= Some(applied);
            ensure!(host["liveness"] == "live" && runs, "{host}, applied {applied}");
        }
        let table = lab.vm(2).meshctl(&["status"])?.success()?.stdout;
        ensure!(["vm1", "vm2", "vm3"].iter().all(|name| table.contains(name)), "{table}");

        let caller = "while :; do curl --silent --max-time 5 --output /dev/null http://reviews:9080/; done";
        let _caller = lab.vm(1).keep(caller)?;
        let rows = eventually("top has seen calls", || {
            let rows = items(
                &lab.vm(2).meshctl(&["top", "--once", "--interval", "500ms", "-o", "json"])?.success()?,
            )?;
            ensure!(!rows.is_empty());
            Ok(rows)
        })?;
        let to_v1 = rows.iter().find(|row| row["version"] == "v1").with_context(|| format!("{rows:?}"))?;
        ensure!(to_v1["requests"].as_u64() > Some(0) && to_v1["success"] == 1.0, "{to_v1}");
        ensure!(to_v1["p99_us"].as_u64() >= to_v1["p50_us"].as_u64(), "{to_v1}");
        ensure!(to_v1["destination"] == "reviews.default.svc.cluster.local", "{to_v1}");
        Ok(())
    });
}

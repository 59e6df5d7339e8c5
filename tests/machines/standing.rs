//! What an operator is told on a machine: priorities in the journal, and `meshctl doctor` while meshd does not run.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::eventually_within;
use serde_json::Value;

use crate::machine::Machine;
use crate::on_machines;

#[test]
fn the_journal_knows_what_is_an_error_and_what_a_warning() {
    on_machines("the_journal_knows_what_is_an_error_and_what_a_warning", 1, |machines| {
        let machine = machines.vm(1);
        machine.install()?;
        machine.sh("meshd init && meshctl logs level info --for 1s")?;
        is_told_as(machine, "meshd is ready", INFORMATION)?;
        is_told_as(machine, "log level set", WARNING)?;

        machine.sh("sed -i 's/^#format = \"auto\"/format = \"json\"/' /etc/meshd/meshd.toml")?;
        machine.sh("systemctl restart meshd && meshctl logs level info --for 2s")?;
        is_told_as(machine, "\"message\":\"meshd is ready\"", INFORMATION)?;
        let warnings = machine.sh("journalctl -b -u meshd -p warning -o cat --no-pager")?;
        ensure!(
            warnings.lines().any(|line| line.starts_with('{') && line.contains("log level set")),
            "{warnings}"
        );
        ensure!(!warnings.contains("meshd is ready"), "{warnings}");

        machine
            .sh("printf '\\n[future]\\nkey = 1\\n' >> /etc/meshd/meshd.toml; ! systemctl restart meshd")?;
        is_told_as(machine, "future: unknown", ERROR)?;
        let errors = machine.sh("journalctl -b -u meshd -p err -o cat --no-pager")?;
        ensure!(errors.contains("future: unknown") && !errors.contains("log level set"), "{errors}");
        Ok(())
    });
}

#[test]
fn doctor_judges_a_meshd_that_does_not_run_by_its_unit() {
    on_machines("doctor_judges_a_meshd_that_does_not_run_by_its_unit", 1, |machines| {
        let machine = machines.vm(1);
        machine.install()?;
        let checks = doctor(machine, ROOT)?;
        says(&checks, "state", "error", "this host is in no mesh yet")?;
        machine.sh("meshd init && systemctl stop meshd")?;

        for who in [ROOT, NOBODY] {
            let checks = doctor(machine, who).context(who)?;
            says(&checks, "meshd", "error", "its unit is inactive")?;
            says(
                &checks,
                "capabilities",
                "good",
                "CAP_NET_ADMIN is there for meshd, as whom the unit runs meshd",
            )?;
            says(&checks, "descriptors", "good", "1048576")?;
            says(&checks, "ports", "good", "are free")?;
            says(&checks, "hosts", "skipped", "a meshd that runs asks the others")?;
            let errors = checks.iter().filter(|check| check["grade"] == "error").count();
            ensure!(errors == 1, "{who}: that it does not run is all: {checks:?}");
        }
        let checks = doctor(machine, ROOT)?;
        says(&checks, "rights", "good", "meshd may read and write")?;
        says(&checks, "fsync", "good", "")?;
        let checks = doctor(machine, NOBODY)?;
        for name in ["rights", "state", "fsync", "certificates", "firewall"] {
            says(&checks, name, "skipped", "as root it is: sudo meshctl doctor")?;
        }

        without_rights(machine)?;
        in_other_states(machine)
    });
}

/// What root has, and the user of the unit not.
fn without_rights(machine: &Machine) -> Result<()> {
    machine.sh("chown root: /var/lib/meshd/mirror.json && chmod 640 /etc/meshd/meshd.toml")?;
    let checks = doctor(machine, ROOT)?;
    let kept = says(&checks, "rights", "error", "/var/lib/meshd/mirror.json may not be used by meshd")?;
    let read = says(&checks, "rights", "error", "/etc/meshd/meshd.toml may not be used by meshd")?;
    for check in [kept, read] {
        machine.sh(check["fix"].as_str().context("a fix")?)?;
    }
    says(&doctor(machine, ROOT)?, "rights", "good", "")?;

    machine.sh("mkdir -p /run/systemd/system/meshd.service.d && printf '[Service]\\nAmbientCapabilities=\\n' > /run/systemd/system/meshd.service.d/none.conf && systemctl daemon-reload")?;
    machine.sh("printf '\\n[[listener]]\\naddress = \"127.0.0.1:80\"\\nservice_port = 80\\n' >> /etc/meshd/meshd.toml")?;
    let checks = doctor(machine, ROOT)?;
    says(&checks, "capabilities", "warning", "CAP_NET_ADMIN is missing for meshd")?;
    says(&checks, "ports", "error", "meshd may not open 127.0.0.1:80 (listener[0].address)")?;
    machine.sh("rm -r /run/systemd/system/meshd.service.d && systemctl daemon-reload")?;
    says(&doctor(machine, ROOT)?, "ports", "good", "are free")?;
    machine.sh("sed -i '/^..listener..$/,$d' /etc/meshd/meshd.toml").map(drop)
}

fn in_other_states(machine: &Machine) -> Result<()> {
    machine.sh("systemctl mask meshd")?;
    let masked = says(&doctor(machine, ROOT)?, "meshd", "error", "its unit is masked")?;
    ensure!(masked["fix"].as_str().is_some_and(|fix| fix.contains("systemctl unmask meshd")), "{masked}");
    machine.sh("systemctl unmask meshd")?;

    machine.sh("printf '\\n[future]\\nkey = 1\\n' >> /etc/meshd/meshd.toml; ! systemctl start meshd")?;
    let checks = doctor(machine, ROOT)?;
    says(
        &checks,
        "meshd",
        "error",
        "it ended with 78, which a person must put right: /etc/meshd/meshd.toml",
    )?;
    machine.sh("sed -i '/^.future.$/,$d' /etc/meshd/meshd.toml; systemctl start meshd")?;

    // systemd keeps the sockets while it starts a meshd again and again: nobody has taken them.
    machine.sh("mount --bind /var/lib/meshd /var/lib/meshd && mount -o remount,bind,ro /var/lib/meshd")?;
    machine.sh("kill -KILL $(systemctl show meshd -p MainPID --value)")?;
    eventually_within(Duration::from_mins(1), "doctor tells of the disk and of no port", || {
        let checks = doctor(machine, ROOT)?;
        says(&checks, "meshd", "error", "meshd must be able to write there")?;
        says(&checks, "disk", "error", "is mounted read-only")?;
        says(&checks, "ports", "good", "kept for meshd by systemd").map(drop)
    })?;
    machine.sh("umount /var/lib/meshd")?;
    eventually_within(Duration::from_secs(30), "meshd comes back by itself", || {
        machine.sh("meshctl status && meshctl doctor --fail-on error").map(drop)
    })
}

/// What is found, as somebody; each finding has what to do about it.
fn doctor(machine: &Machine, who: &str) -> Result<Vec<Value>> {
    let ran = machine.try_sh(&format!("{who} meshctl doctor -o json"))?;
    let told: Value = serde_json::from_slice(&ran.stdout)
        .with_context(|| format!("{who}: {}", String::from_utf8_lossy(&ran.stderr)))?;
    let checks = told["items"][0]["checks"].as_array().context("checks")?.clone();
    for check in &checks {
        let needs_nothing = ["good", "skipped"].iter().any(|grade| check["grade"] == *grade);
        ensure!(needs_nothing || check["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "no fix: {check}");
    }
    Ok(checks)
}

fn says(checks: &[Value], name: &str, grade: &str, words: &str) -> Result<Value> {
    let fits = |check: &&Value| {
        check["name"] == name
            && check["grade"] == grade
            && check["what"].as_str().is_some_and(|what| what.contains(words))
    };
    let found = checks.iter().find(fits).cloned();
    found.with_context(|| format!("{grade} {name}: {words:?} is not told:\n{checks:#?}"))
}

/// Waits until the journal has a line with these words, of this priority and no other.
fn is_told_as(machine: &Machine, words: &str, priority: &str) -> Result<()> {
    eventually_within(Duration::from_secs(20), words, || {
        let journal = machine.sh("journalctl -b -u meshd -o json --no-pager")?;
        let entries = journal.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let priorities: Vec<Value> = entries
            .filter(|entry| entry["MESSAGE"].as_str().is_some_and(|message| message.contains(words)))
            .map(|entry| entry["PRIORITY"].clone())
            .collect();
        ensure!(
            !priorities.is_empty() && priorities.iter().all(|it| it == priority),
            "{words}: {priorities:?}"
        );
        Ok(())
    })
}

const ROOT: &str = "env";
/// Somebody who logs in.
const NOBODY: &str = "setpriv --reuid=nobody --regid=nogroup --clear-groups";
/// Of syslog(3).
const ERROR: &str = "3";
const WARNING: &str = "4";
const INFORMATION: &str = "6";

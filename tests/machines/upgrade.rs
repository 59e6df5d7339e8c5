//! Reload, upgrade and restart while 1,000 requests a second flow: not one may fail.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::eventually_within;

use crate::machine::Machine;
use crate::{Machines, base, mesh, on_machines};

#[test]
fn reload_upgrade_and_restart_lose_no_request() {
    on_machines("reload_upgrade_and_restart_lose_no_request", 2, |machines| {
        form(machines)?;
        nothing_is_lost(machines, |_| Ok(()))
    });
}

/// With hops over QUIC: the callee's connections are QUIC connections, and its UDP socket goes from process to process.
#[test]
fn reload_upgrade_and_restart_lose_no_request_over_quic() {
    on_machines("reload_upgrade_and_restart_lose_no_request_over_quic", 2, |machines| {
        for machine in machines.all() {
            machine.install()?;
            machine.sh("sed -i 's/^#transport = .*/transport = \"quic\"/' /etc/meshd/meshd.toml")?;
        }
        form(machines)?;
        let caller = machines.vm(1);
        caller.sh(COUNT_UDP)?;
        goes_over_udp(caller)?;
        nothing_is_lost(machines, goes_over_udp)
    });
}

/// Waits until requests travel over UDP: after a hand-over those to the successor go over TCP first.
fn goes_over_udp(caller: &Machine) -> Result<()> {
    under_load(caller, || {
        eventually_within(RETURNS_WITHIN, "hops go over UDP", || {
            let before = packets(caller)?;
            caller.sh("sleep 1")?;
            let within_a_second = packets(caller)? - before;
            // Ten heartbeats of the control plane are among them.
            ensure!(within_a_second > u64::from(RATE) / 10, "{within_a_second} packets in a second");
            Ok(())
        })
    })
}

/// Packets over UDP to other hosts' mesh port so far.
fn packets(caller: &Machine) -> Result<u64> {
    let counted = caller.sh("nft list table inet counting")?;
    let number = counted.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    number.with_context(|| format!("a counter in {counted}"))
}

/// Without the canary: there is no v2.
fn form(machines: &Machines) -> Result<()> {
    mesh::form(machines)?;
    machines.vm(1).sh("meshctl delete VirtualService reviews").map(drop)
}

/// Reloads, upgrades and restarts each host while requests flow; what is to be so of the caller again is looked at after each.
fn nothing_is_lost(machines: &Machines, then: impl Fn(&Machine) -> Result<()>) -> Result<()> {
    let (caller, callee) = (machines.vm(1), machines.vm(2));
    for machine in [caller, callee] {
        let before = pid(machine)?;
        under_load(caller, || machine.sh("systemctl reload meshd").map(drop))?;
        ensure!(pid(machine)? != before, "{}: a reload starts another process", machine.name);
        then(caller)?;
    }

    let newer = base::package(Some("+next"))?;
    let name = newer.file_name().unwrap_or_default().to_string_lossy().into_owned();
    std::fs::copy(&newer, machines.vm(1).shared().join(&name))?;
    for machine in [callee, caller] {
        let before = pid(machine)?;
        under_load(caller, || machine.sh(&format!("dpkg -i /vagrant/{name}")).map(drop))?;
        ensure!(pid(machine)? != before, "{}: the upgraded meshd runs", machine.name);
        then(caller)?;
    }
    let version = caller.sh("dpkg-query -W -f '${Version}' meshd")?;
    ensure!(version.ends_with("+next"), "{version}");

    for machine in [callee, caller] {
        under_load(caller, || machine.sh("systemctl restart meshd").map(drop))?;
        then(caller)?;
    }
    Ok(())
}

#[test]
fn a_mistake_in_the_configuration_stops_no_reload_half_way() {
    on_machines("a_mistake_in_the_configuration", 1, |machines| {
        let machine = machines.vm(1);
        machine.install()?;
        machine.sh("meshd init")?;
        let before = pid(machine)?;
        machine.sh("echo 'nonsense = 1' >> /etc/meshd/meshd.toml")?;

        let refused = machine.try_sh("meshctl reload")?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();

        ensure!(!refused.status.success() && said.contains("nonsense"), "{said}");
        ensure!(machine.try_sh("systemctl reload meshd")?.status.code() == Some(1), "systemctl tells of it");
        ensure!(pid(machine)? == before, "the one that runs goes on");
        machine.sh("systemctl is-active meshd && meshctl status").map(drop)
    });
}

/// Does something while requests flow, from before its beginning until after its end; none of them may fail.
fn under_load(caller: &Machine, act: impl FnOnce() -> Result<()>) -> Result<()> {
    caller.sh("rm -f /tmp/stop")?;
    let mut load =
        caller.start(&format!("lab-service load reviews:9080 {RATE} {AT_MOST_SECONDS} /tmp/stop"))?;
    let mut told = BufReader::new(load.stdout.take().context("its words")?);
    let mut line = String::new();
    told.read_line(&mut line)?;
    if line.trim() == "flows" {
        act()?;
        caller.sh("touch /tmp/stop")?;
        line.clear();
        told.read_line(&mut line)?;
    }
    let ended = load.wait_with_output()?;
    ensure!(ended.status.success(), "{line}{}", String::from_utf8_lossy(&ended.stderr));
    eprintln!("{}", line.trim());
    let number = |word: &str| -> Result<u64> {
        let mut words = line.split_whitespace().skip_while(|other| *other != word);
        words.nth(1).and_then(|number| number.parse().ok()).with_context(|| format!("{word} in {line:?}"))
    };
    let (asked, failed, within_ms) = (number("asked")?, number("failed")?, number("within_ms")?);
    ensure!(failed == 0, "{line}");
    ensure!(within_ms < AT_MOST_SECONDS * 1_000, "the load ended before what it was to see: {line}");
    ensure!(asked * 1_000 >= least() * within_ms, "fewer than {} requests a second: {line}", least());
    Ok(())
}

fn pid(machine: &Machine) -> Result<String> {
    machine.sh("systemctl show meshd -p MainPID --value")
}

/// Packets to other hosts' mesh port over UDP.
const COUNT_UDP: &str = "nft add table inet counting && nft add chain inet counting out '{ type filter hook output priority 0; }' \
    && nft add rule inet counting out udp dport 15008 counter";
/// Tries are seconds apart, and further the longer hops went over TCP.
const RETURNS_WITHIN: Duration = Duration::from_secs(40);
const RATE: u32 = 1_000;
/// Longer than any of it takes on a busy machine.
const AT_MOST_SECONDS: u64 = 90;

/// Requests a second that must have been made: who asks falls behind while something restarts, and catches up. A build that is
/// not optimised leaves less room on two cores for two meshds and what calls and answers.
fn least() -> u64 {
    if std::env::var_os("MESH_LAB_BINARIES").is_some() { 900 } else { 100 }
}

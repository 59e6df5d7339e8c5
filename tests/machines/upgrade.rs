//! Reload, upgrade and restart while 1,000 requests a second flow: not one may fail.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_lab::eventually_within;

use crate::machine::Machine;
use crate::{base, mesh, on_machines};

#[test]
fn reload_upgrade_and_restart_lose_no_request() {
    on_machines("reload_upgrade_and_restart_lose_no_request", 2, |machines| {
        mesh::form(machines)?;
        let (caller, callee) = (machines.vm(1), machines.vm(2));
        caller.sh("meshctl delete VirtualService reviews")?;

        for machine in [caller, callee] {
            let before = pid(machine)?;
            under_load(caller, || machine.sh("systemctl reload meshd").map(drop))?;
            ensure!(pid(machine)? != before, "{}: a reload starts another process", machine.name);
        }

        let newer = base::package(Some("+next"))?;
        let name = newer.file_name().unwrap_or_default().to_string_lossy().into_owned();
        std::fs::copy(&newer, base::folder().join("run/shared").join(&name))?;
        for machine in [callee, caller] {
            let before = pid(machine)?;
            under_load(caller, || machine.sh(&format!("dpkg -i /vagrant/{name}")).map(drop))?;
            ensure!(pid(machine)? != before, "{}: the upgraded meshd runs", machine.name);
        }
        let version = caller.sh("dpkg-query -W -f '${Version}' meshd")?;
        ensure!(version.ends_with("+next"), "{version}");

        for machine in [callee, caller] {
            under_load(caller, || machine.sh("systemctl restart meshd").map(drop))?;
        }
        Ok(())
    });
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

/// Does something while requests flow; none of them may fail.
fn under_load(caller: &Machine, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let load = caller.start(&format!("lab-service load reviews:9080 {RATE} {SECONDS}"))?;
    // The load has begun when meshd has counted requests.
    let asked = || caller.sh("curl -s http://127.0.0.1:15020/metrics | grep -c istio_requests_total");
    eventually_within(Duration::from_secs(30), "requests flow", || asked().map(drop))?;
    act()?;
    let load = load.wait_with_output()?;
    let told = String::from_utf8_lossy(&load.stdout).into_owned();
    ensure!(load.status.success(), "{told}{}", String::from_utf8_lossy(&load.stderr));
    eprintln!("{}", told.trim());
    let asked: u64 = told.split_whitespace().nth(1).unwrap_or("0").parse()?;
    ensure!(asked >= LEAST * SECONDS, "too few requests to tell: {told}");
    Ok(())
}

fn pid(machine: &Machine) -> Result<String> {
    machine.sh("systemctl show meshd -p MainPID --value")
}

const RATE: u32 = 1_000;
const SECONDS: u64 = 8;
/// Requests a second that even a busy machine makes with a slow build.
const LEAST: u64 = 50;

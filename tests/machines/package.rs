//! What the package brings, and that its removal leaves nothing.

use anyhow::{Result, ensure};

use crate::machine::Machine;
use crate::on_machines;

#[test]
fn removal_leaves_state_and_purge_leaves_nothing() {
    on_machines("removal_leaves_state_and_purge_leaves_nothing", 1, |machines| {
        let machine = machines.vm(1);
        let before = traces(machine)?;
        machine.install()?;
        brings_what_it_promises(machine)?;
        machine.sh("meshd init")?;
        ensure!(machine.sh("nft list tables")?.contains("inet meshd"), "meshd intercepts");
        is_well_confined(machine)?;

        machine.sh("apt-get remove -y -q meshd")?;

        ensure!(traces(machine)? == before, "{}\nbefore:\n{before}", traces(machine)?);
        machine.sh("test -f /var/lib/meshd/host.json")?;
        ensure!(!machine.sh("ls /etc/systemd/system/multi-user.target.wants")?.contains("meshd"), "disabled");

        machine.sh("apt-get purge -y -q meshd")?;

        machine.sh("test ! -e /var/lib/meshd && test ! -e /etc/meshd && test ! -e /run/meshd")?;
        machine.sh("! getent passwd meshd && ! find / -xdev -path /vagrant -prune -o -name '*meshd*' -print | grep -v -e /var/log -e /var/cache -e /var/lib/systemd | grep .").map(drop)
    });
}

/// What meshd could leave in the network: rules, routes, name servers, processes.
fn traces(machine: &Machine) -> Result<String> {
    machine.sh(
        "nft list ruleset; ip route show table all | grep -v -e fe80 -e ff00 | sort; ip -6 route show table all proto 109; ip rule; \
         cat /etc/resolv.conf; pgrep -l mesh || true",
    )
}

fn brings_what_it_promises(machine: &Machine) -> Result<()> {
    for file in [
        "/usr/share/man/man1/meshd.1.gz",
        "/usr/share/man/man1/meshctl-apply.1.gz",
        "/usr/share/bash-completion/completions/meshctl",
        "/usr/share/zsh/vendor-completions/_meshd",
        "/usr/share/fish/vendor_completions.d/meshctl.fish",
        "/lib/systemd/system/meshd.service",
        "/etc/meshd/services.d",
        "/usr/share/meshd/grafana/mesh.json",
        "/usr/share/meshd/grafana/service.json",
        "/usr/share/meshd/grafana/workload.json",
    ] {
        machine.sh(&format!("test -e {file}"))?;
    }
    ensure!(machine.sh("zcat /usr/share/man/man1/meshctl-apply.1.gz")?.contains("meshctl"), "a man page");
    machine.sh("bash -n /usr/share/bash-completion/completions/meshctl").map(drop)
}

/// `systemd-analyze security` gives 10 to a unit that may do everything.
fn is_well_confined(machine: &Machine) -> Result<()> {
    let told = machine.sh("systemd-analyze security --no-pager meshd.service | tail -1")?;
    let exposure = told.split_whitespace().find_map(|word| word.parse::<f32>().ok());
    ensure!(exposure.is_some_and(|exposure| exposure < 3.0), "{told}");
    let status = machine.sh("cat /proc/$(systemctl show meshd -p MainPID --value)/status")?;
    // CAP_NET_BIND_SERVICE is number 10, CAP_NET_ADMIN number 12.
    ensure!(status.contains("CapEff:\t0000000000001400"), "{status}");
    Ok(())
}

//! What the package brings, and that its removal leaves nothing.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use crate::machine::Machine;
use crate::on_machines;

#[test]
fn removal_leaves_state_and_purge_leaves_nothing() {
    on_machines("removal_leaves_state_and_purge_leaves_nothing", 1, |machines| {
        let machine = machines.vm(1);
        let (before, files) = (traces(machine)?, files(machine)?);
        machine.install()?;
        brings_what_it_promises(machine)?;
        machine.sh("meshd init")?;
        ensure!(machine.sh("nft list tables")?.contains("inet meshd"), "meshd intercepts");
        is_well_confined(machine)?;

        machine.sh("apt-get remove -y -q meshd")?;

        ensure!(traces(machine)? == before, "{}\nbefore:\n{before}", traces(machine)?);
        machine.sh("test -f /var/lib/meshd/host.json")?;
        ensure!(!machine.sh("ls /etc/systemd/system/multi-user.target.wants")?.contains("meshd"), "disabled");
        let left = difference(&files, &self::files(machine)?);
        let kept = |line: &String| KEPT_UNTIL_PURGE.iter().any(|kept| line[2..].starts_with(kept));
        ensure!(left.iter().all(kept), "removal leaves:\n{}", left.join("\n"));

        machine.sh("apt-get purge -y -q meshd")?;

        let left = difference(&files, &self::files(machine)?);
        ensure!(left.is_empty(), "purge leaves:\n{}", left.join("\n"));
        machine.sh("test ! -e /var/lib/meshd && test ! -e /etc/meshd && test ! -e /run/meshd")?;
        machine.sh("! getent passwd meshd && ! find / -xdev -path /vagrant -prune -o -name '*meshd*' -print | grep -v -e /var/log -e /var/cache -e /var/lib/systemd | grep .").map(drop)
    });
}

/// Every file below the folders that programs write to, with its kind, rights and owner, and of those in `/etc` what is
/// in them; without what dpkg, apt and journald keep for themselves, and what `passwd` keeps of the time before.
pub(crate) fn files(machine: &Machine) -> Result<String> {
    machine.sh(
        "{ find /etc /usr /var /run -xdev -printf '%p %y %m %U:%G %l\\n'; find /etc -xdev -type f -exec md5sum {} + \
         | awk '{ print $2, $1 }'; } | grep -v -E -e '^/var/(lib/(dpkg|apt)|cache/(apt|debconf)|log/(apt|journal|dpkg.log|alternatives.log))' \
         -e '^/run/(log/journal|systemd|udev)' -e '^/etc/(passwd|group|shadow|gshadow)- ' -e '^/etc/.pwd.lock' | sort",
    )
}

/// What removal leaves, and only purge takes: configuration, state, logs, and the user that owns them.
pub(crate) const KEPT_UNTIL_PURGE: [&str; 7] = [
    "/etc/meshd",
    "/var/lib/meshd",
    "/var/log/meshd",
    "/etc/passwd ",
    "/etc/group ",
    "/etc/shadow ",
    "/etc/gshadow ",
];

/// Lines that only one of two lists has: `- ` those that went, `+ ` those that came.
pub(crate) fn difference(before: &str, after: &str) -> Vec<String> {
    let of = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (before, after) = (of(before), of(after));
    let went = before.difference(&after).map(|line| format!("- {line}"));
    went.chain(after.difference(&before).map(|line| format!("+ {line}"))).collect()
}

/// What meshd could leave in the network: rules, routes, name servers, processes.
pub(crate) fn traces(machine: &Machine) -> Result<String> {
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
pub(crate) fn is_well_confined(machine: &Machine) -> Result<()> {
    let told = machine.sh("systemd-analyze security --no-pager meshd.service | tail -1")?;
    let exposure = told.split_whitespace().find_map(|word| word.parse::<f32>().ok());
    ensure!(exposure.is_some_and(|exposure| exposure < 3.0), "{told}");
    let status = machine.sh("cat /proc/$(systemctl show meshd -p MainPID --value)/status")?;
    // CAP_NET_BIND_SERVICE is number 10, CAP_NET_ADMIN number 12.
    ensure!(status.contains("CapEff:\t0000000000001400"), "{status}");
    Ok(())
}

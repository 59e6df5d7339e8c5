//! What a person has done wrong, or a machine: each is a clear line in the journal, and the unit ends or tries again as
//! is right for it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::eventually_within;

use crate::machine::Machine;
use crate::on_machines;

#[test]
fn what_a_person_must_put_right_ends_meshd_and_what_may_pass_does_not() {
    on_machines("what_a_person_must_put_right", 1, |machines| {
        let machine = machines.vm(1);
        machine.install()?;

        machine.sh("! systemctl start meshd")?;
        ends_for_good(machine, "this host is in no mesh yet")?;

        machine.sh("meshd init && systemctl stop meshd")?;
        for (breaks, says, mends) in FOR_GOOD {
            machine.sh(breaks).context("breaking it")?;
            machine.sh("! systemctl start meshd")?;
            ends_for_good(machine, says)?;
            machine.sh(mends).context("mending it")?;
        }
        for (breaks, says, mends) in TRIED_AGAIN {
            machine.sh(breaks).context("breaking it")?;
            let _ = machine.try_sh("timeout 5 systemctl start meshd")?;
            comes_back(machine, says, mends)?;
        }
        machine.sh("mv /usr/sbin/nft /usr/sbin/nft.away && systemctl start meshd")?;
        journal_says(machine, "nft is not installed; install the package nftables")?;
        machine.sh("meshctl status && mv /usr/sbin/nft.away /usr/sbin/nft && systemctl stop meshd")?;

        machine.sh("mkdir -p /run/systemd/system/meshd.service.d && printf '[Service]\\nAmbientCapabilities=\\nCapabilityBoundingSet=\\n' > /run/systemd/system/meshd.service.d/none.conf && systemctl daemon-reload && systemctl start meshd")?;
        journal_says(machine, "changing the firewall needs CAP_NET_ADMIN")?;
        machine.sh("meshctl status").map(drop)
    });
}

#[test]
fn a_typo_never_cuts_a_host_off() {
    on_machines("a_typo_never_cuts_a_host_off", 2, |machines| {
        let (machine, other) = (machines.vm(1), machines.vm(2));
        machine.install()?;
        machine.sh("meshd init")?;
        other.sh("systemd-run -q --unit=plain lab-service 0.0.0.0:7000 plain && systemd-run -q --unit=shell lab-service 0.0.0.0:22 ssh")?;
        let far = other.address.clone();
        let open = || {
            machine.sh("! nft list tables | grep meshd")?;
            machine.sh(&format!("curl -sf -m 5 http://{far}:7000/ | grep plain"))?;
            machine.sh(&format!("curl -sf -m 5 http://{far}:22/ | grep ssh")).map(drop)
        };

        machine.sh(TYPO)?;
        machine.sh("! systemctl restart meshd")?;
        journal_says(machine, "future: unknown")?;
        open().context("after a restart")?;
        machine.sh("systemctl reset-failed meshd")?;

        machine.sh(&format!("{UNDO} && systemctl start meshd && nft list table inet meshd && {TYPO}"))?;
        machine.sh("kill -9 $(systemctl show meshd -p MainPID --value)")?;
        eventually_within(Duration::from_secs(20), "meshd has given up", || {
            let state = machine.sh("systemctl show meshd -p ActiveState -p ExecMainStatus")?;
            ensure!(state.contains("failed") && state.contains("78"), "{state}");
            Ok(())
        })?;
        open().context("after kill -9")?;

        // What a meshd without its unit left goes with the package.
        machine.sh("nft add table inet meshd && apt-get remove -y -q meshd")?;
        open().context("after the removal")
    });
}

const TYPO: &str = "printf '\\n[future]\\nkey = 1\\n' >> /etc/meshd/meshd.toml";
const UNDO: &str = "sed -i '/^.future.$/,$d' /etc/meshd/meshd.toml";

/// How it is broken, what the journal says, how it is mended.
type Case = (&'static str, &'static str, &'static str);

const FOR_GOOD: [Case; 3] = [
    (TYPO, "future: unknown", UNDO),
    (
        "cp -p /var/lib/meshd/host.json /root/ && sed -i 's/\"format\": 1/\"format\": 99/' /var/lib/meshd/host.json",
        "was written by a newer meshd (format 99, this one knows 1): install that version again",
        "cp -p /root/host.json /var/lib/meshd/",
    ),
    (
        "echo nonsense > /var/lib/meshd/host.json",
        "host.json is damaged",
        "cp -p /root/host.json /var/lib/meshd/",
    ),
];

const TRIED_AGAIN: [Case; 3] = [
    (
        "systemd-run -q --unit=squatter lab-service 127.0.0.1:15001 taken",
        "another process holds 127.0.0.1:15001",
        "systemctl stop squatter",
    ),
    (
        "mount --bind /var/lib/meshd /var/lib/meshd && mount -o remount,bind,ro /var/lib/meshd",
        "meshd must be able to write there",
        "umount /var/lib/meshd",
    ),
    (
        "cp -a /var/lib/meshd /root/kept && mount -t tmpfs -o size=2m,mode=700 none /var/lib/meshd && cp -a /root/kept/. /var/lib/meshd/ || true; chown meshd: /var/lib/meshd; dd if=/dev/zero of=/var/lib/meshd/filler bs=4k 2>/dev/null || true",
        "No space left on device",
        "umount /var/lib/meshd",
    ),
];

fn ends_for_good(machine: &Machine, says: &str) -> Result<()> {
    journal_says(machine, says)?;
    let state = machine.sh("systemctl show meshd -p ActiveState -p ExecMainStatus")?;
    ensure!(state.contains("ActiveState=failed") && state.contains("ExecMainStatus=78"), "{says}: {state}");
    machine.sh("! nft list tables | grep meshd && systemctl reset-failed meshd").map(drop)
}

fn comes_back(machine: &Machine, says: &str, mends: &str) -> Result<()> {
    journal_says(machine, says)?;
    machine.sh(mends).context("mending it")?;
    eventually_within(Duration::from_secs(30), "meshd comes back by itself", || {
        let state = machine.sh("systemctl show meshd -p ActiveState --value")?;
        ensure!(state.trim() == "active", "{state}");
        Ok(())
    })?;
    machine.sh("systemctl stop meshd").map(drop)
}

fn journal_says(machine: &Machine, words: &str) -> Result<()> {
    eventually_within(Duration::from_secs(20), "the journal tells of it", || {
        let journal = machine.journal()?;
        ensure!(journal.contains(words), "the journal does not say {words:?}:\n{journal}");
        Ok(())
    })
}

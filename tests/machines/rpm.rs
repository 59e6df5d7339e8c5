//! The `.rpm`: what it brings, what its scriptlets do under systemd, and that its removal leaves nothing but state.
//!
//! On Debian, with Debian's `rpm`: dependencies are not looked at, as nothing else here is a package of that kind.

use anyhow::{Result, ensure};
use mesh_lab::eventually;

use crate::machine::Machine;
use crate::package::{KEPT_UNTIL_PURGE, difference, files, is_well_confined, traces};
use crate::{base, on_machines};

#[test]
fn an_rpm_serves_is_upgraded_in_place_and_leaves_only_state() {
    on_machines("an_rpm_serves_is_upgraded_in_place_and_leaves_only_state", 1, |machines| {
        let machine = machines.vm(1);
        machine.add_packages("rpm")?;
        std::fs::copy(base::rpm()?, machine.shared().join("meshd.rpm"))?;
        needs_only_what_rhel_has(machine)?;
        let (before, files_before) = (traces(machine)?, files(machine)?);

        machine.sh("rpm -i --nodeps /vagrant/meshd.rpm")?;
        brings_what_rhel_expects(machine)?;
        ensure!(machine.sh("systemctl is-enabled meshd || true")?.trim() == "disabled", "nothing is started");
        machine.sh("meshd init")?;
        ensure!(
            machine.sh("systemctl is-active meshd && systemctl is-enabled meshd")? == "active\nenabled\n"
        );
        machine.sh("meshctl status")?;
        is_well_confined(machine)?;
        serves(machine)?;

        let pid = "systemctl show meshd -p MainPID --value";
        let first = machine.sh(pid)?;
        machine.sh("sed -i 's/^#drain_seconds = .*/drain_seconds = 7/' /etc/meshd/meshd.toml")?;
        machine.sh("rpm -U --nodeps --force /vagrant/meshd.rpm")?;
        ensure!(machine.sh(pid)? != first, "the new one has taken over");
        ensure!(
            machine.sh("systemctl is-active meshd && systemctl is-enabled meshd")? == "active\nenabled\n"
        );
        machine.sh("grep -x 'drain_seconds = 7' /etc/meshd/meshd.toml")?;
        ensure!(machine.journal()?.contains("the successor serves"), "an upgrade is a reload");
        machine.sh("curl -sf --max-time 5 http://hello:7000/ | grep hello")?;

        machine.sh("systemctl stop hello && rpm -e meshd")?;

        ensure!(traces(machine)? == before, "{}\nbefore:\n{before}", traces(machine)?);
        machine.sh("test -f /var/lib/meshd/host.json && test -f /etc/meshd/meshd.toml.rpmsave")?;
        let left = difference(&files_before, &files(machine)?);
        let kept = |line: &String| KEPT_UNTIL_PURGE.iter().any(|kept| line[2..].starts_with(kept));
        ensure!(left.iter().all(kept), "removal leaves:\n{}", left.join("\n"));
        ensure!(!machine.sh("systemctl list-units --all --no-legend")?.contains("meshd"), "no unit is left");

        // It comes back as what it was.
        machine.sh("rpm -i --nodeps /vagrant/meshd.rpm && systemctl enable --now meshd && meshctl status")?;
        machine.sh("systemctl kill -s KILL meshd; rpm -e meshd && ! pgrep -x meshd")?;
        ensure!(traces(machine)? == before, "{}\nbefore:\n{before}", traces(machine)?);
        Ok(())
    });
}

/// A service of this host, called by its name, through interception.
fn serves(machine: &Machine) -> Result<()> {
    machine.sh("systemd-run -q --unit=hello lab-service 127.0.0.1:7000 hello")?;
    machine.sh("meshctl service register hello --port 7000")?;
    eventually("hello is served by its name", || {
        machine.sh("curl -sf --max-time 5 http://hello:7000/ | grep hello").map(drop)
    })
}

fn brings_what_rhel_expects(machine: &Machine) -> Result<()> {
    for file in [
        "/usr/lib/systemd/system/meshd.service",
        "/usr/share/man/man1/meshd.1.gz",
        "/usr/share/man/man1/meshctl-apply.1.gz",
        "/usr/share/bash-completion/completions/meshctl",
        "/usr/share/zsh/site-functions/_meshd",
        "/usr/share/fish/vendor_completions.d/meshctl.fish",
        "/usr/share/meshd/grafana/mesh.json",
        "/usr/share/meshd/grafana/service.json",
        "/usr/share/meshd/grafana/workload.json",
        "/etc/meshd/services.d",
    ] {
        machine.sh(&format!("test -e {file} && rpm -qf {file} | grep -q ^meshd-"))?;
    }
    ensure!(machine.sh("rpm -qc meshd")? == "/etc/meshd/meshd.toml\n", "what an upgrade leaves as it is");
    let user = machine.sh("getent passwd meshd")?;
    ensure!(user.contains(":/var/lib/meshd:/sbin/nologin"), "{user}");
    let state = machine.sh("stat -c '%U:%G %a' /var/lib/meshd")?;
    ensure!(state == "meshd:meshd 700\n", "{state}");
    let verified = machine.sh("rpm -V --nodeps meshd")?;
    ensure!(verified.is_empty(), "{verified}");
    machine.sh("systemd-analyze verify --man=no meshd.service").map(drop)
}

/// Libraries apart, whose versions `packaging/package` measures: names that a minimal RHEL 8 has, and what it recommends.
fn needs_only_what_rhel_has(machine: &Machine) -> Result<()> {
    let required = machine.sh("rpm -qp --requires /vagrant/meshd.rpm")?;
    for name in required.lines().filter_map(|line| line.split_whitespace().next()) {
        let library = [
            "ld-linux-",
            "libc.so.6",
            "libm.so.6",
            "libgcc_s.so.1",
            "libpthread.so.0",
            "libdl.so.2",
            "librt.so.1",
        ];
        let of_rpm = ["rpmlib(", "rtld(", "config(meshd)"];
        let known = library.iter().chain(&of_rpm).any(|known| name.starts_with(known));
        ensure!(
            known || ["/bin/sh", "/usr/bin/getent", "shadow-utils"].contains(&name),
            "{name}: {required}"
        );
    }
    let recommended = machine.sh("rpm -qp --recommends /vagrant/meshd.rpm")?;
    ensure!(recommended == "iproute\nnftables\n", "{recommended}");
    // rpm 4.19 and newer ask who provides the user that owns a file.
    let provided = machine.sh("rpm -qp --provides /vagrant/meshd.rpm")?;
    ensure!(provided.contains("user(meshd)") && provided.contains("group(meshd)"), "{provided}");
    Ok(())
}

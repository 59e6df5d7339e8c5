//! firewalld and ufw themselves, beside meshd: each keeps what is its own, whatever the other does.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_lab::eventually_within;

use crate::machine::Machine;
use crate::{mesh, on_machines};

#[test]
fn meshd_and_the_firewalls_of_others_leave_each_other_alone() {
    on_machines("meshd_and_the_firewalls_of_others", 2, |machines| {
        mesh::form(machines)?;
        let (caller, machine) = (machines.vm(1), machines.vm(2));
        machine.add_packages("ufw firewalld")?;
        for firewall in [FIREWALLD, UFW] {
            let ours = ours(machine)?;
            machine.sh(firewall.on)?;
            ensure!(ours == self::ours(machine)?, "{} changed our table when it began", firewall.name);

            // It lets nobody in whom it was not told of, and doctor knows the words that it wants to hear.
            let fix = remedy(machine, firewall.name)?;
            ensure!(fix == firewall.fix, "doctor says {fix:?} for {}", firewall.name);
            machine.sh(&fix)?;
            machine.sh(firewall.reload)?;
            ensure!(ours == self::ours(machine)?, "a reload of {} changed our table", firewall.name);
            // What was open goes on: it must be a new connection that gets in.
            caller.sh("systemctl restart meshd")?;
            answers(caller)?;
            answers(machine)?;

            let theirs = theirs(machine)?;
            machine.sh("systemctl stop meshd")?;
            ensure!(
                theirs == self::theirs(machine)?,
                "stopping meshd changed the rules of {}",
                firewall.name
            );
            ensure!(
                machine.sh("nft list tables")?.lines().all(|line| !line.contains("meshd")),
                "our table is left"
            );
            machine.sh("systemctl start meshd")?;
            ensure!(
                theirs == self::theirs(machine)?,
                "starting meshd changed the rules of {}",
                firewall.name
            );
            answers(machine)?;
            machine.sh(firewall.off)?;
            ensure!(ours == self::ours(machine)?, "{} took our table along when it ended", firewall.name);
        }
        Ok(())
    });
}

/// A firewall, and what is typed to it.
struct Firewall {
    name: &'static str,
    on: &'static str,
    /// What doctor must say.
    fix: &'static str,
    reload: &'static str,
    off: &'static str,
}

const FIREWALLD: Firewall = Firewall {
    name: "firewalld",
    on: "systemctl start firewalld && firewall-cmd --state",
    fix: "firewall-cmd --permanent --add-port=15008/tcp && firewall-cmd --reload",
    reload: "firewall-cmd --reload && firewall-cmd --complete-reload",
    off: "systemctl stop firewalld",
};

const UFW: Firewall = Firewall {
    name: "ufw",
    on: "ufw --force enable",
    fix: "ufw allow 15008/tcp",
    reload: "ufw reload",
    off: "ufw disable",
};

/// Our own rules, without what they have counted.
fn ours(machine: &Machine) -> Result<String> {
    machine.sh("nft -s list table inet meshd")
}

/// Everybody else's rules, without what they have counted.
fn theirs(machine: &Machine) -> Result<String> {
    let tables = machine.sh("nft list tables")?;
    let tables =
        tables.lines().filter_map(|line| line.strip_prefix("table ")).filter(|name| !name.contains("meshd"));
    tables.map(|name| machine.sh(&format!("nft -s list table {name}"))).collect()
}

/// What doctor tells to type about the mesh port.
fn remedy(machine: &Machine, firewall: &str) -> Result<String> {
    let mut fix = String::new();
    eventually_within(WITHIN, &format!("doctor names {firewall}"), || {
        let told = machine.try_sh("meshctl doctor -o json")?;
        let told: serde_json::Value = serde_json::from_slice(&told.stdout)?;
        let checks = told["items"][0]["checks"].as_array().cloned().unwrap_or_default();
        let found =
            checks.iter().find(|check| check["fix"].as_str().is_some_and(|fix| fix.contains("15008/tcp")));
        ensure!(found.is_some(), "{told}");
        found.and_then(|check| check["fix"].as_str()).unwrap_or_default().clone_into(&mut fix);
        Ok(())
    })?;
    Ok(fix)
}

/// Whether a program that knows nothing of the mesh reaches the service.
fn answers(machine: &Machine) -> Result<()> {
    eventually_within(WITHIN, &format!("{} reaches reviews", machine.name), || {
        let said = machine.sh("curl -s --max-time 5 http://reviews:9080/")?;
        ensure!(said.starts_with("reviews v1"), "{said}");
        Ok(())
    })
}

/// A host that comes back is told of everything, and its certificate is renewed where that is due.
const WITHIN: Duration = Duration::from_secs(40);

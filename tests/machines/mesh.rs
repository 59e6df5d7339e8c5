//! Three machines from nothing to a canary, by the scripts that Vagrant runs; then what happens to real machines.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_lab::eventually_within;

use crate::machine::Machine;
use crate::{Machines, on_machines};

#[path = "../lab/binomial.rs"]
mod binomial;

/// `vm1` calls `reviews`, v1 on `vm2` and v2 on `vm3`.
pub(crate) fn form(machines: &Machines) -> Result<()> {
    let began = Instant::now();
    let first = machines.vm(1);
    first.install()?;
    first.sh("/vagrant/provision/first.sh vm2 vm3")?;
    for (machine, version) in machines.all().skip(1).zip(["v1", "v2"]) {
        machine.install()?;
        machine.sh(&format!("/vagrant/provision/join.sh {}", first.address))?;
        machine.sh(&format!("/vagrant/provision/service.sh reviews {version} 9080"))?;
    }
    first.sh("meshctl apply -f /vagrant/rules/10-canary.yaml")?;
    let instances = machines.all().count() - 1;
    eventually_within(SETTLES_WITHIN, "vm1 reaches all of reviews", || {
        let list = first.sh("meshctl service list -o json")?;
        let healthy = list.matches("\"health\": \"healthy\"").count();
        ensure!(healthy == instances, "{healthy} of {instances} are healthy: {list}");
        first.sh("curl -sf --max-time 5 http://reviews:9080/").map(drop)
    })?;
    let (took, count) = (began.elapsed().as_secs_f64(), instances + 1);
    eprintln!("{count} machines from `apt install` of the package to the first routed request: {took:.1} s");
    Ok(())
}

#[test]
fn machines_from_nothing_to_a_canary_and_through_trouble() {
    on_machines("machines_from_nothing_to_a_canary", 3, |machines| {
        form(machines)?;
        let first = machines.vm(1);
        the_canary_gets_its_share(machines)?;

        is_supervised(first)?;
        provisioning_again_changes_nothing(machines)?;
        the_fault_gets_its_share(first)?;

        // The plug of vm3 is pulled: whoever asks gets an answer from vm2.
        first.sh("meshctl apply -f /vagrant/rules/30-any.yaml")?;
        machines.vm(3).power_off();
        let answers = first.sh("for i in $(seq 50); do curl -s --max-time 10 http://reviews:9080/; done")?;
        ensure!(answers.lines().filter(|line| line.starts_with("reviews v1")).count() >= 45, "{answers}");
        eventually_within(SETTLES_WITHIN, "vm3 is known to be away", || {
            let status = first.sh("meshctl status")?;
            ensure!(status.contains("2 of 3 hosts live"), "{status}");
            Ok(())
        })?;

        // It boots: status answers at once, and its service comes back by itself.
        machines.vm(3).boot()?;
        machines.vm(3).sh("meshctl status")?;
        eventually_within(SETTLES_WITHIN, "v2 answers again", || {
            let answers =
                first.sh("for i in $(seq 10); do curl -s --max-time 5 http://reviews:9080/; done")?;
            ensure!(answers.contains("reviews v2 on vm3"), "{answers}");
            Ok(())
        })?;

        // The leader shuts down in order and boots.
        first.reboot()?;
        first.sh("meshctl status || test $? = 4")?;
        eventually_within(SETTLES_WITHIN, "vm1 is back", || {
            first.sh("curl -sf --max-time 5 http://reviews:9080/").map(drop)
        })?;

        // meshd is killed: nothing is left redirected to nobody, and it comes back.
        let before = first.sh("systemctl show meshd -p MainPID --value")?;
        first.sh("kill -KILL $(systemctl show meshd -p MainPID --value)")?;
        eventually_within(SETTLES_WITHIN, "meshd is back after a crash", || {
            let now = first.sh("systemctl show meshd -p MainPID --value")?;
            ensure!(now != before && now.trim() != "0", "{now}");
            first.sh("curl -sf --max-time 5 http://reviews:9080/").map(drop)
        })?;

        // A name outside the mesh, by a ServiceEntry.
        machines.vm(3).sh("systemd-run -q --unit=legacy lab-service 198.18.56.13:8090 'an old program'")?;
        first
            .sh("sed 's/192.168.56.13/198.18.56.13/' /vagrant/rules/40-external.yaml | meshctl apply -f -")?;
        eventually_within(SETTLES_WITHIN, "the old program answers by its new name", || {
            let answer = first.sh("curl -sf --max-time 5 http://legacy.example/")?;
            ensure!(answer.contains("an old program"), "{answer}");
            Ok(())
        })?;

        // A gateway on vm1, by a label that a reload brings.
        first.sh(
            "sed -i 's/^#labels = {}/labels = { istio = \"ingressgateway\" }/;t;' /etc/meshd/meshd.toml",
        )?;
        first.sh("systemctl reload meshd")?;
        first.sh("meshctl apply -f /vagrant/rules/50-gateway.yaml")?;
        eventually_within(SETTLES_WITHIN, "callers from outside come in", || {
            let answer = machines.vm(2).sh("curl -sf --max-time 5 http://198.18.56.11:8080/")?;
            ensure!(answer.starts_with("reviews"), "{answer}");
            Ok(())
        })?;

        a_machine_made_anew_comes_back(machines)
    });
}

/// The unit says when it is ready, runs as a user of its own, and has systemd keep its sockets.
fn is_supervised(machine: &Machine) -> Result<()> {
    let state = machine.sh("systemctl show meshd -p ActiveState -p Type -p User -p NFileDescriptorStore")?;
    for line in ["ActiveState=active", "Type=notify", "User=meshd"] {
        ensure!(state.lines().any(|other| other == line), "{line}: {state}");
    }
    let kept = state.lines().find_map(|line| line.strip_prefix("NFileDescriptorStore=")?.parse::<u32>().ok());
    let listening = machine.sh("ss -Hlntp | grep -c meshd")?.trim().parse::<u32>()?;
    ensure!(kept.is_some_and(|kept| kept >= listening), "{listening} sockets listen: {state}");
    Ok(())
}

/// `vagrant provision` runs the scripts again.
fn provisioning_again_changes_nothing(machines: &Machines) -> Result<()> {
    let first = machines.vm(1);
    let before = first.sh("cat /var/lib/meshd/host.json")?;
    first.install()?;
    let said = first.sh("/vagrant/provision/first.sh vm2 vm3")?;
    ensure!(said.contains("vm1 is in a mesh already"), "{said}");
    ensure!(before == first.sh("cat /var/lib/meshd/host.json")?, "vm1 is another host now");
    let third = machines.vm(3);
    third.install()?;
    let said = third.sh(&format!("/vagrant/provision/join.sh {}", first.address))?;
    ensure!(said.contains("vm3 is in a mesh already"), "{said}");
    third.sh("/vagrant/provision/service.sh reviews v2 9080")?;
    the_canary_gets_its_share(machines)
}

fn the_fault_gets_its_share(first: &Machine) -> Result<()> {
    first.sh("meshctl apply -f /vagrant/rules/20-fault.yaml")?;
    let codes = first.sh(
        "for i in $(seq 300); do curl -s --max-time 10 -o /dev/null -w '%{http_code}\\n' http://reviews:9080/; done",
    )?;
    let of = |code: &str| u32::try_from(codes.lines().filter(|line| *line == code).count());
    let (good, refused) = (of("200")?, of("503")?);
    ensure!(
        good + refused == 300 && binomial::plausible(refused, 300, 0.1),
        "{good} good, {refused} refused"
    );
    Ok(())
}

/// As the README of `examples/vagrant` says it: the token of the one before is spent, and its name free once it is gone.
fn a_machine_made_anew_comes_back(machines: &Machines) -> Result<()> {
    let (first, third) = (machines.vm(1), machines.vm(3));
    // What of a machine that was destroyed is not there any more.
    third.sh("systemctl kill -s KILL meshd; systemctl stop meshd; rm -rf /var/lib/meshd/*")?;
    let join = format!("/vagrant/provision/join.sh {}", first.address);
    let refused = third.try_sh(&join)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("vagrant provision vm1"), "{said}");

    first.sh("/vagrant/provision/first.sh vm2 vm3")?;
    third.install()?;
    eventually_within(2 * SETTLES_WITHIN, "the old vm3 is gone, and the new one joins", || {
        third.sh(&join).map(drop)
    })?;
    third.sh("/vagrant/provision/service.sh reviews v2 9080")?;

    eventually_within(SETTLES_WITHIN, "v2 answers again", || {
        let answers = first.sh("for i in $(seq 10); do curl -s --max-time 5 http://reviews:9080/; done")?;
        ensure!(answers.contains("reviews v2 on vm3"), "{answers}");
        Ok(())
    })?;
    // The old one is let go of once the new one has its vote; the new one bears the same name, and stays.
    eventually_within(2 * SETTLES_WITHIN, "the old vm3 is removed", || {
        first.sh("meshctl host remove vm3").map(drop)
    })?;
    let status = first.sh("meshctl status")?;
    let of_vm3: Vec<&str> = status.lines().filter(|line| line.starts_with("vm3 ")).collect();
    ensure!(of_vm3.len() == 1 && of_vm3[0].contains("live"), "{status}");
    Ok(())
}

fn the_canary_gets_its_share(machines: &Machines) -> Result<()> {
    let answers =
        machines.vm(1).sh("for i in $(seq 300); do curl -s --max-time 10 http://reviews:9080/; done")?;
    let of = |version: &str| u32::try_from(answers.lines().filter(|line| line.contains(version)).count());
    let (v1, v2) = (of("reviews v1 on vm2")?, of("reviews v2 on vm3")?);
    ensure!(v1 + v2 == 300, "{} of 300 answered: {answers}", v1 + v2);
    ensure!(binomial::plausible(v2, 300, 0.1), "v2 got {v2} of 300");
    Ok(())
}

/// Hosts find each other, certificates are made, health checks pass: on a busy machine of two cores.
const SETTLES_WITHIN: Duration = Duration::from_mins(1);

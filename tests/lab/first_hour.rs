//! The README's path on two bare hosts: six commands, nothing carried by hand but the token.

use anyhow::ensure;
use mesh_lab::{Lab, eventually, story};

#[test]
fn two_bare_hosts_are_a_mesh_after_six_commands() {
    story("first_hour::two_bare_hosts_are_a_mesh_after_six_commands", || {
        let mut lab = Lab::new(2)?;
        lab.vm(2).serve("reviews", 9080, "reviews v1")?;

        let init = lab.vm(1).meshd(&["init"])?.success()?;
        ensure!(init.stdout.contains("Recovery passphrase"), "{}", init.stdout);
        lab.vm(1).start()?;
        let token = lab.vm(1).meshctl(&["token", "create"])?.success()?.stdout;
        ensure!(token.trim().starts_with("mj1.") && token.trim().lines().count() == 1, "{token}");
        lab.vm(2).join("198.18.0.1", token.trim())?.success()?;
        lab.vm(2).start()?;
        lab.vm(2)
            .meshctl(&["service", "register", "reviews", "--port", "9080:http", "--label", "version=v1"])?
            .success()?;
        let rules = lab.file("rules.yaml", &crate::canary(100, 0))?;
        let applied = lab.vm(1).meshctl(&["apply", &rules.display().to_string()])?.success()?;
        ensure!(applied.stdout.contains("live on 2 of 2 hosts"), "{}", applied.stdout);

        eventually("vm1 reaches reviews on vm2 by its name", || {
            let answer = lab.vm(1).curl(&["http://reviews:9080/"])?;
            ensure!(answer.status == 200 && answer.body == "reviews v1\n", "{answer:?}");
            Ok(())
        })?;
        let same = lab.vm(2).curl(&["http://reviews.default:9080/"])?;
        ensure!(same.status == 200, "the host itself reaches it too: {same:?}");
        Ok(())
    });
}

#[test]
fn the_first_two_joiners_become_voters_and_the_fourth_host_an_agent() {
    story("first_hour::the_first_two_joiners_become_voters_and_the_fourth_host_an_agent", || {
        let mut lab = Lab::mesh(4)?;
        mesh_lab::eventually_within(std::time::Duration::from_secs(30), "three hosts vote", || {
            let status = lab.vm(1).status()?;
            let roles: Vec<_> = status.hosts.iter().map(|host| host.role.as_str()).collect();
            let votes = roles.iter().filter(|role| matches!(**role, "leader" | "voter")).count();
            ensure!(votes == 3 && roles.contains(&"agent"), "{roles:?}");
            Ok(())
        })
    });
}

#[test]
fn a_restarted_host_comes_back_from_its_disk() {
    story("first_hour::a_restarted_host_comes_back_from_its_disk", || {
        let mut lab = crate::reviews_on_two_hosts()?;
        let rules = lab.file("rules.yaml", &crate::canary(0, 100))?;
        lab.vm(1).meshctl(&["apply", &rules.display().to_string()])?.success()?;
        for number in 1..=3 {
            lab.vm(number).crash();
        }
        lab.vm(1).start()?;
        let alone = lab.vm(1).curl(&["--head", "http://127.0.0.1:15000/routes?host=reviews"])?;
        ensure!(alone.status == 200, "the first serves its Plan with the others down: {alone:?}");
        lab.vm(2).start()?;
        lab.vm(3).start()?;
        eventually("the rules hold again", || {
            let answer = lab.vm(1).curl(&["http://reviews:9080/"])?;
            ensure!(answer.body.contains("v2"), "{answer:?}");
            let get = lab.vm(1).meshctl(&["get", "virtualservice", "reviews", "-o", "yaml"])?.success()?;
            ensure!(get.stdout.contains("weight: 100"), "{}", get.stdout);
            Ok(())
        })
    });
}

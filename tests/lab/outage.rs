//! What goes on when hosts die or are cut off.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_lab::{Lab, eventually_within, story};

use crate::{canary, reviews_on_two_hosts};

/// Waits until three hosts vote.
pub(crate) fn three_voters(lab: &mut Lab) -> Result<()> {
    eventually_within(Duration::from_secs(30), "three hosts vote", || {
        let status = lab.vm(1).status()?;
        let votes =
            status.hosts.iter().filter(|host| matches!(host.role.as_str(), "leader" | "voter")).count();
        ensure!(votes == 3, "{:?}", status.hosts);
        Ok(())
    })
}

#[test]
fn writes_go_on_within_two_seconds_after_the_leader_is_killed() {
    story("outage::writes_go_on_within_two_seconds_after_the_leader_is_killed", || {
        let mut lab = reviews_on_two_hosts()?;
        three_voters(&mut lab)?;
        let leader = lab.vm(2).status()?.leader.context("a leader")?;
        let leader: usize = leader.trim_start_matches("vm").parse()?;
        let survivor = if leader == 1 { 2 } else { 1 };
        let rules = lab.file("rules.yaml", &canary(70, 30))?.display().to_string();

        lab.vm(leader).crash();
        let first_write = write_gap(&mut lab, survivor, &rules)?;
        ensure!(first_write < Duration::from_secs(2), "the first write took {first_write:?}");
        Ok(())
    });
}

#[test]
fn an_agent_finds_a_server_that_lives_when_the_first_one_is_dead() {
    story("outage::an_agent_finds_a_server_that_lives_when_the_first_one_is_dead", || {
        let mut lab = Lab::mesh(4)?;
        three_voters(&mut lab)?;
        let rules = lab.file("rules.yaml", &canary(70, 30))?.display().to_string();
        lab.vm(4).meshctl(&["apply", &rules])?.success()?;
        let rules = lab.file("rules.yaml", &canary(60, 40))?.display().to_string();

        lab.vm(1).crash();
        let first_write = write_gap(&mut lab, 4, &rules)?;
        ensure!(first_write < Duration::from_secs(2), "the first write took {first_write:?}");
        Ok(())
    });
}

/// Applies rules again and again until it succeeds; returns how long that took.
fn write_gap(lab: &mut Lab, number: usize, rules: &str) -> Result<Duration> {
    let began = Instant::now();
    loop {
        let tried = lab.vm(number).meshctl(&["apply", "--no-wait", rules])?;
        if tried.code == Some(0) {
            return Ok(began.elapsed());
        }
        ensure!(began.elapsed() < Duration::from_secs(5), "no write within 5 s: {}", tried.stderr);
    }
}

#[test]
fn without_quorum_traffic_goes_on_and_apply_says_who_is_missing() {
    story("outage::without_quorum_traffic_goes_on_and_apply_says_who_is_missing", || {
        let mut lab = reviews_on_two_hosts()?;
        three_voters(&mut lab)?;
        // The instance on vm2 stays reachable only while vm2 runs: keep vm1 and the service's own host apart from the dead.
        lab.vm(1).serve("local", 9081, "local")?;
        lab.vm(1).services_file(
            "local.toml",
            "[[service]]\nname = \"local\"\n[[service.port]]\nnumber = 9081\nprotocol = \"http\"\n",
        )?;
        mesh_lab::eventually("local is known", || {
            ensure!(lab.vm(1).curl(&["http://local:9081/"])?.status == 200);
            Ok(())
        })?;
        lab.vm(2).crash();
        lab.vm(3).crash();

        let rules = lab.file("rules.yaml", &canary(70, 30))?.display().to_string();
        let began = Instant::now();
        let refused =
            eventually_within(Duration::from_secs(15), "apply says that there is no quorum", || {
                let tried = lab.vm(1).meshctl(&["apply", &rules])?;
                ensure!(tried.code == Some(4) && tried.stderr.contains("no quorum"), "{tried:?}");
                Ok(tried)
            })?;

        ensure!(refused.stderr.contains("vm2") && refused.stderr.contains("vm3"), "{}", refused.stderr);
        ensure!(began.elapsed() < Duration::from_secs(15));
        let answer = lab.vm(1).curl(&["http://local:9081/"])?;
        ensure!(answer.status == 200, "traffic goes on: {answer:?}");
        let stale = lab.vm(1).meshctl(&["get", "--stale", "vs"])?;
        ensure!(stale.code == Some(0), "{stale:?}");
        Ok(())
    });
}

#[test]
fn a_host_that_is_cut_off_serves_on_and_catches_up_when_healed() {
    story("outage::a_host_that_is_cut_off_serves_on_and_catches_up_when_healed", || {
        let mut lab = reviews_on_two_hosts()?;
        three_voters(&mut lab)?;
        let all_v1 = lab.file("v1.yaml", &canary(100, 0))?.display().to_string();
        let all_v2 = lab.file("v2.yaml", &canary(0, 100))?.display().to_string();
        lab.vm(1).meshctl(&["apply", &all_v1])?.success()?;

        let cut = "nft add table inet cut && nft 'add chain inet cut i { type filter hook input priority -300; iif != lo drop; }'";
        lab.vm(3).shell(cut)?.success()?;
        eventually_within(Duration::from_secs(20), "vm3 is known to be gone", || {
            let status = lab.vm(1).status()?;
            let vm3 = status.hosts.iter().find(|host| host.name == "vm3").context("vm3")?;
            ensure!(vm3.state == "gone", "{vm3:?}");
            Ok(())
        })?;
        let applied = lab.vm(1).meshctl(&["apply", &all_v2])?.success()?;
        ensure!(applied.stdout.contains("live on 2 of 2 hosts"), "{}", applied.stdout);
        let own = lab.vm(3).curl(&["--head", "http://127.0.0.1:15000/ready"])?;
        ensure!(own.status == 200, "a host that is cut off serves on: {own:?}");

        lab.vm(3).shell("nft delete table inet cut")?.success()?;
        eventually_within(Duration::from_secs(30), "vm3 caught up", || {
            let answer = lab.vm(3).curl(&["http://reviews:9080/"])?;
            ensure!(answer.body.contains("v2"), "{answer:?}");
            let answer = lab.vm(1).curl(&["http://reviews:9080/"])?;
            ensure!(answer.body.contains("v2"), "{answer:?}");
            Ok(())
        })
    });
}

#[test]
fn a_host_whose_udp_is_blocked_is_a_full_member() {
    story("outage::a_host_whose_udp_is_blocked_is_a_full_member", || {
        let mut lab = Lab::new(2)?;
        let block = "nft add table inet cut && nft 'add chain inet cut o { type filter hook output priority -300; udp dport 15008 drop; }'";
        lab.vm(2).shell(block)?.success()?;
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).start()?;
        let token = lab.vm(1).meshctl(&["token", "create"])?.success()?.stdout;
        lab.vm(2).join("198.18.0.1:15008", token.trim())?.success()?;
        lab.vm(2).start()?;
        let rules = lab.file("rules.yaml", &canary(100, 0))?.display().to_string();
        eventually_within(Duration::from_secs(20), "vm2 applies a rule", || {
            let applied = lab.vm(2).meshctl(&["apply", &rules])?.success()?;
            ensure!(applied.stdout.contains("live on 2 of 2 hosts"), "{}", applied.stdout);
            Ok(())
        })
    });
}

//! meshd leaves a host as it found it, and never cuts it off.

use anyhow::{Result, ensure};
use mesh_lab::{Host, Lab, eventually, story};

#[test]
fn stopping_leaves_rules_routes_and_dns_as_they_were() {
    story("harmless::stopping_leaves_rules_routes_and_dns_as_they_were", || {
        let mut lab = Lab::new(1)?;
        lab.vm(1).shell("nft add table inet others && nft add chain inet others c")?.success()?;
        let before = found(lab.vm(1))?;
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).start()?;
        eventually("interception is on", || {
            ensure!(lab.vm(1).shell("nft list tables")?.success()?.stdout.contains("inet meshd"));
            Ok(())
        })?;

        let code = lab.vm(1).stop()?;

        ensure!(code == Some(0), "meshd ended with {code:?}: {}", lab.vm(1).log());
        ensure!(found(lab.vm(1))? == before, "before: {before}\nafter: {}", found(lab.vm(1))?);
        Ok(())
    });
}

#[test]
fn cleanup_after_a_crash_leaves_the_host_as_it_was() {
    story("harmless::cleanup_after_a_crash_leaves_the_host_as_it_was", || {
        let mut lab = Lab::new(1)?;
        let before = found(lab.vm(1))?;
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).start()?;
        eventually("interception is on", || {
            ensure!(lab.vm(1).shell("nft list tables")?.success()?.stdout.contains("inet meshd"));
            Ok(())
        })?;
        lab.vm(1).crash();

        lab.vm(1).meshd(&["cleanup"])?.success()?;

        ensure!(found(lab.vm(1))? == before);
        Ok(())
    });
}

#[test]
fn ports_that_are_not_the_meshs_are_reached_as_before() {
    story("harmless::ports_that_are_not_the_meshs_are_reached_as_before", || {
        let mut lab = Lab::mesh(2)?;
        lab.vm(2).serve("other", 7000, "not in the mesh")?;
        // lab-service listens on loopback; a relay by nft makes it reachable from outside, as an ordinary service is.
        let local = lab.vm(2).curl(&["http://127.0.0.1:7000/"])?;
        ensure!(local.body == "not in the mesh\n", "{local:?}");
        let refused = lab.vm(1).curl(&["http://198.18.0.2:7001/"])?;
        ensure!(refused.status != 200, "a closed port stays closed: {refused:?}");
        Ok(())
    });
}

/// Everything meshd could have changed.
fn found(host: &Host) -> Result<String> {
    let line = "nft list ruleset; ip route show table all; ip -6 route show table all; ip rule; ip addr show dev lo; cat /etc/resolv.conf";
    Ok(host.shell(line)?.success()?.stdout)
}

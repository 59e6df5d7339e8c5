//! Bad input: one clear message, a code that is not zero, and nothing changed.

use anyhow::ensure;
use mesh_lab::{Lab, story};

#[test]
fn a_token_used_twice_and_a_taken_name_are_refused() {
    story("refusals::a_token_used_twice_and_a_taken_name_are_refused", || {
        let mut lab = Lab::new(3)?;
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).start()?;
        let token = lab.vm(1).meshctl(&["token", "create"])?.success()?.stdout;
        lab.vm(2).join("198.18.0.1:15008", token.trim())?.success()?;

        let twice = lab.vm(3).join("198.18.0.1:15008", token.trim())?;
        ensure!(twice.code == Some(1) && twice.stderr.contains("used already, by host vm2"), "{twice:?}");

        let address = lab.vm(3).address;
        let second = lab.vm(1).meshctl(&["token", "create"])?.success()?.stdout;
        let config = lab.vm(3).folder().join("meshd.toml");
        let renamed = std::fs::read_to_string(&config)?.replace("\"vm3\"", "\"vm1\"");
        std::fs::write(&config, renamed)?;
        let taken = lab.vm(3).join("198.18.0.1:15008", second.trim())?;
        ensure!(taken.code == Some(3) && taken.stderr.contains("named vm1 already"), "{address}: {taken:?}");
        Ok(())
    });
}

#[test]
fn tokens_that_are_none_are_told_apart() {
    story("refusals::tokens_that_are_none_are_told_apart", || {
        let mut lab = Lab::new(2)?;
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).start()?;
        let token = lab.vm(1).meshctl(&["token", "create", "--ttl", "1s"])?.success()?.stdout;
        let mut messages = std::collections::BTreeSet::new();
        for bad in ["hello", "", &token.trim()[..20]] {
            let refused = lab.vm(2).join("198.18.0.1:15008", bad)?;
            ensure!(refused.code == Some(1), "{bad:?}: {refused:?}");
            messages.insert(refused.stderr);
        }
        let expired = mesh_lab::eventually("the token expired", || {
            let refused = lab.vm(2).join("198.18.0.1:15008", token.trim())?;
            ensure!(refused.stderr.contains("expired"), "{refused:?}");
            Ok(refused)
        });
        // A join within the second would have succeeded: only then is there nothing to see.
        if let Ok(expired) = expired {
            messages.insert(expired.stderr);
        }
        ensure!(messages.len() >= 3, "{messages:?}");
        Ok(())
    });
}

#[test]
fn a_taken_port_and_a_folder_without_permission_are_named() {
    story("refusals::a_taken_port_and_a_folder_without_permission_are_named", || {
        let mut lab = Lab::new(1)?;
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).serve("squatter", 15000, "mine")?;
        let refused = lab.vm(1).meshd(&["run"])?;
        ensure!(refused.code == Some(1) && refused.stderr.contains("127.0.0.1:15000"), "{refused:?}");

        let nowhere = lab.vm(1).meshd(&["init", "--data", "/proc/nowhere"])?;
        ensure!(nowhere.code == Some(1) && nowhere.stderr.contains("/proc/nowhere"), "{nowhere:?}");
        Ok(())
    });
}

#[test]
fn an_unreachable_peer_is_named_and_nothing_is_left_behind() {
    story("refusals::an_unreachable_peer_is_named_and_nothing_is_left_behind", || {
        let mut lab = Lab::new(2)?;
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).start()?;
        let token = lab.vm(1).meshctl(&["token", "create"])?.success()?.stdout;
        let refused = lab.vm(2).join("198.18.0.1:15999", token.trim())?;
        ensure!(refused.code == Some(1) && refused.stderr.contains("198.18.0.1:15999"), "{refused:?}");
        lab.vm(2).join("198.18.0.1:15008", token.trim())?.success()?;
        Ok(())
    });
}

#[test]
fn every_finding_of_every_document_is_reported_and_nothing_is_applied() {
    story("refusals::every_finding_of_every_document_is_reported_and_nothing_is_applied", || {
        let mut lab = Lab::mesh(1)?;
        let broken =
            crate::canary(90, 10).replace("weight: 90", "wieght: 90").replace("subsets:", "subsetz:");
        let rules = lab.file("broken.yaml", &broken)?.display().to_string();
        let refused = lab.vm(1).meshctl(&["apply", &rules])?;
        ensure!(refused.code == Some(1), "{refused:?}");
        ensure!(
            refused.stderr.contains("wieght") && refused.stderr.contains("subsetz"),
            "{}",
            refused.stderr
        );
        ensure!(refused.stderr.contains("broken.yaml:6:"), "line and column: {}", refused.stderr);
        let get = lab.vm(1).meshctl(&["get", "all", "-o", "json"])?.success()?;
        ensure!(!get.stdout.contains("reviews"), "{}", get.stdout);
        Ok(())
    });
}

#[test]
fn a_registration_that_contradicts_another_host_is_told_of_and_not_taken_in() {
    story("refusals::a_registration_that_contradicts_another_host_is_told_of_and_not_taken_in", || {
        let mut lab = Lab::mesh(2)?;
        lab.vm(1).services_file("reviews.toml", &crate::reviews("v1"))?;
        mesh_lab::eventually("vm2 knows reviews", || {
            let list = lab.vm(2).meshctl(&["service", "list", "-o", "json"])?.success()?.stdout;
            ensure!(list.contains("\"v1\""), "{list}");
            Ok(())
        })?;
        let other = crate::reviews("v2").replace("\"http\"", "\"tcp\"");
        lab.vm(2).services_file("reviews.toml", &other)?;

        mesh_lab::eventually("status names the contradiction", || {
            let status = lab.vm(1).meshctl(&["status"])?.success()?.stdout;
            ensure!(status.contains("port 9080 of reviews.default is HTTP on host vm1"), "{status}");
            Ok(())
        })?;
        let list = lab.vm(1).meshctl(&["service", "list", "-o", "json"])?.success()?.stdout;
        ensure!(!list.contains("\"v2\""), "{list}");
        Ok(())
    });
}

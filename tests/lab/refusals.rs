//! Bad input: one clear message, a code that is not zero, and nothing changed.

use anyhow::ensure;
use mesh_lab::{Lab, eventually, story};

use crate::commands::rules;

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
        let made = std::time::Instant::now();
        let mut messages = std::collections::BTreeSet::new();
        for bad in ["hello", "", &token.trim()[..20]] {
            let refused = lab.vm(2).join("198.18.0.1:15008", bad)?;
            ensure!(refused.code == Some(1), "{bad:?}: {refused:?}");
            messages.insert(refused.stderr);
        }
        // A join within the second would succeed.
        eventually("the token's second is over", || {
            ensure!(made.elapsed() > std::time::Duration::from_millis(1_100));
            Ok(())
        })?;
        let expired = lab.vm(2).join("198.18.0.1:15008", token.trim())?;
        ensure!(expired.code == Some(1) && expired.stderr.contains("expired"), "{expired:?}");
        ensure!(expired.stderr.lines().count() == 1, "one message: {expired:?}");
        messages.insert(expired.stderr);
        ensure!(messages.len() >= 3, "{messages:?}");
        ensure!(lab.vm(1).status()?.hosts.len() == 1 && !lab.vm(2).folder().join("data/host.json").exists());
        Ok(())
    });
}

#[test]
fn a_taken_port_is_named_whichever_it_is_and_the_host_stays_as_it_was() {
    story("refusals::a_taken_port_is_named_whichever_it_is_and_the_host_stays_as_it_was", || {
        let mut lab = Lab::new(1)?;
        lab.vm(1).meshd(&["init"])?.success()?;
        let mut wrong = Vec::new();
        for port in [15000, 15001, 15006, 15008, 15020, 15053, 15080] {
            lab.vm(1).serve("squatter", port, "mine")?;
            let refused = lab.vm(1).meshd(&["run"])?;
            let last = refused.stderr.lines().last().unwrap_or_default();
            let clear =
                last.starts_with("meshd: ") && last.contains(&format!(":{port}")) && last.contains("ss -l");
            let tables = lab.vm(1).shell("nft list tables")?.success()?.stdout;
            if refused.code != Some(1) || !clear || refused.stderr.contains("ERROR") || !tables.is_empty() {
                wrong.push(format!("{port}: {refused:?} {tables}"));
            }
            lab.vm(1).kill_service("squatter");
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        lab.vm(1).start()
    });
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    story("refusals::a_folder_that_cannot_be_written_is_named", || {
        let mut lab = Lab::new(2)?;
        let nowhere = lab.vm(1).meshd(&["init", "--data", "/proc/nowhere"])?;
        ensure!(nowhere.code == Some(1) && nowhere.stderr.contains("/proc/nowhere"), "{nowhere:?}");
        ensure!(nowhere.stderr.lines().count() == 1, "{nowhere:?}");

        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).start()?;
        let token = lab.vm(1).meshctl(&["token", "create"])?.success()?.stdout;
        // A disk mounted read-only: root may write everywhere else.
        let data = lab.vm(2).folder().join("data").display().to_string();
        lab.vm(2).shell(&format!("mkdir {data}"))?.success()?;
        mesh_lab::mount_tmpfs(&data, "1m,ro")?;
        let refused = lab.vm(2).join("198.18.0.1:15008", token.trim())?;
        ensure!(refused.code == Some(1) && refused.stderr.contains(&data), "{refused:?}");
        lab.vm(2).shell(&format!("umount {data}"))?.success()?;
        // The token was not used up by a host that could not have kept what it was told.
        lab.vm(2).join("198.18.0.1:15008", token.trim())?.success()?;
        Ok(())
    });
}

#[test]
fn a_full_disk_ends_init_with_a_message_and_a_registration_too() {
    story("refusals::a_full_disk_ends_init_with_a_message_and_a_registration_too", || {
        let mut lab = Lab::new(1)?;
        let data = lab.vm(1).folder().join("data").display().to_string();
        lab.vm(1).shell(&format!("mkdir {data}"))?.success()?;
        mesh_lab::mount_tmpfs(&data, "64m")?;
        let fill = format!("cat /dev/zero > {data}/filler; true");
        lab.vm(1).shell(&fill)?.success()?;
        let refused = lab.vm(1).meshd(&["init"])?;
        ensure!(refused.code == Some(1) && refused.stderr.contains(&data), "{refused:?}");
        ensure!(refused.stderr.contains("o space left") || refused.stderr.contains("full"), "{refused:?}");

        lab.vm(1).shell(&format!("rm {data}/filler"))?.success()?;
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).start()?;
        lab.vm(1).shell(&fill)?.success()?;
        let refused = lab.vm(1).meshctl(&["service", "register", "reviews", "--port", "9080:http"])?;
        ensure!(refused.code != Some(0) && refused.stderr.contains("make room"), "{refused:?}");
        lab.vm(1).shell(&format!("rm {data}/filler"))?.success()?;
        let list = lab.vm(1).meshctl(&["service", "list", "-o", "json"])?.success()?.stdout;
        ensure!(!list.contains("reviews"), "{list}");
        eventually("writes go on", || {
            lab.vm(1).meshctl(&["service", "register", "reviews", "--port", "9080:http"])?.success().map(drop)
        })
    });
}

#[test]
fn an_unreachable_peer_is_named_and_nothing_is_left_behind() {
    story("refusals::an_unreachable_peer_is_named_and_nothing_is_left_behind", || {
        let mut lab = Lab::new(2)?;
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).start()?;
        let token = lab.vm(1).meshctl(&["token", "create"])?.success()?.stdout;
        // Nobody listens; no such host; packets that vanish.
        lab.vm(1).shell("nft add table inet wall && nft 'add chain inet wall i { type filter hook input priority -300; tcp dport 15997 drop; }'")?.success()?;
        for address in ["198.18.0.1:15999", "198.18.0.77:15008", "198.18.0.1:15997"] {
            let began = std::time::Instant::now();
            let refused = lab.vm(2).join(address, token.trim())?;
            ensure!(refused.code == Some(1) && refused.stderr.contains(address), "{refused:?}");
            ensure!(refused.stderr.lines().count() == 1, "one message: {refused:?}");
            ensure!(began.elapsed() < std::time::Duration::from_secs(20), "{address}: {:?}", began.elapsed());
            ensure!(!lab.vm(2).folder().join("data/host.json").exists(), "{address} left something behind");
        }
        lab.vm(2).join("198.18.0.1:15008", token.trim())?.success()?;
        Ok(())
    });
}

/// What is wrong, the file, where it must be found to be, and a word that must be said.
const BAD_FILES: [(&str, &str, &str, &str); 8] = [
    ("no YAML", "kind: [VirtualService\n", "bad.yaml:", "bad.yaml"),
    ("no kind", "spec: {}\n", "bad.yaml:1:", "kind"),
    (
        "an unknown kind",
        "apiVersion: networking.istio.io/v1\nkind: VirtualServices\nmetadata: {name: a}\n",
        "bad.yaml:2:",
        "VirtualService",
    ),
    (
        "an unknown field",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [a]\n  htpp: []\n",
        "bad.yaml:6:3",
        "http",
    ),
    (
        "a wrong type",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: a\n",
        "bad.yaml:5:",
        "hosts",
    ),
    (
        "a negative weight",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [a]\n  http:\n  - route:\n    - destination: {host: a}\n      weight: -1\n    - destination: {host: b}\n      weight: 101\n",
        "bad.yaml:9:",
        "weight",
    ),
    (
        "weights that add up to nothing",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [a]\n  http:\n  - route:\n    - destination: {host: a}\n      weight: 0\n    - destination: {host: b}\n      weight: 0\n",
        "bad.yaml:",
        "weight",
    ),
    (
        "a bad duration",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [a]\n  http:\n  - timeout: soon\n    route: [{destination: {host: a}}]\n",
        "bad.yaml:7:",
        "timeout",
    ),
];

#[test]
fn a_bad_file_is_told_with_its_place_and_takes_the_good_one_beside_it_along() {
    story("refusals::a_bad_file_is_told_with_its_place_and_takes_the_good_one_beside_it_along", || {
        let mut lab = Lab::mesh(1)?;
        let good = lab.file("good.yaml", &crate::canary(90, 10))?.display().to_string();
        let before = rules(lab.vm(1))?;
        for (what, text, place, word) in BAD_FILES {
            let bad = lab.file("bad.yaml", text)?.display().to_string();
            let refused = lab.vm(1).meshctl(&["apply", &good, &bad])?;
            ensure!(refused.code == Some(1), "{what}: {refused:?}");
            ensure!(
                refused.stderr.contains(place) && refused.stderr.contains(word),
                "{what}: {}",
                refused.stderr
            );
            ensure!(
                refused.stderr.lines().last().is_some_and(|last| last.starts_with("error: ")),
                "{what}: {}",
                refused.stderr
            );
            ensure!(rules(lab.vm(1))? == before, "{what} changed something");
        }
        let missing = lab.vm(1).meshctl(&["apply", &good, "/nowhere/rules.yaml"])?;
        ensure!(missing.code == Some(2) && missing.stderr.contains("/nowhere/rules.yaml"), "{missing:?}");
        ensure!(rules(lab.vm(1))? == before, "an unreadable file changed something");
        Ok(())
    });
}

#[test]
fn a_route_to_a_missing_subset_or_host_is_a_warning_unless_strict() {
    story("refusals::a_route_to_a_missing_subset_or_host_is_a_warning_unless_strict", || {
        let mut lab = Lab::mesh(1)?;
        lab.vm(1).services_file("reviews.toml", &crate::reviews("v1"))?;
        eventually("reviews is known", || {
            let list = lab.vm(1).meshctl(&["service", "list"])?.success()?.stdout;
            ensure!(list.contains("reviews"), "{list}");
            Ok(())
        })?;
        let before = rules(lab.vm(1))?;
        let text = crate::canary(50, 50).replace("subset: v2}\n      weight", "subset: v9}\n      weight");
        let file = lab.file("missing.yaml", &text)?.display().to_string();

        let strict = lab.vm(1).meshctl(&["apply", &file, "--strict"])?;
        ensure!(strict.code == Some(1) && strict.stderr.contains("v9"), "{strict:?}");
        ensure!(strict.stderr.matches("nothing was changed").count() == 1, "{strict:?}");
        ensure!(rules(lab.vm(1))? == before, "a refused order changed something");

        let warned = lab.vm(1).meshctl(&["apply", &file])?;
        ensure!(warned.code == Some(0) && warned.stdout.contains("live on 1 of 1 host"), "{warned:?}");
        let missing = warned.stderr.lines().find(|line| line.contains("v9")).unwrap_or_default();
        ensure!(missing.contains("missing.yaml:19:") && missing.contains("warning: "), "{}", warned.stderr);
        Ok(())
    });
}

#[test]
fn a_bad_configuration_is_told_with_its_place() {
    story("refusals::a_bad_configuration_is_told_with_its_place", || {
        let mut lab = Lab::new(1)?;
        lab.vm(1).meshd(&["init"])?.success()?;
        for (more, word) in [
            ("[proxy]\ntransprt = \"tcp\"\n", "did you mean"),
            ("[proxy]\ntransport = \"udp\"\n", "tcp"),
            ("[proxy]\nworkers = \"two\"\n", "workers"),
            ("[proxy\n", "meshd.toml"),
        ] {
            lab.vm(1).write_config(more)?;
            let refused = lab.vm(1).meshd(&["run"])?;
            ensure!(refused.code.is_some_and(|code| code != 0), "{more}: {refused:?}");
            ensure!(
                refused.stderr.contains("meshd.toml:") && refused.stderr.contains(word),
                "{more}: {refused:?}"
            );
        }
        lab.vm(1).write_config("")?;
        lab.vm(1).start()
    });
}

#[test]
fn a_refused_registration_tells_its_reason_once() {
    story("refusals::a_refused_registration_tells_its_reason_once", || {
        let mut lab = Lab::mesh(1)?;
        lab.vm(1).services_file("reviews.toml", &crate::reviews("v1"))?;
        eventually("reviews is offered", || {
            let list = lab.vm(1).meshctl(&["service", "list"])?.success()?.stdout;
            ensure!(list.contains("reviews"), "{list}");
            Ok(())
        })?;
        let refused = lab.vm(1).meshctl(&["service", "register", "other", "--port", "9081:http:9080"])?;
        ensure!(refused.code == Some(3), "{refused:?}");
        ensure!(refused.stderr.matches("9080 is the target of").count() == 1, "{refused:?}");
        ensure!(
            refused.stderr.lines().last() == Some("error: nothing was registered: the order has findings"),
            "{refused:?}"
        );
        let list = lab.vm(1).meshctl(&["service", "list"])?.success()?.stdout;
        ensure!(!list.contains("other"), "{list}");
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

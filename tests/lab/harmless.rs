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
fn a_typo_in_the_configuration_leaves_nothing_that_redirects_to_nobody() {
    story("harmless::a_typo_in_the_configuration_leaves_nothing_that_redirects_to_nobody", || {
        let mut lab = Lab::new(1)?;
        let before = found(lab.vm(1))?;
        lab.vm(1).meshd(&["init"])?.success()?;
        for rescue in [["cleanup", "--unless-restarting"].as_slice(), &["run"]] {
            lab.vm(1).write_config("")?;
            lab.vm(1).start()?;
            eventually("interception is on", || {
                ensure!(lab.vm(1).shell("nft list tables")?.success()?.stdout.contains("inet meshd"));
                Ok(())
            })?;
            lab.vm(1).crash();
            lab.vm(1).write_config("[intercept]\nmoed = \"off\"\n")?;
            let config = lab.vm(1).folder().join("meshd.toml").display().to_string();
            let told = lab.vm(1).meshctl(&["doctor", "--config", &config])?.stdout;
            ensure!(told.contains("nobody listens where it redirects to"), "{told}");

            let ended = lab.vm(1).meshd(rescue)?;

            let code = if rescue == ["run"] { 78 } else { 0 };
            ensure!(ended.code == Some(code), "{rescue:?}: {ended:?}");
            ensure!(found(lab.vm(1))? == before, "{rescue:?} left {}", found(lab.vm(1))?);
        }
        Ok(())
    });
}

#[test]
fn a_reload_to_off_stops_intercepting_and_doctor_tells_of_a_table_that_is_left() {
    story("harmless::a_reload_to_off_stops_intercepting_and_doctor_tells_of_a_table_that_is_left", || {
        let mut lab = Lab::new(1)?;
        let before = found(lab.vm(1))?;
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).start()?;
        let table = lab.vm(1).shell("nft list table inet meshd")?.success()?.stdout;
        lab.vm(1).write_config("[intercept]\nmode = \"off\"\n")?;

        lab.vm(1).meshctl(&["reload"])?.success()?;

        eventually("nothing is intercepted any more", || {
            ensure!(found(lab.vm(1))? == before, "{}", found(lab.vm(1))?);
            Ok(())
        })?;
        lab.vm(1).meshctl(&["status"])?.success()?;
        std::fs::write(lab.vm(1).folder().join("table"), table)?;
        let again = format!("nft -f {}/table", lab.vm(1).folder().display());
        lab.vm(1).shell(&again)?.success()?;
        let told = lab.vm(1).meshctl(&["doctor"])?.stdout;
        ensure!(told.contains("the table inet meshd is there, and intercept.mode is off"), "{told}");
        Ok(())
    });
}

#[test]
fn what_is_not_the_meshs_is_reached_as_before() {
    story("harmless::what_is_not_the_meshs_is_reached_as_before", || {
        let mut lab = Lab::mesh(2)?;
        lab.vm(2).serve_at("other", "198.18.0.2:7000", "not in the mesh")?;
        lab.vm(2).serve_at("ssh", "198.18.0.2:22", "as if it were ssh")?;
        lab.vm(2).serve_at("six", "[fd00::2]:7006", "over IPv6")?;
        for (url, body) in [
            ("http://198.18.0.2:7000/", "not in the mesh\n"),
            ("http://198.18.0.2:22/", "as if it were ssh\n"),
            ("http://[fd00::2]:7006/", "over IPv6\n"),
        ] {
            let answer = lab.vm(1).curl(&[url])?;
            ensure!(answer.status == 200 && answer.body == body, "{url}: {answer:?}");
        }
        let closed = lab.vm(1).curl(&["http://198.18.0.2:7001/"])?;
        ensure!(closed.status != 200, "a closed port stays closed: {closed:?}");
        // Through meshd, not around it: it has counted what passed.
        let metrics = lab.vm(1).curl(&["http://127.0.0.1:15020/metrics"])?;
        ensure!(metrics.status == 200, "{metrics:?}");
        Ok(())
    });
}

#[test]
fn a_second_meshd_on_the_same_data_folder_is_refused() {
    story("harmless::a_second_meshd_on_the_same_data_folder_is_refused", || {
        let mut lab = Lab::mesh(1)?;
        let second = lab.vm(1).meshd(&["run"])?;
        let folder = lab.vm(1).folder().join("data").display().to_string();
        ensure!(second.code == Some(1) && second.stderr.contains(&folder), "{second:?}");
        lab.vm(1).meshctl(&["status"])?.success()?;
        ensure!(lab.vm(1).shell("nft list tables")?.success()?.stdout.contains("inet meshd"));
        Ok(())
    });
}

/// Everything meshd could have changed.
fn found(host: &Host) -> Result<String> {
    let line = "nft list ruleset; ip route show table all; ip -6 route show table all; ip rule; ip addr show dev lo; cat /etc/resolv.conf";
    Ok(host.shell(line)?.success()?.stdout)
}

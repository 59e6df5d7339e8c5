//! `meshctl doctor` on hosts with something wrong: real conflicts, and the remedy it names puts them right.

use anyhow::{Context, Result, ensure};
use mesh_lab::{Host, Lab, eventually, eventually_within, story};
use serde_json::Value;

use crate::reviews_on_two_hosts;

/// The findings of a host that are as grave as `least` or graver, and the exit code.
fn findings(host: &Host, least: &str) -> Result<(Vec<Value>, Option<i32>)> {
    let config = host.folder().join("meshd.toml").display().to_string();
    let ran = host.meshctl(&["doctor", "--config", &config, "-o", "json", "--fail-on", least])?;
    let json: Value = serde_json::from_str(&ran.stdout).with_context(|| format!("{ran:?}"))?;
    let checks = json["items"][0]["checks"].as_array().context("checks")?.clone();
    for check in &checks {
        let needs_nothing = matches!(check["grade"].as_str(), Some("good" | "skipped"));
        ensure!(needs_nothing || check["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "no fix: {check}");
    }
    Ok((checks, ran.code))
}

/// Whether a check of this name and grade says these words.
fn says(checks: &[Value], name: &str, grade: &str, words: &str) -> bool {
    checks.iter().any(|check| {
        check["name"] == name
            && check["grade"] == grade
            && check["what"].as_str().is_some_and(|what| what.contains(words))
    })
}

/// Looking takes a while on a busy machine.
const LIMIT: std::time::Duration = std::time::Duration::from_mins(1);

/// Waits until doctor says so.
fn until(host: &Host, name: &str, grade: &str, words: &str) -> Result<Value> {
    let mut found = Value::Null;
    eventually_within(LIMIT, &format!("doctor says {words:?}"), || {
        let (checks, _) = findings(host, "warning")?;
        ensure!(says(&checks, name, grade, words), "{}", serde_json::to_string_pretty(&checks)?);
        let fits = |check: &&Value| check["what"].as_str().is_some_and(|what| what.contains(words));
        found = checks.iter().find(fits).cloned().unwrap_or_default();
        Ok(())
    })?;
    Ok(found)
}

#[test]
fn a_well_host_needs_nobody_and_every_host_can_be_asked_from_one() {
    story("doctor::a_well_host_needs_nobody_and_every_host_can_be_asked_from_one", || {
        let mut lab = reviews_on_two_hosts()?;
        for name in [
            "firewall",
            "ports",
            "clock",
            "quorum",
            "revision",
            "certificates",
            "versions",
            "fsync",
            "capabilities",
        ] {
            until(lab.vm(1), name, "good", "")?;
        }
        // The resolver of the lab is a bridge where nobody answers: what answers is meshd.
        let names = until(lab.vm(1), "names", "good", "meshd answers")?;
        ensure!(names["what"].as_str().is_some_and(|what| what.contains("240.240.")), "{names}");
        let (checks, code) = findings(lab.vm(1), "error")?;
        ensure!(code == Some(0), "{checks:?}");

        let all = lab.vm(1).meshctl(&["doctor", "--all", "--fail-on", "error"])?;
        let heads: Vec<&str> = all.stdout.lines().filter(|line| line.starts_with("vm")).collect();
        ensure!(heads.len() == 3, "{all:?}");
        let other = lab.vm(1).meshctl(&["--host", "vm3", "doctor", "--fail-on", "error"])?;
        ensure!(other.stdout.starts_with("vm3: "), "{other:?}");
        let none = lab.vm(1).meshctl(&["--host", "vm9", "doctor"])?;
        ensure!(
            none.code == Some(1) && none.stderr.contains("no host \"vm9\" (it has vm1, vm2, vm3)"),
            "{none:?}"
        );

        lab.vm(3).crash();
        until(lab.vm(1), "hosts", "error", "vm3")?;
        Ok(())
    });
}

#[test]
fn a_host_without_meshd_is_told_who_holds_the_port_and_what_its_files_say() {
    story("doctor::a_host_without_meshd_is_told_who_holds_the_port_and_what_its_files_say", || {
        let mut lab = Lab::new(1)?;
        let (checks, code) = findings(lab.vm(1), "warning")?;
        ensure!(code == Some(1) && says(&checks, "meshd", "error", "does not run"), "{checks:?}");
        ensure!(says(&checks, "data folder", "info", "is not there"), "{checks:?}");

        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).serve("squatter", 15001, "mine")?;
        let taken = until(
            lab.vm(1),
            "ports",
            "error",
            "TCP 127.0.0.1:15001 (listen.outbound) is held by lab-service",
        )?;
        ensure!(taken["why"] == "meshd does not start", "{taken}");
        lab.vm(1).kill_service("squatter");
        until(lab.vm(1), "ports", "good", "free")?;

        lab.vm(1).write_config("[future]\nkey = 1\n")?;
        until(lab.vm(1), "configuration", "error", "future")?;
        lab.vm(1).write_config("")?;

        let state = lab.vm(1).folder().join("data/host.json");
        let known = std::fs::read_to_string(&state)?;
        std::fs::write(&state, known.replace("\"format\": 1", "\"format\": 99"))?;
        until(lab.vm(1), "state", "error", "written by a newer meshd (format 99")?;
        std::fs::write(&state, known)?;

        let config = lab.vm(1).folder().join("meshd.toml").display().to_string();
        let meshd = which_meshd()?;
        let line = format!(
            "setpriv --bounding-set=-net_admin --inh-caps=-net_admin -- {meshd} doctor --config {config}"
        );
        let bare = lab.vm(1).shell(&line)?.success()?;
        ensure!(bare.stdout.contains("CAP_NET_ADMIN is missing"), "{bare:?}");

        let data = lab.vm(1).folder().join("data").display().to_string();
        mesh_lab::mount_tmpfs(&data, "1m,ro")?;
        until(lab.vm(1), "disk", "error", "is mounted read-only")?;
        lab.vm(1).shell(&format!("umount {data}"))?.success()?;
        lab.vm(1).start()
    });
}

#[test]
fn a_host_without_nft_is_told_which_package_brings_it_and_intercepts_once_it_is_there() {
    story(
        "doctor::a_host_without_nft_is_told_which_package_brings_it_and_intercepts_once_it_is_there",
        || {
            let nft = mesh_lab::which("nft").context("nft")?;
            let folder = nft.parent().context("its folder")?.display().to_string();
            // The folder as it is, but for nft.
            let hide = format!(
                "mkdir /run/programs && mount --bind {folder} /run/programs && mount -t tmpfs tmpfs {folder} \
                 && ln -s /run/programs/* {folder}/ && rm {folder}/nft"
            );
            let mut lab = Lab::new(1)?;
            lab.vm(1).meshd(&["init"])?.success()?;
            lab.vm(1).shell(&hide)?.success()?;
            for running in [false, true] {
                if running {
                    lab.vm(1).start()?;
                }
                let told = until(lab.vm(1), "interception", "warning", "nft is not installed")?;
                ensure!(told["why"] == "traffic is not intercepted", "{told}");
                let fix = told["fix"].as_str().unwrap_or_default();
                ensure!(
                    fix.starts_with("install the package nftables, then: systemctl reload meshd"),
                    "{told}"
                );
            }
            lab.vm(1).write_config("[intercept]\nmode = \"on\"\n")?;
            lab.vm(1).stop()?;
            until(lab.vm(1), "interception", "error", "nft is not installed")?;
            lab.vm(1).write_config("")?;
            lab.vm(1).start()?;

            lab.vm(1).shell(&format!("ln -s /run/programs/nft {folder}/nft"))?.success()?;
            lab.vm(1).meshctl(&["reload"])?.success()?;

            until(lab.vm(1), "firewall", "good", "nobody drops")?;
            let (checks, _) = findings(lab.vm(1), "warning")?;
            ensure!(!says(&checks, "interception", "warning", ""), "{checks:?}");
            ensure!(lab.vm(1).shell("nft list tables")?.success()?.stdout.contains("table inet meshd"));
            Ok(())
        },
    );
}

#[test]
fn a_full_disk_is_told_with_and_without_meshd_and_so_is_room() {
    story("doctor::a_full_disk_is_told_with_and_without_meshd_and_so_is_room", || {
        let mut lab = Lab::new(1)?;
        let data = lab.vm(1).folder().join("data");
        std::fs::create_dir_all(&data)?;
        let data = data.display().to_string();
        mesh_lab::mount_tmpfs(&data, "128m,mode=700")?;
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).start()?;
        until(lab.vm(1), "disk", "good", "MiB are free")?;
        for running in [true, false] {
            if !running {
                lab.vm(1).stop()?;
            }
            // It ends because nothing is left.
            lab.vm(1).shell(&format!("dd if=/dev/zero of={data}/filler bs=64k"))?;

            let told = until(lab.vm(1), "disk", "error", &format!("0 MiB of 128 MiB are free at {data}"))?;
            ensure!(told["fix"].as_str().is_some_and(|fix| fix.starts_with("make room: du -xh")), "{told}");
            let told =
                until(lab.vm(1), "disk", "error", &format!("{data} cannot be written: No space left"))?;
            ensure!(told["fix"].as_str().is_some_and(|fix| fix.starts_with("make room: ")), "{told}");

            lab.vm(1).shell(&format!("rm {data}/filler"))?.success()?;
            until(lab.vm(1), "disk", "good", "MiB are free")?;
        }
        Ok(())
    });
}

fn which_meshd() -> Result<String> {
    Ok(mesh_lab::Binaries::build()?.meshd.display().to_string())
}

/// What ufw and firewalld amount to: what nobody has asked for is dropped, but for answers, loopback and ssh.
const WALL: &str = "nft -f - <<'END'
table inet wall {
  chain input {
    type filter hook input priority 10; policy drop;
    ct state established,related accept
    iifname \"lo\" accept
    meta l4proto icmpv6 accept
    tcp dport { 22, 80 } accept
  }
}
END";

#[test]
fn a_firewall_that_drops_the_mesh_port_is_named_and_its_remedy_works() {
    story("doctor::a_firewall_that_drops_the_mesh_port_is_named_and_its_remedy_works", || {
        let mut lab = Lab::mesh(2)?;
        until(lab.vm(1), "firewall", "good", "nobody drops")?;

        lab.vm(1).shell(WALL)?.success()?;

        let told = until(lab.vm(1), "firewall", "error", "TCP 15008 from other hosts is dropped")?;
        ensure!(
            told["what"]
                .as_str()
                .is_some_and(|what| what.contains("policy of chain input in table inet wall")),
            "{told}"
        );
        ensure!(!reaches(lab.vm(2))?, "the wall lets vm2 in after all");
        // Whoever is let in is told from whoever is not.
        lab.vm(1)
            .shell("nft add rule inet wall input ip saddr 198.18.0.9 tcp dport 15008 accept")?
            .success()?;
        until(lab.vm(1), "firewall", "info", "TCP 15008 is let in for some and dropped for others")?;
        ensure!(!reaches(lab.vm(2))?, "the wall lets vm2 in after all");

        lab.vm(1).shell("nft add rule inet wall input tcp dport 15008 accept")?.success()?;
        lab.vm(1).shell("nft add rule inet wall input udp dport 15008 accept")?.success()?;

        eventually("the mesh port is open again", || {
            let (checks, _) = findings(lab.vm(1), "warning")?;
            ensure!(
                !checks
                    .iter()
                    .any(|check| check["what"].as_str().is_some_and(|what| what.contains("TCP 15008"))),
                "{checks:?}"
            );
            Ok(())
        })?;
        ensure!(reaches(lab.vm(2))?, "the remedy does not let vm2 in");
        // A reload of theirs leaves ours alone.
        lab.vm(1).shell("nft delete table inet wall")?.success()?;
        lab.vm(1).shell(WALL)?.success()?;
        ensure!(lab.vm(1).shell("nft list tables")?.success()?.stdout.contains("table inet meshd"));

        lab.vm(1).shell("nft flush ruleset")?.success()?;
        let flushed = until(lab.vm(1), "firewall", "error", "the table inet meshd is not there")?;
        ensure!(
            flushed["fix"].as_str().is_some_and(|fix| fix.contains("systemctl reload meshd")),
            "{flushed}"
        );
        lab.vm(1).meshctl(&["reload"])?.success()?;
        until(lab.vm(1), "firewall", "good", "nobody drops")?;

        // One that is there at the start is in the log, for whoever reads only that.
        lab.vm(2).shell(WALL)?.success()?;
        lab.vm(2).stop()?;
        lab.vm(2).start()?;
        eventually("the log tells of the wall", || {
            let log = lab.vm(2).log();
            ensure!(log.contains("TCP 15008 from other hosts is dropped"), "{log}");
            Ok(())
        })
    });
}

/// Whether vm1's mesh port takes a new connection.
fn reaches(host: &Host) -> Result<bool> {
    Ok(host.shell("timeout 2 bash -c 'exec 3<>/dev/tcp/198.18.0.1/15008'")?.code == Some(0))
}

#[test]
fn iptables_rules_of_others_are_read_as_well() {
    story("doctor::iptables_rules_of_others_are_read_as_well", || {
        if !mesh_lab::has_programs(&["iptables-nft"])? {
            return Ok(());
        }
        let mut lab = Lab::mesh(1)?;
        // As ufw lays its chains out.
        let rules = "iptables-nft -N ufw-user-input && iptables-nft -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT \
                     && iptables-nft -A INPUT -i lo -j ACCEPT && iptables-nft -A INPUT -j ufw-user-input \
                     && iptables-nft -A ufw-user-input -p tcp --dport 22 -j ACCEPT && iptables-nft -P INPUT DROP";
        lab.vm(1).shell(rules)?.success()?;
        let told = until(lab.vm(1), "firewall", "error", "TCP 15008 from other hosts is dropped")?;
        ensure!(told["fix"] == "ufw allow 15008/tcp", "{told}");

        lab.vm(1).shell("iptables-nft -A ufw-user-input -p tcp --dport 15008 -j ACCEPT")?.success()?;

        eventually("the mesh port is open", || {
            let (checks, _) = findings(lab.vm(1), "warning")?;
            ensure!(!says(&checks, "firewall", "error", "TCP 15008"), "{checks:?}");
            Ok(())
        })
    });
}

#[test]
fn somebody_who_takes_our_traffic_first_is_named() {
    story("doctor::somebody_who_takes_our_traffic_first_is_named", || {
        let mut lab = reviews_on_two_hosts()?;
        let answer = lab.vm(1).curl(&["http://reviews:9080/"])?;
        ensure!(answer.status == 200, "{answer:?}");
        // Another mesh, and another resolver; both before us.
        lab.vm(1)
            .shell("nft -f - <<'END'\ntable ip other {\n chain output {\n  type nat hook output priority -150;\n  udp dport 53 redirect to :5353\n  tcp dport 9080 redirect to :12345\n }\n}\nEND")?
            .success()?;

        until(lab.vm(1), "firewall", "warning", "takes DNS questions of programs to :5353")?;
        let told = until(lab.vm(1), "firewall", "warning", "services of the mesh to :12345")?;
        ensure!(
            told["what"].as_str().is_some_and(|what| what.contains("tcp dport 9080 redirect to :12345")),
            "{told}"
        );
        until(lab.vm(1), "names", "warning", "got no answer")?;
        let lost = lab.vm(1).curl(&["--resolve", "reviews:9080:240.240.0.1", "http://reviews:9080/"])?;
        ensure!(lost.status == 0, "nobody took it: {lost:?}");

        lab.vm(1).shell("nft delete table ip other")?.success()?;
        until(lab.vm(1), "firewall", "good", "nobody drops")?;
        let answer = lab.vm(1).curl(&["http://reviews:9080/"])?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    });
}

#[test]
fn a_routing_rule_that_takes_our_mark_is_told_and_another_mark_is_the_remedy() {
    story("doctor::a_routing_rule_that_takes_our_mark_is_told_and_another_mark_is_the_remedy", || {
        let mut lab = reviews_on_two_hosts()?;
        // Somebody's VPN: a single bit, and a table that leads nowhere.
        lab.vm(1)
            .shell("ip rule add fwmark 0x1/0x1 table 7 && ip route add blackhole default table 7")?
            .success()?;
        let told =
            until(lab.vm(1), "marks", "warning", "\"fwmark 0x1/0x1 lookup 7\" matches meshd's mark 0x6d65")?;
        ensure!(told["fix"].as_str().is_some_and(|fix| fix.contains("intercept.mark")), "{told}");

        lab.vm(1).write_config("[intercept]\nmark = 0x6d64\n")?;
        until(lab.vm(1), "configuration", "info", "has changed since meshd began")?;
        lab.vm(1).meshctl(&["reload"])?.success()?;

        until(lab.vm(1), "marks", "good", "0x6d64")?;
        eventually("calls go past the other's table", || {
            let answer = lab.vm(1).curl(&["http://reviews:9080/"])?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        })
    });
}

#[test]
fn containers_on_a_bridge_reach_the_mesh_by_a_listener_there() {
    story("doctor::containers_on_a_bridge_reach_the_mesh_by_a_listener_there", || {
        let mut lab = reviews_on_two_hosts()?;
        let bridge = "ip link add docker0 type bridge && ip addr add 198.19.0.1/24 dev docker0 && ip link set docker0 up \
                      && ip netns add box && ip link add box0 type veth peer name eth0 netns box && ip link set box0 master docker0 up \
                      && ip -n box addr add 198.19.0.2/24 dev eth0 && ip -n box link set eth0 up && ip -n box route add default via 198.19.0.1 \
                      && sysctl -qw net.ipv4.ip_forward=1";
        lab.vm(1).shell(bridge)?.success()?;
        until(lab.vm(1), "containers", "info", "what hangs on docker0 is not intercepted")?;
        // What the container sends is forwarded; a virtual address is nobody's out there, and is dropped.
        let call = |arguments: &str| {
            format!("ip netns exec box curl -s -m 3 -o /dev/null -w '%{{http_code}}' {arguments}")
        };
        let plain = lab.vm(1).shell(&call("http://240.240.0.1:9080/"))?;
        ensure!(plain.stdout == "000", "{plain:?}");

        lab.vm(1).write_config("[[listener]]\naddress = \"198.19.0.1:9080\"\nservice_port = 9080\n")?;
        lab.vm(1).meshctl(&["reload"])?.success()?;

        eventually("the container reaches the mesh", || {
            let by_listener = lab.vm(1).shell(&call("-H 'host: reviews' http://198.19.0.1:9080/"))?;
            ensure!(by_listener.stdout == "200", "{by_listener:?}");
            Ok(())
        })
    });
}

#[test]
fn a_clock_an_hour_off_cannot_join_and_is_named_in_doctor_and_in_the_log() {
    story("doctor::a_clock_an_hour_off_cannot_join_and_is_named_in_doctor_and_in_the_log", || {
        if !mesh_lab::has_programs(&["faketime"])? {
            return Ok(());
        }
        let mut lab = Lab::new(2)?;
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).start()?;
        let token = lab.vm(1).meshctl(&["token", "create"])?.success()?.stdout;
        let library = lab.vm(2).shell("faketime '2020-01-01' sh -c 'echo $LD_PRELOAD'")?.success()?.stdout;
        // Only the wall clock: timers go by the other one.
        let hour_ahead = [
            ("LD_PRELOAD", library.trim()),
            ("FAKETIME", "+3600s"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
        ];
        lab.vm(2).give_meshd(&hour_ahead);
        let refused = lab.vm(2).join("198.18.0.1:15008", token.trim())?;
        ensure!(
            refused.code == Some(1) && refused.stderr.contains("the clock of this host is"),
            "{refused:?}"
        );
        ensure!(!lab.vm(2).folder().join("data/host.json").exists(), "it joined after all");
        lab.vm(2).give_meshd(&[]);
        lab.vm(2).join("198.18.0.1:15008", token.trim())?.success()?;
        lab.vm(2).give_meshd(&hour_ahead);
        lab.vm(2).start()?;

        until(lab.vm(1), "clock", "error", "s ahead of this host")?;
        until(lab.vm(2), "clock", "error", "s behind this host")?;
        eventually("the log of the one that was started tells of it", || {
            let log = lab.vm(2).log();
            ensure!(log.contains("s behind this host") && log.contains("timedatectl set-ntp true"), "{log}");
            Ok(())
        })
    });
}

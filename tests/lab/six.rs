//! Hosts that have no IPv4 at all.

use anyhow::ensure;
use mesh_lab::{Lab, eventually, eventually_within, story};

use crate::{canary, reviews};

#[test]
fn two_hosts_without_ipv4_are_a_mesh_over_tcp_and_over_quic() {
    story("six::two_hosts_without_ipv4_are_a_mesh_over_tcp_and_over_quic", || {
        let mut lab = Lab::new(2)?;
        // The resolver of every host in this story: an address where nobody answers, so that meshd must.
        std::fs::write("/run/resolv.conf", "nameserver fd00::fe\noptions timeout:1 attempts:1\n")?;
        for (number, transport) in [(1, "tcp"), (2, "quic")] {
            let host = lab.vm(number);
            host.shell(&format!(
                "ip addr del {}/24 dev eth0 && ip -6 route add default via fd00::fe",
                host.address
            ))?
            .success()?;
            host.write_config_at(
                &format!("fd00::{number}"),
                &format!("[proxy]\ntransport = \"{transport}\"\n"),
            )?;
        }
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).start()?;
        let token = lab.vm(1).meshctl(&["token", "create"])?.success()?.stdout;
        lab.vm(2).join("[fd00::1]:15008", token.trim())?.success()?;
        lab.vm(2).start()?;
        for (number, version) in [(1, "v1"), (2, "v2")] {
            lab.vm(number).serve("reviews", 9080, &format!("reviews {version}"))?;
            lab.vm(number).services_file("reviews.toml", &reviews(version))?;
        }
        // Each host asks for what only the other one has: vm1 over TCP, vm2 over QUIC.
        for (number, weights, wanted) in [(1, (0, 100), "v2"), (2, (100, 0), "v1")] {
            let rules = lab.file("rules.yaml", &canary(weights.0, weights.1))?.display().to_string();
            eventually_within(std::time::Duration::from_secs(20), "the rules are live on both", || {
                let applied = lab.vm(number).meshctl(&["apply", &rules])?.success()?;
                ensure!(applied.stdout.contains("live on 2 of 2 hosts"), "{}", applied.stdout);
                Ok(())
            })?;
            let capture = lab.folder().join(format!("{number}.frames"));
            let watcher = lab.vm(number).watch_wire(&capture)?;
            eventually("the other host's version answers", || {
                let answer = lab.vm(number).curl(&["http://reviews:9080/"])?;
                ensure!(answer.status == 200 && answer.body.contains(wanted), "vm{number}: {answer:?}");
                Ok(())
            })?;
            for _ in 0..20 {
                let answer = lab.vm(number).curl(&["http://reviews:9080/"])?;
                ensure!(answer.status == 200 && answer.body.contains(wanted), "vm{number}: {answer:?}");
            }
            watcher.stop()?;
            let bytes = std::fs::read(&capture)?;
            let seen = |needle: &str| bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
            ensure!(bytes.len() > 2_000 && !seen("reviews v"), "{} bytes, or plaintext", bytes.len());
        }
        let listening = lab.vm(1).shell("ss -Hlun sport = :15008")?.success()?.stdout;
        ensure!(listening.contains("[::]:15008"), "UDP over IPv6: {listening}");
        Ok(())
    });
}

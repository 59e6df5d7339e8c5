//! Services outside the mesh that DNS names: each address is an endpoint, and answers change.

use std::path::Path;

use anyhow::{Result, ensure};
use mesh_lab::{Lab, eventually, story};

use crate::binomial::plausible;

/// vm1 is a mesh of its own whose resolver is on vm2; vm2, vm3 and vm4 serve `api` without any meshd.
fn apart(zones: &Path, text: &str, resolution: &str) -> Result<Lab> {
    let mut lab = Lab::new(4)?;
    std::fs::write(zones, text)?;
    lab.vm(2).serve_names("198.18.0.2:53", zones)?;
    for number in 2..=4 {
        lab.vm(number).serve_at("api", &format!("198.18.0.{number}:8080"), &format!("api on vm{number}"))?;
    }
    lab.vm(1).write_config("[dns]\nupstreams = [\"198.18.0.2\"]")?;
    lab.vm(1).meshd(&["init"])?.success()?;
    lab.vm(1).start()?;
    let rules = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: api}}
spec:
  hosts: [api.example.com]
  ports: [{{number: 8080, name: http, protocol: HTTP}}]
  resolution: {resolution}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: api}}
spec:
  host: api.example.com
  trafficPolicy:
    loadBalancer: {{simple: RANDOM}}
    connectionPool: {{tcp: {{connectTimeout: 500ms}}, http: {{maxRequestsPerConnection: 1}}}}
    outlierDetection: {{consecutive5xxErrors: 2, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 100}}
"
    );
    let rules = lab.file("rules.yaml", &rules)?.display().to_string();
    lab.vm(1).meshctl(&["apply", &rules])?.success()?;
    Ok(lab)
}

/// Asks 200 times; returns how many answers each of vm2, vm3 and vm4 gave, and how many there were in all.
fn ask(lab: &mut Lab) -> Result<([u32; 3], u32)> {
    let line =
        "curl --silent --max-time 30 --write-out '%{http_code};' 'http://api.example.com:8080/?[1-200]' 2>&1";
    let output = lab.vm(1).shell(line)?.stdout;
    let of = |number: u32| u32::try_from(output.matches(&format!("api on vm{number}")).count());
    let failed = output.matches("503;").count();
    let counts = [of(2)?, of(3)?, of(4)?];
    Ok((counts, counts.iter().sum::<u32>() + u32::try_from(failed)?))
}

fn endpoints(lab: &mut Lab) -> Result<String> {
    Ok(lab.vm(1).meshctl(&["endpoints", "api.example.com"])?.success()?.stdout)
}

#[test]
fn each_address_of_a_name_is_an_endpoint_and_answers_change() {
    story("names::each_address_of_a_name_is_an_endpoint_and_answers_change", || {
        let folder = tempfile::tempdir()?;
        let zones = folder.path().join("zones");
        let mut lab = apart(&zones, "api.example.com 1 198.18.0.2 198.18.0.3\n", "DNS")?;
        eventually("both addresses are endpoints", || {
            let shown = endpoints(&mut lab)?;
            ensure!(shown.contains("198.18.0.2:8080") && shown.contains("198.18.0.3:8080"), "{shown}");
            Ok(())
        })?;
        let (counts, all) = ask(&mut lab)?;
        ensure!(all == 200 && counts[2] == 0 && plausible(counts[0], 200, 0.5), "{counts:?}");

        // One address is another.
        std::fs::write(&zones, "api.example.com 1 198.18.0.2 198.18.0.4\n")?;
        eventually("the new address is an endpoint, the old one is none", || {
            let shown = endpoints(&mut lab)?;
            ensure!(shown.contains("198.18.0.4:8080") && !shown.contains("198.18.0.3:8080"), "{shown}");
            Ok(())
        })?;
        let (counts, all) = ask(&mut lab)?;
        ensure!(all == 200 && counts[1] == 0 && plausible(counts[2], 200, 0.5), "{counts:?}");

        // What fails is one address, and rests alone.
        lab.vm(4).kill_service("api");
        let (counts, _) = ask(&mut lab)?;
        ensure!(
            counts[0] >= 196,
            "two failures at most before it is ejected, and those are tried again: {counts:?}"
        );
        let shown = endpoints(&mut lab)?;
        ensure!(shown.matches("ejected").count() == 1, "{shown}");

        // A resolver that fails, and one that is gone, leave the last good answer in force.
        std::fs::write(&zones, "fail")?;
        let (counts, all) = ask(&mut lab)?;
        ensure!(counts[0] == 200 && all == 200, "{counts:?}");
        lab.vm(2).kill_service("dns");
        eventually("the log tells of it", || {
            ensure!(lab.vm(1).log().contains("its last addresses stay in use"));
            Ok(())
        })?;
        let (counts, all) = ask(&mut lab)?;
        ensure!(counts[0] == 200 && all == 200, "{counts:?}");
        Ok(())
    });
}

#[test]
fn round_robin_of_dns_is_one_endpoint_at_the_address_of_now() {
    story("names::round_robin_of_dns_is_one_endpoint_at_the_address_of_now", || {
        let folder = tempfile::tempdir()?;
        let zones = folder.path().join("zones");
        let mut lab = apart(&zones, "api.example.com 1 198.18.0.3 198.18.0.2\n", "DNS_ROUND_ROBIN")?;
        let (counts, all) = ask(&mut lab)?;
        ensure!(counts == [0, 200, 0] && all == 200, "{counts:?}");
        std::fs::write(&zones, "api.example.com 1 198.18.0.4 198.18.0.2\n")?;
        // Connections that are open stay where they are; here each serves one request.
        eventually("connections go to the first address of now", || {
            let (counts, _) = ask(&mut lab)?;
            ensure!(counts == [0, 0, 200], "{counts:?}");
            Ok(())
        })
    });
}

#[test]
fn a_name_without_an_address_is_no_healthy_upstream() {
    story("names::a_name_without_an_address_is_no_healthy_upstream", || {
        let folder = tempfile::tempdir()?;
        let zones = folder.path().join("zones");
        let mut lab = apart(&zones, "other.example.com 1 198.18.0.2\n", "DNS")?;
        eventually("it is known to have none", || {
            let answer = lab.vm(1).curl(&["http://api.example.com:8080/"])?;
            ensure!(answer.status == 503 && answer.body == "no healthy upstream", "{answer:?}");
            Ok(())
        })?;
        std::fs::write(&zones, "api.example.com 1 198.18.0.3\n")?;
        eventually("and then one", || {
            let answer = lab.vm(1).curl(&["http://api.example.com:8080/"])?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        })
    });
}

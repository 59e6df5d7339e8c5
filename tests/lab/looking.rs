//! Looking into hosts from another one: what they run, what they log, who calls whom, and requests as they end.

use anyhow::{Context, Result, ensure};
use mesh_lab::{Host, eventually, story};
use serde_json::Value;

use crate::{canary, reviews_on_two_hosts};

fn json(host: &Host, arguments: &[&str]) -> Result<Value> {
    let ran = host.meshctl(arguments)?.success()?;
    serde_json::from_str(&ran.stdout).with_context(|| ran.stdout.clone())
}

#[test]
fn any_host_tells_what_another_one_runs() {
    story("looking::any_host_tells_what_another_one_runs", || {
        let mut lab = reviews_on_two_hosts()?;
        lab.vm(2).write_config("[proxy]\ndrain_seconds = 7\n")?;
        lab.vm(2).meshctl(&["reload"])?.success()?;
        let config = json(lab.vm(3), &["config", "vm2", "-o", "json"])?;
        let config = &config["items"][0];
        ensure!(config["host"] == "vm2" && config["version"] == env!("CARGO_PKG_VERSION"), "{config}");
        let given = config["keys"].as_array().context("keys")?;
        ensure!(
            given.iter().any(|key| key["key"] == "proxy.drain_seconds" && key["value"] == "7"),
            "{config}"
        );
        let sockets = config["listeners"].as_array().context("listeners")?;
        ensure!(
            sockets.iter().any(|one| one["address"] == "127.0.0.1:15001" && one["by"] == "listen.outbound"),
            "{config}"
        );

        let rules = lab.file("canary.yaml", &canary(90, 10))?.display().to_string();
        lab.vm(1).meshctl(&["apply", &rules])?.success()?;
        for command in ["routes", "clusters", "endpoints"] {
            let ran = lab.vm(3).meshctl(&["--host", "vm1", command, "reviews"])?.success()?;
            ensure!(ran.stdout.contains("reviews"), "{command}: {ran:?}");
        }
        // Two hosts that serve nothing else run the same.
        let plan = |host: &Host, of: &str| -> Result<Value> {
            Ok(json(host, &["config", of, "-o", "json"])?["items"][0]["plan"].clone())
        };
        ensure!(plan(lab.vm(3), "vm1")? == plan(lab.vm(1), "vm1")?);

        let refused = lab.vm(3).meshctl(&["--host", "vm2", "apply", &rules])?;
        ensure!(refused.code == Some(1) && refused.stderr.contains("leave out --host"), "{refused:?}");
        Ok(())
    });
}

#[test]
fn a_log_level_is_changed_elsewhere_and_falls_back_by_itself() {
    story("looking::a_log_level_is_changed_elsewhere_and_falls_back_by_itself", || {
        let mut lab = reviews_on_two_hosts()?;
        let level = |host: &Host, more: &[&str]| -> Result<String> {
            let arguments = [&["--host", "vm2", "logs", "level"][..], more].concat();
            Ok(host.meshctl(&arguments)?.success()?.stdout)
        };
        ensure!(level(lab.vm(1), &[])? == "vm2 logs info\n");
        let set = level(lab.vm(1), &["info,meshd=debug", "--for", "2s"])?;
        ensure!(set.contains("info,meshd=debug, for") && set.contains("then info"), "{set}");
        ensure!(lab.vm(2).log().contains("log level set"), "{}", lab.vm(2).log());
        eventually("it is as configured again", || {
            let now = level(lab.vm(1), &[])?;
            ensure!(now == "vm2 logs info\n", "{now}");
            Ok(())
        })?;
        // Another host sets it for an hour at most; nonsense is refused with what would do.
        let hour = level(lab.vm(1), &["debug"])?;
        ensure!(hour.contains("for 59m more") || hour.contains("for 60m more"), "{hour}");
        let odd = lab.vm(1).meshctl(&["--host", "vm2", "logs", "level", "meshd=lots"])?;
        ensure!(odd.code == Some(1) && odd.stderr.contains("is not error, warn, info"), "{odd:?}");
        ensure!(lab.vm(2).meshctl(&["logs", "level", "info"])?.success()?.stdout == "vm2 logs info\n");
        Ok(())
    });
}

#[test]
fn requests_are_seen_from_any_host_without_what_lets_somebody_in() {
    story("looking::requests_are_seen_from_any_host_without_what_lets_somebody_in", || {
        let mut lab = reviews_on_two_hosts()?;
        let said = lab.folder().join("tapped");
        let tap = |lab: &mut mesh_lab::Lab, more: &str| -> Result<String> {
            // vm1 calls while vm3 looks.
            let calls = lab.vm(1).keep("while :; do curl -s -m 2 -o /dev/null -H 'authorization: Bearer hush' -H 'end-user: jason' 'http://reviews:9080/a?token=hush&page=2'; curl -s -m 2 -o /dev/null -X POST http://reviews:9080/b; done")?;
            let line = format!("timeout 20 {} tap {more} > {}", lab.vm(3).meshctl_line(), said.display());
            let ran = lab.vm(3).shell(&line)?;
            calls.kill();
            ensure!(ran.code == Some(0), "{line}: {ran:?}");
            Ok(std::fs::read_to_string(&said)?)
        };
        let all = tap(&mut lab, "--show-headers --limit 6 --path /a -o json")?;
        ensure!(!all.contains("hush"), "{all}");
        let rows: Vec<Value> = all.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let items: Vec<&Value> =
            rows.iter().flat_map(|row| row["items"].as_array().into_iter().flatten()).collect();
        ensure!(items.len() == 6, "{all}");
        for item in &items {
            ensure!(
                item["host"] == "vm1" && item["status"] == 200 && item["path"] == "/a?token=[hidden]&page=2",
                "{item}"
            );
            ensure!(
                item["headers"]["authorization"] == "[hidden]" && item["headers"]["end-user"] == "jason",
                "{item}"
            );
            ensure!(
                item["cluster"].as_str().is_some_and(|cluster| cluster.contains("reviews.default.svc")),
                "{item}"
            );
        }
        let posts = tap(&mut lab, "--method POST --service reviews --status 2xx --limit 3")?;
        ensure!(posts.lines().count() == 3 && posts.lines().all(|line| line.contains("POST /b")), "{posts}");
        let jason = tap(&mut lab, "--header end-user=jason --limit 2")?;
        ensure!(jason.lines().all(|line| line.contains("GET /a")), "{jason}");
        let nothing = tap(&mut lab, "--service nobody --for 2s")?;
        ensure!(nothing.is_empty(), "{nothing}");

        let secrets = lab.vm(3).meshctl(&["--host", "vm1", "tap", "--show-secrets", "--limit", "1"])?;
        ensure!(secrets.code == Some(1) && secrets.stderr.contains("proxy.tap = \"all\""), "{secrets:?}");
        lab.vm(1).write_config("[proxy]\ntap = \"off\"\n")?;
        lab.vm(1).meshctl(&["reload"])?.success()?;
        eventually("vm1 shows nothing any more", || {
            let off = lab.vm(3).meshctl(&["--host", "vm1", "tap", "--for", "1s"])?;
            ensure!(off.code == Some(1) && off.stderr.contains("shows no requests"), "{off:?}");
            Ok(())
        })
    });
}

#[test]
fn rates_are_told_by_edge_service_and_host_and_drawn() {
    story("looking::rates_are_told_by_edge_service_and_host_and_drawn", || {
        let mut lab = reviews_on_two_hosts()?;
        let calls = lab.vm(1).keep("while :; do curl -s -m 2 -o /dev/null http://reviews:9080/; done")?;
        eventually("the calls are counted", || {
            for (by, name) in [("edge", "destination"), ("service", "destination"), ("host", "host")] {
                let top = json(lab.vm(3), &["top", "--once", "--by", by, "-o", "json"])?;
                let rows = top["items"].as_array().context("items")?;
                let wanted = if by == "host" { "vm1" } else { "reviews.default.svc.cluster.local" };
                let row =
                    rows.iter().find(|row| row[name] == wanted).with_context(|| format!("{by}: {top}"))?;
                ensure!(row["requests_per_second"].as_f64() > Some(1.0) && row["success"] == 1.0, "{row}");
            }
            Ok(())
        })?;
        let edges = json(lab.vm(2), &["graph", "-o", "json"])?;
        let edge =
            edges["items"].as_array().and_then(|all| all.iter().find(|edge| edge["to"] == "reviews.default"));
        let edge = edge.with_context(|| edges.to_string())?;
        ensure!(
            edge["from"] == "default/default"
                && edge["versions"].as_object().is_some_and(|each| each.len() == 2),
            "{edge}"
        );
        for (form, words) in [
            ("text", "→ reviews.default:9080"),
            ("dot", "\"default/default\" -> \"reviews.default\""),
            ("mermaid", "[\"reviews.default\"]"),
        ] {
            let drawn = lab.vm(2).meshctl(&["graph", "-o", form])?.success()?.stdout;
            ensure!(drawn.contains(words), "{form}: {drawn}");
        }
        calls.kill();
        Ok(())
    });
}

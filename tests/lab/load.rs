//! Load: rules that change under requests, and callers that want more than there is.
//!
//! In CI these run small. `MESH_LAB_FULL=1` runs them at full size: 1,000 applies in a row at 2,000 requests/s.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_lab::{Host, Lab, eventually, eventually_within, story};

use crate::{canary, reviews_on_two_hosts};

fn is_full() -> bool {
    std::env::var_os("MESH_LAB_FULL").is_some()
}

#[test]
fn no_request_is_lost_or_answered_twice_while_rules_change() {
    story("load::no_request_is_lost_or_answered_twice_while_rules_change", || {
        let (applies, rate) = if is_full() { (1_000, 2_000) } else { (60, 200) };
        let mut lab = reviews_on_two_hosts()?;
        // Without retries: each failure would be seen, and nothing is sent twice.
        let rules: Vec<_> = [(90, 10), (10, 90), (50, 50)]
            .into_iter()
            .enumerate()
            .map(|(index, (v1, v2))| {
                let text = canary(v1, v2)
                    .replace("  http:\n  - route:", "  http:\n  - retries: {attempts: 0}\n    route:");
                lab.file(&format!("rules-{index}.yaml"), &text)
            })
            .collect::<Result<_>>()?;
        let before = served(&mut lab)?;
        let (stop, said) = (lab.folder().join("stop"), lab.folder().join("steady.log"));
        let rate_text = rate.to_string();
        let to = ["steady", "reviews:9080", "reviews", &rate_text, stop.to_str().context("a path")?];
        let caller = lab.vm(1).keep_calling(&to, &said)?;
        let began = Instant::now();
        for number in 0..applies {
            let file = rules[number % rules.len()].display().to_string();
            let host = 1 + number % 3;
            let applied = lab.vm(host).meshctl(&["apply", &file])?.success()?;
            ensure!(applied.stdout.contains("live on 3 of 3 hosts"), "apply {number}: {}", applied.stdout);
        }
        let took = began.elapsed();
        std::fs::write(&stop, "")?;
        caller.wait()?;

        let said = std::fs::read_to_string(&said)?;
        let numbers: Vec<u64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let (sent, right, wrong) = (numbers[0], numbers[1], numbers[2]);
        println!("{applies} applies in {took:?} at {rate} requests/s: {said}");
        ensure!(wrong == 0 && right == sent, "{said}");
        ensure!(
            sent >= u64::try_from(took.as_millis())? * rate / 1_000 * 9 / 10,
            "the caller fell behind: {said}"
        );
        let after = served(&mut lab)?;
        ensure!(after - before == sent, "{sent} requests reached the services {} times", after - before);
        Ok(())
    });
}

/// How many requests both versions have answered. The asking itself is not counted.
fn served(lab: &mut Lab) -> Result<u64> {
    let mut sum = 0;
    for number in [2, 3] {
        let answer = lab.vm(number).curl(&["http://127.0.0.1:9080/served"])?;
        sum += answer.body.trim().parse::<u64>().with_context(|| format!("{answer:?}"))?;
    }
    // Each earlier look was one request to each.
    let looks = LOOKS.fetch_add(2, std::sync::atomic::Ordering::Relaxed);
    Ok(sum - looks)
}

static LOOKS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// One host with a service, whose listener on 127.0.0.1:9080 is meshd's.
fn one_host(more: &str, descriptors: Option<u32>) -> Result<Lab> {
    let mut lab = Lab::new(1)?;
    let listener =
        "[intercept]\nmode = \"off\"\n[[listener]]\naddress = \"127.0.0.1:9080\"\nservice_port = 9080\n";
    lab.vm(1).write_config(&format!("{more}\n{listener}"))?;
    if let Some(most) = descriptors {
        lab.vm(1).limit_descriptors(most);
    }
    lab.form_mesh()?;
    lab.vm(1).serve("reviews", 9081, "reviews")?;
    lab.vm(1).services_file("reviews.toml", &(crate::reviews("v1") + "target = \"127.0.0.1:9081\"\n"))?;
    eventually("the service answers", || answers(lab.vm(1)))?;
    Ok(lab)
}

fn answers(host: &Host) -> Result<()> {
    let answer = host.curl(&["--header", "host: reviews", "http://127.0.0.1:9080/"])?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(())
}

#[test]
fn short_of_descriptors_meshd_goes_on_and_recovers() {
    story("load::short_of_descriptors_meshd_goes_on_and_recovers", || {
        let mut lab = one_host("", Some(512))?;
        let (stop, said) = (lab.folder().join("stop"), lab.folder().join("crowd.log"));
        let crowd = ["crowd", "127.0.0.1:9080", "reviews", "2000", "0", stop.to_str().context("a path")?];
        let crowd = lab.vm(1).keep_calling(&crowd, &said)?;
        let vm1 = lab.vm(1);
        eventually("most were turned away", || {
            let metrics = vm1.curl(&["http://127.0.0.1:15020/metrics"])?;
            let refused = metric(&metrics.body, "meshd_refused_connections_total");
            ensure!(refused >= 1_000.0, "{refused}");
            Ok(())
        })?;

        // Held back: the admin port, the socket of meshctl and what they need.
        vm1.meshctl(&["status"])?.success()?;
        let before = cpu(vm1)?;
        std::thread::sleep(Duration::from_secs(2));
        let busy = (cpu(vm1)? - before) / 2.0;
        ensure!(busy <= 0.10, "meshd used {busy} of a core while it was full");
        std::fs::write(&stop, "")?;
        crowd.wait()?;
        eventually_within(Duration::from_secs(3), "it answers again", || answers(vm1))?;
        ensure!(vm1.running().runs());
        println!(
            "crowd: {}busy while full: {:.1} % of a core",
            std::fs::read_to_string(&said)?,
            busy * 100.0
        );
        Ok(())
    });
}

#[test]
fn short_of_memory_meshd_sheds_and_recovers() {
    story("load::short_of_memory_meshd_sheds_and_recovers", || {
        let (most, count) = (100_u64 << 20, if is_full() { "10000" } else { "3000" });
        let mut lab = one_host(&format!("[limits]\nmemory_bytes = {most}\n"), None)?;
        let (stop, said) = (lab.folder().join("stop"), lab.folder().join("crowd.log"));
        let crowd = ["crowd", "127.0.0.1:9080", "reviews", count, "262144", stop.to_str().context("a path")?];
        let crowd = lab.vm(1).keep_calling(&crowd, &said)?;
        let vm1 = lab.vm(1);
        eventually_within(Duration::from_secs(30), "it sheds", || {
            let metrics = vm1.curl(&["http://127.0.0.1:15020/metrics"])?.body;
            let refused = metric(&metrics, "meshd_refused_connections_total")
                + metric(&metrics, "meshd_shed_requests_total");
            ensure!(refused > 0.0, "{refused}");
            Ok(())
        })?;
        vm1.meshctl(&["status"])?.success()?;
        std::fs::write(&stop, "")?;
        crowd.wait()?;

        eventually_within(Duration::from_secs(5), "it answers again", || answers(vm1))?;
        let peak = status_kib(vm1, "VmHWM:")? * 1024;
        println!("crowd: {}peak memory: {} MiB", std::fs::read_to_string(&said)?, peak >> 20);
        // What comes between two looks, and what the binary takes where it is not optimised, counts too.
        ensure!(peak < 160 << 20, "{} MiB at most", peak >> 20);
        Ok(())
    });
}

fn metric(text: &str, name: &str) -> f64 {
    let values =
        text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum()
}

/// Seconds of CPU time that meshd has used.
fn cpu(host: &mut Host) -> Result<f64> {
    let stat = std::fs::read_to_string(process(host).join("stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u32 = fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
    Ok(f64::from(ticks) / 100.0)
}

fn status_kib(host: &mut Host, name: &str) -> Result<u64> {
    let status = std::fs::read_to_string(process(host).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("a line")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn process(host: &mut Host) -> std::path::PathBuf {
    Path::new("/proc").join(host.running().pid().as_raw_nonzero().to_string())
}

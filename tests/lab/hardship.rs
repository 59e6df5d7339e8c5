//! Instances that die, freeze, are cut off or grow slow under load: what callers see of it.
//!
//! The load is of idempotent requests, twelve callers at once for a few seconds. With retries no request fails; without
//! any, few do, and outlier detection decides how few.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_lab::{Lab, Load, eventually, load_result, story};
use rustix::process::Signal;

/// One host calls, three serve.
fn reviews_on_three_hosts() -> Result<Lab> {
    let mut lab = Lab::mesh(4)?;
    for number in 2..=4 {
        lab.vm(number).serve("reviews", 9080, &format!("reviews on vm{number}"))?;
        lab.vm(number).services_file("reviews.toml", &crate::reviews("v1"))?;
    }
    eventually("three instances are known on vm1, and may be asked", || {
        let list = lab.vm(1).meshctl(&["service", "list", "-o", "json"])?.success()?.stdout;
        let healthy = list.matches("\"health\": \"healthy\"").count();
        ensure!(healthy == 3, "{healthy} of 3: {list}");
        Ok(())
    })?;
    Ok(lab)
}

/// An instance that fails twice in a row rests for a minute, and two of three may.
fn rules(retries: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: reviews}}
spec:
  host: reviews
  trafficPolicy:
    connectionPool: {{tcp: {{connectTimeout: 500ms}}}}
    outlierDetection: {{consecutive5xxErrors: 2, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 70}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews}}
spec:
  hosts: [reviews]
  http:
  - route: [{{destination: {{host: reviews}}}}]
    {retries}
"
    )
}

const RETRIES: &str =
    "retries: {attempts: 4, perTryTimeout: 700ms, retryOn: \"5xx,reset,connect-failure,refused-stream\"}";
const NO_RETRIES: &str = "timeout: 2s\n    retries: {attempts: 0}";

/// What happens to vm3's instance.
type Blow = fn(&mut Lab) -> Result<()>;

#[expect(clippy::unnecessary_wraps, reason = "one blow among others")]
fn kill(lab: &mut Lab) -> Result<()> {
    lab.vm(3).kill_service("reviews");
    Ok(())
}

fn freeze(lab: &mut Lab) -> Result<()> {
    lab.vm(3).signal_service("reviews", Signal::STOP)
}

/// Nothing leaves the host any more, and nothing reaches it.
fn cut_off(lab: &mut Lab) -> Result<()> {
    let cut = "nft add table inet cut && nft 'add chain inet cut i { type filter hook input priority -300; iif != lo drop; }' && \
               nft 'add chain inet cut o { type filter hook output priority -300; oif != lo drop; }'";
    lab.vm(3).shell(cut)?.success().map(drop)
}

/// Every answer takes longer than one try may.
fn slow_down(lab: &mut Lab) -> Result<()> {
    lab.vm(3).kill_service("reviews");
    lab.vm(3).serve_slowly("reviews", 9080, 3_000, "late")
}

/// Puts a load on `reviews`, strikes in the middle of it, and returns what came of it.
fn under_load(retries: &str, blow: Blow) -> Result<Load> {
    let mut lab = reviews_on_three_hosts()?;
    let rules = lab.file("rules.yaml", &rules(retries))?.display().to_string();
    lab.vm(1).meshctl(&["apply", &rules])?.success()?;
    let warm = load_result(lab.vm(1).load("reviews:9080", 12, 1)?)?;
    ensure!(warm.failed == 0, "before anything happened: {warm:?}");
    let load = lab.vm(1).load("reviews:9080", 12, 6)?;
    // The load has begun once requests are in flight.
    eventually("requests are in flight", || {
        let endpoints = lab.vm(1).meshctl(&["endpoints", "reviews", "-o", "json"])?.success()?.stdout;
        let asked: u64 = endpoints
            .lines()
            .filter_map(|line| {
                line.trim().strip_prefix("\"requests\": ")?.trim_end_matches(',').parse::<u64>().ok()
            })
            .sum();
        ensure!(asked > u64::from(warm.requests) + 100, "{asked} requests");
        Ok(())
    })?;
    blow(&mut lab)?;
    let result = load_result(load)?;
    tell(&result);
    Ok(result)
}

/// Shows the figures of a run to who runs it.
#[expect(clippy::print_stdout, reason = "figures for people")]
fn tell(result: &Load) {
    println!("{result:?}");
}

/// Likewise, of one among several.
#[expect(clippy::print_stdout, reason = "figures for people")]
fn tell_of(run: &str, result: &Load) {
    println!("{run}: {result:?}");
}

#[test]
fn with_retries_no_request_fails_when_an_instance_is_killed() {
    story("hardship::with_retries_no_request_fails_when_an_instance_is_killed", || none_fails(kill));
}

#[test]
fn with_retries_no_request_fails_when_an_instance_freezes() {
    story("hardship::with_retries_no_request_fails_when_an_instance_freezes", || none_fails(freeze));
}

#[test]
fn with_retries_no_request_fails_when_a_host_is_cut_off() {
    story("hardship::with_retries_no_request_fails_when_a_host_is_cut_off", || none_fails(cut_off));
}

#[test]
fn with_retries_no_request_fails_when_an_instance_grows_slow() {
    story("hardship::with_retries_no_request_fails_when_an_instance_grows_slow", || none_fails(slow_down));
}

fn none_fails(blow: Blow) -> Result<()> {
    let load = under_load(RETRIES, blow)?;
    ensure!(load.failed == 0 && load.requests > 1_000, "{load:?}");
    Ok(())
}

#[test]
fn without_retries_few_requests_fail_when_an_instance_is_killed() {
    story("hardship::without_retries_few_requests_fail_when_an_instance_is_killed", || few_fail(kill));
}

#[test]
fn without_retries_few_requests_fail_when_an_instance_freezes() {
    story("hardship::without_retries_few_requests_fail_when_an_instance_freezes", || few_fail(freeze));
}

/// Who is on the way to the instance when it falls may fail, once for each caller and worker at most, and the two that
/// it takes to eject it: of thousands of requests not one in fifty.
fn few_fail(blow: Blow) -> Result<()> {
    let load = under_load(NO_RETRIES, blow)?;
    ensure!(load.failed <= 12 * 2 + 2, "{load:?}");
    ensure!(load.failed * 50 <= load.requests, "{load:?}");
    Ok(())
}

/// Twelve instances on three hosts, of which one answers one request at a time, each in 100 ms. 300 requests a second are more
/// than its twelfth: under round robin a queue grows before it for as long as the load lasts, while least request leaves
/// it alone unless it was drawn twice (1 in 144) or has nothing to do.
#[test]
fn least_request_beats_round_robin_when_one_instance_is_slow() {
    story("hardship::least_request_beats_round_robin_when_one_instance_is_slow", || {
        let mut lab = Lab::mesh(4)?;
        for number in 2..=4 {
            let mut file = String::new();
            for port in 9080..9084 {
                let name = format!("reviews-{port}");
                if (number, port) == (4, 9083) {
                    lab.vm(number).serve_slowly(&name, port, 100, "slow")?;
                } else {
                    lab.vm(number).serve(&name, port, "fast")?;
                }
                let _ = write!(
                    file,
                    "[[service]]\nid = \"{name}\"\nname = \"reviews\"\naccount = \"reviews\"\n[[service.port]]\n\
                     number = 9080\nprotocol = \"http\"\ntarget = \"127.0.0.1:{port}\"\n"
                );
            }
            lab.vm(number).services_file("reviews.toml", &file)?;
        }
        eventually("twelve instances are known on vm1", || {
            let list = lab.vm(1).meshctl(&["service", "list", "-o", "json"])?.success()?.stdout;
            let healthy = list.matches("\"health\": \"healthy\"").count();
            ensure!(healthy == 12, "{healthy} of 12: {list}");
            Ok(())
        })?;
        let mut p99 = |simple: &str| -> Result<Duration> {
            let rule = format!(
                "{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: reviews}}, \
                 spec: {{host: reviews, trafficPolicy: {{loadBalancer: {{simple: {simple}}}}}}}}}"
            );
            let rule = lab.file("rule.yaml", &rule)?.display().to_string();
            lab.vm(1).meshctl(&["apply", &rule])?.success()?;
            let load = load_result(lab.vm(1).steady_load("reviews:9080", 300, 5)?)?;
            ensure!(load.failed == 0, "{simple}: {load:?}");
            tell_of(simple, &load);
            Ok(Duration::from_micros(load.p99_us))
        };
        let (least, turns) = (p99("LEAST_REQUEST")?, p99("ROUND_ROBIN")?);
        ensure!(least * 3 < turns, "p99: least request {least:?}, round robin {turns:?}");
        Ok(())
    });
}

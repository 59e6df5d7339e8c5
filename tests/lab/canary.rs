//! The main job: a share of live traffic goes to the new version, by rules at the source, with unmodified clients.

use anyhow::{Result, ensure};
use mesh_lab::{Lab, eventually, story};

use crate::binomial::plausible;
use crate::{canary, reviews_on_two_hosts};

/// Requests for one look at a share. One `curl` makes them all, each on its own connection as the rule may differ.
const TRIES: u32 = 1_000;

#[test]
fn ten_percent_of_unmodified_curl_go_to_v2() {
    story("canary::ten_percent_of_unmodified_curl_go_to_v2", || {
        let mut lab = reviews_on_two_hosts()?;
        let rules = lab.file("canary.yaml", &canary(90, 10))?;
        let applied = lab.vm(1).meshctl(&["apply", &rules.display().to_string()])?.success()?;
        ensure!(applied.stdout.contains("live on 3 of 3 hosts"), "{}", applied.stdout);

        let v2 = hits_on_v2(&mut lab, "http://reviews:9080/")?;
        ensure!(plausible(v2, TRIES, 0.1), "{v2} of {TRIES} on v2");

        let half = lab.file("half.yaml", &canary(50, 50))?;
        lab.vm(3).meshctl(&["apply", &half.display().to_string()])?.success()?;
        let v2 = hits_on_v2(&mut lab, "http://reviews.default.svc.cluster.local:9080/")?;
        ensure!(plausible(v2, TRIES, 0.5), "{v2} of {TRIES} on v2 after the shift");
        Ok(())
    });
}

#[test]
fn history_and_rollback_bring_the_former_weights_back() {
    story("canary::history_and_rollback_bring_the_former_weights_back", || {
        let mut lab = reviews_on_two_hosts()?;
        let all_v1 = lab.file("v1.yaml", &canary(100, 0))?;
        let all_v2 = lab.file("v2.yaml", &canary(0, 100))?;
        let first = lab.vm(1).meshctl(&["apply", &all_v1.display().to_string()])?.success()?.stdout;
        lab.vm(1).meshctl(&["apply", &all_v2.display().to_string()])?.success()?;
        ensure!(lab.vm(1).curl(&["http://reviews:9080/"])?.body.contains("v2"));

        let revision = first.split("revision ").nth(1).and_then(|rest| rest.split(' ').next());
        let revision = revision.expect("apply prints its revision").to_owned();
        lab.vm(2).meshctl(&["rollback", &revision])?.success()?;

        ensure!(lab.vm(1).curl(&["http://reviews:9080/"])?.body.contains("v1"));
        let history = lab.vm(1).meshctl(&["history"])?.success()?.stdout;
        ensure!(history.contains("rollback to revision"), "{history}");
        Ok(())
    });
}

#[test]
fn a_rule_by_header_is_enforced_at_the_source() {
    story("canary::a_rule_by_header_is_enforced_at_the_source", || {
        let mut lab = reviews_on_two_hosts()?;
        let text = canary(100, 0).replace(
            "  http:\n",
            "  http:\n  - match: [{headers: {end-user: {exact: jason}}}]\n    route:\n    - destination: {host: reviews, subset: v2}\n",
        );
        let rules = lab.file("jason.yaml", &text)?;
        lab.vm(2).meshctl(&["apply", &rules.display().to_string()])?.success()?;
        let others = lab.vm(1).curl(&["http://reviews:9080/"])?;
        let jason = lab.vm(1).curl(&["--header", "end-user: jason", "http://reviews:9080/"])?;
        ensure!(others.body.contains("v1") && jason.body.contains("v2"), "{others:?} {jason:?}");
        Ok(())
    });
}

#[test]
fn a_retry_goes_around_a_killed_instance_and_no_request_fails() {
    story("canary::a_retry_goes_around_a_killed_instance_and_no_request_fails", || {
        let mut lab = reviews_on_two_hosts()?;
        let warm = lab.vm(1).curl(&["http://reviews:9080/"])?;
        ensure!(warm.status == 200, "{warm:?}");
        let rules = lab.file("retry.yaml", crate::RETRY)?;
        lab.vm(1).meshctl(&["apply", &rules.display().to_string()])?.success()?;
        lab.vm(3).kill_service("reviews");
        let answers = many(&mut lab, "http://reviews:9080/", 200)?;
        let failed = answers.iter().filter(|answer| !answer.ends_with("200")).count();
        ensure!(failed == 0, "{failed} of 200 requests failed: {answers:?}");
        Ok(())
    });
}

#[test]
fn an_instance_whose_check_fails_leaves_balancing_everywhere() {
    story("canary::an_instance_whose_check_fails_leaves_balancing_everywhere", || {
        let mut lab = reviews_on_two_hosts()?;
        let checked = crate::reviews("v2") + "[service.check]\nhttp = \"/\"\ninterval = \"200ms\"\n";
        lab.vm(3).services_file("reviews.toml", &checked)?;
        eventually("vm1 sees v2", || {
            ensure!(many(&mut lab, "http://reviews:9080/", 20)?.iter().any(|answer| answer.contains("v2")));
            Ok(())
        })?;
        lab.vm(3).kill_service("reviews");
        eventually("vm1 stops preferring v2", || {
            let endpoints = lab.vm(1).meshctl(&["endpoints", "reviews"])?.success()?.stdout;
            ensure!(endpoints.contains("unhealthy"), "{endpoints}");
            Ok(())
        })?;
        let answers = many(&mut lab, "http://reviews:9080/", 50)?;
        ensure!(answers.iter().all(|answer| answer.contains("v1")), "{answers:?}");
        Ok(())
    });
}

/// Asks [`TRIES`] times from vm1 and counts the answers of v2; every answer must be a 200.
fn hits_on_v2(lab: &mut Lab, url: &str) -> Result<u32> {
    let answers = many(lab, url, TRIES)?;
    ensure!(answers.len() == TRIES as usize, "{} answers", answers.len());
    let failed: Vec<_> = answers.iter().filter(|answer| !answer.ends_with("200")).collect();
    ensure!(failed.is_empty(), "{} failed: {:?}", failed.len(), failed.first());
    Ok(u32::try_from(answers.iter().filter(|answer| answer.contains("v2")).count())?)
}

/// Asks `count` times with one curl; each answer is its body and its status on one line.
fn many(lab: &mut Lab, url: &str, count: u32) -> Result<Vec<String>> {
    let line = format!(
        "curl --silent --show-error --max-time 60 --write-out ' %{{http_code}};' '{url}?[1-{count}]' 2>&1"
    );
    let output = lab.vm(1).shell(&line)?;
    Ok(output.stdout.split_terminator(';').map(|answer| answer.trim().replace('\n', " ")).collect())
}

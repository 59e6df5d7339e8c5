//! Whether an explanation is what a case expects: one line for each thing that is not.

use std::collections::BTreeMap;

use mesh_proto::explain::{Destination, End, Explanation};
use mesh_proto::value::Duration;

use super::cases::Then;
use crate::cmd::explain::page::share;

/// Shares are compared to a hundredth of a percent.
const NEAR: f64 = 0.01;

/// Compares; returns what is not as expected.
pub(super) fn compare(then: &Then, told: &Explanation) -> Vec<String> {
    let mut failures = Vec::new();
    shares(then, told, &mut failures);
    answers(then, told, &mut failures);
    sent(then, told, &mut failures);
    settings(then, told, &mut failures);
    failures
}

fn shares(then: &Then, told: &Explanation, failures: &mut Vec<String>) {
    let Some(wanted) = &then.to else { return };
    let reached: Vec<&Destination> = told.destinations.iter().filter(|to| to.share > 0).collect();
    let expected =
        || wanted.iter().map(|(name, share)| format!("{name} {share} %")).collect::<Vec<_>>().join(", ");
    if told.outcome.kind != End::Forward {
        failures.push(format!("to {} expected, but it is {}", expected(), told.outcome.words));
        return;
    }
    let mut left: BTreeMap<&str, f64> = wanted.iter().map(|(name, share)| (name.as_str(), *share)).collect();
    let mut stray = false;
    for to in &reached {
        match names(to).iter().find(|name| left.contains_key(name.as_str())) {
            Some(name) => {
                let key = wanted.get_key_value(name).map_or("", |(name, _)| name);
                *left.entry(key).or_default() -= f64::from(to.share) / 10_000.0;
            }
            None => stray = true,
        }
    }
    if stray || left.values().any(|rest| rest.abs() > NEAR) {
        let is: Vec<String> = reached.iter().map(|to| format!("{} {}", short(to), share(to.share))).collect();
        failures.push(format!("to {} expected, but it is {}", expected(), is.join(", ")));
    }
    for to in reached.iter().filter(|to| !to.trouble.is_empty() && then.status.is_none()) {
        failures.push(format!("{} is chosen, but {}", short(to), to.trouble));
    }
}

/// The names by which a case may mean a destination.
fn names(to: &Destination) -> Vec<String> {
    let first = to.host.split('.').next().unwrap_or(&to.host);
    let hosts = [first, to.host.as_str(), to.host.split(".svc.").next().unwrap_or(&to.host)];
    let mut names = vec![to.subset.clone()];
    for host in hosts {
        names.extend([host.to_owned(), format!("{host}:{}", to.port), format!("{host}/{}", to.subset)]);
    }
    names.retain(|name| !name.is_empty());
    names
}

fn short(to: &Destination) -> String {
    let first = to.host.split('.').next().unwrap_or(&to.host);
    if to.subset.is_empty() { format!("{first}:{}", to.port) } else { format!("{first}/{}", to.subset) }
}

fn answers(then: &Then, told: &Explanation, failures: &mut Vec<String>) {
    if let Some(wanted) = then.status {
        match told.outcome.status {
            Some(status) if status == wanted => {}
            Some(status) => {
                failures
                    .push(format!("status {wanted} expected, but it is {status}: {}", told.outcome.words));
            }
            None => failures.push(format!(
                "status {wanted} expected, but the mesh does not answer by itself: {}",
                told.outcome.words
            )),
        }
    }
    let texts =
        [("location", &then.location, &told.outcome.location), ("body", &then.body, &told.outcome.body)];
    for (what, wanted, is) in texts {
        if wanted.is_some() && wanted != is {
            failures.push(format!(
                "{what} {} expected, but it is {}",
                quoted(wanted.as_ref()),
                quoted(is.as_ref())
            ));
        }
    }
}

fn sent(then: &Then, told: &Explanation, failures: &mut Vec<String>) {
    let wants = then.path.is_some()
        || then.host.is_some()
        || then.headers.is_some()
        || then.without_headers.is_some();
    if !wants {
        return;
    }
    let reached: Vec<&Destination> = told.destinations.iter().filter(|to| to.share > 0).collect();
    if reached.is_empty() {
        failures.push(format!("it is not sent on: {}", told.outcome.words));
    }
    for to in reached {
        let whom = short(to);
        for (what, wanted, is) in
            [("path", &then.path, &to.sends.target), ("host", &then.host, &to.sends.authority)]
        {
            if let Some(wanted) = wanted.as_ref().filter(|wanted| *wanted != is) {
                failures.push(format!("{what} {wanted:?} expected at {whom}, but it is {is:?}"));
            }
        }
        for (name, value) in then.headers.iter().flatten() {
            let mut set = to.sends.set.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
            if !set.clone().any(|(_, is)| is == value) {
                let is = set.next().map(|(_, is)| is);
                failures.push(format!(
                    "header {name}: {value:?} expected at {whom}, but rules set {}",
                    quoted(is)
                ));
            }
        }
        for name in then.without_headers.iter().flatten() {
            if !to.sends.removed.iter().any(|other| other.eq_ignore_ascii_case(name)) {
                failures.push(format!("header {name} is not removed for {whom}"));
            }
        }
    }
}

fn settings(then: &Then, told: &Explanation, failures: &mut Vec<String>) {
    let value = |what: &str| {
        told.settings.iter().find(|setting| setting.what == what).map(|setting| setting.value.as_str())
    };
    if let Some(wanted) = &then.timeout {
        let is = value("timeout").unwrap_or("none");
        if plain_time(wanted) != plain_time(is) {
            failures.push(format!("timeout {wanted} expected, but it is {is}"));
        }
    }
    if let Some(wanted) = then.retries {
        let is = value("retries").unwrap_or("no retries");
        let number = is.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0);
        if wanted != number {
            failures.push(format!("{wanted} retries expected, but it is: {is}"));
        }
    }
    let fault = told.fault.clone().unwrap_or_default();
    if let Some(wanted) = &then.abort {
        let is: Vec<(String, u32)> =
            fault.status.iter().map(|status| (status.to_string(), fault.aborted)).collect();
        let wanted: Vec<(String, f64)> =
            wanted.iter().map(|(status, share)| (status.to_string(), *share)).collect();
        parts("abort", &wanted, &is, failures);
    }
    if let Some(wanted) = &then.delay {
        let is: Vec<(String, u32)> =
            fault.delay_ms.iter().map(|delay| (plain_time(&format!("{delay}ms")), fault.delayed)).collect();
        let wanted: Vec<(String, f64)> =
            wanted.iter().map(|(time, share)| (plain_time(time), *share)).collect();
        parts("delay", &wanted, &is, failures);
    }
    if let Some(wanted) = &then.mirror {
        let name = |to: &str| {
            wanted.keys().find(|name| mirror_is(to, name)).cloned().unwrap_or_else(|| to.to_owned())
        };
        let is: Vec<(String, u32)> =
            told.mirrors.iter().map(|mirror| (name(&mirror.to), mirror.share)).collect();
        let wanted: Vec<(String, f64)> = wanted.iter().map(|(name, share)| (name.clone(), *share)).collect();
        parts("mirror", &wanted, &is, failures);
    }
    if let Some(wanted) = &then.rule {
        let rule = told.rule.clone().unwrap_or_default();
        let full = format!("{} {}", rule.object.split_once(' ').map_or("", |(_, name)| name), rule.path);
        if ![&rule.name, &rule.path, &full].contains(&wanted) {
            failures.push(format!("rule {wanted:?} expected, but it is {}", super::rule(told)));
        }
    }
}

/// Whether a copy that goes to `host:port subset` is what a case calls `name`.
fn mirror_is(to: &str, name: &str) -> bool {
    let (at, subset) = to.split_once(' ').unwrap_or((to, ""));
    let host = at.rsplit_once(':').map_or(at, |(host, _)| host);
    let first = host.split('.').next().unwrap_or(host);
    name == subset && !subset.is_empty()
        || [first, host].contains(&name)
        || *name == format!("{first}/{subset}")
}

fn parts(what: &str, wanted: &[(String, f64)], is: &[(String, u32)], failures: &mut Vec<String>) {
    let same = wanted.len() == is.len()
        && wanted.iter().all(|(name, percent)| {
            is.iter()
                .any(|(other, share)| other == name && (f64::from(*share) / 10_000.0 - percent).abs() < NEAR)
        });
    if !same {
        let wanted: Vec<String> =
            wanted.iter().map(|(name, percent)| format!("{name} {percent} %")).collect();
        let is: Vec<String> = is.iter().map(|(name, parts)| format!("{name} {}", share(*parts))).collect();
        let none = |list: Vec<String>| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
        failures.push(format!("{what} {} expected, but it is {}", none(wanted), none(is)));
    }
}

/// `2s`, `2000ms` and `2.0s` are one time.
fn plain_time(text: &str) -> String {
    text.parse::<Duration>().map_or_else(|_| text.to_owned(), |time| format!("{:?}", time.get()))
}

fn quoted(text: Option<&String>) -> String {
    text.map_or_else(|| "none".into(), |text| format!("{text:?}"))
}

#[cfg(test)]
mod tests {
    use mesh_proto::explain::Outcome;

    use super::*;

    fn told(shares: &[(&str, u32)]) -> Explanation {
        let to = |(subset, share): &(&str, u32)| Destination {
            host: "reviews.default.svc.cluster.local".into(),
            port: 9080,
            subset: (*subset).into(),
            share: *share,
            ..Destination::default()
        };
        Explanation {
            destinations: shares.iter().map(to).collect(),
            outcome: Outcome { kind: End::Forward, ..Outcome::default() },
            ..Explanation::default()
        }
    }

    fn expect(shares: &[(&str, f64)]) -> Then {
        let to = shares.iter().map(|(name, share)| ((*name).to_owned(), *share)).collect();
        Then { to: Some(to), ..Then::default() }
    }

    #[test]
    fn shares_are_compared_by_subset_or_host_and_must_be_whole() {
        let told = told(&[("v1", 900_000), ("v2", 100_000)]);

        assert!(compare(&expect(&[("v1", 90.0), ("v2", 10.0)]), &told).is_empty());
        assert!(compare(&expect(&[("reviews", 100.0)]), &told).is_empty());
        assert_eq!(
            compare(&expect(&[("v1", 90.0)]), &told),
            ["to v1 90 % expected, but it is reviews/v1 90 %, reviews/v2 10 %"]
        );
        assert_eq!(compare(&expect(&[("v1", 80.0), ("v2", 20.0)]), &told).len(), 1);
    }

    #[test]
    fn a_status_that_only_the_application_can_give_is_no_match() {
        let then = Then { status: Some(200), ..Then::default() };

        assert!(
            compare(&then, &told(&[("v1", 1_000_000)]))[0].contains("the mesh does not answer by itself")
        );
    }
}

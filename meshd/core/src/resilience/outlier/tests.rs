//! Ejection, against Envoy's rules.

use std::sync::Barrier;
use std::thread;

use super::*;
use crate::balance::chance::SeededRng;
use crate::balance::fixture::{cluster, eject, endpoints, outlier};
use crate::balance::{Hint, pick};
use crate::plan::Balancer;

fn watched(count: u8, policy: OutlierPolicy) -> Cluster {
    let mut cluster = cluster(endpoints(count), Balancer::LeastRequest);
    cluster.outlier = Some(policy.into());
    // The first sweep only starts the clock.
    sweep(&cluster, Moment(1));
    cluster
}

fn record_all(cluster: &Cluster, position: usize, answers: &[u16], now: Moment) -> Option<Ejection> {
    let endpoint = &cluster.endpoints.all[position];
    answers.iter().fold(None, |last, status| record(cluster, endpoint, Answer::Status(*status), now).or(last))
}

fn is_ejected(cluster: &Cluster, position: usize) -> bool {
    cluster.endpoints.all[position].state.is_ejected()
}

#[test]
fn failures_in_a_row_eject() {
    use Cause::{Consecutive5xx, ConsecutiveGateway};
    // consecutive5xxErrors, consecutiveGatewayErrors, answers, who ejects.
    let cases: [(u32, u32, &[u16], Option<Cause>); 13] = [
        (3, 0, &[500, 500, 500], Some(Consecutive5xx)),
        (3, 0, &[500, 500], None),
        (3, 0, &[500, 500, 200, 500, 500], None),
        (3, 0, &[500, 500, 404, 500, 500], None),
        (3, 0, &[500, 502, 599], Some(Consecutive5xx)),
        (0, 0, &[500; 50], None),
        (0, 3, &[502, 503, 504], Some(ConsecutiveGateway)),
        (0, 3, &[502, 500, 503, 504], None),
        (0, 3, &[500; 50], None),
        (0, 3, &[503, 503, 200, 503], None),
        (5, 3, &[503, 503, 503], Some(ConsecutiveGateway)),
        (3, 5, &[503, 503, 503], Some(Consecutive5xx)),
        (3, 3, &[503, 503, 503], Some(ConsecutiveGateway)),
    ];
    for (consecutive_5xx, consecutive_gateway, answers, expected) in cases {
        let cluster = watched(2, OutlierPolicy { consecutive_5xx, consecutive_gateway, ..outlier() });
        let ejection = record_all(&cluster, 0, answers, Moment(100));
        assert_eq!(
            ejection.map(|ejection| ejection.cause),
            expected,
            "{consecutive_5xx} {consecutive_gateway} {answers:?}"
        );
        assert_eq!(is_ejected(&cluster, 0), expected.is_some());
        assert!(!is_ejected(&cluster, 1));
    }
}

#[test]
fn failed_connections_and_timeouts_count_as_gateway_errors() {
    for answer in [Answer::LocalFailure, Answer::Timeout] {
        let cluster = watched(1, OutlierPolicy { consecutive_5xx: 0, consecutive_gateway: 2, ..outlier() });
        let endpoint = &cluster.endpoints.all[0];
        assert_eq!(record(&cluster, endpoint, answer, Moment(1)), None);
        assert!(record(&cluster, endpoint, answer, Moment(1)).is_some(), "{answer:?}");
    }
}

#[test]
fn nothing_is_counted_without_outlier_detection() {
    let cluster = cluster(endpoints(1), Balancer::LeastRequest);
    assert_eq!(record_all(&cluster, 0, &[500; 50], Moment(1)), None);
    assert_eq!(cluster.endpoints.all[0].state.consecutive_5xx.load(Ordering::Relaxed), 0);
}

#[test]
fn at_most_the_given_share_is_ejected() {
    // maxEjectionPercent, endpoints, how many can be ejected.
    let cases =
        [(10, 9, 0), (10, 10, 1), (10, 19, 1), (10, 20, 2), (50, 2, 1), (50, 3, 1), (34, 3, 1), (33, 3, 0)];
    let more = [(100, 3, 3), (99, 3, 2), (0, 3, 0), (250, 3, 3)];
    for (max_ejection_percent, count, expected) in cases.into_iter().chain(more) {
        let cluster = watched(count, OutlierPolicy { max_ejection_percent, ..outlier() });
        for position in 0..usize::from(count) {
            record_all(&cluster, position, &[500; 5], Moment(1));
        }
        let ejected = (0..usize::from(count)).filter(|position| is_ejected(&cluster, *position)).count();
        assert_eq!(ejected, expected, "{max_ejection_percent} % of {count}");
        assert_eq!(cluster.state.ejected.load(Ordering::Relaxed) as usize, expected);
    }
}

/// What is known to be ill does not count among those that may be ejected, nor among those that are well.
#[test]
fn health_checks_and_ejections_go_together() {
    let mut four = endpoints(4);
    four[3] = four[3].clone().but(|facts| facts.health = mesh_proto::registration::Health::Unhealthy);
    let mut watched = cluster(four, Balancer::LeastRequest);
    let policy = OutlierPolicy { max_ejection_percent: 34, min_health_percent: 40, ..outlier() };
    watched.outlier = Some(policy.into());
    sweep(&watched, Moment(1));

    for position in 0..3 {
        record_all(&watched, position, &[500; 5], Moment(2));
    }

    // 34 % of the three that may be chosen, not of four.
    assert_eq!((0..4).filter(|position| is_ejected(&watched, *position)).count(), 1);
    let mut rng = SeededRng(1);
    let picked: std::collections::BTreeSet<_> = (0..200)
        .filter_map(|_| pick(&watched, &Hint::default(), Moment(3), &mut rng).map(|one| one.id.to_string()))
        .collect();
    assert_eq!(picked.into_iter().collect::<Vec<_>>(), ["e1", "e2"], "the ejected and the ill get nothing");
    // Two of three are well, more than 40 %; with the ill one counted it would be half. Below it ejections no longer
    // count, and the ill one still gets nothing.
    eject(&watched, 1);
    let picked: std::collections::BTreeSet<_> = (0..200)
        .filter_map(|_| pick(&watched, &Hint::default(), Moment(3), &mut rng).map(|one| one.id.to_string()))
        .collect();
    assert_eq!(picked.into_iter().collect::<Vec<_>>(), ["e0", "e1", "e2"]);
}

#[test]
fn who_returns_is_told_of_once_whoever_swept() {
    let cluster = watched(2, outlier());
    record_all(&cluster, 0, &[500; 5], Moment(5_000)).expect("an ejection");
    // A pick sweeps.
    pick(&cluster, &Hint::default(), Moment(40_001), &mut SeededRng(1)).expect("an endpoint");
    assert!(!is_ejected(&cluster, 0));
    assert_eq!(cluster.state.returned.swap(0, Ordering::Relaxed), 1);
    assert_eq!(sweep(&cluster, Moment(60_001)), 0);
    assert_eq!(cluster.state.returned.load(Ordering::Relaxed), 0);
}

#[test]
fn a_refused_ejection_starts_the_count_anew() {
    let cluster = watched(2, OutlierPolicy { max_ejection_percent: 50, ..outlier() });
    record_all(&cluster, 0, &[500; 5], Moment(1)).expect("the first is ejected");
    assert_eq!(record_all(&cluster, 1, &[500; 9], Moment(1)), None);
    assert_eq!(cluster.endpoints.all[1].state.consecutive_5xx.load(Ordering::Relaxed), 4);
}

#[test]
fn an_endpoint_returns_at_the_first_sweep_after_its_time() {
    let cluster = watched(1, outlier());
    let ejection = record_all(&cluster, 0, &[500; 5], Moment(5_000)).expect("an ejection");
    assert_eq!((ejection.until, ejection.count), (Moment(35_000), 1));
    // Sweeps come every 10 s from the first moment on.
    for (now, returned) in
        [(9_000, 0), (10_001, 0), (20_001, 0), (34_999, 0), (35_000, 0), (40_000, 0), (40_001, 1)]
    {
        assert_eq!(sweep(&cluster, Moment(now)), returned, "at {now} ms");
    }
    assert!(!is_ejected(&cluster, 0));
    assert_eq!(cluster.state.ejected.load(Ordering::Relaxed), 0);
    assert_eq!(cluster.endpoints.all[0].state.consecutive_5xx.load(Ordering::Relaxed), 0);
}

#[test]
fn each_ejection_lasts_longer_up_to_five_minutes() {
    let policy = OutlierPolicy { base_ejection: Duration::from_secs(100), ..outlier() };
    let cluster = watched(1, policy);
    let mut now = 1;
    let mut lasted = Vec::new();
    for _ in 0..5 {
        let ejection = record_all(&cluster, 0, &[500; 5], Moment(now)).expect("an ejection");
        lasted.push((ejection.count, (ejection.until.0 - now) / 1_000));
        now = ejection.until.0;
        assert_eq!(sweep(&cluster, Moment(now)), 1);
    }
    assert_eq!(lasted, [(1, 100), (2, 200), (3, 300), (4, 300), (4, 300)]);
}

#[test]
fn intervals_without_ejection_are_forgiven_one_by_one() {
    let cluster = watched(1, outlier());
    for _ in 0..2 {
        let ejection = record_all(&cluster, 0, &[500; 5], Moment(1)).expect("an ejection");
        sweep(&cluster, ejection.until);
        cluster.state.next_sweep.store(1, Ordering::Relaxed);
    }
    let state = &cluster.endpoints.all[0].state;
    let returned = state.returned_at.load(Ordering::Relaxed);
    for (later, left) in [(9_000, 2), (19_000, 1), (29_000, 0), (39_000, 0)] {
        sweep(&cluster, Moment(returned + later));
        assert_eq!(state.ejections.load(Ordering::Relaxed), left, "{later} ms later");
    }
}

#[test]
fn answers_to_an_ejected_endpoint_do_not_eject_it_again() {
    let cluster = watched(1, outlier());
    let first = record_all(&cluster, 0, &[500; 5], Moment(1)).expect("an ejection");
    assert_eq!(record_all(&cluster, 0, &[500; 20], Moment(2)), None);
    assert_eq!(cluster.endpoints.all[0].state.ejected_until.load(Ordering::Relaxed), first.until.0);
}

#[test]
fn an_endpoint_that_left_while_ejected_makes_room_at_the_next_sweep() {
    let before = watched(2, OutlierPolicy { max_ejection_percent: 50, ..outlier() });
    record_all(&before, 0, &[500; 5], Moment(1)).expect("an ejection");
    let others = before.endpoints.all[1..].iter().cloned().chain(endpoints(5).into_iter().skip(4)).collect();
    let mut after = cluster(others, Balancer::LeastRequest);
    (after.outlier, after.state) = (before.outlier.clone(), before.state.clone());
    assert_eq!(record_all(&after, 0, &[500; 5], Moment(2)), None, "still counted");
    sweep(&after, Moment(20_000));
    assert!(record_all(&after, 0, &[500; 5], Moment(20_000)).is_some());
}

#[test]
fn racing_workers_eject_no_more_than_allowed_and_count_right() {
    const WORKERS: usize = 4;
    for _ in 0..50 {
        let cluster = watched(10, OutlierPolicy { max_ejection_percent: 30, ..outlier() });
        let start = Barrier::new(WORKERS);
        thread::scope(|scope| {
            for worker in 0..WORKERS {
                let (cluster, start) = (&cluster, &start);
                scope.spawn(move || {
                    start.wait();
                    for step in 0..200 {
                        record_all(cluster, (step + worker) % 10, &[500], Moment(1));
                    }
                });
            }
        });
        let ejected = (0..10).filter(|position| is_ejected(&cluster, *position)).count();
        assert_eq!(ejected, 3);
        assert_eq!(cluster.state.ejected.load(Ordering::Relaxed), 3);
    }
}

#[test]
fn workers_that_pick_eject_and_sweep_at_once_end_with_the_right_count() {
    const WORKERS: u64 = 4;
    let policy = OutlierPolicy { consecutive_5xx: 2, base_ejection: Duration::from_millis(20), ..outlier() };
    let policy = OutlierPolicy { interval: Duration::from_millis(10), max_ejection_percent: 60, ..policy };
    let cluster = watched(5, policy);
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (cluster, start) = (&cluster, &start);
            scope.spawn(move || {
                let mut rng = SeededRng(worker);
                start.wait();
                for now in 2..5_000 {
                    if let Some(picked) = pick(cluster, &Hint::default(), Moment(now), &mut rng) {
                        record(cluster, picked, Answer::Status(500), Moment(now));
                    }
                }
            });
        }
    });
    // Two sweeps after all is over: everybody is back, nobody is counted.
    sweep(&cluster, Moment(10_000));
    sweep(&cluster, Moment(20_000));
    assert!((0..5).all(|position| !is_ejected(&cluster, position)));
    assert_eq!(cluster.state.ejected.load(Ordering::Relaxed), 0);
}

fn answer_all(cluster: &Cluster, answers: &[Answer]) -> Option<Cause> {
    let endpoint = &cluster.endpoints.all[0];
    let ejections = answers.iter().filter_map(|answer| record(cluster, endpoint, *answer, Moment(100)));
    // Every answer is recorded, also after the last that ejects.
    ejections.fold(None, |_, ejection| Some(ejection.cause))
}

#[test]
fn local_failures_count_apart_where_a_rule_says_so() {
    use Answer::{LocalFailure, Status, Timeout};
    let split =
        |limit| watched(2, OutlierPolicy { consecutive_5xx: 2, consecutive_local: limit, ..outlier() });

    assert_eq!(answer_all(&split(None), &[LocalFailure; 2]), Some(Cause::Consecutive5xx));
    assert_eq!(answer_all(&split(Some(3)), &[LocalFailure; 2]), None);
    assert_eq!(
        answer_all(&split(Some(3)), &[LocalFailure, Timeout, LocalFailure]),
        Some(Cause::ConsecutiveLocal)
    );
    let heard = [LocalFailure, LocalFailure, Status(500), LocalFailure];
    assert_eq!(answer_all(&split(Some(3)), &heard), None, "any answer shows that it can be reached");
    let mixed = [Status(500), LocalFailure, Status(500)];
    assert_eq!(answer_all(&split(Some(3)), &mixed), Some(Cause::Consecutive5xx), "they break no row of 5xx");
}

#[test]
fn the_codes_of_a_rule_are_the_failures() {
    let policy = OutlierPolicy { consecutive_5xx: 2, error_codes: vec![429, 404], ..outlier() };
    let with = |answers: &[u16]| record_all(&watched(2, policy.clone()), 0, answers, Moment(100)).is_some();
    assert!(with(&[429, 404]));
    assert!(!with(&[503, 503, 503]), "what is not named is no failure");
    assert!(!with(&[429, 500, 429]));
    // A gateway error that is named is one still; what is named and is no 5xx is none.
    let gateway = |codes: &[u16], answers: &[u16]| {
        let policy = OutlierPolicy {
            consecutive_5xx: 0,
            consecutive_gateway: 2,
            error_codes: codes.to_vec(),
            ..outlier()
        };
        record_all(&watched(2, policy), 0, answers, Moment(100)).is_some()
    };
    assert!(gateway(&[429, 503], &[503, 503]));
    assert!(!gateway(&[429, 503], &[429, 429]) && !gateway(&[429, 503], &[502, 502]));
}

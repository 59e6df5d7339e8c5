use mesh_proto::registration::Probe;

use super::*;

fn judge(unhealthy_threshold: u32, healthy_threshold: u32) -> Judge {
    let probe = Probe::Tcp { host: None, port: None };
    Judge::new(&HealthCheck {
        initial_delay_ms: 0,
        probe,
        interval_ms: 2_000,
        timeout_ms: 1_000,
        unhealthy_threshold,
        healthy_threshold,
    })
}

/// Hears one finding a second, and returns the seconds at which the word changed.
fn flips(judge: &mut Judge, findings: &str) -> Vec<usize> {
    let hear = |(second, finding): (usize, char)| {
        let now = Moment(second as u64 * 1_000);
        judge.hear(finding == '+', now).map(|_| second)
    };
    findings.chars().enumerate().filter_map(hear).collect()
}

#[test]
fn an_instance_is_ill_until_its_first_success() {
    let mut judge = judge(2, 1);
    assert_eq!(judge.health(), Health::Unhealthy);
    assert_eq!(judge.hear(false, Moment(0)), None);
    assert_eq!(judge.hear(true, Moment(1)), Some(Health::Healthy));
}

#[test]
fn only_failures_in_a_row_count() {
    assert_eq!(flips(&mut judge(2, 1), "+-+-+--"), [0, 6]);
}

#[test]
fn recovery_needs_its_own_threshold() {
    assert_eq!(flips(&mut judge(1, 3), "++-+++"), [5]);
}

#[test]
fn flapping_is_held_ill_for_thirty_seconds_after_the_last_flip() {
    let mut judge = judge(1, 1);
    let findings = format!("+-+-{}", "+".repeat(40));
    assert_eq!(flips(&mut judge, &findings), [0, 1, 2, 3, 33]);
}

#[test]
fn falling_ill_is_never_delayed() {
    let mut judge = judge(1, 1);
    assert_eq!(flips(&mut judge, "+-+-"), [0, 1, 2, 3]);
    assert_eq!(judge.health(), Health::Unhealthy);
}

#[test]
fn rare_flips_are_not_flapping() {
    let mut judge = judge(1, 1);
    let findings = format!("+{}-+{}-+", "+".repeat(40), "+".repeat(40));
    assert_eq!(flips(&mut judge, &findings).len(), 5);
}

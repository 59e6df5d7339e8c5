//! What this process may use: descriptors, memory, rights.

use mesh_proto::look::{Check, Grade};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use super::unit::Unit;
use super::{Patient, without_interception};
use crate::config::InterceptMode;

/// Fewer descriptors hold too few connections: each that is carried takes two.
const FEW_DESCRIPTORS: u64 = 8_192;

pub(super) fn check(patient: &Patient, unit: Option<&Unit>) -> Vec<Check> {
    let mut checks = Vec::new();
    if patient.is_running {
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64;
        checks.push(descriptors(open, getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)));
    } else if let Some(limit) = unit.and_then(|unit| unit.descriptors) {
        checks.push(descriptors(0, limit));
    }
    checks.extend(right_to_intercept(patient, unit, own_rights()));
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let own = patient.is_running.then(|| kibibytes(&status, "VmRSS:")).flatten();
    checks.push(memory(kibibytes(&meminfo, "MemAvailable:"), kibibytes(&meminfo, "MemTotal:"), own));
    checks
}

/// What this process may do.
pub(super) fn own_rights() -> CapabilitySet {
    capabilities(None).map_or_else(|_| CapabilitySet::empty(), |sets| sets.effective)
}

fn descriptors(open: u64, limit: u64) -> Check {
    let what = format!("{open} of {limit} descriptors are in use");
    let fix = "LimitNOFILE=1048576 in the unit (systemctl edit meshd), then: systemctl restart meshd";
    if open.saturating_mul(10) >= limit.saturating_mul(9) {
        return Check::new(Grade::Error, "descriptors", what, "new connections are closed at once", fix);
    }
    if open.saturating_mul(10) >= limit.saturating_mul(7) {
        return Check::new(Grade::Warning, "descriptors", what, "soon new connections are closed", fix);
    }
    if limit < FEW_DESCRIPTORS {
        let why = "each connection that is carried takes two";
        return Check::new(
            Grade::Warning,
            "descriptors",
            format!("meshd may open {limit} descriptors"),
            why,
            fix,
        );
    }
    Check::good("descriptors", what)
}

/// Of a meshd that a unit would start, the unit's rights count, whoever asks; else those of whoever asks.
fn right_to_intercept(patient: &Patient, unit: Option<&Unit>, own: CapabilitySet) -> Option<Check> {
    if patient.config.intercept.mode == InterceptMode::Off {
        return None;
    }
    let rights = unit.map_or(own, |unit| unit.rights);
    let whose = match unit {
        Some(unit) => format!(" for {}, as whom the unit runs meshd", unit.user()),
        None if patient.is_running => String::new(),
        None => " for whoever types this (no unit runs this meshd)".to_owned(),
    };
    if rights.contains(CapabilitySet::NET_ADMIN) {
        return Some(Check::good("capabilities", format!("CAP_NET_ADMIN is there{whose}")));
    }
    let fix = if unit.is_some() {
        "systemctl cat meshd shows what takes it away (AmbientCapabilities, CapabilityBoundingSet); or set intercept.mode = \"off\""
    } else {
        "start meshd by its unit (systemctl start meshd) or as root; or set intercept.mode = \"off\""
    };
    Some(Check::new(
        without_interception(&patient.config),
        "capabilities",
        format!("CAP_NET_ADMIN is missing{whose}"),
        "traffic is not intercepted: programs reach the mesh through listeners and the HTTP proxy port only",
        fix,
    ))
}

/// The number behind a word of `/proc/meminfo` or `/proc/PID/status`.
fn kibibytes(text: &str, word: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(word))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn memory(available: Option<u64>, total: Option<u64>, own: Option<u64>) -> Check {
    let (Some(available), Some(total)) = (available, total) else {
        return Check::skipped("memory", "/proc/meminfo cannot be read");
    };
    let own = own.map_or_else(String::new, |own| format!("; meshd has {} MiB", own >> 10));
    let what = format!("{} of {} MiB are available{own}", available >> 10, total >> 10);
    if available < LITTLE_MEMORY && available.saturating_mul(20) < total {
        let why = "the kernel may end processes; meshd refuses what is new before that";
        return Check::new(Grade::Warning, "memory", what, why, "ps -eo rss,comm --sort=-rss | head");
    }
    Check::good("memory", what)
}

/// 128 MiB.
const LITTLE_MEMORY: u64 = 128 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_judged_by_what_is_left_of_them() {
        let grade = |open, limit| descriptors(open, limit).grade;

        assert_eq!(grade(50, 1 << 20), Grade::Good);
        assert_eq!(grade(50, 1_024), Grade::Warning);
        assert_eq!(grade(8_000, 10_000), Grade::Warning);
        assert_eq!(grade(9_500, 10_000), Grade::Error);
    }

    #[test]
    fn the_right_that_interception_needs_is_missed_as_gravely_as_the_configuration_asks() {
        let with = |mode| {
            let mut patient = Patient::default();
            patient.config.intercept.mode = mode;
            right_to_intercept(&patient, None, CapabilitySet::empty()).map(|check| check.grade)
        };

        assert_eq!(with(InterceptMode::On), Some(Grade::Error));
        assert_eq!(with(InterceptMode::Auto), Some(Grade::Warning));
        assert_eq!(with(InterceptMode::Off), None);
    }

    #[test]
    fn memory_is_short_where_a_twentieth_and_less_than_128_mib_is_left() {
        let text = "MemTotal:        8000000 kB\nMemAvailable:      90000 kB\n";
        let (available, total) = (kibibytes(text, "MemAvailable:"), kibibytes(text, "MemTotal:"));

        assert_eq!(memory(available, total, None).grade, Grade::Warning);
        assert_eq!(memory(Some(4_000_000), total, None).grade, Grade::Good);
    }
}

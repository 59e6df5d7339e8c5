//! What interception needs of the kernel, and what of the host it does not see: nftables, connection tracking, rules of
//! others that route by mark, bridges with containers on them.

use std::path::Path;

use mesh_proto::look::{Check, Grade};
use serde_json::Value;

use super::{output_of, search_path, without_interception};
use crate::config::{Config, InterceptMode};

pub(super) fn check(config: &Config) -> Vec<Check> {
    let mut checks = vec![conntrack()];
    if config.intercept.mode == InterceptMode::Off {
        return checks;
    }
    checks.extend(programs(config));
    checks.extend(marks(config.intercept.mark));
    checks.extend(output_of("ip", &["-j", "-d", "link", "show"]).ok().and_then(|listed| bridges(&listed)));
    checks
}

fn programs(config: &Config) -> Vec<Check> {
    let missing = |program: &str, package: &str| {
        let there = search_path().split(':').any(|folder| Path::new(folder).join(program).is_file());
        (!there).then(|| {
            Check::new(
                without_interception(config),
                "interception",
                format!("{program} is not installed"),
                "traffic is not intercepted",
                format!("install the package {package}, then: systemctl reload meshd; or set intercept.mode = \"off\""),
            )
        })
    };
    [missing("nft", "nftables"), missing("ip", "iproute2")].into_iter().flatten().collect()
}

/// How full the table of connections is: full, the kernel drops what is new.
fn conntrack() -> Check {
    let number = |name: &str| {
        std::fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?.trim().parse::<u64>().ok()
    };
    match (number("nf_conntrack_count"), number("nf_conntrack_max")) {
        (Some(count), Some(max)) => fill(count, max),
        _ => Check::skipped("conntrack", "connection tracking is not in use"),
    }
}

fn fill(count: u64, max: u64) -> Check {
    let what = format!("{count} of {max} tracked connections");
    let fix = format!("sysctl -w net.netfilter.nf_conntrack_max={}, and in /etc/sysctl.d/", max.max(1) * 4);
    let share = count.saturating_mul(100) / max.max(1);
    match share {
        95.. => Check::new(Grade::Error, "conntrack", what, "the kernel drops new connections", fix),
        75.. => Check::new(Grade::Warning, "conntrack", what, "full, the kernel drops new connections", fix),
        _ => Check::good("conntrack", what),
    }
}

/// Rules of others that take meshd's own sockets for theirs.
fn marks(mark: u32) -> Vec<Check> {
    let mut checks = Vec::new();
    for family in ["-4", "-6"] {
        let Ok(listed) = output_of("ip", &[family, "-j", "rule", "show"]) else { continue };
        checks.extend(routed(&listed, mark));
    }
    checks.dedup();
    if checks.is_empty() {
        checks
            .push(Check::good("marks", format!("no routing rule takes meshd's mark {mark:#x} for its own")));
    }
    checks
}

fn routed(listed: &str, mark: u32) -> Vec<Check> {
    let rules: Vec<Value> = serde_json::from_str(listed).unwrap_or_default();
    let number = |value: &Value| {
        let text = value.as_str()?;
        text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok())
    };
    let matches = |rule: &&Value| {
        let Some(wanted) = rule.get("fwmark").and_then(number) else { return false };
        let mask = rule.get("fwmask").and_then(number).unwrap_or(u32::MAX);
        let is = mark & mask == wanted & mask;
        is != rule.get("not").is_some()
    };
    let tell = |rule: &Value| {
        let text = |name: &str| rule.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let mask = if text("fwmask").is_empty() { String::new() } else { format!("/{}", text("fwmask")) };
        let not = if rule.get("not").is_some() { "not " } else { "" };
        let what = format!(
            "the routing rule \"{not}fwmark {}{mask} lookup {}\" matches meshd's mark {mark:#x}",
            text("fwmark"),
            text("table")
        );
        let why = "what meshd sends, between hosts too, is routed by that table";
        let fix =
            "set intercept.mark in meshd.toml to a number without these bits, then: systemctl reload meshd";
        Check::new(Grade::Warning, "marks", what, why, fix)
    };
    rules.iter().filter(matches).map(tell).collect()
}

/// Bridges with something on them: what that sends is only forwarded. `listed` is what `ip -j -d link show` prints.
fn bridges(listed: &str) -> Option<Check> {
    let links: Vec<Value> = serde_json::from_str(listed).unwrap_or_default();
    let text = |link: &Value, path: &str| link.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let is_bridge = |link: &&Value| text(link, "/linkinfo/info_kind").as_deref() == Some("bridge");
    let mut found: Vec<String> =
        links.iter().filter(is_bridge).filter_map(|link| text(link, "/ifname")).collect();
    found.retain(|bridge| links.iter().any(|link| text(link, "/master").as_ref() == Some(bridge)));
    found.sort();
    if found.is_empty() {
        return None;
    }
    Some(Check::new(
        Grade::Info,
        "containers",
        format!("what hangs on {} is not intercepted", found.join(", ")),
        "packets of containers and guests are only forwarded by this host",
        "let them call a [[listener]] on the bridge's address, or use listen.http_proxy there",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_looks_at_single_bits_may_match_meshds_mark() {
        let listed = r#"[{"priority":0,"src":"all","table":"local"},
            {"priority":100,"src":"all","fwmark":"0x1","fwmask":"0x1","table":"7"},
            {"priority":101,"src":"all","fwmark":"0x6d65","table":"8"},
            {"priority":102,"src":"all","fwmark":"0x2","fwmask":"0x2","table":"9"}]"#;

        let found = routed(listed, 0x6d65);

        let told: Vec<&str> = found.iter().map(|check| check.what.as_str()).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("fwmark 0x1/0x1 lookup 7") && told[1].contains("lookup 8"), "{told:?}");
    }

    #[test]
    fn a_table_of_connections_that_is_nearly_full_is_told() {
        assert_eq!(fill(10, 65_536).grade, Grade::Good);
        assert_eq!(fill(50_000, 65_536).grade, Grade::Warning);
        assert_eq!(fill(65_000, 65_536).grade, Grade::Error);
    }

    #[test]
    fn a_bridge_counts_only_with_something_on_it() {
        let listed = r#"[{"ifname":"docker0","linkinfo":{"info_kind":"bridge"}},
            {"ifname":"br0","linkinfo":{"info_kind":"bridge"}},
            {"ifname":"veth1","master":"docker0","linkinfo":{"info_kind":"veth"}},
            {"ifname":"eth0","master":"bond0"},{"ifname":"bond0","linkinfo":{"info_kind":"bond"}}]"#;

        let told = bridges(listed).expect("a finding");

        assert!(told.what.contains("hangs on docker0 is"), "{told:?}");
    }
}

//! Other people's firewall rules beside ours: whether other hosts get in, and whether somebody else takes our traffic.

use std::net::Ipv4Addr;

use mesh_proto::look::{Check, Grade};

use super::output_of;
use super::ruleset::{Act, Base, Deed, Packet, Ruleset};
use crate::config::{Config, InterceptMode};

/// Looks at the whole ruleset of the kernel.
pub(super) fn check(config: &Config, is_running: bool) -> Vec<Check> {
    let listed = match output_of("nft", &["-j", "list", "ruleset"]) {
        Ok(listed) => listed,
        Err(why) if !rustix::process::geteuid().is_root() && !is_running => {
            return vec![Check::skipped(
                "firewall",
                super::as_root(&format!("rules cannot be read ({why})")),
            )];
        }
        Err(why) => return vec![Check::skipped("firewall", format!("rules cannot be read ({why})"))],
    };
    let text = output_of("nft", &["-a", "list", "ruleset"]).unwrap_or_default();
    let Some(ruleset) = Ruleset::parse(&listed, &text) else {
        return vec![Check::skipped("firewall", "nft prints what this version cannot read")];
    };
    let mut checks = judge(config, &ruleset);
    if is_running
        && config.intercept.mode != InterceptMode::Off
        && !ruleset.names().any(|name| name == "meshd")
    {
        checks.push(Check::new(
            Grade::Error,
            "firewall",
            "the table inet meshd is not there",
            "traffic is not intercepted: somebody has flushed it (nft flush ruleset), or it could not be put in",
            "systemctl reload meshd; journalctl -u meshd | grep intercepting",
        ));
    }
    if ruleset.names().any(|name| name == "meshd") {
        let serves = config.listen.outbound.iter().any(|address| super::ports::is_open(*address));
        checks.extend(left_behind(config.intercept.mode, is_running, serves));
    }
    if let Ok(tables) = std::fs::read_to_string("/proc/net/ip_tables_names")
        && !tables.trim().is_empty()
    {
        checks.push(Check::new(
            Grade::Info,
            "firewall",
            format!(
                "iptables-legacy has tables here ({})",
                tables.split_whitespace().collect::<Vec<_>>().join(", ")
            ),
            "their rules are not read by this check",
            "iptables-legacy-save shows them; look for DROP and REDIRECT",
        ));
    }
    if checks.is_empty() {
        let beside = owner(&ruleset).map_or_else(String::new, |owner| format!(" beside {}", owner.name()));
        checks.push(Check::good("firewall", format!("nobody drops or takes meshd's traffic{beside}")));
    }
    checks
}

/// Our table, where it should not be. `serves`: somebody listens where this meshd's table redirects to.
fn left_behind(mode: InterceptMode, is_running: bool, serves: bool) -> Option<Check> {
    if !is_running && !serves {
        return Some(Check::new(
            Grade::Error,
            "firewall",
            "the table inet meshd is there, and nobody listens where it redirects to",
            "connections and DNS questions of programs on this host fail",
            "meshd cleanup",
        ));
    }
    (mode == InterceptMode::Off).then(|| {
        Check::new(
            Grade::Warning,
            "firewall",
            "the table inet meshd is there, and intercept.mode is off",
            "traffic is redirected all the same: to another meshd of this host, or left from an earlier run",
            "meshd cleanup, unless another meshd of this host intercepts",
        )
    })
}

/// What can be told from the ruleset alone.
fn judge(config: &Config, ruleset: &Ruleset) -> Vec<Check> {
    let owner = owner(ruleset);
    let mut checks = Vec::new();
    let mesh = config.listen.mesh.port();
    let advertised = config.advertised_port();
    let incoming = |protocol, port| Packet { protocol, port, to: None, in_by_lo: Some(false), mark: 0 };
    let mut look = |(kind, hook, last): (&str, &str, i64),
                    packet: Packet,
                    tell: &dyn Fn(&Act, &str) -> Option<Check>| {
        for base in ruleset.entered(kind, hook).into_iter().filter(|base| base.priority <= last) {
            let acts = ruleset.walk(&base, &packet);
            for act in acts.iter().filter(|act| act.deed != Deed::Accept) {
                // A way past it that may be open makes it a matter of who asks.
                let may_pass = acts.iter().any(|it| it.deed == Deed::Accept && !it.is_certain);
                let act = Act { is_certain: act.is_certain && !may_pass, ..act.clone() };
                let place = place(&base, &act, ruleset);
                checks.extend(tell(&act, &place));
            }
        }
    };
    look(("filter", "input", i64::MAX), incoming("tcp", mesh), &|act, place| {
        Some(shut(act, place, "TCP", mesh, owner))
    });
    look(("filter", "input", i64::MAX), incoming("udp", mesh), &|act, place| {
        Some(shut(act, place, "UDP", mesh, owner))
    });
    let outgoing = Packet {
        protocol: "tcp",
        port: advertised,
        to: Some(Ipv4Addr::new(192, 0, 2, 1)),
        in_by_lo: None,
        mark: config.intercept.mark,
    };
    look(("filter", "output", i64::MAX), outgoing, &|act, place| Some(shut_out(act, place, advertised)));
    look(("nat", "output", i64::MAX), outgoing, &|act, place| {
        taken(act, place, "what meshd sends to other hosts")
    });
    if config.intercept.mode != InterceptMode::Off {
        let service = Packet { port: 9_080, to: Some(Ipv4Addr::new(240, 240, 0, 1)), mark: 0, ..outgoing };
        look(("nat", "output", OURS), service, &|act, place| {
            taken(act, place, "what programs send to services of the mesh")
        });
        if let Some(inbound) = config.listen.inbound.first().filter(|_| config.intercept.inbound) {
            let port = inbound.port();
            look(("filter", "input", i64::MAX), incoming("tcp", port), &|act, place| {
                inbound_shut(act, place, port, owner)
            });
        }
        if config.intercept.dns {
            let question = Packet { protocol: "udp", port: 53, to: None, mark: 0, in_by_lo: None };
            look(("nat", "output", OURS), question, &|act, place| {
                taken(act, place, "DNS questions of programs")
            });
        }
    }
    checks
}

/// Whose firewall it is: what to type differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Firewalld,
    Ufw,
}

impl Owner {
    fn name(self) -> &'static str {
        match self {
            Self::Firewalld => "firewalld",
            Self::Ufw => "ufw",
        }
    }
}

fn owner(ruleset: &Ruleset) -> Option<Owner> {
    ruleset.names().find_map(|name| match name {
        "firewalld" => Some(Owner::Firewalld),
        name if name.starts_with("ufw-") || name.starts_with("ufw6-") => Some(Owner::Ufw),
        _ => None,
    })
}

fn opening(owner: Option<Owner>, port: u16, protocol: &str) -> String {
    let protocol = protocol.to_ascii_lowercase();
    match owner {
        Some(Owner::Firewalld) => {
            format!("firewall-cmd --permanent --add-port={port}/{protocol} && firewall-cmd --reload")
        }
        Some(Owner::Ufw) => format!("ufw allow {port}/{protocol}"),
        None => format!("a rule before it: {protocol} dport {port} accept"),
    }
}

fn shut(act: &Act, place: &str, protocol: &str, port: u16, owner: Option<Owner>) -> Check {
    let fix = opening(owner, port, protocol);
    let udp = protocol == "UDP";
    if !act.is_certain {
        let what = format!("{protocol} {port} is let in for some and dropped for others: {place}");
        return Check::new(Grade::Info, "firewall", what, "every host of the mesh must get in", fix);
    }
    let what = format!("{protocol} {port} from other hosts is dropped: {place}");
    if udp {
        let why = "control traffic goes over TCP instead; nothing is lost but a little time";
        return Check::new(Grade::Info, "firewall", what, why, fix);
    }
    Check::new(Grade::Error, "firewall", what, "other hosts cannot reach this one", fix)
}

fn shut_out(act: &Act, place: &str, port: u16) -> Check {
    let what = format!("TCP {port} to other hosts is dropped: {place}");
    let grade = if act.is_certain { Grade::Error } else { Grade::Info };
    Check::new(
        grade,
        "firewall",
        what,
        "this host cannot reach the others",
        format!("a rule before it: tcp dport {port} accept"),
    )
}

fn inbound_shut(act: &Act, place: &str, port: u16, owner: Option<Owner>) -> Option<Check> {
    act.is_certain.then(|| {
        Check::new(
            Grade::Info,
            "firewall",
            format!("TCP {port} is dropped: {place}"),
            "plain connections from outside the mesh to services of this host are redirected there, and fail; calls within the mesh come in by the mesh port",
            format!("{}; or set intercept.inbound = false", opening(owner, port, "tcp")),
        )
    })
}

fn taken(act: &Act, place: &str, what: &str) -> Option<Check> {
    let Deed::Redirect(to) = &act.deed else { return None };
    let (grade, takes) = if act.is_certain { (Grade::Warning, "takes") } else { (Grade::Info, "may take") };
    Some(Check::new(
        grade,
        "firewall",
        format!("somebody else {takes} {what} to {to}: {place}"),
        "whoever comes first has it: such traffic does not go through the mesh",
        "remove that rule, or the program that made it; another mesh or proxy on this host?",
    ))
}

fn place(base: &Base<'_>, act: &Act, ruleset: &Ruleset) -> String {
    let Base { family, table, chain, .. } = base;
    if act.handle == 0 {
        return format!("policy of chain {chain} in table {family} {table}");
    }
    match ruleset.text(base, act.handle) {
        Some(rule) => {
            let short: String = rule.chars().take(LONGEST_RULE).collect();
            format!("\"{short}\" in chain {} of table {family} {table}", act.chain)
        }
        None => format!("rule {} in chain {} of table {family} {table}", act.handle, act.chain),
    }
}

/// The priority of meshd's own chain (`core::firewall`): what comes later finds the connection redirected already.
const OURS: i64 = -100;
const LONGEST_RULE: usize = 120;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ruleset: &str) -> Vec<Check> {
        let ruleset = Ruleset::parse(ruleset, "").expect("a ruleset");
        let mut checks = judge(&Config::default(), &ruleset);
        checks.retain(|check| check.grade >= Grade::Info);
        checks
    }

    #[test]
    fn a_ruleset_without_others_is_well() {
        assert_eq!(of(r#"{"nftables": []}"#), []);
    }

    #[test]
    fn our_own_table_is_told_where_it_should_not_be() {
        let told = |mode, is_running, serves| {
            left_behind(mode, is_running, serves).map(|check| (check.grade, check.fix))
        };

        assert_eq!(told(InterceptMode::Auto, true, true), None);
        assert_eq!(told(InterceptMode::Auto, false, true), None, "a meshd that does not answer doctor");
        assert_eq!(told(InterceptMode::Auto, false, false), Some((Grade::Error, "meshd cleanup".into())));
        let off = told(InterceptMode::Off, true, true).expect("told");
        assert!(off.0 == Grade::Warning && off.1.starts_with("meshd cleanup, unless"), "{off:?}");
    }

    #[test]
    fn a_policy_that_drops_shuts_other_hosts_out_and_ufw_is_told_in_its_own_words() {
        let found = of(r#"{"nftables": [
            {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "ufw-user-input"}},
            {"rule": {"family": "ip", "table": "filter", "chain": "INPUT", "handle": 9, "expr": [
                {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 22}}, {"accept": null}]}}]}"#);

        let first = &found[0];
        assert_eq!(first.grade, Grade::Error);
        assert!(
            first.what.contains("TCP 15008 from other hosts is dropped: policy of chain INPUT"),
            "{first:?}"
        );
        assert_eq!(first.fix, "ufw allow 15008/tcp");
        assert!(
            found.iter().any(|check| check.grade == Grade::Info && check.what.contains("UDP 15008")),
            "{found:?}"
        );
    }

    #[test]
    fn another_proxy_that_takes_all_tcp_is_told_with_where_it_sends_it() {
        let found = of(r#"{"nftables": [
            {"chain": {"family": "ip", "table": "nat", "name": "OUTPUT", "type": "nat", "hook": "output", "prio": -100, "policy": "accept"}},
            {"rule": {"family": "ip", "table": "nat", "chain": "OUTPUT", "handle": 3, "expr": [
                {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}, {"redirect": {"port": 12345}}]}}]}"#);

        assert!(
            found.iter().any(|check| check.grade == Grade::Warning
                && check.what.contains("services of the mesh to :12345")),
            "{found:?}"
        );
        assert!(!found.iter().any(|check| check.what.contains("DNS")), "{found:?}");
    }
}

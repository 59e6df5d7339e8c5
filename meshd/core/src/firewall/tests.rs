use super::*;

fn intercept() -> Intercept {
    Intercept {
        mark: 0x6d65,
        outbound_port: 15001,
        inbound_port: Some(15006),
        inbound_targets: [9080, 9081].into(),
        dns: Some(DnsCapture { port: 15053, only: Vec::new() }),
        exclude_ports: [22, 25].into(),
        own_ports: [15001, 15008].into(),
        exclude_cidrs: vec!["10.1.0.0/16".parse().unwrap(), "fd00:1::/32".parse().unwrap()],
        exclude_uids: [1000].into(),
        ssh: None,
    }
}

fn position(text: &str, rule: &str) -> usize {
    text.find(rule).unwrap_or_else(|| panic!("no {rule:?} in\n{text}"))
}

#[test]
fn the_table_is_replaced_in_one_transaction() {
    let text = ruleset(&intercept());
    assert!(text.starts_with("table inet meshd\ndelete table inet meshd\ntable inet meshd {\n"));
    assert_eq!(text.matches("table inet").count(), 3);
}

#[test]
fn exemptions_come_before_what_they_exempt_from() {
    let text = ruleset(&intercept());
    let redirect = position(&text, "meta l4proto tcp redirect to :15001");
    let dns = position(&text, "th dport 53 redirect to :15053");
    assert!(position(&text, "meta mark 0x6d65 return") < dns);
    assert!(position(&text, "meta skuid { 1000 } return") < dns);
    for exempt in
        ["tcp dport { 22, 25 } return", "ip daddr 10.1.0.0/16 return", "ip6 daddr fd00:1::/32 return"]
    {
        assert!(position(&text, exempt) < redirect, "{exempt}");
    }
    assert!(position(&text, "240.240.0.0/16 tcp") < position(&text, "oifname \"lo\" return"));
}

#[test]
fn ssh_is_exempt_even_when_no_port_is() {
    let text = ruleset(&Intercept { exclude_ports: BTreeSet::new(), ..intercept() });
    assert_eq!(text.matches("tcp dport { 22 } return").count(), 2);
}

#[test]
fn the_present_ssh_session_is_exempt_on_its_own_port() {
    let ssh = Some(SshSession { peer: "192.0.2.7".parse().unwrap(), port: 2222 });
    let text = ruleset(&Intercept { ssh, ..intercept() });
    position(&text, "ip daddr 192.0.2.7 tcp sport 2222 return");
    position(&text, "ip saddr 192.0.2.7 tcp dport 2222 return");
}

#[test]
fn a_resolver_on_this_host_narrows_the_capture_of_dns() {
    let dns = Some(DnsCapture { port: 15053, only: vec!["127.0.0.53".parse().unwrap()] });
    let text = ruleset(&Intercept { dns, ..intercept() });
    position(&text, "ip daddr 127.0.0.53 meta l4proto { tcp, udp } th dport 53 redirect to :15053");
    assert_eq!(text.matches("dport 53").count(), 1);
}

#[test]
fn nothing_is_caught_on_its_way_in_unless_asked_for() {
    let text = ruleset(&Intercept { inbound_port: None, ..intercept() });
    assert!(!text.contains("prerouting"));
}

#[test]
fn an_update_replaces_all_inbound_ports() {
    assert_eq!(
        update_inbound(&[80, 443].into()),
        "flush set inet meshd inbound_targets\nadd element inet meshd inbound_targets { 80, 443 }\n"
    );
    assert_eq!(update_inbound(&BTreeSet::new()), "flush set inet meshd inbound_targets\n");
}

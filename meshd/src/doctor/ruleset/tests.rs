use serde_json::json;

use super::*;

fn tcp(port: u16) -> Packet {
    Packet { protocol: "tcp", port, to: None, in_by_lo: Some(false), mark: 0 }
}

fn dport(right: &Value) -> Value {
    json!({"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": right}})
}

/// One input chain `i` with these rules and this policy, and further chains.
fn ruleset(policy: &str, rules: &[Vec<Value>], others: &[(&str, Vec<Value>)]) -> Ruleset {
    let rule = |chain: &str, handle: usize, expressions: &[Value]| json!({"rule": {"family": "inet", "table": "t", "chain": chain, "handle": handle, "expr": expressions}});
    let mut items = vec![
        json!({"chain": {"family": "inet", "table": "t", "name": "i", "type": "filter", "hook": "input", "prio": 0, "policy": policy}}),
    ];
    items.extend(rules.iter().enumerate().map(|(at, expressions)| rule("i", at + 1, expressions)));
    items.extend(
        others.iter().enumerate().map(|(at, (chain, expressions))| rule(chain, 100 + at, expressions)),
    );
    Ruleset::parse(&json!({ "nftables": items }).to_string(), "").expect("a ruleset")
}

fn walk(ruleset: &Ruleset, packet: &Packet) -> Vec<(Deed, bool, u64)> {
    let bases = ruleset.entered("filter", "input");
    ruleset.walk(&bases[0], packet).into_iter().map(|act| (act.deed, act.is_certain, act.handle)).collect()
}

#[test]
fn ports_match_by_number_range_and_set() {
    let accept = json!({"accept": null});
    let rules =
        ruleset("drop", &[vec![dport(&json!({"set": [22, {"range": [15_000, 15_010]}]})), accept]], &[]);

    assert_eq!(walk(&rules, &tcp(15_008)), [(Deed::Accept, true, 1)]);
    assert_eq!(walk(&rules, &tcp(15_011)), [(Deed::Drop, true, 0)]);
    assert_eq!(walk(&rules, &Packet { protocol: "udp", ..tcp(22) }), [(Deed::Drop, true, 0)]);
}

#[test]
fn what_depends_on_the_caller_is_a_perhaps_and_the_walk_goes_on() {
    let from = json!({"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"prefix": {"addr": "10.0.0.0", "len": 8}}}});
    let rules = ruleset("drop", &[vec![from, json!({"accept": null})]], &[]);

    assert_eq!(walk(&rules, &tcp(15_008)), [(Deed::Accept, false, 1), (Deed::Drop, true, 0)]);
}

#[test]
fn open_connections_and_loopback_are_not_this_packet() {
    let state =
        json!({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}});
    let lo = json!({"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lo"}});
    let accept = json!({"accept": null});
    let rules = ruleset("drop", &[vec![state, accept.clone()], vec![lo, accept]], &[]);

    assert_eq!(walk(&rules, &tcp(15_008)), [(Deed::Drop, true, 0)]);
    assert_eq!(walk(&rules, &Packet { in_by_lo: Some(true), ..tcp(1) }), [(Deed::Accept, true, 2)]);
}

#[test]
fn chains_are_followed_and_come_back_where_they_say_nothing() {
    let jump = vec![json!({"jump": {"target": "user"}})];
    let rules = ruleset(
        "accept",
        &[jump, vec![json!({"reject": {"type": "icmpx"}})]],
        &[("user", vec![dport(&json!(15_008)), json!({"accept": null})])],
    );

    assert_eq!(walk(&rules, &tcp(15_008)), [(Deed::Accept, true, 100)]);
    assert_eq!(walk(&rules, &tcp(80)), [(Deed::Drop, true, 2)]);
}

#[test]
fn maps_of_verdicts_are_looked_up() {
    let map = json!({"vmap": {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, "data": {"set": [[1, {"accept": null}], [15_008, {"drop": null}]]}}});
    let rules = ruleset("accept", &[vec![map]], &[]);

    assert_eq!(walk(&rules, &tcp(15_008)), [(Deed::Drop, true, 1)]);
    assert_eq!(walk(&rules, &tcp(2)), [(Deed::Accept, true, 0)]);
}

#[test]
fn single_bits_of_a_mark_are_looked_at_as_the_kernel_does() {
    let mark = json!({"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 255]}, "right": 0x65}});
    let rules = ruleset("accept", &[vec![mark, json!({"drop": null})]], &[]);

    assert_eq!(walk(&rules, &Packet { mark: 0x6d65, ..tcp(1) }), [(Deed::Drop, true, 1)]);
    assert_eq!(walk(&rules, &tcp(1)), [(Deed::Accept, true, 0)]);
}

#[test]
fn a_circle_of_jumps_ends() {
    let rules = ruleset(
        "drop",
        &[vec![json!({"jump": {"target": "a"}})]],
        &[("a", vec![json!({"jump": {"target": "a"}})])],
    );

    assert_eq!(walk(&rules, &tcp(1)), [(Deed::Drop, true, 0)]);
}

//! What rules of iptables-nft say that nft's JSON only names: conditions and targets of xtables. nft's text translates
//! them, and is read here as far as they decide about ports, open connections, and where a packet goes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Packet;
use super::condition::Holds;

/// Rules as text, by family, table and handle.
pub(super) type Texts = BTreeMap<(String, String, u64), String>;

/// Reads what `nft -a list ruleset` prints.
pub(super) fn texts(listing: &str) -> Texts {
    let mut texts = Texts::new();
    let mut table = (String::new(), String::new());
    for line in listing.lines() {
        if let Some(head) = line.strip_prefix("table ") {
            let mut words = head.split_ascii_whitespace().map(str::to_owned);
            table = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        }
        let Some((rule, handle)) = line.trim().rsplit_once("# handle ") else { continue };
        let (rule, Ok(handle)) = (rule.trim(), handle.parse()) else { continue };
        if !rule.ends_with('{') {
            texts.insert((table.0.clone(), table.1.clone(), handle), rule.to_owned());
        }
    }
    texts
}

/// Whether a condition of xtables holds.
pub(super) fn holds(argument: &Value, text: &str, packet: &Packet) -> Holds {
    match (argument["type"].as_str(), argument["name"].as_str()) {
        (Some("match"), Some("conntrack" | "state")) => match after(text, "ct state ") {
            // A packet that begins a connection.
            Some(states) if !states.starts_with('!') => {
                Holds::of(states.split(',').any(|state| state.trim() == "new"))
            }
            _ => Holds::Perhaps,
        },
        (Some("match"), Some("multiport")) => ports(text, packet),
        (Some("match"), Some("comment" | "tcp" | "udp")) | (Some("target"), _) => Holds::Yes,
        _ => Holds::Perhaps,
    }
}

/// The verdict that a target of xtables stands for.
pub(super) fn verdict(argument: &Value, text: &str) -> Option<Value> {
    let to = |words: &str| after(text, words).unwrap_or("another place").trim_start_matches(':').to_owned();
    match argument["name"].as_str().filter(|_| argument["type"] == "target")? {
        "REJECT" | "DROP" => Some(json!({"drop": null})),
        "REDIRECT" => Some(json!({"redirect": {"port": to("redirect to ")}})),
        "DNAT" => Some(json!({"dnat": {"addr": to("dnat to ")}})),
        _ => None,
    }
}

/// The word that follows.
fn after<'t>(text: &'t str, words: &str) -> Option<&'t str> {
    text.split_once(words)?.1.split(' ').next()
}

fn ports(text: &str, packet: &Packet) -> Holds {
    let Some((_, rest)) = text.split_once("dport ") else { return Holds::Perhaps };
    if rest.starts_with('!') {
        return Holds::Perhaps;
    }
    let list = rest.strip_prefix('{').and_then(|rest| rest.split('}').next());
    let list = list.unwrap_or_else(|| rest.split(' ').next().unwrap_or_default());
    let is_in = |item: &str| {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let bounds = first.trim().parse::<u16>().ok().zip(last.trim().parse::<u16>().ok());
        bounds.is_some_and(|(first, last)| (first..=last).contains(&packet.port))
    };
    Holds::of(list.split(',').any(is_in))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As nft 1.0.6 prints rules of iptables-nft 1.8.9.
    const LISTING: &str = "table ip filter { # handle 1\n\tchain INPUT { # handle 1\n\t\ttype filter hook input priority filter; policy drop;\n\
        \t\tct state related,established counter packets 0 bytes 0 accept # handle 2\n\
        \t\tmeta l4proto tcp tcp dport { 80, 15000-15010 } counter packets 0 bytes 0 accept # handle 5\n\t}\n}\n\
        table ip nat { # handle 2\n\tchain OUTPUT { # handle 1\n\t\ttcp dport 80 counter packets 0 bytes 0 redirect to :8080 # handle 2\n\t}\n}\n";

    #[test]
    fn translated_conditions_and_targets_are_read_from_the_text() {
        let texts = texts(LISTING);
        let of = |table: &str, handle| texts[&("ip".to_owned(), table.to_owned(), handle)].as_str();
        let packet = Packet { protocol: "tcp", port: 15_008, to: None, in_by_lo: Some(false), mark: 0 };
        let condition = |name: &str, text| holds(&json!({"type": "match", "name": name}), text, &packet);

        assert_eq!(condition("conntrack", of("filter", 2)), Holds::No);
        assert_eq!(condition("conntrack", "ct state new counter accept"), Holds::Yes);
        assert_eq!(condition("multiport", of("filter", 5)), Holds::Yes);
        assert_eq!(condition("multiport", "meta l4proto tcp tcp dport { 80, 443 }"), Holds::No);
        assert_eq!(condition("owner", "skuid 5"), Holds::Perhaps);
        let target = verdict(&json!({"type": "target", "name": "REDIRECT"}), of("nat", 2));
        assert_eq!(target, Some(json!({"redirect": {"port": "8080"}})));
    }
}

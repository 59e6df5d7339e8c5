//! What the host's nftables do with one packet, as far as it can be told without sending it.
//!
//! Reads what `nft -j list ruleset` prints and walks the chains of one hook. A condition that looks at something that is
//! not known of the packet (where it comes from, how often) may hold: what follows from it is a *perhaps*. Rules of
//! iptables-nft are nftables, too. Source: libnftables-json(5), nft(8).

use std::cell::Cell;

use serde_json::Value;

mod condition;
mod xtables;

use condition::Holds;

/// One packet that begins a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    /// `tcp` or `udp`.
    pub(super) protocol: &'static str,
    /// Where to.
    pub(super) port: u16,
    /// To which IPv4 address; `None`: to this host's own, whichever that is.
    pub(super) to: Option<std::net::Ipv4Addr>,
    /// Whether it comes in by `lo`; `None` on its way out.
    pub(super) in_by_lo: Option<bool>,
    /// Its mark.
    pub(super) mark: u32,
}

/// A chain that the kernel enters by itself.
#[derive(Debug)]
pub(super) struct Base<'v> {
    pub(super) family: &'v str,
    pub(super) table: &'v str,
    pub(super) chain: &'v str,
    pub(super) priority: i64,
    drops: bool,
}

/// Something that a chain does with the packet, for certain or perhaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Act {
    pub(super) deed: Deed,
    pub(super) is_certain: bool,
    /// The chain and the rule's handle; 0: the policy.
    pub(super) chain: String,
    pub(super) handle: u64,
}

/// What may be done with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Accept,
    /// Dropped or rejected.
    Drop,
    /// To another address or port of this host or elsewhere, in words.
    Redirect(String),
}

/// A ruleset, as `nft` prints it in both of its forms.
pub(super) struct Ruleset {
    items: Vec<Value>,
    texts: xtables::Texts,
}

impl Ruleset {
    /// Reads what `nft -j list ruleset` and `nft -a list ruleset` print; `None` where it is something else.
    pub(super) fn parse(json: &str, text: &str) -> Option<Self> {
        let mut whole: Value = serde_json::from_str(json).ok()?;
        match whole.get_mut("nftables")?.take() {
            Value::Array(items) => Some(Self { items, texts: xtables::texts(text) }),
            _ => None,
        }
    }

    /// Names of all chains and tables, to tell who made them.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.items.iter().filter_map(|item| {
            let named = item.get("chain").or_else(|| item.get("table"))?;
            named.get("name")?.as_str()
        })
    }

    /// The base chains of a hook and type that see IPv4, in the order in which the kernel enters them; ours apart.
    pub(super) fn entered(&self, kind: &str, hook: &str) -> Vec<Base<'_>> {
        let mut chains: Vec<Base<'_>> = self
            .items
            .iter()
            .filter_map(|item| {
                let chain = item.get("chain")?;
                let is = |name: &str, word: &str| chain.get(name).and_then(Value::as_str) == Some(word);
                let fits = is("type", kind) && is("hook", hook);
                let family = chain.get("family")?.as_str()?;
                let table = chain.get("table")?.as_str()?;
                let sees = matches!(family, "ip" | "inet") && !(family == "inet" && table == "meshd");
                (fits && sees).then_some(Base {
                    family,
                    table,
                    chain: chain.get("name")?.as_str()?,
                    priority: chain.get("prio").and_then(Value::as_i64).unwrap_or(0),
                    drops: is("policy", "drop"),
                })
            })
            .collect();
        chains.sort_by_key(|chain| chain.priority);
        chains
    }

    /// Everything a base chain does with a packet, up to the first thing that is certain.
    pub(super) fn walk(&self, base: &Base<'_>, packet: &Packet) -> Vec<Act> {
        let mut acts = Vec::new();
        let walker = Walker { ruleset: self, base, packet, entered: Cell::new(0) };
        if walker.chain(base.chain, true, 0, &mut acts) != Went::Ended {
            let deed = if base.drops { Deed::Drop } else { Deed::Accept };
            acts.push(Act { deed, is_certain: true, chain: base.chain.to_owned(), handle: 0 });
        }
        acts
    }

    /// A rule as text.
    pub(super) fn text(&self, base: &Base<'_>, handle: u64) -> Option<&str> {
        self.texts.get(&(base.family.to_owned(), base.table.to_owned(), handle)).map(String::as_str)
    }

    fn rules<'v>(&'v self, base: &Base<'_>, chain: &str) -> impl Iterator<Item = &'v Value> {
        let place = [base.family.to_owned(), base.table.to_owned(), chain.to_owned()];
        self.items.iter().filter_map(|item| item.get("rule")).filter(move |rule| {
            ["family", "table", "chain"]
                .iter()
                .zip(&place)
                .all(|(name, is)| rule.get(name).and_then(Value::as_str) == Some(is))
        })
    }
}

/// How a chain was left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Went {
    /// Something certain happened.
    Ended,
    /// At its end, or by `return`.
    Through,
}

/// Chains that jump to each other no deeper than the kernel allows.
const DEPTH: usize = 16;
/// Every rule of a host with thousands of services is enough.
const MOST_ENTERED: usize = 10_000;

struct Walker<'w> {
    ruleset: &'w Ruleset,
    base: &'w Base<'w>,
    packet: &'w Packet,
    /// Chains entered so far.
    entered: Cell<usize>,
}

impl Walker<'_> {
    fn chain(&self, name: &str, is_certain: bool, depth: usize, acts: &mut Vec<Act>) -> Went {
        self.entered.set(self.entered.get() + 1);
        if depth > DEPTH || self.entered.get() > MOST_ENTERED {
            return Went::Through;
        }
        for rule in self.ruleset.rules(self.base, name) {
            let handle = rule.get("handle").and_then(Value::as_u64).unwrap_or(0);
            let expressions = rule.get("expr").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let mut certain = is_certain;
            for expression in expressions {
                let text = || self.ruleset.text(self.base, handle).unwrap_or_default();
                let xt = expression.get("xt");
                let holds = match xt {
                    Some(argument) => xtables::holds(argument, text(), self.packet),
                    None => condition::holds(expression, self.packet),
                };
                match holds {
                    Holds::No => break,
                    Holds::Perhaps => certain = false,
                    Holds::Yes => {}
                }
                let target = xt.and_then(|argument| xtables::verdict(argument, text()));
                for (verdict, sure) in verdicts(target.as_ref().unwrap_or(expression), self.packet) {
                    let certain = certain && sure;
                    match self.verdict(&verdict, name, handle, certain, depth, acts) {
                        Some(went) if certain => return went,
                        _ => {}
                    }
                }
            }
        }
        Went::Through
    }

    /// Follows a verdict; says how the chain was left where it was certain.
    fn verdict(
        &self,
        verdict: &Value,
        chain: &str,
        handle: u64,
        is_certain: bool,
        depth: usize,
        acts: &mut Vec<Act>,
    ) -> Option<Went> {
        let (name, argument) = verdict.as_object()?.iter().next()?;
        let mut act = |deed| acts.push(Act { deed, is_certain, chain: chain.to_owned(), handle });
        match name.as_str() {
            "accept" => act(Deed::Accept),
            "drop" | "reject" => act(Deed::Drop),
            "redirect" | "dnat" | "tproxy" => act(Deed::Redirect(where_to(argument))),
            "return" => return Some(Went::Through),
            "jump" | "goto" => {
                let target = argument.get("target").and_then(Value::as_str)?;
                let went = self.chain(target, is_certain, depth + 1, acts);
                // After `goto` the rest of this chain is not seen.
                return (went == Went::Ended || name == "goto").then_some(went);
            }
            _ => return None,
        }
        Some(Went::Ended)
    }
}

/// The verdicts that an expression may come to: its own, or those of a map, and whether that is certain.
fn verdicts(expression: &Value, packet: &Packet) -> Vec<(Value, bool)> {
    let Some(map) = expression.get("vmap") else { return vec![(expression.clone(), true)] };
    let Some(pairs) = map.pointer("/data/set").and_then(Value::as_array) else { return Vec::new() };
    let key = map.get("key").unwrap_or(&Value::Null);
    let mut found = Vec::new();
    for pair in pairs.iter().filter_map(Value::as_array) {
        let [value, verdict] = pair.as_slice() else { continue };
        match condition::is_equal(key, value, packet) {
            Holds::Yes => return vec![(verdict.clone(), true)],
            Holds::Perhaps => found.push((verdict.clone(), false)),
            Holds::No => {}
        }
    }
    found
}

fn where_to(argument: &Value) -> String {
    let part = |name: &str| match argument.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(_) => "…".to_owned(),
        None => String::new(),
    };
    match (part("addr"), part("port")) {
        (address, port) if port.is_empty() => address,
        (address, port) => format!("{address}:{port}"),
    }
}

#[cfg(test)]
mod tests;

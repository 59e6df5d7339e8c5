//! An explanation as people read it: from the request to the instance, a line a fact.

use std::fmt::Write as _;

use mesh_proto::explain::{Destination, End, Explanation, Rule, Setting};

use crate::output::{Columns, Tone, paint};

/// Writes an explanation.
pub(crate) fn page(told: &Explanation) -> String {
    let mut text = String::new();
    head(told, &mut text);
    passed(told, &mut text);
    counts(told, &mut text);
    for destination in &told.destinations {
        goes_to(destination, &mut text);
    }
    for note in &told.notes {
        let _ = writeln!(text, "{} {note}", paint(Tone::Dim, "note:"));
    }
    text
}

fn head(told: &Explanation, text: &mut String) {
    let request = &told.request;
    let query = request.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
    let asks = request.sni.as_ref().map(|name| format!(" asking for {name}")).unwrap_or_default();
    let url = format!("{}://{}{}{query}{asks}", request.scheme, request.authority, request.path);
    if is_connection(told) {
        let _ = writeln!(text, "{url}");
    } else {
        let _ = writeln!(text, "{} {url}", request.method);
    }
    let caller = &told.caller;
    let labels: Vec<String> = caller.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("; {}", labels.join(", ")) };
    let seen =
        if caller.seen_from.is_empty() { String::new() } else { format!(", seen from {}", caller.seen_from) };
    let _ = writeln!(text, "  from {} ({}{labels}){seen}", caller.name, caller.known_as);
    if let Some(host) = &told.host {
        let _ = writeln!(text, "  host {}:{} ({})", host.name, host.port, host.how);
    }
}

fn is_connection(told: &Explanation) -> bool {
    matches!(told.request.scheme.as_str(), "tcp" | "tls")
}

fn passed(told: &Explanation, text: &mut String) {
    if told.passed.is_empty() {
        return;
    }
    text.push_str("\npassed over\n");
    for passed in &told.passed {
        let _ = writeln!(text, "  {}", named(&passed.rule));
        for (at, because) in passed.because.iter().enumerate() {
            let or = if at > 0 { "or " } else { "" };
            let _ = writeln!(text, "      {}", paint(Tone::Dim, &format!("{or}{because}")));
        }
    }
}

fn counts(told: &Explanation, text: &mut String) {
    if let Some(rule) = &told.rule {
        text.push_str("\napplies\n");
        let _ = writeln!(text, "  {}", named(rule));
        let _ = writeln!(text, "      because {}", told.because);
        settings(&told.settings, "      ", text);
    }
    let tone = match (told.outcome.kind, told.outcome.status) {
        (End::NoRoute | End::UnknownHost | End::BadRequest | End::Closed, _) | (End::Forward, Some(_)) => {
            Tone::Bad
        }
        (End::PassThrough, _) => Tone::Warn,
        _ => Tone::Good,
    };
    let _ = writeln!(text, "\n{}", paint(tone, &told.outcome.words));
}

fn goes_to(to: &Destination, text: &mut String) {
    let subset = if to.subset.is_empty() { String::new() } else { format!(" {}", to.subset) };
    let _ = writeln!(text, "\n{} to {}:{}{subset}", share(to.share), to.host, to.port);
    if !to.trouble.is_empty() {
        let status = to.status.map(|status| format!("{status}: ")).unwrap_or_default();
        let _ = writeln!(text, "  {}", paint(Tone::Bad, &format!("{status}{}", to.trouble)));
    }
    if !to.sends.target.is_empty() {
        let _ = writeln!(text, "  sent as {} with Host {}", to.sends.target, to.sends.authority);
    }
    for (name, value) in &to.sends.set {
        let _ = writeln!(text, "  header {name}: {value}");
    }
    if !to.sends.removed.is_empty() {
        let _ = writeln!(text, "  without header {}", to.sends.removed.join(", "));
    }
    settings(&to.settings, "  ", text);
    if to.instances.is_empty() {
        return;
    }
    let mut columns =
        Columns::new(["INSTANCE", "VERSION", "STATE", "GETS", "ADDRESS", "THERE"]).numbers(&[3]);
    for one in &to.instances {
        let tone = if one.state == "healthy" { Tone::Good } else { Tone::Warn };
        columns.toned([
            (one.id.clone(), Tone::Plain),
            (one.version.clone(), Tone::Plain),
            (one.state.clone(), tone),
            (about(one.picks), Tone::Plain),
            (one.address.clone(), Tone::Plain),
            (one.there.clone(), Tone::Dim),
        ]);
    }
    for line in columns.render("").lines() {
        let _ = writeln!(text, "  {line}");
    }
}

fn settings(list: &[Setting], indent: &str, text: &mut String) {
    let width = list.iter().map(|setting| setting.what.chars().count()).max().unwrap_or(0);
    for setting in list {
        let place = setting.place.as_ref().map(|place| format!(", {place}")).unwrap_or_default();
        let by = paint(Tone::Dim, &format!("({}{place})", setting.by));
        let blanks = " ".repeat(width - setting.what.chars().count());
        let _ = writeln!(text, "{indent}{}{blanks}  {} {by}", setting.what, setting.value);
    }
}

/// Names a rule, and where it is written.
fn named(rule: &Rule) -> String {
    if rule.object.is_empty() {
        return "the service's own default".into();
    }
    let path = if rule.path.is_empty() { String::new() } else { format!(" {}", rule.path) };
    let name = if rule.name.is_empty() { String::new() } else { format!(" {:?}", rule.name) };
    let place = rule.place.clone().or_else(|| rule.revision.map(|revision| format!("revision {revision}")));
    let place = place.map(|place| paint(Tone::Dim, &format!("  {place}"))).unwrap_or_default();
    format!("{}{path}{name}{place}", rule.object)
}

/// Writes millionths in percent.
pub(crate) fn share(parts_per_million: u32) -> String {
    let text = format!("{}.{:04}", parts_per_million / 10_000, parts_per_million % 10_000);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Of 1000 picks: about so many percent. They are drawn, so no digit more than is true.
fn about(picks: u32) -> String {
    match picks {
        0 => "none".into(),
        1_000 => "all".into(),
        picks => format!("about {} %", (picks + 5) / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_as_many_digits_as_they_need() {
        assert_eq!([share(1_000_000), share(905_000), share(1)], ["100 %", "90.5 %", "0.0001 %"]);
        assert_eq!([about(0), about(333), about(1_000)], ["none", "about 33 %", "all"]);
    }
}

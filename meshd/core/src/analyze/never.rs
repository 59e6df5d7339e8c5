//! Conditions that no request can meet, and times that cannot fit.

use mesh_proto::finding::Finding;
use mesh_proto::resource::{HttpRoute, ObjectKey};
use mesh_proto::value::StringMatch;
use regex_syntax::hir::literal::Extractor;

use crate::compile::rules::{HttpRule, Rules};

/// Tells of each route what cannot be.
pub(super) fn check(rules: &Rules<'_>, findings: &mut Vec<Finding>) {
    for rule in &rules.http {
        let owner = rule.origin.object.as_ref().unwrap_or(&rules.key);
        conditions(rule, owner, findings);
        times(&rule.http, owner, &rule.origin.path, findings);
    }
}

fn conditions(rule: &HttpRule<'_>, owner: &ObjectKey, findings: &mut Vec<Finding>) {
    for (at, condition) in rule.http.r#match.iter().enumerate() {
        let path = format!("spec.{}.match[{at}]", rule.origin.path);
        let mut never = |field: &str, why: String| {
            let finding =
                Finding::warning("never-matches", format!("{path}.{field}"), format!("never matches: {why}"));
            findings.push(finding.on(owner));
        };
        if let Some(why) = condition.uri.as_ref().and_then(no_path) {
            never("uri", why);
        }
        if let Some(StringMatch::Exact(method) | StringMatch::Prefix(method)) = &condition.method
            && method.bytes().any(|byte| byte.is_ascii_lowercase())
        {
            never("method", format!("methods are upper case, write {:?}", method.to_ascii_uppercase()));
        }
        if let Some(StringMatch::Exact(scheme)) = &condition.scheme
            && scheme != "http"
            && scheme != "https"
        {
            never("scheme", "schemes are http and https".into());
        }
        let maps = [("headers", &condition.headers), ("queryParams", &condition.query_params)];
        for (field, map) in maps {
            for (name, text) in map {
                if let StringMatch::Regex(re2) = text
                    && re2 != "*"
                    && matches_nothing(re2)
                {
                    never(&format!("{field}.{name}"), "no text meets the expression".into());
                }
            }
        }
    }
}

/// Why no path meets a condition.
fn no_path(uri: &StringMatch) -> Option<String> {
    match uri {
        StringMatch::Exact(text) | StringMatch::Prefix(text) if text.contains('?') => {
            Some("a path has no query; use queryParams".into())
        }
        StringMatch::Exact(text) if !text.starts_with('/') => {
            Some(format!("paths begin with /, write \"/{text}\""))
        }
        StringMatch::Prefix(text) if !text.is_empty() && !text.starts_with('/') => {
            Some(format!("paths begin with /, write \"/{text}\""))
        }
        StringMatch::Present | StringMatch::Exact(_) | StringMatch::Prefix(_) => None,
        StringMatch::Regex(re2) if matches_nothing(re2) => Some("no text meets the expression".into()),
        StringMatch::Regex(re2) => {
            let first = first_texts(re2)?;
            let possible = first.iter().any(|text| text.is_empty() || text.starts_with(b"/"));
            (!possible).then(|| {
                "paths begin with /, and the expression must cover the whole path: begin it with / or .*"
                    .into()
            })
        }
    }
}

/// Whether an expression is one that nothing meets, such as `[^\s\S]`.
fn matches_nothing(re2: &str) -> bool {
    regex_syntax::parse(re2).is_ok_and(|hir| hir.properties().minimum_len().is_none())
}

/// The texts with which everything that meets an expression begins; `None`: too many to tell.
fn first_texts(re2: &str) -> Option<Vec<Vec<u8>>> {
    let hir = regex_syntax::parse(re2).ok()?;
    let found = Extractor::new().extract(&hir);
    Some(found.literals()?.iter().map(|literal| literal.as_bytes().to_vec()).collect())
}

/// Whether the tries of a route fit into its timeout.
fn times(http: &HttpRoute, owner: &ObjectKey, path: &str, findings: &mut Vec<Finding>) {
    let (Some(timeout), Some(retries)) = (http.timeout, &http.retries) else { return };
    let Some(each) = retries.per_try_timeout else { return };
    let (timeout, each) = (timeout.get(), each.get());
    let tries = u32::try_from(retries.attempts.unwrap_or(0)).unwrap_or(0).saturating_add(1);
    if timeout.is_zero() || each.is_zero() || tries == 1 {
        return;
    }
    let needed = each.saturating_mul(tries);
    if needed <= timeout {
        return;
    }
    let fit = timeout.as_nanos() / each.as_nanos().max(1);
    let text = format!(
        "{tries} tries of {each:?} each may take {needed:?}, but the timeout of the whole is {timeout:?}: {}",
        match fit {
            0 => "not even one fits".to_owned(),
            1 => "only the first fits".to_owned(),
            fit => format!("only {fit} fit"),
        }
    );
    let hint = "raise timeout, or lower perTryTimeout or attempts";
    findings.push(
        Finding::warning("retries-do-not-fit", format!("spec.{path}.retries"), text)
            .with_hint(hint)
            .on(owner),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_that_no_path_meets_are_seen() {
        let never = |re2: &str| no_path(&StringMatch::Regex(re2.into())).is_some();
        for re2 in ["api/v1", "(a|b)/.*", "[^\\s\\S]", "v[0-9]"] {
            assert!(never(re2), "{re2}");
        }
        for re2 in ["/api", ".*", ".*/v1", "(/a|b)", "/?x", "[/a].*", "(?i)/A", "", "a?/x"] {
            assert!(!never(re2), "{re2}");
        }
    }
}

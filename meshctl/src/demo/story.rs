//! The rules of the demo (the files of `examples/canary`, built in), and what they ask for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use mesh_proto::resource::{HttpMatchRequest, HttpRoute, Object, Spec};
use mesh_proto::value::StringMatch;

use crate::exit::{Failure, Result};
use crate::rules::Rules;

/// The service whose versions are compared.
pub(crate) const SERVICE: &str = "reviews";
/// The user who is signed in on some of the requests.
pub(crate) const USER: &str = "jason";
/// The header that says so.
pub(crate) const USER_HEADER: &str = "end-user";
/// The path that productpage asks reviews for.
pub(crate) const PATH: &str = "/reviews/0";
/// Where the files are in the repository.
const IN_REPOSITORY: &str = "examples/canary";

/// The files, by name.
pub(crate) const FILES: [(&str, &str); 8] = [
    ("destination-rule.yaml", include_str!("../../../examples/canary/destination-rule.yaml")),
    ("10-canary.yaml", include_str!("../../../examples/canary/10-canary.yaml")),
    ("20-shift-50.yaml", include_str!("../../../examples/canary/20-shift-50.yaml")),
    ("30-all-v2.yaml", include_str!("../../../examples/canary/30-all-v2.yaml")),
    ("40-fault.yaml", include_str!("../../../examples/canary/40-fault.yaml")),
    ("50-retry-timeout.yaml", include_str!("../../../examples/canary/50-retry-timeout.yaml")),
    ("60-header-jason.yaml", include_str!("../../../examples/canary/60-header-jason.yaml")),
    ("README.md", include_str!("../../../examples/canary/README.md")),
];
/// The files that the demo begins with.
const BEGIN: usize = 2;

/// Writes the files to a folder of the demo, and returns where a user finds them: in the repository if this is it.
pub(crate) fn write(folder: &Path) -> Result<PathBuf> {
    let unwritable = |error: std::io::Error| Failure::unreadable(folder, &error);
    let own = folder.join(IN_REPOSITORY);
    fs::create_dir_all(&own).map_err(unwritable)?;
    for (name, text) in FILES {
        fs::write(own.join(name), text).map_err(unwritable)?;
    }
    let here = Path::new(IN_REPOSITORY);
    Ok(if here.join("20-shift-50.yaml").is_file() { here.to_owned() } else { own })
}

/// The rules that the demo begins with, read as `meshctl apply` reads them.
pub(crate) fn begin() -> Result<Rules> {
    let mut rules = Rules::default();
    for (name, text) in &FILES[..BEGIN] {
        rules.add(&format!("{IN_REPOSITORY}/{name}"), text, "default");
    }
    rules.judge(true)?;
    Ok(rules)
}

/// Shares (0 to 1) that versions of a service are asked to get.
pub(crate) type Shares = BTreeMap<String, f64>;

/// Computes from the mesh's rules which version gets which share of the requests of `user`.
///
/// `None` where the rules do not say so by subsets (no rule, whole services, redirects) or where they look at what
/// this function does not know.
pub(crate) fn asked(objects: &[Object], user: Option<&str>) -> Option<Shares> {
    let rule = objects.iter().find_map(|object| match &object.spec {
        Spec::VirtualService(rule) if rule.hosts.iter().any(|host| names_service(host)) => Some(rule),
        _ => None,
    })?;
    for route in &rule.http {
        if applies(route, user)? {
            return shares(route, objects);
        }
    }
    None
}

fn names_service(host: &str) -> bool {
    host == SERVICE || host.strip_prefix(SERVICE).is_some_and(|rest| rest.starts_with(".default"))
}

/// Whether a route is for the demo's requests; `None` if that cannot be told.
fn applies(route: &HttpRoute, user: Option<&str>) -> Option<bool> {
    if route.r#match.is_empty() {
        return Some(true);
    }
    let mut any = false;
    for wanted in &route.r#match {
        any |= matches(wanted, user)?;
    }
    Some(any)
}

fn matches(wanted: &HttpMatchRequest, user: Option<&str>) -> Option<bool> {
    let rest = HttpMatchRequest {
        name: wanted.name.clone(),
        uri: wanted.uri.clone(),
        headers: wanted.headers.clone(),
        ignore_uri_case: wanted.ignore_uri_case,
        ..HttpMatchRequest::default()
    };
    if *wanted != rest {
        return None;
    }
    let mut all = match &wanted.uri {
        Some(uri) => text_matches(uri, Some(PATH))?,
        None => true,
    };
    for (name, value) in &wanted.headers {
        if name != USER_HEADER {
            return None;
        }
        all &= text_matches(value, user)?;
    }
    Some(all)
}

fn text_matches(wanted: &StringMatch, text: Option<&str>) -> Option<bool> {
    Some(match (wanted, text) {
        (StringMatch::Exact(exact), Some(text)) => exact == text,
        (StringMatch::Prefix(prefix), Some(text)) => text.starts_with(prefix.as_str()),
        (StringMatch::Present, Some(_)) => true,
        (StringMatch::Regex(_), Some(_)) => return None,
        (_, None) => false,
    })
}

fn shares(route: &HttpRoute, objects: &[Object]) -> Option<Shares> {
    let mut weights: BTreeMap<String, f64> = BTreeMap::new();
    for to in &route.route {
        let destination = to.destination.as_ref()?;
        let version = version_of(&destination.subset, objects)?;
        let weight = if route.route.len() == 1 { 1 } else { to.weight.unwrap_or(0).max(0) };
        *weights.entry(version).or_default() += f64::from(weight);
    }
    let total: f64 = weights.values().sum();
    (total > 0.0).then(|| weights.into_iter().map(|(version, weight)| (version, weight / total)).collect())
}

/// The version that a subset stands for.
fn version_of(subset: &str, objects: &[Object]) -> Option<String> {
    objects.iter().find_map(|object| match &object.spec {
        Spec::DestinationRule(rule) if names_service(&rule.host) => {
            let subset = rule.subsets.iter().find(|known| known.name == subset)?;
            subset.labels.get("version").cloned()
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(files: &[&str]) -> Vec<Object> {
        let mut rules = Rules::default();
        for (name, text) in FILES.iter().filter(|(name, _)| files.contains(name)) {
            rules.add(name, text, "default");
        }
        assert!(rules.findings.is_empty(), "{:?}", rules.findings);
        rules.all.into_iter().map(|rule| rule.object).collect()
    }

    fn shares_of(pairs: &[(&str, f64)]) -> Shares {
        pairs.iter().map(|(version, share)| ((*version).to_owned(), *share)).collect()
    }

    #[test]
    fn every_example_is_read_without_a_finding() {
        for (name, text) in FILES.iter().filter(|(name, _)| *name != "README.md") {
            let mut rules = Rules::default();
            rules.add(name, text, "default");
            assert_eq!(rules.findings, [], "{name}");
            assert_eq!(rules.all.len(), 1, "{name}");
        }
    }

    #[test]
    fn the_canary_asks_for_ninety_and_ten() {
        let objects = objects(&["destination-rule.yaml", "10-canary.yaml"]);

        assert_eq!(asked(&objects, None), Some(shares_of(&[("v1", 0.9), ("v2", 0.1)])));
        assert_eq!(asked(&objects, Some(USER)), Some(shares_of(&[("v1", 0.9), ("v2", 0.1)])));
    }

    #[test]
    fn a_header_rule_asks_something_else_of_jason() {
        let objects = objects(&["destination-rule.yaml", "60-header-jason.yaml"]);

        assert_eq!(asked(&objects, None), Some(shares_of(&[("v1", 1.0)])));
        assert_eq!(asked(&objects, Some(USER)), Some(shares_of(&[("v2", 1.0)])));
    }

    #[test]
    fn without_subsets_nothing_is_asked() {
        assert_eq!(asked(&objects(&["10-canary.yaml"]), None), None);
        assert_eq!(asked(&[], None), None);
    }
}

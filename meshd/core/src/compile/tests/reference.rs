//! Random conditions and requests: the compiled matcher against a naive reading of the rule itself.

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_proto::resource::HttpMatchRequest;
use mesh_proto::value::StringMatch;
use proptest::prelude::*;

use crate::compile::matches::matcher;
use crate::route::{Call, matcher::holds};

fn text() -> impl Strategy<Value = String> {
    "[abAB]{0,3}"
}

fn condition() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        text().prop_map(StringMatch::Exact),
        text().prop_map(StringMatch::Prefix),
        prop_oneof![Just("a*"), Just(".*"), Just("a|b"), Just("[ab]+A?")]
            .prop_map(|re2| StringMatch::Regex(re2.into())),
        Just(StringMatch::Present),
    ]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just("x".to_owned()), Just("y".to_owned())]
}

prop_compose! {
    fn rule()(
        uri in proptest::option::of(condition()),
        ignore_uri_case in any::<bool>(),
        method in proptest::option::of(condition()),
        headers in proptest::collection::btree_map(name(), condition(), 0..2),
        without_headers in proptest::collection::btree_map(name(), condition(), 0..2),
        query_params in proptest::collection::btree_map(name(), condition(), 0..2),
    ) -> HttpMatchRequest {
        let uri = uri.map(|uri| match uri {
            StringMatch::Exact(text) => StringMatch::Exact(format!("/{text}")),
            StringMatch::Prefix(text) => StringMatch::Prefix(format!("/{text}")),
            StringMatch::Regex(text) => StringMatch::Regex(format!("/({text})")),
            StringMatch::Present => StringMatch::Present,
        });
        HttpMatchRequest { uri, ignore_uri_case, method, headers, without_headers, query_params, ..HttpMatchRequest::default() }
    }
}

/// What a condition says of a value, by the words of Istio's reference.
fn says(condition: &StringMatch, value: &str) -> bool {
    match condition {
        StringMatch::Present => true,
        StringMatch::Exact(text) => value == text,
        StringMatch::Prefix(text) => value.len() >= text.len() && value[..text.len()] == **text,
        StringMatch::Regex(re2) => {
            let found =
                regex::Regex::new(re2).expect("sound").find_iter(value).any(|found| found.as_str() == value);
            // Alternatives are tried in order, so a shorter one may hide the whole.
            found || regex::Regex::new(&format!(r"\A(?:{re2})\z")).expect("sound").is_match(value)
        }
    }
}

fn naive(
    rule: &HttpMatchRequest,
    path: &str,
    method: &str,
    headers: &[(String, String)],
    query: &[(String, String)],
) -> bool {
    let lines = |name: &String| -> Vec<&String> {
        headers.iter().filter(|(other, _)| other == name).map(|(_, value)| value).collect()
    };
    let uri = rule.uri.as_ref().is_none_or(|uri| match (uri, rule.ignore_uri_case) {
        (StringMatch::Exact(text), true) => {
            says(&StringMatch::Exact(text.to_lowercase()), &path.to_lowercase())
        }
        (StringMatch::Prefix(text), true) => {
            says(&StringMatch::Prefix(text.to_lowercase()), &path.to_lowercase())
        }
        _ => says(uri, path),
    });
    uri && rule.method.as_ref().is_none_or(|condition| says(condition, method))
        && rule.headers.iter().all(|(name, condition)| lines(name).iter().any(|line| says(condition, line)))
        && rule.without_headers.iter().all(|(name, condition)| {
            let absent = lines(name).is_empty();
            match condition {
                StringMatch::Present => absent,
                _ if absent => !says(condition, ""),
                _ => !lines(name).iter().any(|line| says(condition, line)),
            }
        })
        && rule.query_params.iter().all(|(name, condition)| {
            query.iter().find(|(other, _)| other == name).is_some_and(|(_, value)| says(condition, value))
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compiled_conditions_say_what_the_rule_says(
        rule in rule(),
        path in text(),
        method in text(),
        lines in proptest::collection::vec((name(), text()), 0..4),
        query in proptest::collection::vec((name(), text()), 0..4),
    ) {
        let path = format!("/{path}");
        let headers: HeaderMap = lines
            .iter()
            .map(|(name, value)| {
                let value = HeaderValue::from_str(value).expect("a value");
                (name.parse::<HeaderName>().expect("a name"), value)
            })
            .collect();
        let text: Vec<_> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let text = text.join("&");
        let call = Call {
            method: &method,
            scheme: "http",
            authority: "reviews",
            path: &path,
            query: (!query.is_empty()).then_some(text.as_str()),
            headers: &headers,
        };
        let compiled = matcher(&rule).expect("sound");
        prop_assert_eq!(holds(&compiled, &call), naive(&rule, &path, &method, &lines, &query));
    }
}

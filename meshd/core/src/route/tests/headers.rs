use std::time::Duration;

use http::{StatusCode, Version};

use super::*;
use crate::plan::{HeaderTemplate, TemplatePart, Variable};
use crate::route::headers::{AnswerFacts, Facts, authority, request, response};
use crate::route::template::{BadTemplate, parse};

fn facts() -> Facts<'static> {
    Facts {
        method: "GET",
        scheme: "http",
        authority: "reviews:9080",
        path_and_query: "/a?b",
        version: Version::HTTP_11,
        downstream: "10.0.0.9:0".parse().expect("an address"),
        direct: "10.0.0.1:4711".parse().expect("an address"),
        local: None,
        started: Duration::from_millis(951_782_400_123),
        host_name: "vm1",
        route_name: "canary",
        cluster: None,
        answer: AnswerFacts { status: Some(StatusCode::OK), attempts: 2, ..AnswerFacts::default() },
    }
}

fn one(name: &str, value: &str) -> (HeaderName, HeaderTemplate) {
    (name.parse().expect("a name"), parse(value).expect("a template"))
}

fn lines(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().map(|value| value.to_str().expect("text").to_owned()).collect()
}

#[test]
fn in_one_block_remove_comes_before_set_and_set_before_add() {
    let ops = HeaderOps {
        remove: vec!["x".parse().expect("a name")],
        set: vec![one("x", "set")],
        add: vec![one("x", "add")],
    };
    let mut map = super::headers(&[("x", "old")]);
    request(Some(&rules(ops)), None, false, &mut map, &facts());
    assert_eq!(lines(&map, "x"), ["set", "add"]);
}

#[test]
fn the_destination_wins_alone_and_the_route_wins_among_many() {
    let route = rules(HeaderOps { set: vec![one("x", "route")], ..HeaderOps::default() });
    let destination = rules(HeaderOps { set: vec![one("x", "destination")], ..HeaderOps::default() });
    for (many, wanted) in [(false, "destination"), (true, "route")] {
        let mut map = HeaderMap::new();
        request(Some(&route), Some(&destination), many, &mut map, &facts());
        assert_eq!(lines(&map, "x"), [wanted]);
    }
}

#[test]
fn variables_are_filled_in_and_nothing_is_added_for_nothing() {
    let table = [
        ("%REQ(end-user)%", Some("jason")),
        ("%REQ(End-User):2%", Some("ja")),
        ("%REQ(absent?:path)%", Some("/a?b")),
        ("%REQ(absent)%", None),
        ("a%REQ(absent)%b", Some("ab")),
        ("%REQ(:authority)%", Some("reviews:9080")),
        ("%PROTOCOL%", Some("HTTP/1.1")),
        ("100%%", Some("100%")),
        ("%DOWNSTREAM_REMOTE_ADDRESS%", Some("10.0.0.9:0")),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", Some("10.0.0.9")),
        ("%DOWNSTREAM_DIRECT_REMOTE_PORT%", Some("4711")),
        ("%DOWNSTREAM_LOCAL_ADDRESS%", None),
        ("%START_TIME(%Y/%m)% %%", Some("2000/02 %")),
        ("%START_TIME(a%%b (c))%", Some("a%b (c)")),
        ("%QUERY_PARAM(b)%|%QUERY_PARAM(c)%", Some("|")),
        ("%ROUTE_NAME%", Some("canary")),
        ("%RESPONSE_FLAGS%", Some("-")),
        ("%RESPONSE_CODE_DETAILS%", None),
        ("%UPSTREAM_REQUEST_ATTEMPT_COUNT%", Some("2")),
        ("%UPSTREAM_CLUSTER%", None),
        ("%UPSTREAM_HOST%", None),
        ("%START_TIME%", Some("2000-02-29T00:00:00.123Z")),
        ("%HOSTNAME%", Some("vm1")),
        ("", None),
    ];
    for (template, wanted) in table {
        let ops = HeaderOps { add: vec![one("x", template)], ..HeaderOps::default() };
        let mut map = super::headers(&[("end-user", "jason")]);
        request(Some(&rules(ops)), None, false, &mut map, &facts());
        assert_eq!(lines(&map, "x").first().map(String::as_str), wanted, "{template}");
    }
}

#[test]
fn answers_may_quote_request_and_answer() {
    let rules = HeaderRules {
        response: HeaderOps {
            set: vec![one("x", "%RESP(y)% %REQ(y)% %RESPONSE_CODE%")],
            ..HeaderOps::default()
        },
        ..HeaderRules::default()
    };
    let mut answer = super::headers(&[("y", "answer")]);
    response(None, Some(&rules), true, &mut answer, &super::headers(&[("y", "asked")]), &facts());
    assert_eq!(lines(&answer, "x"), ["answer asked 200"]);
}

#[test]
fn bad_templates_are_refused_by_name() {
    assert!(matches!(parse("50%"), Err(BadTemplate::LonePercent(_))));
    assert!(parse("%SECRET%").expect_err("unknown").to_string().contains("\"%SECRET%\""));
    assert!(matches!(parse("a\nb"), Err(BadTemplate::NotAValue(_))));
    assert!(matches!(parse("%START_TIME(%Q)%"), Err(BadTemplate::BadTime(..))));
    assert!(matches!(parse("%REQ(x)"), Err(BadTemplate::LonePercent(_))));
    assert!(matches!(parse("%RESPONSE_CODE:2%"), Err(BadTemplate::UnknownVariable(_))));
    assert_eq!(
        parse("a %PROTOCOL%").expect("sound"),
        HeaderTemplate::Parts(vec![
            TemplatePart::Text("a ".into()),
            TemplatePart::Variable(Variable::Protocol)
        ])
    );
}

#[test]
fn the_route_sets_the_authority_before_the_destination() {
    let of = |host: &str| HeaderRules { authority: Some(host.into()), ..HeaderRules::default() };
    let (route, destination) = (of("route"), of("destination"));
    assert_eq!(authority(None, Some(&route), Some(&destination)), Some("route"));
    assert_eq!(authority(None, None, Some(&destination)), Some("destination"));
    let rewrite = Rewrite { authority: Some("rewrite".into()), ..Rewrite::default() };
    assert_eq!(authority(Some(&rewrite), None, None), Some("rewrite"));
}

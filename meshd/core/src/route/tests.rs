use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use rand_core::RngCore;

use super::*;
use crate::plan::{
    ClusterName, Cors, HeaderOps, HeaderRules, HeaderTarget, PathMatch, PortSource, Redirect, Rewrite,
    ValueMatch,
};

mod headers;

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    lines
        .iter()
        .map(|(name, value)| {
            (name.parse::<HeaderName>().expect("a name"), HeaderValue::from_str(value).expect("a value"))
        })
        .collect()
}

fn call<'a>(path: &'a str, headers: &'a HeaderMap) -> Call<'a> {
    let (path, query) = path::parts(path);
    Call { method: "GET", scheme: "http", authority: "reviews", path, query, headers }
}

fn path_matcher(path: PathMatch) -> Matcher {
    Matcher { path: Some(path), ..Matcher::default() }
}

fn prefix(value: &str) -> PathMatch {
    PathMatch::Prefix { value: value.into(), ignore_case: false }
}

fn exact(text: &str) -> ValueMatch {
    ValueMatch::Exact(text.into())
}

fn regex(text: &str) -> ValueMatch {
    ValueMatch::Regex(pattern::whole(text).expect("a pattern"))
}

#[test]
fn a_host_loses_port_and_case_but_keeps_its_dot() {
    let table = [
        ("reviews", "reviews"),
        ("Reviews:80", "reviews"),
        ("reviews:abc", "reviews"),
        ("reviews.:80", "reviews."),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
    ];
    for (authority, host) in table {
        assert_eq!(host_of(authority), host, "{authority}");
    }
}

#[test]
fn exact_hosts_beat_wildcards_and_longer_wildcards_beat_shorter_ones() {
    let mut hosts = crate::plan::HostTable::default();
    for host in ["*", "*.com", "*.example.com", "a.example.com"] {
        assert!(hosts.add(host, Arc::new(host)));
    }
    assert!(!hosts.add("*.COM", Arc::new("again")));
    let table = [
        ("a.example.com", "a.example.com"),
        ("a.b.example.com", "*.example.com"),
        ("example.com", "*.com"),
        ("com", "*"),
        ("", "*"),
        ("ü.com", "*.com"),
    ];
    for (host, found) in table {
        assert_eq!(hosts.find(host).map(|found| **found), Some(found), "{host}");
    }
}

#[test]
fn a_prefix_is_plain_bytes() {
    assert!(matcher::path_holds(&prefix("/api/v1"), "/api/v1beta"));
    assert!(!matcher::path_holds(&prefix("/slash/"), "/slash"));
    let loose = PathMatch::Prefix { value: "/api".into(), ignore_case: true };
    assert!(matcher::path_holds(&loose, "/API/x"));
    assert!(!matcher::path_holds(&loose, "/ä"));
}

#[test]
fn expressions_cover_the_whole_value_and_are_re2() {
    let table = [
        ("/a.*", "/abc", true),
        ("a", "/a", false),
        ("a|b", "ab", false),
        (r"\d+", "٣", false),
        (r"[\d-]+", "1-2", true),
        (r"[[a]", "[", true),
        (r"[]a]", "]", true),
        (r"[^]a]", "]", false),
        (r"\Qa.b\E", "a.b", true),
        (r"\Qa.b\E", "axb", false),
        (r"[a&&b]+", "&", true),
        ("[[:alpha:]]", "x", true),
        (r"(?i)abc", "ABC", true),
        (r"\w+", "é", false),
        (r"\<a\>", "<a>", true),
        ("[+--]", ",", true),
    ];
    for (re2, value, matches) in table {
        let regex = pattern::whole(re2).expect(re2);
        assert_eq!(regex.is_match(value), matches, "{re2} on {value}");
    }
    assert!(pattern::whole(r"(?=x)").is_err());
    assert!(pattern::whole("(").expect_err("is open").reason.contains("unclosed"));
}

#[test]
fn header_lines_are_tried_one_by_one() {
    let field = |condition| Matcher {
        headers: vec![(HeaderTarget::Field("end-user".parse().expect("a name")), condition)],
        ..Matcher::default()
    };
    let two = headers(&[("end-user", "a"), ("end-user", "b")]);
    assert!(matcher::holds(&field(exact("b")), &call("/", &two)));
    assert!(!matcher::holds(&field(exact("a,b")), &call("/", &two)));
    let empty = headers(&[("end-user", "")]);
    assert!(matcher::holds(&field(ValueMatch::Present), &call("/", &empty)));
    assert!(!matcher::holds(&field(regex(".*")), &call("/", &headers(&[]))));
}

#[test]
fn without_headers_takes_an_absent_header_for_an_empty_one() {
    let field = |condition| Matcher {
        without_headers: vec![(HeaderTarget::Field("x".parse().expect("a name")), condition)],
        ..Matcher::default()
    };
    let (absent, empty, prod) = (headers(&[]), headers(&[("x", "")]), headers(&[("x", "prod")]));
    let table = [
        (regex(".*"), [false, false, false]),
        (exact("prod"), [true, true, false]),
        (ValueMatch::Present, [true, false, false]),
        (exact(""), [false, false, true]),
    ];
    for (condition, wanted) in table {
        let matcher = field(condition.clone());
        let found = [&absent, &empty, &prod].map(|headers| matcher::holds(&matcher, &call("/", headers)));
        assert_eq!(found, wanted, "{condition:?}");
    }
}

#[test]
fn a_query_parameter_is_its_first_occurrence_in_raw_bytes() {
    let holds = |name: &str, condition, path| {
        let matcher = Matcher { query: vec![(name.into(), condition)], ..Matcher::default() };
        matcher::holds(&matcher, &call(path, &headers(&[])))
    };
    assert!(holds("v", exact("1"), "/?v=1&v=2"));
    assert!(!holds("v", exact("2"), "/?v=1&v=2"));
    assert!(!holds("v", exact("a b"), "/?v=a%20b"));
    assert!(!holds("V", ValueMatch::Present, "/?v=1"));
    assert!(holds("v", ValueMatch::Present, "/?v"));
    assert!(holds("v", exact(""), "/?a&v="));
    assert!(!holds("v", ValueMatch::Present, "/"));
}

#[test]
fn pseudo_headers_see_the_request_line() {
    let holds = |target, condition| {
        let matcher = Matcher { headers: vec![(target, condition)], ..Matcher::default() };
        matcher::holds(&matcher, &call("/a?b=c", &headers(&[])))
    };
    assert!(holds(HeaderTarget::Path, exact("/a?b=c")));
    assert!(holds(HeaderTarget::Method, exact("GET")));
    assert!(holds(HeaderTarget::Authority, exact("reviews")));
    assert!(!holds(HeaderTarget::Scheme, exact("https")));
}

#[test]
fn the_first_route_that_matches_counts() {
    let with = |matchers| Arc::new(Route { matchers, ..some_route() });
    let host = VirtualHost {
        host: "reviews".into(),
        port: 80,
        routes: vec![with(vec![path_matcher(prefix("/a")), path_matcher(prefix("/b"))]), with(vec![])],
        stamp: 0,
    };
    let headers = headers(&[]);
    let second = route(&host, &call("/b", &headers)).expect("a route");
    assert!(Arc::ptr_eq(second.route, &host.routes[0]));
    assert!(
        matches!(&second.matcher.expect("a matcher").path, Some(PathMatch::Prefix { value, .. }) if value == "/b")
    );
    let rest = route(&host, &call("/c", &headers)).expect("a route");
    assert!(Arc::ptr_eq(rest.route, &host.routes[1]) && rest.matcher.is_none());
}

#[test]
fn paths_take_one_form() {
    let table = [
        ("/plain/path.html", "/plain/path.html"),
        ("/x/../admin", "/admin"),
        ("/admin/./y", "/admin/y"),
        ("/admin/..", "/"),
        ("//admin", "//admin"),
        ("/x/%2e%2E/admin", "/admin"),
        ("/x%2f..%2fadmin", "/x%2f..%2fadmin"),
        ("/%61dmin", "/admin"),
        ("/adm%69n/%7Euser", "/admin/~user"),
        ("/x\\..\\admin", "/admin"),
        ("/x/..%5cadmin", "/x/..%5cadmin"),
        ("/../../admin", "/admin"),
        ("/admin/%zz", "/admin/%zz"),
        ("/a/;jsessionid=1/../b", "/a/b"),
        ("/a//../b", "/a/b"),
        ("/a/..;/b", "/b"),
        ("/a/..;x=1;y/b", "/b"),
        ("/a/.;x/b", "/a/b"),
        ("/a/b/..;/../c", "/c"),
        ("/a/...;/b", "/a/...;/b"),
        ("/a;x/../b", "/b"),
        ("/a/.", "/a/"),
        ("/a/b/..", "/a/"),
        ("/a/...", "/a/..."),
        ("/a/.b", "/a/.b"),
        ("/%c3%A4", "/%c3%A4"),
        ("/ä b", "/%C3%A4%20b"),
        ("/a%", "/a%"),
    ];
    for (raw, normal) in table {
        assert_eq!(path::normalise(raw).expect(raw), normal, "{raw}");
        assert_eq!(path::normalise(normal).expect(normal), normal, "{raw} twice");
    }
    assert_eq!(path::normalise("/a%00"), Err(path::BadPath));
    assert!(matches!(path::normalise("/a.b/c"), Ok(Cow::Borrowed(_))));
    assert_eq!(path::parts("/a?b=/../c#d"), ("/a", Some("b=/../c")));
    assert_eq!(path::parts("/a#?b"), ("/a", None));
}

#[test]
fn a_rewrite_replaces_what_was_matched() {
    let to = |path: &str| Rewrite { path: Some(path.into()), ..Rewrite::default() };
    let strip = path_matcher(prefix("/strip"));
    let whole = path_matcher(PathMatch::Exact { value: "/old".into(), ignore_case: false });
    let any = path_matcher(PathMatch::Regex(pattern::whole("/r.*").expect("a pattern")));
    let table = [
        ("/", Some(&strip), "/strip/a", "//a"),
        ("/", Some(&strip), "/stripped", "/ped"),
        ("/new", Some(&whole), "/old", "/new"),
        ("/new", Some(&any), "/r/x/y", "/new"),
        ("/front", None, "/a/b", "/fronta/b"),
        ("/front", Some(&Matcher::default()), "/a/b", "/fronta/b"),
    ];
    for (new, matcher, path, wanted) in table {
        assert_eq!(rewrite::path(&to(new), matcher, path).as_deref(), Some(wanted), "{path} to {new}");
    }
    let regex =
        (pattern::anywhere(r"/(\d)").expect("a pattern"), pattern::replacement(r"/n\1$").expect("sound"));
    let every = Rewrite { path_regex: Some(regex), ..Rewrite::default() };
    assert_eq!(rewrite::path(&every, None, "/1/2/a").as_deref(), Some("/n1$/n2$/a"));
    assert_eq!(rewrite::path(&Rewrite::default(), None, "/a"), None);
    assert!(pattern::replacement(r"\x").is_err());
}

#[test]
fn a_redirect_keeps_what_it_does_not_replace() {
    let plain = || Redirect {
        path: None,
        prefix: None,
        authority: None,
        scheme: None,
        port: PortSource::Keep,
        code: http::StatusCode::MOVED_PERMANENTLY,
    };
    let uri = |path: &str| Redirect { path: Some(path.into()), ..plain() };
    let https = |redirect: Redirect| Redirect { scheme: Some("https".into()), ..redirect };
    let table = [
        (uri("/moved"), "reviews", "/x/y?a=b", "http://reviews/moved?a=b"),
        (uri("/moved?fixed=1"), "reviews", "/x?a=b", "http://reviews/moved?fixed=1"),
        (uri("/moved"), "reviews:80", "/x", "http://reviews:80/moved"),
        (https(uri("/moved")), "reviews:80", "/x", "https://reviews/moved"),
        (https(uri("/moved")), "reviews:8080", "/x", "https://reviews:8080/moved"),
        (Redirect { authority: Some("other".into()), ..plain() }, "reviews:1", "/a?b", "http://other/a?b"),
        (Redirect { port: PortSource::Number(8443), ..plain() }, "reviews:1", "/", "http://reviews:8443/"),
        (Redirect { port: PortSource::FromRequest, ..plain() }, "reviews:1", "/", "http://reviews:9080/"),
        (Redirect { port: PortSource::Number(80), ..plain() }, "reviews:1", "/", "http://reviews:1/"),
        (uri("moved"), "reviews", "/x", "http://reviews/moved"),
        (Redirect { port: PortSource::Number(1), ..plain() }, "[::1]:8080", "/", "http://[::1]:1/"),
    ];
    for (redirect, authority, target, wanted) in table {
        let headers = headers(&[]);
        let call = Call { authority, ..call(target, &headers) };
        assert_eq!(rewrite::location(&redirect, &call, None, 9080), wanted);
    }
}

#[test]
fn cors_answers_preflights_and_marks_answers() {
    let cors = Cors {
        allow_origins: vec![exact("https://example.com")],
        allow_methods: Some(HeaderValue::from_static("POST,GET")),
        expose_headers: Some(HeaderValue::from_static("X-E")),
        forward_unmatched: true,
        ..Cors::default()
    };
    let asks = |origin| headers(&[("origin", origin), ("access-control-request-method", "PUT")]);
    let cors::CorsVerdict::Preflight(answer) = cors::decide(&cors, "OPTIONS", &asks("https://example.com"))
    else {
        panic!("a preflight");
    };
    assert_eq!(answer["access-control-allow-methods"], "POST,GET");
    assert_eq!(answer["access-control-allow-origin"], "https://example.com");
    assert_eq!(cors::decide(&cors, "OPTIONS", &asks("https://Example.com")), cors::CorsVerdict::None);
    let actual = cors::decide(&cors, "GET", &headers(&[("origin", "https://example.com")]));
    assert!(matches!(actual, cors::CorsVerdict::Actual(marks) if marks.len() == 2));
    let ignoring = Cors { forward_unmatched: false, ..cors.clone() };
    let cors::CorsVerdict::Preflight(answer) = cors::decide(&ignoring, "OPTIONS", &asks("https://other"))
    else {
        panic!("a preflight");
    };
    assert!(!answer.contains_key("access-control-allow-origin"));
    let star = Some(HeaderValue::from_static("*"));
    let anything = Cors { allow_methods: star.clone(), allow_headers: star, ..cors.clone() };
    let cors::CorsVerdict::Preflight(answer) =
        cors::decide(&anything, "OPTIONS", &asks("https://example.com"))
    else {
        panic!("a preflight");
    };
    assert_eq!(answer["access-control-allow-methods"], "PUT", "what was asked for");
    assert_eq!(answer["access-control-allow-headers"], "", "nothing was asked for");
    assert_eq!(cors::decide(&ignoring, "GET", &asks("https://other")), cors::CorsVerdict::None);
    let any = Cors { allow_origins: vec![exact("*")], ..cors };
    assert!(matches!(cors::decide(&any, "GET", &asks("https://x")), cors::CorsVerdict::Actual(_)));
}

#[test]
fn weights_are_shares_and_zero_is_nothing() {
    let to = |weight| WeightedCluster {
        weight,
        cluster: None,
        name: ClusterName { host: "h".into(), port: 80, subset: "".into() },
        headers: None,
    };
    let destinations = [to(0), to(90), to(10)];
    let mut rng = Counter(0);
    let mut counts = [0_u32; 3];
    for _ in 0..10_000 {
        let chosen = split(&destinations, 100, &mut rng);
        let index = destinations.iter().position(|one| std::ptr::eq(one, chosen)).expect("one of them");
        counts[index] += 1;
    }
    assert_eq!(counts, [0, 9_000, 1_000]);
    let only = [to(0)];
    assert!(std::ptr::eq(split(&only, 0, &mut rng), &raw const only[0]));
}

#[test]
fn the_scheme_follows_the_target_then_the_forwarded_proto() {
    let forwarded = headers(&[("x-forwarded-proto", "https")]);
    assert_eq!(scheme_of(None, &forwarded), "https");
    assert_eq!(scheme_of(Some("http"), &forwarded), "http");
    assert_eq!(scheme_of(None, &headers(&[("x-forwarded-proto", "HTTPS")])), "https");
    assert_eq!(scheme_of(None, &headers(&[("x-forwarded-proto", "gopher")])), "http");
}

/// Walks evenly through all numbers.
struct Counter(u64);

impl RngCore for Counter {
    fn next_u32(&mut self) -> u32 {
        u32::try_from(self.next_u64() >> 32).unwrap_or_default()
    }
    fn next_u64(&mut self) -> u64 {
        self.0 += 1;
        (self.0 * (u64::MAX / 10_000)).wrapping_sub(1 << 40)
    }
    fn fill_bytes(&mut self, _: &mut [u8]) {}
}

fn some_route() -> Route {
    Route {
        origin: crate::plan::Origin::default(),
        matchers: Vec::new(),
        action: crate::plan::Action::Direct(Box::new(crate::plan::DirectResponse {
            status: http::StatusCode::OK,
            body: bytes::Bytes::new(),
        })),
        headers: None,
        fault: None,
        cors: None,
    }
}

fn rules(request: HeaderOps) -> HeaderRules {
    HeaderRules { request, ..HeaderRules::default() }
}

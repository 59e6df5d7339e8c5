use super::*;

fn outcome(line: &str, fields: &[(&str, &str)]) -> u16 {
    let mut words = line.split(' ');
    let method = Method::from_bytes(words.next().expect("method").as_bytes()).expect("a token");
    let uri: Uri = words.next().expect("target").parse().expect("a target");
    let version = match words.next() {
        Some("HTTP/1.0") => Version::HTTP_10,
        Some("HTTP/2") => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name: HeaderName = name.parse().expect("a name");
        headers.append(name, HeaderValue::from_str(value).expect("a value"));
    }
    let result = check(&method, &uri, version, &headers, &Limits::default());
    result.map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
}

#[test]
fn an_answer_that_frames_its_body_twice_is_refused() {
    let cases: [(&[(&str, &str)], bool); 8] = [
        (&[("content-length", "3")], true),
        (&[("content-length", "3"), ("content-length", "4")], false),
        (&[("content-length", "3"), ("content-length", "3")], false),
        (&[("content-length", "x")], false),
        (&[("transfer-encoding", "chunked")], true),
        (&[("transfer-encoding", "chunked"), ("content-length", "3")], false),
        (&[("transfer-encoding", "gzip, chunked")], false),
        (&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], false),
    ];
    for (fields, sound) in cases {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).expect("a name"),
                HeaderValue::from_str(value).expect("a value"),
            );
        }
        let checked = check_answer(StatusCode::OK, Version::HTTP_11, &headers);
        assert_eq!(checked.is_ok(), sound, "{fields:?}");
    }
}

#[test]
fn no_content_has_no_length() {
    for (length, sound) in [("0", true), ("5", false)] {
        let mut headers = HeaderMap::new();
        headers.insert("content-length", HeaderValue::from_static(length));
        assert_eq!(
            check_answer(StatusCode::NO_CONTENT, Version::HTTP_2, &headers).is_ok(),
            sound,
            "{length}"
        );
    }
}

/// A request line, its fields, the status it gets.
type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, u16);

#[test]
fn heads_are_taken_or_refused() {
    let host = ("host", "reviews");
    let long = "a".repeat(70_000);
    let long_uri = format!("GET /{}", "a".repeat(17_000));
    let many: Vec<(&str, &str)> = (0..101).map(|_| ("x-a", "1")).chain([host]).collect();
    let cases: Vec<Case<'_>> = vec![
        ("GET /", vec![host], 200),
        ("GET /", vec![], 400),
        ("GET /", vec![("host", "")], 400),
        ("GET /", vec![host, ("host", "ratings")], 400),
        ("GET /", vec![host, host], 400),
        ("GET /", vec![("host", "a/b")], 400),
        ("GET /", vec![("host", "a@b")], 400),
        ("GET /", vec![("host", "a b")], 400),
        ("GET /", vec![("host", "[::1]:80")], 200),
        ("GET http://other/x", vec![host], 200),
        ("GET http://other", vec![host], 200),
        ("GET *", vec![host], 400),
        ("OPTIONS *", vec![host], 200),
        ("GET * HTTP/2", vec![host], 400),
        ("GET reviews", vec![host], 400),
        ("GET reviews:80", vec![host], 400),
        ("GET ftp://other/x", vec![host], 400),
        ("GET http://other/x HTTP/2", vec![("host", "OTHER")], 200),
        ("GET http://other/x HTTP/2", vec![host], 400),
        ("get /", vec![host], 400),
        ("FOO /", vec![host], 400),
        ("FOO http://a/ HTTP/2", vec![], 200),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJK http://a/ HTTP/2", vec![], 400),
        ("CONNECT a:443", vec![], 200),
        ("CONNECT a", vec![], 400),
        (&long_uri, vec![host], 414),
        ("GET /a%00b", vec![host], 400),
        ("GET /a%2500b", vec![host], 200),
        ("GET /", vec![host, ("x-long", &long)], 431),
        ("GET /", many, 431),
        ("POST /", vec![host, ("content-length", "3"), ("transfer-encoding", "chunked")], 400),
        ("POST /", vec![host, ("content-length", "3"), ("content-length", "3")], 400),
        ("POST /", vec![host, ("content-length", "+3")], 400),
        ("POST /", vec![host, ("content-length", "")], 400),
        ("POST /", vec![host, ("content-length", "3")], 200),
        ("POST /", vec![host, ("transfer-encoding", "chunked")], 200),
        ("POST /", vec![host, ("transfer-encoding", "Chunked")], 200),
        ("POST /", vec![host, ("transfer-encoding", "gzip, chunked")], 501),
        ("POST /", vec![host, ("transfer-encoding", "xchunked")], 501),
        ("POST /", vec![host, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], 400),
        ("POST / HTTP/1.0", vec![host, ("transfer-encoding", "chunked")], 400),
        ("GET /", vec![host, ("connection", "close, X-Forwarded-For")], 400),
        ("GET /", vec![host, ("connection", "Host")], 400),
        ("GET /", vec![host, ("connection", "x-mesh-instance")], 400),
        ("GET /", vec![host, ("connection", "keep-alive, x-hop")], 200),
        ("GET /", vec![host, ("expect", "100-continue")], 200),
        ("GET /", vec![host, ("expect", "200-ok")], 417),
    ];
    for (line, fields, expected) in cases {
        let shown: Vec<String> =
            fields.iter().map(|(n, v)| format!("{n}: {}", &v[..v.len().min(40)])).collect();
        assert_eq!(outcome(line, &fields), expected, "{} {shown:?}", &line[..line.len().min(60)]);
    }
}

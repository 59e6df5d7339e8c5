use super::*;

/// Shows bytes all at once; returns how many pass and the status of a refusal.
fn whole(bytes: &[u8]) -> (usize, Outcome) {
    let seen = Requests::new(Limits::default()).admit(bytes);
    (seen.pass, seen.refused.map(|refused| (refused.refusal.status.as_u16(), refused.part)))
}

/// Shows bytes in pieces, what is held back again each time.
fn pieces(bytes: &[u8], sizes: &[usize]) -> (usize, Outcome) {
    let (mut requests, mut passed, mut shown) = (Requests::new(Limits::default()), 0, 0);
    let mut sizes = sizes.iter().cycle();
    while shown < bytes.len() {
        shown = (shown + sizes.next().expect("a size")).min(bytes.len());
        let seen = requests.admit(&bytes[passed..shown]);
        passed += seen.pass;
        if let Some(refused) = seen.refused {
            return (passed, Some((refused.refusal.status.as_u16(), refused.part)));
        }
    }
    (passed, None)
}

/// The status of a refusal, and what it is about.
type Outcome = Option<(u16, Part)>;

const HEAD: Outcome = Some((400, Part::Head));
const BODY: Outcome = Some((400, Part::Body));
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\n";
const CHUNKED: &str = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn framing_that_two_readers_could_read_differently_is_refused() {
    let cases: &[(&str, &str, Outcome)] = &[
        ("", "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", HEAD),
        (POST, "Content-Length: 3\r\n\r\nabc", None),
        (POST, "Content-Length:3 \r\n\r\nabc", None),
        (POST, "Transfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", None),
        (POST, "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", HEAD),
        (POST, "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", HEAD),
        (POST, "Content-Length: 3\r\nContent-Length: 3\r\n\r\n", HEAD),
        (POST, "Content-Length: 3\r\ncontent-length: 4\r\n\r\n", HEAD),
        (POST, "Content-Length: 3, 3\r\n\r\n", HEAD),
        (POST, "Content-Length: +3\r\n\r\n", HEAD),
        (POST, "Content-Length: -3\r\n\r\n", HEAD),
        (POST, "Content-Length: 0x3\r\n\r\n", HEAD),
        (POST, "Content-Length:\r\n\r\n", HEAD),
        (POST, "Content-Length: 18446744073709551616\r\n\r\n", HEAD),
        (POST, "Content-Length : 3\r\n\r\n", HEAD),
        (POST, "Transfer-Encoding : chunked\r\n\r\n", HEAD),
        (POST, "Transfer-Encoding: \x0bchunked\r\n\r\n", HEAD),
        (POST, "Transfer-Encoding:\r\n\r\n", HEAD),
        (POST, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", HEAD),
        (POST, "Transfer-Encoding: gzip, chunked\r\n\r\n", Some((501, Part::Head))),
        (POST, "Transfer-Encoding: xchunked\r\n\r\n", Some((501, Part::Head))),
        (POST, "X: a\r\n b\r\n\r\n", HEAD),
        (POST, "X: a\n\r\n", HEAD),
        (POST, "X: a\rb\r\n\r\n", HEAD),
        (POST, "X: a\0b\r\n\r\n", HEAD),
        (POST, "X Y: a\r\n\r\n", HEAD),
        (POST, "X : a\r\n\r\n", HEAD),
        (POST, ": a\r\n\r\n", HEAD),
        (POST, "X\r\n\r\n", HEAD),
        ("GET /a b HTTP/1.1\r\n", "\r\n", HEAD),
        ("GET /\u{e4} HTTP/1.1\r\n", "\r\n", HEAD),
        ("\u{1}", "", HEAD),
        ("{\"a\"", "", HEAD),
        ("GET  HTTP/1.1\r\n", "\r\n", HEAD),
        (POST, "X: a\r\n\n", HEAD),
        ("GET / HTTP/1.1\n", "\n", HEAD),
        ("POST / HTTP/1.0\r\n", "Transfer-Encoding: chunked\r\n\r\n", HEAD),
        ("GET / HTTP/1.2\r\n", "\r\n", Some((505, Part::Head))),
        ("PRI * HTTP/2.0\r\n", "\r\n", Some((505, Part::Head))),
        ("GET /\r\n", "", HEAD),
        ("GET / HTTP/one\r\n", "", HEAD),
        (CHUNKED, "3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n", None),
        (CHUNKED, "003 \r\nabc\r\n0\r\n\r\n", None),
        (CHUNKED, "0x2\r\nab\r\n0\r\n\r\n", BODY),
        (CHUNKED, "\r\nab\r\n0\r\n\r\n", BODY),
        (CHUNKED, "fffffffffffffffff\r\n", BODY),
        (CHUNKED, "2\nab\r\n0\r\n\r\n", BODY),
        (CHUNKED, "2;a\nb\r\nab\r\n0\r\n\r\n", BODY),
        (CHUNKED, "2;a\rb\r\nab\r\n0\r\n\r\n", BODY),
        (CHUNKED, "2\r\nabc\r\n0\r\n\r\n", BODY),
        (CHUNKED, "2\r\nab\n0\r\n\r\n", BODY),
        (CHUNKED, "0\r\nX: a\n\r\n", BODY),
        (CHUNKED, "0\r\n X: a\r\n\r\n", BODY),
    ];
    for (start, rest, expected) in cases {
        let bytes = format!("{start}{rest}");
        let (passed, refused) = whole(bytes.as_bytes());
        assert_eq!(refused, *expected, "{bytes:?}");
        if expected.is_none() {
            assert_eq!(passed, bytes.len(), "{bytes:?}");
        }
        if matches!(expected, Some((_, Part::Head))) {
            assert_eq!(passed, 0, "{bytes:?}");
        }
    }
}

#[test]
fn limits_are_told_before_all_of_it_has_come() {
    let long = |count: usize| "a".repeat(count);
    let cases = [
        (format!("GET /{}", long(20_000)), 414),
        (format!("GET /{} HTTP/1.1\r\n", long(16_500)), 414),
        (format!("{} / HTTP/1.1\r\n", long(33)), 400),
        (format!("{POST}X: {}", long(90_000)), 431),
        (format!("{POST}{}", "X: y\r\n".repeat(100)), 431),
        (format!("{CHUNKED}2;{}", long(5_000)), 400),
        (format!("{CHUNKED}0\r\nX: {}", long(20_000)), 431),
    ];
    for (bytes, status) in cases {
        let (_, refused) = whole(bytes.as_bytes());
        assert_eq!(refused.map(|(status, _)| status), Some(status), "{}…", &bytes[..40]);
    }
    let full = format!("{POST}{}\r\n", "X: y\r\n".repeat(99));
    assert_eq!(whole(full.as_bytes()), (full.len(), None));
}

#[test]
fn a_head_passes_only_whole_and_each_after_the_other() {
    let first = "\r\nGET /a HTTP/1.1\r\nHost: a\r\n\r\n";
    let second = "POST /b HTTP/1.1\r\nContent-Length: 2\r\n\r\nxy";
    let both = format!("{first}{second}GET /c HT");

    let mut requests = Requests::new(Limits::default());
    assert_eq!(requests.admit(both.as_bytes()), Seen { pass: first.len() + second.len(), refused: None });
    assert_eq!(requests.begun(), 2);
    assert_eq!(requests.admit(b"GET /c HTTP/1.1\r\n"), Seen { pass: 0, refused: None });
}

#[test]
fn nothing_passes_behind_a_request_to_switch_until_it_stays_http() {
    for head in ["GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"]
    {
        let mut requests = Requests::new(Limits::default());
        let sent = format!("{head}GET / HTTP/1.1\nbad");
        assert_eq!(requests.admit(sent.as_bytes()), Seen { pass: head.len(), refused: None });
        assert!(requests.is_switching());
        requests.stay();
        assert!(requests.admit(&sent.as_bytes()[head.len()..]).refused.is_some());
    }
}

proptest::proptest! {
    #[test]
    fn pieces_mean_what_the_whole_means(
        start in proptest::sample::select(vec!["", POST, CHUNKED, "GET / HTTP/1.1\r\n"]),
        parts in proptest::collection::vec(
            proptest::sample::select(vec![
                "GET / HTTP/1.1\r\n", "POST /x HTTP/1.1\r\n", "Host: a\r\n", "Content-Length: 5\r\n", "\r\n", "hello",
                "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n", "0\r\n\r\n", "0\r\n", "X: y\r\n", "\n", "\r", " ",
                "5;e\r\n", "Upgrade: h\r\n",
            ]),
            0..24,
        ),
        sizes in proptest::collection::vec(1usize..20, 1..8),
    ) {
        let bytes = format!("{start}{}", parts.concat());
        let (one, many) = (whole(bytes.as_bytes()), pieces(bytes.as_bytes(), &sizes));
        proptest::prop_assert_eq!(one.1, many.1);
        // What passes of a body before it is refused depends on how it came.
        if !matches!(one.1, Some((_, Part::Body))) {
            proptest::prop_assert_eq!(one.0, many.0);
        }
    }

    #[test]
    fn any_bytes_give_an_answer(bytes in proptest::collection::vec(0u8.., 0..300)) {
        let (passed, _) = whole(&bytes);
        proptest::prop_assert!(passed <= bytes.len());
    }
}

//! What every server must take: h2spec's "generic".

use super::*;

pub(super) fn cases() -> Vec<Case> {
    let halves = get_block(&[("x-a", "1"), ("x-b", "2")]);
    let (first, rest) = halves.split_at(halves.len() / 2);
    let (second, third) = rest.split_at(rest.len() / 2);
    let padded = |block: &[u8]| [&[4][..], block, &[0; 4]].concat();
    vec![
        case("generic 1: a preface", &[], Alive),
        case("generic 2: PRIORITY on an idle stream", &[priority(1, 0, 15)], Alive),
        case("generic 2: WINDOW_UPDATE on a half-closed stream", &[slow_get(1), window(1, 9)], Answer),
        case("generic 2: PRIORITY on a half-closed stream", &[slow_get(1), priority(1, 0, 15)], Answer),
        case("generic 2: RST_STREAM on a half-closed stream", &[slow_get(1), reset(1, 8)], Alive),
        after_answer("generic 2: PRIORITY on a closed stream", get(1), priority(1, 0, 15), Alive),
        case("generic 3.1: DATA", &[post(1), data(1, END_STREAM, b"a")], Answer),
        case("generic 3.1: several DATA", &[post(1), data(1, 0, b"a"), data(1, END_STREAM, b"b")], Answer),
        case("generic 3.1: padded DATA", &[post(1), data(1, END_STREAM | PADDED, &padded(b"a"))], Answer),
        case("generic 3.2: HEADERS", &[get(1)], Answer),
        case(
            "generic 3.2: padded HEADERS",
            &[frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &padded(&get_block(&[])))],
            Answer,
        ),
        case(
            "generic 3.2: HEADERS with priority",
            &[frame(
                HEADERS,
                END_STREAM | END_HEADERS | PRIORITIZED,
                1,
                &[&[0, 0, 0, 0, 9], &*get_block(&[])].concat(),
            )],
            Answer,
        ),
        case("generic 3.3: priority 1", &[priority(1, 0, 0)], Alive),
        case("generic 3.3: priority 256", &[priority(1, 0, 255)], Alive),
        case("generic 3.3: a dependency", &[priority(1, 0, 255), priority(3, 1, 255)], Alive),
        case("generic 3.3: exclusive", &[priority(3, 1 << 31 | 1, 15)], Alive),
        case("generic 3.3: PRIORITY of a higher stream first", &[priority(5, 0, 15), get(1)], Answer),
        case("generic 3.4: RST_STREAM", &[slow_get(1), reset(1, 8)], Alive),
        case("generic 3.5: SETTINGS", &[settings_of(&[(3, 100)])], Acknowledged),
        case("generic 3.7: PING", &[], Echo),
        case("generic 3.8: GOAWAY", &[frame(GOAWAY, 0, 0, &[0; 8])], Ended),
        case("generic 3.9: WINDOW_UPDATE of the connection", &[window(0, 1)], Alive),
        case("generic 3.9: WINDOW_UPDATE of a stream", &[slow_get(1), window(1, 1)], Answer),
        case(
            "generic 3.10: CONTINUATION",
            &[frame(HEADERS, END_STREAM, 1, first), frame(CONTINUATION, END_HEADERS, 1, rest)],
            Answer,
        ),
        case(
            "generic 3.10: several CONTINUATION",
            &[
                frame(HEADERS, END_STREAM, 1, first),
                frame(CONTINUATION, 0, 1, second),
                frame(CONTINUATION, END_HEADERS, 1, third),
            ],
            Answer,
        ),
        case("generic 4: GET", &[get(1)], Answer),
        case("generic 4: HEAD", &[head_without(":method", &[(":method", "HEAD")])], Answer),
        case("generic 4: POST", &[post(1), data(1, END_STREAM, b"test")], Answer),
        case(
            "generic 4: POST with trailers",
            &[
                post(1),
                data(1, 0, b"a"),
                frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&[("x-test", "ok")])),
            ],
            Answer,
        ),
        // `a` in Huffman's code is 0x1f; 58 is `user-agent`.
        case("generic 5: indexed", &[indexed_get()], Answer),
        case("generic 5: incremental, indexed name", &[encoded(&[0x7a, 1, b'a'])], Answer),
        case("generic 5: incremental, indexed name, Huffman", &[encoded(&[0x7a, 0x81, 0x1f])], Answer),
        case("generic 5: incremental, new name", &[encoded(&[0x40, 1, b'x', 1, b'a'])], Answer),
        case(
            "generic 5: incremental, new name, Huffman",
            &[encoded(&[0x40, 0x81, 0x1f, 0x81, 0x1f])],
            Answer,
        ),
        case("generic 5: not indexed, indexed name", &[encoded(&[0x0f, 0x2b, 1, b'a'])], Answer),
        case("generic 5: not indexed, indexed name, Huffman", &[encoded(&[0x0f, 0x2b, 0x81, 0x1f])], Answer),
        case("generic 5: not indexed, new name", &[encoded(&[0, 1, b'x', 1, b'a'])], Answer),
        case("generic 5: not indexed, new name, Huffman", &[encoded(&[0, 0x81, 0x1f, 0x81, 0x1f])], Answer),
        case("generic 5: never indexed, indexed name", &[encoded(&[0x1f, 0x2b, 1, b'a'])], Answer),
        case(
            "generic 5: never indexed, indexed name, Huffman",
            &[encoded(&[0x1f, 0x2b, 0x81, 0x1f])],
            Answer,
        ),
        case("generic 5: never indexed, new name", &[encoded(&[0x10, 1, b'x', 1, b'a'])], Answer),
        case(
            "generic 5: never indexed, new name, Huffman",
            &[encoded(&[0x10, 0x81, 0x1f, 0x81, 0x1f])],
            Answer,
        ),
        case("generic 5: a size of the table", &[encoded_first(&[0x3f, 0xe1, 0x1f])], Answer),
        case("generic 5: several sizes of the table", &[encoded_first(&[0x20, 0x3f, 0xe1, 0x1f])], Answer),
    ]
}

/// A GET whose method, scheme and path are entries of the static table.
fn indexed_get() -> Vec<u8> {
    frame(
        HEADERS,
        END_STREAM | END_HEADERS,
        1,
        &[&[0x82, 0x86, 0x84][..], &block(&[(":authority", "reviews"), INSTANCE])].concat(),
    )
}

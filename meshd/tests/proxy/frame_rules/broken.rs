//! What a server must refuse, and with which code, beside what it must ignore: h2spec's "http2" and "hpack".

use super::*;

const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;

/// Sections 3 to 5: how a connection begins, frames, states of streams.
pub(super) fn connections() -> Vec<Case> {
    let open_block = frame(HEADERS, END_STREAM, 1, &get_block(&[]));
    let long = vec![b'a'; 17_000];
    vec![
        case("3.5: a preface", &[], SettingsFirst),
        case("4.1: a frame of unknown type", &[frame(77, 0, 0, &[0; 8])], Alive),
        case("4.1: an undefined flag", &[frame(PING, 0xfe, 0, &[0; 8])], Alive),
        case("4.1: the reserved bit", &[frame(PING, 0, 1 << 31, &[0; 8])], Alive),
        case("4.2: DATA of 16,384 octets", &[post(1), data(1, END_STREAM, &long[..16_384])], Answer),
        case("4.2: DATA of more", &[post(1), data(1, END_STREAM, &long)], Either(FRAME_SIZE_ERROR)),
        case(
            "4.2: HEADERS of more",
            &[frame(HEADERS, END_STREAM | END_HEADERS, 1, &[&get_block(&[])[..], &long].concat())],
            Goaway(FRAME_SIZE_ERROR),
        ),
        case("4.3: a block that is none", &[encoded(&[0x40])], Goaway(COMPRESSION_ERROR)),
        case(
            "4.3: PRIORITY within a block",
            &[open_block.clone(), priority(1, 0, 9)],
            Goaway(PROTOCOL_ERROR),
        ),
        case(
            "4.3: HEADERS of another stream within a block",
            &[open_block.clone(), get(3)],
            Goaway(PROTOCOL_ERROR),
        ),
        case("5.1: DATA on an idle stream", &[data(1, END_STREAM, b"a")], Goaway(PROTOCOL_ERROR)),
        case("5.1: RST_STREAM on an idle stream", &[reset(1, 8)], Goaway(PROTOCOL_ERROR)),
        case("5.1: WINDOW_UPDATE on an idle stream", &[window(1, 100)], Goaway(PROTOCOL_ERROR)),
        case(
            "5.1: CONTINUATION on an idle stream",
            &[frame(CONTINUATION, END_HEADERS, 1, &get_block(&[]))],
            Goaway(PROTOCOL_ERROR),
        ),
        case(
            "5.1: DATA on a half-closed stream",
            &[slow_get(1), data(1, END_STREAM, b"a")],
            Either(STREAM_CLOSED),
        ),
        case("5.1: HEADERS on a half-closed stream", &[slow_get(1), get(1)], Either(STREAM_CLOSED)),
        case(
            "5.1: CONTINUATION on a half-closed stream",
            &[slow_get(1), frame(CONTINUATION, END_HEADERS, 1, &[])],
            Goaway(PROTOCOL_ERROR),
        ),
        case(
            "5.1: DATA after RST_STREAM",
            &[post(1), reset(1, 8), data(1, END_STREAM, b"a")],
            Either(STREAM_CLOSED),
        ),
        case("5.1: HEADERS after RST_STREAM", &[post(1), reset(1, 8), get(1)], Either(STREAM_CLOSED)),
        case(
            "5.1: CONTINUATION after RST_STREAM",
            &[post(1), reset(1, 8), frame(CONTINUATION, END_HEADERS, 1, &[])],
            Goaway(PROTOCOL_ERROR),
        ),
        after_answer(
            "5.1: DATA on a closed stream",
            get(1),
            data(1, END_STREAM, b"a"),
            Either(STREAM_CLOSED),
        ),
        after_answer("5.1: HEADERS on a closed stream", get(1), get(1), Either(STREAM_CLOSED)),
        after_answer(
            "5.1: CONTINUATION on a closed stream",
            get(1),
            frame(CONTINUATION, END_HEADERS, 1, &[]),
            Goaway(PROTOCOL_ERROR),
        ),
        case("5.1.1: an even stream", &[get(2)], Goaway(PROTOCOL_ERROR)),
        case("5.1.1: a lower stream", &[slow_get(5), get(3)], Goaway(PROTOCOL_ERROR)),
        case(
            "5.3.1: HEADERS that depend on themselves",
            &[frame(
                HEADERS,
                END_STREAM | END_HEADERS | PRIORITIZED,
                1,
                &[&[0, 0, 0, 1, 9], &*get_block(&[])].concat(),
            )],
            Either(PROTOCOL_ERROR),
        ),
        case("5.3.1: PRIORITY that depends on itself", &[priority(2, 2, 9)], Either(PROTOCOL_ERROR)),
        case("5.4.1: a bad PING ends the connection", &[frame(PING, 0, 0, &[0; 6])], Ended),
        case("5.4.1: a bad PING is told", &[frame(PING, 0, 0, &[0; 6])], Goaway(FRAME_SIZE_ERROR)),
        case("5.5: an extension", &[frame(22, 0, 0, &[0; 8])], Alive),
        case(
            "5.5: an extension within a block",
            &[open_block, frame(22, 0, 1, &[0; 8])],
            Goaway(PROTOCOL_ERROR),
        ),
    ]
}

/// Sections 6 and 7: each kind of frame.
pub(super) fn frames() -> Vec<Case> {
    let most = (1_u32 << 31) - 1;
    vec![
        case("6.1: DATA of stream 0", &[post(1), data(0, END_STREAM, b"a")], Goaway(PROTOCOL_ERROR)),
        case(
            "6.1: DATA on a stream that is not open",
            &[slow_get(1), data(1, END_STREAM, b"a")],
            Either(STREAM_CLOSED),
        ),
        case(
            "6.1: padding longer than DATA",
            &[post(1), data(1, END_STREAM | PADDED, &[6, b'a'])],
            Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.2: HEADERS, then PRIORITY",
            &[frame(HEADERS, END_STREAM, 1, &get_block(&[])), priority(1, 0, 9)],
            Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.2: HEADERS, then those of another stream",
            &[frame(HEADERS, END_STREAM, 1, &get_block(&[])), get(3)],
            Goaway(PROTOCOL_ERROR),
        ),
        case("6.2: HEADERS of stream 0", &[get(0)], Goaway(PROTOCOL_ERROR)),
        case(
            "6.2: padding longer than HEADERS",
            &[frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &[&[255], &*get_block(&[])].concat())],
            Goaway(PROTOCOL_ERROR),
        ),
        case("6.3: PRIORITY of stream 0", &[priority(0, 0, 9)], Goaway(PROTOCOL_ERROR)),
        case(
            "6.3: PRIORITY of 4 octets",
            &[slow_get(1), frame(PRIORITY, 0, 1, &[0; 4])],
            Either(FRAME_SIZE_ERROR),
        ),
        case("6.4: RST_STREAM of stream 0", &[reset(0, 8)], Goaway(PROTOCOL_ERROR)),
        case("6.4: RST_STREAM on an idle stream", &[reset(1, 8)], Goaway(PROTOCOL_ERROR)),
        case(
            "6.4: RST_STREAM of 3 octets",
            &[slow_get(1), frame(RST_STREAM, 0, 1, &[0; 3])],
            Goaway(FRAME_SIZE_ERROR),
        ),
        case(
            "6.5: an acknowledgement with a payload",
            &[frame(SETTINGS, ACK, 0, &setting(4, 100))],
            Goaway(FRAME_SIZE_ERROR),
        ),
        case("6.5: SETTINGS of a stream", &[frame(SETTINGS, 0, 1, &setting(3, 100))], Goaway(PROTOCOL_ERROR)),
        case("6.5: SETTINGS of 3 octets", &[frame(SETTINGS, 0, 0, &[0; 3])], Goaway(FRAME_SIZE_ERROR)),
        case("6.5.2: a push that is 2", &[settings_of(&[(2, 2)])], Goaway(PROTOCOL_ERROR)),
        case(
            "6.5.2: a window above the greatest",
            &[settings_of(&[(4, 1 << 31)])],
            Goaway(FLOW_CONTROL_ERROR),
        ),
        case("6.5.2: frames below the smallest", &[settings_of(&[(5, 16_383)])], Goaway(PROTOCOL_ERROR)),
        case("6.5.2: frames above the largest", &[settings_of(&[(5, 1 << 24)])], Goaway(PROTOCOL_ERROR)),
        case("6.5.2: an unknown setting", &[settings_of(&[(99, 1)])], Alive),
        case("6.5.3: one setting twice", &[settings_of(&[(4, 100), (4, 1)]), get(1)], Data(1)),
        case("6.5.3: SETTINGS are acknowledged", &[settings_of(&[(3, 7)])], Acknowledged),
        case("6.7: PING", &[], Echo),
        case("6.7: an answer to no PING", &[frame(PING, ACK, 0, b"no reply")], Echo),
        case("6.7: PING of a stream", &[frame(PING, 0, 1, &[0; 8])], Goaway(PROTOCOL_ERROR)),
        case("6.7: PING of 6 octets", &[frame(PING, 0, 0, &[0; 6])], Goaway(FRAME_SIZE_ERROR)),
        case("6.8: GOAWAY of a stream", &[frame(GOAWAY, 0, 1, &[0; 8])], Goaway(PROTOCOL_ERROR)),
        case("6.9: a window moved by 0", &[window(0, 0)], Goaway(PROTOCOL_ERROR)),
        case("6.9: a stream's window moved by 0", &[slow_get(1), window(1, 0)], Either(PROTOCOL_ERROR)),
        case(
            "6.9: WINDOW_UPDATE of 3 octets",
            &[frame(WINDOW_UPDATE, 0, 0, &[0; 3])],
            Goaway(FRAME_SIZE_ERROR),
        ),
        case("6.9.1: a window of 1", &[settings_of(&[(4, 1)]), get(1)], Data(1)),
        case(
            "6.9.1: a window moved beyond the greatest",
            &[window(0, most), window(0, most)],
            Goaway(FLOW_CONTROL_ERROR),
        ),
        case(
            "6.9.1: a stream's window moved beyond the greatest",
            &[slow_get(1), window(1, most), window(1, most)],
            Either(FLOW_CONTROL_ERROR),
        ),
        case(
            "6.9.2: windows changed after HEADERS",
            &[settings_of(&[(4, 0)]), slow_get(1), settings_of(&[(4, 1)])],
            Data(1),
        ),
        after_one("6.9.2: a window below 0", &[settings_of(&[(4, 0)]), window(1, 1)], Alive),
        after_one(
            "6.9.2: a window above 0 again",
            &[settings_of(&[(4, 0)]), window(1, 1), window(1, 1)],
            Data(1),
        ),
        case(
            "6.9.2: a window above the greatest",
            &[settings_of(&[(4, most + 1)])],
            Goaway(FLOW_CONTROL_ERROR),
        ),
        case(
            "6.10: several CONTINUATION",
            &[
                frame(HEADERS, END_STREAM, 1, &get_block(&[])),
                frame(CONTINUATION, 0, 1, &block(&[("x-a", "1")])),
                frame(CONTINUATION, END_HEADERS, 1, &block(&[("x-b", "1")])),
            ],
            Answer,
        ),
        case(
            "6.10: another frame behind CONTINUATION",
            &[
                frame(HEADERS, END_STREAM, 1, &get_block(&[])),
                frame(CONTINUATION, 0, 1, &block(&[("x-a", "1")])),
                data(1, END_STREAM, b"a"),
            ],
            Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.10: CONTINUATION of stream 0",
            &[
                frame(HEADERS, END_STREAM, 1, &get_block(&[])),
                frame(CONTINUATION, END_HEADERS, 0, &block(&[("x-a", "1")])),
            ],
            Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.10: CONTINUATION behind a whole block",
            &[slow_get(1), frame(CONTINUATION, END_HEADERS, 1, &block(&[("x-a", "1")]))],
            Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.10: CONTINUATION behind the last one",
            &[
                frame(HEADERS, END_STREAM, 1, &get_block(&[("x-want-delay-ms", "700")])),
                frame(CONTINUATION, END_HEADERS, 1, &[]),
                frame(CONTINUATION, END_HEADERS, 1, &[]),
            ],
            Goaway(PROTOCOL_ERROR),
        ),
        case(
            "6.10: CONTINUATION behind DATA",
            &[post(1), data(1, 0, b"a"), frame(CONTINUATION, END_HEADERS, 1, &[])],
            Goaway(PROTOCOL_ERROR),
        ),
        case(
            "7: GOAWAY of an unknown code",
            &[slow_get(1), frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0xff])],
            Answer,
        ),
        case("7: RST_STREAM of an unknown code", &[slow_get(1), reset(1, 0xff)], Alive),
    ]
}

/// Section 8: what makes a request. And HPACK.
pub(super) fn requests() -> Vec<Case> {
    let connection_fields = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];
    let mut cases = vec![
        case(
            "8.1: a second HEADERS without end",
            &[post(1), frame(HEADERS, END_HEADERS, 1, &block(&[("x-test", "ok")]))],
            Either(PROTOCOL_ERROR),
        ),
        case("8.1.2: a name in upper case", &[head_without("", &[("X-TEST", "ok")])], Either(PROTOCOL_ERROR)),
        case(
            "8.1.2.1: an unknown pseudo-field",
            &[head_without("", &[(":test", "ok")])],
            Either(PROTOCOL_ERROR),
        ),
        case(
            "8.1.2.1: a pseudo-field of answers",
            &[head_without("", &[(":status", "200")])],
            Either(PROTOCOL_ERROR),
        ),
        // An error, too, for RFC 9113; the parser takes them off, so that nobody sees them.
        case(
            "8.1.2.1: a pseudo-field in trailers",
            &[
                post(1),
                data(1, 0, b"a"),
                frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&[(":method", "200")])),
            ],
            Answer,
        ),
        case(
            "8.1.2.1: a pseudo-field behind others",
            &[head(&[
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "reviews"),
                ("x-test", "ok"),
                (":path", "/"),
            ])],
            Either(PROTOCOL_ERROR),
        ),
        case(
            "8.1.2.2: TE of something else",
            &[head_without("", &[("trailers", "test"), ("te", "trailers, deflate")])],
            Either(PROTOCOL_ERROR),
        ),
        case("8.1.2.2: TE of trailers", &[head_without("", &[("te", "trailers")])], Answer),
        case("8.1.2.3: an empty path", &[head_without(":path", &[(":path", "")])], Either(PROTOCOL_ERROR)),
        case("8.1.2.3: no method", &[head_without(":method", &[])], Either(PROTOCOL_ERROR)),
        case("8.1.2.3: no scheme", &[head_without(":scheme", &[])], Either(PROTOCOL_ERROR)),
        case("8.1.2.3: no path", &[head_without(":path", &[])], Either(PROTOCOL_ERROR)),
        case("8.1.2.3: two methods", &[head_without("", &[(":method", "GET")])], Either(PROTOCOL_ERROR)),
        case("8.1.2.3: two schemes", &[head_without("", &[(":scheme", "http")])], Either(PROTOCOL_ERROR)),
        case("8.1.2.3: two paths", &[head_without("", &[(":path", "/")])], Either(PROTOCOL_ERROR)),
        case(
            "8.1.2.3: two authorities",
            &[head_without("", &[(":authority", "reviews")])],
            Either(PROTOCOL_ERROR),
        ),
        case(
            "8.1.2.6: another length than DATA's",
            &[
                frame(HEADERS, END_HEADERS, 1, &post_block(&[("content-length", "1")])),
                data(1, END_STREAM, b"test"),
            ],
            Either(PROTOCOL_ERROR),
        ),
        case(
            "8.1.2.6: another length than that of all DATA",
            &[
                frame(HEADERS, END_HEADERS, 1, &post_block(&[("content-length", "1")])),
                data(1, 0, b"test"),
                data(1, END_STREAM, b"test"),
            ],
            Either(PROTOCOL_ERROR),
        ),
        case(
            "8.1.2.6: a length without DATA",
            &[frame(HEADERS, END_STREAM | END_HEADERS, 1, &post_block(&[("content-length", "1")]))],
            Either(PROTOCOL_ERROR),
        ),
        case(
            "8.2: PUSH_PROMISE",
            &[frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 3], &*get_block(&[])].concat())],
            Goaway(PROTOCOL_ERROR),
        ),
        case("hpack 2.3.3: an index that is none", &[encoded(&[0xff, 0x00])], Goaway(COMPRESSION_ERROR)),
        case(
            "hpack 2.3.3: a name by an index that is none",
            &[encoded(&[0x7f, 0x61, 1, b'a'])],
            Goaway(COMPRESSION_ERROR),
        ),
        case("hpack 4.2: a size of the table at the end", &[encoded(&[0x20])], Goaway(COMPRESSION_ERROR)),
        case(
            "hpack 5.2: padding of more than 7 bits",
            &[encoded(&[0, 1, b'x', 0x82, 0x1f, 0xff])],
            Goaway(COMPRESSION_ERROR),
        ),
        case("hpack 5.2: padding of zeros", &[encoded(&[0, 1, b'x', 0x81, 0x18])], Goaway(COMPRESSION_ERROR)),
        case(
            "hpack 5.2: the symbol of the end",
            &[encoded(&[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff])],
            Goaway(COMPRESSION_ERROR),
        ),
        case("hpack 6.1: index 0", &[encoded(&[0x80])], Goaway(COMPRESSION_ERROR)),
        case(
            "hpack 6.3: a table larger than allowed",
            &[encoded_first(&[0x3f, 0xe2, 0x1f])],
            Goaway(COMPRESSION_ERROR),
        ),
    ];
    cases.extend(connection_fields.map(|name| {
        case(
            "8.1.2.2: a field of connections",
            &[head_without("", &[(name, "close")])],
            Either(PROTOCOL_ERROR),
        )
    }));
    cases
}

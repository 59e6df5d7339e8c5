use super::*;

fn any(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut any = Message::default();
    any.bytes(1, name);
    any.bytes(2, value);
    any.0
}

/// A `google.rpc.Status` that asks for a pause.
fn throttled(seconds: u64, nanos: u64) -> Vec<u8> {
    let mut delay = Message::default();
    delay.number(1, seconds);
    delay.number(2, nanos);
    let mut info = Message::default();
    info.bytes(1, &delay.0);
    let mut status = Message::default();
    status.number(1, 8);
    status.bytes(3, &any(b"type.googleapis.com/google.rpc.Help", b""));
    status.bytes(3, &any(b"type.googleapis.com/google.rpc.RetryInfo", &info.0));
    status.0
}

#[test]
fn what_may_be_sent_again_is_what_the_specification_says() {
    for status in [429, 502, 503, 504] {
        assert_eq!(http_verdict(status, None, b""), Verdict::Again(None), "{status}");
    }
    for status in [301, 400, 401, 404, 500, 501] {
        assert_eq!(http_verdict(status, Some("1"), b""), Verdict::Refused, "{status}");
    }
    assert_eq!(http_verdict(503, Some("7"), b""), Verdict::Again(Some(Duration::from_secs(7))));
    assert_eq!(http_verdict(503, Some("Wed, 21 Oct 2026 07:28:00 GMT"), b""), Verdict::Again(None));
    for status in [1, 4, 10, 11, 14, 15] {
        assert_eq!(grpc_verdict(status, b"", b""), Verdict::Again(None), "{status}");
    }
    for status in [2, 3, 5, 6, 7, 8, 9, 12, 13, 16] {
        assert_eq!(grpc_verdict(status, b"", b""), Verdict::Refused, "{status}");
    }
    let wait = Duration::new(2, 500_000_000);
    assert_eq!(grpc_verdict(8, &throttled(2, 500_000_000), b""), Verdict::Again(Some(wait)));
    assert_eq!(grpc_verdict(14, &throttled(2, 500_000_000), b""), Verdict::Again(Some(wait)));
    assert_eq!(grpc_verdict(8, &throttled(u64::MAX, 0), b""), Verdict::Refused, "less than nothing");
}

#[test]
fn spans_that_were_not_taken_of_a_batch_are_read() {
    let mut partial = Message::default();
    partial.number(1, 3);
    partial.text(2, "too old");
    let mut response = Message::default();
    response.bytes(1, &partial.0);

    assert_eq!(http_verdict(200, None, &response.0), Verdict::Taken(3));
    assert_eq!(grpc_verdict(0, b"", &response.0), Verdict::Taken(3));
    assert_eq!(http_verdict(200, None, b""), Verdict::Taken(0));
    assert_eq!(http_verdict(200, None, b"{}"), Verdict::Taken(0), "no protobuf");
}

#[test]
fn bytes_of_a_collector_end_where_they_are_malformed() {
    let whole = throttled(2, 5);
    for length in 0..whole.len() {
        let _ = grpc_verdict(8, &whole[..length], &whole[..length]);
    }
    assert_eq!(Fields(&[0xff; 20]).count(), 0);
    assert_eq!(Fields(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]).count(), 0, "longer than what is there");
}

#[test]
fn lengths_are_counted_as_they_are_written() {
    for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
        let mut message = Message::default();
        message.varint(value);
        assert_eq!(message.0.len(), varint_bytes(value), "{value}");
    }
}

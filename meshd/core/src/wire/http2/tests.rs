use super::*;
use crate::wire::sniff::HTTP2_PREFACE;

fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(id.to_be_bytes());
    frame.extend(payload);
    frame
}

fn begun() -> (Frames, Vec<u8>) {
    let mut sent = HTTP2_PREFACE.to_vec();
    sent.extend(frame(4, 0, 0, &[]));
    (Frames::new(FrameLimits::default()), sent)
}

const PING: u8 = 6;

#[test]
fn too_many_of_a_kind_in_one_second_is_a_flood() {
    for (kind, most) in
        [(2, 200), (4, 200), (PING, 200), (11, 200), (RST_STREAM, 500), (WINDOW_UPDATE, 1_000)]
    {
        let (mut frames, start) = begun();
        assert_eq!(frames.follow(&start, 0), None);
        let one = frame(kind, 0, 1, &[0; 8]);
        assert_eq!(frames.follow(&one.repeat(most), 1), None, "{kind}");
        let flood = frames.follow(&one, 1).expect("a flood");
        assert_eq!(flood.pass, one.len(), "{kind}");
    }
}

#[test]
fn the_next_second_begins_anew_and_pings_and_windows_follow_what_was_sent() {
    let (mut frames, start) = begun();
    frames.follow(&start, 0);
    for second in 1..10 {
        assert_eq!(frames.follow(&frame(PING, 0, 0, &[0; 8]).repeat(200), second), None);
    }
    frames.sent(16_000_000);
    assert_eq!(frames.follow(&frame(WINDOW_UPDATE, 0, 0, &[0; 4]).repeat(100_000), 9), None);
    assert_eq!(frames.follow(&frame(PING, 0, 0, &[0; 8]).repeat(5_000), 9), None);
}

#[test]
fn streams_that_end_by_themselves_excuse_as_many_resets() {
    let (mut frames, start) = begun();
    frames.follow(&start, 0);
    let headers = frame(HEADERS, END_HEADERS, 1, &[0x82]);
    assert_eq!(frames.follow(&headers.repeat(4_000), 1), None);
    assert_eq!(frames.follow(&frame(RST_STREAM, 0, 1, &[0; 4]).repeat(2_000), 1), None);
    assert!(frames.follow(&frame(RST_STREAM, 0, 1, &[0; 4]), 1).is_some());
}

#[test]
fn a_header_block_is_open_until_its_last_frame() {
    let (mut frames, start) = begun();
    frames.follow(&start[..30], 0);
    assert!(!frames.has_begun());
    frames.follow(&start[30..], 0);
    assert!(frames.has_begun());
    frames.follow(&frame(HEADERS, 0, 1, &[0x82]), 0);
    assert!(frames.is_in_block());
    frames.follow(&frame(CONTINUATION, END_HEADERS, 1, &[0x84]), 0);
    assert!(!frames.is_in_block());
}

#[test]
fn answers_to_pings_pay_for_no_other() {
    let (mut frames, start) = begun();
    frames.follow(&start, 0);
    let ping = frame(PING, 0, 0, &[0; 8]);
    let answered = (0..1_000).position(|_| {
        frames.sent(17);
        frames.follow(&ping, 1).is_some()
    });
    assert!(answered.is_some_and(|count| count < 450), "{answered:?}");
}

proptest::proptest! {
    #[test]
    fn pieces_mean_what_the_whole_means(cuts in proptest::collection::vec(1usize..40, 1..12)) {
        let (mut frames, mut sent) = begun();
        sent.extend(frame(PING, 0, 0, &[0; 8]).repeat(201));
        sent.extend(frame(DATA, 0, 1, &[0; 50]));
        let (mut at, mut flood) = (0, None);
        let mut cuts = cuts.iter().cycle();
        while at < sent.len() && flood.is_none() {
            let end = (at + cuts.next().expect("a cut")).min(sent.len());
            flood = frames.follow(&sent[at..end], 0).map(|flood| at + flood.pass);
            at = end;
        }
        // One SETTINGS counts as well.
        proptest::prop_assert_eq!(flood, Some(24 + 9 + 200 * 17));
    }
}

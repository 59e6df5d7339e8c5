use proptest::prelude::*;
use tokio::io::{AsyncWriteExt, duplex};

use super::*;

fn pair(limit: usize) -> (FrameStream, FrameStream) {
    let (here, there) = duplex(64);
    (FrameStream::new(here, limit), FrameStream::new(there, limit))
}

#[tokio::test]
async fn frames_arrive_whole_and_in_order_however_they_are_cut() {
    let (mut here, mut there) = pair(1000);
    let sent: Vec<Bytes> = [0, 1, 59, 60, 61, 1000].into_iter().map(|n| Bytes::from(vec![7; n])).collect();
    let sending = async {
        for frame in &sent {
            here.send(frame.clone()).await.unwrap();
        }
        here.finish().await.unwrap();
    };
    let receiving = async {
        let mut got = Vec::new();
        while let Some(frame) = there.recv().await.unwrap() {
            got.push(frame);
        }
        got
    };
    let ((), got) = tokio::join!(sending, receiving);
    assert_eq!(got, sent);
}

#[tokio::test]
async fn a_frame_above_the_limit_is_refused_on_both_sides() {
    let (mut here, _there) = pair(10);
    let error = here.send(Bytes::from(vec![0; 11])).await.unwrap_err();
    assert_eq!(error.to_string(), "a frame of 11 bytes is longer than the limit of 10 bytes");
    here.send(Bytes::from_static(b"still fine")).await.unwrap();
    let (mut raw, there) = duplex(64);
    let mut there = FrameStream::new(there, 10);
    raw.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    assert!(matches!(there.recv().await, Err(FrameError::TooLong { limit: 10, .. })));
}

#[tokio::test]
async fn an_end_inside_a_frame_is_an_error_and_between_two_is_not() {
    for (bytes, got) in [(&b"\0\0"[..], 2), (&b"\0\0\0\x05abc"[..], 3)] {
        let (mut raw, there) = duplex(64);
        let mut there = FrameStream::new(there, 10);
        raw.write_all(bytes).await.unwrap();
        drop(raw);
        assert!(matches!(there.recv().await, Err(FrameError::CutOff { got: n, .. }) if n == got));
    }
    let (raw, there) = duplex(64);
    drop(raw);
    assert!(FrameStream::new(there, 10).recv().await.unwrap().is_none());
}

#[tokio::test]
async fn a_dropped_recv_loses_nothing() {
    let (mut raw, there) = duplex(64);
    let mut there = FrameStream::new(there, 10);
    for byte in b"\0\0\0\x03abc" {
        assert!(futures_poll_once(there.recv()).await.is_none());
        raw.write_all(&[*byte]).await.unwrap();
    }
    assert_eq!(there.recv().await.unwrap().unwrap(), "abc");
}

#[tokio::test]
async fn a_send_given_up_half_way_breaks_the_stream_aloud() {
    let (mut here, _there) = pair(1000);
    assert!(futures_poll_once(here.send(Bytes::from(vec![0; 500]))).await.is_none());
    assert!(matches!(here.send(Bytes::new()).await, Err(FrameError::Broken)));
}

/// Polls a future once and drops it.
async fn futures_poll_once<F: Future>(future: F) -> Option<F::Output> {
    tokio::pin!(future);
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

proptest! {
    #[test]
    fn a_header_is_a_length_within_the_limit_or_an_error(bytes: Vec<u8>, limit in 0usize..1 << 20) {
        match length_of(&bytes, limit) {
            Ok(None) => prop_assert!(bytes.len() < HEADER_BYTES),
            Ok(Some(length)) => prop_assert!(length <= limit),
            Err(FrameError::TooLong { length, .. }) => prop_assert!(length > limit),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

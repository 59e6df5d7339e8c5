use super::super::testing::*;
use super::super::{Accepted, Expect, Peer, Transport};
use super::*;

/// Dials a lane to reviews as productpage; both ends, and who calls.
async fn linked() -> (Lane, Lane, Peer) {
    let mesh = Mesh::new();
    let mut port = tcp(&reviews_host(&mesh));
    let dialer = dialer(&credentials(&mesh, "1", &["productpage"]));
    let (expect, from) = (Expect::Identity(workload("reviews")), workload("productpage"));
    let address = port.local_addr().expect("bound");
    let target = HopTarget { address, sni: REVIEWS, expect: &expect, from: &from, transport: Transport::Tcp };
    let (dialled, accepted) = tokio::join!(dial_lane(&dialer, target), port.accept());
    let Ok(Accepted::Lane(peer, there)) = accepted else { panic!("{accepted:?}") };
    (dialled.expect("a link").expect("a peer that knows lanes"), *there, peer)
}

/// Asks and grants.
async fn begin(here: &mut Lane, there: &mut Lane) {
    let granted = async {
        assert_eq!(there.asked().await.expect("a question").as_deref(), Some("reviews-1"));
        there.grant().await.expect("open");
    };
    let (answer, ()) = tokio::join!(here.ask("reviews-1"), granted);
    assert_eq!(answer.expect("an answer"), Ok(()));
}

/// Sends all, ends, and reads what the other end reads.
async fn carry(from: &mut Lane, to: &mut Lane, bytes: &[u8]) {
    let sending = async {
        from.write_all(bytes).await.expect("open");
        from.shutdown().await.expect("open");
    };
    let mut read = Vec::new();
    let ((), count) = tokio::join!(sending, to.read_to_end(&mut read));
    count.expect("an orderly end");
    assert!(read == bytes);
}

#[tokio::test]
async fn a_lane_names_the_caller_and_carries_connections_one_after_another() {
    let (mut here, mut there, peer) = linked().await;
    assert_eq!(peer.identity, Some(workload("productpage")));
    assert_eq!(peer.sni.as_deref(), Some(REVIEWS));

    for bytes in [3, 16 * 1024, 700_001, 0, 1] {
        begin(&mut here, &mut there).await;
        carry(&mut here, &mut there, &vec![7; bytes]).await;
        assert!(!here.is_free() && !there.is_free());
        carry(&mut there, &mut here, &vec![8; bytes / 2]).await;
        assert!(here.is_free() && there.is_free());
    }
    drop(here.socket.shutdown().await);
    assert_eq!(there.asked().await.expect("an orderly end"), None);
}

#[tokio::test]
async fn who_is_refused_may_ask_again() {
    let (mut here, mut there, _) = linked().await;
    let refusing = async {
        there.asked().await.expect("a question");
        there.refuse("connect").await.expect("open");
    };
    let (answer, ()) = tokio::join!(here.ask("gone"), refusing);
    assert_eq!(answer.expect("an answer"), Err("connect".to_owned()));

    begin(&mut here, &mut there).await;
    carry(&mut here, &mut there, b"hello").await;
}

#[tokio::test]
async fn a_lane_that_closes_amidst_a_connection_does_not_look_like_an_orderly_end() {
    for orderly in [false, true] {
        let (mut here, mut there, _) = linked().await;
        begin(&mut here, &mut there).await;
        here.write_all(b"half").await.expect("open");
        here.flush().await.expect("open");
        let mut bytes = [0; 4];
        there.read_exact(&mut bytes).await.expect("bytes");
        if orderly {
            here.socket.shutdown().await.expect("open");
        }
        drop(here);

        assert!(there.read(&mut bytes).await.is_err(), "{orderly}");
    }
}

#[tokio::test]
async fn what_is_no_frame_ends_the_lane() {
    let data = |length: usize| header(DATA, length).to_vec();
    let asking = [header(ASK, 3).to_vec(), b"\xff\xfe\xfd".to_vec()].concat();
    let too_long = [header(ASK, MOST_WORDS + 1).to_vec(), vec![b'x'; MOST_WORDS + 1]].concat();
    for sent in [
        vec![0; 64],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        data(4),
        header(GRANT, 0).to_vec(),
        asking,
        too_long,
    ] {
        let (mut here, mut there, _) = linked().await;
        here.socket.write_all(&sent).await.expect("open");
        here.socket.flush().await.expect("open");
        assert!(there.asked().await.is_err(), "{sent:?}");
    }
    for sent in
        [vec![9; 64], data(0), header(END, 1).to_vec(), header(ASK, 1).to_vec(), header(REFUSE, 0).to_vec()]
    {
        let (mut here, mut there, _) = linked().await;
        begin(&mut here, &mut there).await;
        here.socket.write_all(&sent).await.expect("open");
        here.socket.flush().await.expect("open");
        let error = there.read(&mut [0; 8]).await.expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{sent:?}");
    }
}

#[tokio::test]
async fn frames_may_arrive_in_any_pieces() {
    let (mut here, mut there, _) = linked().await;
    begin(&mut here, &mut there).await;
    let frames = [
        header(DATA, 3).to_vec(),
        b"abc".to_vec(),
        header(DATA, 1).to_vec(),
        b"d".to_vec(),
        header(END, 0).to_vec(),
    ];
    let sending = async {
        for byte in frames.concat() {
            here.socket.write_all(&[byte]).await.expect("open");
            here.socket.flush().await.expect("open");
        }
    };
    let mut read = Vec::new();
    let ((), count) = tokio::join!(sending, there.read_to_end(&mut read));

    assert_eq!((count.expect("an end"), read.as_slice()), (4, b"abcd".as_slice()));
}

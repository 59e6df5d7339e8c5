use std::time::SystemTime;

use http::HeaderValue;

use super::*;

fn record(path: &str, status: u16) -> Record {
    let name = "reviews.default.svc.cluster.local";
    let name = mesh_core::plan::ClusterName { host: name.into(), port: 9080, subset: "v1".into() };
    let cluster = mesh_core::plan::Cluster { name, ..mesh_core::plan::Cluster::default() };
    let mut record = Record {
        started: SystemTime::now(),
        method: Some(http::Method::GET),
        status,
        sent_bytes: 3,
        duration: Duration::from_millis(4),
        upstream: Some(mesh_core::plan::Via::Socket("10.0.0.2:15008/reviews-v1".into())),
        goal: Goal::Cluster(std::sync::Arc::new(cluster)),
        attempts: 2,
        ..Record::new("vm1".into(), 1)
    };
    record.texts.set_path(path);
    record.texts.set_authority(b"reviews:9080");
    record.texts.add_request("x-request-id", b"abc");
    record
}

fn offer(tap: &Tap, path: &str, status: u16) {
    let mut headers = HeaderMap::new();
    headers.insert("authorization", HeaderValue::from_static("Bearer abc"));
    headers.insert("end-user", HeaderValue::from_static("jason"));
    let record = record(path, status);
    tap.offer(&Told { record: &record, caller: "default/web", retries: 1, headers: &headers });
}

fn ask(filter: TapFilter) -> TapAsk {
    TapAsk { id: "a".into(), filter, headers: true, limit: 100, ..TapAsk::default() }
}

async fn seen(filter: TapFilter) -> usize {
    let tap = Tap::default();
    let ask = ask(filter);
    tap.ask(&ask, Shown::Redacted, "vm1").await.expect("open");
    offer(&tap, "/reviews/1?token=x", 503);
    tap.ask(&ask, Shown::Redacted, "vm1").await.expect("open").requests.len()
}

#[tokio::test]
async fn every_filter_lets_its_own_through_and_no_other() {
    let text = |text: &str| Some(text.to_owned());
    let with = |change: &dyn Fn(&mut TapFilter)| {
        let mut filter = TapFilter::default();
        change(&mut filter);
        filter
    };
    for (right, wrong) in [
        (with(&|f| f.service = text("reviews")), with(&|f| f.service = text("review"))),
        (with(&|f| f.service = text("reviews.default")), with(&|f| f.service = text("reviews.other"))),
        (with(&|f| f.path = text("/reviews/")), with(&|f| f.path = text("/ratings"))),
        (with(&|f| f.method = text("get")), with(&|f| f.method = text("POST"))),
        (with(&|f| f.status = text("5xx")), with(&|f| f.status = text("200"))),
        (with(&|f| f.from = text("web")), with(&|f| f.from = text("default/other"))),
        (
            with(&|f| f.headers = vec![("end-user".into(), text("jason"))]),
            with(&|f| f.headers = vec![("end-user".into(), text("ann"))]),
        ),
        (
            with(&|f| f.headers = vec![("end-user".into(), None)]),
            with(&|f| f.headers = vec![("x-none".into(), None)]),
        ),
    ] {
        assert_eq!((seen(right.clone()).await, seen(wrong.clone()).await), (1, 0), "{right:?} {wrong:?}");
    }
}

#[tokio::test]
async fn what_lets_somebody_in_is_hidden_unless_the_host_and_the_caller_both_say_so() {
    let tap = Tap::default();
    let hidden = ask(TapFilter::default());
    let all = TapAsk { id: "b".into(), secrets: true, ..hidden.clone() };
    tap.ask(&hidden, Shown::All, "vm1").await.expect("open");
    tap.ask(&all, Shown::All, "vm1").await.expect("open");

    offer(&tap, "/?token=x", 200);

    let request = |tapped: Tapped| tapped.requests.into_iter().next().expect("one");
    let hidden = request(tap.ask(&hidden, Shown::All, "vm1").await.expect("seen"));
    let shown = request(tap.ask(&all, Shown::All, "vm1").await.expect("seen"));
    assert_eq!(
        (hidden.path.as_str(), hidden.headers["authorization"].as_str()),
        ("/?token=[hidden]", "[hidden]")
    );
    assert_eq!((shown.path.as_str(), shown.headers["authorization"].as_str()), ("/?token=x", "Bearer abc"));
    assert!(matches!(tap.ask(&all, Shown::Redacted, "vm1").await, Err(TapError::Hidden)));
    assert!(matches!(tap.ask(&all, Shown::Off, "vm1").await, Err(TapError::Off)));
}

#[tokio::test]
async fn more_than_a_tap_takes_is_counted_and_left_out() {
    let tap = Tap::default();
    let ask = ask(TapFilter::default());
    tap.ask(&ask, Shown::Redacted, "vm1").await.expect("open");

    for _ in 0..250 {
        offer(&tap, "/", 200);
    }

    let first = tap.ask(&ask, Shown::Redacted, "vm1").await.expect("seen");
    assert_eq!(first.requests.len() as u64 + first.missed, 250);
    assert!((100..=200).contains(&first.requests.len()), "{}", first.requests.len());
}

#[tokio::test]
async fn one_in_so_many_is_shown() {
    let tap = Tap::default();
    let ask = TapAsk { one_in: 10, ..ask(TapFilter::default()) };
    tap.ask(&ask, Shown::Redacted, "vm1").await.expect("open");

    for _ in 0..50 {
        offer(&tap, "/", 200);
    }

    let seen = tap.ask(&ask, Shown::Redacted, "vm1").await.expect("seen");
    assert_eq!((seen.requests.len(), seen.missed), (5, 0));
}

#[tokio::test]
async fn a_tap_is_off_until_asked_for_and_after_its_end() {
    let tap = Tap::default();
    assert!(!tap.is_on());

    let ask = ask(TapFilter::default());
    tap.ask(&ask, Shown::Redacted, "vm1").await.expect("open");
    assert!(tap.is_on());

    tap.ask(&TapAsk { end: true, ..ask }, Shown::Redacted, "vm1").await.expect("ended");
    assert!(!tap.is_on());
}

#[tokio::test]
async fn a_status_that_is_none_is_refused_and_the_ninth_tap_too() {
    let tap = Tap::default();
    let odd = ask(TapFilter { status: Some("bad".into()), ..TapFilter::default() });
    assert!(matches!(tap.ask(&odd, Shown::Redacted, "vm1").await, Err(TapError::Filter(_))));
    assert!(!tap.is_on());

    for at in 0..8 {
        let ask = TapAsk { id: at.to_string(), ..ask(TapFilter::default()) };
        tap.ask(&ask, Shown::Redacted, "vm1").await.expect("open");
    }
    assert!(matches!(
        tap.ask(&ask(TapFilter::default()), Shown::Redacted, "vm1").await,
        Err(TapError::TooMany)
    ));
}

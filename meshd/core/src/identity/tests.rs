use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rand_core::RngCore;

use super::lifetime::{Validity, retry_after};
use super::*;

#[test]
fn each_form_reads_and_prints_back() {
    for (text, expected) in [
        ("spiffe://cluster.local/ns/default/sa/bookinfo-reviews", "reviews"),
        ("spiffe://cluster.local/host/17", "17"),
        ("spiffe://a_b-c.d/admin/ada.lovelace", "ada.lovelace"),
    ] {
        let identity: Identity = text.parse().unwrap();
        assert_eq!(identity.to_string(), text);
        assert!(identity.principal().ends_with(expected));
        assert!(!identity.principal().contains("://"));
        let json = serde_json::to_string(&identity).unwrap();
        assert_eq!(json, format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<Identity>(&json).unwrap(), identity);
    }
}

#[test]
fn malformed_identities_are_refused() {
    let long_label = format!("spiffe://d/ns/{}/sa/a", "a".repeat(64));
    let long_name = format!("spiffe://d/ns/n/sa/{}", "a".repeat(254));
    let long_domain = format!("spiffe://{}/ns/n/sa/a", "a".repeat(254));
    let long_whole = format!("spiffe://d/{}", "a/".repeat(1100));
    let table = [
        "",
        "spiffe:",
        "spiffe://",
        "spiffe:///ns/n/sa/a",
        "spiffe://d",
        "spiffe://d/",
        "spiffe://d/ns/n/sa/a/",
        "spiffe://d//ns/n/sa/a",
        "spiffe://d/ns//sa/a",
        "spiffe://d/ns/n/sa/",
        "spiffe://d/ns/n/sa",
        "spiffe://d/ns/n",
        "spiffe://d/ns/n/sa/a/b",
        "spiffe://d/sa/a/ns/n",
        "spiffe://d/host/",
        "spiffe://d/host/a/b",
        "spiffe://d/admin/",
        "spiffe://d/other/a",
        "SPIFFE://d/ns/n/sa/a",
        "Spiffe://d/ns/n/sa/a",
        "https://d/ns/n/sa/a",
        " spiffe://d/ns/n/sa/a",
        "spiffe://d/ns/n/sa/a ",
        "spiffe://d/ns/n/sa/a\n",
        "spiffe://D/ns/n/sa/a",
        "spiffe://d/ns/N/sa/a",
        "spiffe://d/ns/n/sa/A",
        "spiffe://d/NS/n/sa/a",
        "spiffe://d/ns/n/sa/a%2fb",
        "spiffe://d/ns/n%2Fsa/a",
        "spiffe://d/ns/n/sa/a?x=1",
        "spiffe://d/ns/n/sa/a#f",
        "spiffe://d:8080/ns/n/sa/a",
        "spiffe://u@d/ns/n/sa/a",
        "spiffe://d./ns/n/sa/a",
        "spiffe://.d/ns/n/sa/a",
        "spiffe://a..b/ns/n/sa/a",
        "spiffe://d/ns/n/sa/.",
        "spiffe://d/ns/n/sa/..",
        "spiffe://d/ns/./sa/a",
        "spiffe://d/ns/n/../sa/a",
        "spiffe://d/ns/n.m/sa/a",
        "spiffe://d/ns/n_m/sa/a",
        "spiffe://d/ns/-n/sa/a",
        "spiffe://d/ns/n/sa/a-",
        "spiffe://d/ns/n/sa/ä",
        "spiffe://d/ns/n/sa/a\0",
        "spiffe://d/ns/n/sa/*",
        "spiffe://d\\ns\\n\\sa\\a",
        &long_label,
        &long_name,
        &long_domain,
        &long_whole,
    ];
    for text in table {
        assert!(text.parse::<Identity>().is_err(), "{text:?} was accepted");
    }
}

#[test]
fn the_message_says_which_part_is_wrong_and_stays_short() {
    let error = "spiffe://d/ns/Default/sa/a".parse::<Identity>().unwrap_err();
    assert_eq!(error.to_string(), "namespace \"Default\" may hold a-z, 0-9, '-', '_' and '.' only");
    let long = format!("spiffe://d/ns/n/sa/{}", "\u{1}".repeat(1000));
    assert!(long.parse::<Identity>().unwrap_err().to_string().len() < 500);
}

proptest! {
    #[test]
    fn what_is_accepted_prints_back_byte_for_byte(
        text in "(spiffe://)?[a-zA-Z0-9._%-]{0,8}(/(ns|sa|host|admin|[a-zA-Z0-9._%-]{0,6})){0,6}/?"
    ) {
        if let Ok(identity) = text.parse::<Identity>() {
            prop_assert_eq!(identity.to_string(), text);
        }
    }

    #[test]
    fn sound_parts_make_an_identity_that_reads_back(
        domain in "[a-z0-9_-]{1,9}(\\.[a-z0-9]{1,9}){0,3}",
        namespace in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?",
        account in "[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?",
    ) {
        for identity in [
            Identity::workload(&domain, &namespace, &account).unwrap(),
            Identity::host(&domain, &account).unwrap(),
            Identity::admin(&domain, &account).unwrap(),
        ] {
            prop_assert_eq!(identity.to_string().parse::<Identity>(), Ok(identity));
        }
    }

    #[test]
    fn no_text_panics(text in ".{0,100}") {
        let _ = text.parse::<Identity>();
        let _ = sni::parse(&text);
    }

    #[test]
    fn a_server_name_reads_back(port in 1u16.., subset in "([a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?)?", host in "[a-z]{1,9}(\\.[a-z]{1,9}){0,4}") {
        let text = sni::format(port, &subset, &host);
        prop_assert_eq!(sni::parse(&text), Some(sni::Sni { port, subset: &subset, host: &host }));
    }
}

#[test]
fn a_server_name_has_istios_form() {
    let text = sni::format(9080, "", "reviews.default.svc.cluster.local");
    assert_eq!(text, "outbound_.9080_._.reviews.default.svc.cluster.local");
    assert_eq!(sni::format(80, "V1", "reviews"), "outbound_.80_.v1_.reviews");
}

#[test]
fn other_server_names_are_not_taken_for_hops() {
    let long = format!("outbound_.80_._.{}", "a".repeat(250));
    for text in [
        "",
        "reviews.default.svc.cluster.local",
        "outbound_.9080",
        "outbound_.9080_.v1",
        "outbound_.9080_.v1_.",
        "outbound_.0_._.reviews",
        "outbound_.080_._.reviews",
        "outbound_.65536_._.reviews",
        "outbound_.+80_._.reviews",
        "outbound_._._.reviews",
        "inbound_.80_._.reviews",
        "outbound_.80_._.rev/iews",
        "outbound_.80_._.rev iews",
        &long,
    ] {
        assert_eq!(sni::parse(text), None, "{text:?}");
    }
}

/// The two ends of chance.
struct Always(u32);

impl RngCore for Always {
    fn next_u32(&mut self) -> u32 {
        self.0
    }

    fn next_u64(&mut self) -> u64 {
        u64::from(self.0)
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        dest.fill(0);
    }
}

#[test]
fn renewal_is_at_half_life_within_ten_percent() {
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let validity = Validity { not_before: start, not_after: start + Duration::from_hours(24) };
    let hours = |h: f64| start + Duration::from_secs_f64(h * 3600.0);
    assert_eq!(validity.renew_at(&mut Always(0)), hours(10.8));
    assert_eq!(validity.renew_at(&mut Always(u32::MAX)), hours(13.2));
    assert!(!validity.is_running_out(hours(17.9)));
    assert!(validity.is_running_out(hours(18.1)));
    assert_eq!(validity.remaining(hours(25.0)), Duration::ZERO);
}

#[test]
fn retries_double_from_one_second_to_five_minutes() {
    let full: Vec<u64> = (1..=12).map(|n| retry_after(n, &mut Always(0)).as_secs()).collect();
    assert_eq!(full, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    assert_eq!(retry_after(10, &mut Always(u32::MAX)).as_secs(), 225);
    assert_eq!(retry_after(u32::MAX, &mut Always(0)).as_secs(), 300);
    assert_eq!(retry_after(0, &mut Always(0)).as_secs(), 1);
}

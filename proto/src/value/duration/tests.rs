use super::*;

#[track_caller]
fn reads(text: &str, nanos: u64) {
    let duration: Duration = text.parse().unwrap();
    assert_eq!(duration.get(), std::time::Duration::from_nanos(nanos), "{text}");
}

#[test]
fn reads_protobuf_and_go_forms() {
    reads("0", 0);
    reads("0s", 0);
    reads("1.5s", 1_500_000_000);
    reads(".5s", 500_000_000);
    reads("250ms", 250_000_000);
    reads("1h3m", 3_780_000_000_000);
    reads("1m0.5s", 60_500_000_000);
    reads("10us", 10_000);
    reads("0.000000001s", 1);
}

#[test]
fn refuses_what_is_no_duration_and_says_how_to_write_one() {
    let message = |text: &str| text.parse::<Duration>().unwrap_err().to_string();
    assert_eq!(message("10"), r#"duration "10" has no unit (write 10s, 500ms, 1m30s or 1h)"#);
    assert_eq!(message("-1s"), r#"duration "-1s" is negative"#);
    assert_eq!(message("5 s"), r#""5 s" is not a duration (write 10s, 500ms, 1m30s or 1h)"#);
    assert_eq!(message(""), r#""" is not a duration (write 10s, 500ms, 1m30s or 1h)"#);
    assert_eq!(message("400000000000s"), r#"duration "400000000000s" is too long"#);
    assert!(message(&"9".repeat(1_000)).len() < 100);
}

#[test]
fn writes_the_protobuf_form() {
    let form = |text: &str| text.parse::<Duration>().unwrap().to_string();
    assert_eq!(form("1h3m"), "3780s");
    assert_eq!(form("1500ms"), "1.5s");
    assert_eq!(form("0s"), "0s");
}

//! `api fields`, from the table that `apply` follows.

use crate::server::alone;

#[test]
fn fields_are_told_with_status_and_reason_and_counted() {
    let ran = alone(&["api", "fields", "we"]);

    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.starts_with("FIELD"), "{}", ran.out);
    assert!(ran.out.contains("address         honoured"), "{}", ran.out);
    assert!(ran.out.contains("\n7 fields: "), "{}", ran.out);
}

#[test]
fn fields_as_json_have_kind_path_status_and_reason() {
    let ran = alone(&["api", "fields", "-o", "json"]);

    let json: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
    let items = json["items"].as_array().expect("a list");
    let of_istio = items.iter().filter(|item| item["kind"] != "MeshConfig").count();
    assert_eq!((json["version"].as_u64(), of_istio), (Some(1), 852));
    let found = items
        .iter()
        .find(|item| item["path"] == "http[].match[].uri.regex")
        .expect("a field of VirtualService");
    assert_eq!(found["status"], "honoured");
}

#[test]
fn a_kind_that_is_none_is_wrong_usage() {
    assert_eq!(alone(&["api", "fields", "nonsense"]).code, 64);
}

use super::*;

fn reviews() -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "reviews", "namespace": "default", "resourceVersion": "42"},
        "spec": {
            "hosts": ["reviews"],
            "http": [{
                "match": [{"headers": {"end-user": {"exact": "jason"}, "x-any": {}}}],
                "timeout": "1.5s",
                "route": [
                    {"destination": {"host": "reviews", "subset": "v1"}, "weight": 100},
                    {"destination": {"host": "reviews", "subset": "v2"}, "weight": 0},
                ],
            }],
        },
    })
}

#[test]
fn an_object_survives_json_with_nothing_added() {
    let object: Object = serde_json::from_value(reviews()).unwrap();
    assert_eq!(serde_json::to_value(&object).unwrap(), reviews());
    assert_eq!(object.key().to_string(), "VirtualService default/reviews");
}

#[test]
fn the_order_of_keys_does_not_matter() {
    let text =
        r#"{"spec": {"host": "a"}, "metadata": {"name": "a", "namespace": "b"}, "kind": "DestinationRule"}"#;
    let object: Object = serde_json::from_str(text).unwrap();
    assert_eq!(object.kind(), Kind::DestinationRule);
}

#[test]
fn an_unknown_field_on_the_wire_is_an_error() {
    let mut value = reviews();
    value["spec"]["http"][0]["retrys"] = serde_json::json!({});
    let error = serde_json::from_value::<Object>(value).unwrap_err().to_string();
    assert!(error.contains("retrys"), "{error}");
}

#[test]
fn a_key_reads_back_what_it_prints() {
    let key = ObjectKey::new(Kind::ServiceEntry, "default", "outside");
    assert_eq!(key.to_string().parse::<ObjectKey>().unwrap(), key);
    let map = std::collections::BTreeMap::from([(key.clone(), 1)]);
    let json = serde_json::to_string(&map).unwrap();
    assert_eq!(json, r#"{"ServiceEntry default/outside":1}"#);
    assert_eq!(serde_json::from_str::<std::collections::BTreeMap<ObjectKey, i32>>(&json).unwrap(), map);
    assert!("Service default/reviews".parse::<ObjectKey>().is_err());
    assert!("VirtualService reviews".parse::<ObjectKey>().is_err());
}

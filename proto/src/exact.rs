//! Reading JSON wholly or not at all: what a newer meshd says beyond what this one knows is named, not passed over.
//!
//! For what must not lose a word: the Raft log, snapshots, orders. Facts and answers are read by serde alone, which
//! passes over fields it does not know. `docs/decisions/018-versions-side-by-side.md` says which is read how.

use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::DeserializeSeed;

/// Why something was not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// A field, variant or kind in it is of a newer version.
    #[error("{0}")]
    Newer(String),
    /// It is not what any version writes.
    #[error("{0}")]
    Malformed(String),
}

impl Unread {
    /// Tells a newer version's words from no words.
    pub fn of(error: &serde_json::Error) -> Self {
        let text = error.to_string();
        match text.split_once(", expected ") {
            Some((newer, _)) if newer.starts_with("unknown ") => Self::Newer(newer.to_owned()),
            _ if text.starts_with("unknown ") => Self::Newer(text),
            _ => Self::Malformed(text),
        }
    }
}

/// Reads a value in which nothing may be passed over.
///
/// # Errors
/// [`Unread::Newer`] names the first field or variant that is not known here.
pub fn exactly<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Result<T, Unread> {
    exactly_seed(PhantomData, json)
}

/// As [`exactly`], with a seed.
///
/// # Errors
/// As [`exactly`].
pub fn exactly_seed<'de, S: DeserializeSeed<'de>>(seed: S, json: &'de [u8]) -> Result<S::Value, Unread> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let mut passed_over = None;
    let mut note = |path: serde_ignored::Path<'_>| {
        // Of its path, the names that stand in the JSON.
        passed_over.get_or_insert_with(|| path.to_string().replace("?.", ""));
    };
    let value = seed
        .deserialize(serde_ignored::Deserializer::new(&mut reader, &mut note))
        .and_then(|value| reader.end().map(|()| value))
        .map_err(|error| Unread::of(&error))?;
    match passed_over {
        None => Ok(value),
        Some(path) => Err(Unread::Newer(format!("unknown field `{path}`"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::command::Entry;

    fn entry(command: Value) -> Vec<u8> {
        let mut entry = json!({"at": 5, "author": "uid 0 on vm1", "key": "k"});
        entry["command"] = command;
        serde_json::to_vec(&entry).expect("JSON")
    }

    fn register(instance: &Value) -> Vec<u8> {
        let mut plain = json!({"service": "reviews", "ports": [{"number": 80, "target": "127.0.0.1:80"}]});
        for (name, value) in instance.as_object().expect("an object") {
            plain[name] = value.clone();
        }
        entry(json!({"register": {"host": 1, "registration": {"instances": {"a": plain}}}}))
    }

    fn facts(more: &Value) -> Value {
        let mut facts = json!({"address": "10.0.0.1:15008", "version": "9.0.0"});
        for (name, value) in more.as_object().expect("an object") {
            facts[name] = value.clone();
        }
        facts
    }

    /// A field at every level of an entry, where serde alone would pass over most.
    #[test]
    fn whatever_is_newer_in_an_entry_is_named() {
        let change = |object: Value| {
            entry(json!({"change": {"reason": "r", "changes": [
            {"key": "Telemetry default/t", "object": object}]}}))
        };
        let telemetry = |spec: Value| {
            json!({"apiVersion": "telemetry.istio.io/v1", "kind": "Telemetry",
            "metadata": {"name": "t", "namespace": "default"}, "spec": spec})
        };
        let mut outermost: Value =
            serde_json::from_slice(&entry(json!({"revoke_token": {"id": "t"}}))).unwrap();
        outermost["because"] = json!("x");
        let cases = [
            (serde_json::to_vec(&outermost).unwrap(), "unknown field `because`"),
            (entry(json!({"ration": {}})), "unknown variant `ration`"),
            (entry(json!({"revoke_token": {"id": "t", "all": true}})), "unknown field `command.all`"),
            (
                entry(json!({"update_host": {"host": 2, "facts": facts(&json!({"cores": 4}))}})),
                "unknown field `command.facts.cores`",
            ),
            (
                entry(json!({"update_host": {"host": 2, "facts": facts(&json!({"voter": "witness"}))}})),
                "unknown variant `witness`",
            ),
            (entry(json!({"liveness": {"changes": {"3": "asleep"}}})), "unknown variant `asleep`"),
            (register(&json!({"quota": 5})), "unknown field `command.registration.instances.a.quota`"),
            (
                register(&json!({"ports": [{"number": 80, "target": "127.0.0.1:80", "protocol": "SMTP"}]})),
                "unknown variant `SMTP`",
            ),
            (register(&json!({"check": {"tcp": {}, "jitter_ms": 5}})), "unknown field `jitter_ms`"),
            (
                register(&json!({"check": {"http": {"path": "/", "method": "HEAD"}}})),
                "unknown field `method`",
            ),
            (
                register(&json!({"check": {"http": {"path": "/", "ask": {"sni": "a"}}}})),
                "unknown field `sni`",
            ),
            (register(&json!({"check": {"smtp": {}}})), "no variant of enum Probe"),
            (change(telemetry(json!({"profiling": []}))), "unknown field `profiling`"),
        ];
        for (json, expected) in cases {
            let refusal = exactly::<Entry>(&json).expect_err(expected);
            assert!(refusal.to_string().starts_with(expected), "{refusal} is not: {expected}");
        }
        for known in [register(&json!({})), change(telemetry(json!({})))] {
            assert!(exactly::<Entry>(&known).is_ok());
        }
    }

    #[test]
    fn what_no_version_writes_is_no_newer_version() {
        let refusal = exactly::<Entry>(b"{\"at\": 5").expect_err("cut off");
        assert!(matches!(refusal, Unread::Malformed(_)), "{refusal:?}");
        let refusal =
            exactly::<Entry>(&[entry(json!({"revoke_token": {"id": "t"}})), b"x".to_vec()].concat());
        assert!(matches!(refusal, Err(Unread::Malformed(_))), "{refusal:?}");
    }
}

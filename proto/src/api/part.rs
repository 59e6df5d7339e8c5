//! Calls of other versions: orders wholly or not at all, reports as far as they are understood.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{AgentReport, Call, Request};
use crate::command::HostId;
use crate::exact::{Unread, exactly};
use crate::watch::Up;

#[derive(Deserialize)]
struct Parts<'a> {
    author: String,
    #[serde(borrow)]
    request: BTreeMap<String, BTreeMap<HostId, AgentParts<'a>>>,
    #[serde(default)]
    relayed: bool,
}

#[derive(Deserialize)]
struct AgentParts<'a> {
    connected: bool,
    silent_ms: u64,
    #[serde(borrow)]
    said: &'a RawValue,
}

impl Call {
    /// Reads a call that another version may have written. An order is read wholly or not at all; what machines tell
    /// each other, as far as it is understood, for a host must not be lost over a field.
    ///
    /// `reader` is who reads, for problems of hosts that are reported.
    ///
    /// # Errors
    /// Names what is not known here.
    pub fn read(json: &[u8], reader: &str) -> Result<Self, Unread> {
        let why = match exactly(json) {
            Ok(call) => return Ok(call),
            Err(why) => why,
        };
        match serde_json::from_slice::<Self>(json) {
            Ok(call) if call.request.tells() => Ok(call),
            Ok(_) => Err(why),
            Err(_) => Self::report_in_part(json, reader).ok_or(why),
        }
    }

    fn report_in_part(json: &[u8], reader: &str) -> Option<Self> {
        let mut parts: Parts<'_> = serde_json::from_slice(json).ok()?;
        let reports = parts.request.remove("report")?.into_iter().filter_map(|(id, part)| {
            let said = Up::in_part(part.said.get().as_bytes(), reader).ok()?;
            Some((id, AgentReport { connected: part.connected, silent_ms: part.silent_ms, said }))
        });
        Some(Self {
            author: parts.author,
            request: Request::Report(reports.collect()),
            relayed: parts.relayed,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::registration::Health;

    fn read(request: &Value) -> Result<Call, Unread> {
        let call = json!({"author": "uid 0 on vm9", "request": request});
        Call::read(call.to_string().as_bytes(), "vm1")
    }

    #[test]
    fn an_order_with_anything_that_is_not_known_is_not_carried_out() {
        let order = |more: &str, value: Value| {
            let mut order = json!({"batch": {"changes": [], "reason": ""}, "dry_run": false, "strict": false, "key": "k"});
            order[more] = value;
            json!({"apply": order})
        };
        let cases = [
            (order("at", json!("noon")), "unknown field `request.at`"),
            (
                order("batch", json!({"changes": [], "reason": "", "prune": true})),
                "unknown field `request.batch.prune`",
            ),
            (json!({"evict": {"host": "vm2"}}), "unknown variant `evict`"),
            (json!("pause"), "unknown variant `pause`"),
            (json!({"create_token": {"role": "witness", "ttl_seconds": 5}}), "unknown variant `witness`"),
        ];
        for (request, expected) in cases {
            assert_eq!(read(&request), Err(Unread::Newer(expected.to_owned())));
        }
        assert!(read(&order("key", json!("other"))).is_ok());
    }

    #[test]
    fn a_report_of_newer_agents_loses_no_host() {
        let facts = json!({"address": "10.0.0.3:15008", "version": "9.0.0", "voter": "witness"});
        let instance = json!({"service": "mail", "ports": [{"number": 25, "target": "127.0.0.1:25", "protocol": "SMTP"}]});
        let said = json!({"live": 7, "load": 0.5, "facts": facts, "registration": {"instances": {"m": instance}},
            "health": {"a": "healthy", "b": "tired"}});
        let report = json!({"report": {
            "3": {"connected": true, "silent_ms": 5, "said": said},
            "4": {"connected": true, "silent_ms": 6, "rtt_ms": 1, "said": {"live": 8}},
        }});

        let Request::Report(reports) = read(&report).expect("read").request else { panic!("a report") };

        assert_eq!(reports[&HostId(4)].said.live.0, 8);
        let third = &reports[&HostId(3)].said;
        assert_eq!((third.live.0, &third.facts), (7, &None));
        assert_eq!(third.health, BTreeMap::from([("a".to_owned(), Health::Healthy)]));
        assert!(third.registration.as_ref().is_some_and(|offer| offer.instances.is_empty()));
        assert_eq!(
            third.problems,
            [
                "instance m is not known to the mesh (unknown variant `SMTP`): it needs a newer meshd on vm1",
                "what the host says of itself is not known to the mesh (unknown variant `witness`): it needs a newer meshd \
                 on vm1",
            ]
        );
    }

    #[test]
    fn what_machines_tell_may_say_more() {
        assert!(read(&json!({"report": {"4": {"connected": true, "silent_ms": 6, "rtt_ms": 1, "said": {"live": 8}}}})).is_ok());
        assert!(read(&json!({"sign": [{"identity": "i", "csr": "c", "days": 5}]})).is_ok());
        assert!(matches!(read(&json!({"report": 5})), Err(Unread::Malformed(_))));
    }
}

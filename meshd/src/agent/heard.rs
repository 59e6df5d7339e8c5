//! What a server says, read: wholly, or, where it is newer, as far as it is understood.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mesh_core::world::{NotUnderstood, World};
use mesh_proto::command::{HostId, Revision};
use mesh_proto::watch::Change;
use serde::Deserialize;
use serde_json::value::RawValue;

/// A [`Down`](mesh_proto::watch::Down) of which a whole World is taken in as it is read, without a second copy.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Heard {
    World(Box<Whole>),
    Delta {
        from: Revision,
        to: Revision,
        changes: Vec<Change>,
    },
    Bookmark {
        at: Revision,
        servers: BTreeMap<HostId, SocketAddr>,
    },
    /// A kind of frame that came later. Holds no facts: the revisions of deltas would not fit without them.
    #[serde(skip)]
    Newer,
}

/// A whole World, and what of it is not understood.
#[derive(Debug, Default, Deserialize)]
#[serde(from = "World")]
pub(super) struct Whole {
    pub(super) world: World,
    pub(super) unread: NotUnderstood,
}

impl From<World> for Whole {
    fn from(world: World) -> Self {
        Self { world, unread: NotUnderstood::default() }
    }
}

#[derive(Deserialize)]
struct DeltaPart<'a> {
    from: Revision,
    to: Revision,
    #[serde(borrow)]
    changes: Vec<&'a RawValue>,
}

/// Reads a frame. What is not understood of facts is noted in `unread`; of a whole World, `before` stands in for it.
///
/// # Errors
/// When it is no frame of any version.
pub(super) fn read(
    frame: &[u8],
    before: &World,
    unread: &mut NotUnderstood,
) -> Result<Heard, serde_json::Error> {
    // Where versions are equal, which is nearly always, nothing is read twice.
    let heard = match serde_json::from_slice(frame) {
        Ok(heard) => heard,
        Err(error) => return in_part(frame, before, unread)?.ok_or(error),
    };
    if let Heard::Delta { changes, .. } = &heard {
        for change in changes {
            unread.settle(change);
        }
    }
    Ok(heard)
}

fn in_part(
    frame: &[u8],
    before: &World,
    unread: &mut NotUnderstood,
) -> Result<Option<Heard>, serde_json::Error> {
    if serde_json::from_slice::<String>(frame).is_ok() {
        return Ok(Some(Heard::Newer));
    }
    let parts: BTreeMap<String, &RawValue> = serde_json::from_slice(frame)?;
    let Some((kind, body)) = parts.into_iter().next() else { return Ok(None) };
    Ok(match kind.as_str() {
        "world" => {
            let (world, unread) = World::in_part(body.get().as_bytes(), before)?;
            Some(Heard::World(Box::new(Whole { world, unread })))
        }
        "delta" => {
            let DeltaPart { from, to, changes } = serde_json::from_str(body.get())?;
            let changes = changes.into_iter().filter_map(|fact| unread.read(fact)).collect();
            Some(Heard::Delta { from, to, changes })
        }
        "bookmark" => None,
        _ => Some(Heard::Newer),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn heard(frame: &Value, unread: &mut NotUnderstood) -> Result<Heard, serde_json::Error> {
        read(frame.to_string().as_bytes(), &World::default(), unread)
    }

    #[test]
    fn of_a_newer_delta_all_that_is_understood_is_taken_in() {
        let address = json!({"virtual_address": {"host": "a.example.com", "index": 5}});
        let frame =
            json!({"delta": {"from": 3, "to": 5, "signed_by": "x", "changes": [{"weather": {}}, address]}});
        let mut unread = NotUnderstood::default();

        let Heard::Delta { from, to, changes } = heard(&frame, &mut unread).expect("read") else {
            panic!("a delta")
        };

        assert_eq!((from, to, changes.len()), (Revision(3), Revision(5), 1));
        assert_eq!(unread.sentences().count(), 1);
    }

    #[test]
    fn a_frame_of_a_kind_that_came_later_is_passed_over() {
        for frame in [json!("ping"), json!({"hint": {"reconnect_in_ms": 5}})] {
            let heard = heard(&frame, &mut NotUnderstood::default()).expect("read");
            assert!(matches!(heard, Heard::Newer), "{heard:?}");
        }
    }

    #[test]
    fn a_bookmark_may_say_more() {
        let frame = json!({"bookmark": {"at": 7, "servers": {"1": "10.0.0.1:15008"}, "oldest": 3}});
        let heard = heard(&frame, &mut NotUnderstood::default()).expect("read");
        assert!(matches!(heard, Heard::Bookmark { at: Revision(7), .. }), "{heard:?}");
    }

    #[test]
    fn frames_of_released_servers_are_understood_wholly() {
        #[derive(Deserialize)]
        struct Line {
            down: Option<Value>,
        }
        let released = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats");
        let mut frames = 0;
        for version in std::fs::read_dir(released).expect("formats").flatten() {
            let Ok(lines) = std::fs::read_to_string(version.path().join("frames.jsonl")) else { continue };
            let (mut whole, mut followed) = (World::default(), World::default());
            for frame in lines.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()?.down) {
                let mut unread = NotUnderstood::default();
                match heard(&frame, &mut unread).expect("read") {
                    Heard::World(read) => whole = read.world,
                    Heard::Delta { to, changes, .. } => followed.absorb_all(to, &changes),
                    Heard::Bookmark { .. } => {}
                    Heard::Newer => panic!("{frame}"),
                }
                assert!(unread.is_empty(), "{frame}");
                frames += 1;
            }
            assert_eq!(whole.public(), followed.public(), "{version:?}");
            assert_eq!(whole.hosts.len(), 2);
        }
        assert!(frames > 10, "{frames}");
    }

    #[test]
    fn what_no_version_says_is_an_error() {
        for frame in [
            json!(5),
            json!({}),
            json!({"delta": {}}),
            json!({"bookmark": {"at": "x"}}),
            json!({"world": []}),
        ] {
            assert!(heard(&frame, &mut NotUnderstood::default()).is_err(), "{frame}");
        }
        assert!(read(b"{\"world\"", &World::default(), &mut NotUnderstood::default()).is_err());
    }
}

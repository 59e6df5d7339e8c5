//! The stream from a server to an agent, and what the agent says back.
//!
//! A watch is ordered, unique, reliable, atomic, resumable and bookmarked: each revision comes once, in order
//! and whole; it resumes from a revision; [`Down::Bookmark`] says "nothing for you up to R". What a server
//! cannot resume (its ring no longer has it) begins again with [`Down::World`].
//!
//! Both ends may be of different versions: each takes in what it understands of the other
//! (`docs/decisions/018-versions-side-by-side.md`). A kind of [`Down`] that came later than [`Hello::version`] is passed
//! over there, so it may hold no facts: those come as [`Change`]s, one by one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::command::{HostFacts, HostId, Liveness, Mesh, Revision};
use crate::exact::Unread;
use crate::registration::{Health, Registration};
use crate::resource::{Object, ObjectKey};

/// A resource at the revision of its last change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// The resource.
    pub object: Object,
    /// Revision that first made it: "older" in Istio's rules for conflicts.
    pub created: Revision,
    /// Revision of its last change: its `resourceVersion`.
    pub changed: Revision,
}

/// A mesh has them by the ten thousand.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Stored>() <= 112);

/// A host as the mesh knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// SPKI of its host key, DER in base64.
    pub public_key: String,
    /// X25519 public key in base64.
    pub wrap_key: String,
    /// What it says of itself.
    pub facts: HostFacts,
    /// Whether it came by a token that lets it become a voter.
    pub voter_eligible: bool,
    /// Whether it answers.
    pub liveness: Liveness,
}

/// One changed fact, as every mirror of the World takes it in. Holds no secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The mesh's own facts.
    Mesh(Mesh),
    /// A host; `None`: removed.
    Host {
        /// Its id.
        id: HostId,
        /// It.
        host: Option<Host>,
    },
    /// What a host offers; `None`: nothing.
    Registration {
        /// The host.
        host: HostId,
        /// All of it.
        registration: Option<Registration>,
    },
    /// A resource; `None`: deleted.
    Resource {
        /// Which.
        key: ObjectKey,
        /// It.
        stored: Option<Box<Stored>>,
    },
    /// The place of a mesh host name in the virtual address ranges; `None`: given back.
    VirtualAddress {
        /// Fully qualified host name.
        host: String,
        /// Offset into 240.240.0.0/16 and 2001:2::/48.
        index: Option<u16>,
    },
}

/// The agreed facts that every host may see, whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PublicWorld {
    /// At this revision.
    pub revision: Revision,
    /// Every fact, as changes against an empty World.
    pub facts: Vec<Change>,
}

/// What an agent says first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The mesh it belongs to.
    pub mesh: String,
    /// The revision it has, if any.
    pub from: Option<Revision>,
    /// Its version.
    pub version: String,
}

/// From server to agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Down {
    /// Begin with this.
    World(PublicWorld),
    /// The facts that changed between two revisions.
    Delta {
        /// The revision this builds upon.
        from: Revision,
        /// The revision reached.
        to: Revision,
        /// What changed.
        changes: Vec<Change>,
    },
    /// Nothing new for you up to this revision. Also the keepalive, every 2 s.
    Bookmark {
        /// The revision.
        at: Revision,
        /// Servers one may turn to: id and address of the mesh port.
        servers: BTreeMap<HostId, std::net::SocketAddr>,
    },
}

/// From agent to server; also the keepalive, at least every 2 s.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Up {
    /// The revision whose Plan the host runs.
    pub live: Revision,
    /// Why it could not take the newest revision, if so: object and reason.
    #[serde(default)]
    pub problems: Vec<String>,
    /// Everything the host offers, when it changed (and at the start of a stream).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration: Option<Registration>,
    /// Instances that became well or ill.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub health: BTreeMap<String, Health>,
    /// The host's facts, when they changed (and at the start of a stream).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<HostFacts>,
    /// The host's wall clock, milliseconds since 1970.
    #[serde(default)]
    pub clock_ms: u64,
    /// True when the host is stopping.
    #[serde(default)]
    pub goodbye: bool,
}

impl Up {
    /// Reads what a newer agent says as far as it is understood; what is not becomes a problem of its host, which names
    /// `reader`, who does not understand it.
    ///
    /// # Errors
    /// When it is no word of an agent of any version.
    pub fn in_part(json: &[u8], reader: &str) -> Result<Self, serde_json::Error> {
        let parts: Parts<'_> = serde_json::from_slice(json)?;
        let mut problems = parts.problems;
        let mut leave_out = |what: &str, why: &dyn std::fmt::Display| {
            problems
                .push(format!("{what} is not known to the mesh ({why}): it needs a newer meshd on {reader}"));
        };
        let registration =
            match parts.registration.map(|part| Registration::in_part(part.get())).transpose()? {
                None => None,
                Some((registration, left_out)) => {
                    for (id, why) in left_out {
                        leave_out(&format!("instance {id}"), &why);
                    }
                    Some(registration)
                }
            };
        let facts = parts.facts.and_then(|part| {
            let read = serde_json::from_str(part.get());
            read.map_err(|error| leave_out("what the host says of itself", &Unread::of(&error))).ok()
        });
        let known = |(id, part): (String, &RawValue)| Some((id, serde_json::from_str(part.get()).ok()?));
        let health = parts.health.into_iter().filter_map(known).collect();
        let Parts { live, clock_ms, goodbye, .. } = parts;
        Ok(Self { live, problems, registration, health, facts, clock_ms, goodbye })
    }
}

#[derive(Deserialize)]
struct Parts<'a> {
    live: Revision,
    #[serde(default)]
    problems: Vec<String>,
    #[serde(default, borrow)]
    registration: Option<&'a RawValue>,
    #[serde(default, borrow)]
    health: BTreeMap<String, &'a RawValue>,
    #[serde(default, borrow)]
    facts: Option<&'a RawValue>,
    #[serde(default)]
    clock_ms: u64,
    #[serde(default)]
    goodbye: bool,
}

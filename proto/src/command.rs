//! What may be written to the Raft log.
//!
//! An [`Entry`] is a [`Command`] with the stamp that the leader put on it: time, author, idempotency key.
//! `World::apply` in `mesh-core` is the only reader; it looks at nothing but the entry, so all servers agree
//! byte for byte. Names in the JSON form are never used again for another meaning.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::registration::{Health, Registration};
use crate::resource::{Object, ObjectKey};
use crate::value::Labels;

/// A revision of the World: the Raft log index of the entry that made it. Grows, with gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A host's id: the log index of its join entry; 1 is the host that began the mesh. Never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostId(pub u64);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Milliseconds since 1970-01-01 UTC by the leader's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When the leader took it in.
    pub at: Timestamp,
    /// Who asked, for example `uid 0 on vm1`.
    pub author: String,
    /// The same key within 10 minutes is the same request: it is answered, not applied again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What is to change.
    pub command: Command,
}

/// A change of the mesh's agreed facts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Begins the mesh; only ever the first command.
    Bootstrap(Box<Bootstrap>),
    /// Lets a host in, using up a token.
    Join(Box<Join>),
    /// Forgets a host: its registration goes, its id is never used again.
    RemoveHost {
        /// The host.
        host: HostId,
    },
    /// A host's own facts have changed (address, labels, version …).
    UpdateHost {
        /// The host.
        host: HostId,
        /// All of its facts.
        facts: HostFacts,
    },
    /// Makes a join token.
    CreateToken(Token),
    /// Voids a join token.
    RevokeToken {
        /// Its id.
        id: String,
    },
    /// Seals the root key for a further voter.
    SealRoot {
        /// Who can open it.
        holder: HostId,
        /// The sealed key, opaque here (`meshd::identity::seal`).
        sealed: String,
    },
    /// Changes resources, all or nothing.
    Change(Batch),
    /// Replaces what a host offers.
    Register {
        /// The host.
        host: HostId,
        /// Everything it offers now.
        registration: Registration,
    },
    /// Instances of a host became well or ill.
    Health {
        /// The host.
        host: HostId,
        /// Instance id and its new health.
        flips: BTreeMap<String, Health>,
    },
    /// Hosts came, fell silent, or went. At most 1,000 an entry.
    Liveness {
        /// The changed hosts.
        changes: BTreeMap<HostId, Liveness>,
    },
}

/// The first facts of a mesh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// The mesh itself.
    pub mesh: Mesh,
    /// The root key sealed for its holders: host id, or `recovery`.
    pub sealed_root: BTreeMap<String, String>,
    /// The first host.
    pub host: NewHost,
}

/// What identifies a mesh and is trusted in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    /// Random, 128 bit, hexadecimal.
    pub id: String,
    /// SPIFFE trust domain. Default `cluster.local`, Istio's.
    pub trust_domain: String,
    /// DNS suffix of services (`reviews.default.svc.DOMAIN`). Default `cluster.local`.
    pub domain: String,
    /// Root certificates, DER in base64.
    pub roots: Vec<String>,
    /// When it began.
    pub created: Timestamp,
}

/// A host that comes in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewHost {
    /// Name of the host, unique among the hosts that are not gone.
    pub name: String,
    /// SPKI of its host key, DER in base64: the proof of who it is after its certificates have ended.
    pub public_key: String,
    /// X25519 public key in base64: what the root key is sealed for when it becomes a voter.
    pub wrap_key: String,
    /// What else is known of it.
    pub facts: HostFacts,
}

/// What a host says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Where its mesh port answers (TCP and UDP), usually port 15008.
    pub address: SocketAddr,
    /// Version of meshd.
    pub version: String,
    /// Labels of the host, matched by selectors.
    #[serde(default)]
    pub labels: Labels,
    /// `region/zone/subzone`, may be empty.
    #[serde(default)]
    pub locality: String,
    /// Whether it may become a voter.
    #[serde(default)]
    pub voter: VoterWish,
}

/// Whether a host may become a voter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VoterWish {
    /// Never.
    Never,
    /// When the mesh needs one.
    #[default]
    Auto,
    /// Before those that say `Auto`.
    Prefer,
}

/// A join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// Id of the token used.
    pub token: String,
    /// The host.
    pub host: NewHost,
    /// Whether the mesh had too few hosts that may vote: what a token of [`TokenRole::Auto`] comes to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub voter_wanted: bool,
}

/// A join token as the mesh remembers it: never the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Public id.
    pub id: String,
    /// What proofs are checked with (`proto::token::verifier` of the secret), base64.
    pub verifier: String,
    /// What it lets a host become.
    pub role: TokenRole,
    /// Until when it may be used.
    pub expires: Timestamp,
    /// Its use, once used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<TokenUse>,
    /// Who made it.
    pub author: String,
}

/// What a token lets a host become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenRole {
    /// Whichever the mesh needs when the host joins: one that may vote while there are too few of those, else an agent.
    Auto,
    /// One that may vote: a voter, or a spare one.
    VoterEligible,
    /// An agent.
    Agent,
}

/// The one use of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// When.
    pub at: Timestamp,
    /// Name of the host that used it.
    pub host: String,
}

/// Whether a host answers. Source: `design` of leases: live, suspect after 1 s without a stream or 5 s of silence,
/// gone after 10 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// It answers.
    #[default]
    Live,
    /// It fell silent a moment ago: its endpoints stay, at lower priority.
    Suspect,
    /// It is gone: its endpoints are out.
    Gone,
    /// It said goodbye: as `Gone`, without alarm.
    Left,
}

/// Resources to change in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// The changes, each object at most once.
    pub changes: Vec<ResourceChange>,
    /// For `meshctl history`: what was done, such as `apply rules.yaml`.
    pub reason: String,
}

/// One resource to change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResourceChange {
    /// Which.
    pub key: ObjectKey,
    /// Its new content; `None` deletes it.
    pub object: Option<Object>,
    /// What must hold before.
    #[serde(default)]
    pub expect: Precondition,
}

/// What must hold of an object for a change to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precondition {
    /// Nothing.
    #[default]
    Any,
    /// It is not there.
    Absent,
    /// It is there.
    Present,
    /// Its last change was at this revision.
    At(Revision),
}

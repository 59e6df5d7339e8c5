//! What `meshctl explain` asks and what it is told: the way of one request through the rules, with reasons.
//!
//! Words only; `core::explain` decides with the functions that serve traffic. Everything is text or a number, so that
//! `-o json` is of use to scripts.

use serde::{Deserialize, Serialize};

use crate::value::Labels;

/// A request to be explained.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Method.
    pub method: String,
    /// Scheme of the URL, `http` or `https`.
    pub scheme: String,
    /// Host as a caller would send it, perhaps with a port.
    pub authority: String,
    /// The service port; `None`: that of the host's service, where it has one port or port 80.
    #[serde(default)]
    pub port: Option<u16>,
    /// Path and query, as sent.
    pub target: String,
    /// Header lines.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// Who calls: a service, an instance's id, an account, each as `NAME`, `NAME.NAMESPACE` or `NAMESPACE/NAME`; empty: the
    /// default caller of the host that answers.
    #[serde(default)]
    pub from: String,
    /// Labels of the caller beside those it is registered with.
    #[serde(default)]
    pub labels: Labels,
    /// Whether a caller that nobody registered is an error, or one without labels.
    #[serde(default)]
    pub any_caller: bool,
    /// What is asked about: a request, or a connection that is none (`authority` is then where it goes).
    #[serde(default)]
    pub speaks: Speaks,
    /// The server that TLS asks for; `None`: the host in `authority`, unless that is an address.
    #[serde(default)]
    pub sni: Option<String>,
    /// The gateway that a visitor comes to, `NAMESPACE/NAME`; empty: the caller is inside the mesh.
    #[serde(default)]
    pub gateway: String,
}

/// What is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speaks {
    /// Requests.
    #[default]
    Http,
    /// Bytes.
    Tcp,
    /// TLS that the caller begins itself.
    Tls,
}

/// What becomes of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The request as rules see it.
    pub request: Seen,
    /// Who calls.
    pub caller: Caller,
    /// The host it was found to be for; `None`: nobody declares it.
    pub host: Option<Host>,
    /// Rules looked at before the one that counts, and why each was passed over; in order.
    pub passed: Vec<Passed>,
    /// The rule that counts; `None`: none does.
    pub rule: Option<Rule>,
    /// The condition of it that holds, in words.
    pub because: String,
    /// What happens, in short.
    pub outcome: Outcome,
    /// Faults injected on purpose.
    pub fault: Option<Fault>,
    /// Settings in effect, each with who set it.
    pub settings: Vec<Setting>,
    /// Where it may go, by weight.
    pub destinations: Vec<Destination>,
    /// Where copies go.
    pub mirrors: Vec<Mirror>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

/// The request as rules see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Method.
    pub method: String,
    /// Scheme.
    pub scheme: String,
    /// Host as sent.
    pub authority: String,
    /// Service port.
    pub port: u16,
    /// Normalised path.
    pub path: String,
    /// Query without `?`.
    pub query: Option<String>,
    /// The server that TLS asks for, where there is TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
}

/// A caller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// `namespace/account`.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// How it was found, in words.
    pub known_as: String,
    /// The host from which all is seen.
    pub seen_from: String,
}

/// A virtual host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its full name, or the pattern.
    pub name: String,
    /// Service port.
    pub port: u16,
    /// How the Host of the request led to it, in words.
    pub how: String,
}

/// A rule, and where it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `VirtualService default/reviews`; empty: the service's own default.
    pub object: String,
    /// `http[0]`; empty: the object as a whole.
    pub path: String,
    /// Name given to the route, may be empty.
    pub name: String,
    /// Position among the rules of the object, from 0.
    pub index: Option<usize>,
    /// Revision of the object's last change, where a mesh was asked.
    pub revision: Option<u64>,
    /// `file:line:column`, where files were read.
    #[serde(default)]
    pub place: Option<String>,
}

/// A rule passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// It.
    pub rule: Rule,
    /// For each of its alternatives the first condition that failed, in words; or why it does not count at all.
    pub because: Vec<String>,
}

/// What happens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which kind of end.
    pub kind: End,
    /// The status, where meshd answers by itself.
    pub status: Option<u16>,
    /// `location` of a redirect.
    pub location: Option<String>,
    /// Body of an answer of its own.
    pub body: Option<String>,
    /// In words.
    pub words: String,
}

/// Kinds of ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// Sent on to a destination.
    Forward,
    /// Redirected.
    Redirect,
    /// Answered by the rule.
    Answer,
    /// A cross-origin preflight, answered by the rule.
    Preflight,
    /// A host with rules, none of which applies.
    #[default]
    NoRoute,
    /// A host nobody declares, and the mesh refuses those.
    UnknownHost,
    /// A host nobody declares: it goes where it was going.
    PassThrough,
    /// A request that is refused for its form.
    BadRequest,
    /// A connection that is closed: no rule takes it, or nobody listens.
    Closed,
}

/// Faults injected on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Delay in milliseconds.
    pub delay_ms: Option<u64>,
    /// Share delayed, in millionths.
    pub delayed: u32,
    /// Status of the abort.
    pub status: Option<u16>,
    /// gRPC status of the abort.
    pub grpc_status: Option<u32>,
    /// Share aborted, in millionths.
    pub aborted: u32,
}

/// A setting in effect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Which.
    pub what: String,
    /// Its value in words.
    pub value: String,
    /// Who set it: an object and the field, or whose default it is.
    pub by: String,
    /// `file:line:column`, where files were read.
    #[serde(default)]
    pub place: Option<String>,
}

/// Where a request may go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Destination {
    /// Full host name.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Subset, may be empty.
    pub subset: String,
    /// Its share in millionths.
    pub share: u32,
    /// Why nothing can go there; empty: something can. The status is in `status`.
    pub trouble: String,
    /// The status meshd answers in that case.
    pub status: Option<u16>,
    /// The head as the destination sees it: method, authority, path with query.
    pub sends: Sends,
    /// Settings of the destination, each with who set it.
    pub settings: Vec<Setting>,
    /// The instances behind it.
    pub instances: Vec<Instance>,
}

/// A head as it is sent on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sends {
    /// Host.
    pub authority: String,
    /// Path and query.
    pub target: String,
    /// Headers that rules set or add: name and value.
    pub set: Vec<(String, String)>,
    /// Headers that rules remove.
    pub removed: Vec<String>,
}

/// An instance of a destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// `reviews-v1 on vm2`.
    pub id: String,
    /// Its `version` label, may be empty.
    pub version: String,
    /// Where meshd connects to.
    pub address: String,
    /// What happens there, in words.
    pub there: String,
    /// `healthy`, `unhealthy`, `ejected for 28 s` …
    pub state: String,
    /// Of 1000 picks by the balancer as things are now, how many it gets.
    pub picks: u32,
}

/// A copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// Where to, `host:port subset`.
    pub to: String,
    /// Share, in millionths.
    pub share: u32,
    /// Whether it is there.
    pub there: bool,
}

/// What a change of rules means for one route, or for one destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// What becomes of it.
    pub turn: Turn,
    /// The host; of a destination its name, `outbound|PORT|SUBSET|HOST`.
    pub host: String,
    /// The service port; 0 for a destination.
    pub port: u16,
    /// The condition of the route in words; empty: the host as a whole, or a destination.
    pub when: String,
    /// What is other than before.
    pub deltas: Vec<Delta>,
    /// Whether it concerns every caller of the mesh.
    pub all_clients: bool,
    /// Whom it concerns, `namespace/account`.
    pub clients: Vec<String>,
}

/// What becomes of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Turn {
    /// It is new.
    Added,
    /// It is another.
    #[default]
    Changed,
    /// It goes.
    Removed,
}

/// One thing that is other than before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Which: `to`, `timeout`, `retries`, `fault` …
    pub what: String,
    /// Before, in words; empty: nothing.
    pub before: String,
    /// After, in words; empty: nothing.
    pub after: String,
}

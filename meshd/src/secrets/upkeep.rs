//! What is told of certificates that are ordered.

use std::collections::BTreeMap;
use std::time::SystemTime;

use tokio::sync::oneshot;

/// How a certificate that is ordered stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upkeep {
    /// When it is ordered next, if nothing goes wrong.
    pub due: SystemTime,
    /// Why the last order failed; empty: it did not.
    pub problem: String,
}

/// How all that are ordered stand, by secret.
pub type Upkeeps = BTreeMap<String, Upkeep>;

/// Somebody who wants a certificate now.
#[derive(Debug)]
pub struct Wish {
    /// Its secret.
    pub secret: String,
    /// Where the end is told.
    pub answer: oneshot::Sender<Result<(), String>>,
}

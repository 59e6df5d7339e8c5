//! Control traffic: calls and long-lived streams to another host's control plane.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::frame::{FrameError, FrameStream, MAX_BULK_FRAME_BYTES, MAX_FRAME_BYTES};
use super::link::{DialError, Dialer};
use super::verify::Expect;

/// Which part of the control plane a stream is for: its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Service {
    /// Consensus between servers.
    Raft,
    /// Calls of meshctl and of other hosts.
    Api,
    /// The World and its changes, from servers to agents.
    Watch,
    /// Certificates.
    Sign,
}

impl Service {
    /// All, in the order of their bytes.
    pub const ALL: [Self; 4] = [Self::Raft, Self::Api, Self::Watch, Self::Sign];

    /// Returns the first byte of a stream. Never reuse one.
    pub fn byte(self) -> u8 {
        match self {
            Self::Raft => 1,
            Self::Api => 2,
            Self::Watch => 3,
            Self::Sign => 4,
        }
    }

    /// Finds the service of a first byte.
    pub fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.byte() == byte)
    }

    /// Returns the longest frame of its streams: 256 MiB where a snapshot or a World travels, else 16 MiB.
    pub fn max_frame_bytes(self) -> usize {
        match self {
            Self::Raft | Self::Watch => MAX_BULK_FRAME_BYTES,
            Self::Api | Self::Sign => MAX_FRAME_BYTES,
        }
    }
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The peer could not be reached; nothing was sent.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The stream failed after the request was sent, at least in part.
    #[error("the link to {address} failed during the call: {source}")]
    Broken {
        /// Whom we called.
        address: SocketAddr,
        /// What failed.
        source: FrameError,
    },
    /// The peer ended the stream without an answer.
    #[error("{address} ended the call without an answer")]
    NoAnswer {
        /// Whom we called.
        address: SocketAddr,
    },
    /// No answer within the caller's limit.
    #[error("{address} did not answer within {} ms", limit.as_millis())]
    TimedOut {
        /// Whom we called.
        address: SocketAddr,
        /// The limit.
        limit: Duration,
        /// Whether the request may have arrived.
        delivery: Delivery,
    },
    /// The request is longer than a frame of this service may be; nothing was sent.
    #[error("the request is too long: {0}")]
    TooLong(FrameError),
}

/// Whether a request that failed may have been carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Surely not: it may be sent again, elsewhere too.
    No,
    /// Perhaps: only what may happen twice may be sent again.
    Maybe,
}

impl CallError {
    /// Tells whether the request may have been carried out.
    pub fn delivery(&self) -> Delivery {
        match self {
            Self::Dial(_) | Self::TooLong(_) => Delivery::No,
            Self::Broken { .. } | Self::NoAnswer { .. } => Delivery::Maybe,
            Self::TimedOut { delivery, .. } => *delivery,
        }
    }
}

/// Talks to one peer's control plane. Cheap to clone; all clones share connections.
#[derive(Clone, Debug)]
pub struct ControlClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dialer: Dialer,
    address: SocketAddr,
    expect: Expect,
}

impl ControlClient {
    /// Will call `address` as this host; who answers must meet `expect`. Connects with the first call.
    pub fn new(dialer: Dialer, address: SocketAddr, expect: Expect) -> Self {
        Self(Arc::new(Inner { dialer, address, expect }))
    }

    /// Returns whom it calls.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Sends one frame and returns the one frame of the answer, within `limit` for all of it.
    ///
    /// Cancel safe for the client: a dropped call gives up its stream. The request may have been carried out.
    pub async fn call(&self, service: Service, body: Bytes, limit: Duration) -> Result<Bytes, CallError> {
        todo!("{service:?} {body:?} {limit:?} {:?} {:?}", self.0.dialer, self.0.expect)
    }

    /// Opens a stream of its own and sends its first frame.
    pub async fn open(&self, service: Service, first: Bytes) -> Result<FrameStream, CallError> {
        todo!("{service:?} {first:?}")
    }
}

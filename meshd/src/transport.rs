//! Links between hosts: mutual TLS 1.3 over TCP and QUIC on one port, and what travels on them.
//!
//! ALPN says what a connection is (see [`Protocol`]): a data hop, control traffic, or a host that wants to join. This
//! module proves who is at the other end and hands over streams; it routes nothing and knows no resource.
//!
//! | to do | use |
//! |---|---|
//! | reach another host's service | [`dial_hop`] with a [`Dialer`] |
//! | ask another host's control plane | [`ControlClient`] |
//! | join a mesh with a token | [`dial_join`] |
//! | serve the mesh port | [`Listener`] (TCP) and [`QuicListener`] (UDP) |

pub mod challenge;
pub mod control;
pub mod frame;
pub mod hop;
pub mod join;
pub mod lane;
pub(crate) mod lent;
pub mod link;
pub mod material;
pub mod originate;
pub mod quic;
mod rest;
pub mod secret;
mod server_check;
pub mod socket;
pub mod tcp;
pub mod terminate;
pub mod tls;
pub mod tls_socket;
pub mod verify;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use challenge::{Challenges, Offered};
pub use control::{CallError, ControlClient, Service};
pub use frame::{FrameError, FrameReceiver, FrameSender, FrameStream};
pub use hop::{HopTarget, dial_hop, dial_hop_over_quic};
pub use join::proof as join_proof;
pub use lane::{Lane, dial_lane};
pub use link::{
    Accepted, DialError, Dialer, JoinLink, LinkStream, Peer, Refused, TlsFault, Transport, dial_join, refusal,
};
pub use material::{MaterialError, folder_of};
pub use originate::{OriginateError, Originator, begin_unchecked, trusting};
pub use quic::{QuicListener, QuicOptions};
pub use secret::Secret;
pub use socket::SocketOptions;
pub use tcp::Listener;
pub use terminate::{Outlook, TerminateError, Terminated, Terminator, outlook};
pub use tls::{Credentials, Denied, Protocol, Trust, provider};
pub use verify::{CertificateFault, Expect};

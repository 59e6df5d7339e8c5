//! This host's keys and certificates: made here, kept on disk, renewed in time, and the root key sealed.
//!
//! Keys never leave the host. Certificates come from any voter, through a closure that `app` hands in, and go to
//! `transport::Credentials`, from where new handshakes take them.

pub mod files;
pub mod hostkeys;
pub mod rotation;
pub mod seal;

pub use files::FileError;
pub use hostkeys::HostKeys;
pub use rotation::{Rotation, RotationHandle, RotationSettings, Standing};

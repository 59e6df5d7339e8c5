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

/// Keeps a certificate of the host itself in the folder of certificates, where [`Rotation::restore`] finds it.
///
/// # Errors
/// When the folder cannot be written.
pub fn keep_host_chain(
    folder: &std::path::Path,
    keys: HostKeys,
    identity: &mesh_core::identity::Identity,
    chain: &[rustls::pki_types::CertificateDer<'_>],
) -> Result<(), FileError> {
    rotation::Store::new(folder.to_owned(), std::sync::Arc::new(keys)).save(identity, None, chain)
}

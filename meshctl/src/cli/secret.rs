//! Arguments of `secret`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Output;

/// Commands about the secrets of this host.
#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Put a certificate and its key, or roots, into this host
    #[command(after_help = "\
Examples:
  meshctl secret create shop --cert fullchain.pem --key privkey.pem
  meshctl secret create shop --cert shop.pem --key shop.key --ca clients.pem --crl clients.crl
  meshctl secret create partner-roots --ca partner.pem

It is this host's: do the same on each host whose rules name it. A Gateway's credentialName: shop shows it to visitors;
--ca is what visitors' certificates (MUTUAL), or servers' (DestinationRule), are checked against.")]
    Create(SecretArgs),
    /// Replace what is given, keep the rest; new connections see it within two seconds
    #[command(after_help = "Example:\n  meshctl secret rotate shop --cert fullchain.pem --key privkey.pem")]
    Rotate(SecretArgs),
    /// Order a certificate from its authority (ACME) now, not when it is due; waits for it
    #[command(after_help = "\
Example:
  meshctl secret renew shop

What is ordered stands in [[acme.certificate]] of this host's meshd.toml. Until the order has succeeded, the certificate
that is there stays.")]
    Renew {
        /// Its name
        name: String,
    },
    /// List the secrets of this host: names, until when, used by which rules
    List(Output),
    /// Show one secret; never its key
    Get {
        /// Its name
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// Remove a secret from this host
    Delete {
        /// Its name
        name: String,
    },
}

/// Arguments of `secret create` and `secret rotate`.
#[derive(Debug, Args)]
pub(crate) struct SecretArgs {
    /// Its name, as in credentialName
    pub(crate) name: String,
    /// Certificate in PEM, the server's own first, then who signed it (tls.crt)
    #[arg(long, value_name = "FILE", required_unless_present_any = ["key", "ca", "crl"])]
    pub(crate) cert: Option<PathBuf>,
    /// Its private key in PEM (tls.key)
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Roots in PEM (ca.crt)
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Lists of certificates taken back, in PEM (ca.crl)
    #[arg(long, value_name = "FILE")]
    pub(crate) crl: Option<PathBuf>,
}

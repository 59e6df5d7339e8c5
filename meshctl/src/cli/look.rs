//! Arguments of the commands that look at rules and change nothing: `api`, `explain`, `analyze`, `test`, `validate`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use mesh_proto::support::Word;

use super::Output;

/// Commands about the API.
#[derive(Debug, Subcommand)]
pub(crate) enum ApiCommand {
    /// Every field of Istio's kinds: honoured, partial, refused (with the reason) or without effect
    Fields(FieldsArgs),
}

/// Arguments of `api fields`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl api fields                           every field of every kind
  meshctl api fields vs                        of VirtualService
  meshctl api fields dr --status refused       what of DestinationRule does not work, and why
  meshctl api fields -o json

Paths are below `spec`: [] stands for the items of a list, {} for the values of a map.")]
pub(crate) struct FieldsArgs {
    /// Kind, in full or short
    pub(crate) kind: Option<String>,
    /// Only fields of this status
    #[arg(long, value_enum, value_name = "STATUS")]
    pub(crate) status: Option<FieldStatus>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What is done with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FieldStatus {
    /// It does what Istio says
    Honoured,
    /// Some values, or some of the fields below it
    Partial,
    /// Refused at apply
    Refused,
    /// Accepted with a warning, changes nothing
    NoEffect,
}

impl From<FieldStatus> for Word {
    fn from(status: FieldStatus) -> Self {
        match status {
            FieldStatus::Honoured => Self::Honoured,
            FieldStatus::Partial => Self::Partial,
            FieldStatus::Refused => Self::Refused,
            FieldStatus::NoEffect => Self::NoEffect,
        }
    }
}

/// Arguments of `validate`.
#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    /// Files and folders, or `-` for standard input
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    pub(crate) namespace: String,
    /// Take warnings for errors
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

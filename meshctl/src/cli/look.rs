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

/// Arguments of `explain`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl explain GET http://reviews:9080/api?v=2 -H 'end-user: jason' --from productpage
  meshctl explain http://reviews:9080/ -f rules.yaml -f services.toml     on files alone, no mesh
  meshctl explain POST http://reviews/api --from ratings.shop -o json
  meshctl explain tcp mongo:27017 --from ratings                          a connection of bytes
  meshctl explain tls db.example.com:443                                  TLS that the caller begins itself
  meshctl explain https://shop.example.com/ --gateway istio-system/edge   a visitor of a gateway

Without -f it asks the meshd of this host, whose rules and health it shows. With -f it needs no mesh: rules are *.yaml,
services *.toml as in /etc/meshd/services.d; without services, those that the rules name are assumed.")]
pub(crate) struct ExplainArgs {
    /// Method (GET where left out) and URL; or tcp or tls and HOST:PORT (also as tcp://HOST:PORT, tls://HOST:PORT)
    #[arg(value_names = ["METHOD", "URL"], num_args = 1..=2, required = true)]
    pub(crate) request: Vec<String>,
    /// A visitor of this gateway asks, not a caller inside the mesh
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "from")]
    pub(crate) gateway: Option<String>,
    /// Server that TLS asks for, where it is not the host
    #[arg(long, value_name = "NAME")]
    pub(crate) sni: Option<String>,
    /// Header of the request
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub(crate) headers: Vec<String>,
    /// Who calls: a service, an instance or an account: NAME, NAME.NAMESPACE or NAMESPACE/NAME
    #[arg(long, value_name = "WORKLOAD")]
    pub(crate) from: Option<String>,
    /// Label of the caller, beside those it is registered with
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<String>,
    /// Service port, where the URL names none
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Files and folders of rules and services: explain these, not the mesh
    #[arg(short, long, value_name = "FILE")]
    pub(crate) filename: Vec<PathBuf>,
    /// Namespace of objects in files that name none
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    pub(crate) namespace: String,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Arguments of `analyze`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl analyze                              the rules of the mesh
  meshctl analyze rules/ services.toml         files alone, no mesh (for CI)
  meshctl analyze rules.yaml --live            the mesh as it would be with these files
  meshctl analyze rules/ --fail-on error -o json

Codes IST0101 and the like are Istio's, with Istio's meaning; words such as retries-do-not-fit are meshd's own.
Exit code 1 where a finding is as grave as --fail-on says.")]
pub(crate) struct AnalyzeArgs {
    /// Files and folders of rules (*.yaml, *.yml, *.json) and services (*.toml)
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Put the files on top of what the mesh has (without files: the default)
    #[arg(long, conflicts_with = "offline")]
    pub(crate) live: bool,
    /// The files alone (with files: the default)
    #[arg(long, requires = "files")]
    pub(crate) offline: bool,
    /// The least grave finding that fails
    #[arg(long, value_enum, default_value_t = Grave::Warning, value_name = "SEVERITY")]
    pub(crate) fail_on: Grave,
    /// Namespace of objects that name none
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    pub(crate) namespace: String,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// How grave a finding must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Grave {
    /// Errors
    Error,
    /// Errors and warnings
    Warning,
    /// Everything
    Info,
}

/// Arguments of `test`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl test examples/tests                  every *.test.yaml of a folder
  meshctl test reviews.test.yaml --coverage
  meshctl test rules/ --junit report.xml       for CI

A file of cases:
  rules: [rules.yaml]                          files and folders, from where this file is
  services: [services.toml]                    or a list in place: {reviews: {port: 9080, versions: [v1, v2]}}
  cases:
  - name: jason sees v2
    when: {url: http://reviews:9080/, headers: {end-user: jason}, from: productpage}
    then: {to: {v2: 100}, timeout: 2s}
  - when: {url: http://reviews:9080/old}
    then: {status: 301, location: http://reviews:9080/new}

Nothing is sent: the rules are compiled as meshd does, and asked. Exit code 1 where a case fails.")]
pub(crate) struct TestArgs {
    /// Files of cases, and folders with *.test.yaml
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Name the routes that no case reaches
    #[arg(long)]
    pub(crate) coverage: bool,
    /// Write a report in JUnit's form
    #[arg(long, value_name = "FILE")]
    pub(crate) junit: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
}

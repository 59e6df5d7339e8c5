//! Arguments of the commands that look at hosts and at their traffic.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{Grave, Output};
use crate::words::duration;

/// Arguments of `routes`, `clusters`, `endpoints`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Only of this service, short or full name
    #[arg(value_name = "SERVICE")]
    pub(crate) service: Option<String>,
    /// Only on this port
    #[arg(long)]
    pub(crate) port: Option<u16>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl top                                  live, a row for each caller, service and version; q to leave
  meshctl top --by service                     live, a row for each service
  meshctl top --by host --once                 which hosts send how much
  meshctl top --once --interval 5s             one measurement, for scripts
  meshctl top --once -o json")]
pub(crate) struct TopArgs {
    /// What a row stands for
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    pub(crate) by: By,
    /// Measure once and print
    #[arg(long)]
    pub(crate) once: bool,
    /// Time between two measurements
    #[arg(long, value_parser = duration, default_value = "1s", value_name = "TIME")]
    pub(crate) interval: Duration,
    /// Only calls counted by the host that answers
    #[arg(long)]
    pub(crate) local: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What a row of `top` stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    /// A caller, a service, and the version that answered
    #[default]
    Edge,
    /// A service
    Service,
    /// The host that sent the requests
    Host,
}

/// Arguments of `tap`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl tap                                  every request of the mesh, up to 100 a second of each host
  meshctl tap --service reviews --status 5xx   what fails at reviews
  meshctl tap --path /api/ --method POST --from web --limit 20
  meshctl tap --header end-user=jason --show-headers
  meshctl --host vm2 tap --for 30s -o json     what vm2 sends, an object a line

Values that let somebody in are hidden: authorization, cookies, tokens and the like, in fields and in queries.
--show-secrets shows them where the host allows it (proxy.tap = \"all\" in its meshd.toml). Nothing is looked at while
nobody taps; a tap that nobody reads ends after 5 seconds.")]
pub(crate) struct TapArgs {
    /// Only requests to this service, short or full name
    #[arg(long, value_name = "SERVICE")]
    pub(crate) service: Option<String>,
    /// Only paths that begin so
    #[arg(long, value_name = "PREFIX")]
    pub(crate) path: Option<String>,
    /// Only this method
    #[arg(long, value_name = "METHOD")]
    pub(crate) method: Option<String>,
    /// Only this status, or class of them (503, 5xx)
    #[arg(long, value_name = "STATUS")]
    pub(crate) status: Option<String>,
    /// Only of this caller: account, or namespace/account
    #[arg(long, value_name = "WORKLOAD")]
    pub(crate) from: Option<String>,
    /// Only with this field: NAME, or NAME=VALUE
    #[arg(long = "header", short = 'H', value_name = "NAME[=VALUE]")]
    pub(crate) headers: Vec<String>,
    /// One in so many of those that fit
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000), value_name = "N")]
    pub(crate) one_in: u32,
    /// End after so many
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// End after this time
    #[arg(long = "for", value_parser = duration, value_name = "TIME")]
    pub(crate) duration: Option<Duration>,
    /// Show the fields of requests
    #[arg(long)]
    pub(crate) show_headers: bool,
    /// Show hidden values, where hosts allow it
    #[arg(long)]
    pub(crate) show_secrets: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Arguments of `graph`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl graph
  meshctl graph --interval 10s -o mermaid      for a README
  meshctl graph -o dot | dot -Tsvg > mesh.svg
  meshctl graph -o json")]
pub(crate) struct GraphArgs {
    /// Over which time to measure
    #[arg(long, value_parser = duration, default_value = "3s", value_name = "TIME")]
    pub(crate) interval: Duration,
    /// Only what this service calls and is called by, short or full name
    #[arg(long, value_name = "SERVICE")]
    pub(crate) service: Option<String>,
    /// Form of the output
    #[arg(short, long = "output", value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: GraphForm,
}

/// The form of a graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum GraphForm {
    /// For people
    #[default]
    Text,
    /// For graphviz
    Dot,
    /// For Markdown
    Mermaid,
    /// One object `{\"version\": 1, \"items\": […]}`, an item for each edge
    Json,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl doctor                               this host, also where meshd does not run
  meshctl doctor --all                         every host of the mesh
  meshctl --host vm2 doctor -v                 vm2, with what is well, too
  meshctl doctor -o json --fail-on error       for scripts

Looks at: configuration, state, ports, descriptors, memory, rights, disk and its speed, certificates, connection tracking,
firewalls beside meshd, marks, the way of names, other hosts, clocks, versions, quorum, revision.
Exit code 1 where a finding is as grave as --fail-on says.")]
pub(crate) struct DoctorArgs {
    /// Every host of the mesh
    #[arg(long)]
    pub(crate) all: bool,
    /// Tell what is well, too
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// The least grave finding that fails
    #[arg(long, value_enum, default_value_t = Grave::Warning, value_name = "SEVERITY")]
    pub(crate) fail_on: Grave,
    /// Configuration of a meshd that does not run [default: /etc/meshd/meshd.toml]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Data folder of a meshd that does not run
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Arguments of `config`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl config                               this host
  meshctl config vm2                           another one, from here
  meshctl config --all                         with every key that has its default")]
pub(crate) struct ConfigArgs {
    /// The host [default: the one that answers]
    #[arg(value_name = "HOST")]
    pub(crate) of: Option<String>,
    /// Defaults, too
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Commands about logs.
#[derive(Debug, Subcommand)]
pub(crate) enum LogsCommand {
    /// Show how much is logged, or change it while meshd runs
    #[command(after_help = "\
Examples:
  meshctl logs level                           how much is logged
  meshctl logs level debug --for 5m            more, for five minutes
  meshctl logs level info,meshd::proxy=debug   more of one part, until meshd ends
  meshctl --host vm2 logs level meshd::dns=trace --for 1m

Other hosts are changed for an hour at most. The lines are in the journal: journalctl -u meshd -f")]
    Level {
        /// LEVEL, or PART=LEVEL, with commas between them
        #[arg(value_name = "LEVEL")]
        level: Option<String>,
        /// Then as meshd.toml says again; at most 1h
        #[arg(long = "for", value_parser = duration, value_name = "TIME", requires = "level")]
        during: Option<Duration>,
        #[command(flatten)]
        output: Output,
    },
}

//! What can be typed: commands, flags, help texts with examples.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::output::Format;
use crate::words::duration;

mod look;
mod secret;
mod watch;

pub(crate) use look::{AnalyzeArgs, ApiCommand, ExplainArgs, FieldsArgs, Grave, TestArgs, ValidateArgs};
pub(crate) use secret::{SecretArgs, SecretCommand};
pub(crate) use watch::{
    By, ConfigArgs, DoctorArgs, GraphArgs, GraphForm, LogsCommand, PlanArgs, TapArgs, TopArgs,
};

const AFTER: &str = "\
First steps:
  meshctl demo                                 a mesh of three hosts on this machine, with a canary running
  meshctl apply -f rules.yaml                  send rules to the mesh, wait until every host runs them
  meshctl status                               hosts, leader, revisions
  meshctl top                                  who calls whom, live
  meshctl doctor                               what is wrong with this host, each with its remedy

Exit codes: 0 done, 1 findings or refused, 2 file unreadable, 3 conflict, 4 no quorum or time-out, 64 wrong usage";

/// The hand of the mesh: rules, services, hosts, and what they do.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, after_help = AFTER, max_term_width = 110, propagate_version = false)]
pub(crate) struct Cli {
    /// Unix socket of the meshd to speak to [env: `MESHD_SOCKET`] [default: /run/meshd/meshd.sock, else the demo's]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Host of the mesh to ask: what that one tells (routes, clusters, endpoints, top, tap, doctor, config, logs); in a
    /// demo: the host to speak to
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) host: Option<String>,
    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Try a whole mesh on this machine: three hosts, services, a canary, live
    Demo(DemoArgs),
    /// Begin a mesh on this host (runs `meshd init`)
    #[command(after_help = "Example:\n  meshctl init\nNext: meshctl token create")]
    Init(PassedOn),
    /// Bring this host into a mesh (runs `meshd join`)
    #[command(after_help = "Example:\n  meshctl join 10.0.0.1:15008 < token")]
    Join(PassedOn),
    /// Tokens that let hosts join
    #[command(subcommand)]
    Token(TokenCommand),
    /// Send rules to the mesh: all or nothing, one revision
    Apply(ApplyArgs),
    /// Show rules of the mesh
    Get(GetArgs),
    /// Delete rules
    Delete(DeleteArgs),
    /// Show what `apply` would change
    Diff(DiffArgs),
    /// Check files without a mesh
    #[command(after_help = "Example:\n  meshctl validate examples/two-hosts")]
    Validate(ValidateArgs),
    /// Which rule a request meets, why not the others, and where it goes
    Explain(Box<ExplainArgs>),
    /// What is strange about rules: missing hosts and subsets, routes never reached, conflicts
    Analyze(AnalyzeArgs),
    /// Check cases: what rules must do with requests, without a mesh
    Test(TestArgs),
    /// Istio's API, field by field: what works here
    #[command(subcommand)]
    Api(ApiCommand),
    /// Services: register, deregister, list
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Secrets of this host: certificates and keys that rules name by credentialName
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Hosts: list, remove
    #[command(subcommand)]
    Host(HostCommand),
    /// Hosts, roles, the revision each runs, health
    #[command(after_help = "Exit code 4 where the mesh has no quorum.")]
    Status(Output),
    /// What this host does with requests, one row per route
    #[command(
        after_help = "Examples:\n  meshctl routes reviews\n  meshctl routes reviews.default --port 9080 -o json"
    )]
    Routes(PlanArgs),
    /// What this host may send to, one row per cluster
    Clusters(PlanArgs),
    /// The endpoints this host knows, and how they fare
    Endpoints(PlanArgs),
    /// Live: requests/s, success and latency per caller, service and version
    Top(TopArgs),
    /// Live: requests as they end, of every host, without what lets somebody in
    Tap(Box<TapArgs>),
    /// Who calls whom, how often, how well: a picture of measured traffic
    Graph(GraphArgs),
    /// What keeps meshd from its work on this host, and what to do about it
    Doctor(DoctorArgs),
    /// What a host runs: keys in force, sockets, version, revision
    Config(ConfigArgs),
    /// How much meshd logs
    #[command(subcommand)]
    Logs(LogsCommand),
    /// Put the meshd and the meshd.toml on disk in place of the meshd that runs, cutting nobody
    #[command(
        after_help = "Run as root, or as the user of meshd. `systemctl reload meshd` does the same; after an upgrade, the package does."
    )]
    Reload,
    /// The last changes of rules
    History(HistoryArgs),
    /// Make the rules what they were at a revision
    #[command(
        after_help = "Examples:\n  meshctl history\n  meshctl rollback 41 --dry-run\n  meshctl rollback 41"
    )]
    Rollback(RollbackArgs),
    /// Completion for a shell
    #[command(after_help = "Example:\n  meshctl completion bash > /etc/bash_completion.d/meshctl")]
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Man pages of all commands, written into a folder
    #[command(hide = true)]
    Man {
        /// The folder
        folder: PathBuf,
    },
    /// Versions of meshctl and of the meshd it speaks to
    Version(Output),
    /// Becomes meshd, and ends when its parent ends (the demo starts its hosts this way)
    #[command(name = "__host", hide = true)]
    DemoHost {
        /// Process id of the demo
        #[arg(long)]
        parent: u32,
        /// The meshd to become, and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
}

/// The form of the output.
#[derive(Debug, Args)]
pub(crate) struct Output {
    /// Form of the output
    #[arg(short, long = "output", value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: Format,
}

/// How to wait for the hosts.
#[derive(Debug, Args)]
pub(crate) struct Waiting {
    /// Wait until every live host runs the change (the default)
    #[arg(long, overrides_with = "no_wait")]
    pub(crate) wait: bool,
    /// Return as soon as a majority of voters has the change on disk
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// How long to wait
    #[arg(long, value_parser = duration, default_value = "30s", value_name = "TIME")]
    pub(crate) timeout: Duration,
}

/// Where a dry run happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DryRun {
    /// Here, on the files alone
    Client,
    /// At the mesh: all checks, nothing changed
    Server,
}

/// Arguments of `apply`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl apply -f rules.yaml                  one file, many documents
  meshctl apply examples/canary                a folder, and the folders in it
  meshctl apply -f a.yaml -f b.yaml --dry-run  check at the mesh, change nothing
  generate | meshctl apply -                   standard input

Nothing is sent while a file has errors; the mesh takes all objects or none. Objects that are not in the files
stay (see --prune).")]
pub(crate) struct ApplyArgs {
    /// Files and folders (*.yaml, *.yml, *.json), or `-` for standard input
    #[arg(value_name = "FILE", required_unless_present = "filename")]
    pub(crate) files: Vec<PathBuf>,
    /// The same, as kubectl has it
    #[arg(short, long, value_name = "FILE")]
    pub(crate) filename: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    pub(crate) namespace: String,
    /// Check only: at the mesh (`server`, the default), or on the files alone (`client`)
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "server", value_name = "WHERE")]
    pub(crate) dry_run: Option<DryRun>,
    /// Take warnings for errors
    #[arg(long)]
    pub(crate) strict: bool,
    /// Delete what is in the namespaces of the files and not in the files
    #[arg(long)]
    pub(crate) prune: bool,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl get                                  everything in namespace default
  meshctl get vs -A                            virtual services of all namespaces
  meshctl get vs reviews -o yaml > reviews.yaml

Short names: vs dr se we gw sc. -o yaml can be applied again.")]
pub(crate) struct GetArgs {
    /// Kind, in full or short
    pub(crate) kind: Option<String>,
    /// Name
    pub(crate) name: Option<String>,
    /// Namespace
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    pub(crate) namespace: String,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "name")]
    pub(crate) all_namespaces: bool,
    /// What this host knows, even without quorum
    #[arg(long)]
    pub(crate) stale: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Arguments of `delete`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl delete vs reviews\n  meshctl delete -f examples/canary/40-fault.yaml"
)]
pub(crate) struct DeleteArgs {
    /// Kind, in full or short
    #[arg(required_unless_present = "filename", requires = "names")]
    pub(crate) kind: Option<String>,
    /// Names
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Delete the objects that these files name
    #[arg(short, long, value_name = "FILE", conflicts_with = "kind")]
    pub(crate) filename: Vec<PathBuf>,
    /// Namespace
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    pub(crate) namespace: String,
    /// Check only, change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  meshctl diff -f examples/canary/20-shift-50.yaml

Exit code 0: nothing would change; 1: something would, or the files have errors.")]
pub(crate) struct DiffArgs {
    /// Files and folders, or `-` for standard input
    #[arg(value_name = "FILE", required_unless_present = "filename")]
    pub(crate) files: Vec<PathBuf>,
    /// The same, as kubectl has it
    #[arg(short, long, value_name = "FILE")]
    pub(crate) filename: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    pub(crate) namespace: String,
}

/// Commands about services.
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Offer an instance of a service from this host
    Register(Box<RegisterArgs>),
    /// Withdraw instances of this host
    #[command(
        after_help = "Examples:\n  meshctl service deregister reviews-v1\n  meshctl service deregister reviews"
    )]
    Deregister {
        /// Ids of instances, or names of services: all their instances on this host
        #[arg(required = true, value_name = "ID")]
        names: Vec<String>,
    },
    /// List every service of the mesh, with its instances
    List(Output),
}

/// Arguments of `service register`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl service register reviews --port 9080 --label version=v1
  meshctl service register reviews --port 9080:http:127.0.0.1:8081 --label version=v2 --check-http /health
  meshctl service register db --port 5432:tcp --check-tcp
  meshctl service register --group shop/reviews-vms
  meshctl service register -f services.toml

A port is NUMBER[:NAME[:TARGET]]: the port of the service, a name that tells its protocol (http, grpc, tcp-db …),
and where the instance listens (a port, or address:port; default: the same port on 127.0.0.1).")]
pub(crate) struct RegisterArgs {
    /// Name of the service [default with --group: that of the group]
    #[arg(required_unless_present_any = ["filename", "group"])]
    pub(crate) name: Option<String>,
    /// Port of the service: NUMBER[:NAME[:TARGET]] [default with --group: those of the group]
    #[arg(long = "port", short = 'p', value_name = "PORT", required_unless_present_any = ["filename", "group"])]
    pub(crate) ports: Vec<String>,
    /// WorkloadGroup that gives labels, account, ports, health check … as far as they are not said here
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub(crate) group: Option<String>,
    /// Label of the instance
    #[arg(long = "label", short = 'l', value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<String>,
    /// Namespace of the service [default: that of the group, or default]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Service account: the identity the instance shows
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub(crate) account: String,
    /// Id of the instance on this host [default: NAME, or NAME-VERSION]
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Share of traffic relative to other instances
    #[arg(long, default_value_t = 1)]
    pub(crate) weight: u32,
    /// Locality, region/zone/subzone [default: the host's]
    #[arg(long)]
    pub(crate) locality: Option<String>,
    /// Address off this host: plain, without identity
    #[arg(long, value_name = "IP")]
    pub(crate) address: Option<std::net::IpAddr>,
    /// Healthy while GET of this path answers 200–399
    #[arg(long, value_name = "PATH", group = "check")]
    pub(crate) check_http: Option<String>,
    /// Healthy while the port takes connections
    #[arg(long, group = "check")]
    pub(crate) check_tcp: bool,
    /// Healthy while the gRPC health service answers SERVING
    #[arg(long, group = "check", num_args = 0..=1, default_missing_value = "", value_name = "SERVICE")]
    pub(crate) check_grpc: Option<String>,
    /// Healthy while this command exits with 0 (no shell)
    #[arg(long, group = "check", value_name = "COMMAND")]
    pub(crate) check_command: Option<String>,
    /// Time between two checks
    #[arg(long, value_parser = duration, default_value = "2s", value_name = "TIME")]
    pub(crate) check_interval: Duration,
    /// Read services from a file, as in /etc/meshd/services.d
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["name", "ports", "group", "labels", "check", "id", "address", "locality"])]
    pub(crate) filename: Option<PathBuf>,
}

/// Commands about tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token: one line, for one host, once
    #[command(after_help = "\
Examples:
  meshctl token create > token
  meshctl token create --ttl 15m --role agent

The line on standard output is all that the other host needs: meshd join ADDRESS < token")]
    Create {
        /// How long it may be used
        #[arg(long, value_parser = duration, default_value = "1h", value_name = "TIME")]
        ttl: Duration,
        /// What the host may become
        #[arg(long, value_enum, default_value = "auto")]
        role: Role,
    },
    /// List tokens (never their secrets)
    List(Output),
    /// Make a token useless
    Revoke {
        /// Its id, as `token list` shows it
        id: String,
    },
}

/// What a joining host may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Whichever the mesh needs when the host joins: one that may vote while there are too few, else an agent
    Auto,
    /// One that may vote: a voter, or a spare one
    Voter,
    /// An agent
    Agent,
}

/// Commands about hosts.
#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// List the hosts
    List(Output),
    /// Remove a host for good: its services go, its certificates are not renewed
    Remove {
        /// Its name
        name: String,
    },
}

/// Arguments of `history`.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// At most this many
    #[arg(long, default_value_t = 20)]
    pub(crate) limit: usize,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Arguments of `rollback`.
#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// The revision to return to, as `history` shows it
    pub(crate) revision: u64,
    /// Only tell what would change
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

/// Arguments for meshd.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct PassedOn {
    /// Arguments of meshd (`meshd init --help`, `meshd join --help`)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    pub(crate) arguments: Vec<std::ffi::OsString>,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  meshctl demo                                 live; q or Ctrl-C ends it and leaves nothing behind
  meshctl demo --for 20s                       ends by itself; exit code 0 if the canary got its share
  meshctl demo stop vm3                        in a second terminal: what happens when a host goes away?

While it runs, every meshctl command in another terminal speaks to it."
)]
pub(crate) struct DemoArgs {
    /// End after this time and judge the shares
    #[arg(long = "for", value_parser = duration, value_name = "TIME")]
    pub(crate) duration: Option<Duration>,
    /// Requests per second to productpage
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    pub(crate) rate: u32,
    /// First three numbers of the loopback addresses of the hosts
    #[arg(long, default_value = "127.0.1", value_name = "A.B.C")]
    pub(crate) base: String,
    /// Show how long each phase of the start took, and where the logs are
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Acts on the running demo
    #[command(subcommand)]
    pub(crate) action: Option<DemoAction>,
}

/// What can be done to a running demo.
#[derive(Debug, Subcommand)]
pub(crate) enum DemoAction {
    /// Stop the meshd of a host, as `systemctl stop` would
    Stop {
        /// The host: vm1, vm2 or vm3
        host: String,
        /// At once and without a word, as a crash would
        #[arg(long)]
        kill: bool,
    },
    /// Start it again
    Start {
        /// The host
        host: String,
    },
}

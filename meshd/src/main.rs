//! `meshd`: the command line of the daemon. Everything it does is in the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use meshd::app;
use meshd::config::{Config, Overrides};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The mesh daemon: one on every host.
#[derive(Parser)]
#[command(name = "meshd", version, about, after_help = EXAMPLES, max_term_width = 100)]
struct Arguments {
    /// Configuration file.  [default: /etc/meshd/meshd.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of keys and state, in place of host.data of the configuration.
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Begin a mesh: this host is its first.
    Init(app::Init),
    /// Come into a mesh, with a token made there by `meshctl token create`.
    Join(app::Join),
    /// Serve, until SIGTERM or SIGINT.
    Run,
    /// Remove what interception put into the kernel: for a meshd that ended without doing so itself.
    Cleanup,
    /// Print a meshd.toml with every key, its default, unit and meaning.
    Config,
}

const EXAMPLES: &str = "\
Two hosts:
  vm1# meshd init                       the first host
  vm1# meshctl token create             prints one line
  vm2# meshd join vm1                   asks for that line
Then register services and apply rules with meshctl; see meshctl --help.";

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; wrong usage is 64 everywhere in meshd and meshctl.
            drop(error.print());
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("meshd: {error:#}");
            ExitCode::from(app::exit_code(&error))
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    if matches!(arguments.command, Command::Config) {
        return app::print(&meshd::config::default_document());
    }
    let config = Config::load(arguments.config.as_deref(), &Overrides { data: arguments.data })?;
    match arguments.command {
        Command::Init(init) => app::init(&config, &init),
        Command::Join(join) => app::join(&config, &join),
        Command::Run => app::run(config),
        Command::Cleanup => app::cleanup(&config),
        Command::Config => Ok(()),
    }
}

//! `meshd`: the command line of the daemon. Everything it does is in the library.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use meshd::app;
use meshd::config::{Overrides, Source};

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
    Cleanup(app::Cleanup),
    /// Look at this host without asking its meshd; `meshctl doctor` shows what is found.
    #[command(hide = true)]
    Doctor,
    /// Print a meshd.toml with every key, its default, unit and meaning.
    Config,
    /// Print the completion of a shell.
    #[command(hide = true)]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write man pages into a folder.
    #[command(hide = true)]
    Man {
        /// The folder.
        folder: PathBuf,
    },
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
    let serves = matches!(arguments.command, Command::Run);
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            app::tell_error(&error);
            ExitCode::from(if serves { app::run_exit_code(&error) } else { app::exit_code(&error) })
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    match &arguments.command {
        Command::Config => return app::print(&meshd::config::default_document()),
        Command::Completion { shell } => return completion(*shell),
        Command::Man { folder } => {
            return clap_mangen::generate_to(Arguments::command(), folder)
                .with_context(|| format!("writing to {}", folder.display()));
        }
        _ => {}
    }
    let source = Source { file: arguments.config, overrides: Overrides { data: arguments.data } };
    match arguments.command {
        Command::Run => return app::run(source),
        Command::Doctor => return app::doctor(&source),
        // What it takes out carries our name: a mistake in meshd.toml must not keep it in the kernel.
        Command::Cleanup(cleanup) => return app::cleanup(&cleanup),
        _ => {}
    }
    let config = source.load()?;
    match arguments.command {
        Command::Init(init) => app::init(&config, &init),
        Command::Join(join) => app::join(&config, &join),
        Command::Run
        | Command::Cleanup(_)
        | Command::Doctor
        | Command::Config
        | Command::Completion { .. }
        | Command::Man { .. } => Ok(()),
    }
}

fn completion(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "meshd", &mut text);
    app::print(&String::from_utf8_lossy(&text))
}

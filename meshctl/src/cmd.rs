//! One module per command; [`run`] picks.

mod analyze;
mod api;
mod apply;
mod config;
mod delete;
mod diff;
mod doctor;
pub(crate) mod explain;
mod get;
mod graph;
mod history;
mod host;
pub(crate) mod local;
mod logs;
mod meaning;
mod plan;
mod reload;
mod secret;
mod service;
pub(crate) mod status;
mod tap;
mod test;
pub(crate) mod token;
pub(crate) mod top;
mod validate;
pub(crate) mod wait;

use mesh_proto::secret::Replaces;

use crate::cli::{
    ApiCommand, Cli, Command, DemoAction, HostCommand, LogsCommand, SecretCommand, ServiceCommand,
    TokenCommand,
};
use crate::client::Client;
use crate::demo;
use crate::exit::{Exit, Result};
use crate::locate::Wish;

pub(crate) use apply::{Order, send};
pub(crate) use service::file as service_file;
pub(crate) use service::register_instances;

/// Does what was typed.
pub(crate) async fn run(cli: Cli) -> Result<Exit> {
    let wish = Wish::new(cli.socket, cli.host);
    let client = || Client::find(&wish);
    match cli.command {
        Command::Demo(args) => match args.action {
            None => demo::run(&args).await,
            Some(DemoAction::Stop { host, kill }) => demo::control::stop(&host, kill).await,
            Some(DemoAction::Start { host }) => demo::control::start(&host).await,
        },
        Command::DemoHost { parent, command } => demo::child::become_meshd(parent, &command),
        Command::Init(args) => local::exec_meshd("init", &args.arguments),
        Command::Join(args) => local::exec_meshd("join", &args.arguments),
        Command::Token(TokenCommand::Create { ttl, role }) => token::create(&client()?, ttl, role).await,
        Command::Token(TokenCommand::List(args)) => token::list(&client()?, args.output).await,
        Command::Token(TokenCommand::Revoke { id }) => token::revoke(&client()?, id).await,
        Command::Apply(args) => apply::run(&args, client).await,
        Command::Get(args) => get::run(&args, &client()?).await,
        Command::Delete(args) => delete::run(&args, client).await,
        Command::Diff(args) => diff::run(&args, client).await,
        Command::Validate(args) => validate::run(&args),
        Command::Explain(args) => explain::run(&args, client).await,
        Command::Analyze(args) => analyze::run(&args, client).await,
        Command::Test(args) => test::run(&args),
        Command::Api(ApiCommand::Fields(args)) => api::fields(&args),
        Command::Service(ServiceCommand::Register(args)) => service::register(&args, client).await,
        Command::Service(ServiceCommand::Deregister { names }) => {
            service::deregister(names, &client()?).await
        }
        Command::Service(ServiceCommand::List(args)) => service::list(args.output, &client()?).await,
        Command::Secret(SecretCommand::Create(args)) => {
            secret::put(&args, Replaces::Nothing, &client()?).await
        }
        Command::Secret(SecretCommand::Rotate(args)) => {
            secret::put(&args, Replaces::Another, &client()?).await
        }
        Command::Secret(SecretCommand::Renew { name }) => secret::renew(name, &client()?).await,
        Command::Secret(SecretCommand::List(args)) => secret::list(args.output, &client()?).await,
        Command::Secret(SecretCommand::Get { name, output }) => {
            secret::get(&name, output.output, &client()?).await
        }
        Command::Secret(SecretCommand::Delete { name }) => secret::delete(name, &client()?).await,
        Command::Host(HostCommand::List(args)) => status::hosts(args.output, &client()?).await,
        Command::Host(HostCommand::Remove { name }) => host::remove(&client()?, name).await,
        Command::Status(args) => status::run(args.output, &client()?).await,
        Command::Routes(args) => plan::routes(&args, &client()?).await,
        Command::Clusters(args) => plan::clusters(&args, &client()?).await,
        Command::Endpoints(args) => plan::endpoints(&args, &client()?).await,
        Command::Top(args) => top::run(&args, wish.host.is_some(), &client()?).await,
        Command::Tap(args) => tap::run(&args, &client()?).await,
        Command::Graph(args) => graph::run(&args, &client()?).await,
        Command::Doctor(args) => doctor::run(&args, &wish).await,
        Command::Config(args) => config::run(&args, &client()?).await,
        Command::Logs(LogsCommand::Level { level, during, output }) => {
            logs::level(level, during, output.output, &client()?).await
        }
        Command::History(args) => history::run(&args, &client()?).await,
        Command::Rollback(args) => history::rollback(&args, &client()?).await,
        Command::Reload => reload::run(&client()?).await,
        Command::Completion { shell } => local::completion(shell),
        Command::Man { folder } => local::man(&folder),
        Command::Version(args) => local::version(args.output, &wish).await,
    }
}

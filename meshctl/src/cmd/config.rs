//! `meshctl config`: what a host runs.

use std::fmt::Write as _;
use std::time::Duration;

use mesh_proto::api::{Request, Response};
use mesh_proto::look::HostConfig;

use crate::cli::ConfigArgs;
use crate::client::{Client, answer};
use crate::exit::{Exit, Result};
use crate::output::{Columns, Tone, paint, show};
use crate::words::short;

/// Runs `config`.
pub(crate) async fn run(args: &ConfigArgs, client: &Client) -> Result<Exit> {
    let client = args.of.as_deref().map_or_else(|| client.clone(), |host| client.on(host));
    let answer = client.call(&Request::Config).await?;
    let mut config = answer!(answer, Response::Config(config) => config)?;
    let all = config.keys.len();
    if !args.all {
        config.keys.retain(|key| key.given);
    }
    show(args.output.output, std::slice::from_ref(&config), || text(&config, all))?;
    Ok(Exit::Done)
}

fn text(config: &HostConfig, all: usize) -> String {
    let mut text = String::new();
    let file = if config.file.is_empty() { "no meshd.toml" } else { &config.file };
    let up = short(Duration::from_millis(config.uptime_ms));
    let HostConfig { host, version, pid, revision, plan, .. } = config;
    let _ = writeln!(text, "{host}  meshd {version}  process {pid}, up {up}");
    let _ = writeln!(text, "revision {revision}  plan {plan}  {file}\n");
    let mut keys = Columns::new(["KEY", "VALUE", "FROM"]);
    for key in &config.keys {
        let from = if key.given { ("file", Tone::Plain) } else { ("default", Tone::Dim) };
        keys.toned([
            (key.key.clone(), Tone::Plain),
            (key.value.clone(), Tone::Plain),
            (from.0.to_owned(), from.1),
        ]);
    }
    text.push_str(&keys.render("every key has its default"));
    if config.keys.len() < all {
        let rest = all - config.keys.len();
        let _ = writeln!(text, "{}", paint(Tone::Dim, &format!("{rest} more have their default (--all)")));
    }
    text.push('\n');
    let mut sockets = Columns::new(["LISTENS ON", "KIND", "FOR"]);
    for socket in &config.listeners {
        sockets.row([socket.address.clone(), socket.kind.clone(), socket.by.clone()]);
    }
    text.push_str(&sockets.render("it listens nowhere"));
    text
}

//! `meshctl delete`: by kind and name, or what files name.

use std::time::Instant;

use mesh_proto::api::{Apply, Request, Response};
use mesh_proto::command::{Batch, Precondition, ResourceChange};
use mesh_proto::resource::ObjectKey;

use super::apply::outcomes;
use super::wait;
use crate::cli::DeleteArgs;
use crate::client::{Client, answer, key};
use crate::exit::{Exit, Failure, Result};
use crate::kinds::{self, lower};
use crate::output::say;
use crate::rules::{Rules, keys};

/// Runs `delete`.
pub(crate) async fn run(args: &DeleteArgs, client: impl Fn() -> Result<Client>) -> Result<Exit> {
    let keys = wanted(args)?;
    let client = client()?;
    let names: Vec<_> = keys.iter().map(lower).collect();
    let changes = keys
        .into_iter()
        .map(|key| ResourceChange { key, object: None, expect: Precondition::Present })
        .collect();
    let batch = Batch { changes, reason: format!("delete {}", names.join(", ")) };
    let begun = Instant::now();
    let request = Request::Apply(Apply { batch, dry_run: args.dry_run, strict: false, key: key() });
    let answer = client.call(&request).await?;
    let applied = answer!(answer, Response::Applied(applied) => applied)?;
    say(&outcomes(&applied.results, args.dry_run))?;
    if args.dry_run {
        return Ok(Exit::Done);
    }
    wait::for_hosts(&client, applied.revision, &args.waiting, begun).await
}

fn wanted(args: &DeleteArgs) -> Result<Vec<ObjectKey>> {
    if let Some(kind) = &args.kind {
        let kind = kinds::kind(kind)?;
        return Ok(args
            .names
            .iter()
            .map(|name| ObjectKey::new(kind, args.namespace.as_str(), name.as_str()))
            .collect());
    }
    let rules = Rules::read(&args.filename, &args.namespace).map_err(Failure::unchanged)?;
    rules.judge(false).map_err(Failure::unchanged)?;
    Ok(keys(&rules.all))
}

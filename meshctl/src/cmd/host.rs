//! `meshctl host remove`; `host list` is the table of `status`.

use mesh_proto::api::Request;

use crate::client::Client;
use crate::exit::{Exit, Result};
use crate::output::say;

/// Removes a host for good.
pub(crate) async fn remove(client: &Client, name: String) -> Result<Exit> {
    client.call(&Request::RemoveHost { name: name.clone() }).await?;
    say(&format!("host {name} removed; if it still runs, stop meshd there and empty its data folder\n"))?;
    Ok(Exit::Done)
}

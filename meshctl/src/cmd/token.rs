//! `meshctl token`: the one line that lets a host in.

use std::time::Duration;

use mesh_proto::api::{Request, Response};
use mesh_proto::command::{Token, TokenRole};
use serde::Serialize;

use crate::cli::Role;
use crate::client::{Client, answer};
use crate::exit::{Exit, Result};
use crate::output::{Columns, Format, Tone, paint, say, show, tell};
use crate::words::{left, now_ms};

/// Makes a token. The line stands alone on standard output; all else goes to standard error.
pub(crate) async fn create(client: &Client, ttl: Duration, role: Role) -> Result<Exit> {
    let role = match role {
        Role::Auto => TokenRole::Auto,
        Role::Voter => TokenRole::VoterEligible,
        Role::Agent => TokenRole::Agent,
    };
    let line = make(client, ttl, role).await?;
    say(&(line + "\n"))?;
    let become_what = match role {
        TokenRole::Auto => "a voter if the mesh needs one then, else an agent",
        TokenRole::VoterEligible => "a voter, or a spare one",
        TokenRole::Agent => "an agent",
    };
    tell(&paint(
        Tone::Dim,
        &format!("for one host, once, within {}; it becomes {become_what}", crate::words::short(ttl)),
    ));
    tell(&paint(
        Tone::Dim,
        "on the other host: meshd join ADDRESS < token    (ADDRESS: any host of the mesh, port 15008)",
    ));
    Ok(Exit::Done)
}

/// Asks for a token; returns its line.
pub(crate) async fn make(client: &Client, ttl: Duration, role: TokenRole) -> Result<String> {
    let request = Request::CreateToken { role: Some(role), ttl_seconds: ttl.as_secs().max(1) };
    let answer = client.call(&request).await?;
    answer!(answer, Response::Token { line, .. } => line)
}

/// A token without anything that helps to use it.
#[derive(Serialize)]
struct Row {
    id: String,
    role: TokenRole,
    expires: u64,
    used_by: Option<String>,
    author: String,
}

/// Lists tokens.
pub(crate) async fn list(client: &Client, format: Format) -> Result<Exit> {
    let answer = client.call(&Request::ListTokens).await?;
    let tokens = answer!(answer, Response::Tokens(tokens) => tokens)?;
    let rows: Vec<_> = tokens.into_iter().map(row).collect();
    show(format, &rows, || table(&rows, now_ms()))?;
    Ok(Exit::Done)
}

/// Makes a token useless.
pub(crate) async fn revoke(client: &Client, id: String) -> Result<Exit> {
    client.call(&Request::RevokeToken { id: id.clone() }).await?;
    say(&format!("token {id} revoked\n"))?;
    Ok(Exit::Done)
}

fn row(token: Token) -> Row {
    Row {
        id: token.id,
        role: token.role,
        expires: token.expires.0,
        used_by: token.used.map(|used| used.host),
        author: token.author,
    }
}

fn table(rows: &[Row], now: u64) -> String {
    let mut columns = Columns::new(["ID", "ROLE", "STATE", "BY"]);
    for row in rows {
        let role = match row.role {
            TokenRole::Auto => "auto",
            TokenRole::VoterEligible => "voter",
            TokenRole::Agent => "agent",
        };
        let state = match &row.used_by {
            Some(host) => (format!("used by {host}"), Tone::Dim),
            None if row.expires <= now => ("expired".into(), Tone::Dim),
            None => (format!("usable for {}", left(now, row.expires)), Tone::Good),
        };
        columns.toned([
            (row.id.clone(), Tone::Plain),
            (role.into(), Tone::Plain),
            state,
            (row.author.clone(), Tone::Plain),
        ]);
    }
    columns.render("no tokens; `meshctl token create` makes one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_tells_which_tokens_can_still_be_used() {
        let row = |id: &str, expires, used: Option<&str>| Row {
            id: id.into(),
            role: TokenRole::Agent,
            expires,
            used_by: used.map(str::to_owned),
            author: "uid 0 on vm1".into(),
        };
        let rows = [row("a1", 3_600_000, None), row("b2", 1, None), row("c3", 3_600_000, Some("vm2"))];

        let text = anstream::adapter::strip_str(&table(&rows, 60_000)).to_string();

        assert_eq!(
            text,
            "ID  ROLE   STATE           BY\n\
             a1  agent  usable for 59m  uid 0 on vm1\n\
             b2  agent  expired         uid 0 on vm1\n\
             c3  agent  used by vm2     uid 0 on vm1\n"
        );
    }
}

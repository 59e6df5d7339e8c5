//! `meshctl secret`: certificates and keys of this host.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use mesh_proto::api::{Request, Response};
use mesh_proto::secret::{Hidden, NewSecret, Replaces, SecretView};

use crate::cli::SecretArgs;
use crate::client::{Client, answer};
use crate::exit::{Exit, Failure, Result};
use crate::output::{Columns, Format, Tone, paint, say, show, tell};
use crate::words::{left, now_ms};

/// Runs `secret create` and `secret rotate`.
pub(crate) async fn put(args: &SecretArgs, replaces: Replaces, client: &Client) -> Result<Exit> {
    let given =
        [("tls.crt", &args.cert), ("tls.key", &args.key), ("ca.crt", &args.ca), ("ca.crl", &args.crl)];
    let mut files = BTreeMap::new();
    for (name, path) in given {
        let Some(path) = path else { continue };
        let content = std::fs::read_to_string(path).map_err(|error| Failure::unreadable(path, &error))?;
        files.insert(name.to_owned(), Hidden(content));
    }
    let new = NewSecret { name: args.name.clone(), replaces, files };
    let answer = client.call(&Request::PutSecret(Box::new(new))).await?;
    let warnings = answer!(answer, Response::SecretPut { warnings } => warnings)?;
    for warning in warnings {
        tell(&format!("{} {warning}", paint(Tone::Warn, "warning:")));
    }
    let done = match replaces {
        Replaces::Nothing => "is on this host",
        Replaces::Another => "was replaced on this host",
    };
    say(&format!("secret {} {done}\n", args.name))?;
    Ok(Exit::Done)
}

/// Runs `secret renew`.
pub(crate) async fn renew(name: String, client: &Client) -> Result<Exit> {
    tell(&format!("ordering secret {name}; this takes some seconds"));
    client.call_within(&Request::RenewSecret { name: name.clone() }, ORDERED_WITHIN).await?;
    say(&format!("secret {name} was renewed on this host\n"))?;
    Ok(Exit::Done)
}

/// Runs `secret list`.
pub(crate) async fn list(format: Format, client: &Client) -> Result<Exit> {
    let secrets = secrets(client).await?;
    show(format, &secrets, || table(&secrets, now_ms()))?;
    Ok(Exit::Done)
}

/// Runs `secret get`.
pub(crate) async fn get(name: &str, format: Format, client: &Client) -> Result<Exit> {
    let mut secrets = secrets(client).await?;
    secrets.retain(|secret| secret.name == name);
    let Some(secret) = secrets.first() else {
        return Err(Failure::refused(format!(
            "there is no secret {name} on this host; `meshctl secret list` shows those there are"
        )));
    };
    show(format, &secrets, || page(secret, now_ms()))?;
    Ok(Exit::Done)
}

/// Runs `secret delete`.
pub(crate) async fn delete(name: String, client: &Client) -> Result<Exit> {
    client.call(&Request::DeleteSecret { name: name.clone() }).await?;
    say(&format!("secret {name} deleted from this host\n"))?;
    Ok(Exit::Done)
}

async fn secrets(client: &Client) -> Result<Vec<SecretView>> {
    let answer = client.call(&Request::Secrets).await?;
    answer!(answer, Response::Secrets(secrets) => secrets)
}

fn table(secrets: &[SecretView], now: u64) -> String {
    let mut columns = Columns::new(["NAME", "FOR", "FILES", "ENDS IN", "USED BY", "PROBLEM"]);
    for secret in secrets {
        columns.toned([
            (secret.name.clone(), Tone::Plain),
            (secret.names.join(","), Tone::Plain),
            (secret.files.join(" "), Tone::Dim),
            ends(secret, now),
            (secret.used_by.join(", "), Tone::Plain),
            (secret.problem.clone().unwrap_or_default(), Tone::Warn),
        ]);
    }
    columns.render("no secrets on this host; `meshctl secret create NAME --cert FILE --key FILE` puts one in")
}

fn ends(secret: &SecretView, now: u64) -> (String, Tone) {
    let Some(end) = secret.not_after else { return (String::new(), Tone::Bad) };
    let tone = if end.0 <= now {
        Tone::Bad
    } else if secret.problem.is_some() {
        Tone::Warn
    } else {
        Tone::Good
    };
    (left(now, end.0), tone)
}

fn page(secret: &SecretView, now: u64) -> String {
    let mut text = String::new();
    let lines = [
        ("secret", secret.name.clone()),
        ("files", secret.files.join(" ")),
        ("for", secret.names.join(", ")),
        ("signed by", secret.issuer.clone()),
        ("sha-256", secret.sha256.clone()),
        ("ends in", ends(secret, now).0),
        ("renewal in", secret.renewal.map(|at| left(now, at.0)).unwrap_or_default()),
        ("used by", secret.used_by.join(", ")),
        ("problem", secret.problem.clone().unwrap_or_default()),
    ];
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = writeln!(text, "{name:<10} {value}");
    }
    text
}

/// An authority may take minutes; meshd gives up after three, one order that is under way before it.
const ORDERED_WITHIN: std::time::Duration = std::time::Duration::from_mins(7);

#[cfg(test)]
mod tests {
    use mesh_proto::command::Timestamp;

    use super::*;

    #[test]
    fn the_table_tells_for_whom_until_when_and_what_is_wrong() {
        let shop = SecretView {
            name: "shop".into(),
            files: vec!["tls.crt".into(), "tls.key".into()],
            names: vec!["shop.com".into()],
            not_after: Some(Timestamp(86_400_000 * 10)),
            used_by: vec!["Gateway edge/front".into()],
            ..SecretView::default()
        };
        let bad = SecretView {
            name: "bad".into(),
            files: vec!["tls.crt".into()],
            problem: Some("tls.crt has no tls.key beside it".into()),
            ..SecretView::default()
        };

        let text = anstream::adapter::strip_str(&table(&[bad, shop], 0)).to_string();

        assert_eq!(
            text,
            "NAME  FOR       FILES            ENDS IN  USED BY             PROBLEM\n\
             bad   -         tls.crt          -        -                   tls.crt has no tls.key beside it\n\
             shop  shop.com  tls.crt tls.key  10d      Gateway edge/front  -\n"
        );
    }
}

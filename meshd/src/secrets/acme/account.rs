//! The account at an authority: its key is made once and kept on disk, readable by meshd's user alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use instant_acme::{Account, AccountCredentials, NewAccount};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::authority::Authority;
use super::record::write;
use super::{OrderError, Settings};
use crate::config::Acme;
use crate::transport::originate::trusting;

/// Opens the account, or makes one where there is none yet.
pub(super) async fn open(settings: &Settings) -> Result<Account, OrderError> {
    let path = path_of(&settings.folder, &settings.acme.directory);
    let (roots, file) = (settings.acme.roots.clone(), path.clone());
    let look = move || (trusting(roots.as_deref()), std::fs::read(&file).map(Zeroizing::new));
    let (tls, known) = tokio::task::spawn_blocking(look).await.map_err(|_| OrderError::Silent)?;
    let tls = tls.map_err(|error| OrderError::File(error.to_string()))?;
    let authority = Authority::new(TlsConnector::from(Arc::new(tls)), settings.socket);
    let builder = Account::builder_with_http(Box::new(authority));
    match known {
        Ok(known) => {
            let credentials: AccountCredentials = serde_json::from_slice(&known).map_err(|error| {
                let place = path.display();
                OrderError::File(format!(
                    "{place} is damaged ({error}): remove it, and another account is made"
                ))
            })?;
            Ok(builder.from_credentials(credentials).await?)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let account = create(builder, &settings.acme, &path).await?;
            tracing::info!(directory = settings.acme.directory, "an account was made");
            Ok(account)
        }
        Err(error) => Err(OrderError::File(format!("cannot read {}: {error}", path.display()))),
    }
}

async fn create(
    builder: instant_acme::AccountBuilder,
    acme: &Acme,
    path: &Path,
) -> Result<Account, OrderError> {
    let contact: Vec<&str> = acme.contact.iter().map(String::as_str).collect();
    let new = NewAccount {
        contact: &contact,
        terms_of_service_agreed: acme.agree_to_terms,
        only_return_existing: false,
    };
    let made = builder.create(&new, acme.directory.clone(), None).await;
    let (account, credentials) = made.map_err(|error| {
        let hint = if acme.agree_to_terms { "" } else { " (acme.agree_to_terms of meshd.toml is false)" };
        OrderError::Unproven(format!("no account was made: {error}{hint}"))
    })?;
    let text = serde_json::to_vec(&credentials).map(Zeroizing::new);
    let text = text.map_err(|error| OrderError::Crypto(error.to_string()))?;
    write(path, &text)
        .map_err(|error| OrderError::File(format!("cannot write {}: {error}", path.display())))?;
    Ok(account)
}

/// Each authority has its own: who tries a rehearsal first keeps both.
fn path_of(folder: &Path, directory: &str) -> PathBuf {
    let hash = HEXLOWER.encode(digest(&SHA256, directory.as_bytes()).as_ref());
    folder.join(format!("account-{}.json", hash.get(..16).unwrap_or_default()))
}

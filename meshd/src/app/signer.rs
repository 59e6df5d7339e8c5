//! Has keys of this host certified: by this host where it can sign, else by any server.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use mesh_core::identity::Identity;
use mesh_proto::api::{Call, Request, Response, SignRequest};
use mesh_proto::command::HostId;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::carrier::Hosts;
use super::notary::HostNotary;
use crate::agent::Published;

type Chain = Result<Vec<CertificateDer<'static>>, String>;
type Asking = Pin<Box<dyn Future<Output = Chain> + Send>>;
/// What `identity::Rotation` asks.
pub(super) type Signer = Box<dyn Fn(Identity, Vec<u8>) -> Asking + Send + Sync>;

/// How often all servers are asked: one that is a moment behind does not know yet what this host has registered.
const ROUNDS: u32 = 3;
/// Longer than a follower is usually behind.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(50);
/// How long a server may take to sign.
const LIMIT: Duration = Duration::from_secs(5);

/// Makes the closure that `identity::Rotation` asks.
pub(super) fn signer(
    notary: Arc<HostNotary>,
    hosts: Arc<Hosts>,
    published: watch::Receiver<Arc<Published>>,
    first_servers: BTreeMap<HostId, SocketAddr>,
) -> Signer {
    Box::new(move |identity, csr| {
        let (notary, hosts) = (notary.clone(), hosts.clone());
        let mut servers = published.borrow().servers.clone();
        if servers.is_empty() {
            servers.clone_from(&first_servers);
        }
        Box::pin(async move {
            match notary.sign_own(&identity, &csr) {
                Some(chain) => chain,
                None => ask_servers(&hosts, servers, &identity, &csr).await,
            }
        })
    })
}

async fn ask_servers(
    hosts: &Hosts,
    servers: BTreeMap<HostId, SocketAddr>,
    identity: &Identity,
    csr: &[u8],
) -> Chain {
    let request = SignRequest { identity: identity.to_string(), csr: BASE64.encode(csr) };
    let call = Call { author: "certificates".into(), request: Request::Sign(vec![request]), relayed: false };
    let mut reasons = Vec::new();
    for round in 0..ROUNDS {
        if round > 0 {
            tokio::time::sleep(BETWEEN_ROUNDS).await;
        }
        reasons.clear();
        for (id, address) in &servers {
            match hosts.ask(*id, *address, &call, LIMIT).await {
                Ok(Response::Signed(chains)) => return read(chains),
                Ok(other) => reasons.push(format!("{address} answered something else: {other:?}")),
                Err(error) => reasons.push(format!("{address}: {error}")),
            }
        }
    }
    Err(if reasons.is_empty() { "no server is known".into() } else { reasons.join("; ") })
}

fn read(chains: Vec<Vec<String>>) -> Chain {
    let chain = chains.into_iter().next().ok_or("the server signed nothing")?;
    chain
        .iter()
        .map(|certificate| BASE64.decode(certificate.as_bytes()).map(Into::into))
        .collect::<Result<_, _>>()
        .map_err(|error| format!("the server's certificate is no base64: {error}"))
}

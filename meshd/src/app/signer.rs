//! Has keys of this host certified: by this host where it can sign, else by any server.
//!
//! Servers are asked one after the other, but none is waited for alone: one that is silent for [`HEDGE`] is joined by the
//! next, and the first certificate counts. So a server that is dead costs that moment, not its time-out.

use std::collections::{BTreeMap, BTreeSet};
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
use tokio::task::JoinSet;
use tokio::time::timeout;

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
/// How long a server may be silent before the next one is asked, too: longer than signing takes.
const HEDGE: Duration = Duration::from_millis(300);
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
    hosts: &Arc<Hosts>,
    servers: BTreeMap<HostId, SocketAddr>,
    identity: &Identity,
    csr: &[u8],
) -> Chain {
    let request = SignRequest { identity: identity.to_string(), csr: BASE64.encode(csr) };
    let call = Call { author: "certificates".into(), request: Request::Sign(vec![request]), relayed: false };
    let call = Arc::new(call);
    let ask = |id: HostId, address: SocketAddr| {
        let (hosts, call) = (hosts.clone(), call.clone());
        async move {
            match hosts.ask(id, address, &call, LIMIT).await {
                Ok(Response::Signed(chains)) => read(chains),
                Ok(other) => Err(format!("{address} answered something else: {other:?}")),
                Err(error) => Err(format!("{address}: {error}")),
            }
        }
    };
    first_answer(&servers, ask).await
}

/// Asks servers in turn until one answers well; the errors of all, where none does.
async fn first_answer<T: Send + 'static, A>(
    servers: &BTreeMap<HostId, SocketAddr>,
    ask: impl Fn(HostId, SocketAddr) -> A,
) -> Result<T, String>
where
    A: Future<Output = Result<T, String>> + Send + 'static,
{
    let mut asked = JoinSet::new();
    let mut silent = BTreeSet::new();
    let mut reasons = BTreeMap::new();
    for round in 0..ROUNDS {
        if round > 0 {
            tokio::time::sleep(BETWEEN_ROUNDS).await;
        }
        for (id, address) in servers {
            // One that owes an answer is not asked again.
            if !silent.insert(*id) {
                continue;
            }
            let (id, answer) = (*id, ask(*id, *address));
            asked.spawn(async move { (id, answer.await) });
            let Ok(Some(Ok((id, answer)))) = timeout(HEDGE, asked.join_next()).await else { continue };
            silent.remove(&id);
            match answer {
                Ok(answer) => return Ok(answer),
                Err(reason) => drop(reasons.insert(id, reason)),
            }
        }
    }
    while let Some(done) = asked.join_next().await {
        match done {
            Ok((_, Ok(answer))) => return Ok(answer),
            Ok((id, Err(reason))) => drop(reasons.insert(id, reason)),
            Err(_) => {}
        }
    }
    let reasons: Vec<String> = reasons.into_values().collect();
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::Instant;

    use super::*;

    /// Three servers: how long each takes, and what it says then.
    async fn asked(servers: [(u64, Result<u64, &'static str>); 3]) -> (Result<u64, String>, Duration) {
        let address = SocketAddr::from(([198, 18, 0, 1], 15008));
        let known = (1..=3).map(|id| (HostId(id), address)).collect();
        let began = Instant::now();
        let answer = first_answer(&known, |id, _| {
            let (millis, answer) = servers[usize::try_from(id.0 - 1).expect("small")];
            async move {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                answer.map_err(str::to_owned)
            }
        });
        (answer.await, began.elapsed())
    }

    const DEAD: (u64, Result<u64, &'static str>) = (5_000, Err("dead"));

    #[tokio::test(start_paused = true)]
    async fn a_dead_first_server_costs_a_third_of_a_second() {
        let (answer, took) = asked([DEAD, (20, Ok(2)), (20, Ok(3))]).await;
        assert_eq!((answer, took.as_millis()), (Ok(2), 320));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_asks_the_next_at_once() {
        let (answer, took) = asked([(5, Err("not known")), (5, Ok(2)), DEAD]).await;
        assert_eq!((answer, took.as_millis()), (Ok(2), 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_server_still_counts_when_it_answers_first() {
        let (answer, took) = asked([(400, Ok(1)), DEAD, DEAD]).await;
        assert_eq!((answer, took.as_millis()), (Ok(1), 400));
    }

    #[tokio::test(start_paused = true)]
    async fn where_none_answers_all_reasons_are_told_within_one_time_out() {
        let (answer, took) = asked([DEAD, DEAD, (5, Err("not known"))]).await;
        assert_eq!(answer, Err("dead; dead; not known".to_owned()));
        assert!(took < Duration::from_secs(6), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn servers_a_moment_behind_are_asked_again_while_a_dead_one_is_silent() {
        let asked = Arc::new(AtomicU32::new(0));
        let known = [1, 2].map(|id| (HostId(id), SocketAddr::from(([198, 18, 0, 1], 15008)))).into();
        let began = Instant::now();
        let answer = first_answer(&known, |id, _| {
            let asked = asked.clone();
            async move {
                if id == HostId(1) {
                    std::future::pending::<()>().await;
                }
                let again = asked.fetch_add(1, Ordering::Relaxed) > 0;
                if again { Ok(id.0) } else { Err("not registered yet".to_owned()) }
            }
        });
        assert_eq!(answer.await, Ok(2));
        assert_eq!(began.elapsed().as_millis(), 350);
    }
}

//! Looks at the mesh once a second, as any user could: through the API of whichever host answers.

use std::time::{Duration, Instant};

use mesh_proto::api::{Get, HostStats, Request, Response, Scope, Status};
use mesh_proto::command::Revision;
use mesh_proto::resource::Object;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::judge::Asked;
use super::story::{USER, asked};
use crate::client::Client;

/// Time between two looks.
pub(crate) const EVERY: Duration = Duration::from_secs(1);
/// How long a host may take to answer before the next is asked.
const PATIENCE: Duration = Duration::from_millis(800);

/// What was seen.
#[derive(Clone, Debug)]
pub(crate) struct Observation {
    /// When the rules were read.
    pub(crate) at: Instant,
    /// What they ask for.
    pub(crate) asked: Asked,
    /// The revision of the last change of rules.
    pub(crate) changed: Revision,
    /// State of the mesh, if anybody knows.
    pub(crate) status: Option<Status>,
    /// Counters of vm1, where productpage's calls are counted.
    pub(crate) stats: Option<Vec<HostStats>>,
}

/// Looks again and again, until nobody listens any more.
pub(crate) async fn run(clients: Vec<Client>, seen: watch::Sender<Option<Observation>>) {
    let mut looks = tokio::time::interval(EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !seen.is_closed() {
        looks.tick().await;
        if let Some(observation) = look(&clients).await {
            seen.send_replace(Some(observation));
        }
    }
}

/// Looks once; `None` where no host tells the rules.
pub(crate) async fn look(clients: &[Client]) -> Option<Observation> {
    let at = Instant::now();
    let stale = Request::Get(Get { stale: true, ..Get::default() });
    let (rules, status, stats) = tokio::join!(
        first(clients, &stale),
        first(clients, &Request::Status),
        first(&clients[..1], &Request::Stats { scope: Scope::Host }),
    );
    let Some(Response::Resources { items, .. }) = rules else { return None };
    let changed = items.iter().map(|stored| stored.changed).max().unwrap_or_default();
    let objects: Vec<Object> = items.into_iter().map(|stored| stored.object).collect();
    Some(Observation {
        at,
        asked: Asked { all: asked(&objects, None), user: asked(&objects, Some(USER)) },
        changed,
        status: match status {
            Some(Response::Status(status)) => Some(*status),
            _ => None,
        },
        stats: match stats {
            Some(Response::Stats(stats)) => Some(stats),
            _ => None,
        },
    })
}

/// Asks one host after the other until one answers.
async fn first(clients: &[Client], request: &Request) -> Option<Response> {
    for client in clients {
        if let Ok(Ok(response)) = client.ask(request, PATIENCE).await {
            return Some(response);
        }
    }
    None
}

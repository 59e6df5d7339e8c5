//! Requests about the secrets of this host, and those that it orders from an authority: what `meshctl secret` asks.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use mesh_core::plan::Plan;
use mesh_core::views;
use mesh_proto::api::{ApiError, ErrorCode, Request, Response};
use mesh_proto::command::Timestamp;
use mesh_proto::secret::SecretView;
use tokio::sync::{mpsc, oneshot, watch};

use super::entrances;
use super::requests::refused;
use crate::agent::Published;
use crate::config::Config;
use crate::drain::Draining;
use crate::secrets::{SecretError, Store, Upkeeps, Wish};
use crate::task;
use crate::transport::Challenges;

/// The secrets of this host and what is ordered of them.
pub(super) struct Orders {
    store: Store,
    upkeep: watch::Receiver<Upkeeps>,
    wishes: mpsc::Sender<Wish>,
    /// For the gateways that authorities ask.
    pub(super) challenges: Arc<Challenges>,
}

impl Orders {
    /// Keeps up what `meshd.toml` orders, from the first Plan on until draining begins.
    pub(super) fn start(
        config: &Config,
        plans: &Arc<ArcSwap<Plan>>,
        published: watch::Receiver<Arc<Published>>,
        draining: &Draining,
    ) -> Self {
        let store = Store::at(entrances::secrets(config));
        let challenges = Arc::<Challenges>::default();
        let (told, upkeep) = watch::channel(Upkeeps::new());
        let (wishes, wished) = mpsc::channel(1);
        let keeping = Keeping { told, wished, published };
        keeping.begin(config, &store, plans, &challenges, draining);
        Self { store, upkeep, wishes, challenges }
    }

    /// Adds what went wrong with orders to what is wrong with doors.
    pub(super) fn problems(&self, mut doors: watch::Receiver<Vec<String>>) -> watch::Receiver<Vec<String>> {
        let mut upkeep = self.upkeep.clone();
        let (sender, receiver) = watch::channel(Vec::new());
        task::spawn("problems", async move {
            loop {
                let mut all = doors.borrow_and_update().clone();
                let failed = upkeep.borrow_and_update().clone();
                let failed = failed.iter().filter(|(_, upkeep)| !upkeep.problem.is_empty());
                all.extend(
                    failed.map(|(secret, upkeep)| {
                        format!("secret {secret} is not renewed: {}", upkeep.problem)
                    }),
                );
                sender.send_if_modified(|known| {
                    let is_new = *known != all;
                    *known = all;
                    is_new
                });
                tokio::select! {
                    Ok(()) = doors.changed() => {}
                    Ok(()) = upkeep.changed() => {}
                    else => return,
                }
            }
        });
        receiver
    }

    /// Answers what concerns the secrets of this host, beside everything else: the disk may be slow.
    pub(super) async fn answer(&self, plan: &Plan, request: Request) -> Result<Response, ApiError> {
        if let Request::RenewSecret { name } = request {
            return self.renew(name).await;
        }
        let (store, used) = (self.store.clone(), views::secrets_used(plan));
        let upkeep = self.upkeep.borrow().clone();
        let done = tokio::task::spawn_blocking(move || {
            let now = SystemTime::now();
            Ok(match request {
                Request::PutSecret(new) => Response::SecretPut { warnings: store.put(&new, now)? },
                Request::DeleteSecret { name } => store.delete(&name).map(|()| Response::Done)?,
                _ => Response::Secrets(
                    store
                        .list(now)
                        .into_iter()
                        .map(|view| SecretView {
                            used_by: used.get(&view.name).cloned().unwrap_or_default(),
                            renewal: upkeep.get(&view.name).map(|upkeep| moment(upkeep.due)),
                            ..view
                        })
                        .collect(),
                ),
            })
        });
        match done.await {
            Ok(answer) => answer.map_err(|error: SecretError| {
                let code = match &error {
                    SecretError::Name(_) | SecretError::Content(_) => ErrorCode::Invalid,
                    SecretError::Taken(_) => ErrorCode::Conflict,
                    SecretError::Missing(_) => ErrorCode::NotFound,
                    SecretError::Io { .. } => ErrorCode::Unavailable,
                };
                refused(code, error.to_string())
            }),
            Err(_) => Err(refused(ErrorCode::Unavailable, "meshd is stopping")),
        }
    }

    /// Has a certificate ordered now, and waits for it.
    async fn renew(&self, secret: String) -> Result<Response, ApiError> {
        if !self.upkeep.borrow().contains_key(&secret) {
            let text = format!(
                "secret {secret} is not ordered by this host: [[acme.certificate]] of meshd.toml names what is"
            );
            return Err(refused(ErrorCode::NotFound, text));
        }
        let (answer, ended) = oneshot::channel();
        if self.wishes.send(Wish { secret, answer }).await.is_err() {
            return Err(refused(ErrorCode::Unavailable, "meshd is stopping"));
        }
        match ended.await {
            Ok(Ok(())) => Ok(Response::Done),
            Ok(Err(why)) => Err(refused(ErrorCode::Invalid, why)),
            Err(_) => Err(refused(ErrorCode::Unavailable, "meshd is stopping")),
        }
    }
}

/// What the task is made of.
#[cfg_attr(not(feature = "acme"), expect(dead_code, reason = "nothing is ordered in such a build"))]
struct Keeping {
    told: watch::Sender<Upkeeps>,
    wished: mpsc::Receiver<Wish>,
    published: watch::Receiver<Arc<Published>>,
}

impl Keeping {
    #[cfg(feature = "acme")]
    fn begin(
        self,
        config: &Config,
        store: &Store,
        plans: &Arc<ArcSwap<Plan>>,
        challenges: &Arc<Challenges>,
        draining: &Draining,
    ) {
        use crate::secrets::acme::{Keeper, Settings};
        use crate::transport::SocketOptions;

        let Some(acme) = config.acme.clone() else { return };
        let Self { told, wished, mut published } = self;
        let settings = Settings {
            acme,
            folder: config.host.data.join("acme"),
            socket: SocketOptions { mark: Some(config.intercept.mark) },
        };
        let keeper = Keeper::new(settings, store.clone(), plans.clone(), challenges.clone());
        let draining = draining.clone();
        task::spawn("orders", async move {
            // Without a Plan no gateway is open.
            if published.wait_for(|published| published.plan.revision.0 > 0).await.is_ok() {
                keeper.run(wished, told, draining).await;
            }
        });
    }

    #[cfg(not(feature = "acme"))]
    fn begin(
        self,
        _config: &Config,
        _store: &Store,
        _plans: &Arc<ArcSwap<Plan>>,
        _challenges: &Arc<Challenges>,
        _draining: &Draining,
    ) {
    }
}

fn moment(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

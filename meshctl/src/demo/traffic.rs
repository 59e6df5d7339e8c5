//! The visitors: a steady stream of requests to productpage, and what became of each.
//!
//! Services and visitors have a thread of their own, so that drawing does not slow them down.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::call::Caller;
use super::services::{self, Bound, VERSION_HEADER};
use super::story::USER;
use crate::exit::{Exit, Failure, Result, plain};

/// Every tenth visitor is signed in.
const SIGNED_IN_EVERY: u64 = 10;
/// The most requests under way; those beyond count as failed.
const MAX_UNDER_WAY: usize = 4_000;
/// The most results kept until they are collected: a minute at the highest rate.
const MAX_SAMPLES: usize = 300_000;

/// What became of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// When it was over.
    pub(crate) done: Instant,
    /// Whether it was jason's.
    pub(crate) signed_in: bool,
    /// The version of reviews behind the page, or why there is no page.
    pub(crate) outcome: std::result::Result<String, String>,
    /// From the moment it was due to its end, in microseconds.
    pub(crate) latency_us: u64,
}

/// What the thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serve,
    Visit,
    End,
}

/// Services and visitors; dropping it ends them.
pub(crate) struct Traffic {
    phase: watch::Sender<Phase>,
    samples: Arc<Mutex<Vec<Sample>>>,
    thread: Option<std::thread::JoinHandle<()>>,
    door: Arc<Caller>,
}

impl Traffic {
    /// Begins to serve; visitors come with [`Traffic::visit`], `rate` a second.
    pub(crate) fn start(bound: Vec<Bound>, door: SocketAddr, rate: u32) -> Result<Self> {
        let (phase, orders) = watch::channel(Phase::Serve);
        let samples = Arc::new(Mutex::new(Vec::new()));
        let caller = Arc::new(Caller::new(door));
        let failure = |error: std::io::Error| {
            Failure::new(Exit::NoAnswer, format!("cannot start the services: {}", plain(&error)))
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failure)?;
        let visitors = Visitors { door: Arc::clone(&caller), rate, samples: Arc::clone(&samples) };
        let thread = std::thread::Builder::new()
            .name("demo-services".into())
            .spawn(move || runtime.block_on(run(bound, visitors, orders)))
            .map_err(failure)?;
        Ok(Self { phase, samples, thread: Some(thread), door: Arc::new(Caller::new(door)) })
    }

    /// Lets the visitors in.
    pub(crate) fn visit(&self) {
        self.phase.send_replace(Phase::Visit);
    }

    /// Makes one visit now; returns the version of reviews.
    pub(crate) async fn probe(&self) -> std::result::Result<String, String> {
        visit(&self.door, None).await
    }

    /// Takes the results of the requests that ended by `until`.
    pub(crate) fn collect(&self, until: Instant) -> Vec<Sample> {
        let Ok(mut samples) = self.samples.lock() else { return Vec::new() };
        let (over, later) = samples.drain(..).partition(|sample| sample.done <= until);
        *samples = later;
        over
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::End);
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there.
            let _ = thread.join();
        }
    }
}

async fn run(bound: Vec<Bound>, visitors: Visitors, mut orders: watch::Receiver<Phase>) {
    let mut parts = JoinSet::new();
    parts.spawn(async { drop(services::serve(bound).await) });
    // The sender lives as long as the demo: its end is the end, too.
    if orders.wait_for(|phase| *phase != Phase::Serve).await.is_ok_and(|phase| *phase == Phase::Visit) {
        parts.spawn(visitors.come());
        let _ = orders.wait_for(|phase| *phase == Phase::End).await;
    }
}

struct Visitors {
    door: Arc<Caller>,
    rate: u32,
    samples: Arc<Mutex<Vec<Sample>>>,
}

impl Visitors {
    async fn come(self) {
        let mut due = tokio::time::interval(Duration::from_secs(1) / self.rate);
        // A late tick is made up for: the stream stays steady, and lateness counts as latency.
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut under_way = JoinSet::new();
        let mut number = 0_u64;
        loop {
            tokio::select! {
                tick = due.tick() => {
                    number += 1;
                    let signed_in = number.is_multiple_of(SIGNED_IN_EVERY);
                    let due = tick.into_std();
                    if under_way.len() < MAX_UNDER_WAY {
                        under_way.spawn(one(Arc::clone(&self.door), signed_in, due, Arc::clone(&self.samples)));
                    } else {
                        keep(&self.samples, signed_in, due, Err(format!("{MAX_UNDER_WAY} requests under way")));
                    }
                }
                Some(_) = under_way.join_next() => {}
            }
        }
    }
}

async fn one(door: Arc<Caller>, signed_in: bool, due: Instant, samples: Arc<Mutex<Vec<Sample>>>) {
    let outcome = visit(&door, signed_in.then_some(USER)).await;
    keep(&samples, signed_in, due, outcome);
}

async fn visit(door: &Caller, user: Option<&str>) -> std::result::Result<String, String> {
    let (head, body) = door.exchange("productpage", "/productpage", user).await?;
    if !head.status.is_success() {
        return Err(format!("{}: {}", head.status, String::from_utf8_lossy(&body).trim()));
    }
    let version = head.headers.get(VERSION_HEADER).and_then(|version| version.to_str().ok());
    version.map(str::to_owned).ok_or_else(|| "the page names no version of reviews".to_owned())
}

fn keep(
    samples: &Mutex<Vec<Sample>>,
    signed_in: bool,
    due: Instant,
    outcome: std::result::Result<String, String>,
) {
    let done = Instant::now();
    let latency_us = u64::try_from(done.saturating_duration_since(due).as_micros()).unwrap_or(u64::MAX);
    if let Ok(mut samples) = samples.lock()
        && samples.len() < MAX_SAMPLES
    {
        samples.push(Sample { done, signed_in, outcome, latency_us });
    }
}

//! `meshctl demo`: a whole mesh on one machine, with a canary running.
//!
//! Three real meshd processes form a mesh on loopback addresses; services in the shape of bookinfo run in this process
//! and reach each other only through them; rules, tokens and registrations go through the same API and the same code
//! as everybody's. What is drawn is what any user could ask.

mod call;
pub(crate) mod child;
pub(crate) mod control;
pub(crate) mod folder;
mod hosts;
mod judge;
mod observe;
mod odds;
mod picture;
mod services;
mod story;
mod summary;
mod traffic;
mod view;

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mesh_proto::api::{HostStats, Request, Response};
use mesh_proto::command::{Liveness, TokenRole};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::cli::{By, DemoArgs};
use crate::cmd::{self, token, top::rates::rates, wait};
use crate::exit::{Exit, Failure, Result};
use crate::output::{Tone, paint, say, tell};
use crate::screen::{Screen, Signals};
use crate::words::short;
use folder::Folder;
use hosts::Hosts;
use judge::Judge;
use observe::Observation;
use picture::Picture;
use traffic::Traffic;
use view::Hint;

/// How long a token of the demo may be used.
const TOKEN_TTL: Duration = Duration::from_mins(1);
/// Pages in a row that show that the mesh has settled: all instances had their turn.
const WARM_UP: usize = 60;
/// Readings of counters kept: rates are taken over ten seconds.
const READINGS: usize = 11;

/// Runs the demo until the user or `--for` ends it.
pub(crate) async fn run(args: &DemoArgs) -> Result<Exit> {
    let mut signals = Signals::new()
        .map_err(|error| Failure::new(Exit::NoAnswer, format!("signals: {}", crate::exit::plain(&error))))?;
    let demo = tokio::select! {
        demo = Demo::start(args) => demo,
        () = signals.any() => Err(Failure::no_answer("interrupted before the mesh was up; nothing is left behind")),
    };
    demo?.watch(args, &mut signals).await
}

/// A running demo. Fields are dropped in this order: visitors leave, hosts end, files go.
struct Demo {
    traffic: Traffic,
    hosts: Hosts,
    orders: mpsc::Receiver<control::Order>,
    seen: watch::Receiver<Option<Observation>>,
    _tasks: JoinSet<()>,
    _folder: Folder,
    examples: PathBuf,
    readings: VecDeque<(Instant, Vec<HostStats>)>,
    last: Option<Observation>,
    judge: Judge,
}

/// Tells how long each phase of the start took.
struct Phases {
    begun: Instant,
    last: Instant,
    verbose: bool,
}

impl Phases {
    fn done(&mut self, what: &str) {
        if self.verbose {
            tell(&paint(Tone::Dim, &format!("{:>8}  {what}", short(self.last.elapsed()))));
        }
        self.last = Instant::now();
    }
}

impl Demo {
    async fn start(args: &DemoArgs) -> Result<Self> {
        if let Some(other) = folder::current() {
            return Err(Failure::new(
                Exit::Conflict,
                format!("a demo runs already ({}); end it first, or use it: meshctl status", other.display()),
            ));
        }
        let ips = hosts::addresses(&args.base)?;
        hosts::check_ports(&ips, &args.base)?;
        let folder = Folder::create()?;
        let examples = story::write(folder.path())?;
        let mut hosts = Hosts::prepare(&folder, ips)?;
        let now = Instant::now();
        let mut phases = Phases { begun: now, last: now, verbose: args.verbose };
        tell("starting three hosts …");
        match Self::bring_up(args, &mut hosts, &mut phases).await {
            Ok(traffic) => Ok(Self::assemble(traffic, hosts, folder, examples)),
            Err(mut failure) => {
                failure.message.push_str(&hosts.tails());
                Err(failure)
            }
        }
    }

    /// From nothing to the first routed request.
    async fn bring_up(args: &DemoArgs, hosts: &mut Hosts, phases: &mut Phases) -> Result<Traffic> {
        let ip_of =
            |hosts: &Hosts, name: &str| hosts.all.iter().find(|host| host.name == name).map(|host| host.ip);
        let bound =
            services::bind(|name| ip_of(hosts, name).unwrap_or(hosts.all[0].ip)).map_err(|error| {
                Failure::new(Exit::NoAnswer, format!("services: {}", crate::exit::plain(&error)))
            })?;
        let registrations: Vec<_> =
            hosts.all.iter().map(|host| services::registration(&bound, host.name)).collect();
        let door = SocketAddr::new(hosts.all[0].ip, hosts::DOOR);
        let traffic = Traffic::start(bound, door, args.rate)?;

        hosts.init().await?;
        phases.done("meshd init and run on vm1");
        let first = hosts.all[0].client();
        hosts::until(&first, &Request::Status, "the election of vm1", |answer| match answer {
            Response::Status(status) => status.leader,
            _ => None,
        })
        .await?;
        phases.done("vm1 leads");
        let one = token::make(&first, TOKEN_TTL, TokenRole::Auto).await?;
        let two = token::make(&first, TOKEN_TTL, TokenRole::Auto).await?;
        hosts.join([one, two]).await?;
        phases.done("two tokens; meshd join and run on vm2 and vm3");
        for (host, instances) in hosts.all.iter().zip(registrations) {
            cmd::register_instances(&host.client(), instances).await?;
        }
        phases.done("services registered");
        apply(&first).await?;
        phases.done("examples/canary applied, live on every host");
        wait_for_health(&first).await?;
        phases.done("every instance healthy");
        let version = first_request(&traffic).await?;
        phases.done("first request");
        tell(&format!(
            "first request routed to reviews {version} {} after the start",
            short(phases.begun.elapsed())
        ));
        warm_up(&traffic).await?;
        phases.done("the first requests in a row without a failure");
        if args.verbose {
            tell(&paint(Tone::Dim, &format!("logs: {}", hosts.logs())));
        }
        Ok(traffic)
    }

    fn assemble(traffic: Traffic, hosts: Hosts, folder: Folder, examples: PathBuf) -> Self {
        let (order_sender, orders) = mpsc::channel(1);
        let (seen_sender, seen) = watch::channel(None);
        let clients = hosts.all.iter().map(hosts::Host::client).collect();
        let path = folder.path().to_owned();
        let mut tasks = JoinSet::new();
        tasks.spawn(observe::run(clients, seen_sender));
        tasks.spawn(async move {
            if let Err(error) = control::serve(&path, order_sender).await {
                tell(&format!("`meshctl demo stop` will not work: {}", crate::exit::plain(&error)));
            }
        });
        Self {
            traffic,
            hosts,
            orders,
            seen,
            _tasks: tasks,
            _folder: folder,
            examples,
            readings: VecDeque::new(),
            last: None,
            judge: Judge::default(),
        }
    }

    /// Shows what happens until the end.
    async fn watch(&mut self, args: &DemoArgs, signals: &mut Signals) -> Result<Exit> {
        // The rules as they are before the first visitor.
        let _ = self.seen.wait_for(Option::is_some).await;
        let begun = Instant::now();
        self.observe(begun);
        self.traffic.visit();
        let mut screen = if std::io::stdout().is_terminal() { Screen::open().ok() } else { None };
        let hints = self.hints();
        if screen.is_none() && args.duration.is_none() {
            tell_hints(&hints);
        }
        let end = tokio::time::sleep(args.duration.unwrap_or(Duration::from_hours(24 * 365)));
        tokio::pin!(end);
        let mut by_user = false;
        loop {
            tokio::select! {
                () = &mut end => break,
                () = signals.any() => { by_user = true; break }
                () = leave(&mut screen) => { by_user = true; break }
                Some(order) = self.orders.recv() => self.obey(order),
                changed = self.seen.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.hosts.reap();
                    self.observe(begun);
                    let Some(picture) = self.picture(begun) else { continue };
                    match &mut screen {
                        Some(screen) => screen.draw(|frame| view::draw(frame, &picture, &hints)),
                        None => say(&(picture.line() + "\n"))?,
                    }
                }
            }
        }
        drop(screen);
        let took = begun.elapsed();
        self.finish(args.duration.is_some() && !by_user, took)
    }

    fn finish(&mut self, judged: bool, took: Duration) -> Result<Exit> {
        // What ended since the last look at the rules is counted under them.
        if let Some(last) = self.last.take() {
            let rest = self.traffic.collect(Instant::now());
            self.judge.take(rest, &last.asked, Instant::now());
        }
        let recent = self.judge.recent();
        say(&summary::write(&self.judge, &recent, took))?;
        Ok(if judged && !self.judge.holds() { Exit::Refused } else { Exit::Done })
    }

    /// Takes in the newest observation and the requests that ended before it.
    fn observe(&mut self, begun: Instant) {
        let Some(seen) = self.seen.borrow_and_update().clone() else { return };
        let samples = self.traffic.collect(seen.at.max(begun));
        self.judge.take(samples, &seen.asked, Instant::now());
        if let Some(stats) = &seen.stats {
            self.readings.push_back((seen.at, stats.clone()));
            if self.readings.len() > READINGS {
                self.readings.pop_front();
            }
        }
        self.last = Some(seen);
    }

    fn picture(&self, begun: Instant) -> Option<Picture> {
        let seen = self.last.as_ref()?;
        let edges = match (self.readings.front(), self.readings.back()) {
            (Some(first), Some(last)) => {
                rates(&first.1, &last.1, last.0.saturating_duration_since(first.0), By::Edge)
            }
            _ => Vec::new(),
        };
        Some(Picture::new(begun.elapsed(), &self.judge, seen, &edges, &self.hosts))
    }

    fn obey(&mut self, order: control::Order) {
        self.hosts.reap();
        let host = order.host.as_str();
        let done = match order.act {
            control::Act::Start => self.hosts.start(host).map(|()| format!("{host} is starting")),
            control::Act::Stop => self
                .hosts
                .stop(host, false)
                .map(|()| format!("{host} is stopping: its services leave, its connections end")),
            control::Act::Kill => self.hosts.stop(host, true).map(|()| format!("{host} was killed")),
        };
        // The terminal that asked may be gone.
        let _ = order.answer.send(done);
    }

    fn hints(&self) -> Vec<Hint> {
        let program = std::env::args().next().unwrap_or_else(|| "meshctl".into());
        let revision = self.last.as_ref().map_or(0, |seen| seen.changed.0);
        let apply = |file: &str| format!("{program} apply -f {}", self.examples.join(file).display());
        let hint = |command: String, about| Hint { command, about };
        vec![
            hint(apply("20-shift-50.yaml"), "shift the weights: half to v2"),
            hint(apply("40-fault.yaml"), "inject a fault: some 503, some late"),
            hint(apply("60-header-jason.yaml"), "only jason sees v2"),
            hint(format!("{program} rollback {revision}"), "back to the canary"),
            hint(format!("{program} demo stop vm3"), "stop a host (start brings it back)"),
            hint(format!("{program} routes reviews"), "what vm1 does with requests"),
            hint(format!("{program} top"), "who calls whom"),
        ]
    }
}

fn tell_hints(hints: &[Hint]) {
    tell("try next, in another terminal:");
    let width = hints.iter().map(|hint| hint.command.chars().count()).max().unwrap_or_default();
    for hint in hints {
        tell(&format!("  {:<width$}  {}", hint.command, paint(Tone::Dim, hint.about)));
    }
}

/// Waits until the user leaves the canvas; without one, forever.
async fn leave(screen: &mut Option<Screen>) {
    match screen {
        Some(screen) => screen.leave_asked().await,
        None => std::future::pending().await,
    }
}

/// Applies the first rules the way `meshctl apply` does.
async fn apply(client: &crate::client::Client) -> Result {
    let rules = story::begin()?;
    let order = cmd::Order {
        rules: rules.all,
        reason: "apply examples/canary".into(),
        prune: false,
        dry_run: false,
        strict: false,
    };
    let begun = Instant::now();
    let applied = cmd::send(client, &order).await?;
    let waited = wait::ask(client, applied.revision, hosts::START_LIMIT).await?;
    let line = waited.line(applied.revision, begun.elapsed());
    if waited.behind.is_empty() && waited.problems.is_empty() {
        return say(&(line + "\n"));
    }
    Err(Failure::no_answer(format!("{line} {}", waited.problems.join("; "))))
}

/// Waits until the leader has heard of every instance that it is healthy.
async fn wait_for_health(client: &crate::client::Client) -> Result {
    hosts::until(client, &Request::Status, "health of every instance", |answer| {
        let Response::Status(status) = answer else { return None };
        let live = status.hosts.iter().all(|host| host.liveness == Liveness::Live);
        let healthy: usize = status.hosts.iter().map(|host| host.healthy).sum();
        (live && healthy == services::ROLES.len()).then_some(())
    })
    .await
}

/// Visits until a page comes back.
async fn first_request(traffic: &Traffic) -> Result<String> {
    let limit = Instant::now() + hosts::START_LIMIT;
    loop {
        match traffic.probe().await {
            Ok(version) => return Ok(version),
            Err(why) if Instant::now() > limit => {
                return Err(Failure::no_answer(format!("no request got through: {why}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Visits until a number of pages in a row came back: a host may get its last certificate after its last rule.
async fn warm_up(traffic: &Traffic) -> Result {
    let limit = Instant::now() + hosts::START_LIMIT;
    let mut in_a_row = 0;
    while in_a_row < WARM_UP {
        match traffic.probe().await {
            Ok(_) => in_a_row += 1,
            Err(why) if Instant::now() > limit => {
                return Err(Failure::no_answer(format!("requests keep failing: {why}")));
            }
            Err(_) => {
                in_a_row = 0;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    Ok(())
}

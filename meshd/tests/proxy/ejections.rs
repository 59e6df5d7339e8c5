//! Ejections as people see them: in the log, in the metrics and in `meshctl endpoints`.

use std::io::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use http::StatusCode;
use mesh_core::endpoint::Moment;
use mesh_core::plan::OutlierPolicy;
use mesh_core::views;
use mesh_proto::api::{EndpointView, PlanFilter};

use super::lab::*;
use super::plan::*;

/// What this process has logged.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Logged {
    /// Begins to log, once.
    fn begin() -> &'static Self {
        static LOGGED: OnceLock<Logged> = OnceLock::new();
        LOGGED.get_or_init(|| {
            let logged = Self::default();
            let writer = logged.clone();
            let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
            tracing::subscriber::set_global_default(subscriber.finish()).expect("nobody else logs");
            logged
        })
    }

    fn line(&self, with: &[&str]) -> Option<String> {
        let bytes = self.0.lock().expect("no panic");
        let text = String::from_utf8_lossy(&bytes);
        text.lines().find(|line| with.iter().all(|part| line.contains(part))).map(ToOwned::to_owned)
    }
}

#[tokio::test]
async fn an_ejection_is_in_the_log_the_metrics_and_the_endpoints_and_so_is_its_end() {
    let logged = Logged::begin();
    let (one, other) = (Backend::http1("one").await, Backend::http1("other").await);
    let mut watched = cluster("ejected.example", vec![local(one.address), local(other.address)]);
    watched.outlier = Some(
        OutlierPolicy {
            consecutive_5xx: 1,
            consecutive_gateway: 0,
            consecutive_local: None,
            error_codes: Vec::new(),
            interval: Duration::from_millis(50),
            base_ejection: Duration::from_secs(2),
            max_ejection_percent: 50,
            min_health_percent: 0,
        }
        .into(),
    );
    let destination = to(1, watched);
    let cluster = destination.cluster.clone().expect("a cluster");
    let mut plan = plan(vec![("ejected.example", vec![forwarding(forward(vec![destination]))])]);
    plan.clusters.insert(cluster.name.clone(), cluster);
    let lab = start(plan);
    let ask = |status: &'static str| {
        once(lab.address, get("/", &[("host", "ejected.example"), ("x-want-status", status)]))
    };

    assert_eq!(ask("500").await.status, StatusCode::INTERNAL_SERVER_ERROR);

    let line = logged.line(&["endpoint ejected", "ejected.example"]).expect("a line of the log");
    let ill = if one.hits() == 1 { &one } else { &other };
    let endpoint = format!("endpoint={}", ill.address);
    for part in [endpoint.as_str(), "cause=failures in a row", "seconds=2", "times=1", "INFO"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let counters = &lab.stats.shard(0).counters;
    assert_eq!(counters.ejections_total.load(Ordering::Relaxed), 1);
    let shown = || views::endpoints(&lab.plans.load(), &PlanFilter::default(), Moment(0));
    let ejected = |row: &EndpointView| row.state.starts_with("ejected for ") && row.choice == "0 %";
    let told = shown().into_iter().filter(ejected).map(|row| row.address).collect::<Vec<_>>();
    assert_eq!(told, [ill.address.to_string()]);

    // It returns also while requests come, and that is told as well.
    let returned = || logged.line(&["ejected endpoints may be used again", "ejected.example", "endpoints=1"]);
    let begun = Instant::now();
    while returned().is_none() && begun.elapsed() < Duration::from_secs(20) {
        assert_eq!(ask("200").await.status, StatusCode::OK);
    }
    assert!(returned().is_some(), "nothing is told of its return");
    assert!(shown().iter().all(|row| row.state == "healthy"), "{:?}", shown());
}

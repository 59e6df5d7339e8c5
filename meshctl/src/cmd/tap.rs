//! `meshctl tap`: requests as they end, of every host of the mesh or of one.

use std::fmt::Write as _;
use std::time::Duration;

use mesh_proto::api::{Request, Response};
use mesh_proto::command::Liveness;
use mesh_proto::look::{TapAsk, TapFilter, Tapped, TappedRequest};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::status;
use super::top::rates::short_host;
use super::top::success_tone;
use crate::cli::TapArgs;
use crate::client::{Client, answer, key};
use crate::exit::{Exit, Failure, Result};
use crate::output::{Format, Tone, paint, say, tell, yaml};
use crate::words::latency;

/// How long a host waits for the first request before it says that there is none.
const WAIT_MS: u64 = 1_000;
/// Longer than that, and the way to another host.
const PATIENCE: Duration = Duration::from_secs(12);
/// Hosts that are tapped at most.
const MOST_HOSTS: usize = 64;
/// How long the end of a tap may take.
const END_LIMIT: Duration = Duration::from_millis(500);

/// A request with the host that carried it.
#[derive(Serialize)]
struct Row<'r> {
    host: &'r str,
    #[serde(flatten)]
    request: &'r TappedRequest,
}

/// Runs `tap`.
pub(crate) async fn run(args: &TapArgs, client: &Client) -> Result<Exit> {
    let ask = ask(args)?;
    let clients = clients(client).await?;
    let (tell_all, mut came) = mpsc::channel(64);
    let mut taps = tokio::task::JoinSet::new();
    for client in clients.clone() {
        taps.spawn(follow(client, ask.clone(), tell_all.clone()));
    }
    drop(tell_all);
    let until = args.duration.map(|duration| Instant::now() + duration);
    let over = async {
        match until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(over);
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut missed = 0;
    let mut failure = None;
    let mut heard = false;
    while left > 0 {
        let tapped: Result<Tapped> = tokio::select! {
            tapped = came.recv() => match tapped {
                Some(tapped) => tapped,
                None => break,
            },
            () = &mut over => break,
            _ = tokio::signal::ctrl_c() => break,
        };
        match tapped {
            Ok(tapped) => {
                heard = true;
                missed += tapped.missed;
                let many = usize::try_from(left).unwrap_or(usize::MAX).min(tapped.requests.len());
                left -= many as u64;
                print(&tapped.host, &tapped.requests[..many], args.output.output)?;
            }
            Err(lost) if clients.len() == 1 => return Err(lost),
            Err(lost) => {
                tell(&lost.message);
                failure = Some(lost);
            }
        }
    }
    taps.abort_all();
    end(clients, &ask).await;
    if missed > 0 {
        tell(&format!(
            "{missed} more fitted and were left out: a host shows 100 a second (--one-in N takes fewer)"
        ));
    }
    match failure {
        Some(failure) if !heard => Err(Failure { message: String::new(), ..failure }),
        _ => Ok(Exit::Done),
    }
}

/// The hosts to tap: the one asked for, else all that answer.
async fn clients(client: &Client) -> Result<Vec<Client>> {
    if client.asks_another().is_some() {
        return Ok(vec![client.clone()]);
    }
    let status = match status::ask(client).await {
        Ok(status) => status,
        Err(failure) => {
            tell(&format!("only this host is tapped: {failure}"));
            return Ok(vec![client.clone()]);
        }
    };
    let live: Vec<&str> = status
        .hosts
        .iter()
        .filter(|host| matches!(host.liveness, Liveness::Live | Liveness::Suspect))
        .map(|host| host.name.as_str())
        .collect();
    if live.len() > MOST_HOSTS {
        tell(&format!("the first {MOST_HOSTS} of {} hosts are tapped; --host NAME taps another", live.len()));
    }
    Ok(live.into_iter().take(MOST_HOSTS).map(|host| client.on(host)).collect())
}

fn ask(args: &TapArgs) -> Result<TapAsk> {
    let field = |text: &String| match text.split_once('=') {
        Some((name, value)) => (name.trim().to_ascii_lowercase(), Some(value.to_owned())),
        None => (text.trim().to_ascii_lowercase(), None),
    };
    let filter = TapFilter {
        service: args.service.clone(),
        path: args.path.clone(),
        method: args.method.clone(),
        status: args.status.clone(),
        from: args.from.clone(),
        headers: args.headers.iter().map(field).collect(),
    };
    if filter.headers.iter().any(|(name, _)| name.is_empty()) {
        return Err(Failure::usage("--header: NAME or NAME=VALUE"));
    }
    Ok(TapAsk {
        id: key(),
        filter,
        headers: args.show_headers,
        secrets: args.show_secrets,
        one_in: args.one_in,
        wait_ms: WAIT_MS,
        limit: 200,
        end: false,
    })
}

/// Fetches what a host has seen, again and again.
async fn follow(client: Client, ask: TapAsk, came: mpsc::Sender<Result<Tapped>>) {
    loop {
        let answer = client.call_within(&Request::Tap(Box::new(ask.clone())), PATIENCE).await;
        let tapped = match answer {
            Ok(answer) => answer!(answer, Response::Tapped(tapped) => tapped),
            Err(failure) => Err(failure),
        };
        let is_lost = tapped.is_err();
        if came.send(tapped).await.is_err() || is_lost {
            return;
        }
    }
}

async fn end(clients: Vec<Client>, ask: &TapAsk) {
    let mut ends = tokio::task::JoinSet::new();
    for client in clients {
        let request = Request::Tap(Box::new(TapAsk { end: true, wait_ms: 0, ..ask.clone() }));
        ends.spawn(async move { drop(client.ask(&request, END_LIMIT).await) });
    }
    // A tap that nobody asks about ends by itself.
    let _ = tokio::time::timeout(END_LIMIT, ends.join_all()).await;
}

fn print(host: &str, requests: &[TappedRequest], format: Format) -> Result {
    let mut text = String::new();
    for request in requests {
        let row = Row { host, request };
        match format {
            Format::Table => text.push_str(&line(&row)),
            Format::Json => {
                let json = serde_json::json!({ "version": 1, "items": [row] });
                let _ = writeln!(text, "{json}");
            }
            Format::Yaml => {
                text.push_str("---\n");
                text.push_str(&yaml(&row)?);
            }
        }
    }
    if text.is_empty() { Ok(()) } else { say(&text) }
}

fn line(row: &Row<'_>) -> String {
    let Row { host, request } = row;
    let [port, subset, service] = cluster(&request.cluster);
    let to = match (service, subset) {
        ("", _) => request.authority.clone(),
        (service, "") => format!("{}:{port}", short_host(service)),
        (service, subset) => format!("{}:{port} {subset}", short_host(service)),
    };
    let tone = if request.status == 0 {
        Tone::Bad
    } else {
        success_tone(if request.status < 500 { 1.0 } else { 0.0 })
    };
    let mut text = format!(
        "{} {host} {} → {to}  {} {}  {} {}",
        paint(Tone::Dim, &clock(request.at.0)),
        request.from,
        request.method,
        request.path,
        paint(tone, &request.status.to_string()),
        latency(request.took_us),
    );
    if !request.endpoint.is_empty() {
        let _ = write!(text, "  {}", paint(Tone::Dim, &request.endpoint));
    }
    if request.flags != "-" && !request.flags.is_empty() {
        let _ = write!(text, "  {}", paint(Tone::Warn, &request.flags));
    }
    if request.retries > 0 {
        let _ = write!(text, "  retries {}", request.retries);
    }
    text.push('\n');
    for (name, value) in &request.headers {
        let _ = writeln!(
            text,
            "             {}: {value}",
            paint(Tone::Dim, &printable(name)),
            value = printable(value)
        );
    }
    text
}

/// What came from a caller must not move the cursor.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '·' } else { letter }).collect()
}

/// `outbound|PORT|SUBSET|HOST`
fn cluster(name: &str) -> [&str; 3] {
    let mut parts = name.split('|').skip(1);
    [(); 3].map(|()| parts.next().unwrap_or_default())
}

/// The time of day, UTC.
fn clock(at_ms: u64) -> String {
    let of_day = at_ms % 86_400_000;
    let (seconds, millis) = (of_day / 1_000, of_day % 1_000);
    format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_proto::command::Timestamp;

    #[test]
    fn a_request_is_a_line_and_its_fields_cannot_move_the_cursor() {
        let request = TappedRequest {
            at: Timestamp(3_723_045),
            from: "default/web".into(),
            cluster: "outbound|9080|v2|reviews.default.svc.cluster.local".into(),
            endpoint: "vm2/reviews-v2".into(),
            method: "GET".into(),
            path: "/reviews/1".into(),
            status: 503,
            flags: "UF".into(),
            retries: 2,
            took_us: 3_210,
            headers: [("end-user".to_owned(), "j\u{1b}[2Jx".to_owned())].into(),
            ..TappedRequest::default()
        };

        let text = anstream::adapter::strip_str(&line(&Row { host: "vm1", request: &request })).to_string();

        assert_eq!(
            text,
            "01:02:03.045 vm1 default/web → reviews.default:9080 v2  GET /reviews/1  503 3.21 ms  vm2/reviews-v2  UF  retries 2\n             end-user: j·[2Jx\n"
        );
    }
}

//! `meshctl routes`, `clusters`, `endpoints`: what the host that answers does with traffic.

use mesh_proto::api::{ClusterView, EndpointView, PlanFilter, Request, Response, RouteView};
use std::fmt::Write as _;

use crate::cli::PlanArgs;
use crate::client::{Client, answer};
use crate::exit::{Exit, Result};
use crate::output::{Columns, Tone, paint, show};

/// Runs `routes`.
pub(crate) async fn routes(args: &PlanArgs, client: &Client) -> Result<Exit> {
    let answer = client.call(&Request::Routes(filter(args))).await?;
    let rows = answer!(answer, Response::Routes(rows) => rows)?;
    show(args.output.output, &rows, || routes_table(&rows))?;
    Ok(Exit::Done)
}

/// Runs `clusters`.
pub(crate) async fn clusters(args: &PlanArgs, client: &Client) -> Result<Exit> {
    let answer = client.call(&Request::Clusters(filter(args))).await?;
    let rows = answer!(answer, Response::Clusters(rows) => rows)?;
    show(args.output.output, &rows, || clusters_table(&rows))?;
    Ok(Exit::Done)
}

/// Runs `endpoints`.
pub(crate) async fn endpoints(args: &PlanArgs, client: &Client) -> Result<Exit> {
    let answer = client.call(&Request::Endpoints(filter(args))).await?;
    let rows = answer!(answer, Response::Endpoints(rows) => rows)?;
    show(args.output.output, &rows, || endpoints_table(&rows))?;
    Ok(Exit::Done)
}

fn filter(args: &PlanArgs) -> PlanFilter {
    PlanFilter { host: args.service.clone(), port: args.port }
}

const NOTHING: &str =
    "nothing of that name in the plan of this host; `meshctl service list` shows what there is";

/// Routes in the order in which they are tried, grouped by host and port.
fn routes_table(rows: &[RouteView]) -> String {
    if rows.is_empty() {
        return format!("{NOTHING}\n");
    }
    let mut text = String::new();
    let mut group = None;
    for row in rows {
        let this = (row.gateway.as_str(), row.host.as_str(), row.port);
        if group != Some(this) {
            if group.is_some() {
                text.push('\n');
            }
            let at = if row.gateway.is_empty() { String::new() } else { format!("  at {}", row.gateway) };
            let _ = writeln!(text, "{}:{}{}", row.host, row.port, paint(Tone::Dim, &at));
            group = Some(this);
        }
        let name = if row.name.is_empty() { String::new() } else { format!(" {}", row.name) };
        let _ = writeln!(text, "  {}{name}  when {}", row.index, row.when);
        let _ = writeln!(text, "     then {}", row.then);
        for with in &row.with {
            let _ = writeln!(text, "     with {with}");
        }
        let _ = writeln!(text, "     {}", paint(Tone::Dim, &format!("by {}", row.by)));
    }
    text
}

fn clusters_table(rows: &[ClusterView]) -> String {
    let mut columns = Columns::new(["CLUSTER", "BALANCER", "USABLE", "LIMITS", "BY"]).numbers(&[2]);
    for row in rows {
        let tone = match (row.usable, row.endpoints) {
            (0, _) => Tone::Bad,
            (usable, all) if usable < all => Tone::Warn,
            _ => Tone::Plain,
        };
        columns.toned([
            (row.name.clone(), Tone::Plain),
            (row.balancer.clone(), Tone::Plain),
            (format!("{}/{}", row.usable, row.endpoints), tone),
            (row.limits.join(", "), Tone::Plain),
            (row.by.join(", "), Tone::Dim),
        ]);
    }
    let mut text = columns.render(NOTHING);
    for row in rows.iter().filter(|row| !row.routes.is_empty()) {
        let _ = writeln!(text, "\n{} is where these routes lead", row.name);
        for route in &row.routes {
            let _ = writeln!(text, "  {}", paint(Tone::Dim, route));
        }
    }
    text
}

fn endpoints_table(rows: &[EndpointView]) -> String {
    let mut columns = Columns::new([
        "CLUSTER",
        "ENDPOINT",
        "ADDRESS",
        "VIA",
        "WEIGHT",
        "STATE",
        "CHOICE",
        "IN FLIGHT",
        "REQUESTS",
    ])
    .numbers(&[4, 7, 8]);
    for row in rows {
        let tone = if row.state == "healthy" { Tone::Good } else { Tone::Warn };
        columns.toned([
            (row.cluster.clone(), Tone::Plain),
            (row.endpoint.clone(), Tone::Plain),
            (row.address.clone(), Tone::Plain),
            (row.via.clone(), Tone::Plain),
            (row.weight.to_string(), Tone::Plain),
            (row.state.clone(), tone),
            (row.chosen(), Tone::Plain),
            (row.in_flight.to_string(), Tone::Plain),
            (row.requests.to_string(), Tone::Plain),
        ]);
    }
    columns.render(NOTHING)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_read_as_sentences_in_the_order_they_are_tried() {
        let row = |index, when: &str, then: &str| RouteView {
            host: "reviews.default.svc.cluster.local".into(),
            port: 9080,
            index,
            name: String::new(),
            when: when.into(),
            then: then.into(),
            with: vec!["timeout 2s".into()],
            by: format!("VirtualService default/reviews http[{index}]"),
            gateway: String::new(),
        };
        let rows = [row(0, "header end-user is jason", "v2"), row(1, "always", "v1 90 %, v2 10 %")];

        let text = anstream::adapter::strip_str(&routes_table(&rows)).to_string();

        assert_eq!(
            text,
            "\
reviews.default.svc.cluster.local:9080
  0  when header end-user is jason
     then v2
     with timeout 2s
     by VirtualService default/reviews http[0]
  1  when always
     then v1 90 %, v2 10 %
     with timeout 2s
     by VirtualService default/reviews http[1]
"
        );
    }

    #[test]
    fn an_empty_plan_says_where_to_look() {
        assert!(clusters_table(&[]).contains("meshctl service list"));
    }
}

//! `apply`, `delete`, `diff`, `rollback`: changes and their waiting.

use std::collections::BTreeMap;

use mesh_proto::api::{ApiError, Applied, ErrorCode, Outcome, Request, Response};
use mesh_proto::command::{Precondition, Revision};
use mesh_proto::finding::Finding;
use mesh_proto::watch::Stored;

use crate::server::{Server, no};

const RULE: &str = "\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: reviews
spec:
  host: reviews
";

const SPLIT: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
  namespace: default
spec:
  hosts: [reviews]
  http:
  - route:
    - destination: {host: reviews, subset: v1}
      weight: 90
    - destination: {host: reviews, subset: v2}
      weight: 10
";

fn resources(texts: &[(&str, u64)]) -> Response {
    let items = texts
        .iter()
        .map(|(text, changed)| {
            let (documents, findings) = mesh_proto::yaml::read("a.yaml", text);
            assert!(findings.is_empty(), "{findings:?}");
            Stored { object: documents[0].object.clone(), created: Revision(1), changed: Revision(*changed) }
        })
        .collect();
    Response::Resources { revision: Revision(40), items }
}

fn applied(request: &Request, outcome: Outcome) -> Response {
    let Request::Apply(apply) = request else { panic!("not an apply: {request:?}") };
    Response::Applied(Applied {
        revision: Revision(42),
        results: apply.batch.changes.iter().map(|change| (change.key.clone(), outcome)).collect(),
        findings: Vec::new(),
    })
}

fn waited(behind: &[(&str, u64)]) -> Response {
    Response::Waited {
        live: vec!["vm1".into(), "vm2".into()],
        behind: behind
            .iter()
            .map(|(host, runs)| ((*host).to_owned(), Revision(*runs)))
            .collect::<BTreeMap<_, _>>(),
        problems: Vec::new(),
    }
}

/// A mesh that takes everything.
#[expect(clippy::unnecessary_wraps, reason = "the form in which a server answers")]
fn willing(request: &Request) -> Result<Response, ApiError> {
    Ok(match request {
        Request::Get(_) => resources(&[]),
        Request::Apply(_) => applied(request, Outcome::Created),
        Request::Wait { .. } => waited(&[]),
        Request::Preview(_) => Response::Differences(Vec::new()),
        other => panic!("unexpected {other:?}"),
    })
}

#[test]
fn apply_sends_one_batch_and_tells_when_it_is_live() {
    let server = Server::start(|request, _| willing(request));
    server.file("rules.yaml", &format!("{RULE}---\n{SPLIT}"));

    let ran = server.run(&["apply", "-f", "rules.yaml"]);

    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let mut lines = ran.out.lines();
    assert_eq!(lines.next(), Some("destinationrule default/reviews created"));
    assert_eq!(lines.next(), Some("virtualservice default/reviews created"));
    let last = lines.next().expect("a third line");
    assert!(last.starts_with("revision 42 live on 2 of 2 hosts (") && last.ends_with(" ms)"), "{last}");
    let requests = server.requests();
    // A few objects are asked for one by one: a mesh may have thousands.
    let [Request::Get(_), Request::Get(_), Request::Apply(apply), Request::Wait { .. }] = &*requests else {
        panic!("{requests:?}")
    };
    assert_eq!(apply.batch.reason, "apply rules.yaml");
    assert!(apply.batch.changes.iter().all(|change| change.expect == Precondition::Absent));
}

#[test]
fn every_finding_is_told_in_order_and_nothing_is_sent() {
    let server = Server::start(|request, _| willing(request));
    server.file("b.yaml", &RULE.replace("host:", "hots:"));
    server.file("a.yaml", &format!("{RULE}  subsets: 3\n---\n{}", SPLIT.replace("weight: 90", "weight: -1")));

    let ran = server.run(&["apply", "b.yaml", "a.yaml"]);

    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert_eq!(server.requests(), []);
    let places: Vec<_> = ran.err.lines().map(|line| line.split(": ").next().unwrap_or_default()).collect();
    assert!(places.len() == 5, "{}", ran.err);
    assert_eq!(places[..2], ["b.yaml:5:1", "b.yaml:6:3"], "{}", ran.err);
    assert!(ran.err.contains("did you mean \"host\"?"), "{}", ran.err);
    assert!(ran.err.contains("a.yaml:7:"), "{}", ran.err);
    let last = ran.err.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("error: ") && last.ends_with("errors in 2 files; nothing was changed"),
        "{last}"
    );
}

#[test]
fn standard_input_is_a_file() {
    let server = Server::start(|request, _| willing(request));

    let ran = server.run_with_input(&["apply", "-", "-n", "shop", "--no-wait"], RULE);

    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.out.starts_with("destinationrule shop/reviews created\nrevision 42 kept by a majority ("),
        "{}",
        ran.out
    );
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn hosts_behind_make_exit_code_4() {
    let server = Server::start(|request, _| match request {
        Request::Wait { timeout_ms, .. } => {
            assert_eq!(*timeout_ms, 5_000);
            Ok(waited(&[("vm3", 40)]))
        }
        other => willing(other),
    });
    server.file("rules.yaml", RULE);

    let ran = server.run(&["apply", "rules.yaml", "--timeout", "5s"]);

    assert_eq!(ran.code, 4);
    assert!(ran.err.contains("revision 42 live on 2 of 3 hosts after "), "{}", ran.err);
    assert!(ran.err.contains("behind: vm3 (runs 40)"), "{}", ran.err);
}

#[test]
fn a_lost_race_is_run_once_more_from_a_fresh_look() {
    let server = Server::start(|request, before| match request {
        Request::Get(_) => Ok(resources(&[(SPLIT, if before == 0 { 7 } else { 8 })])),
        Request::Apply(_) if before < 2 => no(ErrorCode::Conflict, "changed at revision 8"),
        Request::Apply(_) => Ok(applied(request, Outcome::Configured)),
        other => willing(other),
    });
    server.file("rules.yaml", SPLIT);

    let ran = server.run(&["apply", "rules.yaml"]);

    assert_eq!(ran.code, 0, "{}", ran.err);
    let requests = server.requests();
    let Request::Apply(second) = &requests[3] else { panic!("{requests:?}") };
    assert_eq!(second.batch.changes[0].expect, Precondition::At(Revision(8)));
}

#[test]
fn a_document_that_names_its_version_is_not_tried_again() {
    let server = Server::start(|request, _| match request {
        Request::Get(_) => Ok(resources(&[(SPLIT, 8)])),
        _ => no(ErrorCode::Conflict, "VirtualService default/reviews was changed at revision 8, not 7"),
    });
    server.file(
        "rules.yaml",
        &SPLIT.replace("  namespace: default", "  namespace: default\n  resourceVersion: '7'"),
    );

    let ran = server.run(&["apply", "rules.yaml"]);

    assert_eq!(ran.code, 3);
    assert_eq!(ran.err, "error: VirtualService default/reviews was changed at revision 8, not 7\n");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn an_unknown_outcome_is_asked_again_under_the_same_key() {
    let server = Server::start(|request, before| match request {
        Request::Apply(_) if before == 1 => no(ErrorCode::Unknown, "the leader changed"),
        other => willing(other),
    });
    server.file("rules.yaml", RULE);

    let ran = server.run(&["apply", "rules.yaml"]);

    assert_eq!(ran.code, 0, "{}", ran.err);
    let requests = server.requests();
    let (Request::Apply(first), Request::Apply(second)) = (&requests[1], &requests[2]) else {
        panic!("{requests:?}")
    };
    assert_eq!(first.key, second.key);
    assert!(first.key.len() >= 32);
}

#[test]
fn warnings_of_the_mesh_are_told_with_the_place_in_the_file() {
    let server = Server::start(|request, _| match request {
        Request::Apply(_) => {
            let Response::Applied(mut applied) = applied(request, Outcome::Created) else { unreachable!() };
            applied.findings = vec![
                Finding::warning(
                    "missing-subset",
                    "spec.http[0].route[1].destination.subset",
                    "no subset v2",
                )
                .on(&"VirtualService default/reviews"),
            ];
            Ok(Response::Applied(applied))
        }
        other => willing(other),
    });
    server.file("rules.yaml", SPLIT);

    let ran = server.run(&["apply", "rules.yaml"]);

    assert_eq!(ran.code, 0);
    assert_eq!(
        ran.err,
        "rules.yaml:12:44: warning: VirtualService default/reviews: spec.http[0].route[1].destination.subset: no subset v2\n"
    );
}

#[test]
fn a_dry_run_at_the_mesh_changes_and_waits_for_nothing() {
    let server = Server::start(|request, _| willing(request));
    server.file("rules.yaml", RULE);

    let ran = server.run(&["apply", "rules.yaml", "--dry-run"]);

    assert_eq!((ran.code, ran.out.as_str()), (0, "destinationrule default/reviews created (dry run)\n"));
    assert!(matches!(&server.requests()[1], Request::Apply(apply) if apply.dry_run));
    assert!(matches!(&server.requests()[2], Request::Preview(_)), "what it would mean is asked");
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn a_dry_run_at_the_client_sends_nothing() {
    let server = Server::start(|request, _| willing(request));
    server.file("rules.yaml", RULE);

    let ran = server.run(&["apply", "rules.yaml", "--dry-run=client"]);

    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "destinationrule default/reviews valid (dry run, not sent)\n")
    );
    assert_eq!(server.requests(), []);
}

#[test]
fn prune_tells_what_it_deletes() {
    let server = Server::start(|request, _| match request {
        Request::Get(_) => Ok(resources(&[(SPLIT, 8)])),
        other => willing(other),
    });
    server.file("rules.yaml", RULE);

    let ran = server.run(&["apply", "rules.yaml", "--prune", "--no-wait"]);

    assert_eq!(ran.code, 0);
    assert_eq!(ran.err, "pruning virtualservice default/reviews: it is not in the files\n");
}

#[test]
fn no_quorum_is_exit_code_4_and_the_servers_words() {
    let server =
        Server::start(|_, _| no(ErrorCode::NoQuorum, "no quorum: 1 of 3 voters answers; missing: vm2, vm3"));
    server.file("rules.yaml", RULE);

    let ran = server.run(&["apply", "rules.yaml"]);

    assert_eq!(ran.code, 4);
    assert_eq!(ran.err, "error: no quorum: 1 of 3 voters answers; missing: vm2, vm3\n");
}

#[test]
fn diff_tells_weights_and_makes_exit_code_1() {
    let server = Server::start(|_, _| Ok(resources(&[(SPLIT, 8)])));
    server.file("same.yaml", SPLIT);
    server.file("other.yaml", &SPLIT.replace("90", "80").replace("10", "20"));

    let same = server.run(&["diff", "-f", "same.yaml"]);
    let other = server.run(&["diff", "-f", "other.yaml"]);

    assert_eq!((same.code, same.out.as_str()), (0, "nothing would change\n"));
    assert_eq!(other.code, 1);
    assert!(
        other.out.starts_with("change virtualservice default/reviews\n  reviews: v1 90 -> 80, v2 10 -> 20\n"),
        "{}",
        other.out
    );
}

#[test]
fn delete_takes_short_kinds_and_files() {
    let server = Server::start(|request, _| match request {
        Request::Apply(_) => Ok(applied(request, Outcome::Deleted)),
        other => willing(other),
    });
    server.file("rules.yaml", RULE);

    let named = server.run(&["delete", "vs", "reviews", "--no-wait"]);
    let filed = server.run(&["delete", "-f", "rules.yaml", "--no-wait"]);

    assert!(named.out.starts_with("virtualservice default/reviews deleted\n"), "{}{}", named.out, named.err);
    assert!(filed.out.starts_with("destinationrule default/reviews deleted\n"), "{}{}", filed.out, filed.err);
    assert!(matches!(&server.requests()[0], Request::Apply(apply)
        if apply.batch.changes[0].expect == Precondition::Present && apply.batch.changes[0].object.is_none()));
}

#[test]
fn rollback_asks_for_the_revision_and_waits() {
    let server = Server::start(|request, _| match request {
        Request::Rollback { to, dry_run, .. } => {
            assert_eq!((*to, *dry_run), (Revision(12), false));
            Ok(Response::Applied(Applied {
                revision: Revision(42),
                results: Vec::new(),
                findings: Vec::new(),
            }))
        }
        other => willing(other),
    });

    let ran = server.run(&["rollback", "12"]);

    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.out.starts_with("the rules are as they were at revision 12 already\nrevision 42 live"),
        "{}",
        ran.out
    );
}

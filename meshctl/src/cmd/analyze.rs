//! `meshctl analyze`: what is strange about rules beside each other and beside the services there are.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use mesh_core::{analyze, sketch};
use mesh_proto::api::{Request, Response};
use mesh_proto::command::Batch;
use mesh_proto::finding::{Finding, Severity};

use crate::cli::{AnalyzeArgs, Grave};
use crate::client::{Client, answer};
use crate::exit::{Exit, Result};
use crate::offline::Files;
use crate::output::{Format, Tone, json_items, paint, say, tell, yaml_items};
use crate::rules::{Rule, Rules, number};
use crate::words::count;

/// Runs `analyze`.
pub(crate) async fn run(args: &AnalyzeArgs, client: impl Fn() -> Result<Client>) -> Result<Exit> {
    let mut files = Files::read(&args.files, &args.namespace)?;
    let live = args.live || args.files.is_empty();
    let mut findings = if live {
        let batch = sketch::batch(files.rules.all.iter().map(|rule| rule.object.clone()).collect());
        of_mesh(&client()?, batch).await?
    } else {
        let world = files.world()?;
        if files.assumed && args.output.output == Format::Table {
            let note =
                "no services were given: those that the rules name are assumed (name a *.toml of services)";
            tell(&paint(Tone::Dim, &format!("note: {note}")));
        }
        analyze::thorough(&world)
    };
    place(&mut findings, &files.rules);
    findings.extend(std::mem::take(&mut files.rules.findings));
    findings.sort_by(|one, other| key(one).cmp(&key(other)));
    print(args, &findings, files.rules.all.len(), live)?;
    let least = match args.fail_on {
        Grave::Error => Severity::Error,
        Grave::Warning => Severity::Warning,
        Grave::Info => Severity::Info,
    };
    let bad = findings.iter().any(|finding| finding.severity >= least);
    Ok(if bad { Exit::Refused } else { Exit::Done })
}

async fn of_mesh(client: &Client, batch: Batch) -> Result<Vec<Finding>> {
    let answer = client.call(&Request::Analyze(batch)).await?;
    answer!(answer, Response::Findings(findings) => findings)
}

/// Gives findings about objects of the files their place there.
fn place(findings: &mut [Finding], rules: &Rules) {
    let by_name: BTreeMap<String, &Rule> =
        rules.all.iter().map(|rule| (rule.object.key().to_string(), rule)).collect();
    for finding in findings.iter_mut() {
        if let Some(rule) = finding.object.as_ref().and_then(|object| by_name.get(object)) {
            rule.place(finding);
        }
    }
}

type Key<'a> =
    (Option<&'a str>, Option<u32>, Option<u32>, Option<&'a str>, std::cmp::Reverse<Severity>, &'a str);

fn key(finding: &Finding) -> Key<'_> {
    (
        finding.file.as_deref(),
        finding.line,
        finding.column,
        finding.object.as_deref(),
        std::cmp::Reverse(finding.severity),
        &finding.path,
    )
}

fn print(args: &AnalyzeArgs, findings: &[Finding], objects: usize, live: bool) -> Result {
    match args.output.output {
        Format::Json => return say(&json_items(findings)?),
        Format::Yaml => return say(&yaml_items(findings)?),
        Format::Table => {}
    }
    let mut text = String::new();
    for finding in findings {
        let (word, tone) = match finding.severity {
            Severity::Error => ("error", Tone::Bad),
            Severity::Warning => ("warning", Tone::Warn),
            Severity::Info => ("info", Tone::Dim),
        };
        let plain = Finding { severity: Severity::Error, ..finding.clone() };
        let _ = writeln!(text, "{} [{}] {plain}", paint(tone, word), finding.code);
    }
    let of = if live && objects == 0 { "the rules of the mesh".to_owned() } else { count(objects, "object") };
    if findings.is_empty() {
        let _ = writeln!(text, "{of}: nothing strange");
    } else {
        let told = [(Severity::Error, "error"), (Severity::Warning, "warning"), (Severity::Info, "note")];
        let told: Vec<String> = told
            .iter()
            .map(|(severity, one)| (number(findings, *severity), one))
            .filter(|(found, _)| *found > 0)
            .map(|(found, one)| count(found, one))
            .collect();
        let _ = writeln!(text, "{of}: {}", told.join(", "));
    }
    say(&text)
}

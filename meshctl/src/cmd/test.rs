//! `meshctl test`: cases in files, decided by the functions that serve traffic, without a mesh.

mod cases;
mod judge;
mod junit;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use mesh_core::compile::compile;
use mesh_core::endpoint::Moment;
use mesh_core::plan::Plan;
use mesh_core::world::World;
use mesh_core::{explain, sketch};
use mesh_proto::explain::Explanation;
use mesh_proto::resource::Spec;
use serde::Serialize;

use crate::cli::TestArgs;
use crate::exit::{Exit, Failure, Result};
use crate::offline::Files;
use crate::output::{Format, Tone, json_items, paint, say, tell, yaml_items};
use crate::words::count;
use cases::{Case, File};

/// What became of a case.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verdict {
    /// The file of cases.
    pub(crate) file: String,
    /// Its name, else what it asks.
    pub(crate) name: String,
    /// Whether all is as expected.
    pub(crate) passed: bool,
    /// What is not, a line each.
    pub(crate) failures: Vec<String>,
    /// The rule that applied, with its place.
    pub(crate) rule: String,
}

/// A route, and whether a case reached it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Route {
    object: String,
    path: String,
    place: String,
}

/// Runs `test`.
pub(crate) fn run(args: &TestArgs) -> Result<Exit> {
    let mut files = Vec::new();
    for path in &args.files {
        gather(path, &mut files)?;
    }
    if files.is_empty() {
        return Err(Failure::new(Exit::Unreadable, "no *.test.yaml in these folders"));
    }
    let (mut verdicts, mut all, mut reached) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for path in &files {
        let suite = Suite::read(path)?;
        all.extend(suite.routes());
        for case in &suite.cases {
            verdicts.push(suite.decide(case, &mut reached)?);
        }
    }
    let missed: Vec<&Route> =
        all.iter().filter(|route| !reached.contains(&(route.object.clone(), route.path.clone()))).collect();
    if let Some(path) = &args.junit {
        std::fs::write(path, junit::report(&verdicts)).map_err(|error| Failure::unreadable(path, &error))?;
    }
    match args.output.output {
        Format::Table => say(&page(&verdicts, args.coverage.then_some((all.len(), missed.as_slice()))))?,
        Format::Json => say(&json_items(&verdicts)?)?,
        Format::Yaml => say(&yaml_items(&verdicts)?)?,
    }
    if args.coverage && args.output.output != Format::Table {
        for route in &missed {
            tell(&format!("no case reaches {} {} ({})", route.object, route.path, route.place));
        }
    }
    let failed = verdicts.iter().any(|verdict| !verdict.passed);
    Ok(if failed { Exit::Refused } else { Exit::Done })
}

/// Takes a file as it is named, and of a folder those that hold cases.
fn gather(path: &Path, files: &mut Vec<PathBuf>) -> Result {
    const MAX_FILES: usize = 10_000;
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let unreadable = |error: std::io::Error| Failure::unreadable(path, &error);
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        entries.push(entry.map_err(unreadable)?.path());
    }
    entries.sort();
    for entry in entries {
        // A folder may be a link to one above it.
        if files.len() < MAX_FILES
            && (entry.is_dir() && !entry.is_symlink() || crate::rules::is_cases(&entry))
        {
            gather(&entry, files)?;
        }
    }
    Ok(())
}

/// The cases of a file, and the mesh they are about.
struct Suite {
    name: String,
    files: Files,
    world: World,
    plan: Plan,
    cases: Vec<Case>,
}

impl Suite {
    fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| Failure::unreadable(path, &error))?;
        let file: File = serde_saphyr::from_str(&text)
            .map_err(|error| Failure::refused(placed(&name, first_line(&error.to_string()))))?;
        let home = path.parent().unwrap_or(Path::new("."));
        let mut files = Files::read(&file.paths(home), &file.namespace)?;
        files.rules.judge(false)?;
        if let Some(instances) = file.instances().map_err(|why| Failure::refused(format!("{name}: {why}")))? {
            files.add_services("services", instances);
        }
        files.assume_destinations = true;
        let world = files.world()?;
        let plan = compile(&world, &sketch::node(vec![sketch::nobody()]), None);
        if file.cases.is_empty() {
            return Err(Failure::refused(format!("{name}: it has no cases")));
        }
        Ok(Self { name, files, world, plan, cases: file.cases })
    }

    /// Every HTTP route of the rules but those that only delegate.
    fn routes(&self) -> Vec<Route> {
        let mut routes = Vec::new();
        for rule in &self.files.rules.all {
            let Spec::VirtualService(spec) = &rule.object.spec else { continue };
            let own = spec.http.iter().enumerate().filter(|(_, http)| http.delegate.is_none());
            routes.extend(own.map(|(index, _)| Route {
                object: rule.object.key().to_string(),
                path: format!("http[{index}]"),
                place: rule.at(&format!("spec.http[{index}]")),
            }));
        }
        routes
    }

    fn decide(&self, case: &Case, reached: &mut BTreeSet<(String, String)>) -> Result<Verdict> {
        let name = case.name();
        let wrong = |why: String| Failure::refused(format!("{}: case {name:?}: {why}", self.name));
        let ask = case.ask().map_err(wrong)?;
        let mut told = explain::explain(&self.world, &self.plan, &ask, Moment(0)).map_err(wrong)?;
        super::explain::put_places(&mut told, &self.files.rules);
        if let Some(rule) = &told.rule {
            reached.insert((rule.object.clone(), rule.path.clone()));
        }
        let failures = judge::compare(&case.then, &told);
        Ok(Verdict {
            file: self.name.clone(),
            passed: failures.is_empty(),
            failures,
            rule: rule(&told),
            name,
        })
    }
}

fn rule(told: &Explanation) -> String {
    match &told.rule {
        None => "no rule".into(),
        Some(rule) if rule.object.is_empty() => "the service's own default".into(),
        Some(rule) => {
            let place = rule.place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default();
            format!("{} {}{place}", rule.object, rule.path)
        }
    }
}

fn page(verdicts: &[Verdict], coverage: Option<(usize, &[&Route])>) -> String {
    let mut text = String::new();
    let mut file = "";
    for verdict in verdicts {
        if verdict.file != file {
            let _ = writeln!(text, "{}", verdict.file);
            file = &verdict.file;
        }
        let word = if verdict.passed { paint(Tone::Good, "ok  ") } else { paint(Tone::Bad, "FAIL") };
        let _ = writeln!(text, "  {word}  {}", verdict.name);
        for failure in &verdict.failures {
            let _ = writeln!(text, "        {failure}");
        }
        if !verdict.passed {
            let _ = writeln!(text, "        {}", paint(Tone::Dim, &format!("by {}", verdict.rule)));
        }
    }
    let failed = verdicts.iter().filter(|verdict| !verdict.passed).count();
    let told = if failed == 0 { "all as expected".into() } else { format!("{failed} failed") };
    let _ = writeln!(text, "{}: {told}", count(verdicts.len(), "case"));
    if let Some((all, missed)) = coverage {
        let _ = writeln!(text, "coverage: {} of {} reached", all - missed.len(), count(all, "route"));
        for route in missed {
            let _ = writeln!(
                text,
                "  no case reaches {} {}  {}",
                route.object,
                route.path,
                paint(Tone::Dim, &route.place)
            );
        }
    }
    text
}

/// Says where a file is wrong as all of meshctl does, `file:line:column: why`.
fn placed(name: &str, error: &str) -> String {
    let error = error.strip_prefix("error: ").unwrap_or(error);
    let parts = || {
        let (line, rest) = error.strip_prefix("line ")?.split_once(" column ")?;
        let (column, why) = rest.split_once(": ")?;
        Some(format!("{name}:{line}:{column}: {why}"))
    };
    parts().unwrap_or_else(|| format!("{name}: {error}"))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or(text)
}

//! Reads rules from files, folders and standard input, and says all that is wrong with them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Read;
use std::path::{Path, PathBuf};

use mesh_proto::finding::{Finding, Severity};
use mesh_proto::resource::{Object, ObjectKey};
use mesh_proto::yaml::{self, Document};

use crate::exit::{Exit, Failure, Result, plain};
use crate::output::{Tone, paint, tell};
use crate::progress::Progress;
use crate::words::count;

/// The most bytes read of a file: one more than fits, so that `yaml` can say that it is too large.
const MAX_FILE: u64 = yaml::MAX_FILE_BYTES as u64 + 1;
/// The most folders within folders.
const MAX_DEPTH: usize = 16;

/// An object and the document it is from.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// The object, its namespace filled in.
    pub(crate) object: Object,
    document: Document,
}

impl Rule {
    /// Gives a finding about the object, made by the mesh, its place in the file.
    pub(crate) fn place(&self, finding: &mut Finding) {
        let object = finding.object.take();
        *finding = self.document.place(finding.clone());
        finding.object = object.or_else(|| Some(self.object.key().to_string()));
    }

    /// Where a field is written, `file:line:column`.
    pub(crate) fn at(&self, path: &str) -> String {
        let at = self.document.at(path);
        format!("{}:{}:{}", self.document.file, at.line, at.column)
    }

    /// The finding for an object that an earlier document holds already.
    fn twice(&self, first: &Self) -> Finding {
        let at = first.document.at("metadata.name");
        let message = format!("the same object is at {}:{}:{}", first.document.file, at.line, at.column);
        let mut finding =
            Finding::error("duplicate-object", "metadata.name", message).with_hint("keep one of the two");
        self.place(&mut finding);
        finding
    }
}

/// All that the files say.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// The objects, in the order of the files.
    pub(crate) all: Vec<Rule>,
    /// What is to be said about them, in order of file, line, column.
    pub(crate) findings: Vec<Finding>,
    /// Number of files read.
    pub(crate) files: usize,
    /// Where in `all` the first object of a key is.
    by_key: BTreeMap<ObjectKey, usize>,
}

impl Rules {
    /// Reads and checks what the user named.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or a folder without rules. What is wrong *in* files is in `findings`.
    pub(crate) fn read(paths: &[PathBuf], namespace: &str) -> Result<Self> {
        let mut read = Self::default();
        let sources = sources(paths)?;
        // By bytes: one file may have twenty thousand documents.
        let mut progress = Progress::new(sources.iter().map(Source::bytes).sum());
        for source in sources {
            let text = source.text()?;
            read.files += 1;
            let name = source.name();
            progress.begin(source.bytes(), &name);
            read.add(&name, &text, namespace);
            progress.add(source.bytes(), &name);
        }
        read.sort();
        Ok(read)
    }

    /// Reads and checks one text.
    pub(crate) fn add(&mut self, file: &str, text: &str, namespace: &str) {
        let (documents, findings) = yaml::inspect(file, text);
        self.findings.extend(findings);
        for document in documents {
            let mut object = document.object.clone();
            if !document.namespace_given {
                object.metadata.namespace = namespace.into();
            }
            let rule = Rule { object, document };
            match self.by_key.entry(rule.object.key()) {
                Entry::Occupied(first) => self.findings.push(rule.twice(&self.all[*first.get()])),
                Entry::Vacant(free) => drop(free.insert(self.all.len())),
            }
            self.all.push(rule);
        }
    }

    fn sort(&mut self) {
        // Files stay in the order in which they were named.
        let mut order = BTreeMap::new();
        for finding in &self.findings {
            let next = order.len();
            order.entry(finding.file.clone()).or_insert(next);
        }
        self.findings.sort_by_key(|finding| {
            (
                order.get(&finding.file).copied(),
                finding.line,
                finding.column,
                std::cmp::Reverse(finding.severity),
            )
        });
    }

    /// Tells every finding; refuses when one is an error, or, if `strict`, a warning.
    pub(crate) fn judge(&self, strict: bool) -> Result {
        tell_findings(&self.findings);
        let errors = number(&self.findings, Severity::Error);
        let warnings = number(&self.findings, Severity::Warning);
        if errors > 0 || (strict && warnings > 0) {
            return Err(Failure::refused(format!(
                "{} in {}",
                totals(errors, warnings),
                count(self.files, "file")
            )));
        }
        if self.all.is_empty() {
            return Err(Failure::refused(format!("no object in {}", count(self.files, "file"))));
        }
        Ok(())
    }
}

/// Tells findings on standard error, one a line.
pub(crate) fn tell_findings(findings: &[Finding]) {
    for finding in findings {
        let tone = match finding.severity {
            Severity::Error => Tone::Bad,
            Severity::Warning => Tone::Warn,
            Severity::Info => Tone::Dim,
        };
        tell(&painted(&finding.to_string(), tone));
    }
}

/// Says how many errors and warnings there are.
pub(crate) fn totals(errors: usize, warnings: usize) -> String {
    match (errors, warnings) {
        (errors, 0) => count(errors, "error"),
        (0, warnings) => count(warnings, "warning"),
        (errors, warnings) => format!("{}, {}", count(errors, "error"), count(warnings, "warning")),
    }
}

/// Number of findings of one severity.
pub(crate) fn number(findings: &[Finding], severity: Severity) -> usize {
    findings.iter().filter(|finding| finding.severity == severity).count()
}

/// Colours the place of a finding, `file:line:column:`; what follows stays readable.
fn painted(line: &str, tone: Tone) -> String {
    match line.split_once(": ") {
        Some((place, rest)) => format!("{} {rest}", paint(tone, &format!("{place}:"))),
        None => line.to_owned(),
    }
}

/// Where rules come from.
enum Source {
    Stdin,
    File(PathBuf),
}

impl Source {
    fn name(&self) -> String {
        match self {
            Self::Stdin => "<stdin>".into(),
            Self::File(path) => path.display().to_string(),
        }
    }

    /// How much of it there is to read, for the progress bar.
    fn bytes(&self) -> u64 {
        match self {
            Self::Stdin => 1,
            Self::File(path) => std::fs::metadata(path).map_or(1, |facts| facts.len().max(1)),
        }
    }

    fn text(&self) -> Result<String> {
        let fail = |error: &std::io::Error| {
            Failure::new(Exit::Unreadable, format!("{}: {}", self.name(), plain(error)))
        };
        let mut bytes = Vec::new();
        match self {
            Self::Stdin => std::io::stdin().take(MAX_FILE).read_to_end(&mut bytes),
            Self::File(path) => {
                std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes))
            }
        }
        .map_err(|error| fail(&error))?;
        let is_utf16 = bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]);
        let why = if is_utf16 { "is UTF-16 text; save it as UTF-8" } else { "not UTF-8 text" };
        String::from_utf8(bytes).map_err(|_| fail(&std::io::Error::other(why)))
    }
}

fn sources(paths: &[PathBuf]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            sources.push(Source::Stdin);
        } else if path.is_dir() {
            let before = sources.len();
            folder(path, 0, &mut sources)?;
            if sources.len() == before {
                return Err(Failure::new(
                    Exit::Unreadable,
                    format!("{}: no *.yaml, *.yml or *.json in this folder", path.display()),
                ));
            }
        } else {
            sources.push(Source::File(path.clone()));
        }
    }
    Ok(sources)
}

/// Whether a file of a folder is taken for rules, by its name. Files of cases (`meshctl test`) are not.
pub(crate) fn is_rules(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    matches!(extension, "yaml" | "yml" | "json") && !is_cases(path)
}

/// Whether a file holds cases of `meshctl test`, by its name.
pub(crate) fn is_cases(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.ends_with(".test.yaml") || name.ends_with(".test.yml")
}

fn folder(path: &Path, depth: usize, sources: &mut Vec<Source>) -> Result {
    if depth > MAX_DEPTH {
        return Err(Failure::new(
            Exit::Unreadable,
            format!("{}: more than {MAX_DEPTH} folders deep", path.display()),
        ));
    }
    let unreadable = |error: std::io::Error| Failure::unreadable(path, &error);
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        entries.push(entry.map_err(unreadable)?.path());
    }
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            folder(&entry, depth + 1, sources)?;
        } else if is_rules(&entry) {
            sources.push(Source::File(entry));
        }
    }
    Ok(())
}

/// Returns the keys of the rules.
pub(crate) fn keys(rules: &[Rule]) -> Vec<ObjectKey> {
    rules.iter().map(|rule| rule.object.key()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: reviews
spec:
  host: reviews
";

    #[test]
    fn the_same_object_twice_is_an_error_that_names_both_places() {
        let mut rules = Rules::default();
        rules.add("a.yaml", RULE, "default");
        rules.add("b.yaml", RULE, "default");

        let texts: Vec<_> = rules.findings.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "b.yaml:4:9: DestinationRule default/reviews: metadata.name: the same object is at a.yaml:4:9; \
              keep one of the two"
            ]
        );
        assert!(rules.judge(false).is_err());
    }

    #[test]
    fn a_namespace_that_is_not_given_is_the_command_lines() {
        let mut rules = Rules::default();
        rules.add("a.yaml", RULE, "shop");

        assert_eq!(rules.all[0].object.metadata.namespace.as_ref(), "shop");
    }

    #[test]
    fn folders_are_read_in_order_of_name_and_only_rules_in_them() {
        let home = tempfile::tempdir().expect("folder");
        std::fs::create_dir(home.path().join("b")).expect("made");
        for (name, text) in [("b/2.yml", RULE), ("a.yaml", RULE), ("notes.txt", "no rules")] {
            std::fs::write(home.path().join(name), text).expect("written");
        }

        let read = Rules::read(&[home.path().to_owned()], "default").expect("read");

        assert_eq!(read.files, 2);
        assert!(read.findings[0].file.as_deref().is_some_and(|file| file.ends_with("b/2.yml")));
    }

    #[test]
    fn a_missing_file_is_unreadable_and_nothing_else_is_said() {
        let failure = Rules::read(&[PathBuf::from("/nowhere.yaml")], "default").expect_err("not there");

        assert_eq!(failure.exit, Exit::Unreadable);
        assert_eq!(failure.message, "/nowhere.yaml: no such file or directory");
    }
}

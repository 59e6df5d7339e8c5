//! What of Istio's API works: the table of the README and the whole list of `docs/compatibility.md`, from
//! `mesh_proto::support`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use mesh_proto::resource::Kind;
use mesh_proto::support::{Status, paths};

use crate::keep;

/// A field and those below it.
#[derive(Default)]
struct Field {
    name: &'static str,
    status: Option<Status>,
    below: Vec<Self>,
}

impl Field {
    fn add(&mut self, path: &'static str, status: Status) {
        if path.is_empty() {
            self.status = Some(status);
            return;
        }
        let (name, rest) = path.split_once('.').unwrap_or((path, ""));
        let at = self.below.iter().position(|field| field.name == name).unwrap_or_else(|| {
            self.below.push(Self { name, ..Self::default() });
            self.below.len() - 1
        });
        self.below[at].add(rest, status);
    }

    /// Whether this field, or one below it, does something.
    fn works(&self) -> bool {
        matches!(self.status, Some(Status::Honoured | Status::Only(..))) || self.below.iter().any(Self::works)
    }

    /// The fields below that are refused although their neighbours are honoured, with their paths from here.
    fn gaps(&self, prefix: &str, found: &mut Vec<String>) {
        for field in &self.below {
            let path =
                if prefix.is_empty() { plain(field.name) } else { format!("{prefix}.{}", plain(field.name)) };
            if matches!(field.status, Some(Status::Refused(_))) || !field.works() && field.status.is_none() {
                found.push(format!("`{path}`"));
            } else {
                field.gaps(&path, found);
            }
        }
    }

    fn count(&self, wanted: fn(Status) -> bool) -> usize {
        usize::from(self.status.is_some_and(wanted))
            + self.below.iter().map(|field| field.count(wanted)).sum::<usize>()
    }
}

fn plain(name: &str) -> String {
    name.replace("[]", "").replace("{}", "")
}

/// The fields of a kind as a tree, in order of name.
fn tree(kind: Kind) -> Field {
    let mut all: Vec<_> = paths().filter(|(of, ..)| *of == kind).collect();
    all.sort_by_key(|(_, path, _)| *path);
    let mut root = Field::default();
    for (_, path, status) in all {
        root.add(path, status);
    }
    root
}

/// Messages whose fields are told one by one; all others are told by their name and what is missing.
const OPENED: [&str; 4] = ["http[]", "tls[]", "tcp[]", "trafficPolicy"];

/// Says of a message what works: names, with what is missing in them; opened messages last.
fn told(field: &Field) -> String {
    let is_opened = |child: &&Field| field.name.is_empty() && OPENED.contains(&child.name);
    // `mirror_percent` is Istio's other spelling of `mirrorPercent`.
    let works = || field.below.iter().filter(|child| child.works() && !child.name.contains('_'));
    let plainly: Vec<String> =
        works().filter(|child| !is_opened(child)).map(|child| in_short(field, child)).collect();
    let opened = works().filter(is_opened).map(|child| format!("**{}**: {}", plain(child.name), told(child)));
    std::iter::once(plainly.join(", ")).chain(opened).collect::<Vec<_>>().join("; ")
}

fn in_short(above: &Field, field: &Field) -> String {
    let name = plain(field.name);
    if let Some(Status::Only(values, _)) = field.status {
        return format!("`{name}` (only `{}`)", values.join("`, `"));
    }
    let mut gaps = Vec::new();
    field.gaps("", &mut gaps);
    // The same policy as above, for one port or one subset.
    let repeats = field.name == "portLevelSettings[]" || above.name.is_empty() && field.name == "subsets[]";
    if repeats || gaps.is_empty() {
        format!("`{name}`")
    } else {
        format!("`{name}` (not {})", gaps.join(", "))
    }
}

/// The fields at the top of a kind that are refused as a whole.
fn missing(field: &Field) -> String {
    let refused = |field: &&Field| matches!(field.status, Some(Status::Refused(_)));
    let mut names: Vec<String> =
        field.below.iter().filter(refused).map(|field| format!("`{}`", plain(field.name))).collect();
    for opened in field.below.iter().filter(|field| OPENED.contains(&field.name)) {
        let inside = opened.below.iter().filter(refused);
        names.extend(inside.map(|field| format!("`{}.{}`", plain(opened.name), plain(field.name))));
    }
    if names.is_empty() { "–".into() } else { names.join(", ") }
}

fn is_honoured(status: Status) -> bool {
    status == Status::Honoured
}

fn is_only(status: Status) -> bool {
    matches!(status, Status::Only(..))
}

fn is_refused(status: Status) -> bool {
    matches!(status, Status::Refused(_))
}

fn is_without_effect(status: Status) -> bool {
    matches!(status, Status::WithoutEffect(_))
}

/// The reason for which a kind is refused as a whole.
fn refusal(kind: Kind) -> Option<&'static str> {
    paths().find_map(|(of, path, status)| match status {
        Status::Refused(reason) if of == kind && path.is_empty() => Some(reason),
        _ => None,
    })
}

fn short_table() -> String {
    let mut out = String::from(
        "| kind | honoured | in part | refused | what works | not yet |\n|---|--:|--:|--:|---|---|\n",
    );
    let mut refused: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for kind in Kind::ALL {
        if let Some(reason) = refusal(*kind) {
            refused.entry(reason).or_default().push(format!("`{kind}`"));
            continue;
        }
        let tree = tree(*kind);
        let _ = writeln!(
            out,
            "| `{kind}` | {} | {} | {} | {} | {} |",
            tree.count(is_honoured),
            tree.count(is_only),
            tree.count(is_refused),
            told(&tree),
            missing(&tree)
        );
    }
    out.push_str("\nRead and checked, but refused at `apply` as a whole:\n\n");
    for (reason, kinds) in refused {
        let _ = writeln!(out, "- {}: {}", kinds.join(", "), reason.trim_start_matches("is "));
    }
    out
}

fn whole_list() -> String {
    let mut out = String::new();
    for kind in Kind::ALL {
        let _ = write!(out, "\n### {kind}\n\n");
        if let Some(reason) = refusal(*kind) {
            let _ = writeln!(out, "Refused as a whole: {reason}.");
            continue;
        }
        let tree = tree(*kind);
        let _ = writeln!(
            out,
            "{} fields honoured, {} for some values only, {} refused, {} without effect.\n\n| field | |\n|---|---|",
            tree.count(is_honoured),
            tree.count(is_only),
            tree.count(is_refused),
            tree.count(is_without_effect)
        );
        for (_, path, status) in paths().filter(|(of, ..)| of == kind) {
            let says = match status {
                Status::Honoured => "honoured".to_owned(),
                Status::Only(values, reason) => {
                    let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
                    format!("only {}: {reason}", values.join(", "))
                }
                Status::Refused(reason) => format!("**refused**: {reason}"),
                Status::WithoutEffect(reason) => format!("without effect: {reason}"),
            };
            let _ = writeln!(out, "| `{path}` | {says} |");
        }
    }
    out
}

#[test]
fn the_table_of_the_readme_is_what_meshd_does() {
    keep("README.md", "support", &short_table());
}

#[test]
fn the_list_of_fields_is_what_meshd_does() {
    keep("docs/compatibility.md", "fields", &whole_list());
}

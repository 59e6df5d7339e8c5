//! What of Istio's API works: the table of the README and the whole list of `docs/compatibility.md`, from
//! `mesh_proto::support`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use mesh_proto::resource::Kind;
use mesh_proto::support::{Status, counts, paths};

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
        matches!(self.status, Some(Status::Honoured | Status::Only(..) | Status::InPart(_)))
            || self.below.iter().any(Self::works)
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

/// The reason for which a kind is refused as a whole.
fn refusal(kind: Kind) -> Option<&'static str> {
    paths().find_map(|(of, path, status)| match status {
        Status::Refused(reason) if of == kind && path.is_empty() => Some(reason),
        _ => None,
    })
}

fn short_table() -> String {
    let mut out = String::from(
        "| kind | fields | honoured | in part | refused | what works | not yet |\n|---|--:|--:|--:|--:|---|---|\n",
    );
    let mut refused: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for kind in Kind::ALL {
        if let Some(reason) = refusal(*kind) {
            refused.entry(reason).or_default().push(format!("`{kind}`"));
            continue;
        }
        let tree = tree(*kind);
        let [honoured, partial, refused, without] = counts(*kind);
        let all = honoured + partial + refused + without;
        let _ = writeln!(
            out,
            "| `{kind}` | {all} | {honoured} | {partial} | {refused} | {} | {} |",
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

/// How many field paths of each kind there are, and what becomes of them.
fn count_table() -> String {
    let mut out = String::from(
        "| kind | fields | honoured | partial | refused | no effect |\n|---|--:|--:|--:|--:|--:|\n",
    );
    let mut line = |name: &str, numbers: [usize; 4]| {
        let [honoured, partial, refused, without] = numbers;
        let all: usize = numbers.iter().sum();
        let _ = writeln!(out, "| {name} | {all} | {honoured} | {partial} | {refused} | {without} |");
    };
    for kind in Kind::ALL {
        line(&format!("`{kind}`"), counts(*kind));
    }
    line("all but `MeshConfig`", of_istios_kinds());
    out
}

/// The sum over the kinds that have a schema of Istio's; `MeshConfig` is a file there.
fn of_istios_kinds() -> [usize; 4] {
    let kinds = Kind::ALL.iter().filter(|kind| **kind != Kind::MeshConfig);
    kinds.map(|kind| counts(*kind)).fold([0; 4], |sum, one| std::array::from_fn(|at| sum[at] + one[at]))
}

fn in_a_sentence() -> String {
    let numbers = of_istios_kinds();
    let [honoured, partial, refused, without] = numbers;
    let all: usize = numbers.iter().sum();
    format!(
        "Of the {all} field paths of Istio's eleven kinds {honoured} are honoured, {partial} in part, {refused} are refused by name, {without} without effect.\n`meshctl api fields` lists them, [docs/compatibility.md](docs/compatibility.md) has the reasons.\n"
    )
}

fn whole_list() -> String {
    let mut out = String::new();
    for kind in Kind::ALL {
        let _ = write!(out, "\n### {kind}\n\n");
        if let Some(reason) = refusal(*kind) {
            let _ = writeln!(out, "Refused as a whole: {reason}.");
            continue;
        }
        out.push_str("| field | |\n|---|---|\n");
        for (_, path, status) in paths().filter(|(of, ..)| of == kind) {
            let says = match status {
                Status::Honoured => "honoured".to_owned(),
                Status::Only(values, reason) => {
                    let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
                    format!("only {}: {reason}", values.join(", "))
                }
                Status::InPart(reason) => format!("in part: {reason}"),
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
    keep("README.md", "counts", &in_a_sentence());
    keep("README.md", "support", &short_table());
}

// One test a page: two would write it at the same time.
#[test]
fn the_list_of_fields_and_their_counts_are_what_meshd_does() {
    keep("docs/compatibility.md", "counts", &count_table());
    keep("docs/compatibility.md", "fields", &whole_list());
}

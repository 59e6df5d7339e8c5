//! Every block of commands of the README and of the tutorial is typed by a test, and here stands which.
//!
//! Blocks that begin with ```` ```sh demo ```` are typed by `commands`, all of them. What else is a block of commands is claimed
//! below by the test that types it; a block that nobody claims fails this one, and so does a claim without its block.

use crate::page;

/// A page, the first line of a block, the file of the test that types it, and words that stand there as long as it does.
type Claim = (&'static str, &'static str, &'static str, &'static [&'static str]);

const TUTORIAL: &str = "docs/tutorial-canary.md";
const TWO_HOSTS: &[&str] = &["the_two_hosts_of_the_tutorial_work_as_written", "\"\\n## On two hosts\\n\""];

const CLAIMS: &[Claim] = &[
    (
        "README.md",
        "cargo build --release && target/release/meshctl demo",
        ".ci/check",
        &["cargo build --release --locked", "\"$binaries\"/meshctl demo --for 20s"],
    ),
    ("README.md", "cargo test --workspace", ".ci/check", &["cargo test --workspace --locked --no-fail-fast"]),
    (
        "README.md",
        "# both hosts: install",
        "tests/machines/pages.rs",
        &["the_two_hosts_of_the_readme_work_as_written", "\"\\n## Two hosts\\n\""],
    ),
    (
        TUTORIAL,
        "cargo build --release",
        "meshctl/tests/docs/commands.rs",
        &["every_command_of_the_readme_and_the_tutorial_works_on_the_demo", "Demo::start(64)"],
    ),
    (
        TUTORIAL,
        "mkdir -p /tmp/www && echo v1 > /tmp/www/index.html        # v2 on the second host",
        "tests/machines/pages.rs",
        TWO_HOSTS,
    ),
    (
        TUTORIAL,
        "apt install ./meshd_0.1.0_amd64.deb        # made by packaging/package",
        "tests/machines/pages.rs",
        TWO_HOSTS,
    ),
    (TUTORIAL, "meshd init", "tests/machines/pages.rs", TWO_HOSTS),
    (TUTORIAL, "meshctl token create > token", "tests/machines/pages.rs", TWO_HOSTS),
    (TUTORIAL, "meshd join FIRST-HOST < token", "tests/machines/pages.rs", TWO_HOSTS),
    (
        TUTORIAL,
        "meshctl service register reviews --port 9080:http:8081 --label version=v1 --check-http /",
        "tests/machines/pages.rs",
        TWO_HOSTS,
    ),
    (TUTORIAL, "meshctl apply examples/two-hosts/rules.yaml", "tests/machines/pages.rs", TWO_HOSTS),
    (
        TUTORIAL,
        "for i in $(seq 100); do curl -s http://reviews:9080/; done | sort | uniq -c",
        "tests/machines/pages.rs",
        TWO_HOSTS,
    ),
];

/// The language of each block of a page, and its first line.
fn blocks(text: &str) -> Vec<(&str, &str)> {
    let fences = text.split("\n```").skip(1).step_by(2);
    fences
        .map(|block| {
            let (language, body) = block.split_once('\n').unwrap_or((block, ""));
            (language, body.lines().next().unwrap_or_default())
        })
        .collect()
}

#[test]
fn every_block_of_commands_is_typed_by_a_test() {
    let mut unclaimed = Vec::new();
    let mut left = CLAIMS.to_vec();
    for name in ["README.md", TUTORIAL] {
        for (language, first) in blocks(&page(name)) {
            match language {
                // What is shown, and what `commands` types.
                "text" | "sh demo" => continue,
                "sh" => {}
                other => panic!("{name}: a block of {other:?}: say text, sh or sh demo"),
            }
            match left.iter().position(|claim| (claim.0, claim.1) == (name, first)) {
                Some(at) => drop(left.remove(at)),
                None => unclaimed.push(format!("{name}: {first}")),
            }
        }
    }
    assert!(unclaimed.is_empty(), "typed by no test:\n{}", unclaimed.join("\n"));
    assert!(left.is_empty(), "claimed, and on no page: {left:?}");
    for (_, first, file, words) in CLAIMS {
        let test = page(file);
        for word in *words {
            assert!(test.contains(word), "{file} has no {word:?} any more, which typed {first:?}");
        }
    }
}

#[test]
fn blocks_are_read_with_their_language() {
    let text = "a\n```sh\nls\nls\n```\nb\n```text\nfile\n```\n";

    assert_eq!(blocks(text), [("sh", "ls"), ("text", "file")]);
}

//! What the README and the tutorial say to type on the demo is typed, against a demo.
//!
//! A block that begins with ```` ```sh demo ```` holds such commands, one a line, run by `sh` in the repository. A comment
//! `# exit code N` says how it ends where that is not 0. `REVISION` stands for the revision of the first `apply`,
//! `127.0.1` for the addresses of the demo, and `target/release` for wherever the built meshctl is.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::{page, root};

/// Longest time until the demo is up, on a busy machine.
const START: Duration = Duration::from_mins(1);
/// Longest time for one command. Those that wait for hosts give up after 30 s by themselves.
const COMMAND: Duration = Duration::from_secs(45);

/// Returns the commands of all blocks for the demo on a page, with the code they must end with.
fn commands(text: &str) -> Vec<(String, i32)> {
    let blocks = text.split("\n```sh demo\n").skip(1);
    let lines = blocks.flat_map(|block| block.split("\n```").next().unwrap_or_default().lines());
    lines
        .filter_map(|line| {
            let (command, comment) = line.split_once(" # ").unwrap_or((line, ""));
            let code = comment.split_once("exit code ").map_or("0", |(_, code)| code);
            let code = code.split(|c: char| !c.is_ascii_digit()).next().and_then(|code| code.parse().ok());
            let command = command.trim();
            (!command.is_empty() && !command.starts_with('#'))
                .then(|| (command.to_owned(), code.unwrap_or(0)))
        })
        .collect()
}

/// A demo of this test's own: addresses and folder that no other demo has.
pub(crate) struct Demo {
    child: Child,
    folder: tempfile::TempDir,
    /// The first three numbers of its addresses.
    pub(crate) base: String,
}

impl Demo {
    /// Starts one at addresses from `127.FIRST.0.0` on: tests of one process have different ones.
    pub(crate) fn start(first: u32) -> Self {
        let folder = tempfile::Builder::new().prefix("docs").tempdir_in("/tmp").expect("a folder");
        let base = own_base(first, 64);
        let mut command = Command::new(meshctl());
        command.args(["demo", "--base", &base]).current_dir(root()).stdin(Stdio::null());
        command.env("XDG_RUNTIME_DIR", folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("meshctl demo");
        let (sender, lines) = mpsc::channel();
        for stream in [
            Box::new(child.stdout.take().expect("its output")) as Box<dyn std::io::Read + Send>,
            Box::new(child.stderr.take().expect("its messages")),
        ] {
            let sender = sender.clone();
            // Reads to the end, so that the demo never waits for this test.
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        drop(sender);
        let demo = Self { child, folder, base };
        let limit = Instant::now() + START;
        let mut said = String::new();
        loop {
            match lines.recv_timeout(limit.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with("try next") => return demo,
                Ok(line) => said = said + "\n" + &line,
                Err(end) => panic!("the demo did not come up ({end}); it said:{said}"),
            }
        }
    }

    /// Runs a line in a second terminal: see [`typed`].
    fn run(&self, line: &str) -> (Option<i32>, String) {
        typed(line, self.folder.path())
    }

    /// The revision of the first rules.
    fn first_revision(&self) -> String {
        let (_, text) = self.run("meshctl history -o json");
        let json = &text[text.find("\n{").map_or(0, |at| at + 1)..];
        let json = &json[json.find('{').unwrap_or(0)..=json.rfind('}').expect("JSON")];
        let history: serde_json::Value =
            serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {text}"));
        let items = history["items"].as_array().expect("items");
        items.last().expect("an item")["revision"].to_string()
    }

    /// Ends the demo as Ctrl-C does, and returns what it left behind.
    pub(crate) fn end(mut self) -> Vec<PathBuf> {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::INT).expect("a running demo");
        let limit = Instant::now() + COMMAND;
        while self.child.try_wait().expect("its state").is_none() {
            assert!(Instant::now() < limit, "the demo does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        let left = std::fs::read_dir(self.folder.path()).expect("the folder");
        left.map(|entry| entry.expect("an entry").path()).collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a line as a user would in a second terminal, in the folder of the repository; `runtime` is where the demo lives.
pub(crate) fn typed(line: &str, runtime: &Path) -> (Option<i32>, String) {
    let mut command = Command::new("sh");
    let folder = meshctl().parent().expect("a folder").to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(folder).chain(std::env::split_paths(&path)));
    command.args(["-c", line]).current_dir(root()).stdin(Stdio::null());
    command.env("PATH", path.expect("a path")).env("XDG_RUNTIME_DIR", runtime);
    command.env_remove("MESHD_SOCKET").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("sh");
    let limit = Instant::now() + COMMAND;
    while child.try_wait().expect("its state").is_none() && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(5)); // a process is looked at, there is nothing to wait on
    }
    let _ = child.kill();
    let output = child.wait_with_output().expect("its output");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// Loopback addresses that no other demo has: of `span` second bytes from `first` on, and a third, by this process.
pub(crate) fn own_base(first: u32, span: u32) -> String {
    let id = std::process::id();
    format!("127.{}.{}", first + id / 200 % span, id % 200)
}

/// The command line under test; meshd is made beside it, where the demo looks for it.
pub(crate) fn meshctl() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_meshctl"))
}

pub(crate) fn build_meshd() {
    let folder = meshctl().parent().expect("a folder").to_owned();
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--offline", "-p", "meshd", "--bin", "meshd", "--profile", profile]);
    cargo.env("CARGO_TARGET_DIR", folder.parent().unwrap_or(Path::new("target"))).current_dir(root());
    assert!(cargo.status().expect("cargo").success(), "meshd does not build");
}

#[test]
fn every_command_of_the_readme_and_the_tutorial_works_on_the_demo() {
    let pages = ["README.md", "docs/tutorial-canary.md"].map(|name| commands(&page(name)));
    assert!(pages.iter().all(|typed| typed.len() > 3), "the pages lost their blocks `sh demo`: {pages:?}");
    build_meshd();
    let has_curl = Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_ok();
    let demo = Demo::start(64);
    let first = demo.first_revision();
    let mut wrong = Vec::new();
    for (line, code) in pages.into_iter().flatten() {
        if line.contains("curl") && !has_curl {
            eprintln!("SKIPPED: curl is not installed: {line}");
            continue;
        }
        let begun = Instant::now();
        let own = line
            .replace("REVISION", &first)
            .replace("127.0.1.", &format!("{}.", demo.base))
            .replace("target/release/meshctl", "meshctl");
        let (ended, said) = demo.run(&own);
        eprintln!("{:>6} ms  {line}", begun.elapsed().as_millis());
        if ended != Some(code) {
            wrong.push(format!("$ {line}\n{said}\nended with {ended:?}, the page says {code}"));
        }
    }
    let left = demo.end();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(left.is_empty(), "the demo left {left:?}");
}

#[test]
fn commands_are_read_from_blocks_for_the_demo_only() {
    let text = "a\n```sh\nno\n```\n```sh demo\n# a comment\nmeshctl diff x   # changes: exit code 1\n\nmeshctl status\n```\nb\n";

    assert_eq!(commands(text), [("meshctl diff x".to_owned(), 1), ("meshctl status".to_owned(), 0)]);
}

//! A program's reference, from what `--help` of its commands says; meshd's own tests use it, too.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// Every command of a program, those of a group after it.
pub(crate) fn reference(program: &Path, name: &str) -> String {
    let mut page = String::new();
    for command in commands(program, name) {
        let arguments: Vec<&str> = command.split(' ').skip(1).chain(["--help"]).collect();
        let help = said(program, &arguments);
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        let _ = writeln!(page, "\n### {command}\n\n```text\n{}\n```", help.join("\n"));
    }
    page + "\n"
}

/// The man pages name every command that is not hidden: `meshctl-token-create.1`.
fn commands(program: &Path, name: &str) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    said(program, &["man", &folder.path().to_string_lossy()]);
    let files = std::fs::read_dir(folder.path()).expect("man pages");
    let mut commands: Vec<String> = files
        .map(|file| file.expect("a file").path())
        .map(|path| path.file_stem().expect("a name").to_string_lossy().replace('-', " "))
        .collect();
    commands.sort();
    assert!(commands.len() > 3 && commands[0] == name, "{commands:?}");
    commands
}

fn said(program: &Path, arguments: &[&str]) -> String {
    // As wide as a terminal may make it at most.
    let output = Command::new(program).args(arguments).env("COLUMNS", "110").output().expect("a program");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{} {arguments:?}: {output:?}", program.display());
    said
}

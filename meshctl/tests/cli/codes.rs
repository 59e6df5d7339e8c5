//! Exit codes, messages where nobody answers, help.

use std::path::Path;

use mesh_proto::api::{ErrorCode, Response};

use crate::server::{Server, alone, no};

#[test]
fn wrong_usage_is_64_and_help_is_0() {
    assert_eq!(alone(&["frobnicate"]).code, 64);
    assert_eq!(alone(&["apply"]).code, 64);
    assert_eq!(alone(&["get", "nonsense", "--socket", "/nowhere"]).code, 64);
    assert_eq!(alone(&["apply", "-f", "x", "--timeout", "30"]).code, 64);
    let help = alone(&["--help"]);
    assert_eq!(help.code, 0);
    assert!(help.out.contains("Exit codes: 0 done, 1 findings or refused"), "{}", help.out);
}

#[test]
fn every_command_has_help_and_those_with_flags_have_examples() {
    for command in [
        "apply", "get", "delete", "diff", "top", "demo", "rollback", "routes", "validate", "explain",
        "analyze", "test",
    ] {
        let help = alone(&[command, "--help"]);
        assert_eq!(help.code, 0, "{command}");
        assert!(help.out.contains("Example"), "{command}: {}", help.out);
    }
    let register = alone(&["service", "register", "--help"]);
    assert!(register.out.contains("meshctl service register reviews --port 9080"), "{}", register.out);
}

#[test]
fn nobody_there_says_what_to_do() {
    let ran = alone(&["status", "--socket", "/nowhere/meshd.sock"]);

    assert_eq!(ran.code, 4);
    assert_eq!(
        ran.err,
        "error: meshd is not running here (/nowhere/meshd.sock: no such file or directory): start it with `systemctl \
         start meshd` or `meshd run`, name another socket with --socket, or try: meshctl demo\n"
    );
}

#[test]
fn an_unreadable_file_is_2() {
    let ran = alone(&["apply", "-f", "missing.yaml"]);

    assert_eq!(
        (ran.code, ran.err.as_str()),
        (2, "error: missing.yaml: no such file or directory; nothing was changed\n")
    );
}

#[test]
fn refusals_are_1_and_conflicts_3() {
    let refusing = Server::start(|_, _| no(ErrorCode::NotFound, "there is no host vm9"));
    let ran = refusing.run(&["host", "remove", "vm9"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: there is no host vm9\n"));

    let conflicting = Server::start(|_, _| no(ErrorCode::Conflict, "port 9080 of reviews is HTTP, by vm1"));
    assert_eq!(conflicting.run(&["service", "register", "reviews", "--port", "9080:tcp"]).code, 3);
}

#[test]
fn a_server_that_hangs_up_is_asked_twice_and_then_named() {
    let server = Server::start(|_, _| panic!("hangs up"));

    let ran = server.run(&["status"]);

    assert_eq!(ran.code, 4);
    assert!(ran.err.contains("the answer did not arrive"), "{}", ran.err);
}

#[test]
fn an_answer_to_another_question_is_not_misread() {
    let server = Server::start(|_, _| Ok(Response::Done));

    let ran = server.run(&["status"]);

    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("are meshctl and meshd of one version?"), "{}", ran.err);
}

#[test]
fn validate_needs_no_mesh() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let ran = alone(&["validate", examples.to_str().expect("text")]);

    assert_eq!(ran.code, 1, "two examples hold the same objects: {}", ran.err);
    let canary = alone(&["validate", examples.join("canary/10-canary.yaml").to_str().expect("text")]);
    assert_eq!((canary.code, canary.out.as_str()), (0, "1 object in 1 file valid\n"));
    let two = alone(&["validate", examples.join("two-hosts").to_str().expect("text")]);
    assert_eq!((two.code, two.out.as_str()), (0, "2 objects in 1 file valid\n"));
}

#[test]
fn completion_is_written_for_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = alone(&["completion", shell]);
        assert_eq!(ran.code, 0);
        assert!(ran.out.contains("meshctl"), "{shell}");
    }
}

/// A shell, how it is told to load nothing else, and what it runs; the answer must name a command.
const LOADING: [(&str, &[&str], &str); 3] = [
    (
        "bash",
        &["--norc", "-c"],
        "source <(\"$MESHCTL\" completion bash) && complete -p meshctl >/dev/null && COMP_WORDS=(meshctl appl) && \
         COMP_CWORD=1 && _meshctl meshctl appl meshctl && echo \"${COMPREPLY[@]}\"",
    ),
    (
        "zsh",
        &["-f", "-c"],
        "autoload -Uz compinit && compinit -u -D && source <(\"$MESHCTL\" completion zsh) && [[ $_comps[meshctl] == \
         _meshctl ]] && functions _meshctl_commands | grep -o 'apply:' | tr -d :",
    ),
    ("fish", &["--no-config", "-c"], "$MESHCTL completion fish | source; complete -C 'meshctl appl'"),
];

#[test]
fn completion_loads_in_every_shell_that_is_installed() {
    for (shell, arguments, line) in LOADING {
        let ran = std::process::Command::new(shell)
            .args(arguments)
            .arg(line)
            .env("MESHCTL", env!("CARGO_BIN_EXE_meshctl"))
            .output();
        let Ok(ran) = ran else {
            eprintln!("SKIPPED: {shell} is not installed");
            continue;
        };
        let said = String::from_utf8_lossy(&ran.stdout);
        let complaint = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success() && complaint.is_empty(), "{shell}: {said}{complaint}");
        assert!(said.split_whitespace().next() == Some("apply"), "{shell}: {said}");
    }
}

#[test]
fn version_is_told_even_without_a_server() {
    let ran = alone(&["version", "--socket", "/nowhere"]);

    assert_eq!(ran.code, 0);
    assert!(
        ran.out.starts_with(&format!("meshctl  {}\nmeshd    unknown: ", env!("CARGO_PKG_VERSION"))),
        "{}",
        ran.out
    );
}

#[test]
fn a_demo_that_does_not_run_cannot_be_stopped() {
    let ran = alone(&["demo", "stop", "vm3"]);

    // Another demo of this user may run on this machine.
    assert!(ran.code == 4 || ran.code == 0, "{}", ran.err);
}

//! What is on disk and of no use: meshd ends with 78 and says what helps, and doctor names it while meshd does not run.

use anyhow::{Result, ensure};
use mesh_lab::{Host, Lab, story};

/// How it is broken, in the data folder; what is said.
type Case = (&'static str, &'static str);

const CASES: [Case; 9] = [
    ("echo garbage > server/raft.redb", "raft.redb is damaged: it is no file of redb; nothing was changed."),
    ("rm server/raft.redb", "raft.redb is gone, and this host has had one"),
    (
        "rm server/raft.redb && sed -i 's/\"has_log\": true/\"has_log\": false/' host.json",
        "raft.redb is gone, and this host has had one",
    ),
    (
        "mkdir -p server/snapshots && printf '{\"format\":99}\\nlater' > server/snapshots/world-9.snapshot",
        "world-9.snapshot was written by a newer meshd (format 99, this one knows 1): install that version or a newer one; nothing was changed",
    ),
    (
        "mkdir -p server/snapshots && echo garbage > server/snapshots/world-9.snapshot",
        "world-9.snapshot is damaged: its head",
    ),
    ("echo garbage > host.key", "host.key is damaged (not a P-256 key in PEM); nothing was changed."),
    ("echo garbage > wrap.key", "wrap.key is damaged (not base64); nothing was changed."),
    ("rm wrap.key", "wrap.key is missing while the other key of this host is there; nothing was changed."),
    ("rm host.key wrap.key", "host.key and wrap.key are missing from"),
];

#[test]
fn unusable_state_needs_a_person_and_a_copy_put_back_helps() {
    story("unusable::unusable_state_needs_a_person_and_a_copy_put_back_helps", || {
        let mut lab = Lab::new(1)?;
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).start()?;
        lab.vm(1).stop()?;
        in_folder(lab.vm(1), "cp -a data kept")?;
        for (breaks, says) in CASES {
            in_folder(lab.vm(1), &format!("cd data && {breaks}"))?;
            let broken =
                in_folder(lab.vm(1), "find data -type f -exec sha256sum {} + | grep -v lock | sort")?;

            let config = lab.vm(1).folder().join("meshd.toml").display().to_string();
            let told = lab.vm(1).meshctl(&["doctor", "--config", &config, "-o", "json"])?.stdout;
            let ended = lab.vm(1).meshd(&["run"])?;

            ensure!(ended.code == Some(78) && ended.stderr.contains(says), "{breaks}: {ended:?}");
            // As JSON has it.
            let says = says.replace('"', "\\\"");
            ensure!(told.contains(&says), "{breaks}: doctor does not say {says:?}: {told}");
            let after = in_folder(lab.vm(1), "find data -type f -exec sha256sum {} + | grep -v lock | sort")?;
            ensure!(after == broken, "{breaks}: changed from {broken} to {after}");
            in_folder(lab.vm(1), "rm -r data && cp -a kept data")?;
        }
        lab.vm(1).start()?;
        lab.vm(1).meshctl(&["status"])?.success().map(drop)
    });
}

#[test]
fn interception_that_is_asked_for_and_cannot_be_needs_a_person() {
    story("unusable::interception_that_is_asked_for_and_cannot_be_needs_a_person", || {
        let mut lab = Lab::new(1)?;
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).write_config("[intercept]\nmode = \"on\"\n")?;
        let config = lab.vm(1).folder().join("meshd.toml").display().to_string();
        let meshd = mesh_lab::Binaries::build()?.meshd.display().to_string();

        let run = format!(
            "setpriv --bounding-set=-net_admin --inh-caps=-net_admin -- {meshd} --config {config} run"
        );
        let ended = lab.vm(1).shell(&run)?;

        ensure!(ended.code == Some(78) && ended.stderr.contains("needs CAP_NET_ADMIN"), "{ended:?}");
        Ok(())
    });
}

fn in_folder(host: &Host, line: &str) -> Result<String> {
    Ok(host.shell(&format!("cd {} && {line}", host.folder().display()))?.success()?.stdout)
}

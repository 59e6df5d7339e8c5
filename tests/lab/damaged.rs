//! Damage on a voter's disk that the other voters make up for.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::{Host, Lab, eventually_within, story};

use crate::canary;
use crate::outage::three_voters;

/// Objects in a file, and bytes of each: ten files are more than a server keeps in its log without a snapshot, 8 MiB.
const OBJECTS: usize = 20;
const OBJECT_BYTES: usize = 50_000;

/// Rules that say much and change nothing.
fn much(letter: &str) -> String {
    let note = letter.repeat(OBJECT_BYTES);
    let one = |number| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: much-{number}\n  \
             annotations: {{note: {note}}}\nspec:\n  hosts: [much-{number}.example]\n  \
             ports: [{{number: 80, name: http, protocol: HTTP}}]\n  resolution: STATIC\n  \
             endpoints: [{{address: 198.18.200.1}}]\n"
        )
    };
    (0..OBJECTS).map(one).collect::<Vec<_>>().join("---\n")
}

fn in_snapshots(host: &Host, line: &str) -> Result<String> {
    let folder = host.folder().join("data/server/snapshots");
    Ok(host.shell(&format!("cd {} && {line}", folder.display()))?.success()?.stdout)
}

#[test]
fn a_voter_whose_snapshot_is_damaged_gets_another_and_votes_again() {
    story("damaged::a_voter_whose_snapshot_is_damaged_gets_another_and_votes_again", || {
        let mut lab = Lab::mesh(3)?;
        three_voters(&mut lab)?;
        for letter in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            let rules = lab.file("much.yaml", &much(letter))?.display().to_string();
            lab.vm(1).meshctl(&["apply", &rules])?.success()?;
        }
        let snapshot = eventually_within(Duration::from_secs(30), "vm3 has a snapshot", || {
            let listed = in_snapshots(lab.vm(3), "ls *.snapshot")?;
            Ok(listed.lines().last().context("no snapshot")?.to_owned())
        })?;
        let after = lab.file("after.yaml", &canary(70, 30))?.display().to_string();
        lab.vm(1).meshctl(&["apply", &after])?.success()?;
        lab.vm(3).stop()?;
        let flip = format!("printf '\\1' | dd of={snapshot} bs=1 seek=500000 conv=notrunc status=none");
        in_snapshots(lab.vm(3), &flip)?;

        lab.vm(3).start()?;

        ensure!(lab.vm(3).log().contains("another server has given a snapshot in its place"), "it is said");
        three_voters(&mut lab)?;
        // Two of three, of which it is one.
        lab.vm(2).crash();
        let rules = lab.file("last.yaml", &canary(60, 40))?.display().to_string();
        eventually_within(Duration::from_secs(15), "it votes", || {
            lab.vm(3).meshctl(&["apply", "--no-wait", &rules])?.success().map(drop)
        })
    });
}

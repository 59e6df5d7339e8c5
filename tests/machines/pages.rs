//! What the README and the tutorial say to type on two hosts is typed there, as it stands.
//!
//! Only what the pages leave open is put in: `FIRST-HOST`, `v2` for `v1` on the second, and which of two network cards
//! other hosts reach. Who types a command is what the words before it say.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::eventually_within;

use crate::base::{root, run};
use crate::machine::Machine;
use crate::{Machines, on_machines};

/// Who types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    First,
    Second,
    Both,
}

#[test]
fn the_two_hosts_of_the_readme_work_as_written() {
    on_machines("the_two_hosts_of_the_readme", 2, |machines| {
        let page = section("README.md", "\n## Two hosts\n")?;
        let block = blocks(&page).into_iter().next().context("the README lost its block")?;
        let mut who = Who::Both;
        let mut typed = Vec::new();
        for line in block.1.lines() {
            match line.strip_prefix('#') {
                Some(words) => who = who_types(words),
                None => typed.push((who, line.to_owned())),
            }
        }
        ensure!(typed.len() == 6, "install, init, token, join, register, apply: {typed:?}");
        // It takes for granted what the tutorial says how to make.
        let service = blocks(&section("docs/tutorial-canary.md", "\n## On two hosts\n")?);
        let service = service.into_iter().next().context("the tutorial lost its service")?;
        let mut all: Vec<(Who, String)> =
            service.1.lines().map(|line| (Who::Both, line.to_owned())).collect();
        all.extend(typed);
        type_all(machines, &all)?;
        shares(machines.vm(2), "for i in $(seq 100); do curl -s http://reviews:9080/; done | sort | uniq -c")
    });
}

#[test]
fn the_two_hosts_of_the_tutorial_work_as_written() {
    on_machines("the_two_hosts_of_the_tutorial", 2, |machines| {
        let page = section("docs/tutorial-canary.md", "\n## On two hosts\n")?;
        let mut all: Vec<(Who, String)> = Vec::new();
        for (words, block) in blocks(&page) {
            let who = who_types(&words);
            all.extend(block.lines().map(|line| (who, line.to_owned())));
        }
        let (_, last) = all.pop().context("the tutorial lost its blocks")?;
        ensure!(
            all.len() == 8 && last.contains("curl"),
            "a service, the five commands, and the call: {all:?}"
        );
        type_all(machines, &all)?;
        shares(machines.vm(1), &last)
    });
}

#[test]
fn who_types_is_what_the_words_say() {
    for (words, who) in [
        ("What is needed: two hosts that reach each other. Each runs your service:", Who::Both),
        ("**2. Begin the mesh**, on the first:", Who::First),
        ("**3. Let the second host in.** On the first, `meshctl token create` prints one line:", Who::First),
        ("Carry that line over, and on the second:", Who::Second),
        (" second host", Who::Second),
        (
            "**4. Say what each host offers**, `version=v1` on the first, `version=v2` on the second:",
            Who::Both,
        ),
        ("**5. Apply the rules**, on either:", Who::First),
        (" any host", Who::First),
    ] {
        assert_eq!(who_types(words), who, "{words}");
    }
}

fn who_types(words: &str) -> Who {
    let words = words.to_lowercase();
    if words.split(|c: char| !c.is_alphabetic()).any(|word| word == "both" || word == "each") {
        return Who::Both;
    }
    let first = words.rfind("on the first").or_else(|| words.find("first host"));
    let second = words.rfind("on the second").or_else(|| words.find("second host"));
    match (first, second) {
        (None, Some(_)) => Who::Second,
        (Some(first), Some(second)) if second > first => Who::Second,
        _ => Who::First,
    }
}

/// A page from a heading to the next of its kind.
fn section(page: &str, heading: &str) -> Result<String> {
    let text = std::fs::read_to_string(root().join(page))?;
    let (_, rest) = text.split_once(heading).with_context(|| format!("{page} has no {heading:?}"))?;
    Ok(rest.split("\n## ").next().unwrap_or(rest).to_owned())
}

/// Its blocks of commands, each with the words since the block before.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut words = String::new();
    for (at, part) in text.split("\n```").enumerate() {
        match part.strip_prefix("sh\n") {
            Some(block) if at % 2 == 1 => all.push((std::mem::take(&mut words), block.to_owned())),
            // Something that is shown, or the words between two blocks.
            _ if at % 2 == 0 => words.push_str(part),
            _ => words.clear(),
        }
    }
    all
}

fn type_all(machines: &Machines, all: &[(Who, String)]) -> Result<()> {
    let (first, second) = (machines.vm(1), machines.vm(2));
    run(std::process::Command::new("cp").arg("-rL").arg(root().join("examples")).arg(first.shared()))?;
    for (who, line) in all {
        let line = line.split("  #").next().unwrap_or(line).trim().replace("FIRST-HOST", &first.address);
        if line.is_empty() {
            continue;
        }
        if *who != Who::Second {
            type_on(first, &line)?;
        }
        if *who != Who::First {
            type_on(second, &line.replace("=v1", "=v2").replace("echo v1", "echo v2"))?;
        }
    }
    Ok(())
}

fn type_on(machine: &Machine, line: &str) -> Result<()> {
    // What serves until somebody ends it gets a unit instead of a terminal.
    let line = match line.strip_prefix("python3 ") {
        Some(_) => format!("systemd-run -q --unit=www {line}"),
        None => line.to_owned(),
    };
    machine.sh(&format!("cd /vagrant && {line}")).with_context(|| format!("$ {line}"))?;
    if line.contains("apt install") {
        // These machines have two network cards, and others reach the second.
        machine.sh(&format!(
            "sed -i 's|^#\\? *advertise = .*|advertise = \"{}\"|' /etc/meshd/meshd.toml",
            machine.address
        ))?;
    }
    Ok(())
}

/// The odds that v1 gets fewer than 60 of 100 at 90 % are less than one in a million.
fn shares(machine: &Machine, line: &str) -> Result<()> {
    eventually_within(Duration::from_secs(40), "both versions are asked", || {
        let said = machine.sh(line)?;
        let count = |version: &str| {
            let line = said.lines().find(|line| line.trim().ends_with(version));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u32>().ok()).unwrap_or(0)
        };
        let (v1, v2) = (count("v1"), count("v2"));
        ensure!(v1 + v2 == 100 && v1 >= 60 && v2 > 0, "{said}");
        Ok(())
    })
}

//! Real programs of others through the mesh, as bytes that meshd does not understand.
//!
//! Each is started by its story, on a folder of the story, as a user without privileges; its port is registered twice,
//! once with its protocol declared and once without.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use mesh_lab::{Lab, eventually, story, which};

/// Runs a story that needs programs of others; without them it is skipped aloud, and in CI it fails.
fn with(name: &str, programs: &[(&str, Option<PathBuf>)], tell: impl FnOnce() -> Result<()>) {
    if let Some((missing, _)) = programs.iter().find(|(_, found)| found.is_none()) {
        assert!(std::env::var("MESH_LAB").as_deref() != Ok("require"), "{missing} is not installed");
        eprintln!("SKIPPED: {name}: {missing} is not installed");
        return;
    }
    story(name, tell);
}

/// Two hosts; what listens on `port` of vm2 is `declared` and `undeclared` on that port and the next.
fn on_vm2(port: u16, start: impl FnOnce(&mut Lab) -> Result<()>) -> Result<Lab> {
    let mut lab = Lab::mesh(2)?;
    start(&mut lab)?;
    let service = |name: &str, number: u16, protocol: &str| {
        format!("[[service]]\nname = \"{name}\"\n[[service.port]]\nnumber = {number}\n{protocol}")
    };
    lab.vm(2).services_file("declared.toml", &service("declared", port, "protocol = \"tcp\"\n"))?;
    // Two services may not have one target: the second is reached by a forwarder of the kernel's.
    let other = port + 1;
    lab.vm(2).serve_program(
        "forwarder",
        other,
        &format!("{} -c {} {other} {port}", python().context("python3")?.display(), quoted(FORWARD)),
    )?;
    lab.vm(2).services_file("undeclared.toml", &service("undeclared", other, ""))?;
    Ok(lab)
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn python() -> Option<PathBuf> {
    let system = PathBuf::from("/usr/bin/python3");
    if system.is_file() { Some(system) } else { which("python3") }
}

/// Forwards connections from one port of loopback to another, each direction ending alone.
const FORWARD: &str = "
import socket, sys, threading
def pump(a, b):
    try:
        while True:
            data = a.recv(65536)
            if not data: break
            b.sendall(data)
        b.shutdown(socket.SHUT_WR)
    except OSError: pass
s = socket.create_server((\"127.0.0.1\", int(sys.argv[1])))
while True:
    a, _ = s.accept()
    b = socket.create_connection((\"127.0.0.1\", int(sys.argv[2])))
    for x, y in ((a, b), (b, a)): threading.Thread(target=pump, args=(x, y), daemon=True).start()
";

/// A program of PostgreSQL, of the newest version there is.
fn postgres(program: &str) -> Option<PathBuf> {
    let mut versions: Vec<_> =
        std::fs::read_dir("/usr/lib/postgresql").ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    versions.sort();
    let found = versions.into_iter().rev().map(|version| version.join("bin").join(program));
    found.into_iter().find(|path| path.is_file())
}

#[test]
fn postgresql_is_asked_through_the_mesh() {
    let programs = [
        ("initdb", postgres("initdb")),
        ("postgres", postgres("postgres")),
        ("psql", postgres("psql")),
        ("pgbench", postgres("pgbench")),
    ];
    with("peers::postgresql_is_asked_through_the_mesh", &programs, || {
        let [initdb, server, psql, pgbench] = programs.clone().map(|(_, path)| path.unwrap_or_default());
        let mut lab = on_vm2(5432, |lab| {
            // It refuses to run as root, and in the story's namespace the only user is root: another one around it.
            let data = lab.vm(2).folder().join("pg").display().to_string();
            let user = "unshare --user --map-user=1000 --map-group=1000";
            let init = format!("{user} {} --no-sync -A trust -U lab -D {data}", initdb.display());
            lab.vm(2).shell(&init)?.success()?;
            let line = format!(
                "{user} {} -D {data} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data} -c fsync=off",
                server.display()
            );
            lab.vm(2).serve_program("postgres", 5432, &line)
        })?;
        for place in ["-h declared -p 5432", "-h undeclared -p 5433"] {
            let ask = |lab: &mut Lab, query: &str| -> Result<String> {
                let line =
                    format!("{} {place} -U lab -d postgres -X -A -t -c {}", psql.display(), quoted(query));
                Ok(lab.vm(1).shell(&format!("timeout 20 {line}"))?.success()?.stdout.trim().to_owned())
            };
            eventually("the database is reached", || ask(&mut lab, "select 1"))?;
            let sum = ask(
                &mut lab,
                "create table t as select i from generate_series(1, 100000) i; select sum(i) from t",
            )?;
            ensure!(sum.ends_with("5000050000"), "{sum}");
            let all = ask(&mut lab, "select string_agg(i::text, ',' order by i) from t")?;
            ensure!(all.len() == 588_894, "{} bytes of a large answer", all.len());
            let bench = format!("timeout 40 {} {place} -U lab", pgbench.display());
            lab.vm(1)
                .shell(&format!("{bench} -i -q postgres && {bench} -c 8 -j 2 -t 50 postgres"))?
                .success()?;
            ask(&mut lab, "drop table t")?;
        }
        Ok(())
    });
}

#[test]
fn redis_is_asked_through_the_mesh() {
    let programs = [
        ("redis-server", which("redis-server")),
        ("redis-cli", which("redis-cli")),
        ("redis-benchmark", which("redis-benchmark")),
    ];
    with("peers::redis_is_asked_through_the_mesh", &programs, || {
        let mut lab = on_vm2(6379, |lab| {
            let folder = lab.vm(2).folder().display().to_string();
            lab.vm(2).serve_program(
                "redis",
                6379,
                &format!("redis-server --save '' --dir {folder} --bind 127.0.0.1"),
            )
        })?;
        for place in ["-h declared -p 6379", "-h undeclared -p 6380"] {
            let ask = |lab: &mut Lab, command: &str| -> Result<String> {
                let line = format!("timeout 20 redis-cli {place} {command}");
                Ok(lab.vm(1).shell(&line)?.success()?.stdout.trim().to_owned())
            };
            eventually("the store is reached", || {
                ensure!(ask(&mut lab, "ping")? == "PONG");
                Ok(())
            })?;
            ensure!(ask(&mut lab, "set greeting 'hello mesh'")? == "OK");
            ensure!(ask(&mut lab, "get greeting")? == "hello mesh");
            let bench =
                format!("timeout 40 redis-benchmark {place} -n 5000 -c 20 -P 4 -t set,get,lrange_100 -q");
            let said = lab.vm(1).shell(&bench)?.success()?;
            ensure!(said.stdout.contains("GET") && !said.stdout.contains("Error"), "{said:?}");
        }
        Ok(())
    });
}

#[test]
fn a_mail_server_is_heard_first_through_the_mesh() {
    let aiosmtpd = python().filter(|python| {
        let asked = std::process::Command::new(python).args(["-c", "import aiosmtpd"]).output();
        asked.is_ok_and(|asked| asked.status.success())
    });
    let programs = [("python3-aiosmtpd", aiosmtpd)];
    with("peers::a_mail_server_is_heard_first_through_the_mesh", &programs, || {
        let [(_, python)] = programs.clone();
        let python = python.unwrap_or_default();
        let mut lab = on_vm2(2525, |lab| {
            // Unbuffered: what it prints is read while it runs.
            let line = format!("{} -u -m aiosmtpd -n -l 127.0.0.1:2525", python.display());
            lab.vm(2).serve_program("aiosmtpd", 2525, &line)
        })?;
        let body = "x".repeat(70);
        let text = format!("Subject: hello\r\n\r\n{}", format!("{body}\r\n").repeat(2_000));
        let mail = lab.file("mail.txt", &text)?.display().to_string();
        for url in ["smtp://declared:2525", "smtp://undeclared:2526"] {
            let arguments =
                ["--mail-from", "a@vm1.example", "--mail-rcpt", "b@vm2.example", "--upload-file", &mail, url];
            eventually("the mail is taken", || {
                let sent = lab.vm(1).curl(&arguments)?;
                ensure!(sent.status == 250, "{url}: {sent:?}");
                Ok(())
            })?;
        }
        // Printed by aiosmtpd itself: twice the whole mail.
        let log = std::fs::read_to_string(lab.vm(2).folder().join("aiosmtpd.log"))?;
        ensure!(log.matches(&body).count() == 4_000, "{} lines", log.matches(&body).count());
        Ok(())
    });
}

//! Hops over QUIC, where `meshd.toml` asks for it.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_lab::{Lab, eventually, eventually_within, story};
use rustix::process::Signal;

use crate::reviews;

/// Drops what goes to the mesh port over UDP on its way out.
const DROP_UDP: &str = "nft add table inet cut && nft 'add chain inet cut o { type filter hook output priority -300; udp dport 15008 drop; udp sport 15008 drop; }'";

/// Three hosts whose hops go over QUIC: `reviews` v1 on vm2 and v2 on vm3, `mail` on vm2; `before` runs on each first.
fn mesh_over_quic(before: impl Fn(&mut Lab) -> Result<()>) -> Result<Lab> {
    let mut lab = Lab::new(3)?;
    for host in lab.hosts() {
        host.write_config("[proxy]\ntransport = \"quic\"\n")?;
    }
    before(&mut lab)?;
    lab.form_mesh()?;
    for (number, version) in [(2, "v1"), (3, "v2")] {
        lab.vm(number).serve("reviews", 9080, &format!("reviews {version}"))?;
        lab.vm(number).services_file("reviews.toml", &reviews(version))?;
    }
    lab.vm(2).serve_as("mail", 2525)?;
    let mail = "[[service]]\nname = \"mail\"\n[[service.port]]\nnumber = 2525\nprotocol = \"tcp\"\n";
    lab.vm(2).services_file("mail.toml", mail)?;
    eventually("both versions and the mail server answer", || {
        for version in ["v1", "v2"] {
            let answers: Vec<_> = (0..10).map(|_| reviews_answer(&mut lab)).collect::<Result<_>>()?;
            ensure!(answers.iter().any(|answer| answer.contains(version)), "{answers:?}");
        }
        send_mail(&mut lab)
    })?;
    Ok(lab)
}

fn reviews_answer(lab: &mut Lab) -> Result<String> {
    let url = "http://reviews:9080/?secret=geheimnis";
    let answer = lab.vm(1).curl(&["--header", "x-secret: geheimnis", url])?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(answer.body)
}

fn send_mail(lab: &mut Lab) -> Result<()> {
    let mail = lab.file("mail.txt", "Subject: geheimnis\r\n\r\ngeheimnis\r\n")?.display().to_string();
    let sender = ["--mail-from", "geheimnis@vm1.example", "--mail-rcpt", "b@vm2.example"];
    let sent = lab.vm(1).curl(&[&sender[..], &["--upload-file", &mail, "smtp://mail:2525"]].concat())?;
    ensure!(sent.status == 250, "{sent:?}");
    Ok(())
}

/// Bytes that the frames of a capture carry to or from port 15008, over TCP and over UDP; names in plain text fail.
///
/// A TCP frame counts with its head, so that one without a payload counts, too.
fn mesh_bytes(capture: &[u8]) -> (usize, usize) {
    let port = 15008_u16.to_be_bytes();
    let (mut tcp, mut udp) = (0, 0);
    // Frames stand one after the other without lengths of their own: an IPv4 header after an Ethernet one is looked for.
    for at in 0..capture.len().saturating_sub(38) {
        let frame = &capture[at..];
        if frame[12..15] != [0x08, 0x00, 0x45] {
            continue;
        }
        let length = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
        let ports = [&frame[34..36], &frame[36..38]];
        if !ports.contains(&&port[..]) {
            continue;
        }
        match frame[23] {
            6 => tcp += length,
            17 => udp += length,
            _ => {}
        }
    }
    (tcp, udp)
}

#[test]
fn traffic_travels_over_udp_and_nothing_in_plaintext() {
    story("quic::traffic_travels_over_udp_and_nothing_in_plaintext", || {
        let mut lab = mesh_over_quic(|_| Ok(()))?;
        // Control traffic may take TCP after the start, where a host did not read UDP at once: for some seconds.
        eventually_within(Duration::from_secs(30), "all goes over UDP", || {
            let (bytes, tcp, udp) = fifty_requests_and_three_mails(&mut lab)?;
            for needle in
                ["geheimnis", "reviews v1", "reviews v2", "GET /", "HTTP/1.1", "220 lab ready", "MAIL FROM"]
            {
                let seen = bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
                assert!(!seen, "{needle:?} crossed in plaintext");
            }
            ensure!(udp > 10_000, "only {udp} bytes to and from port 15008 over UDP, {tcp} over TCP");
            ensure!(udp > 4 * tcp, "{udp} bytes over UDP, {tcp} over TCP");
            Ok(())
        })
    });
}

/// Returns what crossed the wire meanwhile, and how much of it to or from the mesh port over TCP and over UDP.
fn fifty_requests_and_three_mails(lab: &mut Lab) -> Result<(Vec<u8>, usize, usize)> {
    let capture = lab.folder().join("wire.frames");
    if capture.exists() {
        // That it is there says when the next one has begun.
        std::fs::remove_file(&capture)?;
    }
    let watcher = lab.vm(1).watch_wire(&capture)?;
    for _ in 0..50 {
        reviews_answer(lab)?;
    }
    for _ in 0..3 {
        send_mail(lab)?;
    }
    watcher.stop()?;
    let bytes = std::fs::read(&capture)?;
    let (tcp, udp) = mesh_bytes(&bytes);
    Ok((bytes, tcp, udp))
}

#[test]
fn where_udp_is_dropped_from_the_start_traffic_flows() {
    story("quic::where_udp_is_dropped_from_the_start_traffic_flows", || {
        let mut lab = mesh_over_quic(|lab| {
            for host in lab.hosts() {
                host.shell(DROP_UDP)?.success()?;
            }
            Ok(())
        })?;
        for _ in 0..20 {
            reviews_answer(&mut lab)?;
        }
        send_mail(&mut lab)
    });
}

#[test]
fn where_udp_is_dropped_later_traffic_flows_again() {
    story("quic::where_udp_is_dropped_later_traffic_flows_again", || {
        let mut lab = mesh_over_quic(|_| Ok(()))?;
        for host in lab.hosts() {
            host.shell(DROP_UDP)?.success()?;
        }
        // A connection that has gone silent is given up after ten seconds.
        eventually_within(Duration::from_secs(30), "requests and mails get through", || {
            for _ in 0..10 {
                reviews_answer(&mut lab)?;
            }
            send_mail(&mut lab)
        })
    });
}

#[test]
fn a_host_that_crashed_is_reached_soon_after_it_is_back() {
    story("quic::a_host_that_crashed_is_reached_soon_after_it_is_back", || {
        let mut lab = mesh_over_quic(|_| Ok(()))?;
        lab.vm(2).crash();
        lab.vm(3).crash();
        lab.vm(2).start()?;
        lab.vm(3).start()?;
        // Less than a silent connection is kept: the restarted host says that it knows nothing of it.
        eventually_within(Duration::from_secs(8), "requests and mails get through", || {
            reviews_answer(&mut lab)?;
            send_mail(&mut lab)
        })
    });
}

#[test]
fn a_stop_while_a_hand_over_waits_for_hops_is_a_stop() {
    story("quic::a_stop_while_a_hand_over_waits_for_hops_is_a_stop", || {
        let mut lab = mesh_over_quic(|_| Ok(()))?;
        lab.vm(2).serve_slowly("slow", 9090, SLOW_MS, "slow but sure")?;
        let slow = "[[service]]\nname = \"slow\"\n[[service.port]]\nnumber = 9090\nprotocol = \"http\"\n";
        lab.vm(2).services_file("slow.toml", slow)?;
        eventually("it is known on vm1", || {
            let list = lab.vm(1).meshctl(&["service", "list", "-o", "json"])?.success()?.stdout;
            ensure!(list.contains("\"slow\"") && list.matches("\"healthy\"").count() == 4, "{list}");
            Ok(())
        })?;
        let answer = lab.folder().join("slow.answer");
        let asking = lab.vm(1).keep(&format!(
            "curl --silent --show-error --max-time 30 --write-out '%{{http_code}}' http://slow:9090/ > {}",
            answer.display()
        ))?;
        eventually("it is under way", || {
            let to_application =
                lab.vm(2).shell("ss -Htn state established dport = :9090")?.success()?.stdout;
            ensure!(!to_application.is_empty());
            Ok(())
        })?;

        lab.vm(2).running().signal(Signal::HUP)?;
        eventually("the hand-over has begun", || {
            ensure!(lab.vm(2).log().contains("handing over"));
            Ok(())
        })?;
        let code = lab.vm(2).stop()?;

        let log = lab.vm(2).log();
        ensure!(code == Some(0), "{code:?}: {log}");
        ensure!(log.contains("meshd is stopping"), "{log}");
        asking.wait()?;
        let answer = std::fs::read_to_string(answer)?;
        ensure!(
            answer.starts_with("slow but sure") && answer.ends_with("200"),
            "what was under way ends: {answer}"
        );
        let ready = lab.vm(2).shell("curl --silent http://127.0.0.1:15000/ready")?;
        ensure!(ready.code != Some(0), "a successor serves: {ready:?}");
        ensure!(lab.vm(2).shell("nft list table inet meshd")?.code != Some(0), "interception is out");
        eventually("its services are withdrawn", || {
            let list = lab.vm(1).meshctl(&["service", "list", "-o", "json"])?.success()?.stdout;
            ensure!(list.contains("\"left\""), "{list}");
            Ok(())
        })
    });
}

/// Longer than hops are waited for at a hand-over, shorter than at a stop (`proxy.drain_seconds`).
const SLOW_MS: u32 = 8_000;

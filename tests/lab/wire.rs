//! What can be seen between hosts.

use anyhow::ensure;
use mesh_lab::story;

use crate::reviews_on_two_hosts;

#[test]
fn no_plaintext_crosses_between_hosts() {
    story("wire::no_plaintext_crosses_between_hosts", || {
        let mut lab = reviews_on_two_hosts()?;
        let capture = lab.folder().join("wire.frames");
        let watcher = lab.vm(1).watch_wire(&capture)?;
        for number in 0..50 {
            let url = format!("http://reviews:9080/?secret=geheimnis-{number}");
            let answer = lab.vm(1).curl(&["--header", "x-secret: geheimnis", &url])?;
            ensure!(answer.status == 200, "{answer:?}");
        }
        watcher.stop()?;

        let bytes = std::fs::read(&capture)?;
        let seen = |needle: &str| bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
        ensure!(bytes.len() > 10_000, "only {} bytes were captured", bytes.len());
        // The name of the service is in the clear: the SNI of a hop. So the capture saw the hops.
        ensure!(seen("reviews.default.svc.cluster.local"), "the hops were not captured");
        for needle in ["geheimnis", "reviews v1", "reviews v2", "GET /", "HTTP/1.1"] {
            ensure!(!seen(needle), "{needle:?} crossed in plaintext");
        }
        Ok(())
    });
}

#[test]
fn a_caller_without_a_mesh_certificate_is_refused_on_the_mesh_port() {
    story("wire::a_caller_without_a_mesh_certificate_is_refused_on_the_mesh_port", || {
        let mut lab = reviews_on_two_hosts()?;
        let sni = "outbound_.9080_._.reviews.default.svc.cluster.local";
        let plain = lab.vm(1).curl(&["http://198.18.0.2:15008/"])?;
        let connect_to = format!("{sni}:15008:198.18.0.2:15008");
        let url = format!("https://{sni}:15008/");
        let tls = lab.vm(1).curl(&["--insecure", "--http2", "--connect-to", &connect_to, &url])?;
        ensure!(plain.status == 0 && tls.status == 0, "{plain:?} {tls:?}");
        ensure!(!plain.body.contains("reviews") && !tls.body.contains("reviews"));
        Ok(())
    });
}

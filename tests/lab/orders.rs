//! Certificates of a gateway, ordered from an authority and renewed: Pebble, Let's Encrypt's own test authority.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::{Guarded, Host, Lab, eventually, eventually_within, has_programs, story};
use serde_json::Value;

use crate::gateway::{apply, gateway_and_service_with};

#[test]
fn a_gateway_orders_its_certificates_and_renews_them() {
    story("orders::a_gateway_orders_its_certificates_and_renews_them", || {
        if !has_programs(&["pebble", "pebble-challtestsrv", "openssl"])? {
            return Ok(());
        }
        let mut lab = gateway_and_service_with(|lab| config(lab, &["shop", "www", "lost"]))?;
        let mut authority = Authority::open(&mut lab)?;
        apply(&mut lab, "gateway.yaml", RULES)?;

        let root = eventually("the authority tells its root", || Authority::root(&mut lab))?;
        let visit = |lab: &mut Lab, name: &str| {
            let (at, url) = (format!("{name}:443:198.18.0.1"), format!("https://{name}/"));
            lab.vm(3).curl(&["--cacert", &root, "--resolve", &at, &url])
        };
        // `shop` is proven by TLS on 443; for `www` no server has a certificate, so it is proven on port 80, where rules
        // send everything else to HTTPS.
        // Should it be asked for before the port is open, the next order begins after a minute.
        eventually_within(Duration::from_secs(90), "the certificate has come", || {
            let answer = visit(&mut lab, "shop.example.com")?;
            ensure!(answer.status == 200 && answer.body.contains("the shop"), "{answer:?}");
            Ok(())
        })?;
        eventually_within(Duration::from_secs(90), "so has the other", || fingerprint(lab.vm(1), "www"))?;
        let redirected = lab.vm(3).curl(&["-H", "Host: shop.example.com", "http://198.18.0.1/"])?;
        ensure!(redirected.status == 301, "{redirected:?}");
        let log = std::fs::read_to_string(&authority.log)?;
        ensure!(log.contains("validate w/ HTTP: http://www.example.com"), "{log}");

        // What leads elsewhere is told, and the authority is not asked again and again.
        eventually_within(Duration::from_secs(30), "the failure is told", || {
            let status = lab.vm(2).meshctl(&["status", "-o", "json"])?.success()?.stdout;
            ensure!(status.contains("secret lost is not renewed: lost.example.com"), "{status}");
            Ok(())
        })?;
        let renewed = lab.vm(1).meshctl(&["secret", "renew", "lost"])?;
        ensure!(renewed.code == Some(1) && renewed.stderr.contains("port 80"), "{renewed:?}");

        // They live for 30 s, and are renewed by themselves.
        let before = fingerprint(lab.vm(1), "shop")?;
        eventually_within(Duration::from_mins(1), "the certificate is renewed", || {
            ensure!(fingerprint(lab.vm(1), "shop")? != before, "still {before}");
            Ok(())
        })?;
        ensure!(visit(&mut lab, "shop.example.com")?.status == 200, "the new one is shown");

        // An authority that is gone changes nothing.
        let before = fingerprint(lab.vm(1), "shop")?;
        authority.close();
        let renewed = lab.vm(1).meshctl(&["secret", "renew", "shop"])?;
        ensure!(renewed.code == Some(1) && renewed.stderr.contains("cannot reach"), "{renewed:?}");
        ensure!(fingerprint(lab.vm(1), "shop")? == before, "the old one stays");
        ensure!(visit(&mut lab, "shop.example.com")?.status == 200, "and is shown");

        // However often somebody asks: a few orders a day.
        let orders = lab.vm(1).folder().join("data/acme/orders.json");
        let asked = |lab: &mut Lab| lab.vm(1).meshctl(&["secret", "renew", "lost"]);
        let refused = (0..20).map(|_| asked(&mut lab)).find(|answer| {
            answer.as_ref().is_ok_and(|answer| answer.stderr.contains("too many orders: 12 in 24 h"))
        });
        ensure!(refused.is_some(), "the authority is asked without end");
        let orders: Value = serde_json::from_str(&std::fs::read_to_string(orders)?)?;
        ensure!(orders["lost"]["begun"].as_array().is_some_and(|begun| begun.len() == 12), "{orders}");
        let log = lab.vm(1).log();
        ensure!(!log.contains("PRIVATE KEY"), "{log}");
        Ok(())
    });
}

fn fingerprint(host: &Host, secret: &str) -> Result<String> {
    let told = host.meshctl(&["secret", "get", secret, "-o", "json"])?.success()?.stdout;
    let told: Value = serde_json::from_str(&told)?;
    let item = &told["items"][0];
    ensure!(item["renewal"].is_number(), "{told}");
    item["sha256"].as_str().map(str::to_owned).context("a fingerprint")
}

/// What vm1 orders; also makes the authority's own certificate.
fn config(lab: &mut Lab, names: &[&str]) -> Result<String> {
    let folder = lab.folder().display().to_string();
    let make = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout {folder}/authority.key \
         -out {folder}/authority.pem -subj /CN=authority -addext subjectAltName=IP:198.18.0.3"
    );
    lab.vm(3).shell(&make)?.success()?;
    let mut text = format!(
        "[acme]\ndirectory = \"https://198.18.0.3:14000/dir\"\nroots = \"{folder}/authority.pem\"\nagree_to_terms = true\n"
    );
    for name in names {
        let _ = write!(text, "[[acme.certificate]]\nsecret = \"{name}\"\nnames = [\"{name}.example.com\"]\n");
    }
    Ok(text)
}

/// Pebble on vm3, and the DNS it asks: every name leads to vm1, `lost` to vm2, where nothing listens.
struct Authority {
    running: Vec<Guarded>,
    log: std::path::PathBuf,
}

impl Authority {
    fn open(lab: &mut Lab) -> Result<Self> {
        let folder = lab.folder().display().to_string();
        let log = lab.folder().join("pebble.log");
        let config = format!(
            r#"{{"pebble": {{"listenAddress": "198.18.0.3:14000", "managementListenAddress": "198.18.0.3:15999",
                "certificate": "{folder}/authority.pem", "privateKey": "{folder}/authority.key", "httpPort": 80, "tlsPort": 443,
                "ocspResponderURL": "", "externalAccountBindingRequired": false, "certificateValidityPeriod": 30}}}}"#
        );
        let config = lab.file("pebble.json", &config)?;
        let vm3 = lab.vm(3);
        let names = "pebble-challtestsrv -defaultIPv4 198.18.0.1 -defaultIPv6 '' -http01 '' -https01 '' -tlsalpn01 '' \
                     -dns01 198.18.0.3:8053 -management 198.18.0.3:8055";
        let names = vm3.keep(&format!("exec {names} > {folder}/names.log 2>&1"))?;
        let pebble = format!(
            "PEBBLE_VA_NOSLEEP=1 exec pebble -strict -config {} -dnsserver 198.18.0.3:8053 > {} 2>&1",
            config.display(),
            log.display()
        );
        let pebble = vm3.keep(&pebble)?;
        eventually("the names can be told", || {
            let lost = r#"{"host": "lost.example.com.", "addresses": ["198.18.0.2"]}"#;
            let told = lab.vm(3).curl(&["-d", lost, "http://198.18.0.3:8055/add-a"])?;
            ensure!(told.status == 200, "{told:?}");
            Ok(())
        })?;
        Ok(Self { running: vec![names, pebble], log })
    }

    /// Writes the root of what it issues, and returns where.
    fn root(lab: &mut Lab) -> Result<String> {
        let told = lab.vm(3).curl(&["-k", "https://198.18.0.3:15999/roots/0"])?;
        ensure!(told.status == 200, "{told:?}");
        Ok(lab.file("root.pem", &told.body)?.display().to_string())
    }

    fn close(&mut self) {
        self.running.clear();
    }
}

/// One server shows the certificate of `shop`; what is plain is sent to HTTPS.
const RULES: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [shop.example.com], tls: {mode: SIMPLE, credentialName: shop}}
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [\"*\"], tls: {httpsRedirect: true}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.example.com]
  gateways: [front]
  http: [{route: [{destination: {host: shop}}]}]
";

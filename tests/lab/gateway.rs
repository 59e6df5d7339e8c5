//! The way in from outside: a visitor that is no host of the mesh, a gateway, a service on another host.

use anyhow::{Result, ensure};
use mesh_lab::{Lab, eventually, has_programs, story};

#[test]
fn a_visitor_from_outside_meets_a_service_behind_a_gateway() {
    story("gateway::a_visitor_from_outside_meets_a_service_behind_a_gateway", || {
        let mut lab = gateway_and_service()?;
        let capture = lab.folder().join("capture");
        let wire = lab.vm(2).watch_wire(&capture)?;
        apply(&mut lab, "gateway.yaml", &rules("{number: 8080, name: http, protocol: HTTP}", ""))?;

        let visit = |lab: &mut Lab, host: &str| lab.vm(3).curl(&["-H", host, "http://198.18.0.1:8080/hello"]);
        let answer = visit(&mut lab, "Host: shop.example.com")?;
        ensure!(answer.status == 200 && answer.body.contains("the shop"), "{answer:?}");
        let unknown = visit(&mut lab, "Host: other.example.com")?;
        ensure!(unknown.status == 404, "{unknown:?}");
        // Between the hosts nothing is readable.
        wire.stop()?;
        let seen = String::from_utf8_lossy(&std::fs::read(&capture)?).into_owned();
        ensure!(!seen.contains("the shop"), "the answer crossed in plain text");

        let deleted = lab.vm(1).meshctl(&["delete", "gateway", "front"])?;
        ensure!(deleted.code == Some(0), "{deleted:?}");
        eventually("the port is closed", || {
            let gone = visit(&mut lab, "Host: shop.example.com")?;
            ensure!(gone.status == 0, "{gone:?}");
            Ok(())
        })
    });
}

#[test]
fn a_gateway_shows_a_certificate_and_tells_of_what_it_cannot_open() {
    story("gateway::a_gateway_shows_a_certificate_and_tells_of_what_it_cannot_open", || {
        if !has_programs(&["openssl"])? {
            return Ok(());
        }
        let mut lab = gateway_and_service()?;
        let secret = lab.vm(1).folder().join("data/secrets/shop");
        std::fs::create_dir_all(&secret)?;
        let folder = secret.display();
        let make = format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout {folder}/tls.key \
             -out {folder}/tls.crt -subj /CN=shop.example.com -addext subjectAltName=DNS:shop.example.com"
        );
        lab.vm(1).shell(&make)?.success()?;
        let port = "{number: 8443, name: https, protocol: HTTPS}";
        let taken = "\n  - {port: {number: 15008, name: taken, protocol: HTTP}, hosts: [\"*\"]}";
        apply(
            &mut lab,
            "gateway.yaml",
            &rules(&format!("{port}, tls: {{mode: SIMPLE, credentialName: shop}}"), taken),
        )?;

        let answer = lab.vm(3).curl(&[
            "--cacert",
            &format!("{folder}/tls.crt"),
            "--resolve",
            "shop.example.com:8443:198.18.0.1",
            "https://shop.example.com:8443/",
        ])?;
        ensure!(answer.status == 200 && answer.body.contains("the shop"), "{answer:?}");
        eventually("the taken port is told", || {
            let status = lab.vm(2).meshctl(&["status", "-o", "json"])?.success()?.stdout;
            ensure!(status.contains("0.0.0.0:15008 is not open"), "{status}");
            Ok(())
        })
    });
}

/// vm1 is a gateway, vm2 serves `shop`; vm3 is no host of the mesh.
pub(crate) fn gateway_and_service() -> Result<Lab> {
    gateway_and_service_with(|_| Ok(String::new()))
}

/// The same, with more in vm1's `meshd.toml`.
pub(crate) fn gateway_and_service_with(more: impl FnOnce(&mut Lab) -> Result<String>) -> Result<Lab> {
    let mut lab = Lab::new(3)?;
    let more = more(&mut lab)?;
    lab.vm(1).write_config(&format!("[host.labels]\nistio = \"ingressgateway\"\n{more}"))?;
    lab.vm(1).meshd(&["init"])?.success()?;
    lab.vm(1).start()?;
    let token = lab.vm(1).meshctl(&["token", "create"])?.success()?.stdout;
    lab.vm(2).join("198.18.0.1:15008", token.trim())?.success()?;
    lab.vm(2).start()?;
    lab.vm(2).serve("shop", 9080, "the shop")?;
    let file = "[[service]]\nname = \"shop\"\naccount = \"shop\"\n[[service.port]]\nnumber = 9080\nprotocol = \"http\"\n";
    lab.vm(2).services_file("shop.toml", file)?;
    eventually("the service is known on vm1", || {
        let list = lab.vm(1).meshctl(&["service", "list", "-o", "json"])?.success()?.stdout;
        ensure!(list.contains("\"health\": \"healthy\""), "{list}");
        Ok(())
    })?;
    Ok(lab)
}

pub(crate) fn apply(lab: &mut Lab, name: &str, rules: &str) -> Result<()> {
    let file = lab.file(name, rules)?;
    let applied = lab.vm(1).meshctl(&["apply", &file.display().to_string()])?;
    ensure!(applied.code == Some(0), "{applied:?}");
    Ok(())
}

fn rules(server: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: front}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - {{port: {server}, hosts: [shop.example.com]}}{more}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: shop}}
spec:
  hosts: [shop.example.com]
  gateways: [front]
  http: [{{route: [{{destination: {{host: shop}}}}]}}]
"
    )
}

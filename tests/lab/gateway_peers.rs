//! Gateways and programs that know nothing of them: curl, Chromium, nginx.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use mesh_lab::{Lab, eventually, has_programs, story};

use crate::gateway::{apply, gateway_and_service};

#[test]
fn curl_and_a_browser_visit_over_https() {
    story("gateway_peers::curl_and_a_browser_visit_over_https", || {
        if !has_programs(&["openssl", "chromium", "certutil"])? {
            return Ok(());
        }
        let mut lab = gateway_and_service()?;
        let keys = Keys::new(&mut lab)?;
        keys.certify(&mut lab, "shop", "shop.example.com")?;
        keys.certify(&mut lab, "partner", "partner.example.com")?;
        keys.certify(&mut lab, "visitor", "visitor.example.com")?;
        keys.put(&mut lab, "create", "shop", &["cert", "key"])?;
        keys.put(&mut lab, "create", "partner", &["cert", "key", "ca"])?;
        apply(
            &mut lab,
            "rules.yaml",
            include_str!("../../examples/gateway-clients/client-certificates.yaml"),
        )?;
        let shop = "https://shop.example.com/hello";

        for (version, flag) in [("1.1", "--http1.1"), ("2", "--http2")] {
            let answer = keys.visit(&mut lab, &[flag, shop])?;
            ensure!(
                answer.contains("the shop") && answer.ends_with(&format!(" {version} 200")),
                "{flag}: {answer}"
            );
        }
        let plain = keys.visit(&mut lab, &["http://shop.example.com/hello"])?;
        ensure!(plain.ends_with("301"), "{plain}");
        let partner = "https://partner.example.com/hello";
        let (cert, key) = (keys.path("visitor.crt"), keys.path("visitor.key"));
        let known = keys.visit(&mut lab, &["--cert", &cert, "--key", &key, partner])?;
        ensure!(known.contains("the shop") && known.ends_with(" 2 200"), "{known}");
        let nobody = keys.visit(&mut lab, &[partner])?;
        ensure!(nobody.ends_with("000"), "{nobody}");

        // Another certificate takes the place of the first without a restart.
        let before = shown(&mut lab)?;
        keys.certify(&mut lab, "shop", "shop.example.com")?;
        keys.put(&mut lab, "rotate", "shop", &["cert", "key"])?;
        eventually("the new certificate is shown", || {
            let now = shown(&mut lab)?;
            ensure!(!now.is_empty() && now != before, "{now}");
            Ok(())
        })?;

        let page = keys.browse(&mut lab, shop)?;
        ensure!(page.contains("the shop"), "{page}");
        let listed = lab.vm(1).meshctl(&["secret", "list", "-o", "json"])?.success()?.stdout;
        ensure!(listed.contains("Gateway default/front") && !listed.contains("PRIVATE"), "{listed}");
        Ok(())
    });
}

#[test]
fn nginx_is_reached_by_name_behind_tls_that_passes_through() {
    story("gateway_peers::nginx_is_reached_by_name_behind_tls_that_passes_through", || {
        if !has_programs(&["openssl", "nginx"])? {
            return Ok(());
        }
        let mut lab = gateway_and_service()?;
        let keys = Keys::new(&mut lab)?;
        keys.certify(&mut lab, "shop", "shop.example.com")?;
        let _nginx =
            keys.nginx(&mut lab, 2, "shop", "127.0.0.1:8443", "return 200 \"nginx $ssl_server_name\";")?;
        lab.vm(2).meshctl(&["service", "register", "secure", "--port", "443:tls:8443"])?.success()?;
        let rules = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 443, name: tls, protocol: TLS}, hosts: [shop.example.com], tls: {mode: PASSTHROUGH}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: secure}
spec:
  hosts: [shop.example.com]
  gateways: [front]
  tls: [{match: [{sniHosts: [shop.example.com]}], route: [{destination: {host: secure, port: {number: 443}}}]}]
";
        apply(&mut lab, "rules.yaml", rules)?;
        let answer = keys.visit(&mut lab, &["https://shop.example.com/"])?;
        ensure!(answer.starts_with("nginx shop.example.com"), "{answer}");
        Ok(())
    });
}

#[test]
fn requests_leave_by_an_egress_gateway_as_istio_documents_it() {
    story("gateway_peers::requests_leave_by_an_egress_gateway_as_istio_documents_it", || {
        if !has_programs(&["openssl", "nginx"])? {
            return Ok(());
        }
        let mut lab = Lab::new(3)?;
        lab.vm(1).write_config("[host.labels]\nistio = \"egressgateway\"")?;
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).start()?;
        let token = lab.vm(1).meshctl(&["token", "create"])?.success()?.stdout;
        lab.vm(2).join("198.18.0.1:15008", token.trim())?.success()?;
        lab.vm(2).start()?;
        let keys = Keys::new(&mut lab)?;
        keys.certify(&mut lab, "cnn", "edition.cnn.com")?;
        keys.certify(&mut lab, "client", "client.example.com")?;
        let says = "ssl_client_certificate ca.crt; ssl_verify_client optional; \
                    location / { return 200 \"$scheme $remote_addr $host $ssl_client_verify $ssl_client_s_dn\"; }";
        let _nginx = keys.nginx(&mut lab, 3, "cnn", "198.18.0.3:443", says)?;
        lab.vm(1).meshctl(&["service", "register", "istio-egressgateway", "--port", "80:http"])?.success()?;
        keys.put(&mut lab, "create", "client", &["cert", "key", "ca"])?;
        let documented = include_str!("../../examples/egress-gateway/through-a-gateway.yaml").replace(
            "resolution: DNS",
            "resolution: STATIC\n  endpoints: [{address: 198.18.0.3, ports: {https: 443}}]",
        );

        for (mode, client) in [("SIMPLE", "NONE "), ("MUTUAL", "SUCCESS CN=client.example.com")] {
            let tls = format!("tls: {{mode: {mode}, credentialName: client}}");
            apply(&mut lab, "rules.yaml", &documented.replace("tls: {mode: SIMPLE}", &tls))?;
            eventually("the request leaves by the gateway", || {
                let url = "http://edition.cnn.com/politics";
                let answer = lab.vm(2).curl(&["--proxy", "http://127.0.0.1:15080", url])?;
                let expected = format!("https 198.18.0.1 edition.cnn.com {client}");
                ensure!(answer.status == 200 && answer.body.trim() == expected.trim(), "{answer:?}");
                Ok(())
            })?;
        }
        Ok(())
    });
}

/// The serial number of the certificate that a visitor of the gateway is shown.
fn shown(lab: &mut Lab) -> Result<String> {
    let line = "openssl s_client -connect 198.18.0.1:443 -servername shop.example.com </dev/null 2>/dev/null | openssl x509 -noout -serial";
    Ok(lab.vm(3).shell(line)?.stdout)
}

/// An authority's files, in one folder.
struct Keys(PathBuf);

impl Keys {
    fn new(lab: &mut Lab) -> Result<Self> {
        let folder = lab.folder().join("keys");
        std::fs::create_dir_all(&folder)?;
        let keys = Self(folder);
        keys.run(
            lab,
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -keyout ca.key -out ca.crt \
             -subj '/CN=root of the test' -addext basicConstraints=critical,CA:TRUE",
        )?;
        Ok(keys)
    }

    fn path(&self, file: &str) -> String {
        self.0.join(file).display().to_string()
    }

    /// Makes `FILE.crt` and `FILE.key` for a name.
    fn certify(&self, lab: &mut Lab, file: &str, name: &str) -> Result<()> {
        self.run(
            lab,
            &format!(
                "openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {file}.key -out {file}.csr \
                 -subj /CN={name} && printf 'subjectAltName=DNS:{name}\\nextendedKeyUsage=serverAuth,clientAuth\\n' > {file}.ext && \
                 openssl x509 -req -in {file}.csr -CA ca.crt -CAkey ca.key -days 20 -extfile {file}.ext -out {file}.crt"
            ),
        )
    }

    fn run(&self, lab: &mut Lab, line: &str) -> Result<()> {
        lab.vm(1).shell(&format!("cd {} && {line}", self.0.display()))?.success().map(drop)
    }

    /// Gives the gateway on vm1 a secret.
    fn put(&self, lab: &mut Lab, verb: &str, name: &str, parts: &[&str]) -> Result<()> {
        let mut arguments = vec!["secret".to_owned(), verb.to_owned(), name.to_owned()];
        for part in parts {
            let file = match *part {
                "cert" => format!("{name}.crt"),
                "key" => format!("{name}.key"),
                other => format!("{other}.crt"),
            };
            arguments.extend([format!("--{part}"), self.path(&file)]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        lab.vm(1).meshctl(&arguments)?.success().map(drop)
    }

    /// What curl, on a host outside, is told: body, version of HTTP, status.
    fn visit(&self, lab: &mut Lab, arguments: &[&str]) -> Result<String> {
        let line = format!(
            "curl --silent --max-time 10 --cacert {} --connect-to ::198.18.0.1: --write-out ' %{{http_version}} %{{http_code}}' {} || true",
            self.path("ca.crt"),
            arguments.join(" ")
        );
        Ok(lab.vm(3).shell(&line)?.success()?.stdout.replace('\n', ""))
    }

    /// The page as headless Chromium sees it, which trusts our root and nobody told to look away.
    fn browse(&self, lab: &mut Lab, url: &str) -> Result<String> {
        let home = self.0.join("browser");
        std::fs::create_dir_all(home.join(".pki/nssdb"))?;
        let (home, root) = (home.display(), self.path("ca.crt"));
        let line = format!(
            "export HOME={home}; certutil -d sql:$HOME/.pki/nssdb -N --empty-password && \
             certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n lab -i {root} && \
             timeout 60 chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
             --disable-background-networking --disable-component-update --disable-sync --disable-dev-shm-usage \
             --user-data-dir=$HOME/profile --host-resolver-rules='MAP shop.example.com 198.18.0.1' \
             --timeout=20000 --dump-dom {url}"
        );
        let ran = lab.vm(3).shell(&line)?;
        Ok(format!("{}{}", ran.stdout, ran.stderr))
    }

    /// Starts nginx with a certificate of ours.
    fn nginx(
        &self,
        lab: &mut Lab,
        on: usize,
        name: &str,
        listen: &str,
        says: &str,
    ) -> Result<mesh_lab::Guarded> {
        let folder = self.0.display();
        let location =
            if says.contains("location") { says.to_owned() } else { format!("location / {{ {says} }}") };
        let text = format!(
            "daemon off; master_process off; user root root; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\nevents {{}}\nhttp {{\n\
             access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; \
             fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n\
             server {{ listen {listen} ssl; ssl_certificate {folder}/{name}.crt; ssl_certificate_key {folder}/{name}.key;\n\
             {} }} }}\n",
            location.replace("ca.crt", &self.path("ca.crt"))
        );
        let file = self.0.join("nginx.conf");
        std::fs::write(&file, text)?;
        let nginx = lab.vm(on).keep(&format!("exec nginx -p {folder} -c {}", file.display()))?;
        let log = self.0.join("nginx.log");
        eventually("nginx listens", || {
            let found = lab.vm(on).shell(&format!("ss -Hlnt 'sport = :{}'", port(listen)))?;
            ensure!(!found.stdout.trim().is_empty(), "{}", read(&log));
            Ok(())
        })?;
        Ok(nginx)
    }
}

fn port(listen: &str) -> &str {
    listen.rsplit(':').next().unwrap_or_default()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

//! Clients that know nothing of a mesh, through interception: what they speak is carried whole.

use anyhow::ensure;
use mesh_lab::{Lab, eventually, story};

/// A service of one port on vm2, called `name`.
fn on_vm2(kind: &str, name: &str, port: u16, protocol: &str) -> anyhow::Result<Lab> {
    let mut lab = Lab::mesh(2)?;
    lab.vm(2).serve_as(kind, port)?;
    lab.vm(2).services_file("service.toml", &service(name, port, protocol))?;
    Ok(lab)
}

fn service(name: &str, port: u16, protocol: &str) -> String {
    let protocol = if protocol.is_empty() { String::new() } else { format!("protocol = \"{protocol}\"\n") };
    format!("[[service]]\nname = \"{name}\"\n[[service.port]]\nnumber = {port}\n{protocol}")
}

#[test]
fn grpc_streams_both_ways_and_its_trailers_arrive() {
    story("clients::grpc_streams_both_ways_and_its_trailers_arrive", || {
        let mut lab = on_vm2("grpc", "orders", 50051, "grpc")?;

        let called = eventually("orders is reached", || {
            lab.vm(1).call(&["grpc-call", "orders:50051", "5"])?.success()
        })?;

        let messages =
            (0..5).map(|number| format!("message {number} came back\n")).collect::<Vec<_>>().concat();
        // Five messages of nine letters, each with five bytes in front.
        let expected = format!("status 200\n{messages}grpc-status: 0\nx-bytes: 70\n");
        ensure!(called.stdout == expected, "{called:?}");
        Ok(())
    });
}

#[test]
fn curl_speaks_http2_with_prior_knowledge_to_an_http2_service() {
    story("clients::curl_speaks_http2_with_prior_knowledge_to_an_http2_service", || {
        let mut lab = on_vm2("grpc", "orders", 50051, "http2")?;
        let arguments = [
            "--http2-prior-knowledge",
            "--dump-header",
            "-",
            "--header",
            "te: trailers",
            "--header",
            "content-type: application/grpc",
            "--data-binary",
            "hello",
            "http://orders:50051/lab.Echo/Once",
        ];

        let answer = eventually("orders is reached", || {
            let answer = lab.vm(1).curl(&arguments)?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(answer)
        })?;

        ensure!(answer.body.starts_with("HTTP/2 200"), "{answer:?}");
        ensure!(answer.body.contains("hello") && answer.body.contains("grpc-status: 0"), "{answer:?}");
        ensure!(answer.body.contains("x-bytes: 5"), "{answer:?}");
        Ok(())
    });
}

#[test]
fn a_websocket_is_opened_used_and_closed() {
    story("clients::a_websocket_is_opened_used_and_closed", || {
        let mut lab = on_vm2("websocket", "chat", 8090, "http")?;

        let called =
            eventually("chat is reached", || lab.vm(1).call(&["websocket-call", "chat:8090"])?.success())?;

        ensure!(called.stdout == "welcome\none\ntwo\nclosed\n", "{called:?}");
        Ok(())
    });
}

#[test]
fn a_server_that_speaks_first_is_heard_whether_its_port_is_declared_or_not() {
    story("clients::a_server_that_speaks_first_is_heard_whether_its_port_is_declared_or_not", || {
        let mut lab = on_vm2("mail", "mail", 2525, "tcp")?;
        lab.vm(2).serve_as("mail", 2526)?;
        lab.vm(2).services_file("other.toml", &service("post", 2526, ""))?;
        let mail = lab.file("mail.txt", "Subject: hello\r\n\r\nfrom vm1\r\n")?.display().to_string();

        for url in ["smtp://mail:2525", "smtp://post:2526"] {
            let arguments =
                ["--mail-from", "a@vm1.example", "--mail-rcpt", "b@vm2.example", "--upload-file", &mail, url];
            eventually("the mail is taken", || {
                let sent = lab.vm(1).curl(&arguments)?;
                ensure!(sent.status == 250, "{url}: {sent:?}");
                Ok(())
            })?;
        }
        Ok(())
    });
}

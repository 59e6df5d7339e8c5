//! The ways into the mesh beside IPv4 and HTTP/1.1 by interception, and what passes through.

use anyhow::ensure;
use mesh_lab::{Lab, eventually, story};

use crate::{reviews, reviews_on_two_hosts};

#[test]
fn ipv6_http2_and_opaque_tcp_are_intercepted() {
    story("ways_in::ipv6_http2_and_opaque_tcp_are_intercepted", || {
        let mut lab = reviews_on_two_hosts()?;
        lab.vm(2).serve_echo("echo", 7777)?;
        lab.vm(2).services_file(
            "echo.toml",
            "[[service]]\nname = \"echo\"\n[[service.port]]\nnumber = 7777\nprotocol = \"tcp\"\n",
        )?;

        let six = lab.vm(1).curl(&["-6", "--verbose", "http://reviews:9080/"])?;
        ensure!(six.status == 200 && six.body.contains("reviews v"), "{six:?}");
        ensure!(six.complaint.contains("2001:2:"), "a virtual IPv6 address: {}", six.complaint);

        let h2 = lab.vm(1).curl(&[
            "--http2-prior-knowledge",
            "--write-out",
            "\n%{http_version} %{http_code}",
            "http://reviews:9080/",
        ])?;
        ensure!(h2.body.contains("reviews v") && h2.complaint.is_empty(), "{h2:?}");

        eventually("opaque TCP passes through the mesh", || {
            let line = "echo hello | timeout 5 curl --silent --show-error telnet://echo:7777";
            let echoed = lab.vm(1).shell(line)?;
            ensure!(echoed.stdout == "hello\n", "{echoed:?}");
            Ok(())
        })
    });
}

#[test]
fn without_interception_the_proxy_port_and_listeners_follow_the_rules() {
    story("ways_in::without_interception_the_proxy_port_and_listeners_follow_the_rules", || {
        let mut lab = Lab::new(3)?;
        lab.vm(1).write_config(
            "[intercept]\nmode = \"off\"\n\
             [[listener]]\naddress = \"127.0.0.1:9080\"\nservice_port = 9080\n\
             [[listener]]\naddress = \"127.0.0.1:9081\"\nto = \"reviews.default:9080\"\n",
        )?;
        lab.form_mesh()?;
        for (number, version) in [(2, "v1"), (3, "v2")] {
            lab.vm(number).serve("reviews", 9080, &format!("reviews {version}"))?;
            lab.vm(number).services_file("reviews.toml", &reviews(version))?;
        }
        let rules = lab.file("retry.yaml", crate::RETRY)?.display().to_string();
        lab.vm(1).meshctl(&["apply", &rules])?.success()?;
        let tables = lab.vm(1).shell("nft list tables")?.success()?.stdout;
        ensure!(tables.is_empty(), "nothing is intercepted: {tables}");

        let ways: [&[&str]; 3] = [
            &["--proxy", "http://127.0.0.1:15080", "http://reviews:9080/"],
            &["--header", "host: reviews:9080", "http://127.0.0.1:9080/"],
            &["http://127.0.0.1:9081/"],
        ];
        for way in ways {
            eventually("both versions answer", || {
                let answers: Vec<_> = (0..10).map(|_| lab.vm(1).curl(way)).collect::<Result<_, _>>()?;
                let both = ["v1", "v2"].iter().all(|v| answers.iter().any(|answer| answer.body.contains(v)));
                ensure!(both && answers.iter().all(|answer| answer.status == 200), "{way:?}: {answers:?}");
                Ok(())
            })?;
        }

        lab.vm(3).kill_service("reviews");
        for number in 0..60 {
            let answer = lab.vm(1).curl(ways[number % ways.len()])?;
            ensure!(answer.status == 200 && answer.body.contains("v1"), "request {number}: {answer:?}");
        }
        Ok(())
    });
}

#[test]
fn a_caller_outside_the_mesh_reaches_a_service_that_listens_for_all() {
    story("ways_in::a_caller_outside_the_mesh_reaches_a_service_that_listens_for_all", || {
        let mut lab = Lab::mesh(2)?;
        lab.vm(2).serve_at("open", "0.0.0.0:9200", "open")?;
        lab.vm(2).services_file(
            "open.toml",
            "[[service]]\nname = \"open\"\n[[service.port]]\nnumber = 9200\nprotocol = \"http\"\ntarget = \"198.18.0.2:9200\"\n",
        )?;
        eventually("vm2 intercepts what comes in", || {
            let set = lab.vm(2).shell("nft list set inet meshd inbound_targets")?.success()?.stdout;
            ensure!(set.contains("9200"), "{set}");
            Ok(())
        })?;
        eventually("the mesh reaches it", || {
            let answer = lab.vm(1).curl(&["http://open:9200/"])?;
            ensure!(answer.body == "open\n", "{answer:?}");
            Ok(())
        })?;

        // From now on vm1 is a host like any other: it speaks plainly.
        let code = lab.vm(1).stop()?;
        ensure!(code == Some(0), "{code:?}");
        let plain = lab.vm(1).curl(&["http://198.18.0.2:9200/"])?;
        ensure!(plain.status == 200 && plain.body == "open\n", "{plain:?}");
        Ok(())
    });
}

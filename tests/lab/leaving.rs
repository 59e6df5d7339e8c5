//! Instances and hosts that leave while traffic runs, and disks that fill.

use anyhow::{Result, ensure};
use mesh_lab::{Lab, eventually, story};

use crate::{canary, reviews_on_two_hosts};

#[test]
fn a_host_that_stops_withdraws_its_services_and_no_request_fails() {
    story("leaving::a_host_that_stops_withdraws_its_services_and_no_request_fails", || {
        let mut lab = reviews_on_two_hosts()?;
        let rules = lab.file("retry.yaml", crate::RETRY)?.display().to_string();
        lab.vm(1).meshctl(&["apply", &rules])?.success()?;

        // A stream of requests, each on a connection of its own, until the file that keeps it going is gone.
        let going = lab.file("going", "")?.display().to_string();
        let answers = lab.folder().join("answers").display().to_string();
        let stream = format!(
            "while [ -e {going} ]; do curl --silent --show-error --max-time 10 --write-out ' %{{http_code}};' \
             http://reviews:9080/ >> {answers} 2>&1; done"
        );
        let asking = lab.vm(1).keep(&stream)?;
        let told = || -> Result<Vec<String>> {
            let text = std::fs::read_to_string(&answers)?;
            Ok(text.split_terminator(';').map(|answer| answer.replace('\n', " ").trim().to_owned()).collect())
        };
        eventually("both versions are asked", || {
            let told = told()?;
            ensure!(["v1", "v2"].iter().all(|version| told.iter().any(|answer| answer.contains(version))));
            Ok(())
        })?;

        let began = std::time::Instant::now();
        let code = lab.vm(3).stop()?;
        let took = began.elapsed();
        ensure!(code == Some(0), "{code:?}");
        let after = told()?.len();
        eventually("twenty more were asked", || {
            ensure!(told()?.len() >= after + 20);
            Ok(())
        })?;
        std::fs::remove_file(&going)?;
        asking.wait()?;

        let told = told()?;
        let failed: Vec<_> = told.iter().filter(|answer| !answer.ends_with("200")).collect();
        ensure!(failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), told.len());
        ensure!(
            told[after + 1..].iter().all(|answer| answer.contains("v1")),
            "withdrawn: {:?}",
            &told[after..]
        );
        let list = lab.vm(1).meshctl(&["service", "list", "-o", "json"])?.success()?.stdout;
        ensure!(list.contains("\"left\""), "{list}");
        ensure!(took < std::time::Duration::from_secs(5), "stopping took {took:?}");
        Ok(())
    });
}

#[test]
fn a_file_taken_out_of_services_d_withdraws_its_instances() {
    story("leaving::a_file_taken_out_of_services_d_withdraws_its_instances", || {
        let mut lab = reviews_on_two_hosts()?;
        lab.vm(3).remove_services_file("reviews.toml")?;
        eventually("v2 is known no more", || {
            let list = lab.vm(1).meshctl(&["service", "list", "-o", "json"])?.success()?.stdout;
            ensure!(!list.contains("\"v2\"") && list.contains("\"v1\""), "{list}");
            Ok(())
        })?;
        for _ in 0..10 {
            let answer = lab.vm(1).curl(&["http://reviews:9080/"])?;
            ensure!(answer.body == "reviews v1\n", "{answer:?}");
        }
        Ok(())
    });
}

#[test]
fn a_full_disk_stops_writes_with_a_message_and_nothing_else() {
    story("leaving::a_full_disk_stops_writes_with_a_message_and_nothing_else", || {
        let mut lab = Lab::new(1)?;
        let data = lab.vm(1).folder().join("data").display().to_string();
        lab.vm(1).shell(&format!("mkdir -p {data}"))?.success()?;
        mesh_lab::mount_tmpfs(&data, "64m")?;
        lab.form_mesh()?;
        lab.vm(1).serve("reviews", 9080, "reviews v1")?;
        lab.vm(1).services_file("reviews.toml", &crate::reviews("v1"))?;
        let rules = lab.file("rules.yaml", &canary(100, 0))?.display().to_string();
        lab.vm(1).meshctl(&["apply", &rules])?.success()?;
        let answers = |lab: &mut Lab| {
            let answer = lab.vm(1).curl(&["http://reviews:9080/"])?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        };
        eventually("reviews answers", || answers(&mut lab))?;

        lab.vm(1).shell(&format!("cat /dev/zero > {data}/filler"))?;
        let more = lab.file("more.yaml", &canary(90, 10))?.display().to_string();
        let refused = lab.vm(1).meshctl(&["apply", &more])?;
        ensure!(refused.code != Some(0), "{refused:?}");
        ensure!(refused.stderr.contains("disk of vm1 is full"), "{refused:?}");

        answers(&mut lab)?;
        lab.vm(1).meshctl(&["get", "vs"])?.success()?;
        lab.vm(1).crash();
        lab.vm(1).start()?;
        eventually("reviews answers after a restart on the full disk", || answers(&mut lab))?;

        lab.vm(1).shell(&format!("rm {data}/filler"))?.success()?;
        eventually("writes go on", || lab.vm(1).meshctl(&["apply", &rules])?.success().map(drop))
    });
}

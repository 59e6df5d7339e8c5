//! A `WorkloadGroup`: hosts that join it are found by a `ServiceEntry`, as the group says, and follow it.

use anyhow::{Result, ensure};
use mesh_lab::{Lab, eventually, story};

fn rules(version: &str, path: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {{name: reviews-vms, namespace: shop}}
spec:
  metadata: {{labels: {{app: reviews}}}}
  template:
    ports: {{http: 9080}}
    serviceAccount: reviews
    labels: {{version: {version}}}
  probe: {{periodSeconds: 1, failureThreshold: 1, httpGet: {{path: {path}, port: 9080}}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: reviews, namespace: shop}}
spec:
  hosts: [reviews.shop.example]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 9080}}]
  resolution: STATIC
  location: MESH_INTERNAL
  workloadSelector: {{labels: {{app: reviews}}}}
"
    )
}

#[test]
fn a_host_that_joins_with_a_group_serves_as_the_group_says() {
    story("groups::a_host_that_joins_with_a_group_serves_as_the_group_says", || {
        let mut lab = Lab::new(3)?;
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).start()?;
        let group = lab.file("group.yaml", &rules("v1", "/"))?.display().to_string();
        lab.vm(1).meshctl(&["apply", &group])?.success()?;
        let token = lab.vm(1).meshctl(&["token", "create"])?.success()?.stdout;
        lab.vm(2).join_with(&["198.18.0.1:15008", "--group", "shop/reviews-vms"], token.trim())?.success()?;
        lab.vm(2).serve("reviews", 9080, "reviews on vm2")?;
        lab.vm(2).start()?;
        let answers = |lab: &mut Lab, text: &str| -> Result<()> {
            let text = text.to_owned();
            eventually("the member answers", || {
                let answer = lab.vm(1).curl(&["http://reviews.shop.example/"])?;
                ensure!(answer.status == 200 && answer.body.contains(&text), "{answer:?}");
                Ok(())
            })
        };
        answers(&mut lab, "reviews on vm2")?;
        let endpoints =
            lab.vm(1).meshctl(&["endpoints", "reviews.shop.example", "-o", "json"])?.success()?.stdout;
        ensure!(endpoints.contains("ns/shop/sa/reviews"), "the account is the group's: {endpoints}");

        // The group changes, and so does its member: another label, and a probe that fails.
        let changed = lab.file("changed.yaml", &rules("v2", "/status/500"))?.display().to_string();
        lab.vm(1).meshctl(&["apply", &changed])?.success()?;
        eventually("the member is ill, and of version v2", || {
            let list = lab.vm(1).meshctl(&["service", "list"])?.success()?.stdout;
            ensure!(list.contains("version=v2") && list.contains("unhealthy"), "{list}");
            Ok(())
        })?;
        let answer = lab.vm(1).curl(&["http://reviews.shop.example/"])?;
        ensure!(answer.status == 503, "{answer:?}");

        // A second member by hand, whose own words count before the group's.
        lab.vm(1).meshctl(&["apply", &group])?.success()?;
        let token = lab.vm(1).meshctl(&["token", "create"])?.success()?.stdout;
        lab.vm(3).join("198.18.0.1:15008", token.trim())?.success()?;
        lab.vm(3).start()?;
        lab.vm(3).serve("reviews", 9080, "reviews on vm3")?;
        lab.vm(3)
            .meshctl(&["service", "register", "--group", "shop/reviews-vms", "--label", "version=v9"])?
            .success()?;
        answers(&mut lab, "reviews on vm3")?;
        let refused = lab.vm(3).meshctl(&["service", "register", "--group", "shop/nobodys"])?;
        ensure!(
            refused.code == Some(1) && refused.stderr.contains("no WorkloadGroup shop/nobodys"),
            "{refused:?}"
        );

        // A member ends with its host.
        lab.vm(3).crash();
        eventually("vm3 is known to be gone", || {
            let endpoints = lab.vm(1).meshctl(&["endpoints", "reviews.shop.example"])?.success()?.stdout;
            ensure!(endpoints.contains("host gone") || endpoints.contains("host suspect"), "{endpoints}");
            Ok(())
        })?;
        answers(&mut lab, "reviews on vm2")
    });
}

//! Stories about whole meshes, told with the real binaries on hosts that are network namespaces.

mod bare;
mod binomial;
mod canary;
mod clients;
mod commands;
mod damaged;
mod doctor;
mod first_hour;
mod gateway;
mod gateway_peers;
mod groups;
mod hardship;
mod harmless;
mod leaving;
mod load;
mod looking;
mod metrics;
mod names;
mod orders;
mod outage;
mod peers;
mod quic;
mod refusals;
mod six;
mod supervised;
mod unusable;
mod ways_in;
mod wire;

use anyhow::Result;
use mesh_lab::{Lab, eventually};

/// Three hosts: `web` on vm1 calls `reviews` v1 on vm2 and v2 on vm3.
fn reviews_on_two_hosts() -> Result<Lab> {
    let mut lab = Lab::mesh(3)?;
    for (number, version) in [(2, "v1"), (3, "v2")] {
        lab.vm(number).serve("reviews", 9080, &format!("reviews {version}"))?;
        lab.vm(number).services_file("reviews.toml", &reviews(version))?;
    }
    eventually("both versions are known on vm1, and may be asked", || {
        let list = lab.vm(1).meshctl(&["service", "list", "-o", "json"])?.success()?.stdout;
        let healthy = list.matches("\"health\": \"healthy\"").count();
        anyhow::ensure!(list.contains("\"v1\"") && list.contains("\"v2\"") && healthy == 2, "{list}");
        Ok(())
    })?;
    Ok(lab)
}

/// A file of `services.d` for one version of `reviews` on port 9080.
fn reviews(version: &str) -> String {
    format!(
        "[[service]]\nname = \"reviews\"\nlabels = {{ version = \"{version}\" }}\naccount = \"reviews\"\n\
         [[service.port]]\nnumber = 9080\nprotocol = \"http\"\n"
    )
}

/// Retries for `reviews`, whichever version.
const RETRY: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  \
     http:\n  - route: [{destination: {host: reviews}}]\n    retries: {attempts: 3, retryOn: \"5xx,reset,connect-failure\"}\n";

/// Istio's canary: subsets v1 and v2 of `reviews`, with these weights.
fn canary(v1: u32, v2: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: reviews}}
spec:
  host: reviews
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews}}
spec:
  hosts: [reviews]
  http:
  - route:
    - destination: {{host: reviews, subset: v1}}
      weight: {v1}
    - destination: {{host: reviews, subset: v2}}
      weight: {v2}
"
    )
}

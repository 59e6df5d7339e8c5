//! How long reading and checking rules takes: `cargo run --release -p mesh-proto --example validate`.
//!
//! A typical file of 10 documents, then 20,000 documents in files of 1,000.

use std::fmt::Arguments;
use std::time::Instant;

use mesh_proto::yaml;

fn main() {
    let small = documents(0, 10);
    // The first reading makes the tables that all others use.
    read(&small, 10);
    let begun = Instant::now();
    read(&small, 10);
    report("10 documents", small.len(), begun);

    let files: Vec<String> = (0..20).map(|file| documents(file * 1_000, 1_000)).collect();
    let begun = Instant::now();
    for text in &files {
        read(text, 1_000);
    }
    report("20,000 documents", files.iter().map(String::len).sum(), begun);
}

fn read(text: &str, expected: usize) {
    let (documents, findings) = yaml::inspect("rules.yaml", text);
    assert!(findings.is_empty(), "{findings:?}");
    assert_eq!(documents.len(), expected);
}

#[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
fn report(what: &str, bytes: usize, begun: Instant) {
    println!("{what} ({} KiB): {:?}", bytes / 1_024, begun.elapsed());
}

/// A VirtualService and a DestinationRule in turn, of a size as people write them.
fn documents(from: usize, count: usize) -> String {
    let mut text = String::new();
    for number in from..from + count {
        let half = number / 2;
        if number % 2 == 0 {
            text.push_str(&one(format_args!(
                "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: service-{half}\nspec:\n  hosts:\n  - service-{half}\n  http:\n  \
                 - match:\n    - uri:\n        prefix: /api/v{half}\n      headers:\n        end-user:\n          exact: jason\n    timeout: 2s\n    retries:\n      attempts: 3\n      perTryTimeout: 500ms\n      retryOn: 5xx,reset\n    \
                 route:\n    - destination:\n        host: service-{half}\n        subset: v2\n  - route:\n    - destination:\n        host: service-{half}\n        subset: v1\n      weight: 90\n    \
                 - destination:\n        host: service-{half}\n        subset: v2\n      weight: 10\n---\n"
            )));
        } else {
            text.push_str(&one(format_args!(
                "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: service-{half}\nspec:\n  host: service-{half}\n  trafficPolicy:\n    loadBalancer:\n      simple: ROUND_ROBIN\n    \
                 outlierDetection:\n      consecutive5xxErrors: 3\n      interval: 5s\n  subsets:\n  - name: v1\n    labels:\n      version: v1\n  - name: v2\n    labels:\n      version: v2\n---\n"
            )));
        }
    }
    text
}

fn one(document: Arguments<'_>) -> String {
    document.to_string()
}

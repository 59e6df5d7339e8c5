//! Size: ten thousand services are compiled, and compiled again, in bearable time.

use mesh_core::compile::compile;
use mesh_core::plan::Workload;
use mesh_proto::value::Labels;

use super::world::{Maker, instance, node};

/// Prints what it takes; run with `--release --nocapture` for numbers.
#[test]
#[expect(clippy::disallowed_methods, reason = "it measures")]
fn ten_thousand_services_are_compiled_again_from_what_there_is() {
    let mut maker = Maker::new();
    for number in 0..10_000 {
        let labels = Labels::from([("version".to_owned(), "v1".to_owned())]);
        let ports = [(80, "http".to_owned(), String::new())];
        let name = format!("s{number}");
        maker.instance(&name, instance(&name, "default", &ports, labels), false);
    }
    let world = maker.finish(Vec::new());
    let node = node(vec![Workload { namespace: "default".into(), ..Workload::default() }]);
    let begin = std::time::Instant::now();
    let first = compile(&world, &node, None);
    let middle = std::time::Instant::now();
    let again = compile(&world, &node, Some(&first));
    println!("first {:?}, again {:?}", middle - begin, middle.elapsed());
    assert_eq!(first.clusters.len(), 10_000);
    let same = first
        .clusters
        .iter()
        .filter(|(name, one)| std::sync::Arc::ptr_eq(one, &again.clusters[name]))
        .count();
    assert_eq!(same, 10_000);
}

//! That every row of the table of bad inputs is a case of a test: a case begins with its row's number.

use std::collections::BTreeSet;
use std::path::Path;

/// Rows that are not cases of a table, and where they are tested.
const ELSEWHERE: [(u32, &str, &str); 8] = [
    (20, "tests/proxy/bad_inputs.rs", "trailers_that_frame_or_route_are_dropped_and_counted"),
    (38, "tests/proxy/bad_inputs.rs", "a_request_behind_a_switch_is_held_until_it_stays_http"),
    (40, "tests/proxy/bad_inputs.rs", "forged_words_of_the_mesh_are_stripped"),
    (50, "tests/proxy/hop.rs", "a_circle_through_hops_ends_at_the_limit"),
    (52, "tests/proxy/care.rs", "bytes_that_nobody_asked_for_end_a_pooled_connection"),
    (53, "src/transport/tests/callers.rs", "each_bad_certificate_is_told_to_its_caller_and_named_in_the_log"),
    (54, "tests/proxy/opaque.rs", "a_server_name_that_is_absent_or_unknown_is_closed_and_reaches_nobody"),
    (55, "tests/proxy/opaque.rs", "tokens_are_promised_by_no_rule"),
];

#[test]
fn every_row_of_bad_inputs_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut rows = BTreeSet::new();
    for file in std::fs::read_dir(root.join("tests/proxy")).expect("the tests") {
        // Of a folder beside them nothing is read.
        let Ok(text) = std::fs::read_to_string(file.expect("a file").path()) else { continue };
        // What is between two strings begins with no number.
        let strings = text.split('"');
        rows.extend(strings.filter_map(|string| string.split_once(' ')?.0.parse::<u32>().ok()));
    }
    for (row, file, test) in ELSEWHERE {
        let text = std::fs::read_to_string(root.join(file)).unwrap_or_default();
        assert!(text.contains(&format!("fn {test}(")), "row {row}: no {test} in {file}");
        rows.insert(row);
    }

    let missing: Vec<u32> = (1..=56).filter(|row| !rows.contains(row)).collect();

    assert_eq!(missing, Vec::<u32>::new(), "rows without a test");
}

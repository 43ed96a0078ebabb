//! A run has every row that is asked for by name, as a user starts it.

use std::process::Command;

use granule_bench::names::{missing, required};
use granule_bench::report::Report;

fn bench(arguments: &[&str]) -> (bool, String, String) {
    let program = env!("CARGO_BIN_EXE_granule-bench");
    let output = Command::new(program).args(arguments).output().expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.success(), text(output.stdout), text(output.stderr))
}

/// Half a minute in a release build; a debug build takes several.
#[test]
fn a_quick_run_has_all_rows_and_becomes_table_and_picture() {
    let (done, json, errors) = bench(&["--quick", "--json"]);
    assert!(done, "{errors}");
    let report = Report::from_json(&json).expect("a report");
    assert_eq!(missing(&report), Vec::<String>::new());
    assert!(report.rows.len() > required().len());

    let file = std::env::temp_dir().join(format!("granule-rows-{}", std::process::id()));
    std::fs::write(&file, &json).expect("a file");
    let (picture, from) = (file.with_extension("svg"), file.to_str().expect("a path"));
    let (done, table, errors) =
        bench(&["--from", from, "--markdown", "--svg", picture.to_str().expect("a path")]);
    let svg = std::fs::read_to_string(&picture);
    let _ = (std::fs::remove_file(&file), std::fs::remove_file(&picture));
    assert!(done, "{errors}");
    assert_eq!(table.lines().count(), 2 + 15, "{table}");
    assert_eq!(svg.expect("a picture").matches("<circle").count(), 1 + 15);
}

#[test]
fn what_cannot_be_done_is_said() {
    let (done, _, errors) = bench(&["--from", "/nowhere/at/all"]);
    assert!(!done && errors.contains("/nowhere/at/all"), "{errors}");
    let (done, _, errors) = bench(&["--only", "nothing/begins/so"]);
    assert!(!done && errors.contains("no row's name begins so"), "{errors}");
}

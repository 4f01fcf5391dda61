//! The chart starts the operator with arguments that it takes. What the chart renders is in `tests/chart/snapshots`.

use std::path::Path;

use clap::Parser as _;
use disagg_operator::OperatorArgs;

#[test]
fn the_operator_takes_what_the_chart_gives() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/chart/snapshots");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("snapshots of the chart") {
        let path = entry.expect("a snapshot").path();
        let text = std::fs::read_to_string(&path).expect("UTF-8");
        let arguments = text.lines().filter_map(|line| line.strip_prefix("            - --"));
        let arguments: Vec<String> = arguments.map(|argument| format!("--{argument}")).collect();
        assert!(!arguments.is_empty(), "{}", path.display());
        let given = std::iter::once("disagg-operator".to_owned()).chain(arguments);
        let parsed =
            OperatorArgs::try_parse_from(given).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(parsed.listen.port(), 8080, "the port of the probes");
        seen += 1;
    }
    assert!(seen >= 2, "{seen} snapshots");
}

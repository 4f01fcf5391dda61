//! Every rule of the schema against the API server itself: what it refuses, and how it says so.

#[path = "../../../../crates/api/tests/rules/mod.rs"]
#[allow(unreachable_pub)] // public for the crate that it belongs to
mod table;

use disagg_e2e::cluster::Namespace;
use kube::api::PostParams;
use serde_json::Value;

use super::cluster;

#[tokio::test]
async fn the_api_server_refuses_what_the_table_says_and_nothing_else() {
    let namespace = Namespace::create(cluster(), "operator-rules").await;
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let create = async |at: &str, value: &Value| {
        let object = serde_json::from_value(table::with(at, value)).expect("an object");
        namespace.deployments().create(&dry_run, &object).await.map(|_| ()).map_err(|error| error.to_string())
    };
    let mut wrong = Vec::new();
    for row in table::rows() {
        let shown = format!("{}: {}", row.path, row.rule);
        match create(&row.at, &row.refused).await {
            Ok(()) => wrong.push(format!("{shown}: not refused")),
            Err(error) => {
                // The message names the field, or is the rule's own.
                let field =
                    row.path.trim_end_matches(['[', ']', '{', '}']).rsplit('.').next().unwrap_or_default();
                let named = error.contains(row.rule) || (!field.is_empty() && error.contains(field));
                let required = row.rule.strip_prefix("required ").is_some_and(|field| error.contains(field));
                if !named && !required {
                    wrong.push(format!("{shown}: refused without its name: {error}"));
                }
            }
        }
        if let Err(error) = create(&row.at, &row.valid).await {
            wrong.push(format!("{shown}: the valid case is refused: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

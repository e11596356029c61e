//! The dashboards: their panels, and their validation by Grafana's own types.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agentbox_testing::bin_dir;
use agentbox_testing::paths::agentbox_local;
use agentbox_testing::tool::Tool;
use serde_json::Value;

/// The first use builds the validation.
const DEADLINE: Duration = Duration::from_secs(900);

/// A panel with its expressions.
#[derive(Debug)]
pub struct Panel {
    pub title: String,
    pub expressions: Vec<String>,
}

fn files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../observability/dashboards");
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect();
    files.sort();
    assert_eq!(files.len(), 4, "{files:?}");
    files
}

/// Every panel of every dashboard. `$__rate_interval` and `$__range` are replaced by `window`.
pub fn panels(window: &str) -> Vec<Panel> {
    let mut panels = Vec::new();
    for file in files() {
        let text = std::fs::read_to_string(file).unwrap();
        let dashboard: Value = serde_json::from_str(&text).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            let Some(targets) = panel["targets"].as_array() else {
                continue;
            };
            let expression = |target: &Value| {
                let expression = target["expr"].as_str().unwrap();
                expression
                    .replace("$__rate_interval", window)
                    .replace("$__range", window)
            };
            panels.push(Panel {
                title: panel["title"].as_str().unwrap().to_owned(),
                expressions: targets.iter().map(expression).collect(),
            });
        }
    }
    panels
}

#[tokio::test]
async fn dashboards_are_valid_for_grafana() {
    let report = Tool::new(agentbox_local(&bin_dir()).unwrap())
        .args(["validate-dashboards"])
        .args(files())
        .within(DEADLINE)
        .run()
        .await
        .unwrap();
    assert_eq!(report.matches(": valid").count(), 4, "{report}");
}

#[test]
fn panel_titles_are_unique_and_no_expression_hides_missing_data() {
    let panels = panels("1m");
    let mut titles: Vec<&str> = panels.iter().map(|panel| panel.title.as_str()).collect();
    let count = titles.len();
    titles.sort_unstable();
    titles.dedup();
    assert_eq!(titles.len(), count);
    for expression in panels.iter().flat_map(|panel| &panel.expressions) {
        assert!(!expression.contains("vector("), "{expression}");
        assert!(!expression.contains('$'), "{expression}");
    }
}

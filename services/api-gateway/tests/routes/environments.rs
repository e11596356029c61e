//! `/environments`.

mod create;
mod lifecycle;
mod list;

use chrono::{DateTime, Utc};
use serde_json::Value;

fn instant(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap().parse().unwrap()
}

fn ids(list: &Value) -> Vec<String> {
    list["environments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|environment| environment["id"].as_str().unwrap().to_owned())
        .collect()
}

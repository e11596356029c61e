//! Kubernetes label selectors: text → requirements → terms, or a match with labels.
//!
//! The syntax is that of `k8s.io/apimachinery` labels: `a=b`, `a==b`, `a!=b`,
//! `a in (b,c)`, `a notin (b,c)`, `a`, `!a`, joined by commas, all of them required. As in
//! Kubernetes, `!=` and `notin` also match an environment without the label.
//!
//! A label `k: v` has two terms, `k` and `k=v`. The scheduler's table `environment_terms` has those of
//! every environment.

use std::collections::BTreeSet;

use crate::error::{Error, shortened};
use crate::labels::{label_key, label_value};

const MAX_LENGTH: usize = 4096;
const MAX_REQUIREMENTS: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    In {
        key: String,
        values: BTreeSet<String>,
    },
    NotIn {
        key: String,
        values: BTreeSet<String>,
    },
    Exists(String),
    Absent(String),
}

/// All requirements must match; a selector without any matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(pub Vec<Requirement>);

/// The text is not a label selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a label selector: {problem}")]
pub struct SelectorError {
    text: String,
    problem: String,
}

impl From<SelectorError> for Error {
    fn from(error: SelectorError) -> Self {
        Self::field("label", error)
    }
}

/// Splits at commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut parts) = (0i32, 0, Vec::new());
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    parts
}

/// The values of `in (a, b)`, from the text after the operator.
fn set(text: &str) -> Result<BTreeSet<String>, String> {
    let inner = text
        .trim()
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'))
        .ok_or("a set is written as (a,b)")?;
    inner
        .split(',')
        .map(|value| value_of(value.trim()))
        .collect()
}

fn key_of(text: &str) -> Result<String, String> {
    label_key(text).map_err(|rule| format!("key `{}`: {rule}", shortened(text)))?;
    Ok(text.to_owned())
}

fn value_of(text: &str) -> Result<String, String> {
    label_value(text).map_err(|rule| format!("value `{}`: {rule}", shortened(text)))?;
    Ok(text.to_owned())
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("a requirement is empty".into());
    }
    if let Some((key, rest)) = text.split_once(char::is_whitespace) {
        let rest = rest.trim_start();
        if let Some(values) = rest
            .strip_prefix("notin")
            .filter(|v| v.trim_start().starts_with('('))
        {
            return Ok(Requirement::NotIn {
                key: key_of(key)?,
                values: set(values)?,
            });
        }
        if let Some(values) = rest
            .strip_prefix("in")
            .filter(|v| v.trim_start().starts_with('('))
        {
            return Ok(Requirement::In {
                key: key_of(key)?,
                values: set(values)?,
            });
        }
    }
    let one = |key: &str, value: &str| -> Result<_, String> {
        Ok((
            key_of(key.trim())?,
            BTreeSet::from([value_of(value.trim())?]),
        ))
    };
    if let Some((key, value)) = text.split_once("!=") {
        let (key, values) = one(key, value)?;
        return Ok(Requirement::NotIn { key, values });
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        let (key, values) = one(key, value)?;
        return Ok(Requirement::In { key, values });
    }
    match text.strip_prefix('!') {
        Some(key) => Ok(Requirement::Absent(key_of(key.trim())?)),
        None => Ok(Requirement::Exists(key_of(text)?)),
    }
}

impl std::str::FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let failed = |problem: String| SelectorError {
            text: shortened(text),
            problem,
        };
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let parts = split(text);
        if text.len() > MAX_LENGTH || parts.len() > MAX_REQUIREMENTS {
            return Err(failed(format!(
                "it must have at most {MAX_LENGTH} bytes and {MAX_REQUIREMENTS} requirements"
            )));
        }
        parts
            .into_iter()
            .map(requirement)
            .collect::<Result<_, _>>()
            .map(Self)
            .map_err(failed)
    }
}

/// The terms that an environment must have, and must not have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// One term of each group. Never two, because a key has one value.
    pub any_of_each: Vec<Vec<String>>,
    pub none_of: Vec<String>,
}

impl Requirement {
    fn matches<'a>(&self, label: &impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::In { key, values } => label(key).is_some_and(|value| values.contains(value)),
            Self::NotIn { key, values } => !label(key).is_some_and(|value| values.contains(value)),
            Self::Exists(key) => label(key).is_some(),
            Self::Absent(key) => label(key).is_none(),
        }
    }
}

impl Selector {
    /// Whether labels match; `label` returns the value of a key.
    #[must_use]
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| requirement.matches(&label))
    }

    #[must_use]
    pub fn terms(&self) -> Terms {
        let pairs = |key: &str, values: &BTreeSet<String>| {
            let pair = |value| format!("{key}={value}");
            values.iter().map(pair).collect::<Vec<_>>()
        };
        let mut terms = Terms::default();
        for requirement in &self.0 {
            match requirement {
                Requirement::In { key, values } => terms.any_of_each.push(pairs(key, values)),
                Requirement::NotIn { key, values } => terms.none_of.extend(pairs(key, values)),
                Requirement::Exists(key) => terms.any_of_each.push(vec![key.clone()]),
                Requirement::Absent(key) => terms.none_of.push(key.clone()),
            }
        }
        terms
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn is_in(key: &str, values: &[&str]) -> Requirement {
        Requirement::In {
            key: key.into(),
            values: values.iter().map(|v| (*v).into()).collect(),
        }
    }

    fn not_in(key: &str, values: &[&str]) -> Requirement {
        Requirement::NotIn {
            key: key.into(),
            values: values.iter().map(|v| (*v).into()).collect(),
        }
    }

    #[test]
    fn each_kubernetes_selector_form_is_parsed() {
        for (text, expected) in [
            ("", vec![]),
            ("a=b", vec![is_in("a", &["b"])]),
            (" a == b ", vec![is_in("a", &["b"])]),
            ("a=", vec![is_in("a", &[""])]),
            ("a!=b", vec![not_in("a", &["b"])]),
            ("a in (b, c)", vec![is_in("a", &["b", "c"])]),
            ("a in(b)", vec![is_in("a", &["b"])]),
            ("x.io/a notin (b,c)", vec![not_in("x.io/a", &["b", "c"])]),
            ("a", vec![Requirement::Exists("a".into())]),
            ("!a", vec![Requirement::Absent("a".into())]),
            ("in", vec![Requirement::Exists("in".into())]),
            (
                "a in (b,c),!d,e=f",
                vec![
                    is_in("a", &["b", "c"]),
                    Requirement::Absent("d".into()),
                    is_in("e", &["f"]),
                ],
            ),
        ] {
            assert_eq!(text.parse::<Selector>(), Ok(Selector(expected)), "{text}");
        }
    }

    #[test]
    fn invalid_selector_is_refused() {
        for text in [
            ",",
            "a,",
            "a in b",
            "a in (b",
            "=b",
            "a=b=c",
            "a = b c",
            "-a=b",
            "a=b!",
            "a in ()x",
            "!!a",
            "a>1",
            "a' OR 1=1 --",
            "a=';DROP TABLE environments;--",
        ] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
        assert!("a,".repeat(100).parse::<Selector>().is_err());
    }

    #[test]
    fn error_of_a_long_selector_is_short() {
        let long = "x".repeat(4_000);
        for text in [
            long.clone(),
            format!("{long}=a"),
            format!("a={long}"),
            format!("a in ({long})"),
        ] {
            let error = text.parse::<Selector>().unwrap_err().to_string();
            assert!(error.chars().count() < 400, "{error}");
        }
    }

    #[test]
    fn labels_match_all_requirements() {
        let labels = BTreeMap::from([("a", "1"), ("b", "")]);
        for (selector, expected) in [
            ("", true),
            ("a=1,b=", true),
            ("a in (1,2),b", true),
            ("a=2", false),
            ("a!=1", false),
            ("c!=1,c notin (2),!c", true),
            ("c", false),
            ("!a", false),
        ] {
            let parsed: Selector = selector.parse().unwrap();
            let matches = parsed.matches(|key| labels.get(key).copied());
            assert_eq!(matches, expected, "{selector}");
        }
    }

    #[test]
    fn selector_gives_required_and_excluded_terms() {
        let selector: Selector = "k1 in (v1,v2),k2!=v3,k4,!k5,k6 notin (v7,v8)"
            .parse()
            .unwrap();
        let texts = |all: &[&str]| all.iter().map(|&text| text.into()).collect();
        assert_eq!(
            selector.terms(),
            Terms {
                any_of_each: vec![texts(&["k1=v1", "k1=v2"]), texts(&["k4"])],
                none_of: texts(&["k2=v3", "k5", "k6=v7", "k6=v8"]),
            }
        );
        assert_eq!(Selector::default().terms(), Terms::default());
    }
}

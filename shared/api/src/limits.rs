//! The limits of one user.

use agentbox_contracts::error::Error;
use agentbox_contracts::limits::{MAX_RATE, MAX_SESSIONS, UserLimits, UserRates};
use agentbox_contracts::units::{Bytes, MilliCpu, QuantityError};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The limits of one user. An absent limit is the limit of the deployment, which its configuration
/// sets. Quotas count the environments that have not ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "environments": 20, "cpu": "8", "memory": "16Gi", "storage": "50Gi", "sessions": 50,
    "rates": {"create": 10, "exec": 300}
}))]
#[serde(deny_unknown_fields)]
pub struct UserLimitsBody {
    /// The most environments at a time; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 20)]
    pub environments: Option<u64>,
    /// The CPU cores of all environments together, as a Kubernetes quantity; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "8", max_length = 32)]
    pub cpu: Option<String>,
    /// The memory of all environments together, as a Kubernetes quantity; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "16Gi", max_length = 32)]
    pub memory: Option<String>,
    /// The storage of all environments together, as a Kubernetes quantity; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "50Gi", max_length = 32)]
    pub storage: Option<String>,
    /// The most commands, terminals and streams that are open on one replica of the server, 1 to
    /// 1000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 50, minimum = 1, maximum = 1000000)]
    pub sessions: Option<u64>,
    /// The most requests in one minute, by kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<UserRatesBody>,
}

/// The most requests of one user in one minute, by kind. An absent rate is that of the deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"create": 10, "exec": 300}))]
#[serde(deny_unknown_fields)]
pub struct UserRatesBody {
    /// Environments that the user may create, 1 to 1000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 10, minimum = 1, maximum = 1000000)]
    pub create: Option<u64>,
    /// Commands and terminals that the user may start, 1 to 1000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 300, minimum = 1, maximum = 1000000)]
    pub exec: Option<u64>,
    /// File operations that the user may start, 1 to 1000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 5000, minimum = 1, maximum = 1000000)]
    pub files: Option<u64>,
    /// Other requests that the user may send, 1 to 1000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 500, minimum = 1, maximum = 1000000)]
    pub other: Option<u64>,
}

/// Parses a quantity. `0` is the value `no_limit`.
fn parse_quantity<T>(field: &str, text: Option<String>, no_limit: T) -> Result<Option<T>, Error>
where
    T: std::str::FromStr<Err = QuantityError>,
{
    match text {
        None => Ok(None),
        Some(text) if text.trim() == "0" => Ok(Some(no_limit)),
        Some(text) => match text.parse() {
            Ok(quantity) => Ok(Some(quantity)),
            Err(error) => Err(Error::field(field, error)),
        },
    }
}

/// Refuses a number that is not from 1 to `max`.
fn check_range(field: &str, value: Option<u64>, max: u64) -> Result<Option<u64>, Error> {
    match value {
        Some(value) if !(1..=max).contains(&value) => Err(Error::field(
            field,
            format_args!("must be between 1 and {max}, got {value}"),
        )),
        value => Ok(value),
    }
}

impl TryFrom<UserLimitsBody> for UserLimits {
    type Error = Error;

    fn try_from(body: UserLimitsBody) -> Result<Self, Error> {
        let rates = body.rates.unwrap_or_default();
        Ok(Self {
            environments: body.environments,
            cpu: parse_quantity("limits.cpu", body.cpu, MilliCpu(0))?,
            memory: parse_quantity("limits.memory", body.memory, Bytes(0))?,
            storage: parse_quantity("limits.storage", body.storage, Bytes(0))?,
            sessions: check_range("limits.sessions", body.sessions, MAX_SESSIONS)?,
            rates: UserRates {
                create: check_range("limits.rates.create", rates.create, MAX_RATE)?,
                exec: check_range("limits.rates.exec", rates.exec, MAX_RATE)?,
                files: check_range("limits.rates.files", rates.files, MAX_RATE)?,
                other: check_range("limits.rates.other", rates.other, MAX_RATE)?,
            },
        })
    }
}

impl From<UserLimits> for UserLimitsBody {
    fn from(limits: UserLimits) -> Self {
        let rates = limits.rates;
        Self {
            environments: limits.environments,
            cpu: limits.cpu.map(|cpu| cpu.to_string()),
            memory: limits.memory.map(|memory| memory.to_string()),
            storage: limits.storage.map(|storage| storage.to_string()),
            sessions: limits.sessions,
            rates: (!rates.is_default()).then_some(UserRatesBody {
                create: rates.create,
                exec: rates.exec,
                files: rates.files,
                other: rates.other,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn limits(body: Value) -> Result<UserLimits, Error> {
        serde_json::from_value::<UserLimitsBody>(body)
            .unwrap()
            .try_into()
    }

    #[test]
    fn limits_are_shown_as_they_were_set() {
        let body = json!({"environments": 0, "cpu": "1500m", "memory": "0", "sessions": 7,
            "rates": {"exec": 300}});
        let parsed = limits(body.clone()).unwrap();
        assert_eq!(parsed.cpu, Some(MilliCpu(1_500)));
        assert_eq!(json!(UserLimitsBody::from(parsed)), body);
        assert_eq!(limits(json!({})).unwrap(), UserLimits::default());
        assert_eq!(json!(UserLimitsBody::default()), json!({}));
    }

    #[test]
    fn invalid_limit_is_refused_by_name() {
        for (body, field) in [
            (json!({"cpu": "many"}), "limits.cpu: "),
            (json!({"memory": "-1"}), "limits.memory: "),
            (json!({"storage": ""}), "limits.storage: "),
            (json!({"sessions": 0}), "limits.sessions: must be between "),
            (json!({"rates": {"exec": 0}}), "limits.rates.exec: must be "),
            (
                json!({"rates": {"files": 1_000_001}}),
                "limits.rates.files: must be ",
            ),
        ] {
            let error = limits(body).unwrap_err();
            assert!(error.message.starts_with(field), "{error}");
        }
    }
}

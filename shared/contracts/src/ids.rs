//! Identifiers: a prefix and 16 characters of `[a-z0-9]`, which is 80 random bits. Each is a
//! DNS label, and safe in a NATS subject, a Kubernetes name and a URL. A collision is a
//! duplicate key in Postgres, never a silent overwrite.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// The number of characters after the prefix.
pub const RANDOM_LEN: usize = 16;

/// A text that is not an identifier of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an id of the form {prefix}<16 of a-z 0-9>")]
pub struct InvalidId {
    pub prefix: &'static str,
    pub text: String,
}

/// The text of an id: five bits of each byte are a character.
fn text(prefix: &str, bytes: [u8; RANDOM_LEN]) -> String {
    let mut text = String::with_capacity(prefix.len() + RANDOM_LEN);
    text.push_str(prefix);
    text.extend(
        bytes
            .iter()
            .map(|byte| char::from(ALPHABET[usize::from(byte & 31)])),
    );
    text
}

fn is_valid(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|rest| {
        rest.len() == RANDOM_LEN
            && rest
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    })
}

#[cfg(feature = "openapi")]
fn id_schema(prefix: &str, description: &str) -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
    utoipa::openapi::ObjectBuilder::new()
        .schema_type(utoipa::openapi::Type::String)
        .description(Some(description.trim()))
        .pattern(Some(format!("^{prefix}[a-z0-9]{{{RANDOM_LEN}}}$")))
        .examples([format!("{prefix}0123456789abcdef")])
        .into()
}

macro_rules! id {
    ($(#[doc = $doc:literal])* $name:ident, $prefix:literal) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            pub const PREFIX: &'static str = $prefix;

            /// A new random id.
            #[must_use]
            pub fn random() -> Self {
                Self(text($prefix, rand::random()))
            }

            /// The id of these bytes, which are a hash: equal bytes give equal ids.
            #[must_use]
            pub fn from_hash(bytes: [u8; RANDOM_LEN]) -> Self {
                Self(text($prefix, bytes))
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                id_schema(Self::PREFIX, concat!($($doc),*))
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::ToSchema for $name {}

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                if is_valid(text, $prefix) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidId { prefix: $prefix, text: text.chars().take(80).collect() })
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// The id of an environment.
    EnvironmentId,
    "env-"
);
id!(
    /// The id of a user.
    UserId,
    "user-"
);
id!(
    /// The id of an API key. It is not the key itself.
    ApiKeyId,
    "key-"
);
id!(
    /// The id of one login: the `jti` of its token.
    LoginId,
    "login-"
);
id!(
    /// The id of one run of a command in an environment.
    ExecId,
    "exec-"
);
id!(
    /// The id of a preview of a port.
    PreviewId,
    "preview-"
);
id!(
    /// The id of a webhook.
    WebhookId,
    "webhook-"
);
id!(
    /// The id of one delivery of an event to a webhook.
    DeliveryId,
    "delivery-"
);
id!(
    /// The id of one entry of the audit trail.
    AuditId,
    "audit-"
);
id!(
    /// The id of one process of a service, new at each start.
    InstanceId,
    "inst-"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_id_parses_back() {
        let id = EnvironmentId::random();
        assert_eq!(id.as_str().parse::<EnvironmentId>().unwrap(), id);
        assert_ne!(id, EnvironmentId::random());
    }

    #[test]
    fn id_of_a_hash_is_valid_and_depends_on_every_byte() {
        let id = ExecId::from_hash([255; RANDOM_LEN]);
        assert_eq!(id.as_str().parse::<ExecId>().unwrap(), id);
        for at in 0..RANDOM_LEN {
            let mut bytes = [255; RANDOM_LEN];
            bytes[at] = 0;
            assert_ne!(ExecId::from_hash(bytes), id, "{at}");
        }
    }

    #[test]
    fn invalid_ids_are_rejected() {
        for text in [
            "",
            "env-",
            "env-short",
            "env-0123456789ABCDEF",
            "user-0123456789abcdef",
            "env-0123456789abcde.",
            "env-0123456789abcdef0",
        ] {
            assert!(text.parse::<EnvironmentId>().is_err(), "{text}");
        }
    }

    #[test]
    fn namespace_of_an_id_is_a_dns_label() {
        let namespace = format!("agentbox-{}", EnvironmentId::random());
        assert!(namespace.len() <= 63);
    }
}

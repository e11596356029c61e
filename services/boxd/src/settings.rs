//! What a driver tells boxd, from the environment variables that
//! [`agentbox_box_protocol::variables`] names.

use std::net::SocketAddr;
use std::path::PathBuf;

use agentbox_box_protocol::token::{BoxToken, TokenError};
use agentbox_box_protocol::{output, variables};
use serde::{Deserialize, Serialize};

const RING_BYTES: usize = 1024 * 1024;
/// In memory, output costs the box's own memory limit; the bounded tmpfs does too, but
/// the driver has chosen that.
const IN_MEMORY_SEGMENT_BYTES: u64 = 512 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{0} is not set")]
    Missing(&'static str),
    #[error("{name} is not {expected}")]
    Malformed {
        name: &'static str,
        expected: &'static str,
    },
    #[error("{} is refused", variables::TOKEN)]
    Token(#[from] TokenError),
}

/// No `Debug`: it holds the token.
#[derive(Serialize, Deserialize)]
pub struct Settings {
    token: String,
    pub listen: SocketAddr,
    pub output_dir: Option<PathBuf>,
    pub termination_file: Option<PathBuf>,
    pub warm: bool,
    /// Of one run.
    pub ring_bytes: usize,
    pub segment_bytes: u64,
}

impl Settings {
    /// `lookup` answers for one variable.
    ///
    /// # Errors
    /// [`SettingsError`] names the variable.
    pub fn from_variables(
        lookup: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        let given = |name| lookup(name).filter(|text| !text.is_empty());
        let token = given(variables::TOKEN).ok_or(SettingsError::Missing(variables::TOKEN))?;
        BoxToken::parse(&token)?;
        let listen = given(variables::LISTEN);
        let listen = listen.as_deref().unwrap_or(variables::DEFAULT_LISTEN);
        let output_dir = given(variables::OUTPUT_DIR).map(PathBuf::from);
        let default_segment = match output_dir {
            Some(_) => output::SEGMENT_BYTES,
            None => IN_MEMORY_SEGMENT_BYTES,
        };
        Ok(Self {
            token,
            listen: listen.parse().map_err(|_| SettingsError::Malformed {
                name: variables::LISTEN,
                expected: "an address and a port",
            })?,
            termination_file: given(variables::TERMINATION_FILE).map(PathBuf::from),
            warm: given(variables::WARM).as_deref() == Some("true"),
            ring_bytes: number(variables::RING_BYTES, &given)?.unwrap_or(RING_BYTES),
            segment_bytes: number(variables::SEGMENT_BYTES, &given)?.unwrap_or(default_segment),
            output_dir,
        })
    }

    /// # Errors
    /// [`SettingsError::Token`].
    pub fn token(&self) -> Result<BoxToken, SettingsError> {
        Ok(BoxToken::parse(&self.token)?)
    }
}

fn number<N: std::str::FromStr>(
    name: &'static str,
    given: &impl Fn(&'static str) -> Option<String>,
) -> Result<Option<N>, SettingsError> {
    given(name)
        .map(|text| text.parse())
        .transpose()
        .map_err(|_| SettingsError::Malformed {
            name,
            expected: "a number of bytes",
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::from_variables(|name| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn only_the_token_is_required() {
        let settings = read(&[(variables::TOKEN, "t")]).unwrap();
        assert_eq!(settings.listen.to_string(), "0.0.0.0:10777");
        assert!(!settings.warm);
        assert!(matches!(
            read(&[]),
            Err(SettingsError::Missing(variables::TOKEN))
        ));
    }

    #[test]
    fn a_malformed_value_is_named() {
        for (name, value) in [
            (variables::LISTEN, "localhost:1"),
            (variables::RING_BYTES, "1Mi"),
        ] {
            let error = read(&[(variables::TOKEN, "t"), (name, value)])
                .err()
                .unwrap();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}

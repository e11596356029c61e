//! boxd's settings, from the environment variables that
//! [`agentbox_box_protocol::variables`] names and a driver sets.

use std::net::SocketAddr;
use std::path::PathBuf;

use agentbox_box_protocol::token::{BoxToken, TokenError};
use agentbox_box_protocol::{output, variables};
use serde::{Deserialize, Serialize};

const RING_BYTES: usize = 1024 * 1024;
const MAX_RUNNING: usize = 256;
const MAX_EXECUTIONS: usize = 1000;
const EXECUTIONS_OUTPUT_BYTES: usize = 64 * 1024 * 1024;
/// Smaller than a segment on the tmpfs: output in memory counts towards the box's memory
/// limit without the driver having configured it.
const IN_MEMORY_SEGMENT_BYTES: u64 = 512 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{0}: is required")]
    Missing(&'static str),
    #[error("{name}: must be {expected}")]
    Malformed {
        name: &'static str,
        expected: &'static str,
    },
    #[error("{}: is invalid", variables::TOKEN)]
    Token(#[from] TokenError),
}

/// Has no `Debug`, because it holds the token.
#[derive(Serialize, Deserialize)]
pub struct Settings {
    token: String,
    pub listen: SocketAddr,
    pub output_dir: Option<PathBuf>,
    pub termination_file: Option<PathBuf>,
    /// The box is warm: its main command comes with `Configure`.
    pub warm: bool,
    /// The box has a root file system of its own, whose identity boxd renews.
    pub renew_identity: bool,
    /// The output ring of one run, in bytes.
    pub ring_bytes: usize,
    pub segment_bytes: u64,
    /// The most commands of callers that run at once: runs and executions together.
    pub max_running: usize,
    /// The most executions whose records are kept.
    pub max_executions: usize,
    /// The limit for the kept output of all executions together, in bytes.
    pub executions_output_bytes: usize,
}

impl Settings {
    /// Reads the settings; `lookup` returns the value of one variable.
    ///
    /// # Errors
    /// [`SettingsError`], which names the variable.
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
            renew_identity: given(variables::RENEW_IDENTITY).as_deref() == Some("true"),
            ring_bytes: number(variables::RING_BYTES, &given)?.unwrap_or(RING_BYTES),
            segment_bytes: number(variables::SEGMENT_BYTES, &given)?.unwrap_or(default_segment),
            max_running: number(variables::MAX_RUNNING, &given)?.unwrap_or(MAX_RUNNING),
            max_executions: number(variables::MAX_EXECUTIONS, &given)?.unwrap_or(MAX_EXECUTIONS),
            executions_output_bytes: number(variables::EXECUTIONS_OUTPUT_BYTES, &given)?
                .unwrap_or(EXECUTIONS_OUTPUT_BYTES),
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
            expected: "a number",
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
    fn settings_require_only_the_token() {
        let settings = read(&[(variables::TOKEN, "t")]).unwrap();
        assert_eq!(settings.listen.to_string(), "0.0.0.0:10777");
        assert!(!settings.warm && !settings.renew_identity);
        assert!(matches!(
            read(&[]),
            Err(SettingsError::Missing(variables::TOKEN))
        ));
    }

    #[test]
    fn empty_setting_is_absent() {
        let mut pairs = vec![(variables::TOKEN, "t")];
        pairs.extend(variables::UNSET.map(|name| (name, "")));
        let settings = read(&pairs).unwrap();
        assert!(!settings.warm);
        assert_eq!(settings.ring_bytes, RING_BYTES);
        assert_eq!(settings.segment_bytes, IN_MEMORY_SEGMENT_BYTES);
        assert!(read(&[(variables::TOKEN, "")]).is_err());
    }

    #[test]
    fn malformed_setting_is_named_in_error() {
        for (name, value) in [
            (variables::LISTEN, "localhost:1"),
            (variables::RING_BYTES, "1Mi"),
            (variables::MAX_RUNNING, "many"),
        ] {
            let error = read(&[(variables::TOKEN, "t"), (name, value)])
                .err()
                .unwrap();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}

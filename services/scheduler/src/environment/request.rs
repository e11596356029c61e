//! Validation of a request; the gateway does not check these rules. Pure.
//!
//! Every error names its field as the public API does. Quantities, names, labels, selectors
//! and tolerations follow the Kubernetes API conventions, because they are passed to Kubernetes.

mod image;
mod isolation;

use std::collections::BTreeMap;

// The prefix of boxd's own variables. A user's variable of the same name would replace one.
use agentbox_box_protocol::variables::PREFIX as RESERVED_ENV;
use agentbox_contracts::command::{
    MAX_MAIN_COMMAND_BYTES, MAX_MAIN_ENV_BYTES, check_variable_size, is_box_variable_name,
};
use agentbox_contracts::environment::{
    EnvironmentRequest, MAX_TIMEOUT_S, MIN_IDLE_TIMEOUT_S, NetworkPolicy,
};
use agentbox_contracts::error::{Error, shortened};
use agentbox_contracts::labels::{check_labels, is_dns_label};
use agentbox_contracts::units::{Bytes, MilliCpu};

pub use image::{image, is_registry};

/// The parsed `resources` of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantities {
    pub cpu: MilliCpu,
    pub memory: Bytes,
    pub storage: Bytes,
}

/// Checks a whole request; returns its parsed quantities.
///
/// # Errors
/// `Validation`, naming the first field that breaks its rule.
pub fn validate(request: &EnvironmentRequest) -> Result<Quantities, Error> {
    name(&request.name)?;
    image::image(&request.image)?;
    let quantities = quantities(request)?;
    timeout(request.timeout_s)?;
    if let Some(seconds) = request.idle_timeout_s {
        idle_timeout(seconds)?;
    }
    variables(request)?;
    if let Some(command) = &request.command {
        self::command(command)?;
        if request.use_entrypoint {
            return Err(Error::value(
                "use_entrypoint",
                "must be false with `command`, which replaces the image's ENTRYPOINT",
                true,
            ));
        }
    }
    check_labels("labels", &request.labels)?;
    check_labels("node_selector", &request.node_selector)?;
    isolation::tolerations(&request.tolerations)?;
    if let Some(isolation) = &request.isolation {
        isolation::isolation(isolation)?;
    }
    Ok(quantities)
}

/// Parses `resources`.
fn quantities(request: &EnvironmentRequest) -> Result<Quantities, Error> {
    let resources = &request.resources;
    Ok(Quantities {
        cpu: resources
            .cpu
            .parse()
            .map_err(|e| Error::field("resources.cpu", e))?,
        memory: resources
            .memory
            .parse()
            .map_err(|e| Error::field("resources.memory", e))?,
        storage: resources
            .storage
            .parse()
            .map_err(|e| Error::field("resources.storage", e))?,
    })
}

/// Checks the storage of an environment.
///
/// # Errors
/// `Validation` when it is above `max`. `None`: every storage is accepted.
pub fn storage(quantities: Quantities, max: Option<Bytes>) -> Result<(), Error> {
    match max {
        Some(max) if quantities.storage > max => Err(Error::value(
            "resources.storage",
            format_args!("must be at most {max}"),
            quantities.storage,
        )),
        _ => Ok(()),
    }
}

/// Checks the name of an environment.
///
/// # Errors
/// `Validation` when it is not an RFC 1123 label.
pub fn name(text: &str) -> Result<(), Error> {
    if is_dns_label(text) {
        Ok(())
    } else {
        Err(Error::value(
            "name",
            "must be 1 to 63 characters of a-z, 0-9 and -, with a letter or digit at both ends",
            text,
        ))
    }
}

/// Checks a timeout.
///
/// # Errors
/// `Validation` when it is zero or beyond [`MAX_TIMEOUT_S`].
pub fn timeout(seconds: u64) -> Result<(), Error> {
    if (1..=MAX_TIMEOUT_S).contains(&seconds) {
        Ok(())
    } else {
        Err(Error::value(
            "timeout",
            format_args!("must be between 1 and {MAX_TIMEOUT_S} seconds"),
            seconds,
        ))
    }
}

/// Checks an idle timeout.
///
/// # Errors
/// `Validation` when it is below [`MIN_IDLE_TIMEOUT_S`] or beyond [`MAX_TIMEOUT_S`].
pub fn idle_timeout(seconds: u64) -> Result<(), Error> {
    if (MIN_IDLE_TIMEOUT_S..=MAX_TIMEOUT_S).contains(&seconds) {
        Ok(())
    } else {
        Err(Error::value(
            "idle_timeout",
            format_args!("must be between {MIN_IDLE_TIMEOUT_S} and {MAX_TIMEOUT_S} seconds"),
            seconds,
        ))
    }
}

/// Checks the network policy of a PATCH.
///
/// # Errors
/// `Validation`, naming the field that breaks its rule.
pub fn network_policy(policy: &NetworkPolicy) -> Result<(), Error> {
    isolation::network_policy("network_policy", policy)
}

/// Checks `env` and `secret_env`.
fn variables(request: &EnvironmentRequest) -> Result<(), Error> {
    let plain = env("env", &request.env, 0)?;
    env("secret_env", &request.secret_env, plain)?;
    match request
        .secret_env
        .keys()
        .find(|name| request.env.contains_key(*name))
    {
        Some(name) => Err(Error::value(
            "secret_env",
            "a name must not be in `env` too",
            name,
        )),
        None => Ok(()),
    }
}

/// Checks the variables of `field`. `total` is the size of those in other fields; returns it with
/// theirs.
fn env(
    field: &str,
    variables: &BTreeMap<String, String>,
    mut total: usize,
) -> Result<usize, Error> {
    for (name, value) in variables {
        if !is_box_variable_name(name) {
            return Err(Error::value(
                field,
                "a name must be printable ASCII without spaces and =",
                name,
            ));
        }
        if name.starts_with(RESERVED_ENV) {
            return Err(Error::value(
                field,
                format_args!("a name must not begin with {RESERVED_ENV}, which is reserved"),
                name,
            ));
        }
        if value.contains('\0') {
            return Err(Error::field(
                field,
                format_args!("the value of {} must not contain NUL", shortened(name)),
            ));
        }
        check_variable_size(name, value).map_err(|rule| {
            let shown = shortened(name);
            Error::field(field, format_args!("the variable {shown} {rule}"))
        })?;
        total += name.len() + value.len();
    }
    if total > MAX_MAIN_ENV_BYTES {
        return Err(Error::field(
            field,
            format_args!(
                "`env` and `secret_env` must have at most {MAX_MAIN_ENV_BYTES} bytes together, \
                 have {total}"
            ),
        ));
    }
    Ok(total)
}

fn command(words: &[String]) -> Result<(), Error> {
    if words.first().is_none_or(String::is_empty) {
        return Err(Error::field("command", "must begin with a program"));
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err(Error::field("command", "must not contain NUL"));
    }
    let total: usize = words.iter().map(|word| word.len() + 1).sum();
    if total > MAX_MAIN_COMMAND_BYTES {
        return Err(Error::field(
            "command",
            format_args!("must have at most {MAX_MAIN_COMMAND_BYTES} bytes, has {total}"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

//! The RPCs about credentials of registries.

use agentbox_contracts::error::Error;
use agentbox_contracts::registry::rpc::{
    DeleteCredentialRequest, ListCredentialsReply, ListCredentialsRequest, SetCredentialRequest,
};
use agentbox_contracts::registry::{MAX_REGISTRY, MAX_REGISTRY_PASSWORD, MAX_REGISTRY_USERNAME};
use agentbox_contracts::rpc::Empty;
use agentbox_runtime::RegistryCredential;
use agentbox_runtime::image_reference::canonical_registry;

use super::{Environments, MAX_PAGE};
use crate::environment::request::is_registry;

/// Checks the name of a registry; returns it in its canonical form.
fn registry(text: &str) -> Result<String, Error> {
    if text.len() > MAX_REGISTRY {
        return Err(Error::value(
            "registry",
            format_args!("must have at most {MAX_REGISTRY} characters"),
            text,
        ));
    }
    if !is_registry(text) {
        return Err(Error::value(
            "registry",
            "must be the host and port of a registry, such as registry.example:5000",
            text,
        ));
    }
    Ok(canonical_registry(text))
}

/// Checks a login, which HTTP's Basic authentication (RFC 7617) must be able to carry.
fn credential(request: SetCredentialRequest) -> Result<RegistryCredential, Error> {
    let (username, password) = (request.username, request.password.0);
    let is_valid = (1..=MAX_REGISTRY_USERNAME).contains(&username.chars().count())
        && !username.contains(|c: char| c == ':' || c.is_control());
    if !is_valid {
        return Err(Error::value(
            "username",
            format_args!(
                "must have 1 to {MAX_REGISTRY_USERNAME} characters, without `:` and control characters"
            ),
            username,
        ));
    }
    if !(1..=MAX_REGISTRY_PASSWORD).contains(&password.chars().count()) || password.contains('\0') {
        return Err(Error::field(
            "password",
            format_args!("must have 1 to {MAX_REGISTRY_PASSWORD} characters, without NUL"),
        ));
    }
    Ok(RegistryCredential { username, password })
}

impl Environments {
    /// Stores or replaces the credential of a user at a registry.
    ///
    /// # Errors
    /// `Validation`, also for a registry that no cluster allows; `QuotaExceeded`; `Unavailable`
    /// without a database.
    pub async fn set_credential(&self, request: SetCredentialRequest) -> Result<Empty, Error> {
        let inner = self.inner();
        let registry = registry(&request.registry)?;
        let mut clusters = inner.clusters.iter();
        if !clusters.any(|cluster| cluster.registries.allow_registry(&registry)) {
            let allowed: Vec<String> = inner
                .clusters
                .iter()
                .map(|cluster| cluster.registries.to_string())
                .collect();
            return Err(Error::value(
                "registry",
                format_args!(
                    "must be a registry that the operator allows ({})",
                    allowed.join("; ")
                ),
                registry,
            ));
        }
        let owner = request.owner.clone();
        let credential = credential(request)?;
        let id = inner
            .store
            .set_credential(&owner, &registry, &credential)
            .await?;
        inner.outbox.wake(&id);
        Ok(Empty {})
    }

    /// Returns one page of a user's credentials, without their content.
    ///
    /// # Errors
    /// `Validation` for the limit; `Unavailable` without a database.
    pub async fn list_credentials(
        &self,
        request: ListCredentialsRequest,
    ) -> Result<ListCredentialsReply, Error> {
        if !(1..=MAX_PAGE).contains(&request.limit) {
            return Err(Error::field(
                "limit",
                format_args!("must be between 1 and {MAX_PAGE}, got {}", request.limit),
            ));
        }
        let store = &self.inner().store;
        let (credentials, total) = store
            .list_credentials(&request.owner, request.limit, request.offset)
            .await?;
        Ok(ListCredentialsReply { credentials, total })
    }

    /// Deletes the credential of a user at a registry.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` without a database.
    pub async fn delete_credential(
        &self,
        request: DeleteCredentialRequest,
    ) -> Result<Empty, Error> {
        let inner = self.inner();
        let registry = canonical_registry(&request.registry);
        let deleted = inner
            .store
            .delete_credential(&request.owner, &registry)
            .await?;
        let id = deleted.ok_or_else(|| Error::not_found("registry credential"))?;
        inner.outbox.wake(&id);
        Ok(Empty {})
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::identity::rpc::Secret;
    use agentbox_contracts::ids::UserId;

    use super::*;

    fn request(username: &str, password: &str) -> SetCredentialRequest {
        SetCredentialRequest {
            owner: UserId::random(),
            registry: "registry.example".to_owned(),
            username: username.to_owned(),
            password: Secret(password.to_owned()),
        }
    }

    #[test]
    fn registry_has_one_form_and_other_text_is_refused() {
        for (text, expected) in [
            ("Registry.example:5000", "registry.example:5000"),
            ("index.docker.io", "docker.io"),
        ] {
            assert_eq!(registry(text).unwrap(), expected);
        }
        for text in ["", "a/b", "https://a", "a b", &"a".repeat(MAX_REGISTRY + 1)] {
            let error = registry(text).unwrap_err();
            assert!(error.message.starts_with("registry: must "), "{error}");
        }
    }

    #[test]
    fn login_that_basic_authentication_cannot_carry_is_refused() {
        assert!(credential(request("ada", "{\n\"key\": \"ü:\"}")).is_ok());
        let long = "a".repeat(MAX_REGISTRY_PASSWORD + 1);
        for (username, password, field) in [
            ("", "x", "username"),
            ("a:b", "x", "username"),
            ("a\nb", "x", "username"),
            (long.as_str(), "x", "username"),
            ("ada", "", "password"),
            ("ada", "secret\0", "password"),
            ("ada", long.as_str(), "password"),
        ] {
            let error = credential(request(username, password)).unwrap_err();
            assert!(error.message.starts_with(field), "{error}");
            assert!(!error.message.contains("secret"), "{error}");
        }
    }
}

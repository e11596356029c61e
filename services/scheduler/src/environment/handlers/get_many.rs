//! The RPC that reads several environments at once.

use agentbox_contracts::environment::rpc::{GetManyReply, GetManyRequest, MAX_READ};
use agentbox_contracts::error::Error;

use super::{Environments, MAX_REPLY_BYTES, count_fitting};
use crate::environment::store::StoreError;

impl Environments {
    /// Returns those environments that exist, or the first part of them that fits in a message. One
    /// that cannot be read does not fail the others.
    ///
    /// # Errors
    /// `Validation` for too many ids; `Unavailable` without a database.
    pub async fn get_many(&self, request: GetManyRequest) -> Result<GetManyReply, Error> {
        let requested = request.ids.len();
        if requested > MAX_READ {
            return Err(Error::field(
                "ids",
                format_args!("must be at most {MAX_READ}, got {requested}"),
            ));
        }
        let mut reply = GetManyReply::default();
        for row in self.inner().store.get_many(&request.ids).await? {
            match row {
                Ok(record) => match self.reply(&record) {
                    Ok(environment) => reply.environments.push(environment),
                    Err(error) => {
                        reply.errors.insert(record.environment.id, error);
                    }
                },
                Err(corrupt) => {
                    // The row was found by this id, so it is one.
                    if let Ok(id) = corrupt.id.parse() {
                        reply.errors.insert(id, StoreError::from(corrupt).into());
                    }
                }
            }
        }
        let fitting = count_fitting(&reply.environments, MAX_REPLY_BYTES)?;
        let rest = reply.environments.split_off(fitting);
        reply.remaining = rest.into_iter().map(|left| left.id).collect();
        Ok(reply)
    }
}

//! The RPC about metered use.

use agentbox_contracts::error::Error;
use agentbox_contracts::labels::label_key;
use agentbox_contracts::metering::rpc::{ReadUsageReply, ReadUsageRequest};
use chrono::{DateTime, TimeDelta, Utc};

use super::Environments;

impl Environments {
    /// Returns the metered use of one user, which may have been deleted.
    ///
    /// # Errors
    /// `Validation` for the period and the label; `Unavailable` without a database.
    pub async fn read_usage(&self, request: ReadUsageRequest) -> Result<ReadUsageReply, Error> {
        let ReadUsageRequest {
            owner,
            since,
            until,
            group_by,
        } = request;
        if since >= until {
            return Err(Error::field(
                "since",
                format_args!("must be before until ({until}), is {since}"),
            ));
        }
        // Postgres has a narrower range of times.
        let since = since.max(DateTime::UNIX_EPOCH);
        let until = until.min(Utc::now() + TimeDelta::days(1));
        let store = &self.inner().store;
        let groups = match group_by {
            None => Vec::new(),
            Some(key) => {
                label_key(&key).map_err(|rule| Error::value("group_by", rule, &key))?;
                store.metered_groups(&owner, since, until, &key).await?
            }
        };
        Ok(ReadUsageReply {
            total: store.metered_usage(&owner, since, until).await?,
            groups,
        })
    }
}

//! Leases by name: for work that one replica of many does.

use std::time::Duration;

use agentbox_contracts::ids::InstanceId;
use sea_orm::ConnectionTrait;

use super::{Store, StoreError, seconds, sql};

impl Store {
    /// Takes or renews the lease `name` for `duration`. Whether `holder` has it now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn hold_lease(
        &self,
        name: &str,
        holder: &InstanceId,
        duration: Duration,
    ) -> Result<bool, StoreError> {
        let statement = sql(
            "INSERT INTO leases AS held (name, holder, until)
             VALUES ($1, $2, now() + make_interval(secs => $3))
             ON CONFLICT (name) DO UPDATE
                SET holder = excluded.holder, until = excluded.until
                WHERE held.holder = excluded.holder OR held.until < now()
             RETURNING true AS ours",
            [name.into(), holder.as_str().into(), seconds(duration)],
        );
        Ok(self.database.query_one_raw(statement).await?.is_some())
    }

    /// Gives a lease back, so that another replica need not wait for its end.
    ///
    /// # Errors
    /// When the database fails; the lease then runs out.
    pub async fn drop_lease(&self, name: &str, holder: &InstanceId) -> Result<(), StoreError> {
        let statement = sql(
            "DELETE FROM leases WHERE name = $1 AND holder = $2",
            [name.into(), holder.as_str().into()],
        );
        self.database.execute_raw(statement).await?;
        Ok(())
    }
}

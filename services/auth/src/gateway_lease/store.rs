//! Queries of tables `credential_revision` and `gateway_leases`.

use agentbox_contracts::ids::InstanceId;
use agentbox_database::sql::statement;
use agentbox_database::{Text, span};
use sea_orm::{ConnectionTrait, DbErr, QueryResult};
use tracing::Instrument;

use crate::store::StoreError;

/// Raw, as the others here, because the tables have no entities: nothing else reads them.
const RENEW: &str = "
    INSERT INTO gateway_leases (gateway) VALUES ($1)
    ON CONFLICT (gateway) DO UPDATE SET renewal = excluded.renewal";

const REVISION: &str = "SELECT revision FROM credential_revision";

const ALL: &str = "
    SELECT r.revision, l.gateway, l.renewal
    FROM credential_revision r LEFT JOIN gateway_leases l ON true";

const REMOVE: &str = "DELETE FROM gateway_leases WHERE gateway = $1 AND renewal = $2";

const RELEASE: &str = "DELETE FROM gateway_leases WHERE gateway = $1";

/// A gateway, and the number of the last renewal of its lease.
pub struct Lease {
    pub gateway: InstanceId,
    pub renewal: i64,
}

/// The leases of all gateways, and the revision at the same moment.
pub struct Leases {
    pub revision: i64,
    pub held: Vec<Lease>,
}

fn no_revision() -> DbErr {
    DbErr::RecordNotFound("credential_revision has no row".to_owned())
}

/// Gives the lease of a gateway a new number.
pub async fn renew(on: &impl ConnectionTrait, gateway: &InstanceId) -> Result<(), StoreError> {
    let renew = on.execute_raw(statement(RENEW, [gateway.as_str().into()]));
    renew.instrument(span!(INSERT gateway_leases)).await?;
    Ok(())
}

/// The number of changes of credentials so far.
pub async fn revision(on: &impl ConnectionTrait) -> Result<i64, StoreError> {
    let read = on.query_one_raw(statement(REVISION, []));
    let row = read.instrument(span!(SELECT credential_revision)).await?;
    Ok(row.ok_or_else(no_revision)?.try_get("", "revision")?)
}

fn lease(row: &QueryResult) -> Result<Option<Lease>, DbErr> {
    let gateway: Option<Text<InstanceId>> = row.try_get("", "gateway")?;
    let renewal: Option<i64> = row.try_get("", "renewal")?;
    Ok(gateway
        .zip(renewal)
        .map(|(Text(gateway), renewal)| Lease { gateway, renewal }))
}

/// Reads all leases and the revision.
pub async fn all(on: &impl ConnectionTrait) -> Result<Leases, StoreError> {
    let read = on.query_all_raw(statement(ALL, []));
    let rows = read.instrument(span!(SELECT gateway_leases)).await?;
    let revision = rows.first().ok_or_else(no_revision)?;
    let held = rows.iter().filter_map(|row| lease(row).transpose());
    Ok(Leases {
        revision: revision.try_get("", "revision")?,
        held: held.collect::<Result<_, DbErr>>()?,
    })
}

/// Removes a lease. False: it was renewed or removed meanwhile.
pub async fn remove(on: &impl ConnectionTrait, lease: &Lease) -> Result<bool, StoreError> {
    let values = [lease.gateway.as_str().into(), lease.renewal.into()];
    let remove = on.execute_raw(statement(REMOVE, values));
    let removed = remove.instrument(span!(DELETE gateway_leases)).await?;
    Ok(removed.rows_affected() > 0)
}

/// Removes the lease of a gateway.
pub async fn release(on: &impl ConnectionTrait, gateway: &InstanceId) -> Result<(), StoreError> {
    let release = on.execute_raw(statement(RELEASE, [gateway.as_str().into()]));
    release.instrument(span!(DELETE gateway_leases)).await?;
    Ok(())
}

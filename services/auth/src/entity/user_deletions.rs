use agentbox_contracts::ids::UserId;
use agentbox_database::Text;
use sea_orm::entity::prelude::*;

/// A deletion of a user that the scheduler has not confirmed twice yet.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "user_deletions")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub user_id: Text<UserId>,
    pub requested_at: DateTimeUtc,
    /// When the scheduler first confirmed that it ends the environments.
    pub acknowledged_at: Option<DateTimeUtc>,
    pub attempts: i32,
    pub next_attempt_at: DateTimeUtc,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

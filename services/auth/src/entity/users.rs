use agentbox_contracts::identity::{Role, User};
use agentbox_contracts::ids::UserId;
use agentbox_database::Text;
use sea_orm::entity::prelude::*;

use crate::principal::stored_limits;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "users")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Text<UserId>,
    pub username: String,
    pub email: String,
    pub role: Text<Role>,
    pub password_hash: String,
    /// Increases with each new password. A login that verified the old one is not recorded.
    pub password_version: i64,
    pub created_at: DateTimeUtc,
    /// [`UserLimits`](agentbox_contracts::limits::UserLimits), as JSON.
    #[sea_orm(column_type = "JsonBinary")]
    pub limits: Json,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl From<Model> for User {
    fn from(user: Model) -> Self {
        Self {
            limits: stored_limits(&user.id.0, user.limits),
            id: user.id.0,
            username: user.username,
            email: user.email,
            role: user.role.0,
            created_at: user.created_at,
        }
    }
}

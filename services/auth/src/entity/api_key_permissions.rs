use agentbox_contracts::identity::{EnvironmentPermission, Permission};
use agentbox_contracts::ids::{ApiKeyId, EnvironmentId};
use agentbox_database::Text;
use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "api_key_permissions")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub key_id: Text<ApiKeyId>,
    #[sea_orm(primary_key, auto_increment = false)]
    pub environment_id: Text<EnvironmentId>,
    pub permission: Text<Permission>,
    /// The order in which the permissions were given.
    pub position: i16,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {
    #[sea_orm(
        belongs_to = "super::api_keys::Entity",
        from = "Column::KeyId",
        to = "super::api_keys::Column::Id"
    )]
    ApiKey,
}

impl Related<super::api_keys::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::ApiKey.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}

impl From<Model> for EnvironmentPermission {
    fn from(row: Model) -> Self {
        Self {
            environment_id: row.environment_id.0,
            permission: row.permission.0,
        }
    }
}

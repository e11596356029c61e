use agentbox_contracts::ids::{ApiKeyId, UserId};
use agentbox_database::Text;
use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "api_keys")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Text<ApiKeyId>,
    pub owner: Text<UserId>,
    /// The keyed hash of the key.
    pub hash: Vec<u8>,
    pub description: Option<String>,
    pub created_at: DateTimeUtc,
    pub expires_at: Option<DateTimeUtc>,
    pub revoked_at: Option<DateTimeUtc>,
    pub last_used_at: Option<DateTimeUtc>,
    /// Whether the key may do what needs a login otherwise.
    pub management: bool,
    /// The key that made this one, and with which it ends. `None`: a login made it.
    pub created_by: Option<Text<ApiKeyId>>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {
    #[sea_orm(has_many = "super::api_key_permissions::Entity")]
    Permissions,
}

impl Related<super::api_key_permissions::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Permissions.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}

use agentbox_contracts::identity::TicketAction;
use agentbox_contracts::ids::{ApiKeyId, EnvironmentId, LoginId, UserId};
use agentbox_database::Text;
use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "tickets")]
pub struct Model {
    /// The keyed hash of the ticket.
    #[sea_orm(primary_key, auto_increment = false)]
    pub hash: Vec<u8>,
    pub user_id: Text<UserId>,
    /// The login that asked for the ticket; null when an API key did.
    pub login_id: Option<Text<LoginId>>,
    pub key_id: Option<Text<ApiKeyId>>,
    pub environment: Text<EnvironmentId>,
    pub action: Text<TicketAction>,
    /// The id of the execution, or the path, that the ticket is bound to.
    pub resource: Option<Vec<u8>>,
    pub expires_at: DateTimeUtc,
    pub used_at: Option<DateTimeUtc>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

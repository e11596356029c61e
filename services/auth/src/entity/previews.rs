use agentbox_contracts::ids::{ApiKeyId, EnvironmentId, LoginId, PreviewId, UserId};
use agentbox_database::Text;
use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "previews")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Text<PreviewId>,
    pub environment: Text<EnvironmentId>,
    pub port: i32,
    /// The creator.
    pub user_id: Text<UserId>,
    /// The login that created the preview; null when an API key did.
    pub login_id: Option<Text<LoginId>>,
    pub key_id: Option<Text<ApiKeyId>>,
    /// The keyed hash of the token; null: the preview is public.
    pub token_hash: Option<Vec<u8>>,
    /// The keyed hash of the link; null: it was used, or the preview is public.
    pub link_hash: Option<Vec<u8>>,
    /// The keyed hash of the cookie; null: no browser has used the link.
    pub cookie_hash: Option<Vec<u8>>,
    pub created_at: DateTimeUtc,
    pub expires_at: DateTimeUtc,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

use agentbox_contracts::ids::UserId;
use agentbox_database::Text;
use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "audit")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub at: DateTimeUtc,
    pub actor: Option<Text<UserId>>,
    pub action: Action,
    pub target: Option<String>,
    pub result: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Text", rename_all = "kebab-case")]
pub enum Action {
    BootstrapAdmin,
    Login,
    Logout,
    ChangePassword,
    CreateUser,
    PatchUser,
    DeleteUser,
    CreateKey,
    RevokeKey,
    /// All keys of the target, a user.
    RevokeKeys,
    IssueTicket,
    CreateSigningKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Text", rename_all = "kebab-case")]
pub enum Outcome {
    Ok,
    Refused,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

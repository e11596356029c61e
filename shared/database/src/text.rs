//! Columns of type `text` that hold an id or a value of a closed list.

use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use sea_orm::sea_query::{ArrayType, ColumnType, Nullable, StringLen, ValueType, ValueTypeErr};
use sea_orm::{
    ActiveValue, ColIdx, DbErr, IntoActiveValue, QueryResult, TryFromU64, TryGetError, TryGetable,
    Value,
};

/// A value of an entity whose column holds its text.
///
/// For types of `agentbox-contracts`, which does not depend on Postgres. The column holds the text
/// that `Display` writes, and `FromStr` reads it. A row with another text cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Text<T>(pub T);

impl<T> From<T> for Text<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T: Display> From<Text<T>> for Value {
    fn from(Text(value): Text<T>) -> Self {
        value.to_string().into()
    }
}

impl<T: Display> From<&Text<T>> for Value {
    fn from(Text(value): &Text<T>) -> Self {
        value.to_string().into()
    }
}

impl<T> TryGetable for Text<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    fn try_get_by<I: ColIdx>(row: &QueryResult, index: I) -> Result<Self, TryGetError> {
        let text = String::try_get_by(row, index)?;
        text.parse().map(Self).map_err(|error| {
            TryGetError::DbErr(DbErr::TryIntoErr {
                from: "text",
                into: std::any::type_name::<T>(),
                source: Arc::new(error),
            })
        })
    }
}

impl<T: FromStr> ValueType for Text<T> {
    fn try_from(value: Value) -> Result<Self, ValueTypeErr> {
        let text = <String as ValueType>::try_from(value)?;
        text.parse().map(Self).map_err(|_| ValueTypeErr)
    }

    fn type_name() -> String {
        std::any::type_name::<T>().to_owned()
    }

    fn array_type() -> ArrayType {
        ArrayType::String
    }

    fn column_type() -> ColumnType {
        ColumnType::String(StringLen::None)
    }
}

impl<T> Nullable for Text<T> {
    fn null() -> Value {
        Value::String(None)
    }
}

impl<T: Display> IntoActiveValue<Self> for Text<T>
where
    Value: From<Self>,
{
    fn into_active_value(self) -> ActiveValue<Self> {
        ActiveValue::Set(self)
    }
}

/// Required of a primary key. Always an error: the database does not number texts.
impl<T> TryFromU64 for Text<T> {
    fn try_from_u64(_: u64) -> Result<Self, DbErr> {
        Err(DbErr::ConvertFromU64(std::any::type_name::<T>()))
    }
}

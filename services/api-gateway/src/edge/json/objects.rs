//! A deserializer that reads each type from one kind of JSON value, as the OpenAPI document says.
//!
//! * A struct is read from an object. serde also reads it from an array of its fields in order:
//!   `["1", "64Mi", "1Gi"]` must not be accepted as `resources`.
//! * An enum is read from a string. serde also reads it from an object: `{"utf8": null}`.
//! * An integer is read from any number without a fraction: JSON does not distinguish `30.0` from
//!   `30`. An error contains the range of the integer.
//!
//! serde has no option for this, so a wrapper is put around the deserializer and around every
//! seed and access that it passes on. Reading into a `serde_json::Value` first would be shorter,
//! but repeated fields would not be detected.

use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    Visitor,
};

/// The largest number up to which a double-precision number represents every integer.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// A deserializer, seed or access, wrapped with everything that it passes on.
pub(super) struct Objects<T>(pub T);

/// The kind of value that a visitor reads.
#[derive(Clone, Copy)]
enum Kind {
    /// Decided by the visitor.
    Any,
    Object,
    Integer {
        min: i64,
        max: u64,
    },
}

struct KindVisitor<V> {
    inner: V,
    kind: Kind,
}

impl<V> KindVisitor<V> {
    fn new(inner: V) -> Self {
        let kind = Kind::Any;
        Self { inner, kind }
    }
}

macro_rules! forward {
    ($($method:ident($($argument:ident: $type:ty),*))*) => {$(
        fn $method<V: Visitor<'de>>(self, $($argument: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            self.0.$method($($argument,)* KindVisitor::new(visitor))
        }
    )*};
}

macro_rules! forward_integers {
    ($($method:ident($min:expr, $max:expr))*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.0.$method(KindVisitor {
                inner: visitor,
                kind: Kind::Integer { min: $min, max: $max },
            })
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Objects<D> {
    type Error = D::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(KindVisitor {
            inner: visitor,
            kind: Kind::Object,
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(VariantVisitor {
            inner: visitor,
            variants,
        })
    }

    forward_integers! {
        deserialize_i32(i64::from(i32::MIN), i32::MAX as u64)
        deserialize_i64(i64::MIN, i64::MAX as u64)
        deserialize_u8(0, u64::from(u8::MAX))
        deserialize_u16(0, u64::from(u16::MAX))
        deserialize_u32(0, u64::from(u32::MAX))
        deserialize_u64(0, u64::MAX)
    }

    forward! {
        deserialize_any() deserialize_bool()
        deserialize_i8() deserialize_i16() deserialize_i128() deserialize_u128()
        deserialize_f32() deserialize_f64()
        deserialize_char() deserialize_str() deserialize_string()
        deserialize_bytes() deserialize_byte_buf()
        deserialize_option() deserialize_unit()
        deserialize_unit_struct(name: &'static str)
        deserialize_newtype_struct(name: &'static str)
        deserialize_seq() deserialize_tuple(length: usize)
        deserialize_tuple_struct(name: &'static str, length: usize)
        deserialize_map()
        deserialize_identifier() deserialize_ignored_any()
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

macro_rules! forward_values {
    ($($method:ident($type:ty))*) => {$(
        fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            self.inner.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for KindVisitor<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Any => self.inner.expecting(f),
            Kind::Object => f.write_str("an object"),
            Kind::Integer { min, max } => write!(f, "an integer from {min} to {max}"),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<V::Value, E> {
        match self.kind {
            Kind::Integer { min, max }
                if value < min || u64::try_from(value).is_ok_and(|value| value > max) =>
            {
                Err(E::invalid_value(Unexpected::Signed(value), &self))
            }
            _ => self.inner.visit_i64(value),
        }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<V::Value, E> {
        match self.kind {
            Kind::Integer { max, .. } if value > max => {
                Err(E::invalid_value(Unexpected::Unsigned(value), &self))
            }
            _ => self.inner.visit_u64(value),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<V::Value, E> {
        match self.kind {
            Kind::Integer { .. } if value.fract() != 0.0 || value.abs() > MAX_EXACT => {
                Err(E::invalid_type(Unexpected::Float(value), &self))
            }
            Kind::Integer { .. } if value < 0.0 => self.visit_i64(value as i64),
            Kind::Integer { .. } => self.visit_u64(value as u64),
            _ => self.inner.visit_f64(value),
        }
    }

    forward_values! {
        visit_bool(bool)
        visit_i8(i8) visit_i16(i16) visit_i32(i32) visit_i128(i128)
        visit_u8(u8) visit_u16(u16) visit_u32(u32) visit_u128(u128)
        visit_f32(f32)
        visit_char(char) visit_str(&str) visit_borrowed_str(&'de str) visit_string(String)
        visit_bytes(&[u8]) visit_borrowed_bytes(&'de [u8]) visit_byte_buf(Vec<u8>)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Objects(inner))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(Objects(inner))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(Objects(access))
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(Objects(access))
    }
}

/// Reads the name of an enum's variant.
struct VariantVisitor<V> {
    inner: V,
    variants: &'static [&'static str],
}

impl<'de, V: Visitor<'de>> Visitor<'de> for VariantVisitor<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "one of `{}`", self.variants.join("`, `"))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<V::Value, E> {
        self.inner.visit_enum(name.into_deserializer())
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Objects<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Objects(deserializer))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Objects<A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, A::Error> {
        self.0.next_element_seed(Objects(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Objects<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        self.0.next_key_seed(seed)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.0.next_value_seed(Objects(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

//! TOML that users write, read into what serde derives, with the place of every word.
//!
//! A rules file may be long. `toml` takes for a rule of three lines five times the instructions
//! and the memory that `toml-spanner` takes, and that one knows nothing of serde: this is the
//! bridge. Its places are `toml::Spanned`.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_spanned::de::{SpannedDeserializer, is_spanned};
use toml_spanner::{Arena, Item, Key, Table, Value};

use crate::closest::closest;
use crate::error::Error;

/// A file and its text, which errors show.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Its name.
    pub file: &'a Path,
    /// All of it.
    pub text: &'a str,
}

impl<'a> Source<'a> {
    /// Reads the whole of it.
    ///
    /// # Errors
    /// Exit status 2 with line and column.
    pub fn read<T: for<'de> Deserialize<'de>>(self) -> Result<T, Error> {
        self.take(self.parse(&Arena::new())?.as_item())
    }

    /// Its tree, to take parts out of it.
    ///
    /// # Errors
    /// The same: what is no TOML.
    pub fn parse<'doc>(self, arena: &'doc Arena) -> Result<Table<'doc>, Error>
    where
        'a: 'doc,
    {
        match toml_spanner::parse(self.text, arena) {
            Ok(document) => Ok(document.into_table()),
            Err(error) => Err(self.at(error.span().range(), error.message(self.text))),
        }
    }

    /// What `item`, a part of it, says.
    ///
    /// # Errors
    /// The same: what has a wrong type or an unknown key, with the key that may be meant.
    pub fn take<'de, T: Deserialize<'de>>(self, item: &Item<'_>) -> Result<T, Error> {
        T::deserialize(Node(item)).map_err(|wrong| {
            let place = wrong.place.unwrap_or(0..0);
            let error = self.at(place, wrong.what);
            match wrong.meant {
                Some(meant) => error.hint(format!("did you mean `{meant}`?")),
                None => error,
            }
        })
    }

    /// An error at that place.
    pub fn at(self, place: Range<usize>, what: impl fmt::Display) -> Error {
        Error::at(self.file, self.text, place, what)
    }
}

/// The table `[FIRST.SECOND]` of `doc`.
pub fn table<'t, 'text>(
    doc: &'t mut Table<'text>,
    [first, second]: [&str; 2],
) -> Option<&'t mut Table<'text>> {
    doc.get_mut(first)?.as_table_mut()?.get_mut(second)?.as_table_mut()
}

/// What is wrong, and where as soon as that is known.
#[derive(Debug)]
struct Wrong {
    what: String,
    meant: Option<&'static str>,
    place: Option<Range<usize>>,
}

impl Wrong {
    fn at(mut self, place: Range<usize>) -> Self {
        self.place.get_or_insert(place);
        self
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Wrong {}

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self { what: what.to_string(), meant: None, place: None }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let list = expected.iter().map(|e| format!("`{e}`")).collect::<Vec<_>>().join(", ");
        let what = match expected {
            [] => format!("unknown field `{field}`, there are no fields"),
            [_] => format!("unknown field `{field}`, expected {list}"),
            _ => format!("unknown field `{field}`, expected one of {list}"),
        };
        let meant = closest(field, expected.iter().copied());
        Self { what, meant, place: None }
    }
}

/// A value.
#[derive(Clone, Copy)]
struct Node<'a, 'text>(&'a Item<'text>);

impl Node<'_, '_> {
    fn place(self) -> Range<usize> {
        self.0.span().range()
    }
}

impl<'de> IntoDeserializer<'de, Wrong> for Node<'_, '_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Node<'_, '_> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        let read = match self.0.value() {
            Value::String(text) => visitor.visit_str(text),
            Value::Integer(n) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => visitor.visit_i64(n),
                (None, Some(n)) => visitor.visit_u64(n),
                (None, None) => visitor.visit_i128(n.as_i128()),
            },
            Value::Float(n) => visitor.visit_f64(*n),
            Value::Boolean(b) => visitor.visit_bool(*b),
            Value::DateTime(_) => Err(de::Error::invalid_type(Unexpected::Other("date"), &visitor)),
            Value::Array(list) => visitor.visit_seq(List(list.iter())),
            Value::Table(table) => visitor.visit_map(Entries { rest: table.iter(), value: None }),
        };
        read.map_err(|wrong| wrong.at(self.place()))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        match is_spanned(name) {
            true => visitor.visit_map(SpannedDeserializer::new(self, self.place())),
            false => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    /// Only what is a word: no file of ours has others.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        let read = match self.0.as_str() {
            Some(word) => visitor.visit_enum(StrDeserializer::new(word)),
            None => Err(de::Error::invalid_type(Unexpected::Other(self.0.type_str()), &visitor)),
        };
        read.map_err(|wrong: Wrong| wrong.at(self.place()))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier
    }
}

struct List<'a, 'text>(std::slice::Iter<'a, Item<'text>>);

impl<'de> SeqAccess<'de> for List<'_, '_> {
    type Error = Wrong;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Wrong> {
        self.0.next().map(|item| seed.deserialize(Node(item))).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct Entries<'a, 'text> {
    rest: std::slice::Iter<'a, (Key<'text>, Item<'text>)>,
    value: Option<&'a Item<'text>>,
}

impl<'de> MapAccess<'de> for Entries<'_, '_> {
    type Error = Wrong;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Wrong> {
        let Some((key, value)) = self.rest.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(Word(key)).map(Some).map_err(|wrong| wrong.at(key.span.range()))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Wrong> {
        match self.value.take() {
            Some(value) => seed.deserialize(Node(value)),
            None => Err(de::Error::custom("a value before its key")),
        }
    }
}

/// A key.
struct Word<'a, 'text>(&'a Key<'text>);

impl<'de> Deserializer<'de> for Word<'_, '_> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_str(self.0.as_str())
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        match is_spanned(name) {
            true => {
                let word = Cow::Borrowed(self.0.as_str());
                visitor.visit_map(SpannedDeserializer::new(word, self.0.span.range()))
            }
            false => self.deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

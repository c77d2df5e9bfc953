//! How a value lies in memory, read from BTF: enough to print any map and to write any parameter.

use libbpf_rs::btf::types::{self, MemberAttr};
use libbpf_rs::btf::{Btf, BtfKind, BtfType, HasSize, TypeId};
use serde_json::{Map, Value, json};

/// The shape of a type.
#[derive(Debug, Clone, PartialEq)]
pub enum Layout {
    /// An integer of `size` bytes.
    Int {
        /// Bytes.
        size: usize,
        /// Whether it is signed.
        signed: bool,
    },
    /// A bool.
    Bool,
    /// A character; an array of them is text.
    Char,
    /// An enumeration of `size` bytes with its enumerators.
    Enum {
        /// Bytes.
        size: usize,
        /// Names and values.
        names: Vec<(String, i64)>,
    },
    /// `count` of `item`, one after the other.
    Array {
        /// What it holds.
        item: Box<Layout>,
        /// Bytes of one item.
        item_size: usize,
        /// How many.
        count: usize,
    },
    /// A struct or union.
    Struct {
        /// Its name, empty where it has none.
        name: String,
        /// Bytes.
        size: usize,
        /// Its members in order.
        members: Vec<Member>,
    },
    /// Something that is shown as bytes only (pointers, kernel structures).
    Opaque {
        /// Bytes.
        size: usize,
    },
}

/// A member of a struct.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Its name; empty for an anonymous struct or union.
    pub name: String,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// Its shape.
    pub layout: Layout,
}

/// A struct deeper than this is a kernel structure and of no interest.
const MAX_DEPTH: usize = 8;

impl Layout {
    /// The layout of type `id` of `btf`.
    pub fn of(btf: &Btf<'_>, id: TypeId) -> Option<Self> {
        let ty: BtfType<'_> = btf.type_by_id(id)?;
        Some(Self::of_type(btf, ty, 0))
    }

    fn of_type(btf: &Btf<'_>, ty: BtfType<'_>, depth: usize) -> Self {
        let named = ty.name().is_some_and(|n| n == "bool");
        let ty = ty.skip_mods_and_typedefs();
        match ty.kind() {
            BtfKind::Int => types::Int::try_from(ty).map_or(Self::Opaque { size: 0 }, |int| {
                let size = usize::from(int.bits).div_ceil(8);
                match int.encoding {
                    types::IntEncoding::Bool => Self::Bool,
                    _ if named => Self::Bool,
                    types::IntEncoding::Char => Self::Char,
                    _ if size == 1 && int.name().is_some_and(|n| n == "char") => Self::Char,
                    types::IntEncoding::Signed => Self::Int { size, signed: true },
                    types::IntEncoding::None => Self::Int { size, signed: false },
                }
            }),
            BtfKind::Enum => types::Enum::try_from(ty).map_or(Self::Opaque { size: 4 }, |e| {
                let names = e.iter().filter_map(|m| Some((text(m.name?), m.value))).collect();
                Self::Enum { size: e.size(), names }
            }),
            BtfKind::Enum64 => types::Enum64::try_from(ty).map_or(Self::Opaque { size: 8 }, |e| {
                let names =
                    e.iter().filter_map(|m| Some((text(m.name?), m.value as i64))).collect();
                Self::Enum { size: e.size(), names }
            }),
            BtfKind::Array => types::Array::try_from(ty).map_or(Self::Opaque { size: 0 }, |a| {
                let item = Self::of_type(btf, a.contained_type(), depth + 1);
                Self::Array { item_size: item.size(), item: Box::new(item), count: a.capacity() }
            }),
            BtfKind::Struct | BtfKind::Union => {
                types::Composite::try_from(ty).map_or(Self::Opaque { size: 0 }, |c| {
                    let size = c.size();
                    if depth >= MAX_DEPTH {
                        return Self::Opaque { size };
                    }
                    let members = c
                        .iter()
                        .filter_map(|m| {
                            let MemberAttr::Normal { offset } = m.attr else { return None };
                            let layout =
                                Self::of_type(btf, btf.type_by_id::<BtfType<'_>>(m.ty)?, depth + 1);
                            let name = m.name.map(text).unwrap_or_default();
                            Some(Member { name, offset: offset as usize / 8, layout })
                        })
                        .collect();
                    Self::Struct { name: c.name().map(text).unwrap_or_default(), size, members }
                })
            }
            BtfKind::Ptr => Self::Opaque { size: 8 },
            _ => Self::Opaque { size: 0 },
        }
    }

    /// Bytes that a value takes.
    pub fn size(&self) -> usize {
        match self {
            Self::Int { size, .. } | Self::Enum { size, .. } => *size,
            Self::Bool | Self::Char => 1,
            Self::Array { item_size, count, .. } => item_size * count,
            Self::Struct { size, .. } | Self::Opaque { size } => *size,
        }
    }

    /// The members of a struct; none for anything else.
    pub fn members(&self) -> &[Member] {
        match self {
            Self::Struct { members, .. } => members,
            _ => &[],
        }
    }

    /// Whether a value is a single number.
    pub fn is_number(&self) -> bool {
        matches!(self, Self::Int { .. } | Self::Enum { .. } | Self::Bool)
    }

    /// The number in `bytes`, where this is one.
    pub fn number(&self, bytes: &[u8]) -> Option<i128> {
        let (size, signed) = match self {
            Self::Int { size, signed } => (*size, *signed),
            Self::Enum { size, .. } => (*size, false),
            Self::Bool | Self::Char => (1, false),
            _ => return None,
        };
        let bytes = bytes.get(..size)?;
        let mut wide = [0u8; 16];
        if signed && bytes.last().is_some_and(|b| b & 0x80 != 0) {
            wide = [0xff; 16];
        }
        wide.get_mut(..size)?.copy_from_slice(bytes);
        Some(i128::from_le_bytes(wide))
    }

    /// `bytes` as JSON: numbers, text for character arrays, enumerators by name, hexadecimal for
    /// what BTF does not explain.
    pub fn json(&self, bytes: &[u8]) -> Value {
        match self {
            Self::Bool => json!(bytes.first().is_some_and(|b| *b != 0)),
            Self::Int { .. } | Self::Char => match self.number(bytes) {
                Some(v) => i64::try_from(v).map_or_else(|_| json!(v as u64), |v| json!(v)),
                None => Value::Null,
            },
            Self::Enum { names, .. } => {
                let Some(v) = self.number(bytes) else { return Value::Null };
                match names.iter().find(|(_, value)| i128::from(*value) == v) {
                    Some((name, _)) => json!(name),
                    None => json!(v as i64),
                }
            }
            Self::Array { item, .. } if **item == Self::Char => {
                let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
                json!(String::from_utf8_lossy(&bytes[..end]))
            }
            Self::Array { item, item_size, count } => Value::Array(
                bytes.chunks(*item_size.max(&1)).take(*count).map(|b| item.json(b)).collect(),
            ),
            Self::Struct { members, .. } => {
                let mut object = Map::new();
                for member in members {
                    let Some(part) = bytes.get(member.offset..) else { continue };
                    let value = member.layout.json(&part[..part.len().min(member.layout.size())]);
                    match value {
                        // An anonymous union or struct: its members belong to this one.
                        Value::Object(inner) if member.name.is_empty() => object.extend(inner),
                        value => _ = object.insert(member.name.clone(), value),
                    }
                }
                Value::Object(object)
            }
            Self::Opaque { .. } => {
                json!(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>())
            }
        }
    }

    /// The name of the type for a person.
    pub fn describe(&self) -> String {
        match self {
            Self::Int { size, signed } => {
                format!("{}{}", if *signed { "s" } else { "u" }, size * 8)
            }
            Self::Bool => "bool".into(),
            Self::Char => "char".into(),
            Self::Enum { .. } => "enum".into(),
            Self::Array { item, count, .. } => format!("{}[{count}]", item.describe()),
            Self::Struct { name, .. } => format!("struct {name}"),
            Self::Opaque { size } => format!("{size} bytes"),
        }
    }
}

/// BTF names are C identifiers.
pub fn text(name: &std::ffi::OsStr) -> String {
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_sign() {
        let s16 = Layout::Int { size: 2, signed: true };
        assert_eq!(s16.number(&[0xfe, 0xff]), Some(-2));
        let u64_ = Layout::Int { size: 8, signed: false };
        assert_eq!(u64_.json(&[0xff; 8]), json!(u64::MAX));
        assert_eq!(u64_.number(&[0; 4]), None);
    }

    #[test]
    fn text_ends_at_nul_and_enumerators_have_names() {
        let array = Layout::Array { item: Box::new(Layout::Char), item_size: 1, count: 4 };
        assert_eq!(array.json(b"ab\0x"), json!("ab"));
        let e = Layout::Enum { size: 4, names: vec![("DENY".into(), 1)] };
        assert_eq!(e.json(&1u32.to_le_bytes()), json!("DENY"));
        assert_eq!(e.json(&7u32.to_le_bytes()), json!(7));
    }
}

//! Parameters: from text or TOML to the bytes of a global variable, and back.

use std::path::Path;

use toml::Value;

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::manifest::{Manifest, Param, span};
use crate::shape::{Global, Shape};

/// A `K=V` of the command line.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// The parameter's name.
    pub key: String,
    /// The value, typed as far as its text tells.
    pub value: Value,
}

impl std::str::FromStr for Assignment {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() || value.is_empty() {
            return Err("write it as NAME=VALUE".into());
        }
        Ok(Self { key: key.to_owned(), value: parse(value) })
    }
}

/// Numbers (decimal, `0x`, `_` between digits), `true`, `false`; all else is text.
fn parse(text: &str) -> Value {
    let digits = text.replace('_', "");
    let (sign, magnitude) = match digits.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, digits.as_str()),
    };
    let number = match magnitude.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok().map(|v| v as i64),
        // Wraps above i64::MAX; `encode` reads it back as unsigned.
        None => magnitude.parse::<u64>().ok().map(|v| v as i64),
    };
    match (number, text) {
        (Some(v), _) => Value::Integer(if sign < 0 { v.wrapping_neg() } else { v }),
        (None, "true") => Value::Boolean(true),
        (None, "false") => Value::Boolean(false),
        (None, text) => Value::String(text.to_owned()),
    }
}

/// The bytes that `value` has as a variable of shape `layout`.
///
/// # Errors
/// Exit status 2: the wrong type, or a number that does not fit.
pub fn encode(name: &str, layout: &Layout, value: &Value) -> Result<Vec<u8>> {
    let wrong = |want: &str| {
        Error::config(format!("`{name}` is a {}: it takes {want}, not {value}", layout.describe()))
    };
    match (layout, value) {
        (Layout::Bool, Value::Boolean(b)) => Ok(vec![u8::from(*b)]),
        (Layout::Bool, Value::Integer(v @ (0 | 1))) => Ok(vec![*v as u8]),
        (Layout::Bool, _) => Err(wrong("true or false").into()),
        (Layout::Int { size, signed }, Value::Integer(v)) => {
            let bits = *size as u32 * 8;
            let fits = match (signed, bits) {
                // TOML has no unsigned 64-bit integers: -1 stands for all ones there.
                (_, 64..) => true,
                (true, _) => (-(1i64 << (bits - 1))..1i64 << (bits - 1)).contains(v),
                (false, _) => (0..1i64 << bits).contains(v),
            };
            if !fits {
                return Err(wrong(&format!("a number of {bits} bits")).into());
            }
            Ok(v.to_le_bytes()[..*size].to_vec())
        }
        (Layout::Int { size, signed: false }, Value::Boolean(b)) => {
            let mut bytes = vec![0; *size];
            if let Some(first) = bytes.first_mut() {
                *first = u8::from(*b);
            }
            Ok(bytes)
        }
        (Layout::Enum { size, names }, Value::String(text)) => {
            match names.iter().find(|(name, _)| name == text) {
                Some((_, v)) => Ok(v.to_le_bytes()[..*size].to_vec()),
                None => Err(wrong("the name of an enumerator").into()),
            }
        }
        (Layout::Enum { size, .. }, Value::Integer(v)) => Ok(v.to_le_bytes()[..*size].to_vec()),
        (Layout::Array { item, count, .. }, Value::String(text)) if **item == Layout::Char => {
            if text.len() >= *count {
                return Err(wrong(&format!("at most {} characters", count - 1)).into());
            }
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize(*count, 0);
            Ok(bytes)
        }
        _ => Err(wrong("a number").into()),
    }
}

/// A parameter of the manifest together with the global that it is.
pub struct Known<'a> {
    /// Its name.
    pub name: &'a str,
    /// The manifest's entry.
    pub param: &'a Param,
    /// The object's variable.
    pub global: &'a Global,
}

/// Finds the global of every parameter in the manifest.
///
/// # Errors
/// Exit status 2, with the manifest's line: a parameter that the object lacks, or one that is
/// live but constant or the other way round.
pub fn known<'a>(
    manifest: &'a Manifest,
    shape: &'a Shape,
    file: &Path,
    text: &str,
) -> Result<Vec<Known<'a>>> {
    let mut known = Vec::new();
    for (name, param) in &manifest.params {
        let wrong = |what: String, hint: &str| {
            Error::at(file, text, span(text, &["params", name]), what).hint(hint)
        };
        let Some(global) = shape.global(name) else {
            return Err(wrong(
                format!("the object has no global variable `{name}`"),
                "declare it `const volatile` in the .bpf.c, or take it out of the manifest",
            )
            .into());
        };
        if global.is_constant() == param.live {
            let (what, hint) = if param.live {
                ("is const in the object, so it can't be live", "drop `const` in the .bpf.c")
            } else {
                ("lies in .data", "make it `const volatile`, or say `live = true`")
            };
            return Err(wrong(format!("`{name}` {what}"), hint).into());
        }
        if let Some(default) = &param.default {
            encode(name, &global.layout, default)
                .map_err(|e| wrong(e.to_string(), "mend `default`"))?;
        }
        known.push(Known { name, param, global });
    }
    Ok(known)
}

/// The value of every parameter that differs from the object's own: defaults, then `given`.
///
/// # Errors
/// Exit status 2: no such parameter, out of range, wrong type.
pub fn assign<'a>(
    known: &[Known<'a>],
    given: &[Assignment],
    policy: &str,
) -> Result<Vec<(&'a Global, Vec<u8>)>> {
    for assignment in given {
        find(known, &assignment.key, policy)?;
    }
    let mut bytes = Vec::new();
    for Known { name, param, global } in known {
        let chosen = given.iter().rev().find(|a| a.key == *name).map(|a| &a.value);
        let Some(value) = chosen.or(param.default.as_ref()) else { continue };
        param.check_range(name, value)?;
        bytes.push((*global, encode(name, &global.layout, value)?));
    }
    Ok(bytes)
}

/// The parameter called `name`.
///
/// # Errors
/// Exit status 2 with the parameters that there are.
pub fn find<'k, 'a>(known: &'k [Known<'a>], name: &str, policy: &str) -> Result<&'k Known<'a>> {
    known.iter().find(|k| k.name == name).ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|k| k.name).collect();
        let hint = match names.as_slice() {
            [] => format!("{policy} has no parameters"),
            names => format!("it has: {}", names.join(", ")),
        };
        Error::config(format!("{policy} has no parameter `{name}`")).hint(hint).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(layout: &Layout, text: &str) -> Result<Vec<u8>> {
        let a: Assignment = format!("x={text}").parse().map_err(Error::config)?;
        encode("x", layout, &a.value)
    }

    #[test]
    fn numbers_take_their_size() {
        let u16_ = Layout::Int { size: 2, signed: false };
        assert_eq!(bytes(&u16_, "0x1_02").unwrap(), [2, 1]);
        assert!(bytes(&u16_, "65536").is_err());
        assert!(bytes(&u16_, "-1").is_err());
        assert!(bytes(&u16_, "much").is_err());
        let s8 = Layout::Int { size: 1, signed: true };
        assert_eq!(bytes(&s8, "-128").unwrap(), [0x80]);
        assert!(bytes(&s8, "128").is_err());
        let u64_ = Layout::Int { size: 8, signed: false };
        assert_eq!(bytes(&u64_, "18446744073709551615").unwrap(), [0xff; 8]);
    }

    #[test]
    fn text_keeps_its_nul() {
        let array = Layout::Array { item: Box::new(Layout::Char), item_size: 1, count: 4 };
        assert_eq!(bytes(&array, "abc").unwrap(), b"abc\0");
        assert!(bytes(&array, "abcd").is_err());
    }

    #[test]
    fn an_assignment_needs_both_sides() {
        assert!("shift_g".parse::<Assignment>().is_err());
        assert!("=4".parse::<Assignment>().is_err());
        assert!("shift_g=".parse::<Assignment>().is_err());
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_reads_back(v in proptest::prelude::any::<i32>()) {
            let s32 = Layout::Int { size: 4, signed: true };
            let written = bytes(&s32, &v.to_string()).unwrap();
            proptest::prop_assert_eq!(s32.number(&written), Some(i128::from(v)));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = text.parse::<Assignment>();
            let _ = bytes(&Layout::Int { size: 8, signed: true }, &text);
        }
    }
}

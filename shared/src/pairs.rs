//! Maps whose keys are bytes, as JSON, where keys are text: a list of pairs (`#[serde(with)]`).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serializer};

type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// Writes the pairs.
///
/// # Errors
/// What the serializer says.
pub fn serialize<S: Serializer>(entries: &Entries, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(entries)
}

/// Reads the pairs.
///
/// # Errors
/// What the deserializer says.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Entries, D::Error> {
    Ok(Vec::<(Vec<u8>, Vec<u8>)>::deserialize(from)?.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize, serde::Serialize)]
    struct Kept(#[serde(with = "super")] Entries);

    #[test]
    fn keys_of_bytes_come_back() {
        let kept = Kept([(vec![0, 0, 0, 1], vec![7]), (vec![255], vec![])].into());
        let json = serde_json::to_value(&kept).unwrap();
        assert_eq!(serde_json::from_value::<Kept>(json).unwrap(), kept);
    }
}

//! What somebody meant who mistyped a word.

/// The word of `known` that `word` was probably meant to be.
pub fn closest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.map(|k| (distance(word, k), k)).min()?;
    (near.0 <= near.1.len().min(word.len()) / 3 + 1).then_some(near.1)
}

/// Levenshtein's distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::closest;

    #[test]
    fn a_typo_finds_its_word() {
        let known = || ["read", "write", "exec", "chown"].into_iter();
        assert_eq!(closest("wirte", known()), Some("write"));
        assert_eq!(closest("exek", known()), Some("exec"));
        assert_eq!(closest("photograph", known()), None);
    }
}

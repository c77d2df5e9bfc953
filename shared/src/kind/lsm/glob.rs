//! Globs: names, some of them patterns, from a path (or from anywhere) downwards.

use std::fmt;

/// A glob, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Glob {
    /// The path before the first pattern; `None` is the root of every file system.
    pub start: Option<String>,
    /// What follows. Empty when there was no pattern; the last part is a name.
    pub tail: Vec<Part>,
}

impl Glob {
    /// Whether it is about `path`, or about a directory above that.
    pub fn covers(&self, path: &str) -> bool {
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        let start = self.start.as_deref().unwrap_or("/");
        let mut start = start.split('/').filter(|p| !p.is_empty());
        let literal = start.clone().count();
        parts.len() >= literal
            && start.all({
                let mut parts = parts.iter();
                move |part| parts.next() == Some(&part)
            })
            && covers(&self.tail, &parts[literal..])
    }
}

fn covers(tail: &[Part], parts: &[&str]) -> bool {
    match (tail.split_first(), parts.split_first()) {
        (None, _) => true,
        (Some((Part::Deep, rest)), _) => (0..=parts.len()).any(|n| covers(rest, &parts[n..])),
        (Some((Part::Name(name), rest)), Some((part, parts))) => {
            Pattern::of_shape(name.shape(), part.as_bytes()).as_ref() == Some(name)
                && covers(rest, parts)
        }
        (Some(_), None) => false,
    }
}

/// What stands between two slashes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// `**`: any directories, or none.
    Deep,
    /// One name.
    Name(Pattern),
}

/// Names that begin and end in some way, or one name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern {
    /// What they begin with; the whole of it when it is exact.
    pub start: String,
    /// What they end in, with no byte of the beginning.
    pub end: String,
    /// Whether it is one name.
    pub exact: bool,
}

impl Pattern {
    /// What is hashed of a name to look the pattern up: `shapes` of `struct deny_set`.
    pub fn shape(&self) -> u32 {
        match self.exact {
            true => 1 << 16,
            false => (self.start.len() | self.end.len() << 8) as u32,
        }
    }

    /// The pattern of that shape which `name` matches, if it is long enough for any.
    pub fn of_shape(shape: u32, name: &[u8]) -> Option<Self> {
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
        let (start, end) = ((shape & 0xff) as usize, (shape >> 8 & 0xff) as usize);
        if shape >> 16 != 0 {
            return Some(Self { start: text(name)?, end: String::new(), exact: true });
        }
        let end = name.len().checked_sub(end).filter(|end| *end >= start)?;
        Some(Self { start: text(&name[..start])?, end: text(&name[end..])?, exact: false })
    }
}

/// What is wrong with a glob, and what to do about it.
pub type Wrong = (&'static str, &'static str);

/// Takes a glob apart that has no empty components, `.` and `..`.
///
/// # Errors
/// What can't be expressed.
pub fn parse(text: &str) -> Result<Glob, Wrong> {
    let mut tail = Vec::new();
    for part in text.split('/').filter(|p| !p.is_empty()) {
        match part {
            "**" if tail.last() == Some(&Part::Deep) => {}
            "**" => tail.push(Part::Deep),
            _ => tail.push(Part::Name(pattern(part)?)),
        }
    }
    // What holds for a directory holds for all beneath it.
    if tail.last() == Some(&Part::Deep) && tail.len() > 1 {
        tail.pop();
    }
    let plain = |part: &Part| matches!(part, Part::Name(p) if p.exact);
    let literal = tail.iter().take_while(|part| plain(part)).count();
    let rest = tail.split_off(literal);
    let start = tail.iter().fold(String::new(), |path, part| match part {
        Part::Name(name) => path + "/" + &name.start,
        Part::Deep => path,
    });
    let everywhere = start.is_empty() && rest.first() == Some(&Part::Deep);
    match (everywhere, rest.len()) {
        // Everything: what is beneath /.
        (true, 1) => Ok(Glob { start: Some("/".to_owned()), tail: Vec::new() }),
        (true, _) => Ok(Glob { start: None, tail: rest }),
        (false, _) if start.is_empty() => Ok(Glob { start: Some("/".to_owned()), tail: rest }),
        (false, _) => Ok(Glob { start: Some(start), tail: rest }),
    }
}

fn pattern(part: &str) -> Result<Pattern, Wrong> {
    if part.contains(['?', '[', ']', '{', '}', '\\']) {
        return Err((
            "a glob knows `*` and `**`, and none of `? [ ] { } \\`",
            "write one glob for each name that is meant, in a list; a name that has such a character \
             in it can be given by `path`",
        ));
    }
    if part.contains("**") {
        return Err((
            "`**` stands for whole directories, by itself between two slashes",
            "`**/*.pem` is every name that ends in .pem, at any depth",
        ));
    }
    let (start, end) = match part.split_once('*') {
        None => return Ok(Pattern { start: part.to_owned(), end: String::new(), exact: true }),
        Some(both) => both,
    };
    if end.contains('*') {
        return Err((
            "more than one `*` in a name",
            "a name is matched by how it begins and how it ends: `id_*`, `*.pem`, `id_*.pub`; write one \
             glob for each beginning or end",
        ));
    }
    Ok(Pattern { start: start.to_owned(), end: end.to_owned(), exact: false })
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.start, if self.exact { "" } else { "*" }, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let glob = parse(text).unwrap_or_else(|(what, _)| panic!("{text}: {what}"));
        let part = |part: &Part| match part {
            Part::Deep => "**".to_owned(),
            Part::Name(name) => name.to_string(),
        };
        let tail: Vec<_> = glob.tail.iter().map(part).collect();
        format!("{} {}", glob.start.as_deref().unwrap_or("-"), tail.join("/"))
    }

    #[test]
    fn globs_are_taken_apart() {
        assert_eq!(shown("**/*.pem"), "- **/*.pem");
        assert_eq!(shown("/**/**/.git/**"), "- **/.git");
        assert_eq!(shown("/home/*/.ssh/**"), "/home */.ssh");
        assert_eq!(shown("/srv/www/**/id_*.pub"), "/srv/www **/id_*.pub");
        assert_eq!(shown("/*/x"), "/ */x");
        assert_eq!(shown("/etc/**"), "/etc ");
        assert_eq!(shown("/etc/x"), "/etc/x ");
        assert_eq!(shown("/**"), "/ ");
    }

    #[test]
    fn a_name_has_the_shape_of_its_pattern() {
        let pattern = |text: &str| pattern(text).unwrap_or_default();
        for (text, name, matches) in [
            ("id_*.pub", "id_rsa.pub", true),
            ("id_*.pub", "id_.pub", true),
            ("a*a", "a", false),
            ("*", "x", true),
            ("x", "x", true),
            ("x", "xx", false),
        ] {
            let pattern = pattern(text);
            let found = Pattern::of_shape(pattern.shape(), name.as_bytes());
            assert_eq!(found.is_some_and(|f| f == pattern), matches, "{text} {name}");
        }
    }
}

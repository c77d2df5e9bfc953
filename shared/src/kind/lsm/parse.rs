//! From a rules file to rules, each checked; an error shows the place of what is wrong.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use rustc_hash::FxHashSet;
use toml::Spanned;
use toml_spanner::{Arena, Table};

use super::case::Case;
use super::glob::{self, Glob};
use super::op::{self, Op, Ops};
use super::raw::{self, Texts, spread};
use super::rules::{ERRNOS, MAX_NAME, Mode, Object, Rule, Rules, Subject, Written};
use crate::closest::closest;
use crate::document::{self, Source};
use crate::error::{Error, Result};

/// Longest path, `PATH_MAX` less the NUL; and longest component, `NAME_MAX`.
const MAX_PATH: usize = 4095;
const MAX_COMPONENT: usize = 255;
/// Events of a rule per second where it doesn't say.
const RATE: u32 = 100;

/// Reads the rules file `file` for the policy called `policy`.
///
/// # Errors
/// Exit status 2 with file, line, column and what to write instead.
pub fn read(file: &Path, policy: &str) -> Result<Written> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| Error::config(format!("can't read {}: {e}", file.display())))?;
    let rules = parse(file, &text, policy)?;
    Ok(Written { file: file.to_owned(), text, rules })
}

/// The same for a text that is there already.
///
/// # Errors
/// The same.
pub fn parse(file: &Path, text: &str, policy: &str) -> Result<Rules> {
    let (source, arena) = (Source { file, text }, Arena::new());
    let mut doc = source.parse(&arena)?;
    take(&mut doc, source, policy)
}

/// The same from the file's tree, out of which it takes them.
///
/// # Errors
/// The same.
pub fn take(doc: &mut Table<'_>, source: Source<'_>, policy: &str) -> Result<Rules> {
    let own = document::table(doc, ["lsm", policy])
        .filter(|own| own.get("rules").is_some_and(|rules| rules.as_array().is_some()));
    let written = own.and_then(|own| own.remove_entry("rules"));
    let written = written.as_ref().and_then(|(_, rules)| rules.as_array());
    let mut raw: raw::File = source.take(doc.as_item())?;
    let everywhere = raw.test;
    let Some(raw) = raw.lsm.remove(policy) else { return Ok(Rules::default()) };
    let reader = Reader { source };
    let (mut places, mut rules) = (Vec::new(), Vec::new());
    // One after the other: there may be very many, and one as it is written is large.
    for (at, rule) in written.into_iter().flatten().enumerate() {
        let rule: Spanned<raw::Rule> = source.take(rule)?;
        places.push(rule.get_ref().name.as_ref().map_or_else(|| rule.span(), Spanned::span));
        rules.push(reader.rule(rule, at, raw.mode)?);
    }
    let mut names = FxHashSet::default();
    if let Some((again, place)) = rules.iter().zip(&places).find(|(r, _)| !names.insert(&r.name)) {
        let what = format!("a second rule called `{}`", again.name);
        return Err(reader.at(place, what).hint("events and counts go by the name").into());
    }
    let tests = raw.test.into_iter().chain(everywhere).enumerate();
    let tests = tests.map(|(at, test)| reader.case(test, at)).collect::<Result<_>>()?;
    let lock = raw.lock.filter(|lock| *lock.get_ref());
    if let Some(place) = lock.as_ref().filter(|_| rules.is_empty()) {
        return Err(reader.at(&place.span(), "there are no rules that could be locked").into());
    }
    Ok(Rules::new(raw.mode, lock.is_some(), rules, tests))
}

struct Reader<'a> {
    source: Source<'a>,
}

impl Reader<'_> {
    fn at(&self, span: &Range<usize>, what: impl fmt::Display) -> Error {
        self.source.at(span.clone(), what)
    }

    /// Where a table of several lines is shown: the whole of it would fill the screen.
    fn first_line(&self, span: &Range<usize>) -> Range<usize> {
        let (start, text) = (span.start, self.source.text);
        start..text[start..].find('\n').map_or(text.len(), |n| start + n)
    }

    fn rule(&self, raw: Spanned<raw::Rule>, index: usize, mode: Mode) -> Result<Rule> {
        let whole = self.first_line(&raw.span());
        let raw = raw.into_inner();
        let deny_span = raw.deny.span();
        let words = spread(raw.deny).into_iter();
        let deny = words.map(|word| self.op(&word)).collect::<Result<Ops>>()?;
        if deny.is_empty() {
            return Err(self
                .at(&deny_span, "the rule denies nothing")
                .hint(format!("operations are {}", op::list()))
                .into());
        }
        let revoke = raw.revoke.as_ref().is_some_and(|r| *r.get_ref());
        if let Some(place) = raw.revoke.filter(|_| revoke)
            && !deny.contains(Op::Read)
            && !deny.contains(Op::Write)
        {
            return Err(self
                .at(
                    &place.span(),
                    "`revoke` takes back reading and writing, and the rule denies neither",
                )
                .hint("add \"read\" or \"write\" to `deny`, or leave `revoke` out")
                .into());
        }
        Ok(Rule {
            name: self.name(raw.name, index)?,
            deny,
            object: self
                .object(&whole, [raw.path, raw.glob, raw.except, raw.fstype, raw.device])?,
            subject: self.subject(raw.subject)?,
            mode: raw.mode.unwrap_or(mode),
            errno: self.errno(raw.errno)?,
            rate: raw.rate.unwrap_or(RATE),
            pin: raw.pin.unwrap_or(true),
            revoke,
            span: whole,
        })
    }

    fn name(&self, name: Option<Spanned<String>>, index: usize) -> Result<String> {
        let Some(name) = name else { return Ok(format!("rule-{}", index + 1)) };
        let span = name.span();
        let name = name.into_inner();
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(self
                .at(&span, format!("a rule's name has 1 to {MAX_NAME} bytes of text"))
                .into());
        }
        Ok(name)
    }

    fn op(&self, word: &Spanned<String>) -> Result<Op> {
        Op::find(word.get_ref()).ok_or_else(|| {
            let error = self.at(&word.span(), format!("no operation `{}`", word.get_ref()));
            match closest(word.get_ref(), Op::all().map(Op::name)) {
                Some(meant) => error.hint(format!("did you mean `{meant}`?")),
                None => error.hint(format!("operations are {}", op::list())),
            }
            .into()
        })
    }

    fn object(
        &self,
        whole: &Range<usize>,
        [path, glob, except, fstype, device]: [Option<Spanned<Texts>>; 5],
    ) -> Result<Object> {
        let except_span = except.as_ref().map(Spanned::span);
        match (path, glob, fstype, device) {
            (Some(path), None, None, None) => {
                let span = path.span();
                let paths = self.paths(path)?;
                if paths.is_empty() {
                    return Err(self.at(&span, "the rule names no path").into());
                }
                let except = match except {
                    Some(except) => self.holes(except, &paths)?,
                    None => Vec::new(),
                };
                Ok(Object::Paths { paths, except })
            }
            (None, Some(glob), None, None) => {
                let span = glob.span();
                let globs = self.globs(glob)?;
                if globs.is_empty() {
                    return Err(self.at(&span, "the rule has no glob").into());
                }
                let except = except.map_or(Ok(Vec::new()), |e| self.glob_holes(e, &globs))?;
                Ok(Object::Globs { globs, except })
            }
            (None, None, fstype, device)
                if except_span.is_some() && (fstype.is_some() || device.is_some()) =>
            {
                let span = except_span.unwrap_or_else(|| whole.clone());
                let what = "`except` makes holes in a `path` or a `glob`, and there is none";
                Err(self.at(&span, what).into())
            }
            (None, None, Some(fstype), None) => Ok(Object::FsTypes(self.fstypes(fstype)?)),
            (None, None, None, Some(device)) => Ok(Object::Devices(self.devices(device)?)),
            (None, None, None, None) => Err(self
                .at(whole, "the rule does not say what it is about")
                .hint("give it `path`, `glob`, `fstype` or `device`")
                .into()),
            _ => Err(self
                .at(whole, "a rule is about one of `path`, `glob`, `fstype` and `device`")
                .hint("make it two rules: whatever one of them denies is denied")
                .into()),
        }
    }

    fn globs(&self, texts: Spanned<Texts>) -> Result<Vec<Glob>> {
        spread(texts).into_iter().map(|t| self.glob(&t)).collect()
    }

    fn glob_holes(&self, texts: Spanned<Texts>, globs: &[Glob]) -> Result<Vec<Glob>> {
        let mut holes = Vec::new();
        for text in spread(texts) {
            let hole = self.glob(&text)?;
            if globs.iter().any(|g| hole.covers(g.start.as_deref().unwrap_or("/"))) {
                let what = format!("`{}` leaves nothing of a glob of the rule", text.get_ref());
                let hint = "a hole is beneath what its rule is about; leave one of the two out";
                return Err(self.at(&text.span(), what).hint(hint).into());
            }
            holes.push(hole);
        }
        Ok(holes)
    }

    fn glob(&self, text: &Spanned<String>) -> Result<Glob> {
        let place = text.span();
        let clean = if text.get_ref().starts_with("**/") {
            self.path(&Spanned::new(place.clone(), format!("/{}", text.get_ref())))?
        } else if text.get_ref().starts_with('/') || text.get_ref().is_empty() {
            self.path(text)?
        } else {
            let what = format!("`{}` starts neither at / nor with **/", text.get_ref());
            let hint = format!("`**/{}` is that name at any depth, everywhere", text.get_ref());
            return Err(self.at(&place, what).hint(hint).into());
        };
        glob::parse(&clean).map_err(|(what, hint)| self.at(&place, what).hint(hint).into())
    }

    fn paths(&self, texts: Spanned<Texts>) -> Result<Vec<String>> {
        spread(texts).into_iter().map(|t| self.path(&t)).collect()
    }

    /// A path without empty components and `.`; what would need the file system is refused.
    fn path(&self, text: &Spanned<String>) -> Result<String> {
        let wrong = |what: &str| Err(self.at(&text.span(), what).into());
        let path = text.get_ref();
        if !path.starts_with('/') {
            return match path.as_str() {
                "" => wrong("an empty path"),
                _ => Err(self
                    .at(&text.span(), format!("`{path}` does not start at /"))
                    .hint("rules hold for the whole system, so their paths are absolute")
                    .into()),
            };
        }
        if path.contains('\0') {
            return wrong("no path has a NUL in it");
        }
        if path.len() > MAX_PATH {
            return wrong("the path is longer than the kernel's 4095 bytes");
        }
        let mut clean = String::with_capacity(path.len());
        for part in path.split('/').filter(|p| !p.is_empty() && *p != ".") {
            if part == ".." {
                return wrong("`..` depends on where one comes from; write the path it leads to");
            }
            if part.len() > MAX_COMPONENT {
                return wrong("a component of the path is longer than the kernel's 255 bytes");
            }
            clean.push('/');
            clean.push_str(part);
        }
        if clean.is_empty() {
            clean.push('/');
        }
        Ok(clean)
    }

    fn holes(&self, texts: Spanned<Texts>, paths: &[String]) -> Result<Vec<String>> {
        let mut holes = Vec::new();
        for text in spread(texts) {
            let hole = self.path(&text)?;
            let beneath = |p: &String| p == "/" || hole.starts_with(&format!("{p}/"));
            if !paths.iter().any(beneath) {
                return Err(self
                    .at(&text.span(), format!("`{hole}` is not beneath the rule's path"))
                    .hint("`except` makes holes in its own rule only")
                    .into());
            }
            holes.push(hole);
        }
        Ok(holes)
    }

    fn fstypes(&self, texts: Spanned<Texts>) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for text in spread(texts) {
            let name = text.get_ref();
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
            if name.is_empty() || name.len() > 63 || !name.chars().all(plain) {
                return Err(self
                    .at(&text.span(), format!("`{name}` is no file system type"))
                    .hint("such as ext4 or fuse.sshfs; /proc/filesystems lists them")
                    .into());
            }
            all.push(name.clone());
        }
        Ok(all)
    }

    fn devices(&self, texts: Spanned<Texts>) -> Result<Vec<(u32, u32)>> {
        spread(texts)
            .iter()
            .map(|text| {
                let numbers = text
                    .get_ref()
                    .split_once(':')
                    .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
                // MINORBITS of linux/kdev_t.h
                numbers.filter(|(major, minor)| *major < 1 << 12 && *minor < 1 << 20).ok_or_else(
                    || {
                        self.at(&text.span(), format!("`{}` is no device", text.get_ref()))
                            .hint("write MAJOR:MINOR, as `lsblk` and /proc/self/mountinfo do")
                            .into()
                    },
                )
            })
            .collect()
    }

    fn subject(&self, raw: Option<Box<raw::Subject>>) -> Result<Subject> {
        let mut subject = Subject::default();
        let Some(mut raw) = raw else { return Ok(subject) };
        let not = raw.not.take();
        self.add_subject(&mut subject, *raw, false)?;
        if let Some(not) = not {
            self.add_subject(&mut subject, *not, true)?;
        }
        Ok(subject)
    }

    fn add_subject(&self, to: &mut Subject, raw: raw::Subject, negate: bool) -> Result<()> {
        if raw.not.is_some() {
            return Err(Error::config(format!(
                "{}: a `not` within a `not`",
                self.source.file.display()
            ))
            .into());
        }
        let spans = [
            raw.uid.as_ref().map(Spanned::span),
            raw.gid.as_ref().map(Spanned::span),
            raw.exe.as_ref().map(Spanned::span),
            raw.cgroup.as_ref().map(Spanned::span),
        ];
        let taken =
            [!to.uid.is_empty(), !to.gid.is_empty(), !to.exe.is_empty(), !to.cgroup.is_empty()];
        for ((span, taken), negated) in spans.iter().zip(taken).zip(&mut to.negated) {
            let Some(span) = span else { continue };
            if taken {
                return Err(self.at(span, "given both plainly and under `not`").into());
            }
            *negated = negate;
        }
        to.uid.extend(raw.uid.map(Spanned::into_inner).unwrap_or_default());
        to.gid.extend(raw.gid.map(Spanned::into_inner).unwrap_or_default());
        if let Some(exe) = raw.exe {
            to.exe.extend(self.paths(exe)?);
        }
        if let Some(cgroup) = raw.cgroup {
            to.cgroup.extend(self.paths(cgroup)?);
        }
        let empty = [to.uid.is_empty(), to.gid.is_empty(), to.exe.is_empty(), to.cgroup.is_empty()];
        match spans.iter().zip(empty).find(|(span, empty)| span.is_some() && *empty) {
            Some((Some(span), _)) => Err(self
                .at(span, "an empty list concerns nobody")
                .hint("leave it out to concern everybody")
                .into()),
            _ => Ok(()),
        }
    }

    fn errno(&self, name: Option<Spanned<String>>) -> Result<i32> {
        let Some(name) = name else { return Ok(libc::EACCES) };
        ERRNOS.iter().find(|(n, _)| n == name.get_ref()).map(|(_, e)| *e).ok_or_else(|| {
            let list: Vec<_> = ERRNOS.iter().map(|(n, _)| *n).collect();
            self.at(&name.span(), format!("no errno `{}` to deny with", name.get_ref()))
                .hint(format!("one of {}", list.join(", ")))
                .into()
        })
    }

    fn case(&self, raw: Spanned<raw::Test>, index: usize) -> Result<Case> {
        let span = self.first_line(&raw.span());
        let raw = raw.into_inner();
        let path = |text: Option<Spanned<String>>| text.map(|t| self.path(&t)).transpose();
        Ok(Case {
            name: raw.name.unwrap_or_else(|| format!("test-{}", index + 1)),
            op: self.op(&raw.op)?,
            path: self.path(&raw.path)?,
            exe: path(raw.exe)?,
            uid: raw.uid,
            gid: raw.gid,
            cgroup: path(raw.cgroup)?,
            expect: raw.expect,
            span,
        })
    }
}

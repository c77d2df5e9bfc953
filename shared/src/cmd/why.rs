//! `polity why`.

use serde_json::{Value, json};

use super::print_json;
use crate::cli::Why;
use crate::closest::closest;
use crate::error::{Error, Result};
use crate::kind::lsm::ask::{Answer, Asker, Caller, Reason, Verdict};
use crate::kind::lsm::lock::Told;
use crate::kind::lsm::op::{self, Op};
use crate::kind::lsm::parse;
use crate::kind::lsm::rules::{Rules, errno_name};
use crate::live::{self, Live};
use crate::tree::Tree;
use crate::{out, render};

/// Says which file rule decides, by the decision that enforcement takes.
///
/// # Errors
/// An operation that there is not, a process or a path that is not there, not root.
pub fn run(args: &Why) -> Result<()> {
    let op = Op::find(&args.op).ok_or_else(|| {
        let error = Error::config(format!("no operation `{}`", args.op));
        match closest(&args.op, Op::all().map(Op::name)) {
            Some(meant) => error.hint(format!("did you mean `{meant}`?")),
            None => error.hint(format!("operations are {}", op::list())),
        }
    })?;
    let parent = || rustix::process::getppid().map_or(1, rustix::process::Pid::as_raw_pid);
    let pid = args.pid.unwrap_or_else(parent);
    let caller = Caller::of_process(pid)?;
    // Questions take turns.
    let tree = Tree::lock()?;
    let mut said = Vec::new();
    for live in live::all()?.into_iter().filter(has_rules) {
        let answer = Asker::of_live(&live)?.ask(op, &args.path, &caller)?;
        said.push(Said::new(live, op, answer));
    }
    drop(tree);
    // Each policy is asked by the kernel, and one that denies is enough.
    said.sort_by_key(|s| std::cmp::Reverse(s.verdict()));
    let subject = json!({"pid": pid, "uid": caller.uid, "gid": caller.gid, "exe": exe(pid)});
    if args.json {
        let first = said.first();
        let verdict = first.map_or(Verdict::Allow, Said::verdict);
        let decisive = first.and_then(|s| s.decisive());
        let reasons: Vec<Value> = said.iter().flat_map(Said::reasons).collect();
        return print_json(&json!({
            "op": op.name(), "path": args.path, "subject": subject,
            "verdict": verdict.to_string(),
            "errno": first.filter(|_| verdict == Verdict::Deny).map(|s| errno_name(s.answer.errno)),
            "policy": decisive.map(|_| first.map(|s| &s.live.meta.policy)),
            "rule": decisive.and_then(|r| first.map(|s| s.rule_name(r))),
            "exists": first.map(|s| !s.answer.is_missing),
            "reasons": reasons,
            "unattached": said.iter().flat_map(|s| &s.unattached).collect::<Vec<_>>(),
        }));
    }
    let what = format!("{} of {} by process {pid}", op.name(), args.path.display());
    tell(&what, &said);
    Ok(())
}

/// Whether it has rules of ours.
fn has_rules(live: &Live) -> bool {
    live.meta.programs.contains_key("why") && live.meta.maps.contains_key("questions")
}

fn exe(pid: i32) -> Option<String> {
    let path = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(path.display().to_string())
}

/// What one policy says.
struct Said {
    live: Live,
    answer: Answer,
    /// Hooks of the operation that are not attached.
    unattached: Vec<String>,
    /// Whether none of them is, so that nothing of the answer comes true.
    is_off: bool,
    /// The rules, where their file still says what is in force.
    rules: Option<Rules>,
}

impl Said {
    fn new(live: Live, op: Op, answer: Answer) -> Self {
        let links: Vec<String> = live.links().into_iter().map(|(name, _)| name).collect();
        let hooks = op.hooks().iter().map(|hook| format!("on_{hook}"));
        let missing: Vec<_> = hooks.filter(|hook| !links.contains(hook)).collect();
        let is_off = missing.len() == op.hooks().len();
        let unattached = if answer.reasons.is_empty() { Vec::new() } else { missing };
        let rules = rules_of(&live);
        Self { live, answer, unattached, is_off, rules }
    }

    fn verdict(&self) -> Verdict {
        if self.is_off { Verdict::Allow } else { self.answer.verdict }
    }

    fn decisive(&self) -> Option<&Reason> {
        self.answer.decisive().filter(|_| !self.is_off)
    }

    fn rule_name(&self, reason: &Reason) -> String {
        let name = Told::of(&self.live, reason.rule).map(|told| told.rule).unwrap_or_default();
        if name.is_empty() { format!("rule {}", reason.rule) } else { name }
    }

    /// Whom the rule concerns, as its file has it; none for everybody or when nobody can tell.
    fn subject(&self, reason: &Reason) -> Option<String> {
        let rule = self.rules.as_ref()?.rules.get(reason.rule as usize)?;
        Some(rule.subject.to_string()).filter(|s| !s.is_empty())
    }

    fn reasons(&self) -> impl Iterator<Item = Value> {
        self.answer.reasons.iter().map(|r| {
            json!({"policy": self.live.meta.policy, "rule": self.rule_name(r),
                "verdict": r.verdict.to_string(), "op": r.op.map(Op::name), "anchor": r.anchor,
                "errno": (r.verdict == Verdict::Deny).then(|| errno_name(r.errno)),
                "class": r.class, "keeps": r.class.is_none(), "subject": self.subject(r)})
        })
    }
}

/// The rules in force, from the file that they were in.
fn rules_of(live: &Live) -> Option<Rules> {
    let file = std::path::PathBuf::from(live.meta.extra["rules"].as_str()?);
    let rules = parse::read(&file, &live.meta.manifest.policy.name).ok()?.rules;
    (Told::of(live, 0).ok()?.digest == rules.digest()).then_some(rules)
}

fn tell(what: &str, said: &[Said]) {
    if said.is_empty() {
        out::println(&format!("{what}: allowed, no policy with file rules is attached"));
        return;
    }
    for s in said {
        let policy = &s.live.meta.policy;
        let verdict = match (s.verdict(), s.decisive()) {
            (Verdict::Deny, Some(r)) => {
                format!("denied ({}) by rule `{}`", errno_name(s.answer.errno), s.rule_name(r))
            }
            (Verdict::Audit, Some(r)) => format!("allowed, logged by rule `{}`", s.rule_name(r)),
            _ => "allowed, no rule is against it".to_owned(),
        };
        out::println(&format!("{what}: {verdict} of {policy}"));
        if s.answer.is_missing {
            out::println("  it is not there now: that is what holds as soon as it is");
        }
        let rows = s.answer.reasons.iter().map(|r| {
            let how = match (r.verdict, r.class) {
                (Verdict::Audit, _) => "audits".to_owned(),
                (_, None) => "keeps in place".to_owned(),
                _ => format!("denies {}", errno_name(r.errno)),
            };
            let whom = s.subject(r).unwrap_or_else(|| "-".to_owned());
            let op = r.op.map_or("", Op::name).to_owned();
            vec![s.rule_name(r), how, op, r.anchor.clone(), whom]
        });
        if !s.answer.reasons.is_empty() {
            let head = ["rule", "does", "for", "anchored at (in its file system)", "subject"];
            out::println(&render::table(&head, rows));
        }
        if !s.unattached.is_empty() {
            let list = s.unattached.join(", ");
            out::println(&format!("  but not attached: {list}; see `polity status`"));
        }
    }
}

//! A `[[test]]` beside the rules: what they are to say to an access, tried by `polity check`.

use std::ops::Range;

use super::ask::{Answer, Asker, Caller, Verdict};
use super::op::Op;
use crate::error::Result;

/// One test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// What is done.
    pub op: Op,
    /// To what.
    pub path: String,
    /// By which program; by none that any rule knows when it is not said.
    pub exe: Option<String>,
    /// By whom.
    pub uid: u32,
    /// And in which group.
    pub gid: u32,
    /// In which control group, `/user.slice` or such.
    pub cgroup: Option<String>,
    /// What is to become of it.
    pub expect: Verdict,
    /// Its place in the file.
    pub span: Range<usize>,
}

impl Case {
    /// What the rules say.
    ///
    /// # Errors
    /// The program or the control group is not there, or nothing of the path.
    pub fn ask(&self, asker: &Asker) -> Result<Answer> {
        let (exe, cgroup) = (self.exe.as_deref(), self.cgroup.as_deref());
        let caller = Caller::new(self.uid, self.gid, exe, cgroup)?;
        asker.ask(self.op, self.path.as_ref(), &caller)
    }
}

//! Why the kernel took a scheduler off: what `UEI_RECORD` keeps in its `ops.exit`, or, of one that keeps
//! nothing, what the kernel's log has.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use libbpf_rs::MapCore;
use libbpf_rs::query::LinkTypeInfo;
use rustix::fs::OFlags;

use crate::error::Result;
use crate::layout::Layout;
use crate::live::Live;
use crate::object::{self, Opened};
use crate::shape::{Global, Shape};
use crate::sys;

/// The kernel's default for `exit_dump_len` (`SCX_EXIT_DUMP_DFL_LEN`).
const DUMP_LEN: u32 = 32768;
/// `SCX_EXIT_UNREG`: its link was closed.
const UNREGISTERED: i64 = 64;

/// What the kernel says of the end of a scheduler.
#[derive(Debug)]
pub struct ExitRecord {
    /// `enum scx_exit_kind`; 0 while it runs.
    pub kind: i64,
    /// What the scheduler passed to `scx_bpf_exit`.
    pub code: i64,
    /// The kernel's word for the kind.
    pub reason: String,
    /// More of it.
    pub message: String,
}

impl ExitRecord {
    /// That of an attached scheduler, where it has one.
    pub fn of(live: &Live) -> Option<Self> {
        let shape = live.shape();
        let record = live.global(shape, &record(shape)?.name)?;
        let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
        Some(Self {
            kind: record["kind"].as_i64()?,
            code: record["exit_code"].as_i64().unwrap_or_default(),
            reason: text("reason"),
            message: text("msg"),
        })
    }

    /// Whether it runs no more, although nobody took it off.
    pub fn is_ejected(&self) -> bool {
        ![0, UNREGISTERED].contains(&self.kind)
    }
}

impl std::fmt::Display for ExitRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.reason.as_str(), self.message.as_str()) {
            ("", _) => write!(f, "exit kind {}", self.kind),
            (reason, "") => f.write_str(reason),
            (reason, message) => write!(f, "{reason} ({message})"),
        }
    }
}

/// Whether a scheduler is still registered, although the kernel runs its own: the map of a link that
/// somebody detached is no longer known.
pub fn is_registered(live: &Live) -> bool {
    let holds = |info: &LinkTypeInfo| matches!(info, LinkTypeInfo::StructOps(o) if o.map_id != 0);
    live.links().iter().any(|(_, link)| holds(&link.info))
}

/// What the kernel's log says of the end of the scheduler that it knows as `ops`.
pub fn logged(ops: &str) -> Option<String> {
    // What follows these words is the kernel's own wording.
    let (end, more) = (format!("BPF scheduler \"{ops}\" disabled"), format!("sched_ext: {ops}: "));
    let mut why: Option<String> = None;
    for line in kernel_log() {
        if let Some((_, reason)) = line.split_once(&end) {
            why = Some(reason.trim().trim_start_matches('(').trim_end_matches(')').to_owned());
        } else if let (Some(why), Some((_, message))) = (&mut why, line.split_once(&more)) {
            why.push_str(&format!(" ({message})"));
        }
    }
    why.filter(|w| !w.is_empty())
}

/// The lines of the kernel's log, oldest first.
fn kernel_log() -> Vec<String> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
    let Ok(mut log) = options.open("/dev/kmsg") else { return Vec::new() };
    let (mut lines, mut record) = (Vec::new(), [0; 8192]);
    loop {
        match log.read(&mut record) {
            // One record at a time: facts, a semicolon, and the line.
            Ok(n) if n > 0 => {
                let text = String::from_utf8_lossy(&record[..n]);
                let line = text.split_once(';').map_or("", |(_, line)| line);
                lines.extend(line.lines().next().map(str::to_owned));
            }
            // Overwritten while we read: on with the next.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
            _ => return lines,
        }
    }
}

/// All that the kernel and the scheduler itself (`ops.dump`) said at its end.
pub fn dump_of(live: &Live) -> Option<String> {
    let shape = live.shape();
    let map = live.map(&object::map_label(&dump_section(&lengths(shape).next()?.name)))?;
    let mut value = vec![0; map.value_size() as usize];
    sys::map_lookup(&map, &0u32.to_ne_bytes(), &mut value).ok()?;
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    Some(String::from_utf8_lossy(&value[..end]).into_owned())
}

/// Gives each `UEI_DEFINE` room for the kernel's dump.
///
/// # Errors
/// An object that is not as its BTF says.
pub fn size_dumps(opened: &mut Opened) -> Result<()> {
    for length in lengths(&opened.shape).cloned().collect::<Vec<_>>() {
        let section = dump_section(&length.name);
        let mut sized = false;
        for mut map in opened.object.maps_mut().filter(|m| m.name() == section.as_str()) {
            sized = map.set_value_size(DUMP_LEN).is_ok();
        }
        if sized {
            object::write_global(&mut opened.object, &length, &DUMP_LEN.to_le_bytes())?;
        }
    }
    Ok(())
}

/// The globals that say how long a dump may be; each dump has a section of its own.
fn lengths(shape: &Shape) -> impl Iterator<Item = &Global> {
    shape.globals.iter().filter(|g| g.name.ends_with("_dump_len"))
}

fn dump_section(length: &str) -> String {
    format!(".data.{}", length.trim_end_matches("_len"))
}

/// The global of type `struct user_exit_info`.
fn record(shape: &Shape) -> Option<&Global> {
    let is_record =
        |l: &Layout| matches!(l, Layout::Struct { name, .. } if name == "user_exit_info");
    shape.globals.iter().find(|g| is_record(&g.layout))
}

//! Which process holds a BPF link, for messages that name who stands in the way.

use std::fs;

use libbpf_rs::query::{LinkInfoIter, LinkTypeInfo};
use libbpf_rs::{MapCore, MapHandle};

use crate::kernel::Kernel;
use crate::sys;

/// Who attached the struct_ops map of type `ty` that is in force: processes that hold its link,
/// or that it is pinned. `None` when no link of that type can be found.
pub fn of_struct_ops(kernel: &Kernel, ty: &str) -> Option<String> {
    let value_type = kernel.struct_id(&format!("bpf_struct_ops_{ty}"))?;
    let is_of_type = |id: &u32| match MapHandle::from_map_id(*id).and_then(|map| map.info()) {
        Ok(map) => map.info.btf_vmlinux_value_type_id == value_type,
        Err(_) => false,
    };
    let maps: Vec<u32> = sys::map_ids(0).into_iter().filter(is_of_type).collect();
    let link = LinkInfoIter::default()
        .find(|l| matches!(&l.info, LinkTypeInfo::StructOps(s) if maps.contains(&s.map_id)))?;
    let holders = of_link(link.id);
    Some(match holders.as_slice() {
        [] => "a pin".to_owned(),
        all => all.join(", "),
    })
}

/// Processes that have the link open, as `comm (process PID)`.
fn of_link(id: u32) -> Vec<String> {
    let wanted = format!("link_id:\t{id}");
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = process.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let fds = fs::read_dir(process.path().join("fdinfo")).into_iter().flatten().flatten();
        let holds = |path: std::path::PathBuf| {
            fs::read_to_string(path).is_ok_and(|text| text.lines().any(|line| line == wanted))
        };
        if fds.map(|fd| fd.path()).any(holds) {
            let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{} (process {pid})", comm.trim()));
        }
    }
    found
}

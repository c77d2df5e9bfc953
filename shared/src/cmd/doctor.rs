//! `polity doctor`.

use serde_json::json;

use super::print_json;
use crate::cli::Json;
use crate::error::Result;
use crate::kernel::{BTF_PATH, Fact, Kernel, State, read};
use crate::{kind, out, render, tree};

/// Prints what the running kernel can do.
///
/// # Errors
/// None: what is missing is a line of the answer.
pub fn run(args: &Json) -> Result<()> {
    let kernel = Kernel::probe();
    let mut facts = vec![btf(&kernel), struct_ops(&kernel), root(), bpffs(), jit()];
    facts.extend(kind::all().flat_map(|k| k.facts(&kernel)));
    if args.json {
        return print_json(&json!({"kernel": Kernel::release(), "facts": facts}));
    }
    out::println(&format!("kernel {}", Kernel::release()));
    let rows = facts.iter().map(|f| {
        let state = match f.state {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Fail => "fail",
        };
        let hint = if f.hint.is_empty() { String::new() } else { format!("-> {}", f.hint) };
        vec![state.to_owned(), f.name.clone(), f.found.clone(), hint]
    });
    out::println(&render::table(&["state", "fact", "found", ""], rows));
    Ok(())
}

fn btf(kernel: &Kernel) -> Fact {
    match kernel.btf() {
        Ok(btf) => Fact::ok("btf", format!("{BTF_PATH}, {} types", btf.len())),
        Err(_) => Fact::fail("btf", "missing", "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y"),
    }
}

fn struct_ops(kernel: &Kernel) -> Fact {
    let types = kernel.struct_ops_types();
    match types.is_empty() {
        false => Fact::ok("struct_ops types", types.join(" ")),
        true => Fact::fail("struct_ops types", "none", "needs CONFIG_BPF_JIT=y and BTF"),
    }
}

/// Root may still lack capabilities, in a container for instance.
fn root() -> Fact {
    /// Bits of linux/capability.h.
    const NEEDED: [(&str, u32); 4] =
        [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
    let status = read("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let missing: Vec<_> =
        NEEDED.iter().filter(|(_, bit)| mask & (1 << bit) == 0).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        Fact::ok("capabilities", "all that are needed")
    } else {
        Fact::fail(
            "capabilities",
            format!("missing {}", missing.join(", ")),
            "run it as root (sudo)",
        )
    }
}

fn bpffs() -> Fact {
    let root = rustix::process::geteuid().is_root();
    if !tree::mounted() && root {
        // The loader would do the same.
        let _ = tree::mount();
    }
    match tree::mounted() {
        true => Fact::ok("bpffs", tree::BPFFS),
        false => {
            Fact::warn("bpffs", "not mounted", "mount -t bpf bpf /sys/fs/bpf (as root we do it)")
        }
    }
}

fn jit() -> Fact {
    match read("/proc/sys/net/core/bpf_jit_enable").as_deref() {
        Some("0") => Fact::fail(
            "jit",
            "off: struct_ops programs are refused",
            "sysctl net.core.bpf_jit_enable=1",
        ),
        Some(_) => Fact::ok("jit", "on"),
        None => Fact::warn("jit", "unknown", "only root can read net.core.bpf_jit_enable"),
    }
}

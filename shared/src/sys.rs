//! The one module with `unsafe`: what libbpf-rs has no safe call for.
//!
//! Everything here is a thin, safe wrapper; policy and error texts belong to the callers.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::btf::{Btf, BtfKind, TypeId};
use libbpf_rs::libbpf_sys as raw;
use libbpf_rs::{AsRawLibbpf, Link, MapCore, OpenObject, Program};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect, munmap};

/// The BTF of an object that is open but not loaded.
///
/// # Errors
/// What libbpf says; `None` when the object has no BTF.
pub fn object_btf(object: &OpenObject) -> libbpf_rs::Result<Option<Btf<'_>>> {
    // SAFETY: the pointer is valid for as long as `object` is, and the returned Btf borrows it.
    let object = unsafe { object.as_libbpf_object().as_ref() };
    Btf::from_bpf_object(object)
}

/// The id of the type of `kind` called `name`.
pub fn btf_find(btf: &Btf<'_>, name: &str, kind: BtfKind) -> Option<TypeId> {
    let name = CString::new(name).ok()?;
    // SAFETY: both pointers are valid for the call and libbpf keeps neither.
    let id = unsafe {
        raw::btf__find_by_name_kind(btf.as_libbpf_object().as_ptr(), name.as_ptr(), kind as u32)
    };
    u32::try_from(id).ok().filter(|id| *id != 0).map(TypeId::from)
}

/// The ids of all types of one of `kinds`. Looks at nothing but the kind of each of the kernel's
/// hundred thousand types, which libbpf-rs's iterator would look up by name, too.
pub fn btf_of_kinds(btf: &Btf<'_>, kinds: &[BtfKind]) -> Vec<TypeId> {
    let wanted = |id: &u32| {
        // SAFETY: the Btf is valid, and libbpf returns null or a type that lives as long as it.
        let ty = unsafe { raw::btf__type_by_id(btf.as_libbpf_object().as_ptr(), *id).as_ref() };
        ty.is_some_and(|ty| kinds.iter().any(|k| *k as u32 == (ty.info >> 24) & 0x1f))
    };
    (1..btf.len() as u32).filter(wanted).map(TypeId::from).collect()
}

/// Reads one key of a map into `value`, without an allocation. For a per-CPU map `value` holds
/// every possible CPU's value, each rounded up to 8 bytes.
///
/// # Errors
/// `NotFound` when there is no such key; `InvalidInput` when a buffer has the wrong size.
pub fn map_lookup(map: &impl MapCore, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    let size = map.value_size() as usize;
    let need = if map.map_type().is_percpu() {
        let cpus = libbpf_rs::num_possible_cpus().map_err(io::Error::other)?;
        size.next_multiple_of(8) * cpus
    } else {
        size
    };
    if key.len() != map.key_size() as usize || value.len() != need {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the kernel reads key_size bytes and writes the value size computed above, and both
    // buffers were just checked to have exactly those sizes.
    let ret = unsafe {
        raw::bpf_map_lookup_elem(
            map.as_fd().as_raw_fd(),
            key.as_ptr().cast(),
            value.as_mut_ptr().cast(),
        )
    };
    if ret < 0 { Err(io::Error::from_raw_os_error(-ret)) } else { Ok(()) }
}

/// Keeps libbpf from looking for an attach method of its own.
pub fn never_autoattach(object: &mut OpenObject) {
    for map in object.maps_mut() {
        // SAFETY: the map belongs to `object`, which is borrowed for the call.
        let _ = unsafe { raw::bpf_map__set_autoattach(map.as_libbpf_object().as_ptr(), false) };
    }
}

/// Replaces the struct_ops map `old` behind `link` by `new`, which must be ready
/// (`BPF_LINK_UPDATE` with `BPF_F_REPLACE`). libbpf's own call overruns the heap on a link that
/// was opened from a pin.
///
/// # Errors
/// What the kernel says: EPERM when `old` is not what the link has, ENOLINK when it is detached.
pub fn link_replace_map(
    link: BorrowedFd<'_>,
    new: BorrowedFd<'_>,
    old: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut options = raw::bpf_link_update_opts {
        sz: size_of::<raw::bpf_link_update_opts>() as raw::size_t,
        flags: raw::BPF_F_REPLACE,
        old_map_fd: old.as_raw_fd() as u32,
        ..Default::default()
    };
    // SAFETY: the options outlive the call and their size is set.
    let ret = unsafe { raw::bpf_link_update(link.as_raw_fd(), new.as_raw_fd(), &raw mut options) };
    if ret < 0 { Err(io::Error::from_raw_os_error(-ret)) } else { Ok(()) }
}

/// Has `extension` (`BPF_PROG_TYPE_EXT`) take the place of `function` in the program `target`.
///
/// # Errors
/// What the kernel says: EBUSY when another one has that place.
pub fn attach_extension(
    extension: &Program<'_>,
    target: BorrowedFd<'_>,
    function: &str,
) -> io::Result<Link> {
    let function = CString::new(function)?;
    let program = extension.as_libbpf_object();
    // SAFETY: program and text outlive the call, and libbpf keeps neither: the link that it makes is
    // about the kernel's objects.
    let link = unsafe {
        raw::bpf_program__attach_freplace(program.as_ptr(), target.as_raw_fd(), function.as_ptr())
    };
    let link = std::ptr::NonNull::new(link).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: libbpf just made it (it gives null else), and nobody else has it.
    Ok(unsafe { Link::from_ptr(link) })
}

/// Pins what `object` refers to at `path`; it may be pinned elsewhere, too.
///
/// # Errors
/// What the kernel says.
pub fn pin(object: BorrowedFd<'_>, path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a C string that outlives the call.
    let ret = unsafe { raw::bpf_obj_pin(object.as_raw_fd(), path.as_ptr()) };
    if ret < 0 { Err(io::Error::from_raw_os_error(-ret)) } else { Ok(()) }
}

/// The id of a map.
///
/// # Errors
/// What the kernel says.
pub fn map_id(map: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = raw::bpf_map_info::default();
    let mut len = size_of::<raw::bpf_map_info>() as u32;
    // SAFETY: the kernel writes at most `len` bytes into `info`; no pointer in it is set.
    let ret = unsafe {
        raw::bpf_obj_get_info_by_fd(map.as_raw_fd(), (&raw mut info).cast(), &raw mut len)
    };
    if ret < 0 { Err(io::Error::from_raw_os_error(-ret)) } else { Ok(info.id) }
}

/// Opens a link by its id.
///
/// # Errors
/// `NotFound` when the link is gone.
pub fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let fd = unsafe { raw::bpf_link_get_fd_by_id(id) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel just gave us this descriptor, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the verifier and the JIT made of a program.
///
/// # Errors
/// What the kernel says.
pub fn program_cost(program: BorrowedFd<'_>) -> io::Result<crate::live::Cost> {
    let mut info = raw::bpf_prog_info::default();
    let mut len = size_of::<raw::bpf_prog_info>() as u32;
    // SAFETY: the kernel writes at most `len` bytes into `info`; no pointer in it is set.
    let ret = unsafe {
        raw::bpf_obj_get_info_by_fd(program.as_raw_fd(), (&raw mut info).cast(), &raw mut len)
    };
    if ret < 0 {
        return Err(io::Error::from_raw_os_error(-ret));
    }
    Ok(crate::live::Cost { verified: info.verified_insns, jited: info.jited_prog_len })
}

/// The types of a program's functions in the BTF that it was loaded with.
///
/// # Errors
/// What the kernel says.
pub fn program_functions(program: BorrowedFd<'_>) -> io::Result<Vec<TypeId>> {
    let record = raw::bpf_func_info::default();
    let (mut functions, mut info) = (Vec::new(), raw::bpf_prog_info::default());
    // First how many there are, then what.
    for _ in 0..2 {
        functions.resize(info.nr_func_info as usize, record);
        info = raw::bpf_prog_info {
            nr_func_info: functions.len() as u32,
            func_info_rec_size: size_of_val(&record) as u32,
            func_info: functions.as_mut_ptr() as u64,
            ..Default::default()
        };
        let mut len = size_of::<raw::bpf_prog_info>() as u32;
        // SAFETY: the kernel writes at most `len` bytes into `info`, and into `functions` at most as
        // many records as it has; no other pointer in `info` is set.
        let ret = unsafe {
            raw::bpf_obj_get_info_by_fd(program.as_raw_fd(), (&raw mut info).cast(), &raw mut len)
        };
        if ret < 0 {
            return Err(io::Error::from_raw_os_error(-ret));
        }
    }
    Ok(functions.iter().map(|f| TypeId::from(f.type_id)).collect())
}

/// References to a struct_ops map beyond user space's: its link, sockets, namespaces
/// (`bpf_struct_ops_map_sys_lookup_elem`).
pub fn struct_ops_refcount(map: &impl MapCore) -> Option<i32> {
    let mut value = vec![0; map.value_size() as usize];
    map_lookup(map, &0u32.to_ne_bytes(), &mut value).ok()?;
    // struct bpf_struct_ops_common_value: refcount_t refcnt, enum bpf_struct_ops_state.
    Some(i32::from_le_bytes(value.get(..4)?.try_into().ok()?))
}

/// Memory shared with a file or a map.
pub struct Mapping {
    base: *mut core::ffi::c_void,
    length: usize,
}

impl Mapping {
    fn new(file: BorrowedFd<'_>, size: usize, prot: ProtFlags) -> rustix::io::Result<Self> {
        let length = size.next_multiple_of(rustix::param::page_size());
        let null = std::ptr::null_mut();
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
        let base = unsafe { mmap(null, length, prot, MapFlags::SHARED, file, 0)? };
        Ok(Self { base, length })
    }

    /// Of all values of a map.
    fn of_map(map: &impl MapCore, size: usize) -> rustix::io::Result<Self> {
        Self::new(map.as_fd(), size, ProtFlags::READ | ProtFlags::WRITE)
    }

    /// Of a file's first page, for reading. Nobody looks at it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn of_page(file: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        Self::new(file, rustix::param::page_size(), ProtFlags::READ)
    }

    /// Makes it writable, too.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn allow_write(&self) -> rustix::io::Result<()> {
        let flags = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the mapping is ours alone, and nobody has a pointer into it.
        unsafe { mprotect(self.base, self.length, flags) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping, and nobody keeps a pointer into it.
        let _ = unsafe { munmap(self.base, self.length) };
    }
}

/// Stores `bytes` at `offset` of a data map, leaving all else to the programs that use it: a
/// write through the file descriptor would replace the whole value.
///
/// # Errors
/// The map can't be mapped, or `bytes` do not fit.
pub fn map_write(map: &impl MapCore, offset: usize, bytes: &[u8]) -> io::Result<()> {
    let size = map.value_size() as usize;
    if offset.checked_add(bytes.len()).is_none_or(|end| end > size) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mapping = Mapping::of_map(map, size)?;
    // SAFETY: offset + bytes.len() <= size <= length was checked. Globals are aligned to their
    // size, so the copy of up to 8 bytes below is one store and no program sees half of it.
    unsafe {
        let to = mapping.base.cast::<u8>().add(offset);
        match bytes.len() {
            8 if offset.is_multiple_of(8) => {
                to.cast::<u64>()
                    .write_volatile(u64::from_ne_bytes(bytes.try_into().unwrap_or_default()));
            }
            4 if offset.is_multiple_of(4) => {
                to.cast::<u32>()
                    .write_volatile(u32::from_ne_bytes(bytes.try_into().unwrap_or_default()));
            }
            2 if offset.is_multiple_of(2) => {
                to.cast::<u16>()
                    .write_volatile(u16::from_ne_bytes(bytes.try_into().unwrap_or_default()));
            }
            _ => std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()),
        }
    }
    Ok(())
}

/// Writes `values`, one after the other, into an array made with `BPF_F_MMAPABLE` that no program
/// uses yet: a system call for each would take most of the time that large rules take to load.
///
/// # Errors
/// The array can't be mapped, or is of another size.
pub fn array_fill(map: &impl MapCore, values: &[u8]) -> io::Result<()> {
    let (size, entries) = (map.value_size() as usize, map.max_entries() as usize);
    if size.checked_mul(entries) != Some(values.len()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // The kernel has values 8 bytes aligned (array_map_alloc()).
    let stride = size.next_multiple_of(8);
    let mapping = Mapping::of_map(map, stride * entries)?;
    for (at, value) in values.chunks_exact(size).enumerate() {
        // SAFETY: at < entries, so the value ends before stride * entries <= length.
        unsafe {
            let to = mapping.base.cast::<u8>().add(at * stride);
            std::ptr::copy_nonoverlapping(value.as_ptr(), to, size);
        }
    }
    Ok(())
}

/// Runs a `SEC("syscall")` program in this process, once, and returns what it returned. It may
/// read and write `context`.
///
/// # Errors
/// What the kernel says.
pub fn program_run(program: BorrowedFd<'_>, context: &mut [u8]) -> io::Result<u32> {
    let mut options = raw::bpf_test_run_opts {
        sz: size_of::<raw::bpf_test_run_opts>() as _,
        ..Default::default()
    };
    if !context.is_empty() {
        options.ctx_in = context.as_mut_ptr().cast();
        options.ctx_size_in = context.len() as u32;
    }
    // SAFETY: the kernel reads and writes `ctx_size_in` bytes at `ctx_in`, all of `context`; the
    // call keeps no pointer.
    match unsafe { raw::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) } {
        0 => Ok(options.retval),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The ids of all BPF maps beyond `id`, in order.
pub fn map_ids(mut id: u32) -> Vec<u32> {
    let mut all = Vec::new();
    // SAFETY: the kernel writes one u32, which outlives the call.
    while unsafe { raw::bpf_map_get_next_id(id, &raw mut id) } == 0 {
        all.push(id);
    }
    all
}

/// Opens an iterator: the file gives what its program writes for each object.
///
/// # Errors
/// What the kernel says.
pub fn iter_create(link: BorrowedFd<'_>) -> io::Result<std::fs::File> {
    // SAFETY: no pointer is passed.
    let fd = unsafe { raw::bpf_iter_create(link.as_raw_fd()) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel just gave us this descriptor, nobody else has it.
    Ok(unsafe { std::fs::File::from_raw_fd(fd) })
}

/// The cookie of the calling thread's network namespace: unlike its inode number never used again.
///
/// # Errors
/// A kernel before 5.14, or one without IPv4.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of `cookie`.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Has the kernel send `signal` to this process when its parent dies.
///
/// # Errors
/// Never in practice (`prctl(2)`).
pub fn die_with_parent(signal: i32) -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a number and touches no memory of ours.
    let ret = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives memory that the loader freed back to the kernel: libbpf parses megabytes of BTF.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Runs the calling thread, and none that it starts, in a real-time class: before what the scheduler
/// under supervision runs, and whatever becomes of that.
///
/// # Errors
/// Not permitted.
pub fn before_others() -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: 1 };
    let class = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the pointer is to a whole `sched_param` that outlives the call, which only reads it.
    match unsafe { libc::sched_setscheduler(0, class, &parameter) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

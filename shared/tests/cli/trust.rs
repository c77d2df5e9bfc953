//! What root does not load: files that somebody else could have written.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};

use crate::folder::{Folder, polity};

#[track_caller]
fn refused(folder: &Folder, said: &[&str]) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for command in ["show", "check", "attach", "build"] {
        let output = polity([command, folder.path().to_str().unwrap()]);
        output.fails(2, said);
        output.fails(2, &["root does not load it", "hint: chown root"]);
    }
}

fn mode(path: &std::path::Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_folder_that_others_may_write() {
    let folder = Folder::good();
    mode(folder.path(), 0o777);
    refused(&folder, &["is writable by others"]);
    mode(folder.path(), 0o700);
}

#[test]
fn a_file_that_others_may_write() {
    for file in ["policy.toml", "demo.bpf.c"] {
        let folder = Folder::good();
        std::fs::remove_file(folder.path().join("demo.bpf.o")).unwrap();
        mode(&folder.path().join(file), 0o666);
        refused(&folder, &[file, "is writable by others"]);
    }
    let folder = Folder::good();
    mode(&folder.path().join("demo.bpf.o"), 0o646);
    let path = folder.path().to_str().unwrap();
    if rustix::process::geteuid().is_root() {
        polity(["show", path]).fails(2, &["demo.bpf.o is writable by others"]);
    }
}

#[test]
fn a_folder_of_somebody_else() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = Folder::good();
    chown(folder.path(), Some(1000), None).unwrap();
    refused(&folder, &["belongs to user 1000"]);
    chown(folder.path(), Some(0), None).unwrap();
    chown(folder.path().join("policy.toml"), Some(1000), None).unwrap();
    refused(&folder, &["policy.toml belongs to user 1000"]);
}

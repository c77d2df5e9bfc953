//! Boots a kernel in QEMU and runs one command in it.
fn main() {}

//! `polity new`.

use std::fs;
use std::path::PathBuf;

use crate::cli::New;
use crate::error::{Error, Result};
use crate::manifest::check_name;
use crate::out;

/// What a new policy of a kind begins as: one of our smallest, under its own name.
struct Template {
    kind: &'static str,
    name: &'static str,
    manifest: &'static str,
    source: &'static str,
}

const TEMPLATES: [Template; 3] = [
    Template {
        kind: "schedulers",
        name: "fifo",
        manifest: include_str!("../../../schedulers/fifo/policy.toml"),
        source: include_str!("../../../schedulers/fifo/fifo.bpf.c"),
    },
    Template {
        kind: "tcp-cc",
        name: "reno",
        manifest: include_str!("../../../tcp-cc/reno/policy.toml"),
        source: include_str!("../../../tcp-cc/reno/reno.bpf.c"),
    },
    Template {
        kind: "lsm",
        name: "template",
        manifest: include_str!("../../templates/lsm.toml"),
        source: include_str!("../../templates/lsm.bpf.c"),
    },
];

/// Makes a folder with a policy that builds, loads and passes `check`.
///
/// # Errors
/// No such kind, a name that no policy can have, a folder that is there already.
pub fn run(args: &New) -> Result<()> {
    let (kind, name) = args
        .policy
        .split_once('/')
        .ok_or_else(|| Error::config(format!("`{}` is not KIND/NAME", args.policy)))?;
    let template = TEMPLATES.iter().find(|t| t.kind == kind).ok_or_else(|| {
        let kinds = TEMPLATES.map(|t| t.kind).join(", ");
        Error::config(format!("there is no kind `{kind}`")).hint(format!("there are: {kinds}"))
    })?;
    check_name(name).map_err(Error::config)?;
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err(
            Error::config(format!("`{name}` names functions in C: begin with a letter")).into()
        );
    }
    let folder = args.into.clone().unwrap_or_else(|| PathBuf::from(name));
    fs::create_dir(&folder).map_err(|e| {
        Error::failed(format!("can't make the folder {}: {e}", folder.display()))
            .hint("--into names another")
    })?;
    let word = name.replace('-', "_");
    let manifest = template
        .manifest
        .replace(&format!("name = \"{}\"", template.name), &format!("name = \"{name}\""));
    let readme = format!(
        "# {kind}/{name}\n\nWhat it does, whom it serves, what it costs.\n\n\
         `polity show .` lists its parameters and statistics.\n"
    );
    for (file, text) in [
        ("policy.toml".to_owned(), manifest),
        (format!("{name}.bpf.c"), template.source.replace(template.name, &word)),
        ("README.md".to_owned(), readme),
    ] {
        let file = folder.join(file);
        fs::write(&file, text)
            .map_err(|e| Error::failed(format!("can't write {}: {e}", file.display())))?;
    }
    let at = folder.display();
    out::eprintln(&format!(
        "{at} has a policy that works. Next:\n  polity check {at}\n  polity run {at}"
    ));
    Ok(())
}

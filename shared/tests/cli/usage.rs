//! Names, help and exit statuses.

use std::process::Command;

use crate::folder::{outcome, polity};

#[test]
fn a_wrong_name_gets_a_suggestion() {
    for command in ["show", "check", "run", "attach"] {
        let said = ["there is no policy `tcp-cc/dctpc`", "did you mean `tcp-cc/dctcp`?"];
        polity([command, "tcp-cc/dctpc"]).fails(2, &said);
    }
    polity(["show", "dctcp"]).fails(2, &["did you mean `tcp-cc/dctcp`?"]);
    polity(["show", "/nowhere/at/all"]).fails(2, &["no policy `/nowhere/at/all`", "polity list"]);
}

#[test]
fn usage_errors_exit_2() {
    polity(["frobnicate"]).fails(2, &["unrecognized subcommand 'frobnicate'"]);
    polity(["show"]).fails(2, &["<POLICY>"]);
    polity(["show", "tcp-cc/dctcp", "--jsn"]).fails(2, &["unexpected argument '--jsn'", "--json"]);
    polity(["detach"]).fails(2, &["<POLICY>"]);
    polity([]).fails(2, &["Usage"]);
}

#[test]
fn help_names_the_exit_statuses_and_goes_to_stdout() {
    let help = polity(["--help"]);
    assert_eq!((help.status, help.stderr.as_str()), (0, ""));
    let text = help.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in ["0 done", "1 failed", "2 usage", "3 the kernel lacks", "4 the kernel ejected"] {
        assert!(text.contains(part), "nothing of {part:?} in:\n{text}");
    }
    for command in ["list", "show", "doctor", "check", "run", "attach", "detach", "status"] {
        let help = polity([command, "--help"]);
        assert_eq!(help.status, 0, "{command}");
        assert!(help.stdout.contains("Usage"), "{command}");
    }
    assert_eq!(polity(["--version"]).status, 0);
}

#[test]
fn without_root_what_touches_the_kernel_says_so() {
    if !rustix::process::geteuid().is_root() {
        polity(["status"]).fails(1, &["only root can", "sudo"]);
        return;
    }
    // A copy where anybody may run it.
    let place = tempfile::tempdir().unwrap();
    let copy = place.path().join("polity");
    std::fs::copy(crate::folder::binary(), &copy).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.path(), open).unwrap();
    let copy = copy.to_str().unwrap();
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", copy];
    for command in [&["status"][..], &["stats"], &["detach", "--all"], &["inspect", "tcp-cc/dctcp"]]
    {
        let output = outcome(Command::new("setpriv").args(nobody).args(command));
        output.fails(1, &["only root can", "sudo"]);
    }
    // What needs no rights works.
    let listed = outcome(Command::new("setpriv").args(nobody).args(["list", "--json"]));
    assert_eq!(listed.status, 0, "{listed:#?}");
}

/// `polity status --json >file` on a full disk must not pass for a machine with nothing attached.
#[test]
fn data_that_cannot_be_written_is_a_failure() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for args in [&["list"][..], &["list", "--json"], &["show", "tcp-cc/dctcp"]] {
        let mut command = Command::new(crate::folder::binary());
        let child = command.args(args).stdout(full.try_clone().unwrap());
        let output = child.stderr(std::process::Stdio::piped()).spawn().unwrap();
        let output = output.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said, "error: can't write the output: No space left on device (os error 28)\n");
    }
    // Whoever has read enough is no failure.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = Command::new(crate::folder::binary()).arg("list").stdout(writer).status();
    assert_eq!(status.unwrap().code(), Some(0));
}

//! `polity why` and the tests beside rules say what an attempt comes to.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::Trial;
use polity::kind::lsm::ask::{Answer, Asker, Caller, Verdict};
use polity::kind::lsm::lock::Told;
use polity::kind::lsm::op::Op;
use polity::live;
use serde_json::Value;

use crate::polity::{polity, run, sh};
use crate::trial::{has_lsm, trial_in_turn};
use crate::yard::{OPERATIONS, POLICY, Yard, at, dir, file};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() {
        return Vec::new();
    }
    vec![
        trial_in_turn("file_why::attempts", attempts),
        trial_in_turn("file_why::subjects", subjects),
        trial_in_turn("file_why::check", check),
    ]
}

fn why(args: &[&str]) -> Value {
    polity(&[&["why", "--json"], args].concat()).json()
}

/// The attached policy's own word, without a process for each question.
struct Oracle(Asker);

impl Oracle {
    fn new() -> Self {
        Self(Asker::of_live(&live::find(POLICY).unwrap()).unwrap())
    }

    fn ask(&self, op: &str, path: &Path, pid: u32) -> Answer {
        let caller = Caller::of_process(pid as i32).unwrap();
        self.0.ask(Op::find(op).unwrap(), path, &caller).unwrap()
    }
}

/// Every operation on files under every rule, by every view: what `why` says is what happens.
fn attempts() {
    let mut yard = Yard::new();
    let mut rules = String::new();
    let mut add = |name: &str, body: &str| {
        rules += &format!("[[lsm.fs-deny.rules]]\nname = \"{name}\"\n{body}\n");
    };
    add("data", "deny = [\"read\", \"exec\"]\npath = \"/w/data\"\nexcept = \"/w/data/open\"");
    add("names", "deny = [\"create\", \"delete\", \"rename\", \"link\"]\npath = \"/w/names\"");
    add(
        "meta",
        "deny = [\"chmod\", \"chown\", \"xattr\", \"stat\"]\npath = \"/w/meta\"\npin = false",
    );
    add("rest", "deny = [\"write\", \"ioctl\", \"mount\"]\npath = \"/w/rest\"\nerrno = \"EROFS\"");
    add(
        "seen",
        "deny = [\"read\", \"write\", \"chmod\", \"delete\"]\npath = \"/w/seen\"\nmode = \"audit\"",
    );
    add("one", "deny = [\"truncate\", \"mmap-exec\"]\npath = \"/w/free/one\"");
    let places = ["data/open/x", "data/a/x", "names/x", "meta/x", "rest/x", "seen/x", "free/one/x"];
    for place in places {
        file(place);
    }
    yard.bind(&at("data"), "view");
    let attached = yard.attach(&rules);
    let prepare = |path: &Path| {
        // What the rules keep is what it was.
        if !path.exists() {
            let _ = fs::copy("/bin/busybox", path);
        }
        for left in ["new", "link"] {
            let _ = fs::remove_file(path.with_extension(left));
        }
    };
    let oracle = Oracle::new();
    let me = std::process::id();
    let mut tried = 0;
    for place in places.iter().copied().chain(["view/a/x", "view/open/x"]) {
        for (op, act) in OPERATIONS {
            // These are two operations each, of which a rule may deny one.
            if op == "create" || (op == "truncate" && place.starts_with("rest")) {
                continue;
            }
            let path = at(place);
            prepare(&path);
            let said = oracle.ask(op, &path, me);
            let did = act(&path);
            let opens = ["ioctl", "mmap-exec", "truncate"].contains(&op);
            let may_open = |op| oracle.ask(op, &path, me).verdict != Verdict::Deny;
            let right = match (&did, said.verdict) {
                (Ok(()), verdict) => verdict != Verdict::Deny,
                (Err(e), Verdict::Deny) => e.raw_os_error() == Some(said.errno),
                // Opening it is denied before it comes to that, or the content is no program.
                (Err(_), _) => op == "exec" || (opens && !(may_open("read") && may_open("write"))),
            };
            assert!(right, "{op} of {place}: {did:?}, but why says {said:#?}");
            tried += 1;
        }
    }
    assert!(tried > 100);
    // Not there yet: the name is what counts, and a directory that is kept.
    let by = |answer: &Answer| {
        let live = live::find(POLICY).unwrap();
        answer.decisive().map(|r| Told::of(&live, r.rule).unwrap().rule).unwrap_or_default()
    };
    for (op, path, verdict, rule) in [
        ("create", "/w/names/new", "deny", "names"),
        ("create", "/w/free/new", "allow", ""),
        ("read", "/w/data/no/such/file", "deny", "data"),
        ("read", "/w/data/open/no/such/file", "allow", ""),
        ("delete", "/w/rest", "deny", "rest"),
        ("rename", "/w/free", "deny", "one"),
        ("delete", "/w/meta", "allow", ""),
        ("read", "/w/seen/x", "audit", "seen"),
    ] {
        let said = oracle.ask(op, Path::new(path), me);
        assert_eq!(said.verdict.to_string(), verdict, "{op} {path}: {said:#?}");
        assert_eq!(by(&said), rule, "{op} {path}: {said:#?}");
    }
    let said = polity(&["why", "read", "/w/view/a/x"]).ok();
    for part in ["denied (EACCES) by rule `data`", "/data"] {
        assert!(said.stdout.contains(part), "{}", said.stdout);
    }
    let said = why(&["create", "/w/names/new"]);
    assert_eq!((&said["verdict"], &said["rule"]), (&"deny".into(), &"names".into()), "{said:#}");
    assert_eq!((&said["errno"], &said["exists"]), (&"EACCES".into(), &false.into()), "{said:#}");
    polity(&["why", "raed", "/w"]).fails(2, &["did you mean `read`?"]);
    polity(&["why", "read", "/w", "--pid", "4000000"]).fails(1, &["no process 4000000"]);
    // A question is no access.
    let stats = polity(&["stats", POLICY, "--json"]).json();
    let before = stats["stats"]["denied"]["total"].clone();
    oracle.ask("read", &at("data/a/x"), me);
    let stats = polity(&["stats", POLICY, "--json"]).json();
    assert_eq!(stats["stats"]["denied"]["total"], before);
    drop(attached.detach());
    let said = why(&["read", "/w/data/a/x"]);
    assert_eq!(said["verdict"], "allow");
}

/// Whose access it is: users, groups, programs, control groups, of another process.
fn subjects() {
    const GROUP: &str = "/sys/fs/cgroup/polity-why/inner";
    let yard = Yard::new();
    fs::create_dir_all(GROUP).unwrap();
    fs::copy("/bin/busybox", at("busybox-tool")).unwrap();
    for name in ["uid", "gid", "exe", "cgroup", "both"] {
        file(name);
    }
    let rules = [
        "name = \"uid\"\npath = \"/w/uid\"\nsubject = { uid = [1000] }",
        "name = \"gid\"\npath = \"/w/gid\"\nsubject = { not = { gid = [0] } }",
        "name = \"exe\"\npath = \"/w/exe\"\nsubject = { exe = \"/w/busybox-tool\" }",
        "name = \"cgroup\"\npath = \"/w/cgroup\"\nsubject = { cgroup = \"/polity-why\" }",
        "name = \"both\"\npath = \"/w/both\"\nsubject = { uid = [1000], exe = \"/w/busybox-tool\" }",
    ];
    let rules = rules.map(|r| format!("[[lsm.fs-deny.rules]]\ndeny = \"read\"\n{r}\n")).concat();
    let attached = yard.attach(&rules);
    let tool = || {
        let mut command = Command::new(at("busybox-tool"));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    // Each as somebody who waits, asked about by pid, and then tries.
    type Start = Box<dyn Fn() -> Command>;
    let people: [(&str, Start, &[&str]); 3] = [
        (
            "root",
            Box::new(move || {
                let mut c = tool();
                c.arg("sh");
                c
            }),
            &["exe"],
        ),
        (
            "user",
            Box::new(move || {
                let mut c = tool();
                c.arg("sh").uid(1000).gid(1000);
                c
            }),
            &["uid", "gid", "exe", "both"],
        ),
        (
            "group",
            Box::new(move || {
                let mut c = Command::new("sh");
                c.args(["-c", &format!("echo $$ >{GROUP}/cgroup.procs; exec sh")]);
                c.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
                c
            }),
            &["cgroup"],
        ),
    ];
    for (who, command, denied) in people {
        let mut child = command().spawn().unwrap();
        let pid = child.id().to_string();
        crate::trial::eventually("it is where it belongs", || {
            who != "group" || sh(&format!("cat {GROUP}/cgroup.procs")).contains(&pid)
        });
        for name in ["uid", "gid", "exe", "cgroup", "both"] {
            let said = Oracle::new().ask("read", &at(name), child.id());
            let verdict = if denied.contains(&name) { Verdict::Deny } else { Verdict::Allow };
            assert_eq!(said.verdict, verdict, "{who} reads {name}: {said:#?}");
        }
        if who == "user" {
            let said = why(&["--pid", &pid, "read", "/w/exe"]);
            assert_eq!(said["reasons"][0]["subject"], "exe /w/busybox-tool");
            assert_eq!(said["subject"]["uid"], 1000);
        }
        // The shell's own redirection: no other program comes in between. Not of `:`, whose failed
        // redirections end the shell.
        let script = "for f in uid gid exe cgroup both; do \
                      if true </w/$f; then s=\"$s +\"; else s=\"$s $f\"; fi; done 2>/dev/null; \
                      echo $s >/tmp/why-tried";
        fs::write("/tmp/why-tried", "").unwrap();
        run(Command::new("chmod").args(["666", "/tmp/why-tried"])).ok();
        use std::io::Write;
        child.stdin.take().unwrap().write_all(format!("{script}\n").as_bytes()).unwrap();
        child.wait().unwrap();
        let tried = fs::read_to_string("/tmp/why-tried").unwrap();
        let refused: Vec<_> = tried.split_whitespace().filter(|f| *f != "+").collect();
        assert_eq!(refused, denied, "{who}");
    }
    drop(attached.detach());
    sh("rmdir /sys/fs/cgroup/polity-why/inner /sys/fs/cgroup/polity-why");
}

/// The tests beside rules: run by `check` of the file, with nothing attached.
fn check() {
    let yard = Yard::new();
    file("vault/plan");
    fs::copy("/bin/busybox", at("busybox-tool")).unwrap();
    dir("home");
    let rules = "[[lsm.fs-deny.rules]]\nname = \"vault\"\ndeny = [\"read\", \"write\"]\n\
        path = \"/w/vault\"\nexcept = \"/w/vault/open\"\nsubject = { not = { exe = \"/w/busybox-tool\" } }\n\
        [[lsm.fs-deny.rules]]\nname = \"homes\"\ndeny = \"create\"\npath = \"/w/home\"\n\
        mode = \"audit\"\nsubject = { uid = [1000] }\n\
        [[lsm.fs-deny.rules]]\nname = \"keys\"\ndeny = \"read\"\n\
        glob = [\"**/*.pem\", \"/w/home/*/.ssh/**\"]\nexcept = \"/w/home/*/.ssh/known_hosts\"\n";
    let test = |name: &str, op: &str, path: &str, more: &str, expect: &str| {
        format!(
            "[[lsm.fs-deny.test]]\nname = \"{name}\"\nop = \"{op}\"\npath = \"{path}\"\n{more}\n\
             expect = \"{expect}\"\n"
        )
    };
    let good = [
        test("plan", "read", "/w/vault/plan", "", "deny"),
        test("tool", "read", "/w/vault/plan", "exe = \"/w/busybox-tool\"", "allow"),
        test("hole", "write", "/w/vault/open/x", "", "allow"),
        test("not-yet", "write", "/w/vault/a/b", "", "deny"),
        test("glob", "read", "/w/vault/open/x.pem", "", "deny"),
        test("glob-not-yet", "read", "/w/home/a/.ssh/new/id", "", "deny"),
        test("glob-hole", "read", "/w/home/a/.ssh/known_hosts", "", "allow"),
        test("glob-elsewhere", "read", "/w/home/.ssh/id", "", "allow"),
        test("user", "create", "/w/home/x", "uid = 1000", "audit"),
        "[[test]]\nname = \"root\"\nop = \"create\"\npath = \"/w/home/x\"\nexpect = \"allow\"\n"
            .into(),
    ];
    let bad = test("wrong", "read", "/w/vault/plan", "", "allow");
    let lost = test("lost", "read", "/w/vault/plan", "exe = \"/w/no-such-tool\"", "deny");
    let file = "/tmp/why-tests.toml";
    fs::write(file, format!("{rules}{}{bad}{lost}", good.concat())).unwrap();
    let checked = polity(&["check", file, "--json"]);
    checked.fails(1, &["2 of 12 tests failed", "wrong: read of /w/vault/plan: deny by `vault`"]);
    let list: Value = serde_json::from_str(&checked.stdout).unwrap();
    let tests = list[0]["tests"].as_array().unwrap();
    let failed: Vec<_> = tests.iter().filter(|t| t["ok"] != true).map(|t| &t["name"]).collect();
    assert_eq!(failed, ["wrong", "lost"], "{list:#}");
    assert_eq!((tests.len(), &list[0]["ok"]), (12, &false.into()));
    fs::read(at("vault/plan")).unwrap();

    fs::write(file, format!("{rules}{}", bad.replace("allow", "perhaps"))).unwrap();
    polity(&["check", file]).fails(2, &["unknown variant `perhaps`", "why-tests.toml:"]);
    drop(yard);
}

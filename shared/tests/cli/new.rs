//! `polity new`: what it makes is a policy.

use crate::folder::polity;

#[test]
fn every_kind_has_a_beginning_that_builds() {
    let place = tempfile::tempdir().unwrap();
    for kind in ["schedulers", "tcp-cc", "lsm"] {
        let folder = place.path().join(kind);
        let folder = folder.to_str().unwrap();
        let made = polity(["new", &format!("{kind}/my-own"), "--into", folder]);
        assert_eq!(made.status, 0, "{made:#?}");
        assert!(made.stderr.contains("polity check"), "{}", made.stderr);
        let built = polity(["build", folder]);
        assert_eq!(built.status, 0, "{built:#?}");
        let shown = polity(["show", folder, "--json"]).json();
        assert_eq!(shown["policy"], format!("{kind}/my-own"), "{shown}");
        // Nothing is written over.
        polity(["new", &format!("{kind}/my-own"), "--into", folder]).fails(1, &[folder, "--into"]);
    }
}

#[test]
fn what_can_t_be_a_policy_is_refused() {
    for (name, said) in [
        ("mine", "is not KIND/NAME"),
        ("gpu/mine", "there is no kind `gpu`"),
        ("tcp-cc/twelve-chars", "is no policy name"),
        ("tcp-cc/../x", "is no policy name"),
        ("tcp-cc/2fast", "begin with a letter"),
    ] {
        polity(["new", name]).fails(2, &[said]);
    }
}

use super::*;

const ROOT: (u32, u32) = (0, 0);

fn accounts() -> Accounts {
    let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\n:x:1:1::/:\napp:x:1000:1001:,,:/home/app:\n\
                  bad:x:-1:0::/:\nlarge:x:4294967295:0::/:\nnohome:x:7:7\n";
    let group = "root:x:0:\nstaff:x:50:app,root\nbroken\nvideo:x:44:other,app\n";
    Accounts::parse(passwd, group)
}

fn user(text: &str) -> Option<User> {
    accounts().resolve(text, ROOT).unwrap()
}

#[test]
fn user_resolves_by_name_and_number_with_groups_and_home() {
    let app = User {
        uid: 1000,
        gid: 1001,
        groups: vec![50, 44],
        name: "app".to_owned(),
        home: Some("/home/app".into()),
    };
    assert_eq!(user("app"), Some(app.clone()));
    assert_eq!(user("1000"), Some(app.clone()));
    let with_group = |gid| {
        Some(User {
            gid,
            groups: Vec::new(),
            ..app.clone()
        })
    };
    assert_eq!(user("app:staff"), with_group(50));
    assert_eq!(user("1000:9"), with_group(9));
    let nohome = user("nohome").unwrap();
    assert_eq!((nohome.gid, nohome.home), (7, None));
}

fn variable(name: &str, value: &str) -> (OsString, OsString) {
    (name.into(), value.into())
}

#[test]
fn unnamed_uid_has_gid_zero_and_home_root() {
    let unnamed = user("4242").unwrap();
    assert_eq!((unnamed.uid, unnamed.gid), (4242, 0));
    assert_eq!((unnamed.groups.len(), unnamed.name.as_str()), (0, ""));
    assert_eq!(unnamed.variables(), [variable("HOME", "/")]);
    let variables = user("app").unwrap().variables();
    let expected = [variable("HOME", "/home/app"), variable("USER", "app")];
    assert_eq!(variables, expected);
}

#[test]
fn own_user_is_none_and_needs_no_root() {
    for text in ["root", "0", "root:root", "0:0"] {
        assert_eq!(user(text), None, "{text}");
    }
    for text in ["app", "1000", "1000:7", "4242"] {
        let own = if text == "4242" { (4242, 3) } else { (1000, 7) };
        assert_eq!(accounts().resolve(text, own), Ok(None), "{text}");
    }
    assert!(user("root:staff").is_some());
}

#[test]
fn claimed_user_is_found_by_its_uid_and_needs_root() {
    let named = Accounts::parse("1000:x:0:0::/root:\napp:x:1000:1001::/home/app:\n", "");
    let found = named.with_uid(1000, 0).unwrap().unwrap();
    assert_eq!((found.uid, found.gid), (1000, 1001), "not by the name 1000");
    assert_eq!(found.home(), Path::new("/home/app"));
    assert_eq!(accounts().with_uid(1000, 0), Ok(user("app")));
    assert_eq!(accounts().with_uid(4242, 0), Ok(user("4242")));
    for own in [0, 1000] {
        assert_eq!(accounts().with_uid(own, own), Ok(None));
    }
    for (uid, own, code) in [
        (0, 1000, ErrorCode::UserNotAllowed),
        (7, 1000, ErrorCode::UserNotAllowed),
        (u32::MAX, 0, ErrorCode::UserNotFound),
    ] {
        let error = accounts().with_uid(uid, own).unwrap_err();
        assert_eq!(error.code(), code, "{uid} by {own}");
    }
}

#[test]
fn unknown_and_forbidden_users_have_their_codes() {
    for text in [
        "nobody",
        "app:nobody",
        "bad",
        "-1",
        "4294967295",
        ":",
        "app:",
        "+1",
    ] {
        let error = accounts().resolve(text, ROOT).unwrap_err();
        assert_eq!(error.code(), ErrorCode::UserNotFound, "{text}");
    }
    for text in ["root", "0", "app:50"] {
        let error = accounts().resolve(text, (1000, 1001)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::UserNotAllowed, "{text}");
        assert!(error.to_string().contains("uid 1000"), "{error}");
    }
}

#[test]
fn names_of_ids_and_ids_of_names_agree() {
    let names = Names(accounts());
    assert_eq!(
        (names.user(1000), names.group(44)),
        ("app".to_owned(), "video".to_owned())
    );
    assert_eq!(
        (names.user(9), names.group(9)),
        (String::new(), String::new())
    );
    assert_eq!(
        (names.uid("app"), names.uid("9"), names.uid("x")),
        (Some(1000), Some(9), None)
    );
    assert_eq!((names.gid("staff"), names.gid("x")), (Some(50), None));
}

#[test]
fn execute_permission_is_that_of_owner_group_or_others() {
    let app = user("app").unwrap();
    for (mode, owner, group, expected) in [
        (0o700, 1000, 0, true),
        (0o077, 1000, 1001, false),
        (0o010, 0, 1001, true),
        (0o010, 0, 44, true),
        (0o701, 0, 44, false),
        (0o001, 0, 0, true),
        (0o770, 0, 0, false),
    ] {
        assert_eq!(app.may_execute(mode, owner, group), expected, "{mode:o}");
    }
}

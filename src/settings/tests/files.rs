//! Settings in files of one's own, and the file with the secret key base.

use super::*;

#[test]
fn own_files_replace_the_built_in_ones() {
    let dir = tempfile::tempdir().expect("a folder");
    let write =
        |file: &str, text: &str| std::fs::write(dir.path().join(file), text).expect("a file");
    write("default.toml", "[server]\nport = 5000\nworkers = 7\n");
    write("development.toml", "[server]\nport = 6000\n[admin]\npassword = \"own\"\n");

    let settings = load_in(Some(dir.path()), &DEVELOPMENT).expect("settings");
    assert_eq!((settings.server.port, settings.server.workers), (6000, 7));
    assert!(!settings.database.seed, "the built-in development.toml is not read beside one's own");
    assert_eq!(settings.registry.refresh, Duration::from_secs(5), "what is left out stays");

    let named = dir.path().to_string_lossy();
    let env = [DEVELOPMENT[0], ("HERALD_CONFIG_DIR", &named)];
    assert_eq!(load_in(None, &env).expect("settings").server.port, 6000);
    let elsewhere = load_in(Some(&dir.path().join("none")), &DEVELOPMENT).expect("settings");
    assert_eq!(elsewhere.server.port, 4000, "a folder that nobody asked for may be missing");
}

#[test]
fn broken_files_are_refused_without_quoting_them() {
    for (text, expected) in [
        ("[server]\nprot = 1", "server.prot (from DIR/development.toml): there is no such setting"),
        ("server = 1", "server (from DIR/development.toml): there is no such setting"),
        (
            "[server.port]\na = 1",
            "server.port.a (from DIR/development.toml): there is no such setting",
        ),
        (
            "[server]\nport = \"x\"",
            "server.port (from DIR/development.toml): must be a whole number",
        ),
        ("[server]\nport = 1.5", "server.port (from DIR/development.toml): must be a whole number"),
        (
            "[admin]\npassword = 123454321",
            "admin.password (from DIR/development.toml): must be a text",
        ),
        (
            "[admin]\npassword = [\"s3cret\"]",
            "admin.password (from DIR/development.toml): must be a text",
        ),
        ("[admin]\npassword = \"s3cret", "DIR/development.toml: TOML parse error at line 2"),
        (
            "[server]\ntrusted_proxies = [1]",
            "server.trusted_proxies (from DIR/development.toml): must be a list",
        ),
        (
            "[socket]\ncheck_origin = []\n[admin]\npassword = \"p\"",
            "socket.check_origin (from DIR/development.toml): must be false, true",
        ),
        (
            "[limits]\nsessions_max = -1\n[admin]\npassword = \"p\"",
            "limits.sessions_max (from DIR/development.toml): must be \"auto\"",
        ),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("development.toml"), text).expect("a file");
        let found = load_in(Some(dir.path()), &DEVELOPMENT).map(|_| ()).expect_err("a refusal");
        let found = found.to_string().replace(&dir.path().display().to_string(), "DIR");
        assert!(found.starts_with(expected), "{text}: {found}");
        assert!(!found.contains("s3cret") && !found.contains("123454321"), "{found}");
        assert_eq!(found.lines().count(), 1, "{found}");
    }
}

#[test]
fn the_secret_key_base_is_made_once_and_kept_private() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("data/secret_key_base");
    let text = path.to_string_lossy();
    let env = [("HERALD__SECRETS__SECRET_KEY_BASE_FILE", text.as_ref())];
    let key = |mut settings: Settings| {
        settings.keep().expect("a file");
        settings.secrets.secret_key_base.expose_secret().to_owned()
    };

    let (read_only, second) = (loaded(&[], &env), loaded(&[], &env));
    assert_eq!(read_only.secrets.secret_key_base.expose_secret().len(), 64);
    assert!(!path.exists(), "reading the settings leaves nothing behind");
    let first = key(read_only);
    assert_eq!(first.len(), 64);
    assert_eq!(key(second), first, "of two that start at once the second takes the first one's");
    assert_eq!(key(loaded(&[], &env)), first);
    let in_production = [PRODUCTION[0], PRODUCTION[1], PRODUCTION[2], env[0]];
    assert_eq!(key(loaded(&[], &in_production)), first, "production reads such a file too");

    let files = std::fs::read_dir(dir.path().join("data")).expect("a folder").count();
    assert_eq!(files, 1, "no draft is left behind");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn a_secret_key_base_file_that_cannot_be_used_stops_the_start() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("file");
    std::fs::write(&file, "\n").expect("a file");
    for (base, path) in [
        (&DEVELOPMENT[..0], file.clone()),
        (&DEVELOPMENT[..0], file.join("below-a-file")),
        (&DEVELOPMENT[..0], dir.path().to_owned()),
        (&PRODUCTION[..3], dir.path().join("missing")),
    ] {
        let path = path.to_string_lossy();
        let started = load(base, &[("HERALD__SECRETS__SECRET_KEY_BASE_FILE", &path)]);
        let started = started.and_then(|mut settings| settings.keep());
        let found = started.expect_err("a refusal").to_string();
        assert!(found.starts_with("secrets.secret_key_base_file"), "{found}");
        assert!(found.contains(" cannot be used: "), "{found}");
    }
}

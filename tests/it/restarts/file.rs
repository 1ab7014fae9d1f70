//! The file in which an orderly stop saves the history: whose it is, when it cannot be used, and how it is written.

use std::{
    fs::{File, Permissions},
    io::Read,
    os::unix::fs::symlink,
    time::Instant,
};

use super::*;

/// The number of servers that are killed while they save.
const KILLS: usize = 50;

/// The longest time between the signal to stop a server and the moment at which it is killed.
const LATEST_KILL: Duration = Duration::from_millis(40);

/// Limits that the bytes of the publications in these tests do not reach.
const LARGE: [(&str, &str); 2] = [
    ("HERALD__HISTORY__REPLAY_BYTES_MAX", "100000000"),
    ("HERALD__LIMITS__OUTBOX_BYTES_MAX", "200000000"),
];

#[tokio::test]
async fn a_file_that_cannot_be_used_is_warned_of_once_and_new_epochs_begin() {
    let damage = |change: fn(&mut Vec<u8>)| {
        move |file: &Path| {
            let mut bytes = fs::read(file).expect("a file");
            change(&mut bytes);
            fs::write(file, bytes).expect("a file");
        }
    };
    let (truncated, flipped) = (
        damage(|bytes| bytes.truncate(bytes.len() - 1)),
        damage(|bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }),
    );
    let (emptied, newer) = (damage(Vec::clear), damage(|bytes| bytes[16] = 3));
    let (foreign, longer) =
        (damage(|bytes| *bytes = b"somebody's notes".to_vec()), damage(|bytes| bytes.push(0)));
    let folder = |file: &Path| {
        fs::remove_file(file).expect("a file");
        fs::create_dir(file).expect("a folder");
    };
    let link = |file: &Path| {
        fs::rename(file, file.with_extension("elsewhere")).expect("a file");
        symlink("herald.elsewhere", file).expect("a link");
    };
    type Change<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Change, &str, bool); 8] = [
        ("truncated", &truncated, "it is truncated", false),
        ("empty", &emptied, "it is truncated", false),
        ("damaged", &flipped, "it is damaged", false),
        ("too long", &longer, "it is damaged: something behind its end", false),
        ("of another version", &newer, "it has version 3 of the format", false),
        ("foreign", &foreign, "it is not a history file", true),
        ("a folder", &folder, "it is not a regular file", true),
        ("a link", &link, "it is not a regular file", true),
    ];
    for (case, change, expected, stays) in cases {
        let (dir, position) = stopped().await;
        change(&dir.path().join(FILE));
        let process = Process::start_in(dir, &[]);
        assert!(!is_known(&process.server, &position).await, "{case}");
        let position = publish(&process.server, 2).await;
        process.signal("TERM");
        let lines = process.rest_of_log();
        let warnings: Vec<_> = lines.iter().filter(|line| line.contains(" WARN ")).collect();
        assert!(warnings[0].contains("cannot use the history file"), "{case}: {lines:#?}");
        assert!(warnings[0].contains(expected), "{case}: {lines:#?}");
        assert!(warnings[0].contains("new epochs begin"), "{case}: {lines:#?}");
        assert_eq!(warnings.len(), if stays { 2 } else { 1 }, "{case}: {lines:#?}");
        // Herald does not replace what is not its own file, so in these cases nothing was saved.
        let process = Process::start_in(process.crash(), &[]);
        assert_eq!(is_known(&process.server, &position).await, !stays, "{case}");
    }
}

#[tokio::test]
async fn a_file_or_folder_without_permission_does_not_stop_a_start() {
    let url = |dir: &Path| format!("sqlite://{}/herald.db", dir.display());
    // Permissions do not bind root, so another user runs the server.
    let nobody = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(env!("CARGO_BIN_EXE_herald"));
        command
    };
    let is_root =
        fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let herald = || match is_root {
        true => nobody(),
        false => Command::new(env!("CARGO_BIN_EXE_herald")),
    };
    let open = |path: &Path, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("a path of ours");
    };
    for (case, file_mode, folder_mode, expected) in [
        ("an unreadable file", 0o000, 0o777, "it cannot be read: Permission denied"),
        ("a folder that cannot be written to", 0o666, 0o555, "Permission denied"),
        ("neither", 0o444, 0o555, "please remove it"),
    ] {
        let (dir, position) = stopped().await;
        // The history file has a folder of its own, because the database must stay writable.
        let folder = dir.path().join("kept");
        fs::create_dir(&folder).expect("a folder");
        let file = folder.join("history");
        fs::rename(dir.path().join(FILE), &file).expect("a file");
        open(dir.path(), 0o777);
        for name in ["herald.db", "herald.db-wal", "herald.db-shm"] {
            if dir.path().join(name).exists() {
                open(&dir.path().join(name), 0o666);
            }
        }
        open(&file, file_mode);
        open(&folder, folder_mode);
        let (url, at) = (url(dir.path()), file.display().to_string());
        let env = [("DATABASE_URL", url.as_str()), ("HERALD__HISTORY__FILE", &at)];
        let process = Process::start_through(herald(), dir, &env);
        let line = &process.logged("cannot use the history file", 1)[0];
        assert!(line.contains(expected), "{case}: {line}");
        assert!(!is_known(&process.server, &position).await, "{case}");
        let dir = process.crash();
        // A later start, which can read the file, does not load it either. If the first start could neither replace
        // nor empty the file, the log has told the operator to remove it.
        open(&folder, 0o777);
        open(&file, 0o666);
        if case != "neither" {
            let process = Process::start_through(herald(), dir, &env);
            assert!(!is_known(&process.server, &position).await, "{case}");
        }
    }
}

#[tokio::test]
async fn a_file_that_is_locked_at_the_start_is_put_aside_so_that_no_later_start_loads_it() {
    let (dir, position) = stopped().await;
    let locked = File::open(dir.path().join(FILE)).expect("a file");
    locked.lock().expect("nobody has locked it");
    let process = Process::start_in(dir, &[]);
    let line = &process.logged("cannot use the history file", 1)[0];
    assert!(line.contains("another process has locked it; it is now named"), "{line}");
    let missed = publish(&process.server, 2).await;
    let process = Process::start_in(process.stop(), &[]);
    drop(locked);
    assert!(!is_known(&process.server, &position).await, "it missed the second event");
    assert!(is_known(&process.server, &missed).await, "the stop has saved");
}

#[tokio::test]
async fn a_signal_during_the_start_ends_the_server_and_loses_nothing() {
    let env = [&ROOMY[..], &LARGE].concat();
    let process = Process::start(&env);
    let filler = "x".repeat(90_000);
    for _ in 0..150 {
        try_publish(&process.server, u64::MAX, &filler).await.expect("it is taken");
    }
    let position = publish(&process.server, 1).await;
    let dir = process.stop();
    let mut starting = Command::new(env!("CARGO_BIN_EXE_herald"))
        .arg("serve")
        .current_dir(dir.path())
        .env_clear()
        .env("HERALD_ENV", "test")
        .env("DATABASE_URL", format!("sqlite://{}/herald.db", dir.path().display()))
        .envs(env.iter().copied())
        .spawn()
        .expect("herald starts");
    let began = Instant::now();
    while is_saved(dir.path()) {
        assert!(began.elapsed() < DEADLINE, "it does not take the file");
    }
    let pid = starting.id().to_string();
    let sent = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(sent.expect("kill runs").success());
    let status = starting.wait().expect("a child of ours");
    assert!(status.success(), "{status}");
    let process = Process::start_in(dir, &env);
    assert!(is_known(&process.server, &position).await);
}

#[tokio::test]
async fn a_stop_says_that_the_file_was_removed() {
    let process = Process::start(&[]);
    fs::remove_file(process.server.dir.path().join(FILE)).expect("a file");
    process.signal("TERM");
    let log = process.rest_of_log();
    let expected = "it is not there any more: somebody has removed it while this server ran";
    assert!(log.iter().any(|line| line.contains(expected)), "{log:#?}");
    assert_eq!(names(process.crash().path()), [""; 0]);
}

#[tokio::test]
async fn what_a_server_saved_before_it_was_a_node_of_a_cluster_is_not_loaded_after() {
    let (dir, position) = stopped().await;
    let (url, prefix) = (nodes::redis_url(), format!("test-{}", uuid::Uuid::new_v4()));
    let env = [
        ("HERALD__ENGINE__KIND", "redis"),
        ("REDIS_URL", &*url),
        ("HERALD__ENGINE__PREFIX", &*prefix),
    ];
    let process = Process::start_in(dir, &env);
    process.until_logged("is emptied, because a node of a cluster has its history in Redis");
    publish(&process.server, 2).await;
    let process = Process::start_in(process.stop(), &[]);
    assert!(!is_known(&process.server, &position).await, "it missed the second event");
    let position = publish(&process.server, 3).await;
    let process = Process::start_in(process.stop(), &[]);
    assert!(is_known(&process.server, &position).await);
}

#[tokio::test]
async fn of_two_servers_one_loads_the_file_and_the_last_one_started_saves_it() {
    let (dir, position) = stopped().await;
    let first = Process::start_in(dir, &[]);
    assert!(is_known(&first.server, &position).await);
    let url = format!("sqlite://{}/herald.db", first.server.dir.path().display());
    let env = [("DATABASE_URL", url.as_str())];
    let second = Process::start(&env);
    assert!(!is_known(&second.server, &position).await, "the first server has loaded the file");
    let positions = [publish(&first.server, 2).await, publish(&second.server, 3).await];
    first.signal("TERM");
    let log = first.rest_of_log();
    assert!(log.iter().any(|line| line.contains("another server is using it")), "{log:#?}");
    let dir = first.crash();
    // The first server has saved nothing that could be loaded after a crash of the second one.
    assert_eq!(names(dir.path()), [FILE]);
    second.stop();
    let third = Process::start_in(dir, &[]);
    assert!(!is_known(&third.server, &positions[0]).await);
    assert!(is_known(&third.server, &positions[1]).await);
}

#[tokio::test]
async fn many_servers_that_start_at_once_do_not_load_the_same_file() {
    let (dir, position) = stopped().await;
    let url = format!("sqlite://{}/herald.db", dir.path().display());
    let start = |_| {
        let url = url.clone();
        thread::spawn(move || Process::start(&[("DATABASE_URL", url.as_str())]))
    };
    let starting: Vec<_> = (0..6).map(start).collect();
    let mut loaded = 0;
    for process in starting {
        let process = process.join().expect("a server");
        loaded += usize::from(is_known(&process.server, &position).await);
    }
    assert_eq!(loaded, 1);
}

#[tokio::test]
async fn a_server_that_is_not_to_save_leaves_every_file_alone() {
    let process = Process::start(&[("HERALD__HISTORY__FILE", "off")]);
    let position = publish(&process.server, 1).await;
    let dir = process.stop();
    assert_eq!(names(dir.path()), [""; 0]);
    let process = Process::start_in(dir, &[]);
    assert!(!is_known(&process.server, &position).await);
}

#[tokio::test]
async fn an_archive_that_cannot_be_saved_in_time_is_given_up_and_logged() {
    let env = [("HERALD__SERVER__SHUTDOWN_TIMEOUT", "1ms")];
    let mut process = Process::start(&env);
    let mut position = String::new();
    for n in 0..60 {
        let filler = "x".repeat(90_000);
        position = try_publish(&process.server, n, &filler).await.expect("it is taken");
    }
    process.signal("TERM");
    assert!(process.ended().success());
    let log = process.rest_of_log();
    let late =
        |line: &String| line.contains("cannot save the history file") && line.contains("in time");
    assert!(log.iter().any(late), "{log:#?}");
    let process = Process::start_in(process.crash(), &[]);
    assert!(!is_known(&process.server, &position).await);
    assert_eq!(names(process.server.dir.path()), [FILE]);
}

/// Whether a file in this folder is an archive that is not complete yet.
fn is_saving(folder: &Path) -> bool {
    names(folder).iter().any(|name| name.ends_with(".part"))
}

/// Whether the archive in this folder is complete, and no server has begun to use it.
fn is_saved(folder: &Path) -> bool {
    // The byte after the magic and the version says whether the archive is in use (0) or saved (1).
    let mut head = [0; 19];
    let read = File::open(folder.join(FILE)).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && head[18] == 1
}

/// Tells a server to stop, and waits until it saves. The save may be over before this returns.
fn stop_until_it_saves(process: &Process) {
    let folder = process.server.dir.path();
    process.signal("TERM");
    let began = Instant::now();
    while !is_saving(folder) && !is_saved(folder) {
        assert!(began.elapsed() < DEADLINE, "it does not save");
    }
}

#[tokio::test]
async fn signals_amid_a_save_leave_a_whole_file_or_none() {
    let env = [&ROOMY[..], &LARGE].concat();
    let filler = "x".repeat(90_000);
    let mut dir = TempDir::new().expect("a temporary folder");
    // The first position of the present epoch, and the numbers that were accepted after it.
    let mut known: Option<(String, Vec<u64>)> = None;
    let (mut n, mut amid, mut kept) = (0, 0, 0);
    // The second signal ends all sessions and lets the save continue. The third one ends the process.
    let two = ["INT"].as_slice();
    let three = ["INT", "TERM"].as_slice();
    for (round, signals) in [two, three, two, three, two].into_iter().enumerate() {
        let mut process = Process::start_in(dir, &env);
        let server = &process.server;
        if known.is_none() {
            for _ in 0..150 {
                try_publish(server, u64::MAX, &filler).await.expect("it is taken");
            }
            known = Some((publish(server, n).await, Vec::new()));
        }
        let (since, accepted) = known.as_mut().expect("a numbering");
        n += 1;
        assert_eq!(epoch(&publish(server, n).await), epoch(since));
        accepted.push(n);

        stop_until_it_saves(&process);
        process.signal("STOP");
        amid += usize::from(is_saving(process.server.dir.path()));
        signals.iter().for_each(|signal| process.signal(signal));
        process.signal("CONT");
        assert!(process.ended().success(), "round {round}");
        dir = process.crash();

        let process = Process::start_in(dir, &env);
        // The start has removed an unfinished file.
        assert_eq!(names(process.server.dir.path()), [FILE], "round {round}");
        let (recovery, replayed) = recovered(&process.server, since).await;
        if recovery["complete"] == true {
            assert_eq!(&replayed, accepted, "round {round}");
            kept += usize::from(signals == two);
        } else {
            assert_eq!(recovery["reason"], "epoch", "round {round}");
            known = None;
        }
        dir = process.stop();
    }
    assert!(amid >= 1, "no signal came during a save");
    assert!(kept >= 1, "a second signal lets the save go on");
}

#[tokio::test]
async fn an_archive_that_a_killed_server_had_not_finished_is_removed() {
    let (dir, _) = stopped().await;
    let leftover = format!("{FILE}.{:032x}.part", 7);
    let others = [format!("{FILE}.7.part"), format!("{FILE}.{:032x}", 7)];
    for name in others.iter().chain([&leftover]) {
        File::create(dir.path().join(name)).expect("a file");
    }
    let process = Process::start_in(dir, &[]);
    let mut expected = vec![FILE.to_owned()];
    expected.extend(others);
    expected.sort();
    assert_eq!(names(process.server.dir.path()), expected);
}

#[tokio::test]
async fn a_server_that_is_killed_while_it_saves_starts_again_and_never_tells_wrongly() {
    // A filler so large that a save takes about as long as [`LATEST_KILL`].
    let filler = "x".repeat(90_000);
    let mut dir = TempDir::new().expect("a temporary folder");
    // The first position of the present epoch, and the numbers that were accepted after it.
    let mut known: Option<(String, Vec<u64>)> = None;
    let (mut n, mut amid, mut is_whole) = (0, 0, false);
    for round in 0..KILLS + 2 {
        let process = Process::start_in(dir, &[&ROOMY[..], &LARGE].concat());
        let server = &process.server;
        if let Some((since, accepted)) = &known {
            let (recovery, replayed) = recovered(server, since).await;
            assert_eq!(recovery["complete"], is_whole, "round {round}");
            if is_whole {
                assert_eq!(&replayed, accepted, "round {round}");
            } else {
                assert_eq!(recovery["reason"], "epoch", "round {round}");
                known = None;
            }
        }
        let (since, accepted) = match &mut known {
            Some(known) => known,
            None => {
                for _ in 0..20 {
                    try_publish(server, u64::MAX, &filler).await.expect("it is taken");
                }
                n += 1;
                known.insert((publish(server, n).await, Vec::new()))
            }
        };
        n += 1;
        let position = publish(server, n).await;
        assert_eq!(epoch(&position), epoch(since));
        accepted.push(n);
        dir = match round {
            // The first server has certainly saved, and the second one certainly has not begun to.
            0 => process.stop(),
            1 => process.crash(),
            // Every second server is killed as soon as it saves, however late that is.
            _ if round % 2 == 0 => {
                stop_until_it_saves(&process);
                process.crash()
            }
            _ => {
                process.signal("TERM");
                let moment = uuid::Uuid::new_v4().as_u128() % LATEST_KILL.as_micros();
                thread::sleep(Duration::from_micros(moment as u64));
                process.crash()
            }
        };
        // At most one file is unfinished. The next start removes it.
        assert!(names(dir.path()).len() <= 2, "{:?}", names(dir.path()));
        amid += usize::from(is_saving(dir.path()));
        is_whole = is_saved(dir.path());
    }
    assert!(amid >= 1, "no kill came during a save");
}

//! The order of the rooms: each uses rooms above it in [`ROOMS`], never below it.

use std::fs;

use crate::support::sources::{self, Source, first_word};

/// The rooms from top to bottom, as `src/lib.rs` lists them.
const ROOMS: [&str; 16] = [
    "form",
    "json",
    "strict_json",
    "metrics",
    "app",
    "usage",
    "settings",
    "engine",
    "broker",
    "session",
    "admission",
    "phoenix",
    "pusher",
    "http",
    "server",
    "cli",
];

/// The only file or folder that may name each of these crates.
const RESERVED: [(&str, &str); 7] = [
    ("herald_entity", "app/store"),
    ("herald_migration", "app/store"),
    ("sea_orm", "app/store"),
    ("prometheus_client", "metrics/"),
    ("redis", "engine/"),
    ("actix_http", "session/"),
    ("actix_web_actors", "session/"),
];

#[test]
fn rooms_use_only_rooms_above_them() {
    let mut files = 0;
    for (room, file, code) in sources() {
        let own = position(&room);
        for used in uses(&code) {
            let at = position(&used);
            assert!(at <= own, "{file} of room {room} uses {used}, which is below it");
        }
        files += 1;
    }
    assert!(files > 30, "the sources were found");
}

#[test]
fn some_crates_are_known_to_one_room_only() {
    for (room, file, code) in sources() {
        for (name, owner) in RESERVED {
            let names_it = code.contains(&format!("{name}::"));
            assert!(!names_it || file.starts_with(owner), "{file} of room {room} names {name}");
        }
    }
}

#[test]
fn the_map_lists_the_rooms_in_this_order() {
    let map = fs::read_to_string(sources::root().join("lib.rs")).expect("src/lib.rs");
    let listed: Vec<_> = map.lines().filter_map(|line| line.strip_prefix("pub mod ")).collect();
    assert_eq!(listed, ROOMS.map(|room| format!("{room};")));
}

fn position(room: &str) -> usize {
    let found = ROOMS.iter().position(|known| *known == room);
    found.unwrap_or_else(|| panic!("{room} is not a room; ROOMS lacks it"))
}

/// Room, path under `src` and code of every file that is in a room.
fn sources() -> Vec<(String, String, String)> {
    let in_room = |Source { file, code, .. }: Source| {
        let room = file.split(['/', '.']).next().expect("a first part").to_owned();
        (room != "lib" && room != "main").then_some((room, file, code))
    };
    sources::all().into_iter().filter_map(in_room).collect()
}

/// The rooms that a file names after `crate::`, also in a braced list.
fn uses(code: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            None => rooms.push(first_word(after)),
            Some(list) => {
                let (mut depth, mut item) = (0, String::new());
                for c in list.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => rooms.push(first_word(&std::mem::take(&mut item))),
                        _ => {}
                    }
                    if depth == 0 && c != ',' {
                        item.push(c);
                    }
                }
                rooms.push(first_word(&item));
            }
        }
    }
    rooms.retain(|room| !room.is_empty());
    rooms
}

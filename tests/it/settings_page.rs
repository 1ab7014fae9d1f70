//! The list of all settings in `docs/settings.md`, which is made from `config/default.toml`.
//!
//! With `HERALD_WRITE_PAGES=1` in its environment the test writes the list instead of comparing it.

use std::{fmt::Write, fs, mem, path::Path};

use crate::support::generated::Generated;

/// The list of the page.
const LIST: Generated = Generated {
    page: "docs/settings.md",
    begin: "<!-- from config/default.toml -->\n",
    end: "<!-- to here -->\n",
    variable: "HERALD_WRITE_PAGES",
    test: "settings_page",
};

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Settings that share a comment.
#[derive(Default)]
struct Group {
    meaning: String,
    settings: Vec<(String, String)>,
}

/// The list as Markdown: a table for each section.
fn list() -> String {
    let text = read("config/default.toml");
    // The first paragraph is about the file.
    let (_, text) = text.split_once("\n\n").expect("a first paragraph");
    let mut list = String::new();
    begin_table(&mut list, None);
    let mut group = Group::default();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix('#') {
            if !group.settings.is_empty() {
                end_group(&mut list, mem::take(&mut group));
            }
            add_words(&mut group.meaning, comment);
        } else if let Some((name, value)) = line.split_once(" = ") {
            group.settings.push((name.to_owned(), value.to_owned()));
        } else if let Some(section) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            end_group(&mut list, mem::take(&mut group));
            begin_table(&mut list, Some(section));
        } else {
            assert_eq!(line, "", "neither a comment, a setting nor a section");
        }
    }
    end_group(&mut list, group);
    list
}

fn begin_table(list: &mut String, section: Option<&str>) {
    if let Some(section) = section {
        write!(list, "\n### `[{section}]`\n\n").expect("a string takes it");
    }
    list.push_str("| setting | default | meaning |\n|---|---|---|\n");
}

/// Adds a line of a comment. A line that is indented further is an entry of a list: a value and its
/// meaning.
fn add_words(meaning: &mut String, comment: &str) {
    let entry = comment.strip_prefix("   ").and_then(|entry| entry.split_once("  "));
    let words = match entry {
        Some((value, words)) => format!("`{value}`: {}.", words.trim()),
        None => escaped(comment.trim()),
    };
    if !meaning.is_empty() && !words.is_empty() {
        meaning.push(' ');
    }
    meaning.push_str(&words);
}

/// Text outside of code must not be taken for markup.
fn escaped(words: &str) -> String {
    let parts = words.split('`').enumerate();
    let escape = |(nth, part): (usize, &str)| match nth % 2 {
        0 => part.replace('<', "&lt;"),
        _ => part.to_owned(),
    };
    parts.map(escape).collect::<Vec<_>>().join("`").replace('|', "\\|")
}

fn end_group(list: &mut String, Group { meaning, settings }: Group) {
    if settings.is_empty() {
        assert_eq!(meaning, "", "a comment without a setting");
        return;
    }
    let cells = |cell: fn(&(String, String)) -> &str| {
        let cells: Vec<_> = settings.iter().map(|each| format!("`{}`", cell(each))).collect();
        cells.join("<br>")
    };
    let (names, values) = (cells(|(name, _)| name), cells(|(_, value)| value));
    writeln!(list, "| {names} | {values} | {meaning} |").expect("a string takes it");
}

#[test]
fn the_page_lists_every_setting_as_the_file_of_defaults_does() {
    let list = list();
    for setting in ["`token_bytes_max`", "`single_app`", "`drain_interval_ms`"] {
        assert_eq!(list.matches(&format!("| {setting} |")).count(), 1, "{setting}");
    }
    LIST.check(&list);
}

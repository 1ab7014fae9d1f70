//! Names: no name of a type stands for two things.

use std::collections::BTreeMap;

use crate::support::sources;

/// Names that several files may give to a private type of their own, because they always mean the
/// same: `Inner` and `Shared` are the value behind a handle that is cheap to clone, and `State` is
/// what a lock guards.
const PRIVATE_EVERYWHERE: [&str; 3] = ["Inner", "Shared", "State"];

#[test]
fn no_type_name_stands_for_two_things() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources::all().iter().filter(|source| !source.is_for_tests) {
        for (name, is_private) in types(&source.code) {
            if !(is_private && PRIVATE_EVERYWHERE.contains(&name.as_str())) {
                places.entry(name).or_default().push(source.file.clone());
            }
        }
    }
    assert!(places.len() > 500, "the types were found: {}", places.len());
    places.retain(|_, files| files.len() > 1);
    assert!(places.is_empty(), "these type names have several meanings: {places:#?}");
}

#[test]
fn a_type_is_found_however_it_is_declared() {
    let code = "pub struct A;\nenum B {\n    Variant,\n}\npub(super) trait C {\n    type Item;\n}\n\
                type D<T> = Vec<T>;\nfn f() {\n    struct E;\n}\nimpl C for A {\n    type Item = B;\n}\n\
                pub(in crate::x) unsafe trait F {}";
    let found: Vec<_> = types(code).collect();
    let expected =
        [("A", false), ("B", true), ("C", false), ("D", true), ("E", true), ("F", false)];
    assert_eq!(found, expected.map(|(name, is_private)| (name.to_owned(), is_private)));
}

/// The names of the types that code declares, and whether they are private to its file. The types
/// that belong to a trait are left out: the trait gives them their names.
fn types(code: &str) -> impl Iterator<Item = (String, bool)> {
    code.lines().filter_map(|line| {
        let declaration = line.trim_start();
        let is_indented = declaration.len() < line.len();
        let public = declaration.strip_prefix("pub");
        let rest = match public {
            Some(rest) if rest.starts_with('(') => rest.split_once(')')?.1,
            Some(rest) => rest,
            None => declaration,
        };
        let rest = rest.trim_start();
        let rest = rest.strip_prefix("unsafe ").unwrap_or(rest);
        let (keyword, rest) = rest.split_once(' ')?;
        let is_type = match keyword {
            "struct" | "enum" | "trait" | "union" => true,
            "type" => !is_indented,
            _ => false,
        };
        let name = sources::first_word(rest);
        let is_name = name.starts_with(|first: char| first.is_ascii_uppercase());
        (is_type && is_name).then_some((name, public.is_none()))
    })
}

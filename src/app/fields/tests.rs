use std::collections::BTreeSet;

use chrono::Utc;
use secrecy::ExposeSecret;
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::app::{
    App, AppId, ClientEvents,
    origin::AllowedOrigins,
    settings::{AppSettings, UpTo},
};

fn fields(given: Value) -> AppFields {
    AppFields::read(given.as_object().expect("an object"))
}

fn faults_of_new(given: Value) -> Value {
    let faults = Draft::of_new(fields(given)).finish().err().unwrap_or_default();
    serde_json::to_value(faults).expect("faults are JSON")
}

fn new(given: Value) -> AppValues {
    Draft::of_new(fields(given)).finish().expect("no faults")
}

fn stored() -> App {
    App {
        id: AppId(1),
        name: "Foo App".into(),
        slug: Slug::parse("chosen-slug").expect("a slug"),
        key: "the-key".into(),
        secret: "a secret of some length".into(),
        last_use: Default::default(),
        previous: None,
        digests: Default::default(),
        settings: AppSettings {
            active: false,
            allowed_origins: AllowedOrigins::parse(vec!["//a.example".into()]).expect("origins"),
            client_events: ClientEvents::All,
            ..AppSettings::default()
        },
        inserted_at: Utc::now(),
        updated_at: Utc::now(),
    }
}

fn change(given: Value) -> Result<AppValues, Faults> {
    Draft::of_change(fields(given), &stored()).finish()
}

#[test]
fn a_name_alone_makes_a_whole_app() {
    let values = new(json!({ "name": "foo-app" }));
    assert_eq!((values.name.as_str(), values.slug.as_str()), ("foo-app", "foo-app"));
    assert!(Uuid::parse_str(&values.key).is_ok());
    assert!(Uuid::parse_str(values.secret.expose_secret()).is_ok());
    assert_ne!(values.key, values.secret.expose_secret());
    assert!(values.settings.active);
    assert!(values.settings.allowed_origins.as_strings().is_empty());
    assert_eq!(values.settings.client_events, ClientEvents::Authorized);
    assert!(!values.settings.shared_tokens);
    assert_eq!(values.settings.history_publications, None);
    assert_eq!(values.settings.history_seconds, None);
    assert!(values.settings.pusher && values.settings.subscription_count);
    assert!(!values.settings.authorized_only);
}

#[test]
fn forms_and_json_say_the_same() {
    for (case, given) in [
        (
            "form",
            json!({
                "name": "foo-app", "slug": "bar", "key": "k", "secret": "0123456789abcdef",
                "active": "0", "allowed_origins": ["https://a.example", ""],
                "client_events": "none", "shared_tokens": "true",
                "history_publications": "0100", "history_seconds": "",
            }),
        ),
        (
            "JSON",
            json!({
                "name": "foo-app", "slug": "bar", "key": "k", "secret": "0123456789abcdef",
                "active": false, "allowed_origins": ["https://a.example"],
                "client_events": "none", "shared_tokens": true, "id": 7, "nonsense": {},
                "history_publications": 100, "history_seconds": null,
            }),
        ),
    ] {
        let values = new(given);
        assert_eq!((values.slug.as_str(), values.key.as_str()), ("bar", "k"), "{case}");
        assert_eq!(values.secret.expose_secret(), "0123456789abcdef", "{case}");
        assert!(!values.settings.active && values.settings.shared_tokens, "{case}");
        assert_eq!(values.settings.allowed_origins.as_strings(), ["https://a.example"], "{case}");
        assert_eq!(values.settings.client_events, ClientEvents::None, "{case}");
        assert_eq!(values.settings.history_publications, UpTo::new(100), "{case}");
        assert_eq!(values.settings.history_seconds, None, "{case}");
    }
}

#[test]
fn slugs_are_made_from_names() {
    let long = "long name ".repeat(20);
    let cut_at_a_hyphen = format!("{} tail", "x".repeat(62));
    let (x62, long_slug) = ("x".repeat(62), "long-name-".repeat(6) + "lon");
    for (name, slug) in [
        ("foo-app", "foo-app"),
        ("Foo App", "foo-app"),
        ("  Caf\u{e9} & Th\u{e9}  ", "cafe-the"),
        ("a__b::c", "a-b-c"),
        ("\u{6771}\u{4eac}\u{306e}\u{4eba}\u{3005}", "dong-jing-noren"),
        ("2 + 2 = 4", "2-2-4"),
        (&long, &long_slug),
        (&cut_at_a_hyphen, &x62),
    ] {
        let made = new(json!({ "name": name })).slug;
        assert!(made.as_str().starts_with(slug), "{name:?} made {made}");
        assert!(Slug::parse(made.as_str()).is_some(), "{name:?}");
    }
}

#[test]
fn each_fault_of_a_new_app_is_named() {
    let long = "x".repeat(256);
    let many: Vec<_> = (0..101).map(|n| format!("//a{n}.example")).collect();
    for (case, given, expected) in [
        ("no name", json!({}), json!({"name": ["can't be blank"]})),
        ("null", json!({"name": null}), json!({"name": ["can't be blank"]})),
        ("empty", json!({"name": ""}), json!({"name": ["can't be blank"]})),
        ("spaces", json!({"name": "      "}), json!({"name": ["can't be blank"]})),
        ("a number", json!({"name": 12345}), json!({"name": ["is invalid"]})),
        ("a list", json!({"name": ["foo-app"]}), json!({"name": ["is invalid"]})),
        ("short", json!({"name": "four"}), json!({"name": ["should be at least 5 character(s)"]})),
        ("just enough", json!({"name": "fives"}), json!({})),
        (
            "characters, not bytes",
            json!({"name": "\u{e9}\u{e9}\u{e9}\u{e9}"}),
            json!({"name": ["should be at least 5 character(s)"]}),
        ),
        ("long", json!({"name": long}), json!({"name": ["should be at most 255 character(s)"]})),
        ("not too long", json!({"name": "x".repeat(255)}), json!({})),
        ("255 of many bytes", json!({"name": "\u{e9}".repeat(255)}), json!({})),
        (
            "short, with a control character",
            json!({"name": "a\u{0}"}),
            json!({"name": [
                "should be at least 5 character(s)", "must not contain control characters",
            ]}),
        ),
        (
            "a control character of Latin 1",
            json!({"name": "foo\u{85}app"}),
            json!({"name": ["must not contain control characters"]}),
        ),
        (
            "nothing to make a slug from",
            json!({"name": "!!!!!"}),
            json!({"name": ["must contain letters or digits to make a slug from"]}),
        ),
        ("a slug was given instead", json!({"name": "!!!!!", "slug": "x"}), json!({})),
        (
            "bad slug",
            json!({"name": "foo-app", "slug": "Foo_App"}),
            json!({"slug": ["must be 1 to 63 of a-z, 0-9 and -"]}),
        ),
        (
            "slug of a wrong type",
            json!({"name": "foo-app", "slug": 1}),
            json!({"slug": ["is invalid"]}),
        ),
        ("empty slug", json!({"name": "foo-app", "slug": ""}), json!({})),
        (
            "key with a colon",
            json!({"name": "foo-app", "key": "a:b"}),
            json!({"key": ["must be 1 to 64 of A-Z, a-z, 0-9, ., _, ~ and -"]}),
        ),
        (
            "key with a slash",
            json!({"name": "foo-app", "key": "a/b"}),
            json!({"key": ["must be 1 to 64 of A-Z, a-z, 0-9, ., _, ~ and -"]}),
        ),
        (
            "long key",
            json!({"name": "foo-app", "key": "x".repeat(65)}),
            json!({"key": ["must be 1 to 64 of A-Z, a-z, 0-9, ., _, ~ and -"]}),
        ),
        (
            "longest key of every kind of character",
            json!({"name": "foo-app", "key": format!("{}aZ09._~-", "x".repeat(56))}),
            json!({}),
        ),
        ("empty key", json!({"name": "foo-app", "key": "", "secret": null}), json!({})),
        (
            "key that is the path of this folder",
            json!({"name": "foo-app", "key": "."}),
            json!({"key": ["must not be . or .., which a URL drops from its path"]}),
        ),
        (
            "key that is the path of the folder above",
            json!({"name": "foo-app", "key": ".."}),
            json!({"key": ["must not be . or .., which a URL drops from its path"]}),
        ),
        ("key of three dots", json!({"name": "foo-app", "key": "..."}), json!({})),
        (
            "short secret",
            json!({"name": "foo-app", "secret": "0123456789abcde"}),
            json!({"secret": ["should be at least 16 character(s)"]}),
        ),
        (
            "secret with a line end",
            json!({"name": "foo-app", "secret": "0123456789abcdef\n"}),
            json!({"secret": ["must not contain control characters"]}),
        ),
        (
            "secret with a space at its beginning",
            json!({"name": "foo-app", "secret": " 0123456789abcdef"}),
            json!({"secret": ["must not begin or end with white space"]}),
        ),
        (
            "secret with a space at its end",
            json!({"name": "foo-app", "secret": "0123456789abcdef "}),
            json!({"secret": ["must not begin or end with white space"]}),
        ),
        (
            "secret of spaces",
            json!({"name": "foo-app", "secret": " ".repeat(16)}),
            json!({"secret": ["must not begin or end with white space"]}),
        ),
        (
            "secret with a no-break space at its end",
            json!({"name": "foo-app", "secret": "0123456789abcdef\u{a0}"}),
            json!({"secret": ["must not begin or end with white space"]}),
        ),
        (
            "short secret with a space at its end",
            json!({"name": "foo-app", "secret": "0123456789 "}),
            json!({"secret": [
                "should be at least 16 character(s)", "must not begin or end with white space",
            ]}),
        ),
        (
            "secret with spaces inside",
            json!({"name": "foo-app", "secret": "correct horse  battery"}),
            json!({}),
        ),
        (
            "secret that is not ASCII",
            json!({"name": "foo-app", "secret": "\u{fc}ber\u{20ac}-0123456789"}),
            json!({}),
        ),
        (
            "numeric secret",
            json!({"name": "foo-app", "secret": 1e20}),
            json!({"secret": ["is invalid"]}),
        ),
        (
            "bad bool",
            json!({"name": "foo-app", "active": "yes"}),
            json!({"active": ["is invalid"]}),
        ),
        (
            "number for a bool",
            json!({"name": "foo-app", "active": 1}),
            json!({"active": ["is invalid"]}),
        ),
        (
            "empty bool",
            json!({"name": "foo-app", "active": ""}),
            json!({"active": ["can't be blank"]}),
        ),
        (
            "null bool",
            json!({"name": "foo-app", "shared_tokens": null}),
            json!({"shared_tokens": ["can't be blank"]}),
        ),
        (
            "client events",
            json!({"name": "foo-app", "client_events": "some"}),
            json!({"client_events": ["is invalid"]}),
        ),
        (
            "client events of a wrong type",
            json!({"name": "foo-app", "client_events": true}),
            json!({"client_events": ["is invalid"]}),
        ),
        (
            "as much history as an app may ask for",
            json!({"name": "foo-app", "history_publications": 100_000, "history_seconds": "604800"}),
            json!({}),
        ),
        (
            "no history",
            json!({"name": "foo-app", "history_publications": 0, "history_seconds": "0"}),
            json!({}),
        ),
        (
            "too much history",
            json!({"name": "foo-app", "history_publications": 100_001, "history_seconds": "604801"}),
            json!({
                "history_publications": ["must be a whole number from 0 to 100000"],
                "history_seconds": ["must be a whole number from 0 to 604800"],
            }),
        ),
        (
            "numbers that are not whole",
            json!({"name": "foo-app", "history_publications": 1.5, "history_seconds": -1}),
            json!({
                "history_publications": ["must be a whole number from 0 to 100000"],
                "history_seconds": ["must be a whole number from 0 to 604800"],
            }),
        ),
        (
            "texts that are no numbers",
            json!({"name": "foo-app", "history_publications": "+1", "history_seconds": "5m"}),
            json!({
                "history_publications": ["must be a whole number from 0 to 100000"],
                "history_seconds": ["must be a whole number from 0 to 604800"],
            }),
        ),
        (
            "a number beyond all numbers",
            json!({"name": "foo-app", "history_publications": "9".repeat(99), "history_seconds": 1e20}),
            json!({
                "history_publications": ["must be a whole number from 0 to 100000"],
                "history_seconds": ["must be a whole number from 0 to 604800"],
            }),
        ),
        (
            "numbers of a wrong type",
            json!({"name": "foo-app", "history_publications": true, "history_seconds": [60]}),
            json!({"history_publications": ["is invalid"], "history_seconds": ["is invalid"]}),
        ),
        (
            "origins that are no list",
            json!({"name": "foo-app", "allowed_origins": "https://a.example"}),
            json!({"allowed_origins": ["is invalid"]}),
        ),
        (
            "origins by index",
            json!({"name": "foo-app", "allowed_origins": {"0": "https://a.example"}}),
            json!({"allowed_origins": ["is invalid"]}),
        ),
        (
            "an origin that is a number",
            json!({"name": "foo-app", "allowed_origins": ["//a.example", 1]}),
            json!({"allowed_origins": ["is invalid"]}),
        ),
        ("no origins", json!({"name": "foo-app", "allowed_origins": []}), json!({})),
        ("origins emptied by a form", json!({"name": "foo-app", "allowed_origins": ""}), json!({})),
        (
            "a blank origin",
            json!({"name": "foo-app", "allowed_origins": [""]}),
            json!({"allowed_origins": ["can't be blank"]}),
        ),
        (
            "blank origins",
            json!({"name": "foo-app", "allowed_origins": ["", ""]}),
            json!({"allowed_origins": ["can't be blank"]}),
        ),
        (
            "a blank beside an origin",
            json!({"name": "foo-app", "allowed_origins": ["", "//a.example", ""]}),
            json!({}),
        ),
        (
            "too many origins",
            json!({"name": "foo-app", "allowed_origins": many}),
            json!({"allowed_origins": ["\"//a100.example\" is one origin too many"]}),
        ),
        (
            "all at once",
            json!({"name": "x", "secret": "x", "active": 7}),
            json!({
                "name": ["should be at least 5 character(s)"],
                "secret": ["should be at least 16 character(s)"],
                "active": ["is invalid"],
            }),
        ),
    ] {
        assert_eq!(faults_of_new(given), expected, "{case}");
    }
}

#[test]
fn every_bad_origin_is_named() {
    let given = json!({"name": "foo-app", "allowed_origins": ["a.example", "//b.example", "c"]});
    let faults = faults_of_new(given);
    let named = faults["allowed_origins"].as_array().expect("faults").len();
    assert_eq!(named, 2, "{faults}");
}

#[test]
fn a_change_keeps_the_value_of_an_absent_field() {
    assert!(change(json!({})).expect("no faults").are_those_of(&stored()));
}

#[test]
fn a_slug_follows_the_name_and_nothing_else() {
    for (case, given, slug) in [
        ("same name", json!({"name": "Foo App"}), "chosen-slug"),
        ("new name", json!({"name": "Bar App"}), "bar-app"),
        ("a slug alone", json!({"slug": "other"}), "chosen-slug"),
        ("a bad slug", json!({"slug": "No Slug"}), "chosen-slug"),
        ("both", json!({"name": "Bar App", "slug": "other"}), "bar-app"),
    ] {
        assert_eq!(change(given).expect("no faults").slug.as_str(), slug, "{case}");
    }
}

#[test]
fn empty_keys_are_made_anew() {
    let values = change(json!({"key": "", "secret": ""})).expect("no faults");
    assert!(Uuid::parse_str(&values.key).is_ok());
    assert!(Uuid::parse_str(values.secret.expose_secret()).is_ok());
    let values = change(json!({"key": "k2"})).expect("no faults");
    assert_eq!(values.key, "k2");
    assert_eq!(values.secret.expose_secret(), "a secret of some length");
}

/// The fields that an app may set itself, in the order in which they are stored.
const BY_APP: [&str; 10] = [
    "key",
    "secret",
    "allowed_origins",
    "client_events",
    "shared_tokens",
    "history_publications",
    "history_seconds",
    "pusher",
    "subscription_count",
    "authorized_only",
];

/// A new field fails this test until it is added to one of the two lists.
#[test]
fn every_field_is_decided_to_be_for_apps_or_for_the_operator_only() {
    let settings = AppSettings::DESCRIBED.iter().map(|setting| setting.name);
    let all: BTreeSet<_> = ["name", "slug", "key", "secret"].into_iter().chain(settings).collect();
    assert_eq!(BY_OPERATOR_ONLY.into_iter().chain(BY_APP).collect::<BTreeSet<_>>(), all);
}

#[test]
fn an_app_sets_its_settings_and_its_pair_and_nothing_else() {
    let by_app = |given: Value| {
        let fields = AppFields::read_by(FieldWriter::App, given.as_object().expect("an object"));
        Draft::of_change(fields, &stored()).finish()
    };
    let given = json!({
        "key": "another-key", "secret": "", "allowed_origins": [], "client_events": "none",
        "shared_tokens": true, "history_publications": 1, "history_seconds": 2, "id": 9,
        "pusher": false, "subscription_count": false, "authorized_only": true,
    });
    let values = by_app(given).expect("no faults");
    assert_eq!(values.differences(&stored()), BY_APP);
    let faults = by_app(json!({"name": "Foo App", "active": false, "client_events": "x"}));
    assert_eq!(
        serde_json::to_value(faults.expect_err("faults")).expect("JSON"),
        json!({
            "name": ["can be changed by the administrator only"],
            "active": ["can be changed by the administrator only"],
            "client_events": ["is invalid"],
        })
    );
}

#[test]
fn a_faulty_change_changes_nothing() {
    let faults = change(json!({"name": "", "secret": "x"})).expect_err("faults");
    assert_eq!(
        serde_json::to_value(faults).expect("JSON"),
        json!({"name": ["can't be blank"], "secret": ["should be at least 16 character(s)"]})
    );
}

#[test]
fn secrets_are_not_printed() {
    let fields = fields(json!({"name": "foo-app", "secret": "very-secret-indeed"}));
    let printed = format!("{fields:?} {:?}", Draft::of_new(fields.clone()));
    assert!(!printed.contains("very-secret-indeed"), "{printed}");
}

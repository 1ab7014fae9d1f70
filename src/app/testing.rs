//! Apps for tests.

use chrono::{TimeDelta, Utc};

use super::{App, AppId, Slug, key_pair::PreviousPair, settings::AppSettings};

/// An app with this key and secret.
pub(crate) fn app(key: &str, secret: &str) -> App {
    App {
        id: AppId(3),
        name: "foo-app".into(),
        slug: Slug::parse("foo-app").expect("a slug"),
        key: key.into(),
        secret: secret.into(),
        last_use: Default::default(),
        previous: None,
        digests: Default::default(),
        settings: AppSettings::default(),
        inserted_at: Utc::now(),
        updated_at: Utc::now(),
    }
}

/// An app with a current and a previous pair.
pub(crate) fn rotated(current: (&str, &str), previous: (&str, &str)) -> App {
    let previous = PreviousPair {
        key: previous.0.into(),
        secret: previous.1.into(),
        expires_at: Utc::now() + TimeDelta::days(1),
        last_use: Default::default(),
    };
    App { previous: Some(previous), ..app(current.0, current.1) }
}

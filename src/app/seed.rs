//! The app `test-app`, which is created for development only, because its key and secret are public: they
//! come from one of the two articles whose examples Herald runs unchanged.

use serde_json::json;

use super::{
    Slug,
    audit::ChangedBy,
    change::{self, ChangeError},
    fields::AppFields,
    store::{AppStore, StoreError},
};

/// The slug of the seeded app.
pub const SLUG: &str = "test-app";

/// The key of the seeded app.
const KEY: &str = "test-app-fake-key";

/// The result of seeding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seeded {
    /// The app was missing and was created.
    Created,
    /// An app with the slug or the key of `test-app` existed and was left unchanged.
    Present,
}

/// Creates `test-app` if it is missing. An app with its slug or its key is taken for it, because its name, and with it
/// its slug, may have been changed.
///
/// # Errors
/// [`ChangeError::Invalid`] if another app has its name, [`ChangeError::Store`].
pub async fn seed(store: &AppStore) -> Result<Seeded, ChangeError> {
    if is_present(store).await? {
        return Ok(Seeded::Present);
    }
    let app = json!({
        "name": "Test App",
        "slug": SLUG,
        "key": KEY,
        "secret": "test-app-fake-secret",
        "client_events": "all",
    });
    let fields = app.as_object().map(AppFields::read).unwrap_or_default();
    match change::create(store, &ChangedBy::CLI, fields).await {
        Ok(_) => Ok(Seeded::Created),
        // Another process may have created it between the look-up and the insertion.
        Err(ChangeError::Invalid(_)) if is_present(store).await? => Ok(Seeded::Present),
        Err(error) => Err(error),
    }
}

async fn is_present(store: &AppStore) -> Result<bool, StoreError> {
    let slug = Slug::parse(SLUG).expect("the constant is a slug");
    Ok(store.find(&slug).await?.is_some() || store.id_by_key(KEY).await?.is_some())
}

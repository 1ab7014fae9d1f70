//! The app `test-app`, which is created for development only, because its key and secret are public: they
//! come from one of the two articles whose examples Herald runs unchanged.

use serde_json::json;

use super::{
    Slug,
    audit::ChangedBy,
    change::{self, ChangeError},
    fields::AppFields,
    store::AppStore,
};

/// The slug of the seeded app.
pub const SLUG: &str = "test-app";

/// The result of seeding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seeded {
    /// The app was missing and was created.
    Created,
    /// The app existed and was left unchanged.
    Present,
}

/// Creates `test-app` if it is missing.
///
/// # Errors
/// [`ChangeError::Invalid`] if another app has its name, [`ChangeError::Store`].
pub async fn seed(store: &AppStore) -> Result<Seeded, ChangeError> {
    let slug = Slug::parse(SLUG).expect("the constant is a slug");
    if store.find(&slug).await?.is_some() {
        return Ok(Seeded::Present);
    }
    let app = json!({
        "name": "Test App",
        "slug": SLUG,
        "key": "test-app-fake-key",
        "secret": "test-app-fake-secret",
        "client_events": "all",
    });
    let fields = app.as_object().map(AppFields::read).unwrap_or_default();
    match change::create(store, &ChangedBy::CLI, fields).await {
        Ok(_) => Ok(Seeded::Created),
        // Another process may have created it between the look-up and the insertion.
        Err(ChangeError::Invalid(_)) if store.find(&slug).await?.is_some() => Ok(Seeded::Present),
        Err(error) => Err(error),
    }
}

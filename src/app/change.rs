//! Creates, changes and deletes apps in the database, with every rule applied.
//!
//! The registry does this for the server, and the command line does it directly. No lock covers both,
//! so the database's unique indexes and transactions decide which of two simultaneous writes succeeds.

use super::{
    App, AppId, Slug,
    audit::ChangedBy,
    fields::{AppFields, AppValues, Draft, Faults, TAKEN},
    key_pair::{NewPair, Overlap, Pair},
    store::{AppStore, StoreError},
};

/// The reason why a change did not happen.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// There is no such app.
    #[error("there is no such app")]
    NotFound,
    /// The party is a web application, and its key and secret are not, or no longer, a pair of the app.
    #[error("the key and secret are not those of the app")]
    NotPermitted,
    /// The party is a web application, and its key and secret are by now the previous pair of the app.
    #[error("the key and secret are the previous ones of the app")]
    PreviousPair,
    /// The requested values are not valid; nothing was written.
    #[error("{0}")]
    Invalid(Faults),
    /// The database did not make the change, or did not confirm it.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for ChangeError {
    fn from(error: StoreError) -> Self {
        match error {
            // Another writer took the value after the look-up: the fault is the same as if the
            // look-up had found it.
            StoreError::Taken(field) => {
                let mut faults = Faults::default();
                faults.add(field.as_str(), TAKEN);
                Self::Invalid(faults)
            }
            other => Self::Store(other),
        }
    }
}

/// Creates an app.
///
/// # Errors
/// [`ChangeError::Invalid`] with all faults at once, [`ChangeError::Store`].
pub async fn create(
    store: &AppStore,
    by: &ChangedBy,
    fields: AppFields,
) -> Result<App, ChangeError> {
    let values = settle(store, Draft::of_new(fields), None).await?;
    Ok(store.insert(by, &values).await?)
}

/// Changes the given fields of an app, and returns the app as it is now.
///
/// # Errors
/// [`ChangeError::NotFound`], [`ChangeError::NotPermitted`], [`ChangeError::PreviousPair`],
/// [`ChangeError::Invalid`] with all faults at once, [`ChangeError::Store`].
pub async fn update(
    store: &AppStore,
    by: &ChangedBy,
    slug: &Slug,
    fields: AppFields,
) -> Result<App, ChangeError> {
    let app = find(store, by, slug).await?;
    let values = settle(store, Draft::of_change(fields, &app), Some(&app)).await?;
    if values.are_those_of(&app) {
        return Ok(app);
    }
    match store.update(by, &app, &values).await? {
        Some(app) => Ok(app),
        None => Err(overtaken(store, by, slug).await),
    }
}

/// Gives an app a new random key pair, and keeps the present one valid until the overlap has
/// passed.
///
/// # Errors
/// [`ChangeError::NotFound`], [`ChangeError::NotPermitted`], [`ChangeError::PreviousPair`],
/// [`ChangeError::Store`].
pub async fn rotate(
    store: &AppStore,
    by: &ChangedBy,
    slug: &Slug,
    overlap: Overlap,
) -> Result<App, ChangeError> {
    let app = find(store, by, slug).await?;
    match store.rotate(by, &app, &NewPair::random(), overlap).await? {
        Some(app) => Ok(app),
        None => Err(overtaken(store, by, slug).await),
    }
}

/// Deletes an app.
///
/// # Errors
/// [`ChangeError::NotFound`], [`ChangeError::Store`].
pub async fn delete(store: &AppStore, by: &ChangedBy, slug: &Slug) -> Result<AppId, ChangeError> {
    store.delete(by, slug).await?.ok_or(ChangeError::NotFound)
}

/// Finds an app that this party may change. The party was authenticated by a snapshot, which may be older than
/// the row: the holder of a pair that has ended since must neither change the app nor see its new secret.
async fn find(store: &AppStore, by: &ChangedBy, slug: &Slug) -> Result<App, ChangeError> {
    let app = store.find(slug).await?.ok_or(ChangeError::NotFound)?;
    match by.pair_of(&app) {
        Some(Pair::Current) => Ok(app),
        Some(Pair::Previous) => Err(ChangeError::PreviousPair),
        None => Err(ChangeError::NotPermitted),
    }
}

/// The reason why the store wrote nothing to an app that was found just before: another writer has deleted it,
/// or has ended the pair of this party.
async fn overtaken(store: &AppStore, by: &ChangedBy, slug: &Slug) -> ChangeError {
    find(store, by, slug).await.err().unwrap_or(ChangeError::NotFound)
}

/// Adds the faults that only the database can find, even to a draft that already has others.
async fn settle(
    store: &AppStore,
    mut draft: Draft,
    own: Option<&App>,
) -> Result<AppValues, ChangeError> {
    let own_id = own.map(|own| own.id);
    let is_foreign = |holder: Option<AppId>| holder.is_some() && holder != own_id;
    if let Some(name) = &draft.name
        && is_foreign(store.id_by_name(name).await?)
    {
        draft.faults.add("name", TAKEN);
    }
    if let Some(slug) = &draft.slug
        && is_foreign(store.id_by_slug(slug).await?)
    {
        draft.faults.add("slug", TAKEN);
    }
    // The app's own previous key is taken, too.
    let is_new = own.is_none_or(|own| own.key != draft.key);
    if is_new && store.id_by_key(&draft.key).await?.is_some() {
        draft.faults.add("key", TAKEN);
    }
    draft.finish().map_err(ChangeError::Invalid)
}

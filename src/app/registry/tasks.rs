//! The tasks that the registry does for a caller.

use super::*;

/// A task for the registry. The registry logs a [`ChangeError::Store`] before it answers with it.
pub struct RegistryTask<T>(Box<TaskWork<T>>);

type TaskWork<T> = dyn FnOnce(&AppRegistry) -> TaskOutcome<T> + Send;
type TaskOutcome<T> = ResponseActFuture<AppRegistry, Result<T, ChangeError>>;

impl<T> RegistryTask<T> {
    fn new(task: impl FnOnce(&AppRegistry) -> TaskOutcome<T> + Send + 'static) -> Self {
        Self(Box::new(task))
    }
}

impl<T: 'static> Message for RegistryTask<T> {
    type Result = Result<T, ChangeError>;
}

impl<T: Send + 'static> Handler<RegistryTask<T>> for AppRegistry {
    type Result = TaskOutcome<T>;

    fn handle(&mut self, task: RegistryTask<T>, _: &mut Self::Context) -> Self::Result {
        task.0(self)
    }
}

/// Lists all apps, oldest first, as the database has them.
pub fn list_apps() -> RegistryTask<Vec<App>> {
    RegistryTask::new(|registry| {
        let (store, directory) = (registry.store.clone(), registry.directory.clone());
        registry.read(async move {
            let mut apps = store.list().await?.apps;
            apps.iter_mut().for_each(|app| share_uses(&directory, app));
            Ok(apps)
        })
    })
}

/// Reads the app with this slug, as the database has it.
pub fn show_app(slug: String) -> RegistryTask<App> {
    RegistryTask::new(move |registry| {
        let (store, directory) = (registry.store.clone(), registry.directory.clone());
        registry.read(async move {
            let mut app = store.find(&parse_slug(&slug)?).await?.ok_or(ChangeError::NotFound)?;
            share_uses(&directory, &mut app);
            Ok(app)
        })
    })
}

/// Creates an app. `by` is the caller who creates it, for the audit trail.
pub fn create_app(by: ChangedBy, fields: AppFields) -> RegistryTask<App> {
    RegistryTask::new(move |registry| {
        let store = registry.store.clone();
        let create = async move { change::create(&store, &by, fields).await };
        registry.write(create, |registry, app| registry.replace(app.id, Some(app)))
    })
}

/// Changes the given fields of the app with this slug.
pub fn update_app(by: ChangedBy, slug: String, fields: AppFields) -> RegistryTask<App> {
    RegistryTask::new(move |registry| {
        let store = registry.store.clone();
        let update = async move { change::update(&store, &by, &parse_slug(&slug)?, fields).await };
        registry.write_sharing(update, |registry, app| {
            // The row is also shown when nothing changed now: the row may be newer than the
            // snapshot.
            let known = registry.directory.load();
            if !known.by_id(app.id).is_some_and(|known| is_same(known, app)) {
                registry.replace(app.id, Some(app));
            }
        })
    })
}

/// Gives the app with this slug a new key pair. The present pair stays valid for the overlap.
pub fn rotate_app(by: ChangedBy, slug: String, overlap: Overlap) -> RegistryTask<App> {
    RegistryTask::new(move |registry| {
        let store = registry.store.clone();
        let rotate = async move { change::rotate(&store, &by, &parse_slug(&slug)?, overlap).await };
        registry.write_sharing(rotate, |registry, app| registry.replace(app.id, Some(app)))
    })
}

/// Deletes the app with this slug.
pub fn delete_app(by: ChangedBy, slug: String) -> RegistryTask<AppId> {
    RegistryTask::new(move |registry| {
        let store = registry.store.clone();
        let delete = async move { change::delete(&store, &by, &parse_slug(&slug)?).await };
        registry.write(delete, |registry, id| registry.replace(*id, None))
    })
}

/// Reads a page of the audit trail, newest entry first.
pub fn read_audit(page: AuditPage) -> RegistryTask<Vec<AuditEntry>> {
    RegistryTask::new(move |registry| {
        let store = registry.store.clone();
        registry.read(async move { Ok(store.audit(&page).await?) })
    })
}

//! The apps in the database.

use chrono::{DateTime, Utc};
use herald_entity::{apps, prelude::Apps as Table};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, DatabaseTransaction, DbErr, EntityTrait, QueryFilter,
    QueryOrder, QuerySelect, Set, UpdateMany,
    sea_query::{Expr, ExprTrait},
};
use secrecy::ExposeSecret;

use super::{
    AppStore, StoreError, UniqueField, now,
    rows::{UnreadableRow, changed_columns, column, read, stored_secret, to_column},
    trail::Made,
};
use crate::app::{
    App, AppId, Slug,
    audit::{Action, Actor, ChangedBy},
    fields::AppValues,
    key_pair::{NewPair, Overlap, PairUse},
};

/// The most times of last uses that one transaction writes.
const USES_PER_TRANSACTION: usize = 100;

/// The app of a row that a transaction has just written. If somebody else has made the row invalid, nothing is
/// written.
fn written(row: apps::Model) -> Result<App, StoreError> {
    read(row).map_err(|row| StoreError::Unavailable(format!("its {} is not valid", row.column)))
}

/// All apps of the database.
#[derive(Debug, Default)]
pub struct AppListing {
    /// The apps, oldest first.
    pub apps: Vec<App>,
    /// Rows that are not valid apps, because they were written by hand. They are not served.
    pub unreadable: Vec<UnreadableRow>,
    /// Whether the table still holds a previous pair whose overlap has passed.
    pub has_ended_pairs: bool,
}

impl AppStore {
    /// Lists all apps.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn list(&self) -> Result<AppListing, StoreError> {
        let rows = Table::find().order_by_asc(apps::Column::Id).all(&self.db);
        let mut listing = AppListing::default();
        for row in self.query(rows).await? {
            listing.has_ended_pairs |= row.previous_key_expires_at.is_some_and(|at| at <= now());
            match read(row) {
                Ok(app) => listing.apps.push(app),
                Err(unreadable) => listing.unreadable.push(unreadable),
            }
        }
        Ok(listing)
    }

    /// Finds an app; an invalid row counts as absent.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn find(&self, slug: &Slug) -> Result<Option<App>, StoreError> {
        let row = Table::find().filter(apps::Column::Slug.eq(slug.as_str())).one(&self.db);
        Ok(self.query(row).await?.and_then(|row| read(row).ok()))
    }

    /// Finds the app that has this name.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn id_by_name(&self, name: &str) -> Result<Option<AppId>, StoreError> {
        self.id_where(apps::Column::Name.eq(name)).await
    }

    /// Finds the app that has this slug.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn id_by_slug(&self, slug: &Slug) -> Result<Option<AppId>, StoreError> {
        self.id_where(apps::Column::Slug.eq(slug.as_str())).await
    }

    /// Finds the app that has this key, as its current or its previous one.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn id_by_key(&self, key: &str) -> Result<Option<AppId>, StoreError> {
        let is_previous =
            apps::Column::PreviousKey.eq(key).and(apps::Column::PreviousKeyExpiresAt.gt(now()));
        self.id_where(apps::Column::Key.eq(key).or(is_previous)).await
    }

    async fn id_where(
        &self,
        condition: sea_orm::sea_query::SimpleExpr,
    ) -> Result<Option<AppId>, StoreError> {
        let id = Table::find()
            .select_only()
            .column(apps::Column::Id)
            .filter(condition)
            .into_tuple::<i32>()
            .one(&self.db);
        Ok(self.query(id).await?.map(AppId))
    }

    /// Adds an app, and the entry of the audit trail.
    ///
    /// # Errors
    /// [`StoreError::Taken`], [`StoreError::Unavailable`].
    pub async fn insert(&self, by: &ChangedBy, values: &AppValues) -> Result<App, StoreError> {
        let now = now();
        let mut row = apps::ActiveModel {
            name: Set(values.name.clone()),
            slug: Set(values.slug.to_string()),
            key: Set(values.key.clone()),
            secret: Set(stored_secret(&values.secret)),
            inserted_at: Set(now),
            updated_at: Set(now),
            ..Default::default()
        };
        for (name, stored) in values.settings.stored() {
            row.set(column(name), to_column(stored));
        }
        let insert = async |transaction: &DatabaseTransaction| {
            let row = row.insert(transaction).await?;
            claim_key(transaction, &values.key).await?;
            let (app, slug) = (row.id, &values.slug);
            let made = Made { by, at: now, action: Action::Create, app, slug };
            made.note(transaction, &values.set_by_creation()).await?;
            written(row)
        };
        self.write(insert).await
    }

    /// Changes `current` to `values`, writing only the columns that differ, and adds the entry of
    /// the audit trail; `None` if the app no longer exists, or if a web application makes the change
    /// and the app no longer has the pair of `current`.
    ///
    /// # Errors
    /// [`StoreError::Taken`], [`StoreError::Unavailable`].
    pub async fn update(
        &self,
        by: &ChangedBy,
        current: &App,
        values: &AppValues,
    ) -> Result<Option<App>, StoreError> {
        let now = now();
        let row = changed_columns(current, values, now);
        let update = async |transaction: &DatabaseTransaction| {
            let update = Table::update(row).validate()?.filter(has_pair_for(by, current));
            let row = match update.exec(transaction).await {
                Ok(row) => row,
                Err(DbErr::RecordNotUpdated | DbErr::RecordNotFound(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            if values.key != current.key {
                claim_key(transaction, &values.key).await?;
            }
            let app = written(row)?;
            // Another process may have renamed the app since it was read, so the entry has the slug of the row.
            let made = Made { by, at: now, action: Action::Update, app: app.id.0, slug: &app.slug };
            made.note(transaction, &values.differences(current)).await?;
            Ok(Some(app))
        };
        self.write(update).await
    }

    /// Gives an app a new key pair. The pair that it has becomes the previous one until the overlap
    /// has passed; the pair that was the previous one ends. Adds the entry of the audit trail. `None`
    /// if the app no longer exists, or if a web application rotates and the app no longer has the pair
    /// of `current`.
    ///
    /// One statement reads and writes the pair, so that of two rotations at the same time the later
    /// one keeps the pair that the earlier one made.
    ///
    /// # Errors
    /// [`StoreError::Taken`], [`StoreError::Unavailable`].
    pub async fn rotate(
        &self,
        by: &ChangedBy,
        current: &App,
        pair: &NewPair,
        overlap: Overlap,
    ) -> Result<Option<App>, StoreError> {
        use apps::Column::{
            Id, Key, KeyLastUsedAt, PreviousKey, PreviousKeyExpiresAt, PreviousKeyLastUsedAt,
            PreviousSecret, Secret, UpdatedAt,
        };
        let (now, id) = (now(), current.id);
        let kept =
            [(PreviousKey, Key), (PreviousSecret, Secret), (PreviousKeyLastUsedAt, KeyLastUsedAt)];
        let no_time = || Expr::value(Option::<DateTime<Utc>>::None);
        let mut rotation = match overlap.end(now) {
            Some(end) => kept
                .into_iter()
                .fold(Table::update_many(), |update, (to, from)| {
                    update.col_expr(to, Expr::col(from))
                })
                .col_expr(PreviousKeyExpiresAt, Expr::value(end)),
            None => without_previous(Table::update_many()),
        };
        rotation = rotation
            .col_expr(Key, Expr::value(pair.key.clone()))
            .col_expr(Secret, Expr::value(pair.secret.expose_secret().to_owned()))
            .col_expr(KeyLastUsedAt, no_time())
            .col_expr(UpdatedAt, Expr::value(now))
            .filter(Id.eq(id.0))
            .filter(has_pair_for(by, current));
        let rotate = async |transaction: &DatabaseTransaction| {
            if rotation.exec(transaction).await?.rows_affected == 0 {
                return Ok(None);
            }
            claim_key(transaction, &pair.key).await?;
            let Some(row) = Table::find_by_id(id.0).one(transaction).await? else {
                return Ok(None);
            };
            let app = written(row)?;
            let made = Made { by, at: now, action: Action::Rotate, app: id.0, slug: &app.slug };
            made.note(transaction, &["key", "secret"]).await?;
            Ok(Some(app))
        };
        self.write(rotate).await
    }

    /// Removes all previous pairs whose overlap has passed.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn forget_ended_pairs(&self) -> Result<(), StoreError> {
        let ended = apps::Column::PreviousKeyExpiresAt.lte(now());
        let forget = without_previous(Table::update_many()).filter(ended);
        self.write(async |transaction| Ok(forget.exec(transaction).await?)).await.map(drop)
    }

    /// Writes the times at which pairs were last used. Of two times the later one is kept, because several servers
    /// may share one database. A pair that was rotated meanwhile is found as the previous one.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; then some of the times may have been written.
    pub async fn write_uses(&self, uses: &[PairUse]) -> Result<(), StoreError> {
        // Servers lock the rows in the same order, because otherwise two of them could wait for each other.
        let mut uses: Vec<_> = uses.iter().collect();
        uses.sort_unstable_by_key(|pair_use| pair_use.app);
        for uses in uses.chunks(USES_PER_TRANSACTION) {
            self.write(async |transaction: &DatabaseTransaction| {
                for pair_use in uses {
                    for update in updates_of(pair_use) {
                        update.exec(transaction).await?;
                    }
                }
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Removes an app, or an invalid row, and adds the entry of the audit trail; `None` if there is
    /// neither.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn delete(&self, by: &ChangedBy, slug: &Slug) -> Result<Option<AppId>, StoreError> {
        let Some(id) = self.id_by_slug(slug).await? else { return Ok(None) };
        // Another process may have renamed the app since.
        let row = Table::delete_many()
            .filter(apps::Column::Id.eq(id.0))
            .filter(apps::Column::Slug.eq(slug.as_str()));
        let delete = async |transaction: &DatabaseTransaction| {
            let deleted = row.exec(transaction).await?;
            if deleted.rows_affected == 0 {
                return Ok(None);
            }
            let made = Made { by, at: now(), action: Action::Delete, app: id.0, slug };
            made.note(transaction, &[]).await?;
            Ok(Some(id))
        };
        self.write(delete).await
    }
}

/// The condition under which a party may still change an app that it has read: a web application may as long as
/// the app has the pair with which the application was judged, because another process may have rotated it since.
fn has_pair_for(by: &ChangedBy, app: &App) -> Condition {
    let pair = [
        apps::Column::Key.eq(app.key.as_str()),
        apps::Column::Secret.eq(app.secret.expose_secret()),
    ];
    match by.actor {
        Actor::App(_) => pair.into_iter().fold(Condition::all(), Condition::add),
        Actor::Admin | Actor::Cli => Condition::all(),
    }
}

/// Checks that no app has this new key of an app as its previous one. The unique index has excluded
/// all current keys by now, so no other transaction can make the key a previous one.
async fn claim_key(transaction: &DatabaseTransaction, key: &str) -> Result<(), StoreError> {
    let is_previous = apps::Column::PreviousKey.eq(key);
    // A pair that has ended no longer holds its key, even if it is not removed yet.
    let ended = is_previous.clone().and(apps::Column::PreviousKeyExpiresAt.lte(now()));
    without_previous(Table::update_many()).filter(ended).exec(transaction).await?;
    match Table::find().filter(is_previous).one(transaction).await? {
        Some(_) => Err(StoreError::Taken(UniqueField::Key)),
        None => Ok(()),
    }
}

fn without_previous(update: UpdateMany<Table>) -> UpdateMany<Table> {
    use apps::Column::{PreviousKey, PreviousKeyExpiresAt, PreviousKeyLastUsedAt, PreviousSecret};
    // PostgreSQL accepts only a null of the column's type.
    let texts = [PreviousKey, PreviousSecret];
    let times = [PreviousKeyExpiresAt, PreviousKeyLastUsedAt];
    let update = texts.into_iter().fold(update, |update, column| {
        update.col_expr(column, Expr::value(Option::<String>::None))
    });
    times.into_iter().fold(update, |update, column| {
        update.col_expr(column, Expr::value(Option::<DateTime<Utc>>::None))
    })
}

/// The statements that write a use to the pair, which may be the app's current or its previous one by now.
fn updates_of(pair_use: &PairUse) -> [UpdateMany<Table>; 2] {
    use apps::Column::{
        Id, Key, KeyLastUsedAt, PreviousKey, PreviousKeyLastUsedAt, PreviousSecret, Secret,
    };
    let PairUse { app, key, secret, at, .. } = pair_use;
    let places =
        [(Key, Secret, KeyLastUsedAt), (PreviousKey, PreviousSecret, PreviousKeyLastUsedAt)];
    places.map(|(its_key, its_secret, used_at)| {
        Table::update_many()
            .col_expr(used_at, Expr::value(*at))
            .filter(Id.eq(app.0))
            .filter(its_key.eq(key.as_str()))
            .filter(its_secret.eq(secret.expose_secret()))
            .filter(used_at.is_null().or(used_at.lt(*at)))
    })
}

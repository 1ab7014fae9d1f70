//! The audit trail in the database.

use chrono::{DateTime, Utc};
use herald_entity::{audit as trail, prelude::Audit as Trail};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect, Set,
};

use super::{AppStore, StoreError};
use crate::app::{
    Slug,
    audit::{Action, AuditEntry, AuditPage, ChangedBy, Of},
};

impl AppStore {
    /// Reads a page of the audit trail, newest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn audit(&self, page: &AuditPage) -> Result<Vec<AuditEntry>, StoreError> {
        let mut rows = Trail::find().order_by_desc(trail::Column::Id).limit(page.limit);
        rows = match &page.of {
            Of::All => rows,
            Of::App(id) => rows.filter(trail::Column::AppId.eq(id.0)),
            Of::Slug(slug) => rows.filter(trail::Column::App.eq(slug.as_str())),
        };
        if let Some(before) = page.before {
            rows = rows.filter(trail::Column::Id.lt(before));
        }
        let rows = self.query(rows.all(&self.db)).await?;
        Ok(rows.into_iter().map(entry).collect())
    }

    /// Removes the entries of the audit trail from before a time.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn forget_audit(&self, before: DateTime<Utc>) -> Result<(), StoreError> {
        let forget = Trail::delete_many().filter(trail::Column::At.lt(before));
        self.write(async |transaction| Ok(forget.exec(transaction).await?)).await.map(drop)
    }
}

/// A change that a transaction has made.
pub(super) struct Made<'a> {
    pub(super) by: &'a ChangedBy,
    pub(super) at: DateTime<Utc>,
    pub(super) action: Action,
    /// The app's id.
    pub(super) app: i32,
    /// The slug of the app after the change.
    pub(super) slug: &'a Slug,
}

impl Made<'_> {
    /// Adds the entry of the audit trail to the transaction of the change.
    pub(super) async fn note(
        self,
        transaction: &DatabaseTransaction,
        fields: &[&'static str],
    ) -> Result<(), StoreError> {
        let row = trail::ActiveModel {
            at: Set(self.at),
            actor: Set(self.by.actor.as_str().to_owned()),
            address: Set(self.by.address.map(|address| address.to_string())),
            action: Set(self.action.as_str().to_owned()),
            app_id: Set(self.app),
            app: Set(self.slug.to_string()),
            fields: Set(serde_json::json!(fields).to_string()),
            ..Default::default()
        };
        row.insert(transaction).await?;
        Ok(())
    }
}

/// Reads a row of the audit trail. If its list of fields is not valid, it is left out.
fn entry(row: trail::Model) -> AuditEntry {
    let trail::Model { id, at, actor, address, action, app, fields, .. } = row;
    let fields = serde_json::from_str(&fields).unwrap_or_default();
    AuditEntry { id, at, actor, address, action, app, fields }
}

//! Decides whether a join may begin, and whether it may stay after its app was changed.

use std::sync::Arc;

use crate::app::{
    App, AppId, Apps, Slug,
    refusals::{OriginSetting, Refusals},
};

/// The grounds of a join. `C` is the credential of the protocol's clients.
#[derive(Debug, Clone)]
pub struct Footing<C> {
    /// The app of the topic.
    pub app: AppId,
    /// The credential of the join, if it has one.
    pub credential: Option<C>,
    /// Whether the join would have failed without that credential.
    pub needs_credential: bool,
}

impl<C> Footing<C> {
    /// The part of the grounds that remains after a review.
    pub fn after(self, standing: Standing) -> Self {
        match standing {
            Standing::Whole => self,
            Standing::WithoutCredential => Self { credential: None, ..self },
        }
    }
}

/// The part of a join's grounds that is still valid after its app changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// All grounds are still valid.
    Whole,
    /// The join may stay, but its credential no longer counts, because its key is no longer valid.
    WithoutCredential,
}

/// The app does not accept the origin of the client's page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginNotAllowed;

/// Judges joins by the state of their apps.
#[derive(Debug)]
pub struct Judge {
    /// The log of refusals.
    pub refusals: Arc<Refusals>,
}

impl Judge {
    /// Checks that an app accepts pages of this origin. A client that is not a browser has no origin.
    ///
    /// # Errors
    /// [`OriginNotAllowed`], which has been logged.
    pub fn check_origin(&self, origin: Option<&str>, app: &App) -> Result<(), OriginNotAllowed> {
        if app.settings.allowed_origins.allow(origin) {
            return Ok(());
        }
        let setting = OriginSetting::AllowedOrigins(&app.slug);
        self.refusals.note_origin(origin.unwrap_or_default(), setting);
        Err(OriginNotAllowed)
    }

    /// The part of a join's grounds that the apps as of now still support; `None` if the join must
    /// end. `slug` is the app's slug in the topic, and `is_valid` checks the credential.
    pub fn review<C>(
        &self,
        origin: Option<&str>,
        slug: &Slug,
        footing: &Footing<C>,
        apps: &Apps,
        is_valid: impl FnOnce(&C, &App) -> bool,
    ) -> Option<Standing> {
        let app = apps.by_id(footing.app)?;
        if !app.settings.active || app.slug != *slug || self.check_origin(origin, app).is_err() {
            return None;
        }
        match &footing.credential {
            Some(credential) if !is_valid(credential, app) => {
                (!footing.needs_credential).then_some(Standing::WithoutCredential)
            }
            _ => Some(Standing::Whole),
        }
    }
}

//! An app as the API answers it.

use actix_web::{HttpMessage, HttpRequest};
use secrecy::ExposeSecret;
use serde::Serialize;

use super::rfc3339;
use crate::{
    app::{App, settings::AppSettings},
    http::console::session::Session,
};

/// An app as it is answered: the only type that writes a secret out.
#[derive(Debug, Serialize)]
pub struct AppView {
    id: i32,
    name: String,
    slug: String,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    key_last_used_at: Option<String>,
    previous_key: Option<String>,
    previous_key_expires_at: Option<String>,
    previous_key_last_used_at: Option<String>,
    #[serde(flatten)]
    settings: AppSettings,
    inserted_at: String,
    updated_at: String,
}

impl From<&App> for AppView {
    fn from(app: &App) -> Self {
        let previous = app.previous.as_ref();
        Self {
            id: app.id.0,
            name: app.name.clone(),
            slug: app.slug.to_string(),
            key: app.key.clone(),
            secret: Some(app.secret.expose_secret().to_owned()),
            key_last_used_at: app.last_use.at().map(rfc3339),
            previous_key: previous.map(|pair| pair.key.clone()),
            previous_key_expires_at: previous.map(|pair| rfc3339(pair.expires_at)),
            previous_key_last_used_at: previous.and_then(|pair| pair.last_use.at()).map(rfc3339),
            settings: app.settings.clone(),
            inserted_at: rfc3339(app.inserted_at),
            updated_at: rfc3339(app.updated_at),
        }
    }
}

impl AppView {
    /// The app without its secret for the console, which shows a secret only on request.
    pub(in crate::http) fn guarded_for(self, request: &HttpRequest) -> Self {
        let is_of_console = request.extensions().contains::<Session>();
        Self { secret: self.secret.filter(|_| !is_of_console), ..self }
    }

    /// The app without its secret.
    pub(in crate::http) fn without_secret(app: &App) -> Self {
        Self { secret: None, ..Self::from(app) }
    }
}

//! The secrets of all apps, for a look-up before the app of a request is known.

use std::collections::HashSet;

use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::App;

/// The secrets of active apps, as salted digests.
///
/// A caller cannot observe by the time of a look-up how close a wrong secret is to a right one: the look-up
/// compares digests, and only the server knows their salt.
#[derive(Debug)]
pub(super) struct SecretDigests {
    salt: Uuid,
    digests: HashSet<[u8; 32]>,
}

impl Default for SecretDigests {
    fn default() -> Self {
        Self { salt: Uuid::new_v4(), digests: HashSet::new() }
    }
}

impl SecretDigests {
    /// Adds an app's secrets, unless the app is inactive. An empty secret is left out.
    pub(super) fn add(&mut self, app: &App) {
        if !app.settings.active {
            return;
        }
        let previous = app.previous.as_ref().map(|pair| &pair.secret);
        for secret in [Some(&app.secret), previous].into_iter().flatten() {
            let secret = secret.expose_secret();
            if !secret.is_empty() {
                self.digests.insert(self.digest(secret.as_bytes()));
            }
        }
    }

    /// Returns whether an active app has this secret.
    pub(super) fn contain(&self, given: &[u8]) -> bool {
        self.digests.contains(&self.digest(given))
    }

    fn digest(&self, secret: &[u8]) -> [u8; 32] {
        Sha256::new().chain_update(self.salt).chain_update(secret).finalize().into()
    }
}

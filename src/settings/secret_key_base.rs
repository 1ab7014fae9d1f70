//! The secret key base, which a server outside production creates once and keeps in a file.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::{Environment, SecretSettings, SettingsError, layers::Layers};

const KEY: &str = "secrets.secret_key_base";
const FILE: &str = "secrets.secret_key_base_file";

impl SecretSettings {
    /// Reads the key from its file or generates it, unless a setting gives it.
    ///
    /// # Errors
    /// The file cannot be used; or, in production, there is neither a key nor a file.
    pub(super) fn find_key_base(&mut self, layers: &mut Layers) -> Result<(), SettingsError> {
        if !self.secret_key_base.expose_secret().is_empty() {
            return Ok(());
        }
        let is_production = layers.env == Environment::Production;
        let (key, origin) = match &self.secret_key_base_file {
            None if is_production => {
                let how = "SECRET_KEY_BASE=<32 bytes or more>, `openssl rand -hex 32` makes one";
                return Err(layers.fault(KEY, format!("must be set in production: {how}")));
            }
            None => (generate(), "generated for this start".to_owned()),
            Some(file) => match read(Path::new(file)) {
                Ok(key) => (key, format!("the file {file}")),
                Err(e) if e.kind() == io::ErrorKind::NotFound && !is_production => {
                    self.is_unmade = true;
                    (generate(), format!("the file {file}, which the first start creates"))
                }
                Err(e) => return Err(layers.fault(FILE, unusable(file, &e))),
            },
        };
        layers.found_secret(KEY, &origin);
        self.secret_key_base = key;
        Ok(())
    }

    /// Writes a generated key to the file that was missing.
    ///
    /// # Errors
    /// The file cannot be created.
    pub(super) fn keep_key_base(&mut self) -> Result<(), SettingsError> {
        if let Some(file) = self.secret_key_base_file.as_ref().filter(|_| self.is_unmade) {
            let kept = keep(&self.secret_key_base, Path::new(file));
            let fault = |e| SettingsError::new(FILE, unusable(file, &e));
            self.secret_key_base = kept.map_err(fault)?;
        }
        Ok(())
    }
}

fn unusable(file: &str, error: &io::Error) -> String {
    format!("{file:?} cannot be used: {error}")
}

/// A new random key: 64 hexadecimal digits.
fn generate() -> SecretString {
    SecretString::from(format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()))
}

/// Reads the key that `path` holds.
fn read(path: &Path) -> io::Result<SecretString> {
    let text = fs::read_to_string(path)?;
    match text.trim() {
        "" => Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty")),
        key => Ok(SecretString::from(key)),
    }
}

/// Writes `key` to a file at `path` that only this user can read. Returns the key that the file holds
/// afterwards.
///
/// Two processes that start at the same time end up with one key: the file appears as a whole or not
/// at all, and the second process takes the key of the first.
fn keep(key: &SecretString, path: &Path) -> io::Result<SecretString> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        fs::create_dir_all(folder)?;
    }
    let draft = path.with_extension(Uuid::new_v4().simple().to_string());
    let kept = write_private(&draft, key).and_then(|()| match fs::hard_link(&draft, path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => read(path),
    });
    // The draft is no longer needed; if it cannot be removed, it does no harm.
    fs::remove_file(&draft).ok();
    kept
}

fn write_private(path: &Path, key: &SecretString) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    writeln!(file, "{}", key.expose_secret())?;
    file.sync_all()
}

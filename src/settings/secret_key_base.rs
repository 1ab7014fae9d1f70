//! The secret key base that a server makes for itself once and keeps in a file, outside production.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

/// A new random key: 64 hexadecimal digits.
pub(super) fn generate() -> SecretString {
    SecretString::from(format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()))
}

/// Reads the key that `path` holds.
pub(super) fn read(path: &Path) -> io::Result<SecretString> {
    let text = fs::read_to_string(path)?;
    match text.trim() {
        "" => Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty")),
        key => Ok(SecretString::from(key)),
    }
}

/// Puts `key` into a file at `path` that only this user may read; answers the key that the file holds
/// then.
///
/// Two processes that start at once end up with one key: the file appears whole or not at all, and
/// the second process takes the key of the first.
pub(super) fn keep(key: &SecretString, path: &Path) -> io::Result<SecretString> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        fs::create_dir_all(folder)?;
    }
    let draft = path.with_extension(Uuid::new_v4().simple().to_string());
    let kept = write_private(&draft, key).and_then(|()| match fs::hard_link(&draft, path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => read(path),
    });
    // The draft has no further use, whether it became the key or not; a left-over harms nobody.
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

//! What stops the start.

/// A setting that cannot be honoured: which, where it was given, and what would be right.
///
/// It never holds the value of a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {fault}", setting, origin.as_ref().map(|o| format!(" (from {o})")).unwrap_or_default())]
pub struct SettingsError {
    setting: String,
    origin: Option<String>,
    fault: String,
}

impl SettingsError {
    pub(super) fn new(setting: impl Into<String>, fault: impl Into<String>) -> Self {
        Self { setting: setting.into(), origin: None, fault: fault.into() }
    }

    /// Adds where the value was given: a file or a variable. One without a value has no origin.
    pub(super) fn from(self, origin: Option<&str>) -> Self {
        // A variable that is its own setting's name need not be named twice.
        let origin = origin.filter(|origin| *origin != self.setting).map(String::from);
        Self { origin, ..self }
    }
}

//! The error of an invalid setting, with which the start fails.

/// A setting that cannot be honoured: its name, the source of its value, and the valid values.
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

    /// Adds the file or the variable that gave the value; `None` if there is no value.
    pub(super) fn from(self, origin: Option<&str>) -> Self {
        // An error of a variable itself names it once.
        let origin = origin.filter(|origin| *origin != self.setting).map(String::from);
        Self { origin, ..self }
    }
}

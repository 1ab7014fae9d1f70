//! Takes values out of the joined layers: by name, type and range, with one wording of the faults.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use config::{Value, ValueKind};
use secrecy::SecretString;

use super::{SettingsError, layers};

/// What is shown instead of a secret.
const MASK: &str = "********";

/// One setting in effect, fit to be shown: secrets are masked.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// The setting, as `section.key`.
    pub key: &'static str,
    /// Its value; a mask where it is secret, an empty text where a secret is not set.
    pub value: serde_json::Value,
    /// The file or variable that gave it.
    pub origin: String,
}

/// Hands out each value once and remembers what it handed out.
pub(super) struct Reader {
    values: BTreeMap<String, Value>,
    effective: Vec<Effective>,
}

impl Reader {
    pub(super) fn new(values: BTreeMap<String, Value>) -> Self {
        Self { values, effective: Vec::new() }
    }

    pub(super) fn into_effective(self) -> Vec<Effective> {
        self.effective
    }

    /// A fault of `key`, with the origin of its value.
    pub(super) fn fault(&self, key: &'static str, fault: impl Into<String>) -> SettingsError {
        let origin = self.values.get(key).and_then(Value::origin);
        SettingsError::new(key, fault).from(origin)
    }

    /// A fault that quotes the value: never for a secret.
    pub(super) fn not(&self, key: &'static str, right: &str) -> SettingsError {
        let shown = self.values.get(key).map(shown).unwrap_or_default();
        let shown: String = shown.to_string().chars().take(80).collect();
        self.fault(key, format!("must be {right}, not {shown}"))
    }

    /// Whether nobody chose `value` for `key`: it is the built-in one, and no other place gives it. A
    /// copy of `default.toml` in a folder of the operator's own chooses nothing by what it repeats.
    pub(super) fn comes_from_default(&self, key: &str, value: &str) -> bool {
        let origin = self.values.get(key).and_then(Value::origin);
        origin.is_some_and(|origin| origin.ends_with("default.toml"))
            && layers::built_in_default(key).as_deref() == Some(value)
    }

    fn value(&self, key: &'static str) -> Result<&ValueKind, SettingsError> {
        let value = self.values.get(key).map(|value| &value.kind);
        value.ok_or_else(|| SettingsError::new(key, "is missing"))
    }

    fn note(&mut self, key: &'static str, value: serde_json::Value) {
        let origin = self.values.get(key).and_then(Value::origin).unwrap_or_default().to_owned();
        self.effective.push(Effective { key, value, origin });
    }

    /// Shows `value`, which is not secret, for a secret that was read.
    pub(super) fn show(&mut self, key: &'static str, value: &str) {
        if let Some(noted) = self.effective.iter_mut().find(|noted| noted.key == key) {
            noted.value = value.into();
        }
    }

    /// Masks a secret that came from elsewhere than the layers.
    pub(super) fn mask(&mut self, key: &'static str, origin: &str) {
        if let Some(noted) = self.effective.iter_mut().find(|noted| noted.key == key) {
            noted.value = MASK.into();
            noted.origin = origin.into();
        }
    }

    pub(super) fn text(&mut self, key: &'static str) -> Result<String, SettingsError> {
        let ValueKind::String(text) = self.value(key)? else {
            return Err(self.not(key, "a text"));
        };
        let text = text.clone();
        self.note(key, text.as_str().into());
        Ok(text)
    }

    /// A text that nobody may see; `None` where it is empty.
    pub(super) fn secret(
        &mut self,
        key: &'static str,
    ) -> Result<Option<SecretString>, SettingsError> {
        let ValueKind::String(text) = self.value(key)? else {
            return Err(self.fault(key, "must be a text, in quotes"));
        };
        let secret = (!text.is_empty()).then(|| SecretString::from(text.as_str()));
        self.note(key, if secret.is_some() { MASK.into() } else { "".into() });
        Ok(secret)
    }

    pub(super) fn flag(&mut self, key: &'static str) -> Result<bool, SettingsError> {
        let flag = match self.value(key)? {
            ValueKind::Boolean(flag) => Some(*flag),
            ValueKind::String(text) => text.parse().ok(),
            _ => None,
        };
        let flag = flag.ok_or_else(|| self.not(key, "true or false"))?;
        self.note(key, flag.into());
        Ok(flag)
    }

    pub(super) fn number<N: TryFrom<u64>>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<N, SettingsError> {
        let number = whole(self.value(key)?).filter(|number| range.contains(number));
        let found = number.and_then(|number| Some((number, N::try_from(number).ok()?)));
        let Some((number, found)) = found else {
            let right = format!("a whole number from {} to {}", range.start(), range.end());
            return Err(self.not(key, &right));
        };
        self.note(key, number.into());
        Ok(found)
    }

    /// A number, or `None` for this word.
    pub(super) fn number_or(
        &mut self,
        key: &'static str,
        word: &str,
    ) -> Result<Option<usize>, SettingsError> {
        if matches!(self.value(key)?, ValueKind::String(text) if text == word) {
            self.note(key, word.into());
            return Ok(None);
        }
        let number = whole(self.value(key)?).and_then(|n| usize::try_from(n).ok());
        let number = number.filter(|n| *n > 0);
        let right = format!("\"{word}\" or a whole number from 1");
        let number = number.ok_or_else(|| self.not(key, &right))?;
        self.note(key, number.into());
        Ok(Some(number))
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Result<Duration, SettingsError> {
        let duration = match self.value(key)? {
            ValueKind::String(text) => humantime_serde::re::humantime::parse_duration(text).ok(),
            _ => None,
        };
        let Some(duration) = duration.filter(|duration| range.contains(duration)) else {
            let spell = humantime_serde::re::humantime::format_duration;
            let (least, most) = (spell(*range.start()), spell(*range.end()));
            let right = format!("a duration such as \"5s\", from {least} to {most}");
            return Err(self.not(key, &right));
        };
        self.note(
            key,
            humantime_serde::re::humantime::format_duration(duration).to_string().into(),
        );
        Ok(duration)
    }

    /// A list of texts; one text is split at its commas.
    pub(super) fn list(&mut self, key: &'static str) -> Result<Vec<String>, SettingsError> {
        let list = texts(self.value(key)?).ok_or_else(|| self.not(key, "a list of texts"))?;
        self.note(key, list.clone().into());
        Ok(list)
    }

    /// A list of texts, or one flag as the text it is written as.
    pub(super) fn flag_or_list(&mut self, key: &'static str) -> Result<Vec<String>, SettingsError> {
        let ValueKind::Boolean(flag) = *self.value(key)? else { return self.list(key) };
        self.note(key, flag.into());
        Ok(vec![flag.to_string()])
    }
}

fn whole(value: &ValueKind) -> Option<u64> {
    match value {
        ValueKind::I64(number) => u64::try_from(*number).ok(),
        ValueKind::U64(number) => Some(*number),
        // Digits alone: `parse` would take a plus sign too.
        ValueKind::String(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
}

fn texts(value: &ValueKind) -> Option<Vec<String>> {
    match value {
        ValueKind::String(text) => Some(split(text)),
        ValueKind::Array(values) => values.iter().map(text_of).collect(),
        _ => None,
    }
}

fn split(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(String::from).collect()
}

fn text_of(value: &Value) -> Option<String> {
    match &value.kind {
        ValueKind::String(text) => Some(text.clone()),
        _ => None,
    }
}

/// A value as JSON, on one line whatever is in it.
fn shown(value: &Value) -> serde_json::Value {
    match &value.kind {
        ValueKind::Boolean(flag) => (*flag).into(),
        ValueKind::I64(number) => (*number).into(),
        ValueKind::U64(number) => (*number).into(),
        ValueKind::Float(number) => (*number).into(),
        ValueKind::Array(values) => values.iter().map(shown).collect(),
        ValueKind::String(text) => text.as_str().into(),
        _ => value.kind.to_string().into(),
    }
}

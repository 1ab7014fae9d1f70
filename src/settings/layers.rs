//! Joins the layers into one value for each setting, together with its origin.
//!
//! The `Environment` source of the config crate is not used, because it ignores the case of names and
//! gives all variables one origin, "the environment".

use std::{collections::BTreeMap, fs, io, path::Path};

use config::{Config, ConfigError, FileFormat, Format, Map, Value, ValueKind};
use serde::de::DeserializeOwned;

use super::{Environment, SettingsError, kinds};

const PREFIX: &str = "HERALD__";
const ENVIRONMENT: &str = "HERALD_ENV";
const DIR: &str = "HERALD_CONFIG_DIR";

/// The fault of a variable whose value is not text.
pub(super) const NOT_TEXT: &str = "must be UTF-8";

/// Second names of seven settings: those of the two articles that Herald follows, and the usual `REDIS_URL`. An empty
/// variable counts as unset, because compose files and hosting services pass on an unset variable as an empty one.
const NAMED: [(&str, &str); 7] = [
    ("PORT", "server.port"),
    ("DATABASE_URL", "database.url"),
    ("PUSHER_ADMIN_USERNAME", "admin.username"),
    ("PUSHER_ADMIN_PASSWORD", "admin.password"),
    ("GUARDIAN_SECRET", "secrets.guardian_secret"),
    ("SECRET_KEY_BASE", "secrets.secret_key_base"),
    ("REDIS_URL", "engine.redis_url"),
];

const DEFAULT: &str = include_str!("../../config/default.toml");

fn embedded(env: Environment) -> &'static str {
    match env {
        Environment::Development => include_str!("../../config/development.toml"),
        Environment::Test => include_str!("../../config/test.toml"),
        Environment::Production => include_str!("../../config/production.toml"),
    }
}

/// One setting in effect, as it may be shown: secrets are masked.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// The setting, as `section.key`.
    pub key: String,
    /// Its value: a mask if it is secret, an empty text if it is a secret that is not set.
    pub value: serde_json::Value,
    /// The file or variable that gave the value.
    pub origin: String,
}

/// Values by `section.key`; lists are values.
type LayerValues = BTreeMap<String, Value>;

/// All values in effect.
pub(super) struct Layers {
    pub(super) env: Environment,
    defaults: LayerValues,
    values: LayerValues,
    pub(super) effective: Vec<Effective>,
}

impl Layers {
    /// Reads and joins the layers. Every key of the result is one of `default.toml`.
    pub(super) fn collect(
        vars: impl Iterator<Item = (String, String)>,
        dir: Option<&Path>,
    ) -> Result<Self, SettingsError> {
        let vars: Vec<_> = vars.collect();
        let var = |name| vars.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        let env = parse_environment(var(ENVIRONMENT).unwrap_or("development"))?;
        let dir = match var(DIR).filter(|dir| !dir.is_empty()) {
            Some(dir) if !Path::new(dir).is_dir() => {
                return Err(SettingsError::new(
                    DIR,
                    format!("must be a folder, and {dir:?} is not one"),
                ));
            }
            own => own.map(Path::new).or(dir),
        };
        let defaults = parse("the built-in default.toml", DEFAULT)?;
        let mut layers = Self { env, values: defaults.clone(), defaults, effective: Vec::new() };
        layers.apply(read(dir, "default.toml")?.unwrap_or_default())?;
        let env_file = format!("{env}.toml");
        layers.apply(match read(dir, &env_file)? {
            Some(own) => own,
            None => parse(&format!("the built-in {env_file}"), embedded(env))?,
        })?;
        layers.apply(given_by(vars)?)?;
        Ok(layers)
    }

    fn apply(&mut self, layer: LayerValues) -> Result<(), SettingsError> {
        for (key, value) in layer {
            let Some(present) = self.values.get_mut(&key) else {
                let fault = "there is no such setting; default.toml lists them all";
                return Err(SettingsError::new(key, fault).from(value.origin()));
            };
            *present = value;
        }
        Ok(())
    }

    /// Reads the values in effect into `T`, and notes how to show them.
    ///
    /// # Errors
    /// The fault of the first setting that cannot be read.
    pub(super) fn read<T: DeserializeOwned>(&mut self) -> Result<T, SettingsError> {
        let mut config = Config::builder();
        for (key, given) in &self.values {
            let read = kinds::read(key, given.clone(), &self.defaults[key].kind);
            let (kind, value) = read.map_err(|fault| self.fault(key, fault))?;
            let origin = given.origin().unwrap_or_default().to_owned();
            config =
                config.set_override(key, Value::new(Some(&origin), kind)).expect("a dotted key");
            self.effective.push(Effective { key: key.clone(), value, origin });
        }
        config.build().and_then(Config::try_deserialize).map_err(|error| match error {
            ConfigError::At { error, key: Some(key), .. } => self.fault(&key, error.to_string()),
            other => SettingsError::new("settings", other.to_string()),
        })
    }

    /// A fault of `key`, with the origin of its value.
    pub(super) fn fault(&self, key: &str, fault: impl Into<String>) -> SettingsError {
        SettingsError::new(key, fault).from(self.values.get(key).and_then(Value::origin))
    }

    /// Returns whether the value of `key` is the built-in one, and no layer other than a `default.toml` gives it.
    /// An operator's copy of `default.toml` that repeats a default does not count as a choice.
    pub(super) fn is_default(&self, key: &str) -> bool {
        let (value, default) = (&self.values[key], &self.defaults[key]);
        value.origin().is_some_and(|origin| origin.ends_with("default.toml"))
            && value.kind == default.kind
    }

    /// Notes the origin of a secret that no layer gives.
    pub(super) fn found_secret(&mut self, key: &str, origin: &str) {
        for noted in self.effective.iter_mut().filter(|noted| noted.key == key) {
            noted.value = kinds::MASK.into();
            noted.origin = origin.to_owned();
        }
    }
}

fn parse(origin: &str, text: &str) -> Result<LayerValues, SettingsError> {
    // The further lines of the parser's message quote the file, which may hold a secret.
    let first_line = |error: String| error.lines().next().unwrap_or_default().to_owned();
    let parsed = FileFormat::Toml.parse(Some(&origin.to_owned()), text);
    parsed.map(flatten).map_err(|e| SettingsError::new(origin, first_line(e.to_string())))
}

/// `{"server": {"port": 4000}}` becomes `{"server.port": 4000}`.
fn flatten(table: Map<String, Value>) -> LayerValues {
    let mut values = LayerValues::new();
    for (key, value) in table {
        if let ValueKind::Table(inner) = value.kind {
            let inner = flatten(inner).into_iter();
            values.extend(inner.map(|(rest, value)| (format!("{key}.{rest}"), value)));
        } else {
            values.insert(key, value);
        }
    }
    values
}

/// Reads a file of the operator; `None` if there is none.
fn read(dir: Option<&Path>, file: &str) -> Result<Option<LayerValues>, SettingsError> {
    let Some(path) = dir.map(|dir| dir.join(file)) else { return Ok(None) };
    let origin = path.display().to_string();
    match fs::read_to_string(&path) {
        Ok(text) => parse(&origin, &text).map(Some),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(e) => Err(SettingsError::new(origin, format!("cannot be read: {e}"))),
    }
}

/// The values that variables give.
fn given_by(vars: Vec<(String, String)>) -> Result<LayerValues, SettingsError> {
    let mut given = LayerValues::new();
    for (name, text) in vars {
        let Some(key) = key_of(&name, &text)? else { continue };
        let value = Value::new(Some(&name), text);
        let kind = value.kind.clone();
        if let Some(other) = given.insert(key.clone(), value).filter(|other| other.kind != kind) {
            let other = other.origin().unwrap_or_default();
            let fault = format!("is given twice, by {other} and by {name}: keep one of them");
            return Err(SettingsError::new(key, fault));
        }
    }
    Ok(given)
}

fn parse_environment(value: &str) -> Result<Environment, SettingsError> {
    let fault = || format!("must be development, test or production, not {value:?}");
    Environment::parse(value).ok_or_else(|| SettingsError::new(ENVIRONMENT, fault()))
}

/// The setting that the variable `name` gives, if it gives one.
fn key_of(name: &str, value: &str) -> Result<Option<String>, SettingsError> {
    if [ENVIRONMENT, DIR].contains(&name) {
        return Ok(None);
    }
    if let Some((_, key)) = NAMED.iter().find(|(named, _)| *named == name) {
        return Ok((!value.is_empty()).then(|| (*key).to_owned()));
    }
    if let Some(rest) = name.strip_prefix(PREFIX) {
        return Ok(Some(rest.to_ascii_lowercase().replace("__", ".")));
    }
    // HERALD_SERVER__PORT is a typing error. Other names with a single underscore are ignored, because
    // orchestrators derive variables such as HERALD_SERVICE_HOST from a service's name.
    if name.starts_with("HERALD_") && name.contains("__") {
        return Err(SettingsError::new(name, format!("settings begin with {PREFIX}")));
    }
    Ok(None)
}

/// The variables of this process whose names and values are text.
pub(super) fn process_environment() -> Result<Vec<(String, String)>, SettingsError> {
    let mut vars = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => vars.push((name, value)),
            Err(_) if name == ENVIRONMENT || name == DIR || key_of(&name, "?")?.is_some() => {
                return Err(SettingsError::new(name, NOT_TEXT));
            }
            Err(_) => {}
        }
    }
    Ok(vars)
}

/// Every key of `default.toml`, in alphabetical order.
#[cfg(test)]
pub(super) fn default_keys() -> Vec<String> {
    let values = parse("default.toml", DEFAULT).expect("the built-in file is TOML");
    let mut keys: Vec<_> = values.into_keys().collect();
    keys.sort();
    keys
}

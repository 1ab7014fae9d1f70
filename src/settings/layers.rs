//! Three layers become one table of values, each of which knows where it came from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::{Path, PathBuf},
};

use config::{Config, ConfigError, FileFormat, Format, Map, Source, Value, ValueKind};

use super::{Environment, SettingsError};

const PREFIX: &str = "HERALD__";
const ENVIRONMENT: &str = "HERALD_ENV";
const DIR: &str = "HERALD_CONFIG_DIR";

/// Names that the articles gave to six of the settings. An empty one counts as unset: that is how
/// compose files and hosting services hand on what they do not have.
const NAMED: [(&str, &str); 6] = [
    ("PORT", "server.port"),
    ("DATABASE_URL", "database.url"),
    ("PUSHER_ADMIN_USERNAME", "admin.username"),
    ("PUSHER_ADMIN_PASSWORD", "admin.password"),
    ("GUARDIAN_SECRET", "secrets.guardian_secret"),
    ("SECRET_KEY_BASE", "secrets.secret_key_base"),
];

const DEFAULT: &str = include_str!("../../config/default.toml");

fn embedded(env: Environment) -> &'static str {
    match env {
        Environment::Development => include_str!("../../config/development.toml"),
        Environment::Test => include_str!("../../config/test.toml"),
        Environment::Production => include_str!("../../config/production.toml"),
    }
}

/// All values in effect, by `section.key`.
pub(super) struct Layers {
    pub(super) env: Environment,
    pub(super) values: BTreeMap<String, Value>,
}

impl Layers {
    /// Reads and joins the layers. Every key of the result is one of `default.toml`.
    pub(super) fn collect(
        vars: impl Iterator<Item = (String, String)>,
        dir: Option<&Path>,
    ) -> Result<Self, SettingsError> {
        let variables = Variables::sort(vars)?;
        let dir = variables.dir(dir)?;
        let built_in = Layer::parse("the built-in default.toml", DEFAULT)?;
        let known: BTreeSet<String> = flatten(&built_in.0).into_keys().collect();

        let mut layers = vec![built_in];
        layers.extend(Layer::read(dir.as_deref(), "default.toml")?);
        let env_file = format!("{}.toml", variables.env);
        layers.push(match Layer::read(dir.as_deref(), &env_file)? {
            Some(layer) => layer,
            None => Layer::parse(&format!("the built-in {env_file}"), embedded(variables.env))?,
        });
        for layer in &layers {
            layer.refuse_unknown(&known)?;
        }
        layers.push(variables.layer(&known)?);
        Ok(Self { env: variables.env, values: join(layers)? })
    }
}

fn join(layers: Vec<Layer>) -> Result<BTreeMap<String, Value>, SettingsError> {
    let builder = layers.into_iter().fold(Config::builder(), |b, layer| b.add_source(layer));
    let joined = builder.build().and_then(|config| config.collect());
    // Layers are parsed before they get here; what they can still fail at has no better name.
    let joined = joined.map_err(|e| SettingsError::new("settings", first_line(&e)))?;
    Ok(flatten(&joined))
}

/// `{"server": {"port": 4000}}` becomes `{"server.port": 4000}`; lists are values.
fn flatten(table: &Map<String, Value>) -> BTreeMap<String, Value> {
    let mut leaves = BTreeMap::new();
    for (key, value) in table {
        match &value.kind {
            ValueKind::Table(inner) if inner.is_empty() => {}
            ValueKind::Table(inner) => {
                let inner = flatten(inner).into_iter();
                leaves.extend(inner.map(|(rest, value)| (format!("{key}.{rest}"), value)));
            }
            _ => drop(leaves.insert(key.clone(), value.clone())),
        }
    }
    leaves
}

/// One layer's values, nested as TOML has them or under dotted keys.
#[derive(Clone)]
struct Layer(Map<String, Value>);

/// Values may be secrets.
impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Layer").finish_non_exhaustive()
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

impl Layer {
    fn parse(origin: &str, text: &str) -> Result<Self, SettingsError> {
        // Beyond its first line the parser's message quotes the file, and with it perhaps a secret.
        let parsed = FileFormat::Toml.parse(Some(&origin.to_owned()), text);
        parsed.map(Self).map_err(|e| SettingsError::new(origin, first_line(e.as_ref())))
    }

    /// Reads a file of the operator's own; `None` where there is none.
    fn read(dir: Option<&Path>, file: &str) -> Result<Option<Self>, SettingsError> {
        let Some(path) = dir.map(|dir| dir.join(file)) else { return Ok(None) };
        let origin = path.display().to_string();
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&origin, &text).map(Some),
            Err(e) if is_missing(&e) => Ok(None),
            Err(e) => Err(SettingsError::new(origin, format!("cannot be read: {e}"))),
        }
    }

    fn refuse_unknown(&self, known: &BTreeSet<String>) -> Result<(), SettingsError> {
        match flatten(&self.0).into_iter().find(|(key, _)| !known.contains(key)) {
            Some((key, value)) => Err(unknown(&key).from(value.origin())),
            None => Ok(()),
        }
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn unknown(key: &str) -> SettingsError {
    SettingsError::new(key, "there is no such setting; default.toml lists them all")
}

fn first_line(error: &(impl fmt::Display + ?Sized)) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The variables that are Herald's, out of all that a process has.
struct Variables {
    env: Environment,
    dir: Option<PathBuf>,
    /// Name of the variable and its value, by the setting's key.
    given: BTreeMap<String, (String, String)>,
}

impl Variables {
    fn sort(vars: impl Iterator<Item = (String, String)>) -> Result<Self, SettingsError> {
        let mut sorted = Self { env: Environment::Development, dir: None, given: BTreeMap::new() };
        for (name, value) in vars {
            match name.as_str() {
                ENVIRONMENT => sorted.env = parse_environment(&value)?,
                DIR if value.is_empty() => {}
                DIR => sorted.dir = Some(value.into()),
                _ => {
                    if let Some(key) = key_of(&name, &value)? {
                        sorted.give(key, name, value)?;
                    }
                }
            }
        }
        Ok(sorted)
    }

    fn give(&mut self, key: String, name: String, value: String) -> Result<(), SettingsError> {
        match self.given.get(&key) {
            Some((other, given)) if *given != value => {
                let fault = format!("is given twice, by {other} and by {name}: keep one of them");
                Err(SettingsError::new(key, fault))
            }
            _ => {
                self.given.insert(key, (name, value));
                Ok(())
            }
        }
    }

    /// The folder of the operator's own files: one that was asked for has to be there.
    fn dir(&self, otherwise: Option<&Path>) -> Result<Option<PathBuf>, SettingsError> {
        match &self.dir {
            Some(dir) if !dir.is_dir() => {
                let fault =
                    format!("must be a folder, and {:?} is none", dir.display().to_string());
                Err(SettingsError::new(DIR, fault))
            }
            Some(dir) => Ok(Some(dir.clone())),
            None => Ok(otherwise.map(Path::to_owned)),
        }
    }

    fn layer(&self, known: &BTreeSet<String>) -> Result<Layer, SettingsError> {
        let mut layer = Map::new();
        for (key, (name, value)) in &self.given {
            if !known.contains(key) {
                return Err(unknown(key).from(Some(name)));
            }
            layer.insert(key.clone(), Value::new(Some(name), value.as_str()));
        }
        Ok(Layer(layer))
    }
}

fn parse_environment(value: &str) -> Result<Environment, SettingsError> {
    let fault = || format!("must be development, test or production, not {value:?}");
    Environment::parse(value).ok_or_else(|| SettingsError::new(ENVIRONMENT, fault()))
}

/// The setting that the variable `name` gives, if it gives one.
fn key_of(name: &str, value: &str) -> Result<Option<String>, SettingsError> {
    if let Some((_, key)) = NAMED.iter().find(|(named, _)| *named == name) {
        return Ok((!value.is_empty()).then(|| (*key).to_owned()));
    }
    if let Some(rest) = name.strip_prefix(PREFIX) {
        return Ok(Some(rest.to_ascii_lowercase().replace("__", ".")));
    }
    // HERALD_SERVER__PORT is a slip of the pen. Other names with a single underscore are left alone:
    // orchestrators make up such variables (HERALD_SERVICE_HOST) from the service's name.
    if name.starts_with("HERALD_") && name.contains("__") {
        return Err(SettingsError::new(name, format!("settings begin with {PREFIX}")));
    }
    Ok(None)
}

/// The environment of this process, as far as it is text.
pub(super) fn process_environment() -> Result<Vec<(String, String)>, SettingsError> {
    let mut vars = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => vars.push((name, value)),
            Err(_) if name == ENVIRONMENT || name == DIR || key_of(&name, "?")?.is_some() => {
                return Err(SettingsError::new(name, "must be UTF-8"));
            }
            Err(_) => {}
        }
    }
    Ok(vars)
}

/// The text that the built-in `default.toml` has for `key`.
pub(super) fn built_in_default(key: &str) -> Option<String> {
    let layer = Layer::parse("the built-in default.toml", DEFAULT).ok()?;
    flatten(&layer.0).remove(key)?.into_string().ok()
}

/// Every key of `default.toml`, in alphabetical order.
#[cfg(test)]
pub(super) fn default_keys() -> Vec<String> {
    let layer = Layer::parse("default.toml", DEFAULT).expect("the built-in file is TOML");
    flatten(&layer.0).into_keys().collect()
}

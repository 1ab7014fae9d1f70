//! The settings of an app, in one table: everything that can be set besides name and credentials.
//!
//! A new setting is a line in the table below, and a migration with its column. All else follows from
//! the line: the field of [`AppSettings`], its default, how a request's value is read and judged, the
//! column, the admin API's answer, the flag of the command line with its help. A setting of a new kind
//! implements [`Setting`].

use serde::Serialize;
use serde_json::Value;

use super::{
    ClientEvents,
    fields::{BLANK, Faults, FieldFaults, INVALID, read_text},
    origin::{AllowedOrigins, OriginPattern},
};

/// The most publications of a channel that an app may have retained, whatever the server permits.
pub const HISTORY_PUBLICATIONS_MAX: u32 = 100_000;
/// The longest that an app may have publications retained, in seconds, whatever the server permits.
pub const HISTORY_SECONDS_MAX: u32 = 7 * 24 * 60 * 60;

/// The operations of a setting's type.
pub(super) trait Setting: Sized {
    /// The form in which the command line takes a value.
    const VALUES: SettingValues;

    /// Reads a request's value. Forms send strings for everything, JSON sends types.
    ///
    /// # Errors
    /// All faults of the value.
    fn read(given: &Value) -> Result<Self, FieldFaults>;

    /// The value as its column holds it: a boolean, a string, or a whole number or null.
    fn stored(&self) -> Value;

    /// Reads a column; `None` if its value is not valid.
    fn restore(stored: &Value) -> Option<Self>;

    /// The value for people.
    fn shown(&self) -> String {
        let stored = self.stored();
        stored.as_str().map_or_else(|| stored.to_string(), String::from)
    }
}

/// The values that the command line accepts for a setting.
#[derive(Debug, Clone, Copy)]
pub enum SettingValues {
    /// One of these words.
    Few(&'static [&'static str]),
    /// A whole number, or [`DEFAULT`] for the server's default.
    Number,
    /// Many texts, for which the command line has flags of its own.
    Texts,
}

/// The word for the server's default, for people.
pub const DEFAULT: &str = "default";

/// A setting as the command line offers it.
#[derive(Debug)]
pub struct DescribedSetting {
    /// The name.
    pub name: &'static str,
    /// One sentence that says what it does.
    pub help: &'static str,
    /// The accepted values.
    pub values: SettingValues,
}

macro_rules! app_settings {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ty = $default:expr;)+) => {
        /// The settings of an app.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        pub struct AppSettings { $($(#[doc = $help])+ pub $name: $kind,)+ }

        impl Default for AppSettings {
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }

        impl AppSettings {
            /// Describes all settings.
            pub const DESCRIBED: &[DescribedSetting] = &[$(DescribedSetting {
                name: stringify!($name),
                help: concat!($($help,)+),
                values: <$kind as Setting>::VALUES,
            },)+];

            /// Sets the value that a request gives for `field`, or records its faults; unknown
            /// fields are ignored.
            pub(super) fn set(&mut self, field: &str, given: &Value, faults: &mut Faults) {
                $(if field == stringify!($name) {
                    let read = faults.keep(stringify!($name), Setting::read(given));
                    read.into_iter().for_each(|value| self.$name = value);
                })+
            }

            /// The value of each setting's column, a boolean, a string, or a whole number or
            /// null. The column has the setting's name.
            pub fn stored(&self) -> Vec<(&'static str, Value)> {
                vec![$((stringify!($name), self.$name.stored()),)+]
            }

            /// The names of the settings that have other values in `other`.
            pub fn differences(&self, other: &Self) -> Vec<&'static str> {
                let differs = [$((stringify!($name), self.$name != other.$name),)+];
                differs.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
            }

            /// Builds the settings from their columns.
            ///
            /// # Errors
            /// The name of the first column whose value is not valid.
            pub fn restore(column: impl Fn(&str) -> Value) -> Result<Self, &'static str> {
                let column = |name| (column(name), name);
                Ok(Self { $($name: match column(stringify!($name)) {
                    (stored, name) => Setting::restore(&stored).ok_or(name)?,
                },)+ })
            }

            /// Each setting as people read it.
            pub fn shown(&self) -> Vec<(&'static str, String)> {
                vec![$((stringify!($name), self.$name.shown()),)+]
            }
        }
    };
}

app_settings! {
    /// Whether the app is active: Herald refuses the events, joins and logins of an inactive app.
    active: bool = true;
    /// Origins whose pages may join; empty allows any.
    allowed_origins: AllowedOrigins = AllowedOrigins::default();
    /// The clients that may publish from a browser.
    client_events: ClientEvents = ClientEvents::Authorized;
    /// Whether the app accepts tokens that are signed with GUARDIAN_SECRET.
    shared_tokens: bool = false;
    /// Publications retained of each channel, 0 to 100000; the server may permit fewer.
    history_publications: Option<UpTo<HISTORY_PUBLICATIONS_MAX>> = None;
    /// Seconds for which they are retained, 0 to 604800; the server may permit fewer.
    history_seconds: Option<UpTo<HISTORY_SECONDS_MAX>> = None;
    /// Whether Pusher's clients may connect, and Pusher's server SDKs may call.
    pusher: bool = true;
    /// Whether Pusher's clients are told how many subscribers their channels have.
    subscription_count: bool = true;
    /// Whether Pusher's clients that neither sign in nor join a private or presence channel are closed.
    authorized_only: bool = false;
}

/// A whole number from 0 to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct UpTo<const MAX: u32>(u32);

impl<const MAX: u32> UpTo<MAX> {
    /// Checks a number; `None` beyond `MAX`.
    pub fn new(number: u64) -> Option<Self> {
        u32::try_from(number).ok().filter(|number| *number <= MAX).map(Self)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Setting for bool {
    const VALUES: SettingValues = SettingValues::Few(&["true", "false"]);

    fn read(given: &Value) -> Result<Self, FieldFaults> {
        if let Value::Bool(flag) = given {
            return Ok(*flag);
        }
        match read_text(given)? {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            "" => Err(vec![BLANK.into()]),
            _ => Err(vec![INVALID.into()]),
        }
    }

    fn stored(&self) -> Value {
        (*self).into()
    }

    fn restore(stored: &Value) -> Option<Self> {
        stored.as_bool()
    }
}

impl Setting for ClientEvents {
    const VALUES: SettingValues = SettingValues::Few(&["authorized", "all", "none"]);

    fn read(given: &Value) -> Result<Self, FieldFaults> {
        match read_text(given)? {
            "" => Err(vec![BLANK.into()]),
            text => Self::parse(text).ok_or_else(|| vec![INVALID.into()]),
        }
    }

    fn stored(&self) -> Value {
        self.as_str().into()
    }

    fn restore(stored: &Value) -> Option<Self> {
        Self::parse(stored.as_str()?)
    }
}

/// A number that an app may leave to the server: null or an empty string does that.
impl<const MAX: u32> Setting for Option<UpTo<MAX>> {
    const VALUES: SettingValues = SettingValues::Number;

    fn read(given: &Value) -> Result<Self, FieldFaults> {
        let number = match given {
            Value::Null => return Ok(None),
            Value::String(text) if text.is_empty() => return Ok(None),
            // Digits alone: `parse` would take a plus sign too.
            Value::String(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
            Value::String(_) | Value::Number(_) => given.as_u64(),
            _ => return Err(vec![INVALID.into()]),
        };
        let number = number.and_then(UpTo::new).map(Some);
        number.ok_or_else(|| vec![format!("must be a whole number from 0 to {MAX}").into()])
    }

    fn stored(&self) -> Value {
        self.map(UpTo::get).into()
    }

    fn restore(stored: &Value) -> Option<Self> {
        match stored {
            Value::Null => Some(None),
            number => number.as_u64().and_then(UpTo::new).map(Some),
        }
    }

    fn shown(&self) -> String {
        self.map_or_else(|| DEFAULT.to_owned(), |number| number.get().to_string())
    }
}

impl Setting for AllowedOrigins {
    const VALUES: SettingValues = SettingValues::Texts;

    /// Blank entries beside others are left out, because Rails has a hidden field that sends one. A
    /// list of blanks only is refused, because an empty list allows every origin; a caller asks for
    /// that with `[]`, or in a form with `app[allowed_origins]=`.
    fn read(given: &Value) -> Result<Self, FieldFaults> {
        let entries = match given {
            Value::String(text) if text.is_empty() => &[],
            _ => given.as_array().ok_or_else(|| vec![INVALID.into()])?.as_slice(),
        };
        let texts = entries.iter().map(|entry| entry.as_str().map(String::from));
        let mut origins: Vec<_> =
            texts.collect::<Option<_>>().ok_or_else(|| vec![INVALID.into()])?;
        origins.retain(|origin| !origin.is_empty());
        if origins.is_empty() && !entries.is_empty() {
            return Err(vec![BLANK.into()]);
        }
        if origins.len() <= Self::COUNT_MAX {
            let faults = origins.iter().filter_map(|origin| OriginPattern::parse(origin).err());
            let faults: FieldFaults = faults.map(|error| error.to_string().into()).collect();
            if !faults.is_empty() {
                return Err(faults);
            }
        }
        Self::parse(origins).map_err(|error| vec![error.to_string().into()])
    }

    /// Stores a string that holds JSON, so that one invalid row does not make the others unreadable.
    fn stored(&self) -> Value {
        serde_json::json!(self.as_strings()).to_string().into()
    }

    fn restore(stored: &Value) -> Option<Self> {
        Self::parse(serde_json::from_str(stored.as_str()?).ok()?).ok()
    }

    fn shown(&self) -> String {
        let origins = self.as_strings().join(", ");
        if origins.is_empty() { "any".to_owned() } else { origins }
    }
}

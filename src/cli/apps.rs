//! `herald apps`: the apps in the database.

use chrono::{DateTime, SecondsFormat, Utc};
use clap::Subcommand;
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};

use super::{CommandFailure, confirm::confirm, table::table, with_tables};
use crate::{
    app::{
        App, Slug,
        audit::ChangedBy,
        change::{self, ChangeError},
        fields::AppFields,
        key_pair::{LastUse, Overlap},
        settings::{AppSettings, DEFAULT, DescribedSetting, SettingValues},
        store::{AppStore, MissingFile},
    },
    http::apps::AppView,
};

pub(super) const AFTER_HELP: &str = "\
These commands change the database. A running server reads the changes within
registry.refresh.

Examples:
  herald apps list
  herald apps create --name foo-app --origin https://example.com \\
      --client-events all
  herald apps show foo-app --json
  herald apps update foo-app --active false
  herald apps update foo-app --history-publications 500 \\
      --history-seconds default
  herald apps rotate foo-app --overlap-seconds 3600
  herald apps update foo-app --new-secret
  herald apps delete foo-app --yes";

#[derive(Debug, Subcommand)]
pub(super) enum AppsCommand {
    /// List all apps, newest last
    List(OutputArgs),
    /// Create an app and show it, with its key and secret
    Create {
        /// Its name, 5 to 255 characters, unique
        #[arg(long)]
        name: String,
        /// Its public id, of a-z, 0-9 and -; Herald makes it from the name if it is left out
        #[arg(long)]
        slug: Option<String>,
        #[command(flatten)]
        fields: FieldArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show an app, with its key and secret
    Show {
        /// Its public id
        #[arg(value_name = "SLUG", value_parser = parse_slug)]
        app: Slug,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Change the given fields of an app and show it
    Update {
        /// Its public id
        #[arg(value_name = "SLUG", value_parser = parse_slug)]
        app: Slug,
        /// A new name; the slug follows it
        #[arg(long)]
        name: Option<String>,
        /// Have a new key made
        #[arg(long, conflicts_with = "key")]
        new_key: bool,
        /// Have a new secret made
        #[arg(long, conflicts_with = "secret_env")]
        new_secret: bool,
        #[command(flatten)]
        fields: Box<FieldArgs>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Give an app a new key and secret and show it; the old pair stays valid for the overlap
    Rotate {
        /// Its public id
        #[arg(value_name = "SLUG", value_parser = parse_slug)]
        app: Slug,
        /// Seconds for which the old pair stays valid, 0 to 2592000; 86400 by default, 0 ends it at once
        #[arg(long, value_name = "NUMBER")]
        overlap_seconds: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete an app; asks first on a terminal
    Delete {
        /// Its public id
        #[arg(value_name = "SLUG", value_parser = parse_slug)]
        app: Slug,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct OutputArgs {
    /// Answer as JSON, in the shape of the admin API, secrets included
    #[arg(long)]
    json: bool,
}

/// The fields that both `create` and `update` can set.
#[derive(Debug, Default, clap::Args)]
pub(super) struct FieldArgs {
    /// An origin whose pages may join, such as `https://example.com` or `//*.example.com`; may be repeated
    #[arg(long = "origin", value_name = "ORIGIN")]
    origins: Vec<String>,
    /// Let pages of any origin join
    #[arg(long, conflicts_with = "origins")]
    any_origin: bool,
    #[command(flatten)]
    settings: SettingArgs,
    /// Its key, instead of one that is made
    #[arg(long)]
    key: Option<String>,
    /// The environment variable that holds its secret, instead of one that is made
    #[arg(long, value_name = "VARIABLE")]
    secret_env: Option<String>,
}

/// The flags of the settings that have a single value.
#[derive(Debug, Default)]
struct SettingArgs(Map<String, Value>);

impl SettingArgs {
    /// The flag of a setting; `None` if other flags set it.
    fn flag(setting: &DescribedSetting) -> Option<clap::Arg> {
        let flag = clap::Arg::new(setting.name)
            .long(setting.name.replace('_', "-"))
            .help(setting.help.trim().trim_end_matches('.'));
        match setting.values {
            SettingValues::Few(values) => Some(
                flag.value_name(values.join("|"))
                    .value_parser(clap::builder::PossibleValuesParser::new(values))
                    .hide_possible_values(true),
            ),
            SettingValues::Number => Some(flag.value_name(format!("NUMBER|{DEFAULT}"))),
            SettingValues::Texts => None,
        }
    }
}

impl clap::Args for SettingArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.args(AppSettings::DESCRIBED.iter().filter_map(Self::flag))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for SettingArgs {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut settings = Self::default();
        settings.update_from_arg_matches(matches).map(|()| settings)
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        for DescribedSetting { name, values, .. } in AppSettings::DESCRIBED {
            let given = match values {
                SettingValues::Few(_) => {
                    matches.get_one::<String>(name).map(|text| text.as_str().into())
                }
                SettingValues::Number => {
                    matches.get_one::<String>(name).map(|text| match text.as_str() {
                        DEFAULT => Value::Null,
                        number => number.into(),
                    })
                }
                SettingValues::Texts => None,
            };
            self.0.extend(given.map(|given| ((*name).to_owned(), given)));
        }
        Ok(())
    }
}

impl FieldArgs {
    /// The fields as the admin API would receive them, so that one set of rules judges both.
    fn into_map(self) -> Result<Map<String, Value>, CommandFailure> {
        let SettingArgs(mut map) = self.settings;
        let mut set = |field: &str, value: Option<Value>| {
            map.extend(value.map(|value| (field.to_owned(), value)));
        };
        set("key", self.key.map(Value::from));
        if self.any_origin || !self.origins.is_empty() {
            set("allowed_origins", Some(self.origins.into()));
        }
        if let Some(variable) = self.secret_env {
            let secret = super::token::secret_of(&variable)?;
            set("secret", Some(secret.expose_secret().into()));
        }
        Ok(map)
    }
}

/// Parses the public id of an app.
pub(super) fn parse_slug(raw: &str) -> Result<Slug, String> {
    Slug::parse(raw).ok_or_else(|| "an app's slug has 1 to 63 of a-z, 0-9 and -".into())
}

pub(super) fn run(command: AppsCommand) -> Result<String, CommandFailure> {
    match command {
        AppsCommand::List(output) => {
            with_tables(MissingFile::Refuse, async |store, _| list(&store, &output).await)
        }
        AppsCommand::Create { name, slug, fields, output } => {
            let mut map = fields.into_map()?;
            map.insert("name".into(), name.into());
            map.extend(slug.map(|slug| ("slug".to_owned(), slug.into())));
            with_tables(MissingFile::Refuse, async |store, _| {
                Ok(output
                    .of(&change::create(&store, &ChangedBy::CLI, AppFields::read(&map)).await?))
            })
        }
        AppsCommand::Show { app, output } => with_tables(MissingFile::Refuse, async |store, _| {
            Ok(output.of(&find(&store, &app).await?))
        }),
        AppsCommand::Update { app, name, new_key, new_secret, fields, output } => {
            let mut map = fields.into_map()?;
            map.extend(name.map(|name| ("name".to_owned(), name.into())));
            map.extend(new_key.then(|| ("key".to_owned(), "".into())));
            map.extend(new_secret.then(|| ("secret".to_owned(), "".into())));
            with_tables(MissingFile::Refuse, async |store, _| {
                update(&store, &app, &map, &output).await
            })
        }
        AppsCommand::Rotate { app, overlap_seconds, output } => {
            let overlap = Overlap::read(overlap_seconds.map(Value::from).as_ref());
            let overlap = overlap.map_err(ChangeError::Invalid)?;
            with_tables(MissingFile::Refuse, async |store, _| {
                let rotated = change::rotate(&store, &ChangedBy::CLI, &app, overlap).await;
                known(&app, rotated).map(|app| output.of(&app))
            })
        }
        AppsCommand::Delete { app, yes } => {
            with_tables(MissingFile::Refuse, async |store, _| delete(&store, &app, yes).await)
        }
    }
}

async fn list(store: &AppStore, output: &OutputArgs) -> Result<String, CommandFailure> {
    let listing = store.list().await?;
    for row in &listing.unreadable {
        log::warn!("row {} of the table is not an app: its {} is not valid", row.id.0, row.column);
    }
    if output.json {
        let data: Vec<_> = listing.apps.iter().map(AppView::from).collect();
        return Ok(super::json(&json!({"data": data})));
    }
    let row = |app: &App| {
        let state = if app.settings.active { "active" } else { "inactive" };
        [app.slug.to_string(), app.name.clone(), app.key.clone(), state.to_owned()]
    };
    let rows: Vec<_> = listing.apps.iter().map(row).collect();
    Ok(table(["slug", "name", "key", "state"], &rows))
}

/// Finds an app, or reports that it does not exist.
pub(super) async fn find(store: &AppStore, slug: &Slug) -> Result<App, CommandFailure> {
    store.find(slug).await?.ok_or_else(|| unknown(slug))
}

/// The outcome of a change of the app with this slug.
fn known<T>(slug: &Slug, changed: Result<T, ChangeError>) -> Result<T, CommandFailure> {
    changed.map_err(|error| match error {
        ChangeError::NotFound => unknown(slug),
        error => error.into(),
    })
}

fn unknown(slug: &Slug) -> CommandFailure {
    CommandFailure::new(format!("there is no app {slug}: `herald apps list` shows all"))
}

async fn update(
    store: &AppStore,
    slug: &Slug,
    map: &Map<String, Value>,
    output: &OutputArgs,
) -> Result<String, CommandFailure> {
    if map.is_empty() {
        return Err(CommandFailure::usage("nothing to change: see `herald apps update --help`"));
    }
    let updated = change::update(store, &ChangedBy::CLI, slug, AppFields::read(map)).await;
    known(slug, updated).map(|app| output.of(&app))
}

async fn delete(store: &AppStore, slug: &Slug, yes: bool) -> Result<String, CommandFailure> {
    // A row that is not a valid app can be deleted too, but not shown.
    if store.id_by_slug(slug).await?.is_none() {
        return Err(unknown(slug));
    }
    if !yes {
        confirm(&format!("delete {slug}, its key and secret, for good"), slug.as_str())?;
    }
    let deleted = change::delete(store, &ChangedBy::CLI, slug).await;
    known(slug, deleted).map(|_| format!("deleted {slug}\n"))
}

impl OutputArgs {
    fn of(&self, app: &App) -> String {
        match self.json {
            true => super::json(&json!({"data": AppView::from(app)})),
            false => as_text(app),
        }
    }
}

fn as_text(app: &App) -> String {
    let at = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
    let last_used = |last_use: &LastUse| last_use.at().map_or_else(|| "never".to_owned(), at);
    let mut rows = vec![
        ("id", app.id.0.to_string()),
        ("name", app.name.clone()),
        ("slug", app.slug.to_string()),
        ("key", app.key.clone()),
        ("secret", app.secret.expose_secret().to_owned()),
        ("key_last_used_at", last_used(&app.last_use)),
    ];
    if let Some(previous) = &app.previous {
        rows.extend([
            ("previous_key", previous.key.clone()),
            ("previous_key_expires_at", at(previous.expires_at)),
            ("previous_key_last_used_at", last_used(&previous.last_use)),
        ]);
    }
    rows.extend(app.settings.shown());
    rows.extend([("inserted_at", at(app.inserted_at)), ("updated_at", at(app.updated_at))]);
    let width = rows.iter().map(|(field, _)| field.len()).max().unwrap_or_default();
    let line = |(field, value): &(&str, String)| {
        format!("{field:<width$}  {}\n", super::log::one_line(value))
    };
    rows.iter().map(line).collect()
}

//! `herald apps`: the apps in the database.

use std::io::{self, BufRead, IsTerminal, Write};

use chrono::{DateTime, SecondsFormat, Utc};
use clap::Subcommand;
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};

use super::{Failure, table::table, with_tables};
use crate::{
    app::{
        App, Slug,
        change::{self, ChangeError},
        fields::AppFields,
        settings::{AppSettings, DEFAULT, Described, Values},
        store::{AppStore, MissingFile},
    },
    http::apps::AppView,
};

pub(super) const AFTER_HELP: &str = "\
They work on the database; a running server takes notice within registry.refresh.

Examples:
  herald apps list
  herald apps create --name foo-app --origin https://example.com --client-events all
  herald apps show foo-app --json
  herald apps update foo-app --active false
  herald apps update foo-app --history-publications 500 --history-seconds default
  herald apps update foo-app --new-secret
  herald apps delete foo-app --yes";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List all apps, newest last
    List(Output),
    /// Create an app and show it, with its key and secret
    Create {
        /// Its name, 5 to 255 characters, unique
        #[arg(long)]
        name: String,
        /// Its public id, of a-z, 0-9 and -; made from the name without it
        #[arg(long)]
        slug: Option<String>,
        #[command(flatten)]
        fields: Fields,
        #[command(flatten)]
        output: Output,
    },
    /// Show an app, with its key and secret
    Show {
        /// Its public id
        #[arg(value_name = "SLUG", value_parser = parse_slug)]
        app: Slug,
        #[command(flatten)]
        output: Output,
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
        fields: Box<Fields>,
        #[command(flatten)]
        output: Output,
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
pub(super) struct Output {
    /// Answer as JSON, in the shape of the admin API, secrets included
    #[arg(long)]
    json: bool,
}

/// The fields that both `create` and `update` can set.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Fields {
    /// An origin whose pages may join, such as `https://example.com` or `//*.example.com`; may be repeated
    #[arg(long = "origin", value_name = "ORIGIN")]
    origins: Vec<String>,
    /// Let pages of any origin join
    #[arg(long, conflicts_with = "origins")]
    any_origin: bool,
    #[command(flatten)]
    settings: Settings,
    /// Its key, instead of one that is made
    #[arg(long)]
    key: Option<String>,
    /// The environment variable that holds its secret, instead of one that is made
    #[arg(long, value_name = "VARIABLE")]
    secret_env: Option<String>,
}

/// The settings that have one value: a flag for each.
#[derive(Debug, Default)]
struct Settings(Map<String, Value>);

impl Settings {
    /// The flag of a setting; `None` if other flags set it.
    fn flag(setting: &Described) -> Option<clap::Arg> {
        let flag = clap::Arg::new(setting.name)
            .long(setting.name.replace('_', "-"))
            .help(setting.help.trim().trim_end_matches('.'));
        match setting.values {
            Values::Few(values) => Some(
                flag.value_name(values.join("|"))
                    .value_parser(clap::builder::PossibleValuesParser::new(values))
                    .hide_possible_values(true),
            ),
            Values::Number => Some(flag.value_name(format!("NUMBER|{DEFAULT}"))),
            Values::Texts => None,
        }
    }
}

impl clap::Args for Settings {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.args(AppSettings::DESCRIBED.iter().filter_map(Self::flag))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Settings {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut settings = Self::default();
        settings.update_from_arg_matches(matches).map(|()| settings)
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        for Described { name, values, .. } in AppSettings::DESCRIBED {
            let given = match values {
                Values::Few(_) => matches.get_one::<String>(name).map(|text| text.as_str().into()),
                Values::Number => matches.get_one::<String>(name).map(|text| match text.as_str() {
                    DEFAULT => Value::Null,
                    number => number.into(),
                }),
                Values::Texts => None,
            };
            self.0.extend(given.map(|given| ((*name).to_owned(), given)));
        }
        Ok(())
    }
}

impl Fields {
    /// The fields as the admin API would receive them, so that one set of rules judges both.
    fn into_map(self) -> Result<Map<String, Value>, Failure> {
        let Settings(mut map) = self.settings;
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

pub(super) fn run(command: Command) -> Result<String, Failure> {
    match command {
        Command::List(output) => {
            with_tables(MissingFile::Refuse, async |store, _| list(&store, &output).await)
        }
        Command::Create { name, slug, fields, output } => {
            let mut map = fields.into_map()?;
            map.insert("name".into(), name.into());
            map.extend(slug.map(|slug| ("slug".to_owned(), slug.into())));
            with_tables(MissingFile::Refuse, async |store, _| {
                Ok(output.of(&change::create(&store, AppFields::read(&map)).await?))
            })
        }
        Command::Show { app, output } => with_tables(MissingFile::Refuse, async |store, _| {
            Ok(output.of(&find(&store, &app).await?))
        }),
        Command::Update { app, name, new_key, new_secret, fields, output } => {
            let mut map = fields.into_map()?;
            map.extend(name.map(|name| ("name".to_owned(), name.into())));
            map.extend(new_key.then(|| ("key".to_owned(), "".into())));
            map.extend(new_secret.then(|| ("secret".to_owned(), "".into())));
            with_tables(MissingFile::Refuse, async |store, _| {
                update(&store, &app, &map, &output).await
            })
        }
        Command::Delete { app, yes } => {
            with_tables(MissingFile::Refuse, async |store, _| delete(&store, &app, yes).await)
        }
    }
}

async fn list(store: &AppStore, output: &Output) -> Result<String, Failure> {
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
pub(super) async fn find(store: &AppStore, slug: &Slug) -> Result<App, Failure> {
    store.find(slug).await?.ok_or_else(|| unknown(slug))
}

fn unknown(slug: &Slug) -> Failure {
    Failure::new(format!("there is no app {slug}: `herald apps list` shows all"))
}

async fn update(
    store: &AppStore,
    slug: &Slug,
    map: &Map<String, Value>,
    output: &Output,
) -> Result<String, Failure> {
    if map.is_empty() {
        return Err(Failure::usage("nothing to change: see `herald apps update --help`"));
    }
    match change::update(store, slug, AppFields::read(map)).await {
        Ok(update) => Ok(output.of(&update.app)),
        Err(ChangeError::NotFound) => Err(unknown(slug)),
        Err(error) => Err(error.into()),
    }
}

async fn delete(store: &AppStore, slug: &Slug, yes: bool) -> Result<String, Failure> {
    // A row that is not a valid app can be deleted too, but not shown.
    if store.id_by_slug(slug).await?.is_none() {
        return Err(unknown(slug));
    }
    if !yes {
        confirm(slug)?;
    }
    match change::delete(store, slug).await {
        Ok(_) => Ok(format!("deleted {slug}\n")),
        Err(ChangeError::NotFound) => Err(unknown(slug)),
        Err(error) => Err(error.into()),
    }
}

fn confirm(slug: &Slug) -> Result<(), Failure> {
    let mut input = io::stdin().lock();
    if !input.is_terminal() {
        return Err(Failure::usage("standard input is no terminal to ask at: confirm with --yes"));
    }
    let mut err = io::stderr();
    let asked = write!(err, "Delete {slug}, its key and secret, for good? Type its slug: ")
        .and_then(|()| err.flush());
    let mut answer = String::new();
    asked
        .and_then(|()| input.read_line(&mut answer))
        .map_err(|e| Failure::new(format!("cannot ask: {e}")))?;
    match answer.trim() == slug.as_str() {
        true => Ok(()),
        false => Err(Failure::new("not confirmed: nothing was deleted")),
    }
}

impl Output {
    fn of(&self, app: &App) -> String {
        match self.json {
            true => super::json(&json!({"data": AppView::from(app)})),
            false => as_text(app),
        }
    }
}

fn as_text(app: &App) -> String {
    let at = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
    let mut rows = vec![
        ("name", app.name.clone()),
        ("slug", app.slug.to_string()),
        ("key", app.key.clone()),
        ("secret", app.secret.expose_secret().to_owned()),
    ];
    rows.extend(app.settings.shown());
    rows.extend([("inserted_at", at(app.inserted_at)), ("updated_at", at(app.updated_at))]);
    let width = rows.iter().map(|(field, _)| field.len()).max().unwrap_or_default();
    let line = |(field, value): &(&str, String)| {
        format!("{field:<width$}  {}\n", super::log::one_line(value))
    };
    rows.iter().map(line).collect()
}

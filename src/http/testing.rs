//! A complete set of services for the tests of this room, with the table of URLs.

use std::{
    sync::{Arc, atomic::AtomicBool, mpsc},
    time::Duration,
};

use actix_service::apply_fn_factory;
use actix_web::{App as WebApp, body::to_bytes, test, web};
use base64::{Engine, engine::general_purpose::STANDARD};
use secrecy::SecretString;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    Services,
    admin::Throttle,
    configure,
    console::{live::reserved_app, session::LoginSessions},
    pace::TokenPace,
};
use crate::{
    app::{
        App, AppDirectory, AppId, Apps, ClientEvents, Slug,
        refusals::Refusals,
        registry::AppRegistry,
        settings::AppSettings,
        store::{AppStore, MissingFile},
        testing, token,
    },
    broker::{JsonObject, Payload, Topics, topics::TopicLimits, users::ONLINE_INTERVAL},
    metrics::Metrics,
    session::{
        body::BodyBudget, bucket::PerSecond, path::without_empty_segments, public_id::PublicIds,
    },
    settings::Settings,
    usage::{keeper::UsageKeeper, ledger::UsageLedger},
};

pub(super) const KEY: &str = "foo-app-key";
pub(super) const SECRET: &str = "foo-app-secret-0123";
pub(super) const GUARDIAN_SECRET: &str = "the operator's own key, for all!";

/// Services over a database of their own, with the apps `foo-app`, `shared-app` (accepts shared
/// tokens), `silent-app` (accepts no client events), `open-app` (accepts client events from anyone
/// on public topics), `careless-app` (has an empty secret) and the inactive `idle-app`.
pub(super) struct TestServices {
    pub(super) services: web::Data<Services>,
    _folder: TempDir,
}

impl TestServices {
    pub(super) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts the services with these environment variables added.
    pub(super) async fn start_with(env: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}", folder.path().join("herald.db").display());
        let common =
            [("HERALD_ENV", "test"), ("DATABASE_URL", &url), ("GUARDIAN_SECRET", GUARDIAN_SECRET)];
        let env = common.iter().chain(env).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let mut settings = Settings::load_from(env, None).expect("settings");
        settings.server.demo_page = true;
        let store = AppStore::connect(&settings.database, MissingFile::MakeWithFolder)
            .await
            .expect("a store");
        store.migrate_up(None).await.expect("a table");
        let directory = AppDirectory::default();
        directory.reserve(reserved_app(&settings));
        let metrics = Metrics::new(settings.metrics.apps_max);
        let times = settings.registry_times();
        let console = LoginSessions::new(store.clone(), &settings);
        let ledger = UsageLedger::new(store.clone(), metrics.clone());
        let usage = UsageKeeper::start(ledger, Duration::from_secs(60), 1);
        let registry = AppRegistry::start(store, directory.clone(), times, metrics.clone());
        let registry = registry.await.expect("a registry");
        directory.replace(apps());
        let topic_limits = TopicLimits {
            outboxes_bytes_max: settings.limits.outboxes_bytes_max(),
            publications_in_flight_max: settings.limits.publications_in_flight_max,
            scopes_per_app_max: settings.limits.scopes_per_app_max,
            presence_members_max: settings.limits.presence_members_max,
            idempotency_keys_max: settings.limits.idempotency_keys_max,
            presence_interval: settings.socket.presence_interval,
            online_interval: ONLINE_INTERVAL,
            wait_max: settings.socket.topic_timeout,
            history: settings.history.clone(),
            last_events: (&settings.pusher).into(),
        };
        let topics = Topics::new(topic_limits, directory.clone(), metrics.clone());
        let services = web::Data::new(Services {
            admin_throttle: Arc::new(Throttle::new(10)),
            draining: Arc::new(AtomicBool::new(false)),
            seat: Default::default(),
            changes: Default::default(),
            pace: TokenPace::new(PerSecond(settings.limits.client_events_per_second_max)),
            bodies: BodyBudget::new(settings.limits.bodies_bytes_max),
            public_ids: PublicIds::new(&settings.secrets.secret_key_base),
            refusals: Arc::new(Refusals::new(settings.log.refusal_interval, metrics.clone())),
            settings: Arc::new(settings),
            directory,
            registry,
            usage,
            topics,
            metrics,
            console,
            overview: Default::default(),
            address: Default::default(),
        });
        Self { services, _folder: folder }
    }

    /// Sends a request through the table of URLs; a body that is not JSON is returned as a string.
    pub(super) async fn call(&self, request: test::TestRequest) -> (u16, Value) {
        let response = self.respond(request).await;
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body()).await.expect("a body");
        let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
        (status, serde_json::from_slice(&body).unwrap_or_else(|_| text()))
    }

    /// Like [`TestServices::call`], but returns the whole response.
    pub(super) async fn respond(&self, request: test::TestRequest) -> actix_web::HttpResponse {
        let app = WebApp::new().app_data(self.services.clone());
        let settings = &self.services.settings;
        let app = app.configure(|cfg| configure(cfg, settings));
        let app = test::init_service(apply_fn_factory(app, without_empty_segments)).await;
        let response = test::call_service(&app, request.to_request()).await;
        response.into_parts().1.map_into_boxed_body()
    }
}

/// A worker thread that stays blocked until it is released: its fan-out sends no answer.
pub(super) struct StalledThread {
    arbiter: actix::Arbiter,
    _let_go: mpsc::Sender<()>,
}

impl StalledThread {
    pub(super) async fn start(topics: &Topics) -> Self {
        let arbiter = actix::Arbiter::new();
        let (let_go, held) = mpsc::channel::<()>();
        let (started, starting) = tokio::sync::oneshot::channel();
        let topics = topics.clone();
        arbiter.spawn_fn(move || {
            topics.start_fanout();
            // The test waits for the answer, and afterwards for nothing else of this thread.
            let _ = started.send(());
            let _ = held.recv();
        });
        starting.await.expect("a fan-out on a thread of its own");
        Self { arbiter, _let_go: let_go }
    }
}

impl Drop for StalledThread {
    fn drop(&mut self) {
        self.arbiter.stop();
    }
}

/// Mints a token of `foo-app`.
pub(super) fn token_of(secret: &str, claims: &Value) -> String {
    let algorithm = token::SigningAlgorithm::Hs256;
    token::mint(claims, &SecretString::from(secret), algorithm).expect("a token")
}

/// An `Authorization` header.
pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// A payload.
pub(super) fn object(text: &str) -> Payload {
    JsonObject::parse(text).expect("an object").into()
}

/// The app with this slug, as the directory has it.
pub(super) fn app(slug: &str) -> App {
    let app = |id: i32| App {
        id: AppId(id),
        name: slug.to_owned(),
        slug: Slug::parse(slug).expect("a slug"),
        ..testing::app(KEY, SECRET)
    };
    let given = AppSettings::default();
    match slug {
        "shared-app" => App { settings: AppSettings { shared_tokens: true, ..given }, ..app(2) },
        "silent-app" => {
            App { settings: AppSettings { client_events: ClientEvents::None, ..given }, ..app(3) }
        }
        "idle-app" => App { settings: AppSettings { active: false, ..given }, ..app(4) },
        "careless-app" => App { secret: SecretString::from(""), ..app(6) },
        "open-app" => {
            App { settings: AppSettings { client_events: ClientEvents::All, ..given }, ..app(5) }
        }
        _ => app(1),
    }
}

fn apps() -> Apps {
    let slugs = ["foo-app", "shared-app", "silent-app", "idle-app", "open-app", "careless-app"];
    slugs.map(app).into_iter().collect()
}

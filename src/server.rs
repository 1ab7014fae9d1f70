//! The composition root: builds every part from the settings, runs them, stops them in order.

mod app_sessions;
mod archive_file;
mod listeners;
mod nodes;
mod protocols;
mod shutdown;
mod threads;

use std::{
    fmt, io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use actix::prelude::*;
use actix_web::{App as WebApp, middleware::from_fn, web};
use log::{info, warn};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use crate::{
    admission::{Entrance, Judge, Rules},
    app::{
        App, AppDirectory, Apps, Slug,
        refusals::Refusals,
        registry::{AppRegistry, ReviewChanges, WatchApps},
        seed,
        store::{AppStore, MissingFile, StoreError},
    },
    broker::{Topics, fanout::Fanout, node::NodeId, topics::TopicLimits, users::ONLINE_INTERVAL},
    engine::{Engine, EngineError, EngineState},
    http::{
        self, Services,
        admin::Throttle,
        console::{overview::Overview, session::LoginSessions},
        pace::TokenPace,
    },
    metrics::Metrics,
    phoenix::{
        self, PhoenixRules, admission::TokenJudge, connect::Endpoint, long_poll::EndpointThread,
        session_token::SessionTokens,
    },
    pusher::{conversation::PusherRules, endpoint::PusherEndpoint},
    session::{
        body::BodyBudget,
        bucket::PerSecond,
        connection::Connection,
        listener::{ConnectionService, Sockets},
        long_poll::{LongPollTimes, LongPolls},
        places::Places,
        public_id::PublicIds,
        requests::ConnectionLimit,
        unfinished::Unfinished,
        upgrade::Protocol,
        worker::{SessionCounter, SessionLimits, Worker},
    },
    settings::{self, EngineKind, Settings, SettingsError},
    usage::{keeper::UsageKeeper, ledger::UsageLedger, seat::Seat},
};
use app_sessions::AppSessions;
use archive_file::ArchiveFile;
use listeners::SocketListeners;
use shutdown::{ClosingPace, Shutdown, Signals};
use threads::Threads;

/// The time for writing the usage of apps after a stop has exceeded its time limit.
const LAST_WRITE_MAX: Duration = Duration::from_secs(1);

/// The time that a starting node may take to read the retained log and to become known to the other nodes, and
/// the time that it may take afterwards to fetch the last events of cache channels.
const FOLLOW_MAX: Duration = Duration::from_secs(60);

/// The interval at which a starting node checks whether the other nodes know it.
const KNOWN_INTERVAL: Duration = Duration::from_millis(100);

/// The reason why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting cannot be honoured.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database that a setting names cannot be used.
    #[error("database.url: {0}")]
    Database(#[source] StoreError),
    /// The tables are not up to date, and this environment does not migrate by itself.
    #[error("the database {database} has pending migrations; run `herald migrate up` first")]
    PendingMigration {
        /// The name of the database in messages.
        database: String,
    },
    /// The seeded app could not be created.
    #[error("cannot create the app test-app, which database.seed = true requires: {0}")]
    Seed(String),
    /// This server cannot join the cluster.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The log of the cluster was not read, or this node did not become known to the other nodes, in time.
    #[error(
        "the log of engine.redis_url was not read, or the other servers did not answer, within {FOLLOW_MAX:?}"
    )]
    Unread,
    /// The address cannot be listened on.
    #[error("{settings}: cannot listen on {address}: {source}; is another server running there?")]
    Listen {
        /// The settings that give the address.
        settings: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The signals that end the process cannot be handled.
    #[error("cannot handle SIGTERM and SIGINT: {0}")]
    Signals(#[source] io::Error),
    /// A worker thread could not be started.
    #[error("a worker thread does not start: {0}; server.workers says how many there are to be")]
    Thread(#[source] io::Error),
}

/// A server that listens, and serves until it is stopped.
pub struct Server {
    address: SocketAddr,
    threads: Threads,
    shutdown: Shutdown,
    signals: Signals,
    stop: Stop,
    directory: AppDirectory,
    metrics: Arc<Metrics>,
    /// The threads of `GET /metrics`, if that has an address of its own.
    metrics_server: Option<(SocketAddr, Threads)>,
}

/// Stops a server from elsewhere. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<Notify>);

impl Stop {
    /// Begins the shutdown, as a signal would.
    pub fn stop(&self) {
        self.0.notify_one();
    }
}

impl Server {
    /// Builds a server and begins to listen. Must run inside an actix system.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn build(settings: Settings) -> Result<Self, StartError> {
        Self::build_with(settings, Vec::new()).await
    }

    /// Builds a server with further protocols in addition to Phoenix's and Pusher's.
    ///
    /// # Errors
    /// Those of [`build`](Self::build).
    #[doc(hidden)]
    pub async fn build_with(
        settings: Settings,
        protocols: Vec<Arc<dyn Protocol>>,
    ) -> Result<Self, StartError> {
        Self::build_node(settings, protocols, None).await
    }

    /// Builds a server over `engine`, or over the engine of the settings if that is `None`. A server with an engine
    /// is a node of a cluster.
    ///
    /// # Errors
    /// Those of [`build`](Self::build).
    #[doc(hidden)]
    pub async fn build_node(
        mut settings: Settings,
        protocols: Vec<Arc<dyn Protocol>>,
        engine: Option<Arc<dyn Engine>>,
    ) -> Result<Self, StartError> {
        settings.keep()?;
        let settings = Arc::new(settings);
        // The port is opened before the database, so that a second server that is started by mistake does not use
        // the same database.
        let file_limit = settings::raise_file_limit();
        let sessions_max = settings.sessions_max(file_limit)?;
        let http_max = settings.http_connections_max(file_limit)?;
        let connections_max = settings.connections_max(file_limit);
        let address = SocketAddr::new(settings.server.host, settings.server.port);
        let listeners = SocketListeners::open(address, settings.worker_threads())?;
        let metrics_listener = settings.metrics.listen.map(listeners::listen).transpose()?;
        let store = open_store(&settings).await?;
        // The first start makes the folder of an SQLite database, which may be the same.
        settings.check_history_file()?;
        let directory = AppDirectory::default();
        directory.reserve(http::console::live::reserved_app(&settings));
        let metrics = Metrics::new(settings.metrics.apps_max);
        let console = LoginSessions::new(store.clone(), &settings);
        let ledger = UsageLedger::new(store.clone(), metrics.clone());
        let registry = AppRegistry::start(
            store,
            directory.clone(),
            settings.registry_times(),
            metrics.clone(),
        );
        let unfinished = Unfinished::new(settings.limits.unfinished_bytes_max);
        let engine = match (engine, settings.engine.kind) {
            (None, EngineKind::Redis) => {
                Some(nodes::start_engine(&settings, metrics.clone()).await?)
            }
            (engine, _) => engine,
        };
        let node = engine.as_ref().map_or(NodeId::ONLY, |engine| engine.node());
        let sessions = SessionCounter::new(sessions_max, unfinished, metrics).of_node(node);
        let threads = settings.worker_threads();
        let connections =
            ConnectionLimit::new(http_max, connections_max, threads, sessions.clone());
        let registry = registry.await?;
        warn_of_no_app(&settings, &directory.load());
        warn_of_short_log(&settings, &directory.load());
        actix_rt::spawn(console.clone().keep_swept());
        let (usage, seat) = (&settings.usage, ledger.seat().clone());
        let usage = UsageKeeper::start(ledger, usage.write_interval, usage.retention_days);
        let actors = (registry, usage, seat, console);
        let parts = Parts::assemble(settings, directory, actors, (sessions, connections), engine);
        let protocols = [parts.pusher()].into_iter().chain(protocols).collect();
        let parts = Parts { protocols, ..parts };
        let topics = parts.services.topics.clone();
        parts.services.registry.do_send(ReviewChanges(Arc::new(move |app| topics.review(app))));
        // The answers are registered first, because other nodes ask this one as soon as they know it.
        nodes::take_part(&parts.services);
        let places = &parts.endpoint.rules.shared.app_sessions;
        let app_sessions = AppSessions::share(&parts.services.topics, places);
        parts.follow_others().await?;
        if let Some(app_sessions) = app_sessions {
            app_sessions.begin().await;
        }
        let metrics_server = match metrics_listener {
            Some(listener) => Some(parts.serve_metrics(listener).await?),
            None => None,
        };
        Ok(Self { metrics_server, ..parts.serve(listeners).await? })
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address where `GET /metrics` is answered, if that has a listener of its own.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_server.as_ref().map(|(address, _)| *address)
    }

    /// The app with this slug, as the server read it last.
    pub fn app(&self, slug: &Slug) -> Option<Arc<App>> {
        self.directory.load().by_slug(slug.as_str()).cloned()
    }

    /// The server's metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// A handle that stops this server.
    pub fn stop_handle(&self) -> Stop {
        self.stop.clone()
    }

    /// Serves until SIGTERM, SIGINT or [`Stop::stop`], then shuts down in order: new sessions and `/ready` get
    /// 503, accepted events are delivered, and sessions are closed with 1012, batch by batch, while the retained
    /// publications are saved. A second signal closes the remaining sessions at once, and a third one ends the
    /// shutdown. A signal that came while the server was being built counts as well.
    pub async fn run_until_stopped(mut self) {
        let signals = &mut self.signals;
        // The metrics are served until the end, so that operators can watch the shutdown.
        let _metrics = self.metrics_server;
        tokio::select! {
            name = signals.next() => info!("{name}: shutting down"),
            () = self.stop.0.notified() => info!("asked to stop: shutting down"),
        }
        if let Err(why) = self.shutdown.stop(self.threads, signals).await {
            warn!("{why}: stopping at once");
            self.shutdown.write_usage(Instant::now() + LAST_WRITE_MAX).await;
        }
    }
}

/// Warns if the setting `single_app` does not name an active app, because no topic can be joined then.
fn warn_of_no_app(settings: &Settings, apps: &Apps) {
    let Some(slug) = &settings.single_app else { return };
    let found = match apps.by_slug(slug.as_str()) {
        Some(app) if app.settings.active => return,
        Some(_) => "an inactive app",
        None => "no app of this database",
    };
    warn!(
        "single_app = \"{slug}\" names {found}: until there is an active app with this slug, no topic \
         can be joined and no trigger is accepted"
    );
}

/// Warns if an app retains publications for longer than the log of the cluster has them.
fn warn_of_short_log(Settings { engine, history, .. }: &Settings, apps: &Apps) {
    let is_shortened = |app: &&Arc<App>| history.of(&app.settings).age > engine.log_age;
    if engine.kind == EngineKind::Redis
        && let Some(app) = apps.iter().find(is_shortened)
    {
        warn!(
            "app {} retains events for longer than engine.log_age: a server that starts has only those \
             that the log still has",
            app.slug
        );
    }
}

/// Connects to the database, and migrates it if the settings say so.
async fn open_store(settings: &Settings) -> Result<AppStore, StartError> {
    let store = AppStore::connect(&settings.database, MissingFile::MakeWithFolder).await;
    let store = store.map_err(StartError::Database)?;
    info!("apps are kept in {}", store.name());
    if settings.database.migrate {
        store.migrate_up(None).await?;
    } else if store.has_pending().await? {
        return Err(StartError::PendingMigration { database: store.name().to_owned() });
    }
    if settings.database.seed {
        seed::seed(&store).await.map_err(|error| StartError::Seed(error.to_string()))?;
    }
    Ok(store)
}

/// The parts that all worker threads share.
struct Parts {
    services: web::Data<Services>,
    endpoint: Arc<Endpoint>,
    /// The protocols other than Phoenix's.
    protocols: Arc<[Arc<dyn Protocol>]>,
    sessions: SessionCounter,
    connections: ConnectionLimit,
}

impl Parts {
    fn assemble(
        settings: Arc<Settings>,
        directory: AppDirectory,
        (registry, usage, seat, console): (
            Addr<AppRegistry>,
            Addr<UsageKeeper>,
            Seat,
            LoginSessions,
        ),
        (sessions, connections): (SessionCounter, ConnectionLimit),
        engine: Option<Arc<dyn Engine>>,
    ) -> Self {
        let limits = &settings.limits;
        let metrics = sessions.metrics().clone();
        let topic_limits = TopicLimits {
            outboxes_bytes_max: limits.outboxes_bytes_max(),
            publications_in_flight_max: limits.publications_in_flight_max,
            scopes_per_app_max: limits.scopes_per_app_max,
            presence_members_max: limits.presence_members_max,
            idempotency_keys_max: limits.idempotency_keys_max,
            presence_interval: settings.socket.presence_interval,
            online_interval: ONLINE_INTERVAL,
            wait_max: settings.socket.topic_timeout,
            history: settings.history.clone(),
            last_events: (&settings.pusher).into(),
        };
        let services = web::Data::new(Services {
            topics: match engine {
                None => Topics::new(topic_limits, directory.clone(), metrics.clone()),
                Some(engine) => {
                    Topics::of_node(topic_limits, directory.clone(), metrics.clone(), engine)
                }
            },
            directory,
            registry,
            usage,
            seat,
            admin_throttle: Arc::new(Throttle::new(limits.failed_admin_logins_per_minute_max)),
            draining: Arc::default(),
            changes: Default::default(),
            pace: TokenPace::new(PerSecond(limits.client_events_per_second_max)),
            bodies: BodyBudget::new(limits.bodies_bytes_max),
            public_ids: PublicIds::new(&settings.secrets.secret_key_base),
            refusals: Arc::new(Refusals::new(settings.log.refusal_interval, metrics.clone())),
            metrics,
            console,
            overview: Overview::default(),
            address: Default::default(),
            settings,
        });
        let endpoint = Arc::new(endpoint(&services));
        let protocols = Arc::default();
        Self { services, endpoint, protocols, sessions, connections }
    }

    /// In a cluster, waits until the retained log has been read, and until the other nodes know this one. So a
    /// node that accepts clients has the same history as the others, and takes part in their questions.
    async fn follow_others(&self) -> Result<(), StartError> {
        let topics = &self.services.topics;
        let Some(engine) = topics.engine() else { return Ok(()) };
        let mut state = engine.state();
        let follow = async {
            state.wait_for(|state| *state == EngineState::Up).await.ok()?;
            while topics.is_known().await != Ok(true) {
                sleep(KNOWN_INTERVAL).await;
            }
            Some(())
        };
        timeout(FOLLOW_MAX, follow).await.ok().flatten().ok_or(StartError::Unread)?;
        let fetched = timeout(FOLLOW_MAX, topics.fetch_last_events()).await;
        if !matches!(fetched, Ok(Ok(()))) {
            warn!(
                "no other node has sent the last events of cache channels in time: new subscribers may miss some"
            );
        }
        info!("node {} has read the log, and the other nodes know it", topics.node().0);
        Ok(())
    }

    /// The endpoint of Pusher's clients, which shares the rules and the limits of Phoenix's.
    fn pusher(&self) -> Arc<dyn Protocol> {
        let pusher = &self.services.settings.pusher;
        let rules = PusherRules {
            shared: self.endpoint.rules.shared.clone(),
            ids: self.services.public_ids.clone(),
            activity_timeout: pusher.activity_timeout,
            pong_timeout: pusher.pong_timeout,
            authorization_timeout: pusher.authorization_timeout,
            channel_bytes_max: pusher.channel_bytes_max,
        };
        Arc::new(PusherEndpoint {
            rules: Arc::new(rules),
            entrance: self.endpoint.entrance.clone(),
            path_prefix: pusher.path_prefix.clone(),
            strict_protocol: pusher.strict_protocol,
        })
    }

    async fn serve(self, listeners: SocketListeners) -> Result<Server, StartError> {
        let _ = self.services.address.set(listeners.address);
        // Until here a signal ends the process at once, because there is nothing to save. Loading takes the history
        // out of its file, so from here on a signal must lead to an orderly stop, which saves it again.
        let signals = Signals::listen().map_err(StartError::Signals)?;
        let server = &self.services.settings.server;
        let shutdown = Shutdown {
            topics: self.services.topics.clone(),
            sessions: self.sessions.clone(),
            draining: self.services.draining.clone(),
            pace: ClosingPace {
                batch_sessions: server.drain_batch_sessions,
                interval: server.drain_interval,
            },
            timeout: server.shutdown_timeout,
            archive: self.load().await,
            registry: self.services.registry.clone(),
            usage: self.services.usage.clone(),
        };
        actix_rt::spawn(self.services.topics.clone().keep_history());
        if self.services.settings.console.enabled {
            actix_rt::spawn(http::console::reporter::run(self.services.clone()));
            actix_rt::spawn(Overview::keep(self.services.clone()));
        }
        let (address, metrics) = (listeners.address, self.services.metrics.clone());
        let directory = self.services.directory.clone();
        let (connections, parts) = (self.connections.clone(), Arc::new(self));
        let threads = Threads::start(listeners, connections, move |stops| parts.service(stops));
        let threads = threads.await.map_err(StartError::Thread)?;
        let stop = Stop::default();
        let metrics_server = None;
        Ok(Server { address, threads, shutdown, signals, stop, directory, metrics, metrics_server })
    }

    /// Loads the history that the last stop saved. Returns the file in which the next stop saves it.
    async fn load(&self) -> Option<Arc<ArchiveFile>> {
        let file = Arc::new(ArchiveFile::new(self.services.settings.history_file()?));
        // The nodes of a cluster have their history in the log.
        if self.services.topics.is_clustered() {
            let to_discard = file.clone();
            if web::block(move || to_discard.discard()).await.is_err() {
                warn!(
                    "a panic kept {file} from being emptied; remove it, or a later start would load it"
                );
            }
            return None;
        }
        let (topics, to_load) = (self.services.topics.clone(), file.clone());
        if web::block(move || to_load.load(&topics)).await.is_err() {
            warn!("a panic ended the loading of {file}; new epochs begin");
        }
        Some(file)
    }

    async fn serve_metrics(
        &self,
        listener: SocketListeners,
    ) -> Result<(SocketAddr, Threads), StartError> {
        let address = listener.address;
        if !address.ip().is_loopback() {
            warn!(
                "metrics need no login at {address}: make sure that only your monitoring can reach it"
            );
        }
        let max = Some(http::metrics::CONNECTIONS_MAX);
        let limit = ConnectionLimit::new(max, usize::MAX, 1, self.sessions.clone());
        let (services, connections) = (self.services.clone(), limit.clone());
        let threads = Threads::start(listener, limit, move |stops| {
            // This listener continues while the server drains.
            let draining = Arc::default();
            connections_of(&services.settings, connections.clone(), draining, stops)
                .service(http::metrics::app(services.clone()), Sockets::none())
        });
        let threads = threads.await.map_err(StartError::Thread)?;
        info!("metrics on {address}");
        Ok((address, threads))
    }

    /// Makes the service of one worker thread. Must be called on that thread.
    fn service(
        &self,
        stops: watch::Receiver<bool>,
    ) -> impl actix_service::ServiceFactory<
        (Connection, SocketAddr),
        Config = (),
        Response = (),
        InitError = (),
    > + use<> {
        let (services, endpoint) = (&self.services, self.endpoint.clone());
        let registry = services.registry.clone();
        let introduce = move |fanout: &Addr<Fanout>| {
            registry.do_send(WatchApps(fanout.clone().recipient()));
        };
        let limits = session_limits(&services.settings);
        let worker =
            Worker::start(services.topics.clone(), limits, self.sessions.clone(), introduce);
        let thread = Rc::new(EndpointThread { endpoint: endpoint.clone(), worker: worker.clone() });
        let app = WebApp::new()
            .app_data(services.clone())
            .wrap(from_fn(http::client::require_tls))
            .configure(|config| phoenix::routes::configure(config, &thread))
            .configure(|config| http::configure(config, &services.settings));
        let upgrade_handler = protocols::upgrade_handler(endpoint, self.protocols.clone());
        let is_socket = protocols::is_socket(&self.protocols);
        let (connections, draining) = (self.connections.clone(), services.draining.clone());
        connections_of(&services.settings, connections, draining, stops)
            .service(app, Sockets::new(worker, upgrade_handler, is_socket))
    }
}

fn endpoint(services: &Services) -> Endpoint {
    let Settings { socket, limits, server, secrets, .. } = &*services.settings;
    let rules = Rules {
        directory: services.directory.clone(),
        judge: Judge { refusals: services.refusals.clone() },
        channels_max: limits.channels_per_transport_max,
        client_event_bytes_max: limits.client_event_bytes_max,
        client_events_max: PerSecond(limits.client_events_per_second_max),
        joins_max: PerSecond(limits.joins_per_second_max),
        app_sessions: Places::new(limits.sessions_per_app_max),
        feed: services.topics.feed().clone(),
        metrics: services.metrics.clone(),
    };
    let shared = Arc::new(rules);
    let judge = TokenJudge {
        addressing: services.addressing(),
        guardian_secret: secrets.guardian_secret.clone(),
        token_bytes_max: limits.token_bytes_max,
        shared: shared.clone(),
    };
    let mut long_polls = LongPolls::new(LongPollTimes {
        window: socket.long_poll_window,
        unjoined_max: socket.long_poll_unjoined_timeout,
    });
    long_polls.share(&services.topics);
    let entrance = Entrance {
        check_origin: socket.check_origin.clone(),
        trusted_proxies: server.trusted_proxies.clone(),
        force_ssl: server.force_ssl,
        addresses: Places::new(limits.sessions_per_address_max),
        refusals: services.refusals.clone(),
        metrics: services.metrics.clone(),
    };
    Endpoint {
        rules: Arc::new(PhoenixRules { shared, judge, ref_bytes_max: limits.ref_bytes_max }),
        entrance: Arc::new(entrance),
        long_polls,
        tokens: SessionTokens::new(secrets.secret_key_base.clone()),
        bodies: services.bodies.clone(),
        body_bytes_max: limits.request_body_bytes_max,
        message_bytes_max: limits.message_bytes_max,
    }
}

fn session_limits(Settings { socket, limits, .. }: &Settings) -> SessionLimits {
    SessionLimits {
        message_bytes_max: limits.message_bytes_max,
        unjoined_message_bytes_max: limits.unjoined_message_bytes_max(),
        message_timeout: socket.message_timeout,
        frames_per_second_max: PerSecond(limits.frames_per_second_max),
        outbox_frames_max: limits.outbox_frames_max,
        outbox_bytes_max: limits.outbox_bytes_max,
        idle_timeout: socket.idle_timeout,
        write_timeout: socket.write_timeout,
    }
}

/// The rules for the connections of a thread.
fn connections_of(
    settings: &Settings,
    limit: ConnectionLimit,
    draining: Arc<AtomicBool>,
    stops: watch::Receiver<bool>,
) -> ConnectionService {
    let Settings { socket, server, .. } = settings;
    ConnectionService {
        handshake_timeout: socket.handshake_timeout,
        idle_timeout: socket.idle_timeout,
        keep_alive: server.keep_alive,
        draining,
        limit,
        waiting_max: (settings.limits.http_waiting_max / settings.worker_threads()).max(1),
        stops,
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::{
    App as WebApp,
    body::{BoxBody, to_bytes},
    dev::{Service, ServiceResponse},
    http::Method,
    test::{TestRequest, init_service},
};
use futures_util::future::{FutureExt, LocalBoxFuture};
use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::*;
use crate::{
    app::{
        AppDirectory,
        refusals::Refusals,
        registry::{AppRegistry, Times},
        store::{AppStore, MissingFile},
    },
    broker::{Topics, topics::TopicLimits, users::ONLINE_INTERVAL},
    http::{
        admin::Throttle, console::session::LoginSessions, guard as middleware, pace::TokenPace,
    },
    metrics::Metrics,
    session::{body::BodyBudget, bucket::PerSecond, public_id::PublicIds},
    settings::Settings,
    usage::{keeper::UsageKeeper, ledger::UsageLedger},
};

const FORM: &str = "application/x-www-form-urlencoded";
const JSON: &str = "application/json";
const URL: &str = "/api/admin/apps";

/// An admin API on a database of its own.
struct Api {
    service: Box<dyn Fn(TestRequest) -> LocalBoxFuture<'static, ServiceResponse<BoxBody>>>,
    directory: AppDirectory,
    store: AppStore,
    _folder: TempDir,
}

struct Answer {
    status: u16,
    headers: header::HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).expect("JSON")
    }

    fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }
}

async fn start(env: &[(&str, &str)]) -> Api {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}/herald.db", folder.path().display());
    let env = [("HERALD_ENV", "test"), ("DATABASE_URL", url.as_str())]
        .iter()
        .chain([("PUSHER_ADMIN_USERNAME", "admin"), ("PUSHER_ADMIN_PASSWORD", "pa:ss")].iter())
        .chain(env)
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect::<Vec<_>>();
    let settings = Settings::load_from(env.into_iter(), None).expect("settings");
    let store = AppStore::connect(&settings.database, MissingFile::MakeWithFolder)
        .await
        .expect("a database");
    store.migrate_up(None).await.expect("migrations");
    let directory = AppDirectory::default();
    let times = Times { refresh: Duration::from_secs(3600), ..settings.registry_times() };
    let metrics = Metrics::new(settings.metrics.apps_max);
    let registry =
        AppRegistry::start(store.clone(), directory.clone(), times, metrics.clone()).await;
    let console = LoginSessions::new(store.clone(), &settings);
    let topic_limits = TopicLimits {
        outboxes_bytes_max: 1 << 30,
        publications_in_flight_max: 1,
        scopes_per_app_max: 1,
        presence_members_max: 1,
        idempotency_keys_max: 1,
        presence_interval: Duration::from_secs(1),
        online_interval: ONLINE_INTERVAL,
        wait_max: Duration::from_secs(1),
        history: settings.history.clone(),
        last_events: (&settings.pusher).into(),
    };
    let services = web::Data::new(Services {
        usage: usage_keeper(&store, &metrics),
        registry: registry.expect("a registry"),
        directory: directory.clone(),
        topics: Topics::new(topic_limits, directory.clone(), metrics.clone()),
        seat: Default::default(),
        changes: Default::default(),
        pace: TokenPace::new(PerSecond(settings.limits.client_events_per_second_max)),
        bodies: BodyBudget::new(settings.limits.bodies_bytes_max),
        public_ids: PublicIds::new(&settings.secrets.secret_key_base),
        refusals: Arc::new(Refusals::new(settings.log.refusal_interval, metrics.clone())),
        admin_throttle: Arc::new(Throttle::new(settings.limits.failed_admin_logins_per_minute_max)),
        draining: Arc::default(),
        settings: Arc::new(settings),
        metrics,
        console,
        overview: Default::default(),
        address: Default::default(),
    });
    let api = web::scope("/api").wrap(from_fn(middleware::guard)).configure(configure);
    let service = init_service(WebApp::new().app_data(services).service(api)).await;
    let service = move |request: TestRequest| {
        let answer = service.call(request.to_request());
        async { answer.await.expect("an answer") }.boxed_local()
    };
    Api { service: Box::new(service), directory, store, _folder: folder }
}

fn usage_keeper(store: &AppStore, metrics: &Arc<Metrics>) -> actix::Addr<UsageKeeper> {
    let ledger = UsageLedger::new(store.clone(), metrics.clone());
    UsageKeeper::start(ledger, Duration::from_secs(60), 1)
}

impl Api {
    async fn send(&self, request: TestRequest) -> Answer {
        let peer: SocketAddr = "192.0.2.1:4711".parse().expect("an address");
        let response = (self.service)(request.peer_addr(peer)).await;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = to_bytes(response.into_body()).await.expect("a body");
        let text = String::from_utf8(body.to_vec()).expect("UTF-8");
        Answer { status, headers, text }
    }

    async fn call(&self, method: Method, url: &str, content: (&str, &str)) -> Answer {
        let (content_type, body) = content;
        let mut request = as_admin(method, url).set_payload(body.to_owned());
        if !content_type.is_empty() {
            request = request.insert_header((header::CONTENT_TYPE, content_type));
        }
        self.send(request).await
    }

    async fn create(&self, given: Value) -> Value {
        let body = json!({ "app": given }).to_string();
        let answer = self.call(Method::POST, URL, (JSON, &body)).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        answer.json()["data"].clone()
    }
}

fn as_admin(method: Method, url: &str) -> TestRequest {
    let basic = ("Authorization", "Basic YWRtaW46cGE6c3M=");
    TestRequest::with_uri(url).method(method).insert_header(basic)
}

fn detail(text: &str) -> Value {
    json!({ "errors": { "detail": text } })
}

#[actix_web::test]
async fn the_articles_form_creates_an_app() {
    let api = start(&[]).await;
    let answer = api.call(Method::POST, URL, (FORM, "app[name]=foo-app")).await;
    assert_eq!(answer.status, 201);
    assert_eq!(answer.header(header::LOCATION), Some("/api/admin/apps/foo-app"));
    assert_eq!(answer.header(header::CONTENT_TYPE), Some("application/json"));
    assert_eq!(answer.header(header::CACHE_CONTROL), Some("no-store"));
    let app = answer.json()["data"].clone();
    let time = app["inserted_at"].clone();
    assert!(chrono::DateTime::parse_from_rfc3339(time.as_str().expect("a time")).is_ok());
    let known = api.directory.load().by_slug("foo-app").cloned().expect("at once");
    let expected = json!({
        "id": known.id.0, "name": "foo-app", "slug": "foo-app",
        "key": known.key, "secret": known.secret.expose_secret(),
        "key_last_used_at": null, "previous_key": null, "previous_key_expires_at": null,
        "previous_key_last_used_at": null, "active": true,
        "allowed_origins": [], "client_events": "authorized", "shared_tokens": false,
        "history_publications": null, "history_seconds": null,
        "pusher": true, "subscription_count": true, "authorized_only": false,
        "inserted_at": time, "updated_at": time,
    });
    assert_eq!(app, expected);

    let shown = api.call(Method::GET, "/api/admin/apps/foo-app", ("", "")).await;
    assert_eq!((shown.status, shown.json()), (200, json!({ "data": app })));
    let listed = api.call(Method::GET, URL, ("", "")).await;
    assert_eq!((listed.status, listed.json()), (200, json!({ "data": [app] })));
}

#[actix_web::test]
async fn apps_are_listed_newest_last_and_shown_also_when_inactive() {
    let api = start(&[]).await;
    let listed = api.call(Method::GET, URL, ("", "")).await;
    assert_eq!(listed.json(), json!({ "data": [] }));
    let first = api.create(json!({ "name": "zzzzz", "active": false })).await;
    let second = api.create(json!({ "name": "aaaaa" })).await;
    let listed = api.call(Method::GET, URL, ("", "")).await;
    assert_eq!(listed.json(), json!({ "data": [first, second] }));
    let shown = api.call(Method::GET, "/api/admin/apps/zzzzz", ("", "")).await;
    assert_eq!(shown.json(), json!({ "data": first }));
    let head = api.call(Method::HEAD, "/api/admin/apps/zzzzz", ("", "")).await;
    assert_eq!(head.status, 200);
}

#[actix_web::test]
async fn put_and_patch_change_the_given_fields() {
    let api = start(&[]).await;
    let mut app = api.create(json!({ "name": "foo-app" })).await;
    let origins = "app[active]=0&app[allowed_origins][]=https://a.example\
                   &app[allowed_origins][]=//*.b.example";
    for (case, method, content, changed) in [
        (
            "PATCH",
            Method::PATCH,
            (JSON, r#"{"app":{"client_events":"all"}}"#),
            json!({"client_events": "all"}),
        ),
        (
            "PUT",
            Method::PUT,
            (JSON, r#"{"app":{"shared_tokens":true}}"#),
            json!({"shared_tokens": true}),
        ),
        (
            "PUT a form",
            Method::PUT,
            (FORM, origins),
            json!({"active": false, "allowed_origins": ["https://a.example", "//*.b.example"]}),
        ),
        (
            "history",
            Method::PATCH,
            (JSON, r#"{"app":{"history_publications":500,"history_seconds":0}}"#),
            json!({"history_publications": 500, "history_seconds": 0}),
        ),
        (
            "a form with history",
            Method::PUT,
            (FORM, "app[history_publications]=&app[history_seconds]=86400"),
            json!({"history_publications": null, "history_seconds": 86_400}),
        ),
        (
            "the default",
            Method::PATCH,
            (JSON, r#"{"app":{"history_seconds":null}}"#),
            json!({"history_seconds": null}),
        ),
        (
            "empty a list",
            Method::PATCH,
            (FORM, "app[allowed_origins]="),
            json!({"allowed_origins": []}),
        ),
        (
            "not writable",
            Method::PATCH,
            (JSON, r#"{"app":{"id":99,"slug":"x","inserted_at":null,"__proto__":{}}}"#),
            json!({}),
        ),
        ("nothing", Method::PATCH, (JSON, r#"{"app":{}}"#), json!({})),
    ] {
        let answer = api.call(method, "/api/admin/apps/foo-app", content).await;
        assert_eq!(answer.status, 200, "{case}: {}", answer.text);
        let after = answer.json()["data"].clone();
        for (field, value) in changed.as_object().expect("an object") {
            app[field] = value.clone();
        }
        app["updated_at"] = after["updated_at"].clone();
        assert_eq!(after, app, "{case}");
    }
    let answer = api
        .call(Method::PATCH, "/api/admin/apps/foo-app", (FORM, "app[name]=Bar App&app[secret]="))
        .await;
    let after = answer.json()["data"].clone();
    assert_eq!(after["slug"], "bar-app");
    assert_ne!(after["secret"], app["secret"]);
    assert_eq!(after["key"], app["key"]);
    let gone = api.call(Method::GET, "/api/admin/apps/foo-app", ("", "")).await;
    assert_eq!((gone.status, gone.json()), (404, detail("not found")));
}

#[actix_web::test]
async fn a_deleted_app_is_gone_at_once() {
    let api = start(&[]).await;
    api.create(json!({ "name": "foo-app" })).await;
    let one = "/api/admin/apps/foo-app";
    let deleted = api.call(Method::DELETE, one, ("", "")).await;
    assert_eq!((deleted.status, deleted.text.as_str()), (204, ""));
    assert!(api.directory.load().by_slug("foo-app").is_none());
    for method in [Method::DELETE, Method::GET] {
        let answer = api.call(method, one, ("", "")).await;
        assert_eq!((answer.status, answer.json()), (404, detail("not found")));
    }
    for method in [Method::PUT, Method::PATCH] {
        let answer = api.call(method, one, (JSON, r#"{"app":{"active":true}}"#)).await;
        assert_eq!((answer.status, answer.json()), (404, detail("not found")));
    }
}

#[actix_web::test]
async fn invalid_apps_are_refused_with_all_their_faults() {
    let api = start(&[]).await;
    api.create(json!({ "name": "foo-app", "key": "foo-key" })).await;
    api.create(json!({ "name": "bar-app" })).await;
    let key_taken = json!({ "key": ["has already been taken"] });
    let taken = json!({ "name": ["has already been taken"], "slug": ["has already been taken"] });
    let short = json!({ "name": ["should be at least 5 character(s)"] });
    for (case, method, url, content, faults) in [
        ("the article's short name", Method::POST, URL, (FORM, "app[name]=foo"), short),
        ("taken", Method::POST, URL, (FORM, "app[name]=foo-app"), taken.clone()),
        (
            "renamed to a taken one",
            Method::PUT,
            "/api/admin/apps/bar-app",
            (FORM, "app[name]=foo-app"),
            taken,
        ),
        (
            "a taken key",
            Method::POST,
            URL,
            (FORM, "app[name]=another&app[key]=foo-key"),
            key_taken.clone(),
        ),
        (
            "changed to a taken key",
            Method::PATCH,
            "/api/admin/apps/bar-app",
            (FORM, "app[key]=foo-key"),
            key_taken,
        ),
        (
            "several",
            Method::POST,
            URL,
            (JSON, r#"{"app":{"name":null,"active":[],"secret":"short"}}"#),
            json!({
                "active": ["is invalid"],
                "name": ["can't be blank"],
                "secret": ["should be at least 16 character(s)"],
            }),
        ),
    ] {
        let answer = api.call(method, url, content).await;
        let expected = json!({ "errors": faults });
        assert_eq!((answer.status, answer.json()), (422, expected), "{case}");
    }
}

#[actix_web::test]
async fn hostile_requests_get_a_plain_answer() {
    let api = start(&[
        ("HERALD__LIMITS__REQUEST_BODY_BYTES_MAX", "10000"),
        ("HERALD__LIMITS__TRIGGER_PAYLOAD_BYTES_MAX", "5000"),
    ])
    .await;
    let deep = format!(r#"{{"app":{}"#, "[".repeat(9_000));
    let large = format!("app[name]={}", "x".repeat(10_000));
    let deep_form = format!("app{}=x", "[a]".repeat(3_000));
    let no_app = "request body must hold an object named app";
    let not_json = "request body is not valid JSON";
    let type_ = "content type must be application/json or application/x-www-form-urlencoded";
    for (case, content, status, text) in [
        ("no body", ("", ""), 400, no_app),
        ("no app", (JSON, "{}"), 400, no_app),
        ("app is a string", (JSON, r#"{"app":"foo-app"}"#), 400, no_app),
        ("app is a list", (FORM, "app[]=foo-app"), 400, no_app),
        ("app is null", (JSON, r#"{"app":null}"#), 400, no_app),
        ("flat form", (FORM, "name=foo-app"), 400, no_app),
        ("half", (JSON, r#"{"app":{"name":"foo-app""#), 400, not_json),
        ("deep", (JSON, &deep), 400, not_json),
        ("a list", (JSON, "[]"), 400, "request body must be a JSON object"),
        ("text", ("text/plain", "app[name]=foo-app"), 415, type_),
        ("untyped", ("", "app[name]=foo-app"), 415, type_),
        ("large", (FORM, &large), 413, "request body is larger than 10000 bytes"),
    ] {
        let answer = api.call(Method::POST, URL, content).await;
        assert_eq!((answer.status, answer.json()), (status, detail(text)), "{case}");
    }
    let answer = api.call(Method::POST, URL, (FORM, &deep_form)).await;
    let name = &deep_form[..100];
    let too_deep = json!({ "errors": { name: ["is nested too deeply"] } });
    assert_eq!((answer.status, answer.json()), (422, too_deep));
    for slug in ["%00", "..%2F", "FOO", "%F0%9F%A6%80", "a%20b", "'", "%ff"] {
        let url = format!("{URL}/{slug}");
        let answer = api.call(Method::GET, &url, ("", "")).await;
        assert_eq!((answer.status, answer.json()), (404, detail("not found")), "{slug}");
    }
    for (method, url, status, allow) in [
        (Method::DELETE, URL, 405, Some("GET, HEAD, POST")),
        (Method::POST, "/api/admin/apps/foo", 405, Some("GET, HEAD, PUT, PATCH, DELETE")),
        (Method::GET, "/api/admin/apps/foo/bar", 404, None),
    ] {
        let answer = api.call(method, url, ("", "")).await;
        assert_eq!((answer.status, answer.header(header::ALLOW)), (status, allow), "{url}");
        assert!(answer.json()["errors"]["detail"].is_string(), "{url}");
    }
    assert!(api.directory.load().iter().next().is_none(), "nothing was created");
}

#[actix_web::test]
async fn only_the_admin_gets_in() {
    let api = start(&[]).await;
    let wrong = "Basic YWRtaW46d3Jvbmc=";
    for (case, authorization) in
        [("nothing", None), ("wrong", Some(wrong)), ("bearer", Some("Bearer x"))]
    {
        for (method, url) in [
            (Method::GET, URL),
            (Method::POST, URL),
            (Method::DELETE, "/api/admin/apps/foo-app"),
            (Method::GET, "/api/admin/apps/no/such"),
        ] {
            let mut request = TestRequest::with_uri(url).method(method);
            if let Some(value) = authorization {
                request = request.insert_header((header::AUTHORIZATION, value));
            }
            let answer = api.send(request).await;
            let expected = detail("authentication required");
            assert_eq!((answer.status, answer.json()), (401, expected), "{case} {url}");
            let challenge = answer.header(header::WWW_AUTHENTICATE);
            assert_eq!(challenge, Some(r#"Basic realm="Herald""#), "{case} {url}");
        }
    }
}

#[actix_web::test]
async fn a_client_that_guesses_too_often_is_refused_for_the_minute() {
    let api = start(&[("HERALD__LIMITS__FAILED_ADMIN_LOGINS_PER_MINUTE_MAX", "3")]).await;
    let began = Instant::now();
    let wrong = (header::AUTHORIZATION, "Basic YWRtaW46d3Jvbmc=");
    for _ in 0..3 {
        let answer = api.send(TestRequest::with_uri(URL).insert_header(wrong.clone())).await;
        assert_eq!(answer.status, 401);
    }
    let answer = api.call(Method::GET, URL, ("", "")).await;
    assert_eq!(answer.status, 429);
    assert_eq!(answer.json(), detail("too many attempts, try again later"));
    let wait = answer.header(header::RETRY_AFTER).expect("when to come back");
    let wait = Duration::from_secs(wait.parse().expect("seconds"));
    let (least, most) = (Duration::from_secs(60) - began.elapsed(), Duration::from_secs(60));
    assert!(least <= wait && wait <= most, "{wait:?}");
    let anonymous = api.send(TestRequest::with_uri(URL)).await;
    assert_eq!(anonymous.status, 401, "who brings no credentials does not guess");
}

#[actix_web::test]
async fn another_sites_page_writes_nothing() {
    let api = start(&[]).await;
    for (case, name, value, status) in [
        ("cross-site", "Sec-Fetch-Site", "cross-site", 403),
        ("foreign", "Origin", "https://evil.example", 403),
        ("null", "Origin", "null", 403),
        ("own", "Origin", "http://herald.example", 422),
    ] {
        let request = as_admin(Method::POST, URL)
            .insert_header((header::HOST, "herald.example"))
            .insert_header((name, value))
            .insert_header((header::CONTENT_TYPE, FORM))
            .set_payload("app[name]=foo");
        let answer = api.send(request).await;
        assert_eq!(answer.status, status, "{case}");
        assert!(answer.header(header::ACCESS_CONTROL_ALLOW_ORIGIN).is_none(), "{case}");
    }
    let reading = as_admin(Method::GET, URL).insert_header(("Sec-Fetch-Site", "cross-site"));
    assert_eq!(api.send(reading).await.status, 200, "reading stays");
}

#[actix_web::test]
async fn without_a_database_every_call_is_unavailable() {
    let api = start(&[]).await;
    api.create(json!({ "name": "foo-app" })).await;
    api.store.close().await;
    let one = "/api/admin/apps/foo-app";
    let form = (FORM, "app[name]=bar-app");
    for (method, url, content) in [
        (Method::GET, URL, ("", "")),
        (Method::GET, one, ("", "")),
        (Method::POST, URL, form),
        (Method::PUT, one, form),
        (Method::DELETE, one, ("", "")),
    ] {
        let answer = api.call(method.clone(), url, content).await;
        assert_eq!(answer.status, 503, "{method} {url}");
        assert_eq!(answer.header(header::RETRY_AFTER), Some("1"), "{method} {url}");
        let expected = detail("service unavailable, try again later");
        assert_eq!(answer.json(), expected, "{method} {url}");
    }
    assert!(api.directory.load().by_slug("foo-app").is_some(), "the snapshot stands");
}

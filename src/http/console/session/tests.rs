use actix_web::{
    App as WebApp, HttpMessage, HttpRequest, HttpResponse,
    http::header::HeaderValue,
    middleware::from_fn,
    test::{TestRequest, call_service, init_service},
    web,
};

use super::*;
use crate::http::{
    guard::guard,
    testing::{TestServices, app},
};

const PATH: &str = "/api/apps/foo-app";

/// Services whose registry does not read the database again, and the session of a login of `foo-app`.
struct LoggedInApp {
    test: TestServices,
    session: Session,
    headers: HeaderMap,
}

impl LoggedInApp {
    async fn start() -> Self {
        let test = TestServices::start_with(&[("HERALD__REGISTRY__REFRESH", "1h")]).await;
        let (session, headers) = log_in(&test, &app("foo-app")).await;
        Self { test, session, headers }
    }

    fn console(&self) -> &LoginSessions {
        &self.test.services.console
    }

    /// Gives the app another pair, as far as this server knows.
    fn rotate(&self, pair: &NewPair) {
        let NewPair { key, secret } = pair.clone();
        let rotated = App { key, secret, ..app("foo-app") };
        self.test.services.directory.replace([rotated].into_iter().collect());
    }

    async fn is_in(&self) -> bool {
        let found = self.console().find(&self.test.services, &self.headers).await;
        found.expect("an answer").is_some()
    }

    async fn ended_among(&self, ids: &[&str]) -> Vec<String> {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        self.console().ended_among(&self.test.services, ids).await
    }
}

async fn log_in(test: &TestServices, app: &App) -> (Session, HeaderMap) {
    let services = &test.services;
    let begun = services.console.begin(&services.settings, Some((app, Pair::Current))).await;
    let (value, session) = begun.expect("a session");
    let mut headers = HeaderMap::new();
    let cookie = HeaderValue::from_str(&format!("{COOKIE_NAME}={value}"));
    headers.insert(COOKIE, cookie.expect("a header"));
    (session, headers)
}

#[actix_web::test]
async fn a_call_keeps_its_session_only_for_the_pair_that_it_has_made_itself() {
    for (case, made, now, is_kept) in [
        ("it changes no key, and another party rotates", None, "b", false),
        ("it rotates", Some("a"), "a", true),
        ("it rotates, and then another party does", Some("a"), "b", false),
    ] {
        let pairs = ["a", "b"].map(|name| (name, NewPair::random()));
        let pair = |name: &str| {
            pairs.iter().find(|(its_name, _)| *its_name == name).expect("a pair").1.clone()
        };
        let logged_in = Arc::new(LoggedInApp::start().await);
        let (changed, now, made) = (logged_in.clone(), pair(now), made.map(pair));
        let change = move |request: HttpRequest| {
            changed.rotate(&now);
            if let Some(made) = made.clone() {
                request.extensions_mut().insert(made);
            }
            async { HttpResponse::Ok().finish() }
        };
        let api = web::scope("/api").wrap(from_fn(guard));
        let api = api.route("/apps/foo-app", web::patch().to(change));
        let server = WebApp::new().app_data(logged_in.test.services.clone()).service(api);
        let server = init_service(server).await;
        let cookie = logged_in.headers.get(COOKIE).expect("a cookie").clone();
        let request = TestRequest::patch().uri(PATH).insert_header((COOKIE, cookie));
        let request = request.insert_header(("sec-fetch-site", "same-origin"));
        let answer = call_service(&server, request.to_request()).await;
        assert_eq!(answer.status(), 200, "{case}");
        assert_eq!(logged_in.is_in().await, is_kept, "{case}");
    }
}

#[actix_web::test]
async fn a_session_that_has_changed_its_keys_elsewhere_is_not_refused_for_its_cached_row() {
    let logged_in = LoggedInApp::start().await;
    assert!(logged_in.is_in().await, "its row is cached from now on");
    let pair = NewPair::random();
    let rotated = App { key: pair.key.clone(), secret: pair.secret.clone(), ..app("foo-app") };
    let inner = logged_in.console();
    let rests_on = inner.rests_on_app(&rotated, Pair::Current).expect("a current pair");
    let renewed = inner.store.rest_console_session(logged_in.session.id(), &rests_on).await;
    renewed.expect("a written row");
    logged_in.rotate(&pair);
    assert!(logged_in.is_in().await);
    logged_in.rotate(&NewPair::random());
    assert!(!logged_in.is_in().await);
}

#[actix_web::test]
async fn of_the_logins_of_the_live_feed_those_that_have_ended_are_told_even_in_an_outage() {
    let logged_in = LoggedInApp::start().await;
    let (out, _) = log_in(&logged_in.test, &app("foo-app")).await;
    let services = &logged_in.test.services;
    let of_admin = logged_in.console().begin(&services.settings, None).await;
    let (_, of_admin) = of_admin.expect("a session");
    let ids = [logged_in.session.id(), of_admin.id(), out.id(), "unknown"];
    assert_eq!(logged_in.ended_among(&ids).await, ["unknown"]);
    logged_in.console().store.end_console_session(out.id()).await.expect("a logout elsewhere");
    let mut expected = vec![out.id().to_owned(), "unknown".to_owned()];
    expected.sort();
    assert_eq!(logged_in.ended_among(&ids).await, expected);

    logged_in.console().store.close().await;
    logged_in.console().remembered.lock().insert(out.id().to_owned(), SessionFacts::Ended);
    logged_in.rotate(&NewPair::random());
    let mut expected = vec![out.id().to_owned(), logged_in.session.id().to_owned()];
    expected.sort();
    assert_eq!(logged_in.ended_among(&ids).await, expected, "nothing is known of the others");
}

#[actix_web::test]
async fn a_row_that_was_read_before_the_logout_does_not_bring_the_session_back() {
    let logged_in = LoggedInApp::start().await;
    let (console, session) = (logged_in.console(), &logged_in.session);
    console.end(session).await.expect("a logout");
    assert!(!console.remember(session.id().to_owned(), &session.0));
    assert!(!logged_in.is_in().await);
}

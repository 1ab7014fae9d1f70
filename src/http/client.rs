//! Finds out the client of a request and its scheme, and refuses plain requests.

use actix_web::{
    Error, HttpRequest, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
    web,
};
use url::{Host, Url};

use super::{
    Services,
    error::ApiError,
    pusher::{self, error::PusherError},
};
pub use crate::session::client::Client;
use crate::{
    phoenix::long_poll::is_long_poll,
    session::client::PeerConnection,
    settings::{self, Settings},
};

/// Finds out the client that sent `request`.
pub fn client_of(request: &HttpRequest, server: &settings::ServerSettings) -> Client {
    let connection = PeerConnection {
        peer: request.peer_addr().map(|peer| peer.ip()),
        is_tls: request.app_config().secure(),
    };
    connection.client(request.headers(), &server.trusted_proxies)
}

/// The refusal of a plain request.
pub(crate) const NOT_SECURE: &str = "this server takes requests over https only";

/// Returns whether a URL names this machine as its host.
pub fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Judges a request under `force_ssl`. Probes of the process itself may stay plain, and long-poll
/// refuses plain requests itself, in a form that its clients understand.
///
/// # Errors
/// [`ApiError::Forbidden`] if the request came without TLS.
pub fn check_tls(
    path: &str,
    client: &Client,
    server: &settings::ServerSettings,
) -> Result<(), ApiError> {
    let is_exempt = matches!(path, "/health" | "/ready") || is_long_poll(path);
    if !server.force_ssl || client.is_secure || is_exempt {
        return Ok(());
    }
    Err(ApiError::Forbidden(NOT_SECURE))
}

/// Middleware: refuses plain requests where [`check_tls`] says so. Needs [`Services`].
///
/// # Errors
/// Any error of the wrapped service; the refusal itself is an answer.
pub async fn require_tls<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let verdict = match request.app_data::<web::Data<Services>>() {
        Some(services) => {
            let Settings { server, pusher, .. } = &*services.settings;
            let path = request.path();
            check_tls(path, &client_of(request.request(), server), server).map_err(|refusal| {
                match pusher::is_call(path, &pusher.path_prefix) {
                    true => PusherError::Forbidden(NOT_SECURE).error_response(),
                    false => refusal.error_response(),
                }
            })
        }
        // Fails closed: without settings it is unknown whether plain requests are allowed.
        None => Err(ApiError::Unavailable.error_response()),
    };
    match verdict {
        Ok(()) => next.call(request).await.map(ServiceResponse::map_into_left_body),
        Err(refusal) => Ok(request.into_response(refusal).map_into_right_body()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(force_ssl: &str) -> settings::ServerSettings {
        let env = [
            ("HERALD_ENV", "test"),
            ("HERALD__SERVER__FORCE_SSL", force_ssl),
            ("DATABASE_URL", "sqlite://unused.db"),
            ("PUSHER_ADMIN_USERNAME", "admin"),
            ("PUSHER_ADMIN_PASSWORD", "a password"),
        ];
        let env = env.map(|(key, value)| (key.to_owned(), value.to_owned()));
        Settings::load_from(env.into_iter(), None).expect("settings").server
    }

    #[test]
    fn plain_requests_are_refused_where_told_so_except_probes() {
        let refused = Err(ApiError::Forbidden(NOT_SECURE));
        for (case, force_ssl, path, is_secure, expected) in [
            ("not forced", "false", "/api/publish", false, Ok(())),
            ("plain", "true", "/api/publish", false, refused.clone()),
            ("the page", "true", "/", false, refused.clone()),
            ("secure", "true", "/api/publish", true, Ok(())),
            ("alive", "true", "/health", false, Ok(())),
            ("ready", "true", "/ready", false, Ok(())),
            ("almost a probe", "true", "/health/", false, refused.clone()),
            ("below a probe", "true", "/ready/../api", false, refused),
        ] {
            let client = Client { address: [192, 0, 2, 1].into(), is_secure };
            assert_eq!(check_tls(path, &client, &server(force_ssl)), expected, "{case}");
        }
    }
}

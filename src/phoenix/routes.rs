//! Answers plain requests to a socket's URL as Phoenix does.
//!
//! Upgrades never arrive here (see `session::upgrade`). Every other request is refused, with the
//! same checks in the same order, except for those to `longpoll`, which [`long_poll`] answers.

use std::rc::Rc;

use actix_web::{HttpRequest, HttpResponse, web};

use crate::session::upgrade::{Handshake, UpgradeRefusal};

use super::{
    connect::{Endpoint, MOUNTS},
    long_poll::{self, EndpointThread},
};

/// Adds the socket URLs for requests that do not upgrade.
pub fn configure(config: &mut web::ServiceConfig, thread: &Rc<EndpointThread>) {
    config.app_data(web::ThinData(thread.clone()));
    for mount in MOUNTS {
        for path in [format!("{mount}/websocket"), mount.to_owned()] {
            let endpoint = thread.endpoint.clone();
            let answer = move |request: HttpRequest| {
                let answer = plain(&endpoint, &request);
                async { answer }
            };
            config.service(web::resource(path).to(answer));
        }
        let path = format!("{mount}/longpoll");
        config.service(web::resource(path).to(long_poll::answer));
    }
}

/// Answers a request that asks for a socket without upgrading to one.
fn plain(endpoint: &Endpoint, request: &HttpRequest) -> HttpResponse {
    let handshake = Handshake {
        method: request.method(),
        path: request.path(),
        query: request.query_string(),
        headers: request.headers(),
        peer: request.peer_addr(),
    };
    let UpgradeRefusal { status, body } = match endpoint.check(&handshake) {
        Err(refusal) => refusal,
        Ok(_) => UpgradeRefusal::not_an_upgrade(),
    };
    let mut response = HttpResponse::build(status);
    if body.is_empty() { response.finish() } else { response.body(body) }
}

//! `POST /apps/<app>/users/<user>/terminate_connections`: closes all connections that are signed in as a
//! user.

use actix_web::{HttpRequest, HttpResponse, http::header::ContentType, web};

use super::{
    Services,
    caller::{SignedCaller, name_in_path},
    error::PusherError,
};
use crate::broker::{subscriber::Disconnect, topics::Unanswered};

/// Closes the connections, on all nodes. The body is signed, but has no meaning.
///
/// # Errors
/// [`PusherError`]; [`PusherError::Unavailable`] if a thread did not answer, because some connections may
/// be left.
pub(super) async fn terminate(
    request: HttpRequest,
    payload: web::Payload,
    services: web::Data<Services>,
) -> Result<HttpResponse, PusherError> {
    let (caller, _) = SignedCaller::of(&request, &services)?.with_body(payload).await?;
    let user = name_in_path(&request, &services)?;
    let signed_in = Disconnect::User { app: caller.app.id, user };
    let told = services.topics.disconnect(signed_in).await;
    told.map_err(|Unanswered| PusherError::Unavailable)?;
    Ok(HttpResponse::Ok().content_type(ContentType::json()).body("{}"))
}

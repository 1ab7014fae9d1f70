//! `Expect: 100-continue`: the client is told to send its body when the app begins to read it.
//!
//! The HTTP server lets one service decide whether the client gets `100 Continue`, and calls the
//! app after it. A separate service would have to repeat every route and every rule, so the app
//! itself decides: it is called at once, and the client gets `100 Continue` when the app first
//! reads the body. If the app answers without reading the body, that answer is sent instead.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use actix_http::{
    BoxedPayloadStream, ConnectionType, Payload, Request, Response, body::BoxBody,
    error::PayloadError,
};
use actix_service::{Service, ServiceFactory};
use actix_web::{HttpMessage, body::MessageBody};
use bytes::Bytes;
use futures_util::{
    Stream,
    future::{Either, LocalBoxFuture},
};

/// Makes an app answer before the body is requested, as described above. The first service must be the HTTP
/// server's `expect` and the second one its app, both of the same server.
pub(super) fn answering_early<F>(app: F) -> (Asking<F::Service>, EarlyApp<F>)
where
    F: ServiceFactory<Request>,
{
    let shared = Rc::new(RefCell::new(None));
    (Asking(shared.clone()), EarlyApp { app, shared })
}

/// The app's service, which is set once the server has been started.
type AppService<S> = Rc<RefCell<Option<Rc<S>>>>;

/// Decides whether a client is told to send its body. The service is its own factory.
pub(super) struct Asking<S>(AppService<S>);

impl<S: Service<Request> + 'static> ServiceFactory<Request> for Asking<S>
where
    Self: Service<Request>,
{
    type Response = <Self as Service<Request>>::Response;
    type Error = <Self as Service<Request>>::Error;
    type Config = ();
    type Service = Self;
    type InitError = ();
    type Future = std::future::Ready<Result<Self, ()>>;

    fn new_service(&self, (): ()) -> Self::Future {
        std::future::ready(Ok(Self(self.0.clone())))
    }
}

impl<S, B> Service<Request> for Asking<S>
where
    S: Service<Request, Response = Response<B>, Error = actix_web::Error>,
    S::Future: 'static,
    B: MessageBody + 'static,
{
    type Response = Request;
    type Error = Response<BoxBody>;
    type Future = LocalBoxFuture<'static, Result<Request, Response<BoxBody>>>;

    actix_service::always_ready!();

    fn call(&self, mut request: Request) -> Self::Future {
        let is_asked_for = Rc::new(Cell::new(false));
        let payload = request.take_payload();
        let body = AskedFor { payload, is_asked_for: is_asked_for.clone() };
        *request.payload() = Payload::Stream { payload: Box::pin(body) };
        let app = self.0.borrow().clone().expect("a server makes its app before it serves");
        let mut answering = Box::pin(app.call(request));
        Box::pin(async move {
            let answer = poll_fn(|cx| match answering.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                Poll::Pending if is_asked_for.get() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            let Some(answer) = answer.await else { return Ok(to_go_on(answering)) };
            let mut answer = match answer {
                Ok(answer) => answer.map_into_boxed_body(),
                Err(error) => Response::from(error),
            };
            // The client may send the body all the same, or the next request in its place.
            answer.head_mut().set_connection_type(ConnectionType::Close);
            Err(answer)
        })
    }
}

/// The request that the server gives to the app after it has answered the client with `100
/// Continue`.
fn to_go_on<F: Future + 'static>(answering: Pin<Box<F>>) -> Request {
    let request = Request::new();
    request.extensions_mut().insert(AnswerReadingBody(answering));
    request
}

/// An answer whose app has begun to read the body.
struct AnswerReadingBody<F>(Pin<Box<F>>);

/// The app, some of whose answers have begun before the HTTP server calls it.
pub(super) struct EarlyApp<F: ServiceFactory<Request>> {
    app: F,
    shared: AppService<F::Service>,
}

impl<F> ServiceFactory<Request> for EarlyApp<F>
where
    F: ServiceFactory<Request>,
    F::Future: 'static,
    F::Service: 'static,
    <F::Service as Service<Request>>::Future: 'static,
{
    type Response = F::Response;
    type Error = F::Error;
    type Config = F::Config;
    type Service = ResumingService<F::Service>;
    type InitError = F::InitError;
    type Future = LocalBoxFuture<'static, Result<Self::Service, F::InitError>>;

    fn new_service(&self, config: F::Config) -> Self::Future {
        let (made, shared) = (self.app.new_service(config), self.shared.clone());
        Box::pin(async move {
            let app = Rc::new(made.await?);
            shared.replace(Some(app.clone()));
            Ok(ResumingService(app))
        })
    }
}

/// Calls the app, or continues the answer that [`Asking`] has begun.
pub(super) struct ResumingService<S>(Rc<S>);

impl<S: Service<Request>> Service<Request> for ResumingService<S>
where
    S::Future: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Pin<Box<S::Future>>>;

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&self, request: Request) -> Self::Future {
        // A request that comes from the HTTP server itself has no extensions yet.
        let begun = request.extensions_mut().remove::<AnswerReadingBody<S::Future>>();
        match begun {
            Some(AnswerReadingBody(answering)) => Either::Right(answering),
            None => Either::Left(self.0.call(request)),
        }
    }
}

/// A body that notes whether it is being read.
struct AskedFor {
    payload: Payload<BoxedPayloadStream>,
    is_asked_for: Rc<Cell<bool>>,
}

impl Stream for AskedFor {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.is_asked_for.set(true);
        Pin::new(&mut self.payload).poll_next(cx)
    }
}

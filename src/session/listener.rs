//! The HTTP side of a connection, until it becomes a session or ends.
//!
//! Only this room uses actix-http. The server passes in an actix-web app, and gets a service for its
//! listener.

use std::{
    future::Future,
    net::{SocketAddr, TcpListener},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use actix_codec::Framed;
use actix_http::{ConnectionType, HttpService, KeepAlive, Request, Response, h1};
use actix_service::{
    IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt as _, apply_fn_factory,
    fn_service, map_config,
};
use actix_web::{
    body::MessageBody,
    dev::{AppConfig, ServiceResponse},
};
use tokio::{net::TcpStream, sync::watch};

use super::{
    HeldConversation,
    connection::Connection,
    expect::answering_early,
    path,
    requests::{ConnectionLimit, ConnectionRules, HttpStream, InTurn, Turn, WorkQueue},
    upgrade::{self, IsSocket, UpgradeHandler, Upgrading},
    worker::Worker,
};

/// The most unsent bytes that the kernel keeps for each socket. Without a bound it keeps about 4 MB for a
/// client that does not read.
const UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// Sets the options of a listener that its connections inherit: answers are sent at once, and the
/// kernel keeps few unsent bytes for a client that does not read.
///
/// Setting them on each connection instead takes two system calls, the second of which wakes the
/// connection's task needlessly.
pub fn tune(listener: &TcpListener) {
    let socket = socket2::SockRef::from(listener);
    // A platform that refuses one of the options is only less efficient.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
}

/// A stream in memory of its own, because actix-http moves it some thirty times until the connection is a session.
type BoxedStream = Box<HttpStream<TcpStream>>;

/// Takes the connection of an upgrade over from the HTTP server.
type Upgrade = Rc<dyn Fn(Request, Framed<BoxedStream, h1::Codec>) -> Upgrading>;

/// The upgrades of one thread's connections: which requests are upgrades, and the tasks that serve them.
pub struct Sockets {
    is_socket: IsSocket,
    work_queue: Rc<WorkQueue>,
    upgrade: Upgrade,
}

impl Sockets {
    /// Sessions on the paths that `is_socket` accepts, if `upgrade_handler` accepts their handshakes. The sessions
    /// share the state of `worker`.
    pub fn new<C: HeldConversation>(
        worker: Rc<Worker>,
        upgrade_handler: UpgradeHandler<C>,
        is_socket: IsSocket,
    ) -> Self {
        let work_queue = worker.work_queue.clone();
        let upgrade = Rc::new(move |mut request: Request, framed| {
            path::drop_empty_segments(request.uri_mut());
            upgrade::serve(request, framed, worker.clone(), upgrade_handler.clone())
        });
        Self { is_socket, work_queue, upgrade }
    }

    /// No sessions.
    pub fn none() -> Self {
        Self {
            is_socket: Rc::new(|_| false),
            work_queue: WorkQueue::start(),
            upgrade: Rc::new(|_, framed| upgrade::refuse_all(framed)),
        }
    }
}

/// The rules for the connections of one thread, and the service that applies them.
pub struct ConnectionService {
    /// The time within which the first request head must be complete.
    pub handshake_timeout: Duration,
    /// The time within which a further request, or the body of the first one, must be complete, and for which
    /// a client may take nothing of an answer.
    pub idle_timeout: Duration,
    /// The time for which a connection without a request is kept.
    pub keep_alive: Duration,
    /// Whether a shutdown is under way, so that each answer is the last one of its connection.
    pub draining: Arc<AtomicBool>,
    /// The limit on plain connections.
    pub limit: ConnectionLimit,
    /// The most plain connections of this thread that may wait for their clients.
    pub waiting_max: usize,
    /// Turns true when connections that only wait for another request must close.
    pub stops: watch::Receiver<bool>,
}

impl ConnectionService {
    /// The service for the connections of one thread: HTTP/1.1 requests go to `app`, and upgrades to `sockets`.
    pub fn service<F, S, B>(
        self,
        app: F,
        Sockets { is_socket, work_queue, upgrade }: Sockets,
    ) -> impl ServiceFactory<(Connection, SocketAddr), Config = (), Response = (), InitError = ()>
    where
        F: IntoServiceFactory<S, Request>,
        S: ServiceFactory<
                Request,
                Config = AppConfig,
                Response = ServiceResponse<B>,
                Error = actix_web::Error,
                InitError = (),
            > + 'static,
        S::Service: 'static,
        <S::Service as Service<Request>>::Future: 'static,
        B: MessageBody + 'static,
    {
        let Self { handshake_timeout, idle_timeout, keep_alive, .. } = self;
        let Self { draining, limit, waiting_max, stops, .. } = self;
        let rules = Rc::new(ConnectionRules {
            handshake_timeout,
            idle_timeout,
            keep_alive,
            is_socket,
            metrics: limit.metrics().clone(),
            unfinished: limit.unfinished().clone(),
            limit,
            waiting: Rc::default(),
            waiting_max,
            stuck: Rc::default(),
            work_queue,
        });
        let app = apply_fn_factory(app, path::without_empty_segments);
        let app = map_config(app, |()| AppConfig::default());
        let app =
            apply_fn_factory(app, move |request, app: &_| in_turn(request, app, draining.clone()));
        let (asking, app) = answering_early(app);
        let stopped = stops.clone();
        // `HttpStream` has a deadline for everything except the serving of requests, for which the
        // services have one.
        let http = HttpService::build()
            .keep_alive(KeepAlive::Os)
            .client_request_timeout(Duration::ZERO)
            .client_disconnect_timeout(Duration::from_secs(1))
            .h1_allow_half_closed(false)
            .graceful_shutdown_signal(move || stopping(stops.clone()))
            .on_connect_ext(|stream: &BoxedStream, data| {
                data.insert(stream.turn());
            })
            .expect(asking)
            .upgrade(move |(request, framed): (Request, _)| upgrade(request, framed))
            .h1(app);
        fn_service(move |(Connection { io, slot }, peer): (Connection, SocketAddr)| {
            let mut stream = Box::new(HttpStream::new(io, slot, Some(peer), rules.clone()));
            let stops = stopping(stopped.clone());
            async move {
                stream.begun(stops).await;
                Ok((stream, Some(peer)))
            }
        })
        .and_then(http)
    }
}

/// Resolves when connections that only wait for another request must be closed.
async fn stopping(mut stops: watch::Receiver<bool>) {
    // A dropped sender means a stop as well.
    let _ = stops.wait_for(|stops| *stops).await;
}

/// Serves a request, and notes when its answer is over. While the server drains, the answer tells the client
/// that it is the last one of its connection.
fn in_turn<S, B>(
    request: Request,
    app: &S,
    draining: Arc<AtomicBool>,
) -> impl Future<Output = Result<Response<InTurn>, actix_web::Error>> + use<S, B>
where
    S: Service<Request, Response = ServiceResponse<B>, Error = actix_web::Error>,
    B: MessageBody + 'static,
{
    let answering = Turn::of(&request).map(Turn::answer);
    let answer = app.call(request);
    async move {
        let mut response = match answer.await {
            Ok(response) => Response::from(response).map_into_boxed_body(),
            Err(error) => Response::from(error),
        };
        if draining.load(Relaxed) {
            response.head_mut().set_connection_type(ConnectionType::Close);
        }
        Ok(response.map_body(|_, body| InTurn::new(body, answering)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_what_its_listener_was_given() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        tune(&listener);
        let address = listener.local_addr().expect("an address");
        let _client = std::net::TcpStream::connect(address).expect("a connection");
        let (accepted, _) = listener.accept().expect("a connection");
        let accepted = socket2::SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().expect("an answer"));
        assert_eq!(accepted.tcp_notsent_lowat().expect("an answer"), UNSENT_BYTES_MAX);
    }
}

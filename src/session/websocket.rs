//! A session over a WebSocket: the actor that drives a conversation.
//!
//! The only file that knows `WebsocketContext`. Its mailbox is the outbox (see
//! [`Outbox`]); a join holds it with `ctx.wait`, so nothing of that join leaves before its reply. A
//! publication holds only the reading: a client's next message is not looked at before its last
//! one is answered.

use std::{
    cell::OnceCell,
    rc::Rc,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use actix::{fut::wrap_future, prelude::*};
use actix_http::ws;
use actix_web_actors::ws::WebsocketContext;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use log::debug;

use crate::broker::{
    Publication,
    fanout::{Attach, Detach, Enter},
    subscriber::{Ending, Frame, Outbox, Place, Subscription, SubscriptionId, ToSession},
    topics::SubscribeError,
};

use super::{
    CloseCode, Conversation, Effect, Failure,
    frames::{Frames, Gate, Inbound, Socket},
    pump::{Pump, Transport},
    worker::{Admission, Membership, Worker},
};

/// Frames are gathered into one write up to this size; a client that wakes up gets its outbox piece
/// by piece instead of as one private chunk.
const CHUNK_BYTES_MAX: usize = 32 * 1024;

/// One WebSocket connection.
pub(super) struct WebSocket<C> {
    conversation: C,
    worker: Rc<Worker>,
    membership: Membership,
    outbox: Arc<Outbox>,
    /// What the client hears.
    subscriptions: Vec<(SubscriptionId, Place)>,
    next_subscription: u32,
    /// Shut while a publication waits for its place: nothing is read, but everything is heard.
    gate: Rc<Gate>,
    /// Bytes handed to the context since it was last written out.
    gathered_bytes: usize,
    _admission: Admission,
}

/// Starts a session on a socket whose handshake is done; the returned pump is its task.
pub(super) fn start<T: Transport, C: Conversation + Unpin>(
    io: T,
    early: BytesMut,
    conversation: C,
    admission: Admission,
    worker: Rc<Worker>,
) -> Pump<T, impl Stream<Item = Result<Bytes, actix_web::Error>>> {
    io.tune();
    let socket = Rc::new(Socket { io: io.into(), heard: Instant::now().into() });
    let gate = Rc::new(Gate::default());
    let frames = Frames::new(socket.clone(), worker.clone(), gate.clone(), early);
    let (limits, session) = (worker.limits, admission.id);
    let membership = Membership { session, fanout: worker.fanout() };
    let outbox = Rc::new(OnceCell::new());
    let (outbox_slot, actor_worker) = (outbox.clone(), worker.clone());
    let body = WebsocketContext::with_factory(stream::pending(), move |ctx| {
        ctx.set_mailbox_capacity(limits.outbox_frames_max);
        let mailbox = ctx.address().recipient();
        let outbox = Outbox::new(session, mailbox, limits.outbox_bytes_max);
        membership.fanout.addr.do_send(Enter(outbox.clone()));
        outbox_slot.get_or_init(|| outbox.clone());
        ctx.add_stream(frames);
        WebSocket {
            conversation,
            worker: actor_worker,
            membership,
            outbox,
            subscriptions: Vec::new(),
            next_subscription: 0,
            gate,
            gathered_bytes: 0,
            _admission: admission,
        }
    });
    let outbox = outbox.get().expect("the context calls its factory before it returns").clone();
    Pump::new(socket, worker, outbox, body)
}

impl<C: Conversation + Unpin> WebSocket<C> {
    /// Carries out what the conversation wants.
    fn run(&mut self, effects: Vec<Effect>, ctx: &mut WebsocketContext<Self>) {
        for effect in effects {
            match effect {
                Effect::Send(frame) => self.send(frame, ctx),
                Effect::Subscribe(subscription) => self.subscribe(subscription, ctx),
                Effect::Unsubscribe(place) => self.unsubscribe(place),
                Effect::Publish(publication) => self.publish(publication, ctx),
                Effect::Close(code) => return close(code, ctx),
            }
        }
    }

    /// Hands a frame to the context, and lets it be written out once enough is gathered.
    fn send(&mut self, frame: Frame, ctx: &mut WebsocketContext<Self>) {
        self.gathered_bytes += frame.0.len();
        ctx.text(frame.0);
        if self.gathered_bytes > CHUNK_BYTES_MAX {
            self.gathered_bytes = 0;
            ctx.wait(wrap_future(tokio::task::yield_now()));
        }
    }

    /// Attaches at the fan-out of this thread first, then has the topic know the thread: from then
    /// on nothing is missed. What arrives meanwhile waits in the mailbox, behind the reply.
    fn subscribe(&mut self, subscription: Subscription, ctx: &mut WebsocketContext<Self>) {
        let topics = self.worker.topics.clone();
        let fanout = self.membership.fanout.clone();
        let session = self.membership.session;
        let place = subscription.place.clone();
        let id = self.id_of(&place);
        let subscribe = async move {
            let attached = fanout.addr.send(Attach { session, id, subscription }).await;
            attached.map_err(|_| Failure::Unavailable)?;
            let subscribed = topics.subscribe(&place.key, fanout.worker, &fanout.addr).await;
            subscribed.map_err(|refused| {
                fanout.addr.do_send(Detach { session, place });
                match refused {
                    SubscribeError::TooManyScopes => Failure::TooManyScopes,
                    SubscribeError::Unavailable => Failure::Unavailable,
                }
            })
        };
        self.wait_for(subscribe, ctx);
    }

    /// The id of the subscription to a place. Who subscribes again to what it hears keeps it, for
    /// it must miss nothing in between.
    fn id_of(&mut self, place: &Place) -> SubscriptionId {
        if let Some((id, _)) = self.subscriptions.iter().find(|(_, heard)| heard == place) {
            return *id;
        }
        let id = SubscriptionId(self.next_subscription);
        self.next_subscription = self.next_subscription.wrapping_add(1);
        // One is the common case, and an idle session should not keep room for four.
        if self.subscriptions.is_empty() {
            self.subscriptions.reserve_exact(1);
        }
        self.subscriptions.push((id, place.clone()));
        id
    }

    fn unsubscribe(&mut self, place: Place) {
        self.subscriptions.retain(|(_, heard)| *heard != place);
        let session = self.membership.session;
        self.membership.fanout.addr.do_send(Detach { session, place });
    }

    fn hears(&self, id: SubscriptionId) -> bool {
        self.subscriptions.iter().any(|(heard, _)| *heard == id)
    }

    /// Holds the client's next message until this one has its place, but not what others say: in a
    /// crowd of publishers that would fill the outbox of a client that keeps up.
    fn publish(&mut self, publication: Publication, ctx: &mut WebsocketContext<Self>) {
        let topics = self.worker.topics.clone();
        self.gate.shut();
        let publish =
            async move { topics.publish(publication).await.map_err(|_| Failure::Unavailable) };
        ctx.spawn(wrap_future(publish).map(|outcome, session: &mut Self, ctx| {
            session.gate.open();
            let effects = session.conversation.answered(outcome, now_s());
            session.run(effects, ctx);
        }));
    }

    /// Holds everything else of this session until the broker has answered.
    fn wait_for(
        &mut self,
        asked: impl Future<Output = Result<(), Failure>> + 'static,
        ctx: &mut WebsocketContext<Self>,
    ) {
        ctx.wait(wrap_future(asked).map(|outcome, session: &mut Self, ctx| {
            if !session.membership.fanout.addr.connected() {
                // Without its fan-out it would be deaf, whatever it joined.
                return close(CloseCode::INTERNAL, ctx);
            }
            let effects = session.conversation.answered(outcome, now_s());
            session.run(effects, ctx);
        }));
    }
}

/// Sends a close frame and ends the actor; the pump writes it out and hangs up.
fn close<C: Conversation + Unpin>(code: CloseCode, ctx: &mut WebsocketContext<WebSocket<C>>) {
    ctx.close(Some(ws::CloseCode::from(code.0).into()));
    ctx.stop();
}

/// Unix time in seconds.
fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

impl<C: Conversation + Unpin> Actor for WebSocket<C> {
    type Context = WebsocketContext<Self>;
}

impl<C: Conversation + Unpin> StreamHandler<Inbound> for WebSocket<C> {
    fn handle(&mut self, inbound: Inbound, ctx: &mut Self::Context) {
        match inbound {
            Inbound::Message(message) => {
                let effects = self.conversation.received(message, now_s());
                self.run(effects, ctx);
            }
            Inbound::Ping(payload) => ctx.pong(&payload),
            Inbound::Close => close(CloseCode::ANSWER, ctx),
            Inbound::Broken(code) => {
                debug!("session {} broke the framing: {}", self.membership.session.0, code.0);
                close(code, ctx);
            }
        }
    }
}

/// Never called: the context insists on a stream of its own, which is given nothing (see `frames`).
impl<C: Conversation + Unpin> StreamHandler<Result<ws::Message, ws::ProtocolError>>
    for WebSocket<C>
{
    fn handle(&mut self, _: Result<ws::Message, ws::ProtocolError>, _: &mut Self::Context) {}
}

impl<C: Conversation + Unpin> Handler<ToSession> for WebSocket<C> {
    type Result = ();

    fn handle(&mut self, message: ToSession, ctx: &mut Self::Context) {
        match message {
            ToSession::Deliver(frame, id) => {
                self.outbox.taken(&frame);
                if self.hears(id) {
                    self.send(frame, ctx);
                }
            }
            ToSession::AppChanged(app) => {
                let effects = self.conversation.app_changed(app, now_s());
                self.run(effects, ctx);
            }
            ToSession::End(ending) => {
                debug!("session {} is ended: {ending:?}", self.membership.session.0);
                close(close_code(ending), ctx);
            }
        }
    }
}

fn close_code(ending: Ending) -> CloseCode {
    match ending {
        Ending::SlowConsumer => CloseCode::TRY_LATER,
        Ending::Idle => CloseCode::GOING_AWAY,
        Ending::Shutdown => CloseCode::RESTART,
        Ending::Broken => CloseCode::INTERNAL,
    }
}

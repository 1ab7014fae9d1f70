//! Signing in users.
//!
//! It follows sections 9.1 and 9.2 of the document of Pusher's protocol. A connection is signed in as at
//! most one user, until it closes. A sign-in may name users to watch: the client is told which of them
//! are online, and then each change.

use std::{collections::HashSet, sync::Arc};

use serde::Deserialize;
use serde_json::{json, value::RawValue};

use crate::{
    app::visitor::Visitor,
    broker::{
        JsonText,
        subscriber::Frame,
        users::{OnlineChange, SignedIn},
    },
    session::Effect,
};

use super::{
    super::{
        auth::{self, AuthFault},
        frame,
        message::SignIn,
        subscriptions::PusherSigner,
    },
    PusherConversation,
};

/// The code of the error for a sign-in that the application has not signed.
const UNAUTHORIZED: u16 = 4009;

/// The code of the error for a list of more than [`WATCHED_MAX`] users.
const WATCHLIST_TOO_LONG: u16 = 4302;

/// The most users that a connection may watch.
const WATCHED_MAX: usize = 100;

/// The user as whom a connection is signed in.
pub(super) struct User {
    pub(super) id: String,
    /// The part of the user that members of presence channels see.
    pub(super) info: Option<Box<RawValue>>,
    pub(super) signer: Arc<PusherSigner>,
}

/// The reason why a user is not signed in.
#[derive(Debug, thiserror::Error)]
enum SignInRefusal {
    #[error("{0}")]
    Auth(#[from] AuthFault),
    #[error("user_data must be a string that holds a JSON object")]
    NotAnObject,
    #[error(
        "the id in user_data must be a string of 1 to {} bytes without control characters",
        Visitor::KEY_BYTES_MAX
    )]
    Id,
    #[error(
        "the watchlist in user_data must be a list of strings of 1 to {} bytes without control characters",
        Visitor::KEY_BYTES_MAX
    )]
    Watchlist,
    #[error("the connection is signed in as another user")]
    AnotherUser,
    #[error("the app was changed")]
    AppChanged,
}

#[derive(Deserialize)]
struct UserData<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    user_info: Option<&'a RawValue>,
    #[serde(borrow, default)]
    watchlist: Option<&'a RawValue>,
}

/// The users that a connection asks to watch.
#[derive(Default)]
struct Watchlist {
    /// The first [`WATCHED_MAX`] ids of the list, without duplicates.
    watched: Vec<Box<str>>,
    /// Whether the list had more ids.
    is_too_long: bool,
}

impl PusherConversation {
    pub(super) fn sign_in(&mut self, ask: &SignIn) -> Vec<Effect> {
        match self.read_user(ask) {
            Ok((user, Watchlist { watched, is_too_long })) => {
                self.is_authorized = true;
                let signed_in = SignedIn {
                    app: self.guest.app,
                    user: (*user.id).into(),
                    watched: watched.into(),
                    encode: watchlist_events,
                };
                self.user = Some(Box::new(user));
                let user_data = JsonText::of_text(&ask.user_data);
                let data = format!(r#"{{"user_data":{}}}"#, user_data.as_str());
                let success = frame::object_event("pusher:signin_success", None, &data);
                let mut effects = vec![Effect::Send(success)];
                if is_too_long {
                    let text = format!("only the first {WATCHED_MAX} users are watched");
                    effects.push(Effect::Send(frame::error(Some(WATCHLIST_TOO_LONG), &text)));
                }
                effects.push(Effect::SignIn(signed_in));
                effects
            }
            Err(refusal) => {
                let code = matches!(refusal, SignInRefusal::Auth(_)).then_some(UNAUTHORIZED);
                vec![Effect::Send(frame::error(code, &refusal.to_string()))]
            }
        }
    }

    fn read_user(
        &self,
        SignIn { auth, user_data }: &SignIn,
    ) -> Result<(User, Watchlist), SignInRefusal> {
        let apps = self.rules.shared.directory.load();
        let app = self.app(&apps).map_err(|_| SignInRefusal::AppChanged)?;
        let pair = auth::user(app, &self.socket_id(), user_data, auth)?;
        if !user_data.trim_start().starts_with('{') {
            return Err(SignInRefusal::NotAnObject);
        }
        let UserData { id, user_info, watchlist } =
            serde_json::from_str(user_data).map_err(|_| SignInRefusal::NotAnObject)?;
        let id = id.and_then(|id| serde_json::from_str::<String>(id.get()).ok());
        let id = id.filter(|id| is_user_id(id)).ok_or(SignInRefusal::Id)?;
        if self.user.as_ref().is_some_and(|user| user.id != id) {
            return Err(SignInRefusal::AnotherUser);
        }
        let watchlist = watchlist.map(Watchlist::read).transpose()?.unwrap_or_default();
        let info = user_info.map(ToOwned::to_owned);
        Ok((User { id, info, signer: PusherSigner::of(app, pair) }, watchlist))
    }
}

/// Returns whether a text can be the id of a user: each user has a [channel](super::super::channel::ChannelKind::User),
/// and the names of channels have no control characters. The name of a property that every JavaScript object has can be
/// one, although it cannot be the key of a member of a presence channel: no client of Phoenix is told the ids of users.
fn is_user_id(id: &str) -> bool {
    (1..=Visitor::KEY_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control)
}

impl Watchlist {
    fn read(raw: &RawValue) -> Result<Self, SignInRefusal> {
        let ids: Option<Vec<String>> =
            serde_json::from_str(raw.get()).map_err(|_| SignInRefusal::Watchlist)?;
        let mut list = Self::default();
        let mut known = HashSet::new();
        for id in ids.unwrap_or_default() {
            if !is_user_id(&id) {
                return Err(SignInRefusal::Watchlist);
            }
            let id = id.into_boxed_str();
            if !known.insert(id.clone()) {
                continue;
            }
            match list.watched.len() < WATCHED_MAX {
                true => list.watched.push(id),
                false => list.is_too_long = true,
            }
        }
        Ok(list)
    }
}

/// The message that tells a client which of the users it watches went online or offline.
fn watchlist_events(OnlineChange { online, offline }: &OnlineChange) -> Frame {
    let of = |name, users: &[Box<str>]| {
        (!users.is_empty()).then(|| json!({ "name": name, "user_ids": users }))
    };
    let events: Vec<_> = of("online", online).into_iter().chain(of("offline", offline)).collect();
    let data = json!({ "events": events }).to_string();
    frame::event("pusher_internal:watchlist_events", None, &data)
}

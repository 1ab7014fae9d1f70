//! `GET /apps/<app>/channels` and the resources below it: the channels that have subscribers now,
//! and the users on a presence channel.

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Map, Value, json};

use super::{
    Services,
    attributes::{self, Attributes, subscribers},
    caller::{SignedCaller, name_in_path},
    error::PusherError,
};
use crate::{
    broker::{
        ChannelName, Scope,
        occupancy::{Occupied, Rank, Survey},
        subscriber::{Place, ScopeKey},
        topics::Unanswered,
    },
    http::channels::answer,
    pusher::channel::{Channel, ChannelKind},
};

/// The most channels that one answer lists.
const CHANNELS_MAX: usize = 100_000;

/// The prefixes of channel names, each with the scope of the channels that have it.
const SCOPES: [(&str, &str); 3] =
    [("", "public"), ("private-", "private"), ("presence-", "presence")];

/// Lists the channels that have subscribers, with the requested attributes.
///
/// # Errors
/// [`PusherError`].
pub(super) async fn list(
    request: HttpRequest,
    services: web::Data<Services>,
) -> Result<HttpResponse, PusherError> {
    let caller = SignedCaller::of(&request, &services)?;
    let prefix = caller.query.get("filter_by_prefix").unwrap_or_default();
    let asked = Attributes::parse(caller.query.get("info").unwrap_or_default());
    let user_count = prefix.starts_with("presence-");
    asked.check(Attributes { user_count, subscription_count: true, ..Attributes::default() })?;
    let mut channels = Map::new();
    for (of_scope, scope) in SCOPES {
        // The part of the requested prefix after the scope's own prefix selects names within the scope. A
        // requested prefix that is only the beginning of the scope's own prefix selects the whole scope.
        let rest = match prefix.strip_prefix(of_scope) {
            Some(rest) => rest,
            None if of_scope.starts_with(prefix) => "",
            None => continue,
        };
        let Ok(scope) = Scope::parse(scope) else { continue };
        let key = ScopeKey { app: caller.app.id, scope };
        list_scope(&services, &key, rest, asked, &mut channels).await?;
    }
    Ok(answer(&json!({ "channels": channels })))
}

/// Adds the channels of one scope whose names begin with `prefix`. Names that Pusher's alphabet cannot
/// spell are left out.
async fn list_scope(
    services: &Services,
    key: &ScopeKey,
    prefix: &str,
    asked: Attributes,
    channels: &mut Map<String, Value>,
) -> Result<(), PusherError> {
    let survey = Survey {
        app: key.app,
        scope: Some(key.scope.clone()),
        prefix: prefix.to_owned(),
        after: None,
        places_max: CHANNELS_MAX + 1,
    };
    let room = CHANNELS_MAX - channels.len();
    let ask = async |survey| services.topics.occupied(survey).await;
    for NamedChannel { name, channel, subscribers } in named(survey, room, ask).await? {
        let mut told = Map::new();
        if asked.subscription_count {
            told.insert("subscription_count".into(), subscribers.into());
        }
        if asked.user_count {
            let place = Place { key: key.clone(), channel: Some(channel) };
            let users = services.topics.users(&place).await;
            let users = users.map_err(|Unanswered| PusherError::Unavailable)?;
            told.insert("user_count".into(), users.len().into());
        }
        channels.insert(name, told.into());
    }
    Ok(())
}

/// A channel with subscribers that has a name in Pusher's protocol.
#[derive(Debug, PartialEq, Eq)]
struct NamedChannel {
    name: String,
    channel: ChannelName,
    subscribers: usize,
}

/// All channels of a survey that have a name, page by page: a page whose channels have no names says nothing
/// about the channels after it.
///
/// # Errors
/// [`PusherError::BadRequest`] if there are more than `room`.
async fn named(
    mut survey: Survey,
    room: usize,
    ask: impl AsyncFn(Survey) -> Result<Occupied, Unanswered>,
) -> Result<Vec<NamedChannel>, PusherError> {
    let mut named = Vec::new();
    loop {
        let page = ask(survey.clone()).await.map_err(|Unanswered| PusherError::Unavailable)?;
        let is_last = page.len() < survey.places_max;
        survey.after = page.last_key_value().map(|(rank, _)| rank.clone());
        for (Rank { scope, channel }, subscribers) in page {
            let Some(channel) = channel else { continue };
            let Some(name) = Channel::named(&scope, &channel) else { continue };
            if named.len() == room {
                let text = format!("more than {CHANNELS_MAX} channels have subscribers");
                return Err(PusherError::bad(text + "; use filter_by_prefix"));
            }
            named.push(NamedChannel { name, channel, subscribers });
        }
        if is_last {
            return Ok(named);
        }
    }
}

/// Answers whether a channel has subscribers, and its requested attributes. A channel that was never used
/// is not occupied.
///
/// # Errors
/// [`PusherError`].
pub(super) async fn show(
    request: HttpRequest,
    services: web::Data<Services>,
) -> Result<HttpResponse, PusherError> {
    let caller = SignedCaller::of(&request, &services)?;
    let channel = channel(&request, &services)?;
    let asked = Attributes::parse(caller.query.get("info").unwrap_or_default());
    asked.check(Attributes::of(&channel))?;
    let app = caller.app.id;
    let count = subscribers(&services, channel.place(app)).await?;
    let mut told = attributes::counts(&services, app, &channel, asked).await?;
    told.insert("occupied".into(), (count > 0).into());
    if asked.cache {
        told.insert("cache".into(), attributes::cache(&services, app, &channel));
    }
    Ok(answer(&told))
}

/// Lists the users on a presence channel, each once.
///
/// # Errors
/// [`PusherError`].
pub(super) async fn list_users(
    request: HttpRequest,
    services: web::Data<Services>,
) -> Result<HttpResponse, PusherError> {
    let caller = SignedCaller::of(&request, &services)?;
    let channel = channel(&request, &services)?;
    if channel.kind != ChannelKind::Presence {
        return Err(PusherError::bad("users exist on presence channels only"));
    }
    let users = services.topics.users(&channel.place(caller.app.id)).await;
    let users = users.map_err(|Unanswered| PusherError::Unavailable)?;
    let users: Vec<_> = users.iter().map(|id| json!({ "id": &**id })).collect();
    Ok(answer(&json!({ "users": users })))
}

/// The channel in the path.
fn channel(request: &HttpRequest, services: &Services) -> Result<Channel, PusherError> {
    let name = name_in_path(request, services)?;
    Ok(Channel::parse(&name)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::AppId;

    fn rank(channel: &str) -> Rank {
        let channel = Some(ChannelName::parse(channel).expect("a channel"));
        Rank { scope: Scope::public(), channel }
    }

    /// The names that are listed of these channels, with pages of `places_max` channels.
    async fn listed(
        channels: &[&str],
        places_max: usize,
        room: usize,
    ) -> Result<Vec<String>, PusherError> {
        let survey = Survey {
            app: AppId(1),
            scope: Some(Scope::public()),
            prefix: String::new(),
            after: None,
            places_max,
        };
        let ask = async |survey: Survey| {
            let all = channels.iter().map(|channel| (rank(channel), 1));
            let mut all: Vec<_> =
                all.filter(|(rank, _)| survey.after.as_ref().is_none_or(|at| rank > at)).collect();
            all.sort();
            Ok(all.into_iter().take(survey.places_max).collect())
        };
        let named = named(survey, room, ask).await?;
        Ok(named.into_iter().map(|channel| channel.name).collect())
    }

    #[actix_web::test]
    async fn channels_without_names_take_the_place_of_no_other_channel() {
        let channels = ["a b", "a c", "a d", "b", "c d", "e"];
        for places_max in 1..=7 {
            let found = listed(&channels, places_max, 2).await;
            assert_eq!(found, Ok(vec!["b".into(), "e".into()]), "pages of {places_max}");
            let refused = listed(&channels, places_max, 1).await;
            assert!(matches!(refused, Err(PusherError::BadRequest(_))), "pages of {places_max}");
        }
        assert_eq!(listed(&[], 1, 0).await, Ok(Vec::new()));
    }
}

//! Topic names, and what an event pushed on a topic addresses.

use herald::{
    app::Slug,
    broker::{Addressing, ChannelName, Destination, EventName, Scope, TopicName, address},
};

/// The bytes are a topic; what follows a newline is an event pushed on it.
pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (raw, event) = text.split_once('\n').unwrap_or((text, ""));
    let only = Slug::parse("only-app").expect("a slug");
    let names = [Addressing::ManyApps, Addressing::SingleApp(only)].map(|addressing| {
        let name = parse(raw, &addressing);
        name.inspect(|name| addressed(name, event, &addressing))
    });
    if let [Some(many), single] = &names {
        let rest = raw.split_once(':').map(|(_, rest)| rest);
        match single {
            // Where the app is the only one, its topics mean the same as among many apps.
            Some(single) if many.app == single.app => assert_eq!(single, many),
            // Of any other topic the channel takes over the rest.
            Some(single) => {
                assert_eq!(single.channel.as_ref().map(ChannelName::as_str), rest);
                assert_eq!(single.scope, many.scope);
            }
            None => assert!(rest.is_some_and(|rest| rest.len() > 200)),
        }
    }
}

/// Parses under one addressing, and compares with the rule read aloud.
fn parse(raw: &str, addressing: &Addressing) -> Option<TopicName> {
    let parsed = TopicName::parse(raw, addressing);
    let Some((scope, app, channel)) = parts(raw, addressing) else {
        assert!(parsed.is_err(), "{raw:?} is no topic");
        return None;
    };
    let name = parsed.unwrap_or_else(|fault| panic!("{raw:?} is a topic: {fault}"));
    assert_eq!(name.scope.as_str(), scope);
    assert_eq!(name.scope.is_public(), scope == "public");
    assert_eq!(name.app.as_str(), app);
    assert_eq!(name.channel.as_ref().map(ChannelName::as_str), channel);
    assert_eq!(name.as_str(), raw, "a topic is kept as it came");
    let spelled = addressing.spell(&name.scope, &name.app, name.channel.as_ref());
    match addressing {
        Addressing::ManyApps => assert_eq!(spelled, raw, "and spelled as it was parsed"),
        Addressing::SingleApp(_) => assert!(spelled.len() <= raw.len(), "{spelled:?} is {raw:?}"),
    }
    let again = TopicName::parse(&spelled, addressing).expect("a topic");
    assert_eq!((&again.scope, &again.app), (&name.scope, &name.app));
    assert_eq!(again.channel, name.channel, "{spelled:?} is {raw:?}");
    assert_eq!(Scope::parse(scope), Ok(name.scope.clone()));
    Some(name)
}

/// Scope, app and channel of what is a topic.
fn parts<'a>(
    raw: &'a str,
    addressing: &'a Addressing,
) -> Option<(&'a str, &'a str, Option<&'a str>)> {
    let is_scope = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    let is_slug = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let pieces: Vec<&str> = raw.splitn(3, ':').collect();
    let (scope, app, channel) = match (addressing, pieces.as_slice()) {
        (Addressing::SingleApp(only), &[scope, first, ..]) if first != only.as_str() => {
            (scope, only.as_str(), Some(&raw[scope.len() + 1..]))
        }
        (_, &[scope, app]) => (scope, app, None),
        (_, &[scope, app, channel]) => (scope, app, Some(channel)),
        _ => return None,
    };
    let holds = raw.len() <= 255
        && (1..=32).contains(&scope.len())
        && scope.chars().all(is_scope)
        && (1..=63).contains(&app.len())
        && app.chars().all(is_slug)
        && channel.is_none_or(is_name);
    holds.then_some((scope, app, channel))
}

/// The rule that channels and events share.
fn is_name(name: &str) -> bool {
    let is_control = |c: char| matches!(c, '\0'..='\x1f' | '\x7f'..='\u{9f}');
    (1..=200).contains(&name.len()) && !name.starts_with('#') && !name.contains(is_control)
}

/// Where an event goes that is pushed on a topic.
fn addressed(topic: &TopicName, event: &str, addressing: &Addressing) {
    let found = address(topic, event, addressing);
    let Some((channel, event)) = destination(topic, event, addressing) else {
        assert!(found.is_err(), "{event:?} on {} addresses nothing", topic.as_str());
        return;
    };
    let (destination, name) = found.unwrap_or_else(|fault| panic!("{event:?}: {fault}"));
    assert_eq!(destination.as_str(), channel.unwrap_or("#general"));
    assert_eq!(matches!(destination, Destination::General), channel.is_none());
    assert_eq!(name.as_str(), event);
    assert_eq!(EventName::parse(event), Ok(name));
}

fn destination<'a>(
    topic: &'a TopicName,
    event: &'a str,
    addressing: &Addressing,
) -> Option<(Option<&'a str>, &'a str)> {
    let (channel, event) = match (&topic.channel, event.split_once(':')) {
        (Some(channel), _) => (Some(channel.as_str()), event),
        (None, Some((channel, event))) => {
            // With a single app a client can join the channel without the app in its topic.
            let joined = match addressing {
                Addressing::SingleApp(app) if app.as_str() != channel => topic.scope.as_str(),
                _ => topic.as_str(),
            };
            if !is_name(channel) || joined.len() + 1 + channel.len() > 255 {
                return None;
            }
            (Some(channel), event)
        }
        (None, None) => (None, event),
    };
    let is_wires = event.starts_with("phx_")
        || event.starts_with("chan_reply_")
        || event == "presence_state"
        || event == "presence_diff";
    let prefixed = channel.unwrap_or("#general").len() + 1 + event.len();
    (is_name(event) && !is_wires && prefixed <= 255).then_some((channel, event))
}

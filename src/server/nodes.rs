//! The requests of other nodes that do not concern the broker: to read the apps again after a change, and to
//! write the counts of usage.

use std::sync::Arc;

use actix_web::web;
use bytes::Bytes;
use futures_util::FutureExt;
use log::warn;
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};

use crate::{
    app::registry::{ReadAgain, ShareChanges},
    engine::{Engine, EngineError, RedisEngine},
    http::{Services, console, nodes, usage::WRITE_USAGE},
    metrics::Metrics,
    settings::Settings,
    usage::keeper::WriteUsage,
};

/// The name of the question by which a node makes another read the apps again.
const READ_APPS: &str = "read_apps";

/// The first part of the input from which the owner is derived: the id in Redis of the servers that share a
/// `secret_key_base`.
const PURPOSE: &[u8] = b"herald engine";

/// Connects this server with the other nodes that use the same Redis.
pub(super) async fn start_engine(
    settings: &Settings,
    metrics: Arc<Metrics>,
) -> Result<Arc<dyn Engine>, EngineError> {
    let mut digest = Sha256::new_with_prefix(PURPOSE);
    digest.update(settings.secrets.secret_key_base.expose_secret());
    let mut owner = [0; 16];
    owner.copy_from_slice(&digest.finalize()[..16]);
    let engine = RedisEngine::start(&settings.engine, owner, metrics).await?;
    Ok(engine)
}

/// Registers the answers to the questions of other nodes, and starts the tasks that exchange state with them. Does
/// nothing without a cluster.
pub(super) fn take_part(services: &web::Data<Services>) {
    if !services.topics.is_clustered() {
        return;
    }
    let (topics, registry) = (&services.topics, services.registry.clone());
    let usage = services.usage.clone();
    topics.on_question(WRITE_USAGE, move |_| {
        let written = usage.send(WriteUsage);
        async move { written.await.ok()?.ok().map(|()| Bytes::new()) }
    });
    let asked = registry.clone();
    topics.on_question(READ_APPS, move |_| {
        let read = asked.send(ReadAgain);
        async move { read.await.ok().map(|()| Bytes::new()) }
    });
    let told = registry.clone();
    topics.on_message(READ_APPS, move |_| told.do_send(ReadAgain));
    let topics = topics.clone();
    let have_others_read = move || {
        let topics = topics.clone();
        async move {
            if topics.ask_nodes(READ_APPS, b"", topics.wait_max()).await.is_err() {
                warn!(
                    "not every node has confirmed a change of an app: it takes effect there within \
                       registry.refresh"
                );
            }
        }
        .boxed()
    };
    registry.do_send(ShareChanges(Arc::new(have_others_read)));
    console::reporter::take_part(services);
    console::overview::take_part(services);
    actix_rt::spawn(services.topics.clone().keep_counts());
    actix_rt::spawn(services.topics.clone().keep_users());
    actix_rt::spawn(nodes::keep_described(services.clone()));
}

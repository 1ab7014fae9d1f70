//! The handlers of the registry's messages.

use super::*;

impl Handler<ListApps> for AppRegistry {
    type Result = ResponseActFuture<Self, Result<Vec<App>, ChangeError>>;

    fn handle(&mut self, _: ListApps, _: &mut Self::Context) -> Self::Result {
        let (store, directory) = (self.store.clone(), self.directory.clone());
        self.read(async move {
            let mut apps = store.list().await?.apps;
            apps.iter_mut().for_each(|app| share_uses(&directory, app));
            Ok(apps)
        })
    }
}

impl Handler<ShowApp> for AppRegistry {
    type Result = ResponseActFuture<Self, Result<App, ChangeError>>;

    fn handle(&mut self, ShowApp(slug): ShowApp, _: &mut Self::Context) -> Self::Result {
        let (store, directory) = (self.store.clone(), self.directory.clone());
        self.read(async move {
            let mut app = store.find(&parse_slug(&slug)?).await?.ok_or(ChangeError::NotFound)?;
            share_uses(&directory, &mut app);
            Ok(app)
        })
    }
}

impl Handler<CreateApp> for AppRegistry {
    type Result = ResponseActFuture<Self, Result<App, ChangeError>>;

    fn handle(&mut self, message: CreateApp, _: &mut Self::Context) -> Self::Result {
        let store = self.store.clone();
        let create = async move { change::create(&store, &message.by, message.fields).await };
        self.write(create, |registry, app| registry.replace(app.id, Some(app)))
    }
}

impl Handler<UpdateApp> for AppRegistry {
    type Result = ResponseActFuture<Self, Result<App, ChangeError>>;

    fn handle(&mut self, message: UpdateApp, _: &mut Self::Context) -> Self::Result {
        let store = self.store.clone();
        let update = async move {
            let slug = parse_slug(&message.slug)?;
            change::update(&store, &message.by, &slug, message.fields).await
        };
        let publish = |registry: &mut Self, app: &App| {
            // The row is also shown when nothing changed now: the row may be newer than the
            // snapshot.
            let known = registry.directory.load();
            if !known.by_id(app.id).is_some_and(|known| is_same(known, app)) {
                registry.replace(app.id, Some(app));
            }
        };
        let answer = self.write(update, publish);
        Box::pin(answer.map(|outcome, registry, _| {
            outcome.map(|mut app| {
                share_uses(&registry.directory, &mut app);
                app
            })
        }))
    }
}

impl Handler<RotateApp> for AppRegistry {
    type Result = ResponseActFuture<Self, Result<App, ChangeError>>;

    fn handle(&mut self, message: RotateApp, _: &mut Self::Context) -> Self::Result {
        let store = self.store.clone();
        let rotate = async move {
            let slug = parse_slug(&message.slug)?;
            change::rotate(&store, &message.by, &slug, message.overlap).await
        };
        let answer = self.write(rotate, |registry, app| registry.replace(app.id, Some(app)));
        Box::pin(answer.map(|outcome, registry, _| {
            outcome.map(|mut app| {
                share_uses(&registry.directory, &mut app);
                app
            })
        }))
    }
}

impl Handler<DeleteApp> for AppRegistry {
    type Result = ResponseActFuture<Self, Result<(), ChangeError>>;

    fn handle(&mut self, message: DeleteApp, _: &mut Self::Context) -> Self::Result {
        let store = self.store.clone();
        let delete =
            async move { change::delete(&store, &message.by, &parse_slug(&message.slug)?).await };
        let answer = self.write(delete, |registry, id| registry.replace(*id, None));
        Box::pin(answer.map(|outcome, _, _| outcome.map(drop)))
    }
}

impl Handler<ReadAudit> for AppRegistry {
    type Result = ResponseActFuture<Self, Result<Vec<AuditEntry>, ChangeError>>;

    fn handle(&mut self, ReadAudit(page): ReadAudit, _: &mut Self::Context) -> Self::Result {
        let store = self.store.clone();
        self.read(async move { Ok(store.audit(&page).await?) })
    }
}

impl Handler<WatchApps> for AppRegistry {
    type Result = ();

    fn handle(&mut self, WatchApps(watcher): WatchApps, _: &mut Self::Context) {
        self.watchers.retain(Recipient::connected);
        self.watchers.push(watcher);
    }
}

impl Handler<ReviewChanges> for AppRegistry {
    type Result = ();

    fn handle(&mut self, ReviewChanges(review): ReviewChanges, _: &mut Self::Context) {
        self.review = Some(review);
    }
}

impl Handler<DatabaseState> for AppRegistry {
    type Result = MessageResult<DatabaseState>;

    fn handle(&mut self, _: DatabaseState, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.database)
    }
}

impl Handler<WriteUses> for AppRegistry {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: WriteUses, _: &mut Self::Context) -> Self::Result {
        let apps = self.directory.load();
        let uses: Vec<PairUse> = apps.iter().flat_map(|app| app.unwritten_uses()).collect();
        if uses.is_empty() {
            return Box::pin(actix::fut::ready(()));
        }
        let (store, turn) = (self.store.clone(), self.turn.clone());
        let write = async move {
            let _turn = turn.lock_owned().await;
            guarded(async move {
                store.write_uses(&uses).await?;
                uses.iter().for_each(|pair_use| pair_use.last_use.is_written(pair_use.at));
                Ok(())
            })
            .await
        };
        // After a failure the next minute writes the same times.
        Box::pin(write.into_actor(self).map(|outcome, registry, _ctx| registry.note(&outcome)))
    }
}

impl Handler<SweepAudit> for AppRegistry {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: SweepAudit, _: &mut Self::Context) -> Self::Result {
        let store = self.store.clone();
        let before = Utc::now() - self.times.audit_retention;
        let sweep = async move { Ok(store.forget_audit(before).await?) };
        // After a failure the next sweep removes them.
        Box::pin(self.read(sweep).map(|_, _, _| ()))
    }
}

impl Handler<Refresh> for AppRegistry {
    type Result = ();

    fn handle(&mut self, _: Refresh, ctx: &mut Self::Context) {
        // The timer does this in time, unless the system clock was set forward.
        self.end_pairs();
        if self.is_refreshing {
            return;
        }
        self.is_refreshing = true;
        ctx.spawn(self.list().into_actor(self).map(|(listing, _turn), registry, ctx| {
            registry.is_refreshing = false;
            registry.refreshed(listing, ctx);
        }));
    }
}

impl Handler<ReadAgain> for AppRegistry {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: ReadAgain, _: &mut Self::Context) -> Self::Result {
        // A reading that is under way may be older than the change.
        Box::pin(self.list().into_actor(self).map(|(listing, _turn), registry, ctx| {
            registry.refreshed(listing, ctx);
        }))
    }
}

impl Handler<ShareChanges> for AppRegistry {
    type Result = ();

    fn handle(&mut self, ShareChanges(have_others_read): ShareChanges, _: &mut Self::Context) {
        self.have_others_read = Some(have_others_read);
    }
}

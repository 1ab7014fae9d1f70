//! The handlers of the registry's messages that are not tasks.

use super::*;

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

//! A database with all tables and the seeded app. Each server of the tests begins with a copy of it.
//!
//! A server of the test environment would make the same database by itself, but the migrations take longer than
//! most tests. The tests of migrations, of the first start and of PostgreSQL do not use the copy.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
    time::{Duration, SystemTime},
};

use herald::{
    app::{
        seed,
        store::{AppStore, MissingFile},
    },
    settings::Settings,
};
use sea_orm::{ConnectionTrait, Database};
use tempfile::TempDir;

/// The file of a server's database in its folder.
const NAME: &str = "herald.db";

/// The age at which the file of an earlier build is removed.
const OLD: Duration = Duration::from_secs(86_400);

/// The URL of the database in a folder.
pub fn url_in(folder: &Path) -> String {
    format!("sqlite://{}", folder.join(NAME).display())
}

/// Puts a copy of the database into a folder, unless the folder has a database already.
pub fn put_into(folder: &Path) {
    let file = folder.join(NAME);
    if !file.exists() {
        fs::copy(prepared(), file).expect("a copy of the database");
    }
}

/// The database of this build of the tests. The first test that needs it makes it.
fn prepared() -> &'static Path {
    static PREPARED: OnceLock<PathBuf> = OnceLock::new();
    PREPARED.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let program = env::current_exe().and_then(fs::metadata).and_then(|file| file.modified());
        let built = program.expect("this program").duration_since(SystemTime::UNIX_EPOCH);
        let file = folder.join(format!("{}.db", built.expect("a time").as_nanos()));
        if !file.exists() {
            make(folder, &file);
        }
        file
    })
}

/// Makes the database. Tests in other processes may do the same at this moment, and each may replace the file of
/// another.
fn make(folder: &Path, file: &Path) {
    fs::create_dir_all(folder).expect("a folder");
    forget_old(folder);
    let place = TempDir::new_in(folder).expect("a temporary folder");
    let url = url_in(place.path());
    // The calling test has a runtime of its own.
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(migrate_and_seed(&url));
    })
    .join()
    .expect("a database");
    let whole = place.path().join("whole.db");
    fs::copy(place.path().join(NAME), &whole).expect("a copy");
    fs::rename(whole, file).expect("the same file system");
}

async fn migrate_and_seed(url: &str) {
    let env = [("HERALD_ENV", "test"), ("DATABASE_URL", url)];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let settings = Settings::load_from(env.into_iter(), None).expect("test settings");
    let store = AppStore::connect(&settings.database, MissingFile::Make).await.expect("a database");
    store.migrate_up(None).await.expect("migrations");
    seed::seed(&store).await.expect("an app");
    // Only the file itself is copied, not its write-ahead log, so it must hold everything that was written.
    let connection = Database::connect(url).await.expect("a connection");
    let checkpoint = connection.execute_unprepared("PRAGMA wal_checkpoint(TRUNCATE)").await;
    checkpoint.expect("a checkpoint");
    connection.close().await.expect("an end");
}

/// Removes the files of earlier builds.
fn forget_old(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let age = entry.metadata().and_then(|file| file.modified()).map(|time| time.elapsed());
        let is_old = age.is_ok_and(|age| age.is_ok_and(|age| age > OLD));
        if is_old && path.extension().is_some_and(|extension| extension == "db") {
            // Another test may have removed it.
            let _ = fs::remove_file(path);
        }
    }
}

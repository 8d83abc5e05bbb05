//! The store of a cluster on a real etcd: what it confirms is there, once, whatever breaks in between.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use muster_common::{clock::Clock, proto::v1, wire::record};
use muster_controller::{
    etcd::{Access, Etcd as Client},
    leader::{Candidate, Leadership},
    store::{
        Batch, Error, Outcome, Store as _,
        etcd::{EtcdStore, Fence},
    },
};
use muster_core::{
    id::{JobId, Term},
    record::{Job, Key, Piece, Queue},
    spec::{JobSpec, TaskSpec},
    time::Timestamp,
};
use muster_integration::{
    certificates::Authority,
    etcd::{self, Etcd},
    proxy::{Mode, Proxy},
    skip::skip,
    wait::{self, Look},
};
use prost::Message as _;
use tempfile::TempDir;

/// Anything here is done within this on a slow machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Of sessions that a test does not let end.
const TTL: Duration = Duration::from_secs(30);

/// One member, and the way to it.
struct Bench {
    etcd: Etcd,
    runtime: tokio::runtime::Runtime,
    _folder: TempDir,
}

/// One controller's place in it.
struct Seat {
    store: EtcdStore,
    leadership: Leadership,
    term: Term,
    pieces: BTreeMap<Key, Piece>,
}

impl Bench {
    fn start(arguments: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("muster-it-").tempdir()?;
        let etcd = Etcd::start(folder.path(), 1, arguments)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        Ok(Self { etcd, runtime, _folder: folder })
    }

    fn client(&self, address: &str) -> Result<Arc<Client>> {
        Ok(Arc::new(Client::new(address.parse()?, &Access::default())))
    }

    fn user(&self, name: &str, password: &str) -> Result<Arc<Client>> {
        let user = Some((name.to_owned(), password.to_owned()));
        Ok(Arc::new(Client::new(self.etcd.address().parse()?, &Access { user, ..Access::default() })))
    }

    async fn lead(&self, client: Arc<Client>, ttl: Duration) -> Result<Leadership> {
        let candidate = Candidate::new(client, Clock::system(), "http://127.0.0.1:1".into(), "a".into(), ttl);
        Ok(tokio::time::timeout(LIMIT, candidate.campaign()).await.context("nobody is elected")??)
    }

    async fn seat(&self, address: &str) -> Result<Seat> {
        self.seat_of(self.client(address)?).await
    }

    async fn seat_of(&self, client: Arc<Client>) -> Result<Seat> {
        let leadership = self.lead(Arc::clone(&client), TTL).await?;
        let store = store(client, &leadership);
        let loaded = store.load().await?;
        let pieces = loaded.pieces.into_iter().collect();
        Ok(Seat { store, leadership, term: loaded.term, pieces })
    }
}

fn store(client: Arc<Client>, leadership: &Leadership) -> EtcdStore {
    let fence =
        Fence { key: leadership.key.clone(), revision: leadership.revision, authority: leadership.authority.clone() };
    EtcdStore::new(client, fence, 1 << 30)
}

impl Seat {
    /// Commits, and remembers what must be there.
    async fn commit(&mut self, batch: Batch) -> Result<()> {
        match self.store.commit(self.term, batch.clone()).await {
            Outcome::Committed => self.remember(batch),
            other => bail!("{other:?}"),
        }
        Ok(())
    }

    fn remember(&mut self, batch: Batch) {
        self.pieces.extend(batch.puts);
        for key in batch.deletes {
            self.pieces.remove(&key);
        }
    }

    /// Loads anew: is it what was confirmed?
    async fn check(&mut self) -> Result<()> {
        let loaded = self.store.load().await?;
        self.term = loaded.term;
        let found: BTreeMap<_, _> = loaded.pieces.into_iter().collect();
        let missing: Vec<_> = self.pieces.keys().filter(|key| !found.contains_key(key)).collect();
        let more: Vec<_> = found.keys().filter(|key| !self.pieces.contains_key(key)).collect();
        ensure!(missing.is_empty() && more.is_empty(), "missing {missing:?}, too many {more:?}");
        ensure!(found == self.pieces, "a piece is not as it was written");
        Ok(())
    }
}

fn queue(n: u64, limit: u64) -> (Key, Piece) {
    let name: String = format!("q{n}");
    let queue = Queue { name: name.clone(), max_running: Some(limit), max_waiting: None, paused: false };
    (Key::Queue(name.into()), Piece::Queue(Arc::new(queue)))
}

/// A job whose spec takes about so many bytes.
fn job(id: u64, bytes: usize) -> (Key, Piece) {
    let task = TaskSpec { name: "t".into(), stdin: Some(vec![b'x'; bytes]), ..TaskSpec::default() };
    let spec = Arc::new(JobSpec { name: "large".into(), tasks: vec![Arc::new(task)], ..JobSpec::default() });
    let none = || Arc::from("");
    let job = Job { id: JobId(id), spec, submitted: Timestamp(1), key: none(), by: none(), trace_parent: none() };
    (Key::Job(JobId(id)), Piece::Job(Arc::new(job)))
}

fn puts(puts: Vec<(Key, Piece)>) -> Batch {
    Batch { puts, deletes: Vec::new() }
}

/// Runs a test on a bench; skips it where there is no etcd.
fn on_etcd(name: &str, arguments: &[&str], test: impl AsyncFnOnce(&mut Bench) -> Result<()>) -> Result<()> {
    if let Some(why) = etcd::missing() {
        return skip(name, &why);
    }
    let mut bench = Bench::start(arguments)?;
    let handle = bench.runtime.handle().clone();
    handle.block_on(test(&mut bench))
}

#[test]
fn batches_of_any_size_are_there_whole_after_a_loading() -> Result<()> {
    for arguments in [&[][..], &["--max-txn-ops", "4096"]] {
        on_etcd("etcd_store::batches_of_any_size_are_there_whole_after_a_loading", arguments, async |bench| {
            let mut seat = bench.seat(&bench.etcd.address()).await?;
            for count in [1, 100, 127, 128, 129, 1023, 1024, 3000] {
                seat.commit(puts((0..count).map(|n| queue(n, count)).collect())).await?;
                seat.check().await?;
            }
            // Larger than a value, than a transaction, than a message; then smaller again; then gone.
            for bytes in [600 << 10, 5 << 20, 40 << 20, 700 << 10, 10, 2 << 20] {
                seat.commit(puts(vec![job(7, bytes), queue(1, bytes as u64)])).await?;
                seat.check().await?;
            }
            seat.commit(Batch { puts: vec![queue(2, 9)], deletes: vec![Key::Job(JobId(7))] }).await?;
            seat.check().await?;
            let left = bench.etcd.ctl(&["get", "/muster/v1/parts", "--prefix", "--keys-only"])?;
            ensure!(left.trim().is_empty(), "parts of what is gone stay: {left}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn who_does_not_lead_any_more_writes_nothing() -> Result<()> {
    on_etcd("etcd_store::who_does_not_lead_any_more_writes_nothing", &[], async |bench| {
        let mut old = bench.seat(&bench.etcd.address()).await?;
        old.commit(puts(vec![queue(1, 1)])).await?;
        // Its key is taken away, and it does not know.
        bench.etcd.ctl(&["del", "/muster/v1/leader"])?;
        // Nobody has written since its last commit: only the fence refuses it.
        let outcome = old.store.commit(old.term, puts(vec![queue(2, 2)])).await;
        ensure!(outcome == Outcome::Fenced, "C2: {outcome:?}");
        let new = bench.seat(&bench.etcd.address()).await?;
        ensure!(new.term > old.term, "terms grow");
        let loading = old.store.load().await;
        ensure!(matches!(loading, Err(Error::Deposed)), "{loading:?}");
        // And one that gave up by itself does not even ask.
        new.leadership.authority.lose();
        let outcome = new.store.commit(new.term, puts(vec![queue(3, 3)])).await;
        ensure!(outcome == Outcome::Fenced && !new.store.holds(), "{outcome:?}");
        let keys = bench.etcd.ctl(&["get", "/muster/v1/queues", "--prefix", "--keys-only"])?;
        ensure!(keys.trim() == "/muster/v1/queues/q1", "{keys}");
        Ok(())
    })
}

#[test]
fn an_answer_that_is_lost_is_found_out_and_nothing_is_done_twice() -> Result<()> {
    on_etcd("etcd_store::an_answer_that_is_lost_is_found_out_and_nothing_is_done_twice", &[], async |bench| {
        let proxy = Proxy::start(bench.etcd.client_address(0)?)?;
        let mut seat = bench.seat(&format!("etcd://{}", proxy.address)).await?;
        for (n, mode) in [Mode::DropAnswers, Mode::Hole, Mode::Reset].into_iter().cycle().take(6).enumerate() {
            proxy.set(mode);
            let before = proxy.connections();
            let batch = puts((0..n as u64 + 1).map(|q| queue(q, n as u64)).collect());
            // Large enough that it takes several transactions, every other time.
            let large = if n % 2 == 0 { vec![job(1, 3 << 20)] } else { Vec::new() };
            let batch = puts(batch.puts.into_iter().chain(large).collect());
            let commit = seat.store.commit(seat.term, batch.clone());
            let heal = async {
                // Until it has tried again on a new connection, or wants to.
                let tried = async {
                    while proxy.connections() == before {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                };
                let _it_tried = tokio::time::timeout(LIMIT, tried).await;
                proxy.set(Mode::Pass);
            };
            let (outcome, ()) = tokio::join!(commit, heal);
            ensure!(outcome == Outcome::Committed, "{mode:?}: {outcome:?}");
            seat.remember(batch);
            seat.check().await?;
        }
        Ok(())
    })
}

#[test]
fn what_was_confirmed_outlives_every_kill_of_etcd() -> Result<()> {
    on_etcd("etcd_store::what_was_confirmed_outlives_every_kill_of_etcd", &[], async |bench| {
        let mut seat = bench.seat(&bench.etcd.address()).await?;
        for round in 0..5_u64 {
            let mut kill = bench.etcd.members[0].daemon.take().context("it runs")?;
            let killer = std::thread::spawn(move || {
                std::thread::park_timeout(Duration::from_millis(30 + round * 17));
                kill.kill9()
            });
            let mut n = 0;
            while !killer.is_finished() {
                let batch = puts((0..20).map(|q| queue(q, round * 1_000_000 + n)).collect());
                n += 1;
                let outcome = tokio::time::timeout(Duration::from_secs(1), seat.store.commit(seat.term, batch.clone()));
                match outcome.await {
                    Ok(Outcome::Committed) => seat.remember(batch),
                    // Nobody knows: both are right, and loading tells which.
                    Ok(Outcome::Unknown(_)) | Err(_) => break,
                    Ok(Outcome::Fenced) => bail!("nobody else leads"),
                }
            }
            killer.join().map_err(|_| anyhow::anyhow!("the killer died"))??;
            bench.etcd.start_member(0)?;
            bench.etcd.answers()?;
            let loaded = seat.store.load().await?;
            seat.term = loaded.term;
            let found: BTreeMap<_, _> = loaded.pieces.into_iter().collect();
            let last = |pieces: &BTreeMap<Key, Piece>| match pieces.values().next() {
                Some(Piece::Queue(queue)) => queue.max_running,
                _ => None,
            };
            ensure!(found.len() == seat.pieces.len() || seat.pieces.is_empty(), "pieces came or went");
            ensure!(last(&found) >= last(&seat.pieces), "round {round}: a confirmed commit is gone");
            let all: Vec<_> =
                found.values().map(|piece| matches!(piece, Piece::Queue(q) if q.max_running == last(&found))).collect();
            ensure!(all.iter().all(|same| *same), "round {round}: a commit is there in part");
            seat.pieces = found;
        }
        Ok(())
    })
}

#[test]
fn a_batch_that_was_staged_and_not_copied_is_taken_up_by_who_leads_next() -> Result<()> {
    on_etcd("etcd_store::a_batch_that_was_staged_and_not_copied_is_taken_up_by_who_leads_next", &[], async |bench| {
        let proxy = Proxy::start(bench.etcd.client_address(0)?)?;
        let mut old = bench.seat(&format!("etcd://{}", proxy.address)).await?;
        old.commit(puts(vec![queue(0, 1)])).await?;
        let batch = puts((0..2000).map(|n| queue(n, 2)).chain([job(1, 2 << 20)]).collect());
        // Cut off at some moment of it; the head tells whether it counts.
        let staged = async {
            loop {
                let keys = bench.etcd.ctl(&["get", "/muster/v1/staged/", "--prefix", "--keys-only"])?;
                if !keys.trim().is_empty() {
                    proxy.set(Mode::Reset);
                    return Ok::<_, anyhow::Error>(());
                }
                tokio::task::yield_now().await;
            }
        };
        let cut = tokio::time::timeout(Duration::from_secs(5), old.store.commit(old.term, batch.clone()));
        let (cut, staged) = tokio::join!(cut, tokio::time::timeout(LIMIT, staged));
        let was_confirmed = matches!(cut, Ok(Outcome::Committed));
        let _too_late_to_see = staged;
        bench.etcd.ctl(&["del", "/muster/v1/leader"])?;
        let mut new = bench.seat(&bench.etcd.address()).await?;
        let has_all = new.pieces.len() == 2001;
        ensure!(
            has_all || (new.pieces.len() == 1 && !was_confirmed),
            "{} pieces, confirmed: {was_confirmed}",
            new.pieces.len()
        );
        new.check().await?;
        let left = bench.etcd.ctl(&["get", "/muster/v1/head", "--print-value-only"])?;
        ensure!(!left.is_empty());
        new.commit(batch).await?;
        new.check().await
    })
}

#[test]
fn a_batch_that_counts_and_lies_uncopied_is_copied_before_anything_else() -> Result<()> {
    on_etcd("etcd_store::a_batch_that_counts_and_lies_uncopied_is_copied_before_anything_else", &[], async |bench| {
        let mut old = bench.seat(&bench.etcd.address()).await?;
        old.commit(puts(vec![queue(0, 1), queue(1, 1)])).await?;
        // What a leader leaves that dies right after the batch counts: nothing of it is at its keys yet.
        let put = |(key, piece): (Key, Piece)| v1::Write {
            key: record::key_bytes(&key),
            value: record::encode(&piece, &key),
            delete: false,
        };
        let gone = v1::Write { key: record::key_bytes(&queue(1, 1).0), value: Vec::new(), delete: true };
        let parts = [vec![put(queue(0, 2)), gone], vec![put(queue(2, 2))]];
        let mut left: Vec<(String, Vec<u8>)> = Vec::new();
        for (n, writes) in parts.into_iter().enumerate() {
            let record = v1::StagedRecord { version: record::VERSION, writes };
            left.push((format!("/muster/v1/staged/{n:010}"), record.encode_to_vec()));
        }
        let head = v1::HeadRecord { version: record::VERSION, commit: "its last".to_owned(), staged: 2 };
        left.push(("/muster/v1/head".to_owned(), head.encode_to_vec()));
        let client = bench.client(&bench.etcd.address())?;
        for (key, value) in left {
            client.call(LIMIT, async |mut etcd| etcd.put(key.as_str(), value.clone(), None).await.map(drop)).await?;
        }
        bench.etcd.ctl(&["del", "/muster/v1/leader"])?;

        let mut new = bench.seat(&bench.etcd.address()).await?;
        let wanted: BTreeMap<_, _> = [queue(0, 2), queue(2, 2)].into_iter().collect();
        ensure!(new.pieces == wanted, "{:?}", new.pieces);
        let staged = bench.etcd.ctl(&["get", "/muster/v1/staged/", "--prefix", "--keys-only"])?;
        ensure!(staged.trim().is_empty(), "it is still staged: {staged}");
        new.check().await
    })
}

#[test]
fn a_record_of_a_newer_version_is_refused_before_anything_is_written() -> Result<()> {
    on_etcd("etcd_store::a_record_of_a_newer_version_is_refused_before_anything_is_written", &[], async |bench| {
        // Field 1, the version: 99.
        bench.etcd.ctl(&["put", "/muster/v1/meta", "\u{8}c"])?;
        let client = bench.client(&bench.etcd.address())?;
        let leadership = bench.lead(Arc::clone(&client), TTL).await?;
        let refused = store(client, &leadership).load().await;
        ensure!(matches!(refused, Err(Error::Newer { found: 99, .. })), "{refused:?}");
        let head = bench.etcd.ctl(&["get", "/muster/v1/head"])?;
        ensure!(head.is_empty(), "something was written: {head}");
        Ok(())
    })
}

#[test]
fn an_etcd_without_room_says_so_and_goes_on_when_it_has_some() -> Result<()> {
    let quota = ["--quota-backend-bytes", "16777216"];
    on_etcd("etcd_store::an_etcd_without_room_says_so_and_goes_on_when_it_has_some", &quota, async |bench| {
        let mut seat = bench.seat(&bench.etcd.address()).await?;
        let full = loop {
            let batch = puts(vec![job(1, 400 << 10)]);
            match seat.store.commit(seat.term, batch.clone()).await {
                Outcome::Committed => seat.remember(batch),
                Outcome::Unknown(why) => break why,
                Outcome::Fenced => bail!("nobody else leads"),
            }
        };
        ensure!(full.contains("NOSPACE"), "{full}");
        let error = seat.store.load().await.err().context("it has no room for a new term")?;
        ensure!(error.may_pass(), "{error}");
        let status = bench.etcd.ctl(&["endpoint", "status", "--write-out", "json"])?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        let revision = status[0]["Status"]["header"]["revision"].to_string();
        bench.etcd.ctl(&["compact", &revision])?;
        bench.etcd.ctl(&["defrag"])?;
        bench.etcd.ctl(&["alarm", "disarm"])?;
        seat.check().await?;
        seat.commit(puts(vec![queue(1, 1)])).await?;
        seat.check().await
    })
}

#[test]
fn a_session_that_ends_is_a_loss_and_another_leads_within_its_time() -> Result<()> {
    on_etcd("etcd_store::a_session_that_ends_is_a_loss_and_another_leads_within_its_time", &[], async |bench| {
        let proxy = Proxy::start(bench.etcd.client_address(0)?)?;
        let client = bench.client(&format!("etcd://{}", proxy.address))?;
        let first = bench.lead(client, Duration::from_secs(2)).await?;
        ensure!(first.authority.holds());
        proxy.set(Mode::Hole);
        let lost = tokio::time::timeout(LIMIT, first.authority.lost());
        let second = bench.lead(bench.client(&bench.etcd.address())?, TTL);
        let (lost, second) = tokio::join!(lost, second);
        lost.context("the first never learns of it")?;
        let second = second?;
        ensure!(!first.authority.holds() && second.authority.holds());
        ensure!(second.revision > first.revision);
        proxy.set(Mode::Pass);
        ensure!(!first.authority.holds(), "what is lost stays lost");
        // A clean end lets the next one lead at once, and an end without a word as soon as its session is over.
        second.resign().await;
        let third = bench.lead(bench.client(&bench.etcd.address())?, Duration::from_secs(2)).await?;
        drop(third);
        bench.lead(bench.client(&bench.etcd.address())?, TTL).await?;
        Ok(())
    })
}

#[test]
fn an_etcd_that_asks_for_a_password_is_served_with_it_and_with_nothing_else() -> Result<()> {
    let name = "etcd_store::an_etcd_that_asks_for_a_password_is_served_with_it_and_with_nothing_else";
    // Tokens that are not used for a second are forgotten: a controller at rest must get a new one.
    let arguments = ["--auth-token-ttl", "1", "--logger", "zap", "--log-level", "debug"];
    on_etcd(name, &arguments, async |bench| {
        bench.etcd.ctl(&["user", "add", "root:secret"])?;
        bench.etcd.ctl(&["user", "grant-role", "root", "root"])?;
        bench.etcd.ctl(&["auth", "enable"])?;
        for client in
            [bench.client(&bench.etcd.address())?, bench.user("root", "wrong")?, bench.user("nobody", "secret")?]
        {
            let denied = bench.lead(client, TTL).await.err().context("it was let in")?;
            ensure!(denied.to_string().contains("etcd refuses") && denied.to_string().contains("password"), "{denied}");
        }
        let mut seat = bench.seat_of(bench.user("root", "secret")?).await?;
        for n in 0..3 {
            seat.commit(puts(vec![queue(n, n), job(n + 1, 700 << 10)])).await?;
            seat.check().await?;
            let gone = |bench: &Bench| {
                let log = bench.etcd.members[0].daemon.as_ref().map(|daemon| daemon.log()).unwrap_or_default();
                (log.matches("deleted a simple token").count(), log)
            };
            let before = gone(bench).0;
            wait::until("its token to be forgotten", || {
                let (now, log) = gone(bench);
                Ok(Look::when(now > before, log))
            })?;
        }
        seat.check().await
    })
}

#[test]
fn an_etcd_that_speaks_tls_lets_in_whom_its_authority_has_signed_and_nobody_else() -> Result<()> {
    if let Some(why) = etcd::missing() {
        let name = "etcd_store::an_etcd_that_speaks_tls_lets_in_whom_its_authority_has_signed_and_nobody_else";
        return skip(name, &why);
    }
    let folder = tempfile::Builder::new().prefix("muster-it-").tempdir()?;
    let (ours, foreign) = (Authority::new(&folder.path().join("ca"))?, Authority::new(&folder.path().join("other"))?);
    let etcd = Etcd::start_tls(folder.path(), &ours)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let bench = Bench { etcd, runtime, _folder: folder };
    let read = |path: std::path::PathBuf| std::fs::read(path);
    let client = |ca: &Authority, identity: Option<&Authority>| {
        let identity = match identity {
            Some(authority) => {
                let signed = authority.sign("controller")?;
                Some((read(signed.certificate)?, read(signed.key)?))
            }
            None => None,
        };
        let access = Access { user: None, ca: Some(read(ca.certificate())?), identity };
        Ok::<_, anyhow::Error>(Arc::new(Client::new(bench.etcd.address().parse()?, &access)))
    };
    let wrong = [client(&foreign, Some(&ours))?, client(&ours, None)?, client(&ours, Some(&foreign))?];
    let right = client(&ours, Some(&ours))?;
    bench.runtime.block_on(async {
        for (n, client) in wrong.into_iter().enumerate() {
            let asked = client.call(Duration::from_secs(2), async |mut etcd| etcd.get("x", None).await).await;
            ensure!(asked.is_err(), "client {n} was let in");
        }
        let mut seat = bench.seat_of(right).await?;
        seat.commit(puts(vec![queue(1, 1), job(1, 2 << 20)])).await?;
        seat.check().await
    })
}

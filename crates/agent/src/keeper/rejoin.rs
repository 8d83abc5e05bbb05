//! Goes on with the next connection to a keeper, with a keeper that goes on with the first one's work, or with another one.

use std::{collections::BTreeSet, sync::Arc};

use muster_core::id::Token;
use tracing::{error, info, warn};

use super::{
    book::Again,
    draft::Draft,
    join::{Error, Had, join},
    message::{Gpus, Hold, Kill, Offer, Word},
    pump::{Pump, RETRY},
};
use crate::exec::ExecEvent;

/// Who answers when the line is there again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Same,
    /// Another one, which goes on with the same work.
    Heir,
    Other,
}

impl Pump {
    /// The keeper is gone, or the line to it: goes on with whoever is there, or with a new one. Whether there can be one.
    pub(super) async fn reconnect(&mut self) -> bool {
        if !self.retiring {
            warn!("the line to the keeper is broken");
        }
        // What we started is the safe, which starts another keeper; or it has ended as well.
        if let Some(child) = &mut self.joined.child
            && let Ok(Some(status)) = child.try_wait()
        {
            info!(%status, "the keeper's safe has ended");
            self.joined.child = None;
        }
        let queue = Arc::clone(&self.queue);
        let joined = loop {
            let (config, leftovers) = (self.joined.config.clone(), self.book.leftovers());
            let hold = || queue.newest(self.hold);
            let had = Had { leftovers: &leftovers, hold: &hold };
            let joined = tokio::select! {
                // Nobody who leaves starts another one.
                biased;
                () = queue.is_left() => {
                    warn!("the agent ends without a keeper: the next one looks for what runs");
                    return false;
                }
                joined = join(config, had) => joined,
            };
            match joined {
                Ok(joined) => break joined,
                Err(Error::Limits(why)) => {
                    error!(why, "there can be no keeper; the agent ends");
                    return false;
                }
                Err(error) => error!(error = %crate::link::chain(&error), "there is no keeper; nothing can be run"),
            }
            tokio::time::sleep(RETRY).await;
        };
        let who = match joined.instance == self.joined.instance {
            true => Who::Same,
            false if !joined.cookie.is_empty() && joined.cookie == self.joined.cookie => Who::Heir,
            false => Who::Other,
        };
        let child = self.joined.child.take();
        self.joined = joined;
        self.joined.child = self.joined.child.take().or(child);
        self.retiring = false;
        self.go_on(who).await;
        true
    }

    async fn go_on(&mut self, who: Who) {
        let (alive, swept, now) = (&self.joined.alive, &self.joined.swept, self.clock.wall());
        let known: BTreeSet<Token> = alive.iter().map(|alive| alive.order.token).collect();
        let again = match who {
            Who::Same => self.book.same_keeper(&known),
            Who::Heir => {
                self.links.spools.writer_died(&known.union(&self.joined.writing).copied().collect());
                self.book.heir(alive, swept, now)
            }
            Who::Other => {
                self.links.spools.writer_died(&BTreeSet::new());
                self.book.other_keeper(swept, now)
            }
        };
        let Again { start, offer, kill, events } = again;
        let mut draft = Draft::default();
        // As in the hello: what waits may be behind much else.
        draft.say(Word::Hold(Hold::new(self.queue.newest(self.hold))));
        draft.say(Word::Gpus(Gpus { all: self.gpus.clone() }));
        for order in start {
            self.put_if_enough(&mut draft);
            self.say_start(order, &mut draft);
        }
        for (order, until) in offer {
            self.put_if_enough(&mut draft);
            let place = draft.orders.add(&order);
            draft.say(Word::Offer(Offer { order: place, until_us: until.0 }));
        }
        for (token, reason, by) in kill {
            self.put_if_enough(&mut draft);
            draft.say(Word::Kill(Kill::new(token, reason, by.since(self.clock.mono()))));
        }
        if who != Who::Same {
            let lost = events.iter().filter(|event| matches!(event, ExecEvent::Ended { .. }));
            self.unsettled = lost.map(ExecEvent::token).collect();
            info!(lost = self.unsettled.len(), goes_on = who == Who::Heir, "another keeper is there");
        }
        self.say_settled(&mut draft);
        self.joined.line.put(&draft.finish());
        self.end_unreadable();
        for event in events {
            self.tell(event).await;
        }
        let words = std::mem::take(&mut self.joined.words);
        self.hear(words).await;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use muster_common::clock::Clock;
    use muster_core::{
        id::{JobId, TaskId},
        spec::TaskSpec,
        state::End,
    };
    use tokio::{net::UnixListener, sync::mpsc};

    use super::*;
    use crate::{
        exec::{Links, Order, guard::Program},
        keeper::{
            Client, Config, Setup, Wire,
            deliver::{Deliveries, Fetched},
            line::Line,
            message::{Down, Up, VERSIONS, Welcome},
        },
        link::kit::soon,
        logs::{self, Spools},
    };

    /// An agent's folder, in which a test is one keeper after another.
    struct Keepers {
        config: Config,
        listener: UnixListener,
        _folder: tempfile::TempDir,
    }

    impl Keepers {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let data = format!("--data={}", folder.path().display());
            let rest = ["--name=w", "--log-limit=9", "--log-quota=9", "--limits=off", "--guard=g", "--owner=o"];
            let setup = Setup::parse_from(["keeper", &data].into_iter().chain(rest));
            std::fs::create_dir(folder.path().join("run")).expect("ours");
            let listener = UnixListener::bind(setup.socket()).expect("nobody else is there");
            let program = Program { exe: "/nobody/starts/it".into(), args: Vec::new() };
            Self { config: Config { program, setup }, listener, _folder: folder }
        }

        /// An agent that remembers nothing, and the first keeper's line to it.
        async fn agent(&self) -> (Client, mpsc::Receiver<ExecEvent>, Line) {
            let had = Had { leftovers: &[], hold: &|| None };
            let (joined, line) = tokio::join!(join(self.config.clone(), had), self.next(1));
            let data_dir = self.config.setup.data.clone();
            let limits = logs::Config { data_dir, attempt_limit: 9, total_limit: 9, rate: None, rate_max: None };
            let spools = Spools::open(&limits).expect("a folder");
            let links = Links { inputs: Arc::new(Fetched), results: Arc::<Deliveries>::default(), spools };
            let joined = joined.expect("it answered");
            let (client, events) = Client::start(joined, links, Clock::system(), Wire::default());
            (client, events, line)
        }

        /// The next one, which goes on with the same work and knows of none: a line to the agent that has said who it is.
        async fn next(&self, number: u32) -> Line {
            let (stream, _) = soon("the agent", self.listener.accept()).await.expect("it is there");
            let mut line = Line::new(stream);
            soon("its hello", async {
                while line.take::<Down>().expect("whole").is_none() {
                    assert!(line.moves().await.expect("it is there"), "it left");
                }
            })
            .await;
            let Config { program, setup } = &self.config;
            let setup = setup.fingerprint(&program.exe);
            let (instance, cookie, version) = (format!("c.{number}"), "c".to_owned(), VERSIONS.0);
            let welcome = Welcome { version, instance, cookie, setup, ..Welcome::default() };
            line.put(&Up { welcome: Some(welcome), words: Vec::new() });
            line.send().expect("there is room");
            line
        }
    }

    /// Whether the keeper at `line` was told that all is remembered, before a word that `client` says now.
    async fn is_settled(client: &Client, line: &mut Line) -> bool {
        client.claim(Token(u64::MAX));
        client.flush();
        let mut is_settled = false;
        let said = async {
            loop {
                while let Some(down) = line.take::<Down>().expect("whole") {
                    for word in down.words.into_iter().filter_map(|said| said.word) {
                        is_settled |= word == Word::Settled(true);
                        if word == Word::Claim(u64::MAX) {
                            return;
                        }
                    }
                }
                assert!(line.moves().await.expect("it is there"), "it left");
            }
        };
        soon("its words", said).await;
        is_settled
    }

    fn order(token: u64) -> Arc<Order> {
        Arc::new(Order::plain(token, TaskId::new(JobId(1), 0), 1, TaskSpec::default()))
    }

    #[tokio::test]
    async fn no_keeper_hears_that_all_is_remembered_before_it_is_both_of_the_start_and_of_what_was_lost() {
        let keepers = Keepers::new();
        let (client, mut events, mut line) = keepers.agent().await;
        assert!(!is_settled(&client, &mut line).await, "its journal is not begun");
        drop(line);
        let mut line = keepers.next(2).await;
        assert!(!is_settled(&client, &mut line).await, "nor is it for another keeper, with which nothing was lost");
        client.start_order(order(5));
        assert!(!is_settled(&client, &mut line).await, "it has the order by then");
        drop(line);
        let mut line = keepers.next(3).await;
        let lost = soon("an end", events.recv()).await.expect("it runs");
        assert!(matches!(lost, ExecEvent::Ended { token: Token(5), end: End::Lost, .. }), "{lost:?}");
        client.forget(vec![Token(5)]);
        assert!(!is_settled(&client, &mut line).await, "what was lost is remembered, and the start is not");
        client.settled();
        assert!(is_settled(&client, &mut line).await, "both are");
        client.start_order(order(6));
        assert!(!is_settled(&client, &mut line).await, "it is not told twice, and has the order by then");
        drop(line);
        let mut line = keepers.next(4).await;
        soon("an end", events.recv()).await.expect("it runs");
        assert!(!is_settled(&client, &mut line).await, "the start is remembered, and what was lost is not");
        client.forget(vec![Token(6)]);
        assert!(is_settled(&client, &mut line).await, "both are");
        drop(line);
        let mut line = keepers.next(5).await;
        assert!(is_settled(&client, &mut line).await, "another one hears it at once");
        soon("its end", async { tokio::join!(client.leave(), line.rest()) }).await;
    }
}

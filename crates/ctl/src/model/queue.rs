//! Queues.

use muster_common::proto::v1;
use serde::Serialize;

use crate::output::{
    Human, Page,
    style::Look,
    table::{Cell, Column, Table},
};

/// One queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Queue {
    name: String,
    paused: bool,
    /// None: no limit.
    max_running: Option<u64>,
    /// None: no limit.
    max_waiting: Option<u64>,
    running: u64,
    queued: u64,
}

/// All queues.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Queues {
    pub(crate) queues: Vec<Queue>,
}

impl Queues {
    /// All queues of an answer.
    pub(crate) fn of(reply: v1::ListQueuesReply) -> Self {
        let one = |view: v1::QueueView| {
            let queue = view.queue.unwrap_or_default();
            Queue {
                name: queue.name,
                paused: queue.paused,
                max_running: queue.max_running,
                max_waiting: queue.max_waiting,
                running: view.running,
                queued: view.queued,
            }
        };
        Self { queues: reply.queues.into_iter().map(one).collect() }
    }
}

impl Human for Queues {
    fn human(&self, page: &Page) -> String {
        use Column::{Key, Number};
        let columns = [
            Key("QUEUE"),
            Key("STATE"),
            Number("RUNNING"),
            Number("QUEUED"),
            Number("MAX RUNNING"),
            Number("MAX WAITING"),
        ];
        let mut table = Table::new(columns);
        let limit = |limit: Option<u64>| limit.map_or_else(|| "none".to_owned(), |n| n.to_string());
        for queue in &self.queues {
            let state = if queue.paused { Cell::state("paused") } else { Cell::looking("open", Look::Plain) };
            table.row([
                Cell::from(queue.name.as_str()),
                state,
                queue.running.to_string().into(),
                queue.queued.to_string().into(),
                limit(queue.max_running).into(),
                limit(queue.max_waiting).into(),
            ]);
        }
        page.table(&table)
    }
}

//! A person at a simulated machine: the client that every command uses, and what is asked with it.

use std::{cell::RefCell, sync::Arc, time::Duration};

use muster_common::{proto::v1, wire};
use muster_core::spec::{Command, JobSpec, TaskSpec};

use super::{CONTROLLER, PORT, Simulated, World, now};
use crate::{
    model::task::Task,
    output::{Format, Output, style::When},
    remote::{
        Client,
        credential::Credential,
        find::{Place, Source},
        follow::Watch,
        output::{Printer, Shape},
        selector,
    },
};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Whoever asks.
pub(super) struct Person {
    pub(super) client: Client,
}

impl Person {
    /// Connected, as soon as there is a controller.
    pub(super) async fn new(world: &World) -> Self {
        let url = format!("http://{CONTROLLER}:{PORT}");
        let place = Place { url, source: Source::Flag, ca: None, insecure: true };
        loop {
            match Client::connect_over(Arc::new(Simulated(world.clone())), place.clone(), Credential::default()).await {
                Ok(client) => return Self { client },
                Err(error) => assert!(now() < Duration::from_secs(60), "{error}"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// A job of one task that does what `words` say; its number.
    pub(super) async fn submit(&mut self, name: &str, words: [&str; 2]) -> u64 {
        let command = Command::Argv(words.map(str::to_owned).to_vec());
        let task = TaskSpec { name: name.to_owned(), command, ..one_processor() };
        self.submit_task(task).await
    }

    pub(super) async fn submit_task(&mut self, task: TaskSpec) -> u64 {
        let (name, queue) = (task.name.clone(), "default".to_owned());
        let spec = JobSpec { name, queue, tasks: vec![Arc::new(task)], ..JobSpec::default() };
        let spec = Some(wire::spec::job_to_proto(&spec));
        let request = v1::SubmitRequest { spec, by: "ann".to_owned(), ..v1::SubmitRequest::default() };
        self.client.rpc.submit(request).await.expect("it is taken").into_inner().job
    }

    /// How its one task stands.
    pub(super) async fn task(&mut self, job: u64) -> Task {
        let request = v1::ListTasksRequest { selector: selector(&job.to_string()), ..Default::default() };
        let reply = self.client.rpc.list_tasks(request).await.expect("it is answered").into_inner();
        Task::from(reply.tasks.into_iter().next().expect("one task"))
    }

    /// Waits until its task runs.
    pub(super) async fn runs(&mut self, job: u64) {
        while self.task(job).await.state != "running" {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Follows it to its end as `ctl wait` does; the state that it ended in.
    pub(super) async fn finished(&self, job: u64) -> String {
        let output = Output::new(Format::Table, When::Never);
        let job = Watch::new(&self.client, output, job.to_string()).finish().await.expect("it ends");
        job.state.to_owned()
    }

    /// The state of an agent; none: nobody knows it.
    pub(super) async fn agent(&mut self, name: &str) -> Option<String> {
        let reply =
            self.client.rpc.list_agents(v1::ListAgentsRequest::default()).await.expect("it is answered").into_inner();
        let is_it = |agent: &v1::AgentView| agent.offer.as_ref().is_some_and(|offer| offer.name == name);
        reply.agents.into_iter().find(is_it).map(|agent| agent.state)
    }

    /// Waits until an agent is in this state.
    pub(super) async fn sees(&mut self, name: &str, state: &str) {
        while self.agent(name).await.as_deref() != Some(state) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

thread_local!(static PRINTED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });

/// What `ctl logs -f` prints of a job until it is over. One at a time in a simulation.
pub(super) async fn printed(client: Client, job: u64) -> String {
    let request = v1::LogsRequest { selector: selector(&job.to_string()), follow: true, ..Default::default() };
    let sink = |text: &[u8]| {
        PRINTED.with_borrow_mut(|printed| printed.extend_from_slice(text));
        Ok(())
    };
    PRINTED.take();
    let output = Output::new(Format::Table, When::Never);
    Printer::new(Shape::Raw, output).into(sink).drain(client, request).await.expect("it ends");
    String::from_utf8(PRINTED.take()).expect("it is text")
}

fn one_processor() -> TaskSpec {
    let request = muster_core::resources::Request { cpu_milli: 1000, ..Default::default() };
    TaskSpec { request, ..TaskSpec::default() }
}

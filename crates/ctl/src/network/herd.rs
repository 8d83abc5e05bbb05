//! Many agents that lose one controller at one moment: they come back spread over time, and soon.

use std::time::Duration;

use super::{World, agent, crash, people::Person, secs};

const AGENTS: usize = 60;
/// All of them have failed often enough by then to wait as long as anybody does.
const DOWN: (Duration, Duration) = (secs(10), secs(40));
/// The longest wait of the link, and the time that a connection takes.
const BACK_WITHIN: Duration = Duration::from_millis(5_500);
const SLICE: Duration = Duration::from_millis(250);

#[test]
fn agents_that_lost_one_controller_together_come_back_spread_over_time() {
    let world = World::new(7);
    let mut sim = world.sim();
    let machine = world.clone();
    sim.host("herd", move || {
        let world = machine.clone();
        async move {
            let agents = (0..AGENTS).map(|n| agent::live(world.clone(), format!("agent-{n}")));
            futures::future::join_all(agents).await;
            Ok(())
        }
    });
    crash(&mut sim, &world, DOWN);
    let seen = world.clone();
    sim.client("person", async move {
        let mut person = Person::new(&seen).await;
        loop {
            let reply = person.client.rpc.list_agents(muster_common::proto::v1::ListAgentsRequest::default()).await;
            let agents = reply.expect("it is answered").into_inner().agents;
            if agents.len() == AGENTS && agents.iter().all(|agent| agent.state == "connected") {
                return Ok(());
            }
            tokio::time::sleep(SLICE).await;
        }
    });
    sim.run().expect("all come back");
    let came = |from: Duration, to: Duration| {
        let seen = world.lock();
        seen.came.iter().filter(|at| (from..to).contains(*at)).count()
    };
    assert_eq!(came(DOWN.0, DOWN.1), 0, "nobody is there to come to");
    assert!(sim.elapsed() < DOWN.1 + BACK_WITHIN, "the last was back after {:?}", sim.elapsed() - DOWN.1);
    // Each comes with two lines. X19: at the worst moment no more than three times as many as on average.
    let slices = (0..20).map(|n| came(DOWN.1 + SLICE * n, DOWN.1 + SLICE * (n + 1))).collect::<Vec<_>>();
    let (most, all) = (slices.iter().max().copied().unwrap_or_default(), slices.iter().sum::<usize>());
    assert!(most * slices.len() < 3 * all, "{most} of {all} came at one moment: {slices:?}");
}

//! Lines that are cut, held and repaired, and a controller that crashes, under the real services.

use std::time::Duration;

use super::{
    CONTROLLER, World, agent, crash, now,
    people::{Person, printed},
    secs,
};

const SEEDS: [u64; 3] = [1, 2, 3];
/// As the controller is set: see `Config`.
const LEASE_TTL: Duration = secs(15);
/// A peer that does not answer is asked after ten seconds, and given up five later.
const NOTICED_WITHIN: Duration = Duration::from_millis(15_500);
/// Steps of the simulation are not finer.
const STEP: Duration = Duration::from_millis(50);

/// A network of two agents, and a person's doings there.
fn two_agents<F>(seed: u64, doings: impl FnOnce(World, Person) -> F + 'static) -> (World, turmoil::Sim<'static>)
where
    F: Future<Output = ()> + 'static,
{
    let world = World::new(seed);
    let mut sim = world.sim();
    agent::host(&mut sim, &world, "one");
    agent::host(&mut sim, &world, "two");
    let seen = world.clone();
    sim.client("person", async move {
        let mut person = Person::new(&seen).await;
        person.sees("one", "connected").await;
        person.sees("two", "connected").await;
        doings(seen, person).await;
        Ok(())
    });
    (world, sim)
}

/// Runs them to their end.
fn with_two_agents<F>(seed: u64, doings: impl FnOnce(World, Person) -> F + 'static) -> World
where
    F: Future<Output = ()> + 'static,
{
    let (world, mut sim) = two_agents(seed, doings);
    sim.run().unwrap_or_else(|error| panic!("seed {seed}: {error}; {:?}", world.lock()));
    world.check_no_overlap();
    world
}

/// Submits a task that lasts, and waits until it runs; its job and where it is.
async fn lasting(world: &World, person: &mut Person) -> (u64, String) {
    let job = person.submit("a", ["sleep", "30"]).await;
    person.runs(job).await;
    while world.runs("a").is_empty() {
        tokio::time::sleep(STEP).await;
    }
    (job, world.runs("a")[0].agent.clone())
}

/// Checks that a task was ended where it was cut off, in time, and begun again elsewhere after that.
fn moved_on(world: &World, cut: Duration) {
    let runs = world.runs("a");
    let [first, second] = &runs[..] else { panic!("seed {}: {runs:?}", world.seed) };
    let ended = first.ended.expect("it is over");
    assert!(first.killed && ended <= cut + LEASE_TTL + STEP, "seed {}: cut at {cut:?}, {runs:?}", world.seed);
    assert!(second.agent != first.agent && second.began >= ended && !second.killed, "seed {}: {runs:?}", world.seed);
}

#[test]
fn an_agent_that_is_cut_off_for_less_than_a_lease_goes_on_with_the_same_attempt() {
    for seed in SEEDS {
        let world = with_two_agents(seed, |world, mut person| async move {
            let (job, at) = lasting(&world, &mut person).await;
            let before = world.lock().came.len();
            turmoil::partition(at.as_str(), CONTROLLER);
            tokio::time::sleep(secs(8)).await;
            turmoil::repair(at.as_str(), CONTROLLER);
            assert_eq!(person.finished(job).await, "succeeded");
            assert_eq!(person.task(job).await.attempts.len(), 1);
            assert!(world.lock().came.len() > before, "nobody had to come again");
        });
        let runs = world.runs("a");
        assert!(runs.len() == 1 && !runs[0].killed, "seed {seed}: {runs:?}");
    }
}

fn long_partition(seed: u64) -> World {
    with_two_agents(seed, |world, mut person| async move {
        let (job, at) = lasting(&world, &mut person).await;
        let cut = now();
        turmoil::partition(at.as_str(), CONTROLLER);
        // Before its leases are over: the line itself is asked whether it lives.
        person.sees(&at, "silent").await;
        assert!(now() <= cut + NOTICED_WITHIN, "noticed after {:?}", now() - cut);
        assert_eq!(person.finished(job).await, "succeeded");
        assert_eq!(person.task(job).await.attempts.len(), 2);
        turmoil::repair(at.as_str(), CONTROLLER);
        person.sees(&at, "connected").await;
        moved_on(&world, cut);
    })
}

#[test]
fn an_agent_that_is_cut_off_for_longer_ends_its_attempt_before_another_begins_it_and_comes_back() {
    for seed in SEEDS {
        long_partition(seed);
    }
}

#[test]
fn the_same_seed_gives_the_same_course_of_events() {
    let [one, other] = [long_partition(5), long_partition(5)].map(|world| world.runs("a"));
    assert_eq!(one.len(), other.len());
    for (one, other) in one.iter().zip(&other) {
        assert_eq!((&one.agent, one.attempt, one.killed), (&other.agent, other.attempt, other.killed));
        // Work on threads of its own takes no simulated time, but may end a step sooner or later.
        let (ended, as_well) = (one.ended.unwrap_or_default(), other.ended.unwrap_or_default());
        assert!(one.began.abs_diff(other.began) <= STEP && ended.abs_diff(as_well) <= STEP, "{one:?} {other:?}");
    }
}

#[test]
fn a_line_that_carries_one_way_only_is_as_good_as_none() {
    for (seed, up) in [(1, true), (2, false), (3, true), (4, false)] {
        with_two_agents(seed, move |world, mut person| async move {
            let (job, at) = lasting(&world, &mut person).await;
            let at = at.as_str();
            let (from, to) = if up { (at, CONTROLLER) } else { (CONTROLLER, at) };
            let cut = now();
            turmoil::partition_oneway(from, to);
            assert_eq!(person.finished(job).await, "succeeded");
            turmoil::repair_oneway(from, to);
            person.sees(at, "connected").await;
            moved_on(&world, cut);
        });
    }
}

#[test]
fn what_was_held_back_for_a_while_arrives_and_nobody_has_to_come_again() {
    for seed in SEEDS {
        let world = with_two_agents(seed, |world, mut person| async move {
            let (job, at) = lasting(&world, &mut person).await;
            let before = world.lock().came.len();
            for _ in 0..4 {
                turmoil::hold(at.as_str(), CONTROLLER);
                tokio::time::sleep(secs(3)).await;
                turmoil::release(at.as_str(), CONTROLLER);
                tokio::time::sleep(secs(1)).await;
            }
            assert_eq!(person.finished(job).await, "succeeded");
            assert_eq!(world.lock().came.len(), before);
        });
        assert_eq!(world.runs("a").len(), 1, "seed {seed}");
    }
}

#[test]
fn what_was_held_back_for_too_long_arrives_and_changes_nothing_any_more() {
    for seed in SEEDS {
        with_two_agents(seed, |world, mut person| async move {
            let (job, at) = lasting(&world, &mut person).await;
            let cut = now();
            turmoil::hold(at.as_str(), CONTROLLER);
            person.sees(&at, "lost").await;
            // Everything that the first agent said of the attempt it had, and that it was told, comes now.
            turmoil::release(at.as_str(), CONTROLLER);
            assert_eq!(person.finished(job).await, "succeeded");
            person.sees(&at, "connected").await;
            assert_eq!(person.task(job).await.attempts.len(), 2);
            moved_on(&world, cut);
        });
    }
}

/// What `count N` writes.
fn lines(n: u64) -> String {
    (1..=n).map(|n| format!("line {n}\n")).collect()
}

#[test]
fn who_follows_output_reads_on_where_the_line_was_cut_and_reads_nothing_twice() {
    for seed in SEEDS {
        with_two_agents(seed, |world, mut person| async move {
            let job = person.submit("a", ["count", "60"]).await;
            let reader = tokio::spawn(printed(person.client.clone(), job));
            person.runs(job).await;
            tokio::time::sleep(secs(5)).await;
            // First the agent's line to the controller, then the reader's.
            let at = world.runs("a")[0].agent.clone();
            turmoil::partition(at.as_str(), CONTROLLER);
            tokio::time::sleep(secs(6)).await;
            turmoil::repair(at.as_str(), CONTROLLER);
            tokio::time::sleep(secs(10)).await;
            turmoil::partition("person", CONTROLLER);
            tokio::time::sleep(secs(20)).await;
            turmoil::repair("person", CONTROLLER);
            assert_eq!(reader.await.expect("it reads"), lines(60));
        });
    }
}

#[test]
fn a_controller_that_crashes_disturbs_neither_what_runs_nor_who_reads_or_waits() {
    for seed in SEEDS {
        let (world, mut sim) = two_agents(seed, |_, mut person| async move {
            let jobs = [person.submit("a", ["count", "30"]).await, person.submit("b", ["sleep", "30"]).await];
            let reader = tokio::spawn(printed(person.client.clone(), jobs[0]));
            for job in jobs {
                assert_eq!(person.finished(job).await, "succeeded");
                assert_eq!(person.task(job).await.attempts.len(), 1);
            }
            assert_eq!(reader.await.expect("it reads"), lines(30));
        });
        crash(&mut sim, &world, (secs(8), secs(13)));
        crash(&mut sim, &world, (secs(22), secs(26)));
        sim.run().unwrap_or_else(|error| panic!("seed {seed}: {error}; {:?}", world.lock()));
        let runs = [world.runs("a"), world.runs("b")].concat();
        assert!(runs.len() == 2 && runs.iter().all(|run| !run.killed), "seed {seed}: {runs:?}");
    }
}

//! The simulation is a function of its seed, and it sees what it is there to see.

use muster_sim::run;

#[test]
fn twenty_seeds_give_the_same_run_twice() {
    for seed in 0..20 {
        let (first, second) = (run(seed, true), run(seed, true));
        assert_eq!(first, second, "seed {seed}");
    }
}

#[test]
fn different_seeds_are_different_worlds() {
    assert_ne!(run(1, false).hash, run(2, false).hash);
}

#[test]
fn every_job_of_a_world_is_promised_and_faults_do_happen() {
    let outcomes: Vec<_> = (100..120).map(|seed| run(seed, false)).collect();
    assert!(outcomes.iter().all(|outcome| outcome.promised == 5 && outcome.violations.is_empty()));
    assert!(outcomes.iter().map(|outcome| outcome.faults).sum::<u64>() > 40);
}

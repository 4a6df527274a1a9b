//! One seed, one course of events: all that relays and shards say in two runs is the same.

use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::Time;
use crate::api::Change;
use crate::world::Simulation;

/// What was said so far: when, by whom, and a hash of the words. Only where it is asked for.
#[derive(Default)]
pub(crate) struct Transcript(Option<Vec<(Time, usize, u64)>>);

impl Transcript {
    pub(crate) fn says(&mut self, now: Time, who: usize, what: &impl Debug) {
        if let Some(lines) = &mut self.0 {
            let mut hasher = DefaultHasher::new();
            format!("{what:?}").hash(&mut hasher);
            lines.push((now, who, hasher.finish()));
        }
    }
}

type Lines = Vec<(Time, usize, u64)>;

fn transcript(seed: u64) -> (Lines, Vec<(Time, Change)>) {
    let mut simulation = Simulation::new(seed);
    simulation.transcript = Transcript(Some(Vec::new()));
    simulation.go();
    (simulation.transcript.0.expect("it was asked for"), simulation.api.history)
}

#[test]
fn a_seed_says_all_that_happens() {
    let mut before = Vec::new();
    for seed in 0..2 {
        let (first, second) = (transcript(seed), transcript(seed));
        let differs = first.0.iter().zip(&second.0).position(|(a, b)| a != b);
        assert_eq!(differs.map(|line| first.0[line]), None, "line {differs:?} of seed {seed}");
        assert_eq!(first.0.len(), second.0.len());
        assert_eq!(format!("{:?}", first.1), format!("{:?}", second.1));
        assert!(first.0.len() > 1000, "{} lines", first.0.len());
        assert_ne!(first.0, before, "another seed, another course");
        before = first.0;
    }
}

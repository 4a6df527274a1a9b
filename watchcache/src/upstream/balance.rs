//! Which backend takes a request: the less loaded of two drawn at random. Among many front doors
//! that each know only their own load, this spreads better than always taking the least loaded,
//! to which all would go at once.

/// Whether a backend may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Usability {
    /// It answered that it is ready.
    Ready,
    /// It answers, but not that it is ready, or nothing is known yet: better than none.
    Doubtful,
    /// Nothing reaches it.
    Unusable,
}

/// A backend as the choice sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Whether it may be chosen.
    pub usability: Usability,
    /// Whether this request has failed there: taken only when nothing else is left.
    pub avoided: bool,
    /// Requests of the same kind (short or long-running) being served there.
    pub load: usize,
}

impl Candidate {
    fn class(self) -> Option<(bool, Usability)> {
        (self.usability != Usability::Unusable).then_some((self.avoided, self.usability))
    }
}

/// Chooses one of `count` candidates; none where all are unusable. `random` decides the draw.
#[must_use]
pub fn choose(count: usize, candidate: impl Fn(usize) -> Candidate, random: u64) -> Option<usize> {
    let best = (0..count).filter_map(|index| candidate(index).class()).min()?;
    let eligible = || (0..count).filter(|index| candidate(*index).class() == Some(best));
    // A candidate's state may change between the looks; then the draw falls short and the first
    // that is left is taken.
    let size = eligible().count().max(1) as u64;
    let first = random % size;
    let second = (random >> 32) % size;
    let draw = |place: u64| usize::try_from(place).ok().and_then(|place| eligible().nth(place));
    let (first, second) = (draw(first).or_else(|| eligible().next())?, draw(second));
    Some(match second {
        Some(second) if candidate(second).load < candidate(first).load => second,
        _ => first,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let usability = prop_oneof![
            Just(Usability::Ready),
            Just(Usability::Doubtful),
            Just(Usability::Unusable)
        ];
        let one = (usability, any::<bool>(), 0usize..10)
            .prop_map(|(usability, avoided, load)| Candidate { usability, avoided, load });
        proptest::collection::vec(one, 0..8)
    }

    proptest! {
        #[test]
        fn the_best_class_is_chosen(all in candidates(), random in any::<u64>()) {
            let chosen = choose(all.len(), |index| all[index], random).map(|index| all[index]);
            prop_assert_eq!(
                chosen.and_then(Candidate::class),
                all.iter().filter_map(|candidate| candidate.class()).min()
            );
        }
    }

    #[test]
    fn of_two_the_less_loaded() {
        let ready = |load| Candidate { usability: Usability::Ready, avoided: false, load };
        let two = [ready(5), ready(1)];
        // The draws are the low and the high half of the number.
        assert_eq!(choose(2, |index| two[index], 1 << 32), Some(1));
        assert_eq!(choose(2, |index| two[index], 1), Some(1));
        assert_eq!(choose(2, |index| two[index], 0), Some(0));
    }
}

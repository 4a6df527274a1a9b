//! Turns for reads that look at many objects, so that one client that lists all day can't keep the
//! others from theirs: so many at a time for one user, and for all users of a kind. Who gets none is
//! told to come again. Reads that an index answers, as kubelets' are, need no turn.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;

use super::subject::Subject;

/// How many turns there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// For one user.
    pub user: usize,
    /// For all users of a kind.
    pub kind: usize,
}

/// The bound that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// The user's own.
    User,
    /// That of all users of the kind.
    Kind,
}

impl Busy {
    /// Its name in the configuration.
    #[must_use]
    pub fn bound(self) -> &'static str {
        match self {
            Self::User => "maxExpensiveReadsPerUser",
            Self::Kind => "maxExpensiveReads",
        }
    }
}

/// Who asks, as kube-apiserver's own priority levels part them: the cluster's own parts, and others
/// (`k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// As in kube-apiserver, `system:masters` is never turned away.
    Exempt,
    System,
    Workload,
}

impl Kind {
    fn of(who: &Subject) -> Self {
        const ACCOUNTS: &str = "system:serviceaccount:";
        if who.groups.iter().any(|group| group == "system:masters") {
            return Self::Exempt;
        }
        let own = match who.username.strip_prefix(ACCOUNTS) {
            Some(account) => account.starts_with("kube-system:"),
            None => who.username.starts_with("system:"),
        };
        if own { Self::System } else { Self::Workload }
    }

    fn place(self) -> usize {
        match self {
            Self::Exempt => 0,
            Self::System => 1,
            Self::Workload => 2,
        }
    }
}

#[derive(Debug, Default)]
struct Taken {
    /// No user is here without a turn: as many as there are turns, at most.
    users: HashMap<String, usize>,
    kinds: [usize; 3],
}

/// The turns that are taken. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    taken: Arc<Mutex<Taken>>,
    gauge: Gauge,
}

/// A turn, given back when dropped.
#[derive(Debug)]
pub struct Turn {
    turns: Turns,
    user: String,
    kind: Kind,
}

impl Turns {
    /// Turns that are counted by this gauge.
    #[must_use]
    pub fn counted(gauge: Gauge) -> Self {
        Self { taken: Arc::default(), gauge }
    }

    /// Takes a turn, or says which bound is reached.
    pub fn take(&self, who: &Subject, bounds: Bounds) -> Result<Turn, Busy> {
        let (user, kind) = (who.username.clone(), Kind::of(who));
        let mut taken = self.taken.lock();
        if kind != Kind::Exempt {
            let of_user = taken.users.get(&user).copied().unwrap_or_default();
            if of_user >= bounds.user {
                return Err(Busy::User);
            }
            if taken.kinds.get(kind.place()).is_some_and(|taken| *taken >= bounds.kind) {
                return Err(Busy::Kind);
            }
        }
        *taken.users.entry(user.clone()).or_default() += 1;
        if let Some(taken) = taken.kinds.get_mut(kind.place()) {
            *taken += 1;
        }
        self.gauge.inc();
        Ok(Turn { turns: self.clone(), user, kind })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut taken = self.turns.taken.lock();
        if let Entry::Occupied(mut entry) = taken.users.entry(std::mem::take(&mut self.user)) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
        if let Some(taken) = taken.kinds.get_mut(self.kind.place()) {
            *taken -= 1;
        }
        self.turns.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { user: 2, kind: 3 };

    fn named(name: &str) -> Subject {
        Subject { username: name.to_owned(), ..Subject::default() }
    }

    fn busy(turns: &Turns, who: &Subject) -> Option<Busy> {
        turns.take(who, BOUNDS).err()
    }

    #[test]
    fn one_user_leaves_room_for_others() {
        let turns = Turns::default();
        let (happy, other, third) = (named("happy"), named("other"), named("third"));
        let first = turns.take(&happy, BOUNDS).unwrap();
        let _second = turns.take(&happy, BOUNDS).unwrap();
        assert_eq!(busy(&turns, &happy), Some(Busy::User));
        let _of_other = turns.take(&other, BOUNDS).unwrap();
        assert_eq!(busy(&turns, &third), Some(Busy::Kind));
        // The cluster's own parts have theirs, and an administrator gets in.
        let _of_node = turns.take(&named("system:node:n0"), BOUNDS).unwrap();
        let account = "system:serviceaccount:kube-system:deployment-controller";
        let _of_account = turns.take(&named(account), BOUNDS).unwrap();
        assert_eq!(busy(&turns, &named("system:serviceaccount:a:b")), Some(Busy::Kind));
        let admin = Subject { groups: vec!["system:masters".to_owned()], ..named("admin") };
        let masters: Vec<_> = (0..9).map(|_| turns.take(&admin, BOUNDS).unwrap()).collect();
        assert_eq!(turns.gauge.get(), 14);
        drop((first, masters));
        assert_eq!(busy(&turns, &third), None);
        assert_eq!(turns.gauge.get(), 4);
    }

    #[test]
    fn nothing_is_kept_of_who_has_no_turn() {
        let turns = Turns::default();
        for number in 0..100 {
            drop(turns.take(&named(&number.to_string()), BOUNDS).unwrap());
        }
        assert!(turns.taken.lock().users.is_empty());
        assert_eq!(turns.taken.lock().kinds, [0; 3]);
    }
}

//! What is known of one backend's health, from observations handed in.

use super::Usability;

/// Probes without an answer until a backend is no longer taken for ready.
const SILENT_PROBES: u32 = 3;

/// One thing seen of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    /// `/readyz` answered 200.
    Ready,
    /// `/readyz` answered something else: the backend says itself that it wants no requests.
    NotReady,
    /// No connection or no answer in time, or the answer broke off. It may be gone or only slow;
    /// on a machine with too much to do all backends are slow, and none must be given up for it.
    Silent,
    /// A connection was refused or failed.
    Unreachable,
}

/// A backend's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    usability: Usability,
    silent: u32,
}

impl Default for Health {
    /// Nothing is known yet.
    fn default() -> Self {
        Self { usability: Usability::Doubtful, silent: 0 }
    }
}

impl Health {
    /// Whether the backend may be chosen.
    #[must_use]
    pub fn usability(&self) -> Usability {
        self.usability
    }

    /// Takes in an observation.
    pub fn observe(&mut self, observation: Observation) {
        match observation {
            Observation::Ready => *self = Self { usability: Usability::Ready, silent: 0 },
            Observation::NotReady => *self = Self { usability: Usability::Doubtful, silent: 0 },
            Observation::Unreachable => {
                *self = Self { usability: Usability::Unusable, silent: 0 };
            }
            Observation::Silent => {
                self.silent = self.silent.saturating_add(1);
                if self.silent >= SILENT_PROBES && self.usability == Usability::Ready {
                    self.usability = Usability::Doubtful;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(observations: &[Observation]) -> Usability {
        let mut health = Health::default();
        for observation in observations {
            health.observe(*observation);
        }
        health.usability()
    }

    #[test]
    fn transitions() {
        use Observation::{NotReady, Ready, Silent, Unreachable};
        assert_eq!(after(&[]), Usability::Doubtful);
        assert_eq!(after(&[Ready]), Usability::Ready);
        assert_eq!(after(&[Ready, NotReady]), Usability::Doubtful);
        assert_eq!(after(&[Ready, Unreachable]), Usability::Unusable);
        assert_eq!(after(&[Ready, Silent, Silent]), Usability::Ready);
        assert_eq!(after(&[Ready, Silent, Silent, Silent]), Usability::Doubtful);
        assert_eq!(after(&[Unreachable, Silent, Silent, Silent]), Usability::Unusable);
        assert_eq!(after(&[Ready, Silent, Silent, Ready, Silent]), Usability::Ready);
        assert_eq!(after(&[Unreachable, Ready]), Usability::Ready);
    }
}

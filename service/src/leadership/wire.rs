//! The lines between a standby and its leader.
//!
//! The standby connects and says `hello`. The leader asks several times each second; each `grant`
//! is the standby's promise not to take over for a second from when it read the question. What the
//! leader writes it tells, so that the standby knows the record when it is told that it is its turn.

/// The longest line.
pub const LONGEST: usize = 512;

/// From the standby.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromStandby {
    /// The first line: the key from the Lease, who it is, and the session it makes up.
    Hello {
        /// The leader's key, as the Lease told it.
        key: String,
        /// The standby's identity.
        identity: String,
        /// A number that nobody has used before.
        session: u64,
    },
    /// The promise that answers a question.
    Grant {
        /// The question's number.
        number: u64,
        /// Whether the standby holds all that it needs to lead.
        synced: bool,
    },
}

/// From the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromLeader {
    /// The Lease was renewed.
    Wrote {
        /// The Lease's resourceVersion now.
        version: String,
    },
    /// The leader has stopped for good, and the Lease is left to this standby.
    Yours {
        /// The epoch that has ended.
        epoch: u64,
        /// The Lease's resourceVersion by the leader's last write.
        version: String,
    },
    /// Asks for a promise.
    Ask {
        /// The epoch in which the leader leads.
        epoch: u64,
        /// Tells answers apart.
        number: u64,
    },
    /// The Lease was given back.
    Bye,
    /// The connection ends, which says nothing about the leader's life.
    No,
}

impl FromStandby {
    /// The line, with its end.
    #[must_use]
    pub fn line(&self) -> String {
        match self {
            Self::Hello { key, identity, session } => {
                format!("hello {key} {identity} {session:016x}\n")
            }
            Self::Grant { number, synced } => format!("grant {number} {}\n", u8::from(*synced)),
        }
    }

    /// Reads a line; `None` where it is none of these.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.trim_end().split(' ').collect();
        match words.as_slice() {
            ["hello", key, identity, session] => Some(Self::Hello {
                key: (*key).to_owned(),
                identity: (*identity).to_owned(),
                session: u64::from_str_radix(session, 16).ok()?,
            }),
            ["grant", number, synced] => {
                Some(Self::Grant { number: number.parse().ok()?, synced: *synced == "1" })
            }
            _ => None,
        }
    }
}

impl FromLeader {
    /// The line, with its end.
    #[must_use]
    pub fn line(&self) -> String {
        match self {
            Self::Wrote { version } => format!("wrote {version}\n"),
            Self::Yours { epoch, version } => format!("yours {epoch} {version}\n"),
            Self::Ask { epoch, number } => format!("ask {epoch} {number}\n"),
            Self::Bye => "bye\n".to_owned(),
            Self::No => "no\n".to_owned(),
        }
    }

    /// Reads a line; `None` where it is none of these.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.trim_end().split(' ').collect();
        match words.as_slice() {
            ["ask", epoch, number] => {
                Some(Self::Ask { epoch: epoch.parse().ok()?, number: number.parse().ok()? })
            }
            ["wrote", version] => Some(Self::Wrote { version: (*version).to_owned() }),
            ["yours", epoch, version] => {
                Some(Self::Yours { epoch: epoch.parse().ok()?, version: (*version).to_owned() })
            }
            ["bye"] => Some(Self::Bye),
            ["no"] => Some(Self::No),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_were() {
        for line in [
            FromStandby::Hello { key: "k".into(), identity: "pod-1".into(), session: u64::MAX },
            FromStandby::Grant { number: 7, synced: true },
        ] {
            assert_eq!(FromStandby::parse(&line.line()), Some(line));
        }
        for line in [
            FromLeader::Ask { epoch: 3, number: 9 },
            FromLeader::Wrote { version: "17".into() },
            FromLeader::Yours { epoch: 3, version: "17".into() },
            FromLeader::Bye,
            FromLeader::No,
        ] {
            assert_eq!(FromLeader::parse(&line.line()), Some(line));
        }
    }

    #[test]
    fn other_lines_are_none() {
        for line in [
            "",
            "grant",
            "grant x 1",
            "hello a b",
            "hello a b zz",
            "ask 1",
            "ask -1 2",
            "yours x 1",
        ] {
            assert_eq!((FromStandby::parse(line), FromLeader::parse(line)), (None, None), "{line}");
        }
    }
}

//! Which durability a key has.

use std::{fmt, str::FromStr};

/// What an acknowledged write survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Nothing: memory only.
    None,
    /// The death of the process: acknowledged after write(2).
    Buffered,
    /// The loss of power: acknowledged after fdatasync(2).
    #[default]
    Fsync,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Buffered => "buffered",
            Self::Fsync => "fsync",
        })
    }
}

impl FromStr for Class {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        match text {
            "none" => Ok(Self::None),
            "buffered" => Ok(Self::Buffered),
            "fsync" => Ok(Self::Fsync),
            _ => Err(RuleError::Mode { mode: text.to_owned() }),
        }
    }
}

/// Why a rule was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// No such mode.
    #[error("unknown durability {mode:?}: one of fsync, buffered, none")]
    Mode {
        /// What was given.
        mode: String,
    },
    /// Not of the form PREFIX=MODE.
    #[error("durability rule {rule:?} is not PREFIX=MODE, for example /registry/leases/=none")]
    Form {
        /// What was given.
        rule: String,
    },
    /// A rule without a prefix would hide the default.
    #[error("durability rule {rule:?} has an empty prefix: use --durability for the default")]
    EmptyPrefix {
        /// What was given.
        rule: String,
    },
    /// Two rules for one prefix.
    #[error("two durability rules for prefix {prefix:?}")]
    Twice {
        /// The prefix.
        prefix: String,
    },
}

/// The durability of one prefix, written `PREFIX=MODE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurabilityRule {
    /// Keys that start with it are meant.
    pub prefix: String,
    /// Their class.
    pub class: Class,
}

impl FromStr for DurabilityRule {
    type Err = RuleError;

    fn from_str(rule: &str) -> Result<Self, RuleError> {
        // The last `=`: a prefix may hold one, a mode can't.
        let (prefix, mode) =
            rule.rsplit_once('=').ok_or_else(|| RuleError::Form { rule: rule.to_owned() })?;
        if prefix.is_empty() {
            return Err(RuleError::EmptyPrefix { rule: rule.to_owned() });
        }
        Ok(Self { prefix: prefix.to_owned(), class: mode.parse()? })
    }
}

/// The durability of every key: the rule of the longest matching prefix, else the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DurabilityRules {
    default: Class,
    /// Longest prefix first.
    rules: Vec<DurabilityRule>,
}

impl DurabilityRules {
    /// Rules over a default.
    ///
    /// # Errors
    /// [`RuleError::Twice`] if a prefix is given twice.
    pub fn new(
        default: Class,
        rules: impl IntoIterator<Item = DurabilityRule>,
    ) -> Result<Self, RuleError> {
        let mut rules: Vec<_> = rules.into_iter().collect();
        rules.sort_by(|a, b| {
            b.prefix.len().cmp(&a.prefix.len()).then_with(|| a.prefix.cmp(&b.prefix))
        });
        if let Some(pair) = rules.windows(2).find(|pair| pair[0].prefix == pair[1].prefix) {
            return Err(RuleError::Twice { prefix: pair[0].prefix.clone() });
        }
        Ok(Self { default, rules })
    }

    /// The class of keys that no rule names.
    #[must_use]
    pub fn default_class(&self) -> Class {
        self.default
    }

    /// The class of a key.
    #[must_use]
    pub fn class(&self, key: &[u8]) -> Class {
        self.rules
            .iter()
            .find(|rule| key.starts_with(rule.prefix.as_bytes()))
            .map_or(self.default, |rule| rule.class)
    }

    /// True if every key is of class fsync, so that a crash takes back nothing that was seen.
    #[must_use]
    pub fn all_fsync(&self) -> bool {
        self.default == Class::Fsync && self.rules.iter().all(|rule| rule.class == Class::Fsync)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(default: Class, rules: &[&str]) -> Result<DurabilityRules, RuleError> {
        let rules: Result<Vec<DurabilityRule>, _> = rules.iter().map(|r| r.parse()).collect();
        DurabilityRules::new(default, rules?)
    }

    #[test]
    fn the_longest_prefix_wins() {
        let rules = rules(Class::Buffered, &["/a/=none", "/a/b/=fsync", "/a=b/=none"]).unwrap();
        assert_eq!(rules.class(b"/a/x"), Class::None);
        assert_eq!(rules.class(b"/a/b/x"), Class::Fsync);
        assert_eq!(rules.class(b"/a"), Class::Buffered);
        assert_eq!(rules.class(b"/a=b/x"), Class::None);
        assert!(!rules.all_fsync());
        assert!(DurabilityRules::default().all_fsync());
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let say = |list: &[&str]| rules(Class::Fsync, list).unwrap_err().to_string();
        assert!(say(&["/a"]).contains("not PREFIX=MODE"));
        assert!(say(&["/a=sometimes"]).contains("\"sometimes\": one of fsync, buffered, none"));
        assert!(say(&["=none"]).contains("empty prefix"));
        assert!(say(&["/a=none", "/a=fsync"]).contains("two durability rules for prefix \"/a\""));
    }
}

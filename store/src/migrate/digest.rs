//! What two stores must agree on, as one number.

use std::fmt;

use ring::digest::{Context, SHA256};

use crate::core::KeyValue;

/// Which fields count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of a `mvccpb.KeyValue`.
    Exact,
    /// Key, value and lease: all that a client can write.
    Contents,
}

/// SHA-256 over keys in key order.
#[derive(Clone)]
pub struct Digest {
    scope: Scope,
    context: Context,
    keys: u64,
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Digest")
            .field("scope", &self.scope)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

/// A finished digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// Keys that went in.
    pub keys: u64,
    /// SHA-256.
    pub hash: [u8; 32],
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys with SHA-256 ", self.keys)?;
        self.hash.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Digest {
    /// A digest of nothing.
    #[must_use]
    pub fn new(scope: Scope) -> Self {
        Self { scope, context: Context::new(&SHA256), keys: 0 }
    }

    /// Adds the next key.
    pub fn add(&mut self, kv: &KeyValue) {
        self.keys += 1;
        for bytes in [kv.key(), kv.value()] {
            self.context.update(&(bytes.len() as u64).to_le_bytes());
            self.context.update(bytes);
        }
        self.context.update(&kv.lease().to_le_bytes());
        if self.scope == Scope::Exact {
            for number in [kv.create_revision(), kv.mod_revision(), kv.version()] {
                self.context.update(&number.to_le_bytes());
            }
        }
    }

    /// The result.
    #[must_use]
    pub fn finish(self) -> Sum {
        let mut hash = [0; 32];
        hash.copy_from_slice(self.context.finish().as_ref());
        Sum { keys: self.keys, hash }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Fields;

    fn sum(scope: Scope, keys: &[(&'static str, &'static str, i64)]) -> Sum {
        let mut digest = Digest::new(scope);
        for (key, value, mod_revision) in keys {
            let (key, value) = (key.as_bytes(), value.as_bytes());
            digest.add(&KeyValue::new(Fields {
                key,
                value,
                mod_revision: *mod_revision,
                ..Fields::default()
            }));
        }
        digest.finish()
    }

    #[test]
    fn what_differs_shows() {
        let one = sum(Scope::Exact, &[("a", "bc", 2)]);
        assert_ne!(one, sum(Scope::Exact, &[("ab", "c", 2)]));
        assert_ne!(one, sum(Scope::Exact, &[("a", "bc", 3)]));
        assert_eq!(
            sum(Scope::Contents, &[("a", "bc", 2)]),
            sum(Scope::Contents, &[("a", "bc", 3)])
        );
        assert!(one.to_string().starts_with("1 keys with SHA-256 "));
    }
}

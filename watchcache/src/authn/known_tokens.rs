//! Tokens that were accepted before. This decides nothing but which connections a token takes:
//! kube-apiserver closes an HTTP/2 connection after a token it refuses, so tokens that may be
//! refused are kept off the connections that others share.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use http::{HeaderMap, header};
use parking_lot::Mutex;

/// Tokens of one generation. At the bound the older generation is forgotten.
const GENERATION: usize = 16 * 1024;

/// The accepted tokens, as hashes under a key of this process.
#[derive(Debug, Default)]
pub struct KnownTokens {
    key: RandomState,
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    new: HashSet<u64>,
    old: HashSet<u64>,
}

/// One token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenHash(u64);

impl KnownTokens {
    /// The request's token, hashed.
    #[must_use]
    pub fn hash(&self, headers: &HeaderMap) -> TokenHash {
        let token = headers.get(header::AUTHORIZATION).map(header::HeaderValue::as_bytes);
        TokenHash(self.key.hash_one(token))
    }

    /// Whether the token was accepted lately.
    #[must_use]
    pub fn is_known(&self, token: TokenHash) -> bool {
        let generations = self.generations.lock();
        generations.new.contains(&token.0) || generations.old.contains(&token.0)
    }

    /// Takes in what a backend said of the token.
    pub fn observe(&self, token: TokenHash, accepted: bool) {
        let mut generations = self.generations.lock();
        if !accepted {
            generations.new.remove(&token.0);
            generations.old.remove(&token.0);
        } else if generations.new.insert(token.0) && generations.new.len() >= GENERATION {
            generations.old = std::mem::take(&mut generations.new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_tokens_are_known_until_refused() {
        let known = KnownTokens::default();
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, header::HeaderValue::from_static("Bearer a"));
        let token = known.hash(&headers);
        assert!(!known.is_known(token));
        known.observe(token, true);
        assert!(known.is_known(known.hash(&headers)));
        known.observe(token, false);
        assert!(!known.is_known(token));
    }

    #[test]
    fn they_are_bounded() {
        let known = KnownTokens::default();
        for token in 0..10 * GENERATION as u64 {
            known.observe(TokenHash(token), true);
            assert!(known.is_known(TokenHash(token)));
        }
        let generations = known.generations.lock();
        assert!(generations.new.len() + generations.old.len() <= 2 * GENERATION);
    }
}

//! Which pods are where, as other pods' terms and spread constraints ask: by identity, and for
//! each identity by kind of node and by node. Nodes of one kind have the same labels but for the
//! hostname and the same taints, so that counting over zones looks at kinds and not at nodes.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::affinity::Identity;
use super::intern::Interner;
use super::labels::Selector;
use super::maps::HashMap;
use super::selector::Requirement;

/// Where the pods of one identity are.
#[derive(Debug, Default)]
pub(super) struct Placed {
    /// Pods by row.
    pub(super) rows: HashMap<u32, u32>,
    /// Pods by kind of node; pods on nodes that aren't known are left out.
    pub(super) kinds: HashMap<u32, u32>,
}

/// A set of identities by namespace.
type ByNamespace = HashMap<Arc<str>, BTreeSet<u32>>;

/// All pods on nodes, by identity.
#[derive(Debug, Default)]
pub(super) struct Population {
    identities: Interner<Identity>,
    placed: Vec<Placed>,
    by_namespace: ByNamespace,
    /// By label and value.
    by_label: HashMap<Arc<str>, HashMap<Arc<str>, BTreeSet<u32>>>,
    /// Those with affinity terms, by the namespaces that the terms name.
    terms_for: ByNamespace,
    /// Those with affinity terms that select namespaces by label.
    terms_anywhere: BTreeSet<u32>,
    /// Identities whose required anti-affinity reaches beyond a node.
    wide: usize,
    /// Grows when an identity comes or goes.
    version: u64,
}

impl Population {
    pub(super) fn identity(&self, id: u32) -> Option<&Identity> {
        self.identities.get(id)
    }

    pub(super) fn placed(&self, id: u32) -> Option<&Placed> {
        self.placed.get(id as usize)
    }

    /// Grows when an identity comes or goes: what all of them are to a pod may be another then.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Whether some pod's required anti-affinity reaches beyond its own node.
    pub(super) fn keeps_domains_free(&self) -> bool {
        self.wide > 0
    }

    /// All identities.
    pub(super) fn all(&self) -> impl Iterator<Item = u32> {
        self.identities.iter().map(|(id, ..)| id)
    }

    /// Identities of a namespace.
    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = u32> {
        self.by_namespace.get(namespace).into_iter().flatten().copied()
    }

    /// Identities among which are all that a selector selects; `None` where no label's value is asked
    /// for, by which they could be found.
    pub(super) fn selected<'s>(
        &'s self,
        selector: &'s Selector,
    ) -> Option<impl Iterator<Item = u32> + use<'s>> {
        let asked = |requirement: &'s Requirement| Some((requirement.key(), requirement.values()?));
        let (key, values) = selector.requirements().iter().find_map(asked)?;
        let with_label = self.by_label.get(key);
        let with_value = values.iter().filter_map(move |value| with_label?.get(value));
        Some(with_value.flatten().copied())
    }

    /// Identities whose affinity terms may mean pods of a namespace.
    pub(super) fn minding(&self, namespace: &str) -> impl Iterator<Item = u32> {
        let named = self.terms_for.get(namespace).into_iter().flatten();
        named.chain(&self.terms_anywhere).copied()
    }

    /// Counts a pod; returns the identity's id, to be handed to [`Self::remove`].
    pub(super) fn add(&mut self, identity: &Arc<Identity>, row: u32, kind: Option<u32>) -> u32 {
        let id = self.identities.hold_shared(identity);
        if self.identities.holders(id) == 1 {
            self.index(id, true);
        }
        let wanted = id as usize + 1;
        if self.placed.len() < wanted {
            self.placed.resize_with(wanted, Placed::default);
        }
        let placed = &mut self.placed[id as usize];
        *placed.rows.entry(row).or_default() += 1;
        if let Some(kind) = kind {
            *placed.kinds.entry(kind).or_default() += 1;
        }
        id
    }

    pub(super) fn remove(&mut self, id: u32, row: u32, kind: Option<u32>) {
        if let Some(placed) = self.placed.get_mut(id as usize) {
            subtract(&mut placed.rows, row, 1);
            if let Some(kind) = kind {
                subtract(&mut placed.kinds, kind, 1);
            }
        }
        if self.identities.holders(id) == 1 {
            self.index(id, false);
            self.placed[id as usize] = Placed::default();
        }
        self.identities.release(id);
    }

    /// A node of some pods of an identity has become another kind.
    pub(super) fn move_kind(&mut self, id: u32, from: Option<u32>, to: Option<u32>) {
        let Some(placed) = self.placed.get_mut(id as usize) else { return };
        if let Some(from) = from {
            subtract(&mut placed.kinds, from, 1);
        }
        if let Some(to) = to {
            *placed.kinds.entry(to).or_default() += 1;
        }
    }

    fn index(&mut self, id: u32, present: bool) {
        self.version += 1;
        let Some(identity) = self.identities.shared(id) else { return };
        enter(&mut self.by_namespace, &identity.namespace, id, present);
        for (key, value) in identity.labels.iter() {
            if present {
                let with_label = self.by_label.entry(Arc::clone(key)).or_default();
                with_label.entry(Arc::clone(value)).or_default().insert(id);
            } else if let Some(with_label) = self.by_label.get_mut(key) {
                if with_label.get_mut(value).is_some_and(|ids| ids.remove(&id) && ids.is_empty()) {
                    with_label.remove(value);
                }
                if with_label.is_empty() {
                    self.by_label.remove(key);
                }
            }
        }
        for term in identity.terms() {
            if term.namespace_selector != Selector::Nothing {
                if present {
                    self.terms_anywhere.insert(id);
                } else {
                    self.terms_anywhere.remove(&id);
                }
            }
            for namespace in &term.namespaces {
                enter(&mut self.terms_for, namespace, id, present);
            }
        }
        if identity.keeps_domains_free() {
            self.wide = if present { self.wide + 1 } else { self.wide - 1 };
        }
    }
}

fn enter(index: &mut ByNamespace, namespace: &Arc<str>, id: u32, present: bool) {
    if present {
        index.entry(Arc::clone(namespace)).or_default().insert(id);
    } else if let Some(ids) = index.get_mut(namespace) {
        ids.remove(&id);
        if ids.is_empty() {
            index.remove(namespace);
        }
    }
}

fn subtract(counts: &mut HashMap<u32, u32>, key: u32, count: u32) {
    if let Some(current) = counts.get_mut(&key) {
        *current = current.saturating_sub(count);
        if *current == 0 {
            counts.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::labels::Labels;

    #[test]
    fn identities_are_found_by_a_label_that_a_selector_asks_for() {
        let identity = |app: &str| {
            let labels =
                [("app", app), ("tier", "t")].map(|(key, value)| (key.into(), value.into()));
            Arc::new(Identity { labels: Labels::from_pairs(labels), ..Identity::default() })
        };
        let mut population = Population::default();
        let ids = ["a", "b", "a"].map(|app| population.add(&identity(app), 0, None));
        let with = |key, operator, values: &[&str]| {
            let values: Vec<String> = values.iter().map(ToString::to_string).collect();
            Requirement::label(key, operator, &values).expect("a requirement")
        };
        let found = |population: &Population, requirements: Vec<Requirement>| {
            let selector = Selector::All(requirements);
            population.selected(&selector).map(Iterator::collect::<BTreeSet<u32>>)
        };
        let all: BTreeSet<u32> = ids.into();
        assert_eq!(found(&population, vec![]), None);
        assert_eq!(found(&population, vec![with("app", "NotIn", &["a"])]), None);
        let exists = with("app", "Exists", &[]);
        let both = vec![exists, with("app", "In", &["a", "b", "c"])];
        assert_eq!(found(&population, both), Some(all));
        let a = || vec![with("app", "In", &["a"]), with("tier", "In", &["other"])];
        assert_eq!(found(&population, a()), Some([ids[0]].into()));
        assert_eq!(found(&population, vec![with("none", "In", &["a"])]), Some(BTreeSet::new()));
        population.remove(ids[0], 0, None);
        assert_eq!(found(&population, a()), Some([ids[0]].into()), "another one is there");
        population.remove(ids[0], 0, None);
        assert_eq!(found(&population, a()), Some(BTreeSet::new()));
        population.remove(ids[1], 0, None);
        assert!(population.by_label.is_empty());
    }
}

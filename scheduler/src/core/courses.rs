//! The nodes that the next pods of a class would get, for each group of nodes of one table with the
//! same raw scores and domains ([`super::ahead`]).

use std::collections::BinaryHeap;
use std::sync::Arc;

use super::ahead::After;
use super::bound::{Found, Load, Top, Wanted};
use super::cells::Cells;
use super::columns::Columns;
use super::evaluate::{Label, Next, Raw, Tuple};
use super::filter::{Filter, Tally, Verdict};
use super::others::{Counts, Others, Wishes};
use super::pod::PodRequest;
use super::search::best_of;
use super::views::{Group, View};

/// Nodes with the same raw scores and domains.
struct Together {
    raw: Raw,
    labels: Vec<Label>,
    cells: Vec<u32>,
    /// Those that are in no cell or exceptions of one.
    single: Vec<Found>,
}

/// Looks for them.
pub(super) struct Courses<'a> {
    pub(super) columns: &'a Columns,
    pub(super) cells: &'a Cells,
    pub(super) seed: u64,
    pub(super) wanted: Wanted,
    /// How many for each group.
    pub(super) count: usize,
}

impl Courses<'_> {
    pub(super) fn tuples(
        &self,
        view: &View,
        class: &PodRequest,
        others: Option<&Others<'_>>,
        after: After,
        keys: &[Arc<str>],
    ) -> Vec<Tuple> {
        let mut counts = Counts::default();
        let exceptions = others.map(Others::exceptions).filter(|rows| !rows.is_empty());
        let is_exception =
            |row: &u32| exceptions.as_ref().is_some_and(|exceptions| exceptions.contains(row));
        let mut groups: Vec<Together> = Vec::new();
        let mut wishes =
            |row: usize| others.map_or_else(Wishes::default, |others| counts.wishes(others, row));
        for Group { taints, affinity, cells } in &view.groups {
            for id in cells {
                let Some(cell) = self.cells.get(*id) else { continue };
                let Some(row) = cell.rows().find(|row| !is_exception(row)) else { continue };
                let index = row as usize;
                if others.is_some_and(|others| others.check(index).is_err()) {
                    continue;
                }
                let raw = Raw { taints: *taints, affinity: *affinity, wishes: wishes(index) };
                self.group(&mut groups, raw, index, keys).cells.push(*id);
            }
        }
        if let Some(exceptions) = &exceptions {
            let filter = Filter::memoised(self.columns, class, others);
            let mut tally = Tally::new(class);
            for row in exceptions {
                let index = *row as usize;
                if !self.columns.present[index] {
                    continue;
                }
                let Verdict::Pass { taints, affinity } = filter.check(index, &mut tally) else {
                    continue;
                };
                let local = self.wanted.scorer.local(self.columns, index);
                let lot = self.columns.lot(self.seed, index);
                let raw = Raw { taints, affinity, wishes: wishes(index) };
                let found = Found { local, lot, row: *row };
                self.group(&mut groups, raw, index, keys).single.push(found);
            }
        }
        let exceptions = exceptions.as_ref();
        let tuple = |group: Together| {
            let mut top = Top::of(self.count);
            best_of(self.cells, &self.wanted, &group.cells, exceptions, &mut top);
            let mut nodes = top.into_found();
            let all = nodes.len() < self.count;
            nodes.extend(&group.single);
            let (course, last) = self.course(nodes, class, after);
            let mut course = course.into_iter();
            let first = course.next()?;
            Some(Tuple {
                taints: group.raw.taints,
                affinity: group.raw.affinity,
                preferences: group.raw.wishes.preferences,
                spread: counts.get(group.raw.wishes.spread),
                local: first.local,
                ties: 1,
                lot: first.lot,
                node: first.node,
                labels: group.labels,
                next: course.collect(),
                last: last && all,
            })
        };
        let mut tuples: Vec<Tuple> = groups.into_iter().filter_map(tuple).collect();
        tuples.sort_by(|a, b| (a.raw(), &a.labels).cmp(&(b.raw(), &b.labels)));
        tuples
    }

    fn group<'g>(
        &self,
        groups: &'g mut Vec<Together>,
        raw: Raw,
        index: usize,
        keys: &[Arc<str>],
    ) -> &'g mut Together {
        let is = |group: &Together| {
            let mut labels = group.labels.iter();
            let named = keys.iter().filter_map(|key| Some((key, self.columns.label(index, key)?)));
            group.raw == raw && named.eq(labels.by_ref().map(|(key, value)| (key, &**value)))
        };
        let place = groups.iter().position(is).unwrap_or_else(|| {
            let label = |key: &Arc<str>| {
                Some((Arc::clone(key), Arc::from(self.columns.label(index, key)?)))
            };
            let labels = keys.iter().filter_map(label).collect();
            groups.push(Together { raw, labels, cells: Vec::new(), single: Vec::new() });
            groups.len() - 1
        });
        &mut groups[place]
    }

    /// Places pods, each on the best of these nodes, and says where, and whether none is left.
    fn course(&self, nodes: Vec<Found>, class: &PodRequest, after: After) -> (Vec<Next>, bool) {
        let columns = self.columns;
        // A node with what it scores, and how many of the pods it has.
        let waiting = nodes.into_iter().map(|found| (found.local, found.lot, found.row, 0_i64));
        let mut waiting: BinaryHeap<(i64, u64, u32, i64)> = waiting.collect();
        let mut course = Vec::with_capacity(self.count.min(waiting.len()));
        while course.len() < self.count {
            let Some((local, lot, row, pods)) = waiting.pop() else { return (course, true) };
            let index = row as usize;
            course.push(Next { local, lot, node: Arc::clone(columns.name_at(index)) });
            if after == After::Leaves && columns.hostname(index).is_some() {
                continue;
            }
            let pods = pods + 1;
            let (load, offer) = (with(columns.load(index), class, pods), columns.offer(index));
            if self.wanted.fits(&load, &offer) {
                let lot = columns.lot_with(self.seed, index, load.pods);
                waiting.push((self.wanted.score(&load, &offer), lot, row, pods));
            }
        }
        (course, waiting.is_empty())
    }
}

/// What is taken once so many pods of the class are there too.
pub(super) fn with(load: Load, class: &PodRequest, pods: i64) -> Load {
    let (requests, non_zero) = (&class.resources.requests, &class.resources.non_zero);
    let plus = |taken: i64, each: i64| taken.wrapping_add(each.wrapping_mul(pods));
    Load {
        non_zero: (
            plus(load.non_zero.0, non_zero.milli_cpu),
            plus(load.non_zero.1, non_zero.memory),
        ),
        used: (plus(load.used.0, requests.milli_cpu), plus(load.used.1, requests.memory)),
        storage: plus(load.storage, requests.ephemeral_storage),
        pods: load.pods.wrapping_add(pods),
    }
}

//! As [`super::evaluate`], by way of the cells: the same best nodes without looking at all of them.
//! Nodes on which something holds that other nodes of their cell lack, because of the pods there,
//! are looked at one by one.
//!
//! Where a pod asks for what no cell knows (host ports, extended resources, a node by name), and
//! where nothing takes it, so that every node's reason is wanted, all nodes are looked at.

use std::collections::BinaryHeap;
use std::sync::Arc;

use super::ahead::{After, can_look_ahead, has_way};
use super::bound::{Exceptions, Found, Top, Wanted};
use super::cells::Cells;
use super::columns::Columns;
use super::courses::Courses;
use super::diagnosis::Plugin;
use super::evaluate::{self, Best, Evaluation, Raw};
use super::filter::{Filter, Tally, Verdict};
use super::maps::HashMap;
use super::nominate::{self, Nominee};
use super::others::{Counts, Others, Wishes};
use super::pod::PodRequest;
use super::score::Scorer;
use super::survey::{self, Survey};
use super::table::NodeTable;
use super::tree::Node;
use super::views::{Group, View};

/// A request beyond this is beyond reason: sums may overflow.
const WILD: i64 = 1 << 56;

/// As [`evaluate::evaluate`] but for the counts: a tuple's `ties` and, where no score hangs on it,
/// the number of feasible nodes are lower bounds, and rejections are left out where some node takes
/// the pod.
#[must_use]
pub fn search(
    table: &mut NodeTable,
    class: &Arc<PodRequest>,
    seed: u64,
    survey: Option<&Survey>,
) -> Evaluation {
    look_ahead(table, class, seed, survey, 1, &[])
}

/// As [`search`], beside pods that are promised a node, and where it can be done for as many pods
/// of the class as are wanted ([`super::ahead`]). Where a pod is promised a node of the table, all
/// nodes are looked at.
#[must_use]
pub fn look_ahead(
    table: &mut NodeTable,
    class: &Arc<PodRequest>,
    seed: u64,
    survey: Option<&Survey>,
    count: usize,
    nominees: &[Nominee],
) -> Evaluation {
    if nominees.iter().any(|nominee| table.columns().find(&nominee.node).is_some()) {
        return nominate::evaluate_beside(table, class, seed, survey, nominees);
    }
    if is_plain(class) && survey.is_none_or(|survey| !survey.full) {
        table.update_cells(seed);
        table.update_views(class);
        let ahead = (count > 1).then(|| can_look_ahead(class, survey)).flatten();
        let ahead = ahead.filter(|_| table.cells().wild().is_empty());
        if let Some(evaluation) = by_cells(table, class, seed, survey, ahead.map(|a| (count, a))) {
            return evaluation;
        }
    }
    evaluate::evaluate(table, class, seed, survey)
}

/// Surveys the table's nodes for a class.
#[must_use]
pub fn survey(table: &mut NodeTable, class: &Arc<PodRequest>, full: bool) -> Survey {
    table.update_cells(table.cells().seed());
    table.update_views(class);
    let Some(view) = table.view(class) else { return evaluate::survey(table, class, full) };
    survey::survey(table.columns(), table.population(), class, full, &view.relations)
}

/// Whether cells know all that the pod asks of a node by itself.
pub(super) fn is_plain(class: &PodRequest) -> bool {
    let requests = &class.resources.requests;
    let (least, policy) = (&class.resources.least_allocated, &class.policy);
    let amounts = [
        requests.milli_cpu,
        requests.memory,
        requests.ephemeral_storage,
        least.milli_cpu,
        least.memory,
    ];
    requests.scalars.is_empty()
        && class.has_plain_volumes()
        && class.ports.is_empty()
        && class.pinned.is_none()
        && class.node_name.is_none()
        && !class.required.reads_identity()
        && !class.preferred.iter().any(|preferred| preferred.term.reads_identity())
        && policy.filters.contains(Plugin::NodeResourcesFit)
        && policy.weights.fit >= 0
        && policy.weights.balance >= 0
        && amounts.into_iter().all(|amount| (0..=WILD).contains(&amount))
}

fn by_cells(
    table: &mut NodeTable,
    class: &Arc<PodRequest>,
    seed: u64,
    survey: Option<&Survey>,
    ahead: Option<(usize, After)>,
) -> Option<Evaluation> {
    let view = table.view(class)?;
    let columns = table.columns();
    let nodes = columns.node_count() as u64;
    let images = columns.images.any(&class.images);
    let minded = class.minds_others() || !view.relations.is_empty();
    if survey.is_none() && (minded || images) {
        return Some(Evaluation { nodes, wants_survey: true, ..Evaluation::default() });
    }
    if images {
        return None;
    }
    let others = survey
        .map(|survey| Others::new(columns, table.population(), class, survey, &view.relations));
    let keys = if survey.is_some() { class.domain_keys() } else { Vec::new() };
    if let Some((count, after)) = ahead {
        let others = others.map(Others::looking_ahead);
        let courses = Courses { columns, cells: table.cells(), seed, wanted: wanted(class), count };
        let tuples = courses.tuples(view, class, others.as_ref(), after, &keys);
        if tuples.is_empty() {
            return None;
        }
        if !tuples.iter().any(|tuple| has_way(class, survey, &tuple.labels)) {
            // Every node's reason is wanted, and what may come after.
            let now = evaluate::evaluate(table, class, seed, survey);
            return Some(Evaluation { tuples, ahead: true, ..now });
        }
        return Some(Evaluation {
            nodes,
            feasible: tuples.len() as u64,
            lower_priority: table.has_pods_below(class.priority),
            tuples,
            ahead: true,
            ..Evaluation::default()
        });
    }
    let mut search = Search {
        columns,
        cells: table.cells(),
        seed,
        wanted: wanted(class),
        best: Best::default(),
        counts: Counts::default(),
        feasible: 0,
    };
    match &others {
        None => search.alone(view, class),
        Some(others) => search.among(view, class, others),
    }
    let Search { best, counts, feasible, .. } = search;
    let tuples = best.tuples(&counts, columns, &keys);
    // Every node's reason is wanted then.
    if tuples.is_empty() {
        return None;
    }
    Some(Evaluation {
        nodes,
        feasible: feasible.max(tuples.len() as u64),
        lower_priority: table.has_pods_below(class.priority),
        domains: counts.domains(columns, class),
        ignored: counts.ignored,
        tuples,
        ..Evaluation::default()
    })
}

pub(super) fn wanted(class: &PodRequest) -> Wanted {
    let requests = &class.resources.requests;
    Wanted {
        scorer: Scorer::new(class),
        cpu_memory: (requests.milli_cpu, requests.memory),
        storage: requests.ephemeral_storage,
    }
}

struct Search<'a> {
    columns: &'a Columns,
    cells: &'a Cells,
    seed: u64,
    wanted: Wanted,
    best: Best,
    counts: Counts,
    feasible: u64,
}

impl Search<'_> {
    /// Without rules about other pods.
    fn alone(&mut self, view: &View, class: &PodRequest) {
        let wild = Some(self.cells.wild()).filter(|wild| !wild.is_empty());
        for Group { taints, affinity, cells } in &view.groups {
            if let Some(found) = self.best_of(cells, None) {
                let raw = Raw { taints: *taints, affinity: *affinity, wishes: Wishes::default() };
                self.offer(raw, found);
            }
        }
        if let Some(wild) = wild {
            self.one_by_one(class, None, wild);
        }
    }

    /// With rules about other pods, which decide by cell but for the exceptions.
    fn among(&mut self, view: &View, class: &PodRequest, others: &Others<'_>) {
        let mut exceptions = others.exceptions();
        let soft = !class.spread.soft.is_empty();
        let mut counted: HashMap<u32, u64> = HashMap::default();
        if soft {
            // Those with room are counted with their cell; they count by themselves.
            for row in &exceptions {
                let Some(cell) = self.cells.cell_of(*row) else { continue };
                let load = self.columns.load(*row as usize);
                if self.cells.get(cell).is_some_and(|cell| cell.has_room(&self.wanted, &load)) {
                    *counted.entry(cell).or_default() += 1;
                }
            }
        }
        let mut groups: Vec<(Raw, Vec<u32>)> = Vec::new();
        for Group { taints, affinity, cells } in &view.groups {
            for id in cells {
                let Some(cell) = self.cells.get(*id) else { continue };
                // All of them are alike but for the exceptions.
                let Some(row) = cell.rows().find(|row| !exceptions.contains(row)) else { continue };
                if others.check(row as usize).is_err() {
                    continue;
                }
                if soft {
                    let excepted = counted.get(id).copied().unwrap_or_default();
                    let feasible = cell.count(&self.wanted) - excepted;
                    if feasible == 0 {
                        continue;
                    }
                    self.feasible += feasible;
                    self.counts.stand_for(feasible);
                }
                let wishes = self.counts.wishes(others, row as usize);
                self.counts.stand_for(1);
                let raw = Raw { taints: *taints, affinity: *affinity, wishes };
                match groups.iter_mut().find(|(known, _)| *known == raw) {
                    Some((_, cells)) => cells.push(*id),
                    None => groups.push((raw, vec![*id])),
                }
            }
        }
        for (raw, cells) in &groups {
            if let Some(found) = self.best_of(cells, Some(&exceptions)) {
                self.offer(*raw, found);
            }
        }
        exceptions.extend(self.cells.wild());
        self.one_by_one(class, Some(others), &exceptions);
    }

    fn one_by_one(&mut self, class: &PodRequest, others: Option<&Others<'_>>, rows: &Exceptions) {
        let filter = Filter::memoised(self.columns, class, others);
        let mut tally = Tally::new(class);
        for row in rows {
            let index = *row as usize;
            if !self.columns.present[index] {
                continue;
            }
            let Verdict::Pass { taints, affinity } = filter.check(index, &mut tally) else {
                continue;
            };
            self.feasible += 1;
            let local = self.wanted.scorer.local(self.columns, index);
            let wishes = others.map(|others| self.counts.wishes(others, index));
            let raw = Raw { taints, affinity, wishes: wishes.unwrap_or_default() };
            let lot = self.columns.lot(self.seed, index);
            self.offer(raw, Found { local, lot, row: *row });
        }
    }

    fn offer(&mut self, raw: Raw, found: Found) {
        self.best.offer(raw, found.local, found.row as usize, || found.lot);
    }

    /// The best node of some cells.
    fn best_of(&self, cells: &[u32], exceptions: Option<&Exceptions>) -> Option<Found> {
        let mut top = Top::of(1);
        best_of(self.cells, &self.wanted, cells, exceptions, &mut top);
        top.into_found().first().copied()
    }
}

/// The best nodes of some cells: of all that isn't opened yet, what may be best is opened first, so
/// that little is opened that holds none of them.
pub(super) fn best_of(
    all: &Cells,
    wanted: &Wanted,
    cells: &[u32],
    exceptions: Option<&Exceptions>,
    top: &mut Top,
) {
    let root = |id: &u32| {
        let (local, lot, node) = all.get(*id)?.root(wanted)?;
        Some((local, lot, *id, node))
    };
    let mut promising: BinaryHeap<(i64, u64, u32, Node)> = cells.iter().filter_map(root).collect();
    while let Some((local, lot, id, node)) = promising.pop() {
        if !top.takes(local, lot) {
            break;
        }
        let Some(cell) = all.get(id) else { continue };
        cell.open(node, local, (wanted, exceptions), top, |local, lot, node| {
            promising.push((local, lot, id, node));
        });
    }
}

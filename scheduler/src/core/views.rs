//! What is worked out for a class of pods once and holds until cells or identities come or go:
//! which cells pass the filters that their nodes share, and which pods on nodes are anything to it.

use std::sync::Arc;

use super::cells::Cells;
use super::columns::Columns;
use super::filter::Filter;
use super::maps::HashMap;
use super::pod::PodRequest;
use super::population::Population;
use super::survey::{self, Relation};
use super::table::Share;

/// Classes remembered; the memory starts anew when it is full.
const MAX: usize = 8192;

/// Cells whose nodes have the same raw scores for a class, as far as the node alone decides.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) taints: i64,
    pub(super) affinity: i64,
    pub(super) cells: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct View {
    /// Keeps the address, by which it is remembered, from being used again.
    class: Arc<PodRequest>,
    cells: u64,
    identities: u64,
    /// Sorted by raw scores; cells that don't take the class are in none.
    pub(super) groups: Vec<Group>,
    pub(super) relations: Arc<[(u32, Relation)]>,
    share: Arc<Share>,
}

impl View {
    fn of(class: &Arc<PodRequest>) -> Self {
        Self {
            class: Arc::clone(class),
            cells: u64::MAX,
            identities: u64::MAX,
            groups: Vec::new(),
            relations: Arc::default(),
            share: Arc::new(Share::reserved(class)),
        }
    }

    fn relate(&mut self, population: &Population) {
        if self.identities != population.version() {
            self.relations = survey::relations(population, &self.class).into();
            self.identities = population.version();
        }
    }
}

/// Views by class.
#[derive(Debug, Default)]
pub(super) struct Views(HashMap<usize, View>);

impl Views {
    pub(super) fn get(&self, class: &Arc<PodRequest>) -> Option<&View> {
        self.0.get(&Arc::as_ptr(class).addr())
    }

    fn view(&mut self, class: &Arc<PodRequest>) -> &mut View {
        if self.0.len() >= MAX {
            self.0.clear();
        }
        self.0.entry(Arc::as_ptr(class).addr()).or_insert_with(|| View::of(class))
    }

    /// Brings a view up to date. The cells must be so.
    pub(super) fn update(
        &mut self,
        class: &Arc<PodRequest>,
        columns: &Columns,
        cells: &Cells,
        population: &Population,
    ) {
        let view = self.view(class);
        if view.cells != cells.version() {
            view.groups = groups(class, columns, cells);
            view.cells = cells.version();
        }
        view.relate(population);
    }

    /// What pods on nodes are to a class, and what a pod of it takes.
    pub(super) fn share(
        &mut self,
        class: &Arc<PodRequest>,
        population: &Population,
    ) -> (Arc<[(u32, Relation)]>, Arc<Share>) {
        let view = self.view(class);
        view.relate(population);
        (Arc::clone(&view.relations), Arc::clone(&view.share))
    }
}

fn groups(class: &PodRequest, columns: &Columns, cells: &Cells) -> Vec<Group> {
    let filter = Filter::memoised(columns, class, None);
    let mut groups: Vec<Group> = Vec::new();
    for (id, cell) in cells.iter() {
        let row = cell.rows().next();
        let Some((taints, affinity)) = row.and_then(|row| filter.of_cell(row as usize)) else {
            continue;
        };
        let same = |group: &&mut Group| (group.taints, group.affinity) == (taints, affinity);
        match groups.iter_mut().find(same) {
            Some(group) => group.cells.push(id),
            None => groups.push(Group { taints, affinity, cells: vec![id] }),
        }
    }
    groups.sort_by_key(|group| (group.taints, group.affinity));
    groups
}

//! Several classes at one look: which nodes the next pods of some classes may get, each class on what
//! those before it have left.
//!
//! A message costs a shard about as much for one class as for several. But where the pods of one
//! class go decides what the next class finds there. So a shard doesn't say who is best. It gives a
//! [`Pool`]: for each class the best nodes that aren't in it yet, and of every node in it all that
//! scores and filters hang on. Whoever decides scores them by himself, as they are by then
//! ([`super::draw`]). A node outside the pool is as it was, and not better for a class than the
//! class's floor. That gives what deciding one class after the other would.

use std::sync::Arc;

use super::ahead::{After, can_look_ahead};
use super::bound::{Exceptions, Top};
use super::evaluate::Label;
use super::maps::HashMap;
use super::others::{Counts, Others};
use super::pod::PodRequest;
use super::search::{best_of, is_plain, wanted};
use super::survey::{Relation, Survey};
use super::table::NodeTable;
use super::views;

/// Classes in one pool at most.
pub const MAX_CLASSES: usize = 8;
/// Nodes that a table puts into one pool at most; a class that comes too late for it is left out.
pub const MAX_NODES: usize = 8192;

/// A class whose pods wait.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What they ask for.
    pub class: Arc<PodRequest>,
    /// How many there are.
    pub count: u32,
    /// The surveys of all shards added up. Pods of the other classes must not count in it.
    pub survey: Option<Arc<Survey>>,
}

/// Nodes for the pods of some classes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// For each class its groups; `None` for a class that can't be decided by a pool.
    pub classes: Vec<Option<Vec<Group>>>,
    /// What several of the nodes have in common.
    pub kinds: Vec<Kind>,
    /// The nodes, each once.
    pub nodes: Vec<Candidate>,
}

/// Nodes with the same raw scores and domains for a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Untolerated `PreferNoSchedule` taints.
    pub taints: i64,
    /// Weights of the preferred node affinity terms that match.
    pub affinity: i64,
    /// Their labels that the class's rules about other pods name.
    pub labels: Vec<Label>,
    /// No node of the group outside the pool has a better sum of the scores that need no
    /// normalisation, and among those that share it none has a higher lot. `None`: there is none
    /// that takes a pod of the class.
    pub floor: Option<(i64, u64)>,
}

/// Nodes that are alike but for what is taken on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// CPU in thousandths, memory and storage in bytes, and pods.
    pub offer: [i64; 4],
    /// For each class the place of their group; `None` where they don't take it.
    pub groups: Vec<Option<u32>>,
}

/// A node of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: Arc<str>,
    /// The place of its kind.
    pub kind: u32,
    /// What is taken: CPU and memory as scores count them, CPU and memory, storage, and pods.
    pub load: [i64; 6],
}

/// A group, and the cells whose nodes are in it, sorted.
struct Part {
    group: Group,
    cells: Vec<u32>,
}

impl Pool {
    /// The pool of one table; `ahead` says of each class how many nodes of a group it may need.
    #[must_use]
    pub fn of(table: &mut NodeTable, asked: &[Asked], ahead: &[usize], seed: u64) -> Self {
        table.update_cells(seed);
        for asked in asked {
            table.update_views(&asked.class);
        }
        let (columns, cells) = (table.columns(), table.cells());
        let mut listed = Exceptions::default();
        let mut rows: Vec<u32> = Vec::new();
        let mut classes: Vec<Option<Vec<Part>>> = Vec::with_capacity(asked.len());
        for (asked, count) in asked.iter().zip(ahead) {
            // One more than may be needed: the last one is never certain to be the best.
            let count = count.saturating_add(1);
            let (wanted, first) = (wanted(&asked.class), rows.len());
            let fits = |parts: &Vec<Part>| {
                first.saturating_add(parts.len().saturating_mul(count)) <= MAX_NODES
            };
            let mut parts = parts(table, asked).filter(fits);
            for part in parts.iter_mut().flatten() {
                let mut top = Top::of(count);
                let known = Some(&listed).filter(|listed| !listed.is_empty());
                best_of(cells, &wanted, &part.cells, known, &mut top);
                let found = top.into_found();
                let last = found.last().filter(|_| found.len() == count);
                part.group.floor = last.map(|last| (last.local, last.lot));
                rows.extend(found.iter().map(|found| found.row));
            }
            listed.extend(rows.iter().skip(first));
            classes.push(parts);
        }
        let mut pool = Self::default();
        let mut known: HashMap<u32, u32> = HashMap::default();
        for row in rows {
            let index = row as usize;
            let Some(cell) = cells.cell_of(row) else { continue };
            let kind = *known.entry(cell).or_insert_with(|| {
                let of = |parts: &Option<Vec<Part>>| {
                    let has = |part: &Part| part.cells.binary_search(&cell).is_ok();
                    place(parts.as_ref()?.iter().position(has)?)
                };
                let groups = classes.iter().map(of).collect();
                pool.kinds.push(Kind { offer: columns.offer(index).parts(), groups });
                number(pool.kinds.len() - 1)
            });
            let name = Arc::clone(columns.name_at(index));
            pool.nodes.push(Candidate { name, kind, load: columns.load(index).parts() });
        }
        let groups = |parts: Vec<Part>| parts.into_iter().map(|part| part.group).collect();
        pool.classes = classes.into_iter().map(|parts| parts.map(groups)).collect();
        pool
    }

    /// Joins the pool of other nodes for the same classes.
    pub fn absorb(&mut self, other: Self) {
        let same = self.classes.len() == other.classes.len();
        // Where the groups of the other are here, by class.
        let mut places: Vec<Vec<u32>> = Vec::with_capacity(self.classes.len());
        let mut theirs = other.classes.into_iter();
        for ours in &mut self.classes {
            let theirs = theirs.next().flatten().filter(|_| same);
            let (Some(known), Some(theirs)) = (&mut *ours, theirs) else {
                *ours = None;
                places.push(Vec::new());
                continue;
            };
            places.push(theirs.into_iter().map(|group| join(known, group)).collect());
        }
        let first = number(self.kinds.len());
        self.kinds.extend(other.kinds.into_iter().map(|Kind { offer, groups }| {
            let moved =
                |(group, places): (Option<u32>, &Vec<u32>)| places.get(group? as usize).copied();
            Kind { offer, groups: groups.into_iter().zip(&places).map(moved).collect() }
        }));
        let moved = |node: Candidate| Candidate { kind: node.kind.saturating_add(first), ..node };
        self.nodes.extend(other.nodes.into_iter().map(moved));
    }
}

/// Adds a group to those that are known; its place there.
fn join(known: &mut Vec<Group>, group: Group) -> u32 {
    let same = |other: &Group| {
        (other.taints, other.affinity) == (group.taints, group.affinity)
            && other.labels == group.labels
    };
    if let Some(place) = known.iter().position(same) {
        if let Some(other) = known.get_mut(place) {
            other.floor = other.floor.max(group.floor);
        }
        return number(place);
    }
    known.push(group);
    number(known.len() - 1)
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn place(index: usize) -> Option<u32> {
    u32::try_from(index).ok()
}

/// The groups of a class; `None` where placing its pods changes more than the nodes that they are on
/// and how many there are in these nodes' domains, or where cells don't say all.
fn parts(table: &NodeTable, asked: &Asked) -> Option<Vec<Part>> {
    let (class, survey) = (&asked.class, asked.survey.as_deref());
    let (columns, cells, view) = (table.columns(), table.cells(), table.view(class)?);
    let simple = is_plain(class)
        && can_look_ahead(class, survey) == Some(After::Stays)
        && cells.wild().is_empty()
        && !columns.images.any(&class.images);
    if !simple {
        return None;
    }
    let Some(survey) = survey else {
        let minded = class.minds_others() || !view.relations.is_empty();
        let part = |views::Group { taints, affinity, cells }: &views::Group| Part {
            group: Group { taints: *taints, affinity: *affinity, labels: Vec::new(), floor: None },
            cells: cells.clone(),
        };
        return (!minded).then(|| view.groups.iter().map(part).collect());
    };
    let others = Others::new(columns, table.population(), class, survey, &view.relations);
    let others = others.looking_ahead();
    if !others.exceptions().is_empty() {
        return None;
    }
    let keys = class.domain_keys();
    let mut counts = Counts::default();
    let mut parts: Vec<Part> = Vec::new();
    for views::Group { taints, affinity, cells: all } in &view.groups {
        let first = parts.len();
        for id in all {
            let Some(row) = cells.get(*id).and_then(|cell| cell.rows().next()) else { continue };
            let index = row as usize;
            if others.check(index).is_err() {
                continue;
            }
            if counts.wishes(&others, index).preferences != 0 {
                return None;
            }
            let label =
                |key: &Arc<str>| Some((Arc::clone(key), Arc::from(columns.label(index, key)?)));
            let labels: Vec<Label> = keys.iter().filter_map(label).collect();
            let same = |part: &&mut Part| part.group.labels == labels;
            match parts.iter_mut().skip(first).find(same) {
                Some(part) => part.cells.push(*id),
                None => parts.push(Part {
                    group: Group { taints: *taints, affinity: *affinity, labels, floor: None },
                    cells: vec![*id],
                }),
            }
        }
    }
    Some(parts)
}

/// Whether a class may be decided by a pool at all, with a survey or without one.
#[must_use]
pub fn suits(class: &PodRequest, surveyed: bool) -> bool {
    let survey = surveyed.then(Survey::default);
    let simple = can_look_ahead(class, survey.as_ref()) == Some(After::Stays);
    let volumes = &class.volumes;
    simple
        && is_plain(class)
        && class.unsupported.is_empty()
        && volumes.late.is_none()
        && volumes.refusal.is_none()
}

/// Whether pods of the two count nothing for each other.
#[must_use]
pub fn ignore_each_other(one: &PodRequest, other: &PodRequest) -> bool {
    Relation::of(one, &other.identity).is_none() && Relation::of(other, &one.identity).is_none()
}

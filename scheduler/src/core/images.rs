//! Which images are on which nodes, for `ImageLocality`
//! (`plugins/imagelocality/image_locality.go`).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PodSpec};

use super::gather::MAX_SCORE;
use super::intern::Interner;
use super::maps::HashMap;

const MIB: i64 = 1024 * 1024;
/// Images of less than this in all are worth nothing.
const MIN_THRESHOLD: i64 = 23 * MIB;
/// For each container.
const MAX_THRESHOLD: i64 = 1000 * MIB;

/// An image's name as node and pod share it (`normalizedImageName`).
#[must_use]
pub(super) fn normalized(name: &str) -> Arc<str> {
    let after = |separator| name.rfind(separator).map_or(-1, i64_of);
    if after(':') <= after('/') { format!("{name}:latest").into() } else { name.into() }
}

fn i64_of(index: usize) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}

/// The images that count for a pod, one for each use.
pub(super) fn of_pod(spec: &PodSpec) -> Vec<Arc<str>> {
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let images = containers.map(|container| container.image.as_deref().unwrap_or_default());
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref());
    let volumes = volumes.map(|image| image.reference.as_deref().unwrap_or_default());
    images.chain(volumes).map(normalized).collect()
}

/// A name and a size in bytes.
type Image = (Arc<str>, i64);

/// What nodes say they have: one small number for each image and node.
#[derive(Debug, Default)]
pub(super) struct Images {
    known: Interner<Image>,
    by_name: HashMap<Arc<str>, Vec<u32>>,
    nodes: Vec<Box<[u32]>>,
}

impl Images {
    /// A node's images, the last size of a name counting.
    pub(super) fn of_node(node: &Node) -> Vec<Image> {
        let images = node.status.iter().flat_map(|status| status.images.iter().flatten());
        let mut sizes: HashMap<&str, i64> = HashMap::default();
        for image in images {
            for name in image.names.iter().flatten() {
                sizes.insert(name, image.size_bytes.unwrap_or_default());
            }
        }
        sizes.into_iter().map(|(name, size)| (Arc::from(name), size)).collect()
    }

    pub(super) fn grow(&mut self) {
        self.nodes.push(Box::default());
    }

    pub(super) fn set(&mut self, node: usize, images: Vec<Image>) {
        let mut held: Vec<u32> = Vec::with_capacity(images.len());
        for (name, size) in images {
            let id = self.known.hold((Arc::clone(&name), size));
            let ids = self.by_name.entry(name).or_default();
            if !ids.contains(&id) {
                ids.push(id);
            }
            held.push(id);
        }
        held.sort_unstable();
        let before = std::mem::replace(&mut self.nodes[node], held.into());
        for id in before {
            self.release(id);
        }
    }

    fn release(&mut self, id: u32) {
        let Some((name, _)) = self.known.get(id).cloned() else { return };
        self.known.release(id);
        if self.known.get(id).is_none()
            && let Some(ids) = self.by_name.get_mut(&name)
        {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_name.remove(&name);
            }
        }
    }

    /// How many nodes have the image.
    pub(super) fn nodes_with(&self, name: &str) -> u64 {
        let ids = self.by_name.get(name).map_or(&[][..], Vec::as_slice);
        ids.iter().map(|id| u64::from(self.known.holders(*id))).sum()
    }

    /// Whether any node has one of the images.
    pub(super) fn any(&self, names: &[Arc<str>]) -> bool {
        names.iter().any(|name| self.by_name.contains_key(name))
    }

    /// One pod's image scores over nodes of which `nodes_with` have each of its images.
    pub(super) fn scorer(
        &self,
        names: &[Arc<str>],
        containers: i64,
        nodes_with: &[u64],
        nodes: u64,
    ) -> Option<ImageScorer> {
        let mut worth: Vec<(u32, i64)> = Vec::new();
        for (name, with) in names.iter().zip(nodes_with) {
            for id in self.by_name.get(name).into_iter().flatten() {
                let size = self.known.get(*id).map(|image| image.1).unwrap_or_default();
                let scaled = scaled(size, *with, nodes);
                match worth.iter_mut().find(|(known, _)| known == id) {
                    Some((_, sum)) => *sum += scaled,
                    None => worth.push((*id, scaled)),
                }
            }
        }
        (!worth.is_empty()).then_some(ImageScorer { worth, containers })
    }

    /// The score of a node, 0 to 100.
    pub(super) fn score(&self, scorer: &ImageScorer, node: usize) -> i64 {
        let held = &self.nodes[node];
        let sum: i64 = scorer
            .worth
            .iter()
            .filter(|(id, _)| held.binary_search(id).is_ok())
            .map(|(_, worth)| worth)
            .sum();
        let most = MAX_THRESHOLD.saturating_mul(scorer.containers);
        let sum = if sum < MIN_THRESHOLD { MIN_THRESHOLD } else { sum.min(most) };
        MAX_SCORE * (sum - MIN_THRESHOLD) / (most - MIN_THRESHOLD).max(1)
    }
}

/// The worth of each image for one pod.
pub(super) struct ImageScorer {
    worth: Vec<(u32, i64)>,
    containers: i64,
}

/// `scaledImageScore`: an image that few nodes have is worth little, lest all pods go there.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "the score is defined by these very conversions"
)]
fn scaled(size: i64, with: u64, nodes: u64) -> i64 {
    (size as f64 * (with as f64 / nodes as f64)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_a_tag() {
        assert_eq!(&*normalized("nginx"), "nginx:latest");
        assert_eq!(&*normalized("host:5000/nginx"), "host:5000/nginx:latest");
        assert_eq!(&*normalized("nginx:1"), "nginx:1");
        assert_eq!(&*normalized(""), ":latest");
    }

    #[test]
    fn images_are_counted_once_for_each_node() {
        let mut images = Images::default();
        images.grow();
        images.grow();
        images.set(0, vec![("a:1".into(), 10), ("b:1".into(), 20)]);
        images.set(1, vec![("a:1".into(), 11)]);
        assert_eq!(images.nodes_with("a:1"), 2);
        images.set(0, vec![("b:1".into(), 20)]);
        assert_eq!((images.nodes_with("a:1"), images.nodes_with("b:1")), (1, 1));
        images.set(1, Vec::new());
        assert!(!images.any(&["a:1".into()]) && images.any(&["b:1".into()]));
    }
}

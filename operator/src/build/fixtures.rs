//! Clusters that tests of `build` and `pki` share.

use crate::api::v1alpha1::{MegaCluster, MegaClusterSpec};
use crate::validate::{Facts, ImageDefaults, ValidatedCluster, validate};

/// Everything that can be left out is.
pub(crate) const SMALL: &str = include_str!("testdata/small.yaml");
/// Everything that can be said is.
pub(crate) const LARGE: &str = include_str!("testdata/large.yaml");

/// A cluster of this name with the spec of `yaml`, as `edit` leaves it.
pub(crate) fn cluster_with(
    name: &str,
    yaml: &str,
    facts: Facts,
    edit: impl FnOnce(&mut MegaClusterSpec),
) -> ValidatedCluster {
    let mut object = MegaCluster::new(name, serde_saphyr::from_str(yaml).unwrap());
    object.metadata.namespace = Some("mc".to_owned());
    edit(&mut object.spec);
    validated(object, facts)
}

/// `object` as the API server would have stored it, checked and filled in.
pub(crate) fn validated(mut object: MegaCluster, facts: Facts) -> ValidatedCluster {
    object.metadata.uid = Some("0f6f4f3e-1111-2222-3333-444444444444".to_owned());
    let images = ImageDefaults {
        registry: Some("registry.local/mc".to_owned()),
        tag: "0.1.0".to_owned(),
        kubernetes_registry: "registry.k8s.io".to_owned(),
    };
    validate(&object, &images, facts).unwrap()
}

/// The cluster `prod` with the spec of `yaml`.
pub(crate) fn cluster(yaml: &str) -> ValidatedCluster {
    cluster_with("prod", yaml, Facts::default(), |_| {})
}

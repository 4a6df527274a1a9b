//! The Kubernetes API of MegaCluster, one module for each served version.

pub mod crd;
pub mod v1alpha1;

/// API group of everything here.
pub const GROUP: &str = "megacluster.io";

/// Label on every child: the name of the MegaCluster that owns it.
pub const LABEL_NAME: &str = "megacluster.io/name";

/// Label on the children of an apiserver pool: the pool's name.
pub const LABEL_POOL: &str = "megacluster.io/pool";

/// Label on the front doors that hold a part of what is cached: which, such as `0-of-2`.
pub const LABEL_PART: &str = "megacluster.io/part";

/// The only server-side-apply field manager of the operator.
pub const FIELD_MANAGER: &str = "megacluster-operator";

//! Pieces of schema that several fields share.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A Kubernetes quantity, written as a number or a string.
pub(super) fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "maxLength": 24,
        "pattern": r"^[0-9]+(\.[0-9]+)?(([KMGTPE]i)|[mkMGTPE])?$",
        "x-kubernetes-int-or-string": true,
    })
}

/// [`super::DurabilityMode`], so that an optional field keeps its own description.
pub(super) fn durability_mode(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["None", "Buffered", "Fsync"]})
}

/// [`super::PullPolicy`], likewise.
pub(super) fn pull_policy(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["Always", "IfNotPresent", "Never"]})
}

/// A number of pods, or a percentage of them, that is not none.
pub(super) fn int_or_percent(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        // The bounds are of a number, the pattern is of a string.
        "minimum": 1,
        "maximum": 256,
        "maxLength": 4,
        "pattern": r"^([1-9][0-9]?|100)%$",
        "x-kubernetes-int-or-string": true,
    })
}

/// Command-line arguments of a stock component, each `--flag=value`.
pub(super) fn extra_args(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 64,
        "items": {
            "type": "string",
            "maxLength": 1024,
            "pattern": r"^--[a-z][a-z0-9-]*(=.*)?$",
        },
        "x-kubernetes-list-type": "atomic",
    })
}

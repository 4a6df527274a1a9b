//! The Go runtime's view of a container's memory limit.

use k8s_openapi::api::core::v1::{EnvVar, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Share of the limit that the Go heap may fill; the rest is for stacks and the kernel.
const PERCENT: u128 = 90;

/// `GOMEMLIMIT` at nine tenths of the memory limit and, since that bounds the heap, a `GOGC` that
/// collects half as often as the default. Nothing without a limit.
pub(super) fn environment(resources: &ResourceRequirements) -> Vec<EnvVar> {
    let limit = resources.limits.as_ref().and_then(|limits| bytes(limits.get("memory")?));
    let Some(limit) = limit else { return Vec::new() };
    let variable = |name: &str, value: String| EnvVar {
        name: name.to_owned(),
        value: Some(value),
        value_from: None,
    };
    vec![
        variable("GOGC", "200".to_owned()),
        variable("GOMEMLIMIT", (limit * PERCENT / 100).to_string()),
    ]
}

/// A quantity of memory in bytes, rounded down; `None` if it isn't one.
fn bytes(Quantity(text): &Quantity) -> Option<u128> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(at);
    let (multiplier, divisor): (u128, u128) = match suffix {
        "" => (1, 1),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    digits.checked_mul(multiplier)?.checked_div(scale.checked_mul(divisor)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_quantities() {
        for (text, expected) in [
            ("1Gi", Some(1 << 30)),
            ("1.5Gi", Some(3 << 29)),
            ("500M", Some(500_000_000)),
            ("128974848", Some(128_974_848)),
            ("1500m", Some(1)),
            ("0.5Ki", Some(512)),
            ("", None),
            ("Gi", None),
            ("1 Gi", None),
            ("1.2.3", None),
            ("99999999999999999999999999999999999999999", None),
        ] {
            assert_eq!(bytes(&Quantity(text.to_owned())), expected, "{text}");
        }
    }

    #[test]
    fn says_nothing_without_a_limit() {
        assert_eq!(environment(&ResourceRequirements::default()), Vec::new());
    }
}

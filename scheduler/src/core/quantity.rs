//! Resource quantities, with the rounding of `k8s.io/apimachinery/pkg/api/resource`.

use std::fmt;
use std::ops::Add;

use thiserror::Error;

/// The largest magnitude a quantity may have, in nano-units: the API caps at 2^63−1 units.
const CAP: i128 = (i64::MAX as i128) * 1_000_000_000;
/// Beyond this power of ten every non-zero quantity is capped or rounds to one nano-unit.
const MAX_EXPONENT: i32 = 60;

/// An exact amount in nano-units, the finest step the API keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(i128);

/// A text that is no quantity.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a resource quantity")]
pub struct QuantityError(String);

impl Amount {
    /// Nothing of a resource.
    pub const ZERO: Self = Self(0);

    /// An amount of whole units.
    #[must_use]
    pub fn units(units: i64) -> Self {
        Self(i128::from(units) * 1_000_000_000)
    }

    /// An amount of thousandths.
    #[must_use]
    pub fn millis(millis: i64) -> Self {
        Self(i128::from(millis) * 1_000_000)
    }

    /// Parses `100m`, `1.5Gi`, `2e3` and the like. Anything finer than a nano-unit rounds away
    /// from zero and anything above 2^63−1 is capped, as the API server does.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        parse(text).ok_or_else(|| QuantityError(text.to_owned()))
    }

    /// Whole units, rounded away from zero (`Quantity.Value`).
    #[must_use]
    pub fn value(self) -> i64 {
        self.scaled(1_000_000_000)
    }

    /// Thousandths, rounded away from zero (`Quantity.MilliValue`).
    #[must_use]
    pub fn milli_value(self) -> i64 {
        self.scaled(1_000_000)
    }

    fn scaled(self, step: i128) -> i64 {
        let whole = self.0 / step;
        let rounded = if self.0 % step == 0 { whole } else { whole + self.0.signum() };
        i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
    }
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}n", self.0)
    }
}

fn parse(text: &str) -> Option<Amount> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(number_end);
    let mut mantissa = Mantissa::default();
    let mut fraction = false;
    let mut digits = 0_u32;
    for byte in number.bytes() {
        match byte {
            b'.' if !fraction => fraction = true,
            b'.' => return None,
            _ => {
                digits += 1;
                mantissa.push(byte - b'0', fraction);
            }
        }
    }
    if digits == 0 {
        return None;
    }
    let (binary, exponent) = interpret_suffix(suffix)?;
    let nanos = mantissa.nanos(binary, exponent);
    Some(Amount(if negative { -nanos } else { nanos }))
}

/// The digits read so far: `value × 10^exponent`, `inexact` when non-zero digits were dropped.
#[derive(Default)]
struct Mantissa {
    value: i128,
    exponent: i32,
    inexact: bool,
}

impl Mantissa {
    fn push(&mut self, digit: u8, fraction: bool) {
        let wider = self.value.checked_mul(10).and_then(|v| v.checked_add(i128::from(digit)));
        match wider {
            // Room is left for the shift by 10^9 that turns units into nano-units.
            Some(value) if value < CAP => {
                self.value = value;
                self.exponent -= i32::from(fraction);
            }
            _ => {
                self.inexact |= digit != 0;
                self.exponent = (self.exponent + i32::from(!fraction)).min(MAX_EXPONENT);
            }
        }
    }

    fn nanos(&self, binary: u32, exponent: i32) -> i128 {
        if self.value == 0 {
            return i128::from(self.inexact);
        }
        let Some(mut nanos) = self.value.checked_mul(1_i128 << binary) else { return CAP };
        let mut inexact = self.inexact;
        let exponent = (self.exponent + exponent + 9).clamp(-MAX_EXPONENT, MAX_EXPONENT);
        for _ in 0..exponent {
            nanos = nanos.saturating_mul(10);
            if nanos > CAP {
                return CAP;
            }
        }
        for _ in exponent..0 {
            inexact |= nanos % 10 != 0;
            nanos /= 10;
        }
        (nanos + i128::from(inexact)).min(CAP)
    }
}

/// The suffix as a power of two and a power of ten.
fn interpret_suffix(suffix: &str) -> Option<(u32, i32)> {
    let decimal = |exponent| Some((0, exponent));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => Some((10, 0)),
        "Mi" => Some((20, 0)),
        "Gi" => Some((30, 0)),
        "Ti" => Some((40, 0)),
        "Pi" => Some((50, 0)),
        "Ei" => Some((60, 0)),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let parsed: i64 = exponent.parse().ok()?;
            let bound = i64::from(MAX_EXPONENT);
            decimal(i32::try_from(parsed.clamp(-bound, bound)).ok()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> i64 {
        Amount::parse(text).unwrap().value()
    }

    fn milli(text: &str) -> i64 {
        Amount::parse(text).unwrap().milli_value()
    }

    #[test]
    fn suffixes() {
        assert_eq!(value("0"), 0);
        assert_eq!(value("1k"), 1_000);
        assert_eq!(value("1Ki"), 1_024);
        assert_eq!(value("1.5Gi"), 1_610_612_736);
        assert_eq!(value("12E"), i64::MAX);
        assert_eq!(value("9Ei"), i64::MAX);
        assert_eq!(value("1e3"), 1_000);
        assert_eq!(value("1E3"), 1_000);
        assert_eq!(value("1E"), 1_000_000_000_000_000_000);
        assert_eq!(value("5e-1"), 1);
        assert_eq!(value("+7"), 7);
        assert_eq!(value(".5"), 1);
        assert_eq!(value("5."), 5);
    }

    #[test]
    fn rounds_away_from_zero() {
        assert_eq!(milli("100m"), 100);
        assert_eq!(milli("0.0001"), 1);
        assert_eq!(milli("-0.0001"), -1);
        assert_eq!(value("1n"), 1);
        assert_eq!(value("0.00000000000000000000000000000000000000000001"), 1);
        assert_eq!(milli("1500u"), 2);
        assert_eq!(value("-1500m"), -2);
    }

    #[test]
    fn huge_is_capped() {
        assert_eq!(value("99999999999999999999999999999999999999999999"), i64::MAX);
        assert_eq!(value("1e99999"), i64::MAX);
        assert_eq!(milli("9223372036854775807"), i64::MAX);
        assert_eq!(value("9223372036854775807"), i64::MAX);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "-", ".", "1.2.3", "1 Gi", "Gi", "1gi", "0x10", "1e", "e3", "1Kib"] {
            assert!(Amount::parse(text).is_err(), "{text:?}");
        }
    }
}

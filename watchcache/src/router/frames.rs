//! Where one event of a watch ends and the next begins, so that a watch which the front door ends
//! breaks off no event.

/// How the events of a watch follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frames {
    /// JSON: each event ends with a line feed, and has none inside.
    Lines {
        /// Whether the last byte ended an event.
        between: bool,
    },
    /// Protobuf: four bytes of length, big-endian, then the event
    /// (`k8s.io/apimachinery/pkg/util/framer`).
    Lengths {
        /// Bytes of the length that have come, and their value.
        length: u32,
        /// How many bytes of the length have come.
        digits: u8,
        /// Bytes of the event that are still to come.
        left: u32,
    },
    /// Something else: nothing is known.
    Unknown,
}

impl Frames {
    /// Chooses by the answer's content type.
    #[must_use]
    pub(super) fn of(content_type: &[u8]) -> Self {
        let kind = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        match kind {
            b"application/json" => Self::Lines { between: true },
            b"application/vnd.kubernetes.protobuf" => {
                Self::Lengths { length: 0, digits: 0, left: 0 }
            }
            _ => Self::Unknown,
        }
    }

    /// Takes in what has been passed on.
    pub(super) fn passed(&mut self, mut data: &[u8]) {
        match self {
            Self::Lines { between } => {
                if let Some(last) = data.last() {
                    *between = *last == b'\n';
                }
            }
            Self::Lengths { length, digits, left } => {
                while let [first, rest @ ..] = data {
                    if *left > 0 {
                        let step = data.len().min(*left as usize);
                        // Not above `left`, which is 32 bits wide.
                        *left -= u32::try_from(step).unwrap_or(*left);
                        data = data.get(step..).unwrap_or_default();
                        continue;
                    }
                    *length = *length << 8 | u32::from(*first);
                    *digits += 1;
                    data = rest;
                    if *digits == 4 {
                        (*left, *length, *digits) = (*length, 0, 0);
                    }
                }
            }
            Self::Unknown => {}
        }
    }

    /// Whether no event is half passed on.
    #[must_use]
    pub(super) fn is_between(&self) -> bool {
        match self {
            Self::Lines { between } => *between,
            Self::Lengths { digits, left, .. } => *digits == 0 && *left == 0,
            Self::Unknown => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(stream: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
        let mut rest = stream;
        let mut parts = Vec::new();
        for cut in cuts {
            let (part, tail) = rest.split_at((*cut).min(rest.len()));
            parts.push(part.to_vec());
            rest = tail;
        }
        parts.push(rest.to_vec());
        parts
    }

    proptest! {
        /// However the stream is cut, `is_between` is true exactly at the ends of events.
        #[test]
        fn boundaries(
            sizes in proptest::collection::vec(0usize..300, 0..10),
            cuts in proptest::collection::vec(1usize..50, 0..60),
            json in any::<bool>(),
        ) {
            let mut stream = Vec::new();
            let mut ends = vec![0];
            for size in sizes {
                if json {
                    stream.extend(std::iter::repeat_n(b'x', size));
                    stream.push(b'\n');
                } else {
                    stream.extend(u32::try_from(size).unwrap().to_be_bytes());
                    stream.extend(std::iter::repeat_n(7u8, size));
                }
                ends.push(stream.len());
            }
            let kind: &[u8] = if json {
                b"application/json;stream=watch"
            } else {
                b"application/vnd.kubernetes.protobuf;stream=watch"
            };
            let mut frames = Frames::of(kind);
            let mut passed = 0;
            for part in cut(&stream, &cuts) {
                frames.passed(&part);
                passed += part.len();
                prop_assert_eq!(frames.is_between(), ends.contains(&passed));
            }
        }
    }
}

//! Segments and blocks: how groups of records lie in a file, and how damage is told from an
//! unfinished write.
//!
//! ```text
//! segment header   0 magic "MCSTLOG\0" | 8 format version u32 | 12 sequence u64
//!                 20 length of the segment before u64, 0 if there was none | 28 CRC32C of 0..28
//!                 (format 1 has no length: 20 CRC32C of 0..20)
//! block header     0 magic u32 | 4 CRC32C of 8.. u32 | 8 payload length u32 | 12 sequence u64
//!                 20 own offset u64 | 28 synced offset u64 | 36 payload
//! ```
//!
//! A block that names its own place can't be taken for another's by accident: not bytes of a value
//! that look like a block, not a stale copy.

use bytes::Bytes;

pub(super) const SEGMENT_MAGIC: [u8; 8] = *b"MCSTLOG\0";
/// Format of the segments this store writes. It reads format 1, too.
pub(super) const SEGMENT_VERSION: u32 = 2;
pub(super) const SEGMENT_HEADER: usize = 32;
const SEGMENT_HEADER_1: usize = 24;

const BLOCK_MAGIC: [u8; 4] = [0xB1, 0x0C, 0x4D, 0xC7];
pub(super) const BLOCK_HEADER: usize = 36;
/// Bound of a block's payload: what a reader may be asked to hold at once.
pub(super) const MAX_PAYLOAD: usize = 64 << 20;
/// Unit in which a disk loses unsynced data.
const SECTOR: usize = 512;

pub(super) fn segment_header(sequence: u64, before: u64) -> [u8; SEGMENT_HEADER] {
    let mut header = [0; SEGMENT_HEADER];
    header[0..8].copy_from_slice(&SEGMENT_MAGIC);
    header[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
    header[12..20].copy_from_slice(&sequence.to_le_bytes());
    header[20..28].copy_from_slice(&before.to_le_bytes());
    let crc = crc32c::crc32c(&header[0..28]);
    header[28..32].copy_from_slice(&crc.to_le_bytes());
    header
}

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHead {
    /// Where the first block begins.
    pub(super) len: usize,
    /// Length of the segment before, where it is known. Without it a whole number of blocks could be
    /// missing at that segment's end, and nobody would see.
    pub(super) before: Option<u64>,
}

/// Why a file's header was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    Version(u32),
    Damaged(&'static str),
}

pub(super) fn check_segment_header(data: &[u8], sequence: u64) -> Result<SegmentHead, HeaderFault> {
    let short = HeaderFault::Damaged("the file is shorter than its header");
    if data.len() < SEGMENT_HEADER_1 {
        return Err(short);
    }
    if data[0..8] != SEGMENT_MAGIC {
        return Err(HeaderFault::Damaged("not a log segment"));
    }
    let len = match u32_at(data, 8) {
        1 => SEGMENT_HEADER_1,
        SEGMENT_VERSION => SEGMENT_HEADER,
        version => return Err(HeaderFault::Version(version)),
    };
    let Some(header) = data.get(..len) else { return Err(short) };
    let (content, crc) = header.split_at(len - 4);
    if u32_at(crc, 0) != crc32c::crc32c(content) {
        return Err(HeaderFault::Damaged("checksum of the header"));
    }
    if u64_at(header, 12) != sequence {
        return Err(HeaderFault::Damaged("the sequence in the header is not that of the name"));
    }
    let before = (len == SEGMENT_HEADER).then(|| u64_at(header, 20)).filter(|len| *len > 0);
    Ok(SegmentHead { len, before })
}

/// Room for a header at the end of `out`; returns its place for [`finish`].
pub(super) fn begin(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.resize(start + BLOCK_HEADER, 0);
    start
}

/// Fills the header of a whole block.
pub(super) fn finish(block: &mut [u8], sequence: u64, offset: u64, synced: u64) {
    let length = u32::try_from(block.len() - BLOCK_HEADER).unwrap_or(u32::MAX);
    block[0..4].copy_from_slice(&BLOCK_MAGIC);
    block[8..12].copy_from_slice(&length.to_le_bytes());
    block[12..20].copy_from_slice(&sequence.to_le_bytes());
    block[20..28].copy_from_slice(&offset.to_le_bytes());
    block[28..36].copy_from_slice(&synced.to_le_bytes());
    let crc = crc32c::crc32c(&block[8..]);
    block[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// A good block.
#[derive(Debug)]
pub(super) struct Block {
    /// Up to where the segment was known to be synced when the block was made.
    pub(super) synced: u64,
    pub(super) payload: Bytes,
    /// Offset behind it.
    pub(super) end: usize,
}

/// Reads the block at `at` of `data`, which names itself as of `sequence` and `offset`.
pub(super) fn read(
    data: &Bytes,
    at: usize,
    sequence: u64,
    offset: u64,
) -> Result<Block, &'static str> {
    let rest = data.get(at..).unwrap_or_default();
    if rest.len() < BLOCK_HEADER {
        return Err("incomplete block header");
    }
    if rest[0..4] != BLOCK_MAGIC {
        return Err("no block begins here");
    }
    let length = u32_at(rest, 8) as usize;
    if length > MAX_PAYLOAD {
        return Err("block length out of bounds");
    }
    let Some(block) = rest.get(..BLOCK_HEADER + length) else { return Err("incomplete block") };
    if u32_at(block, 4) != crc32c::crc32c(&block[8..]) {
        return Err("checksum mismatch");
    }
    if u64_at(block, 12) != sequence || u64_at(block, 20) != offset {
        return Err("block of another place");
    }
    let end = at + block.len();
    Ok(Block { synced: u64_at(block, 28), payload: data.slice(at + BLOCK_HEADER..end), end })
}

/// What a bad block in the last segment is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// An unfinished write: what is from there on was never acknowledged as synced.
    Torn,
    /// Not an unfinished write.
    Corrupt,
}

/// Judges the bad block at `offset` of the last segment.
pub(super) fn judge(segment: &Bytes, sequence: u64, offset: usize) -> Damage {
    let mut first_good = None;
    let mut synced = 0;
    let mut at = offset + 1;
    while let Some(found) = find(segment, at) {
        // The cheap test first: the header names its own place.
        let plausible = segment.len() >= found + BLOCK_HEADER
            && u64_at(segment, found + 20) == found as u64
            && u64_at(segment, found + 12) == sequence;
        at = found + 1;
        if plausible && let Ok(block) = read(segment, found, sequence, found as u64) {
            first_good.get_or_insert(found);
            synced = synced.max(block.synced);
            at = block.end;
        }
    }
    match first_good {
        None => Damage::Torn,
        Some(_) if synced > offset as u64 => Damage::Corrupt,
        Some(good) if has_hole(segment, offset, good) => Damage::Torn,
        Some(_) => Damage::Corrupt,
    }
}

/// True if a sector between the bad block and the next good one never reached the disk: it is zero
/// from the bad block (or its own beginning) to its end.
fn has_hole(segment: &[u8], bad: usize, good: usize) -> bool {
    let mut from = bad;
    while from < good {
        let sector_end = (from / SECTOR + 1) * SECTOR;
        let part = &segment[from..sector_end.min(segment.len())];
        if part.iter().all(|byte| *byte == 0) {
            return true;
        }
        from = sector_end;
    }
    false
}

fn find(segment: &[u8], from: usize) -> Option<usize> {
    let rest = segment.get(from..)?;
    rest.windows(BLOCK_MAGIC.len()).position(|window| window == BLOCK_MAGIC).map(|at| from + at)
}

pub(super) fn u32_at(data: &[u8], at: usize) -> u32 {
    data.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

pub(super) fn u64_at(data: &[u8], at: usize) -> u64 {
    data.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment of blocks with these payload lengths and synced marks.
    fn segment(blocks: &[(usize, u64)]) -> (Vec<u8>, Vec<usize>) {
        let mut out = segment_header(7, 99).to_vec();
        let mut offsets = Vec::new();
        for (length, synced) in blocks {
            let start = begin(&mut out);
            out.resize(start + BLOCK_HEADER + length, 0xAB);
            finish(&mut out[start..], 7, start as u64, *synced);
            offsets.push(start);
        }
        (out, offsets)
    }

    #[test]
    fn good_blocks_are_read_back() {
        let (data, offsets) = segment(&[(10, 0), (0, 24), (2000, 70)]);
        let data = Bytes::from(data);
        let head = SegmentHead { len: SEGMENT_HEADER, before: Some(99) };
        assert_eq!(check_segment_header(&data, 7), Ok(head));
        assert_eq!(
            check_segment_header(&data, 8).unwrap_err(),
            HeaderFault::Damaged("the sequence in the header is not that of the name")
        );
        for (i, offset) in offsets.iter().enumerate() {
            let block = read(&data, *offset, 7, *offset as u64).unwrap();
            assert_eq!(block.end, offsets.get(i + 1).copied().unwrap_or(data.len()));
        }
        assert!(read(&data, offsets[0], 8, offsets[0] as u64).is_err(), "of another segment");
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let (data, offsets) = segment(&[(20, 0)]);
        for at in offsets[0]..data.len() {
            for bit in 0..8 {
                let mut bad = data.clone();
                bad[at] ^= 1 << bit;
                assert!(
                    read(&Bytes::from(bad), offsets[0], 7, offsets[0] as u64).is_err(),
                    "byte {at} bit {bit}"
                );
            }
        }
    }

    #[test]
    fn damage_at_the_very_end_is_torn() {
        let (mut data, offsets) = segment(&[(10, 0), (100, 0)]);
        data.truncate(data.len() - 1);
        assert_eq!(judge(&Bytes::from(data), 7, offsets[1]), Damage::Torn);
    }

    #[test]
    fn damage_before_a_good_block_is_corruption() {
        let (mut data, offsets) = segment(&[(10, 0), (100, 0), (10, 0)]);
        data[offsets[1] + 50] ^= 1;
        assert_eq!(judge(&Bytes::from(data), 7, offsets[1]), Damage::Corrupt);
    }

    #[test]
    fn a_lost_sector_is_torn_only_if_it_was_never_synced() {
        for (mark, expected) in [(0, Damage::Torn), (3000, Damage::Corrupt)] {
            let (mut data, offsets) = segment(&[(10, 0), (2000, 0), (10, mark)]);
            data[1024..1536].fill(0);
            assert_eq!(judge(&Bytes::from(data), 7, offsets[1]), expected);
        }
    }
}

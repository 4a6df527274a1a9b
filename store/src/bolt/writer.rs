//! A bbolt file (format version 2; `go.etcd.io/bbolt`, `internal/common`), written from sorted keys.
//!
//! Pages are written one behind the other: leaves as they fill, the branches above them as those
//! fill, so that what is kept in memory is one page for each level. The two meta pages at the front
//! come last, when the place of the root is known; until then the file is no database.
//!
//! ```text
//! page    id u64 | flags u16 | count u16 | overflow u32 | elements | keys and values
//! leaf    flags u32 | position u32 | key length u32 | value length u32
//! branch  position u32 | key length u32 | child u64
//! meta    magic u32 | version u32 | page size u32 | flags u32 | root u64 | sequence u64 |
//!         free list u64 | pages u64 | transaction u64 | FNV-1a of all before u64
//! ```
//! Positions count from the element's own start. Numbers are little-endian, as bbolt writes them on
//! every machine that etcd runs on.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};

const PAGE: usize = 4096;
const PAGE_U32: u32 = 4096;
const PAGE_HEADER: usize = 16;
const ELEMENT: usize = 16;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const META: u16 = 4;
/// Element flag of a leaf whose value is a bucket.
const IS_BUCKET: u32 = 1;
const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// There is no free list: bbolt finds the free pages when it opens the file (`NoFreelistSync`, as
/// etcd has it).
const NO_FREELIST: u64 = u64::MAX;
/// bbolt never leaves fewer keys on a page.
const MIN_KEYS: usize = 2;

/// A file in the making.
#[derive(Debug)]
pub struct Database<W: Write + Seek> {
    out: BufWriter<W>,
    pages: u64,
    /// Names and root pages.
    buckets: Vec<(Vec<u8>, u64)>,
}

impl<W: Write + Seek> Database<W> {
    /// Begins a file at the start of `out`.
    pub fn create(out: W) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(1 << 20, out);
        // The meta pages' place.
        out.write_all(&[0; 2 * PAGE])?;
        Ok(Self { out, pages: 2, buckets: Vec::new() })
    }

    /// Begins a bucket; end it with [`Bucket::finish`] before the next.
    pub fn bucket(&mut self, name: &[u8]) -> Bucket<'_, W> {
        Bucket { name: name.to_vec(), tree: Tree::new(0), database: self }
    }

    /// Writes the bucket of buckets and the meta pages. Gives the file and its size.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        let mut buckets = std::mem::take(&mut self.buckets);
        buckets.sort();
        let mut tree = Tree::new(IS_BUCKET);
        for (name, root) in buckets {
            let mut value = root.to_le_bytes().to_vec();
            // The bucket's sequence, which etcd doesn't use.
            value.extend_from_slice(&0_u64.to_le_bytes());
            tree.put(&mut self, &name, &value)?;
        }
        let root = tree.finish(&mut self)?;
        let pages = self.pages;
        let mut out = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        out.seek(SeekFrom::Start(0))?;
        for id in 0..2 {
            out.write_all(&meta_page(id, root, pages))?;
        }
        out.flush()?;
        Ok((out, pages * PAGE as u64))
    }

    /// Writes a page, over as many pages as it needs, and gives its id.
    fn page(&mut self, kind: u16, count: usize, body: &[u8]) -> io::Result<u64> {
        let id = self.pages;
        let needed = (PAGE_HEADER + body.len()).div_ceil(PAGE);
        let (Ok(count), Ok(overflow)) = (u16::try_from(count), u32::try_from(needed - 1)) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a page too large for bbolt"));
        };
        self.out.write_all(&page_header(id, kind, count, overflow))?;
        self.out.write_all(body)?;
        let padding = needed * PAGE - PAGE_HEADER - body.len();
        self.out.write_all(&[0; PAGE][..padding])?;
        self.pages += needed as u64;
        Ok(id)
    }
}

fn page_header(id: u64, kind: u16, count: u16, overflow: u32) -> [u8; PAGE_HEADER] {
    let mut header = [0; PAGE_HEADER];
    header[0..8].copy_from_slice(&id.to_le_bytes());
    header[8..10].copy_from_slice(&kind.to_le_bytes());
    header[10..12].copy_from_slice(&count.to_le_bytes());
    header[12..16].copy_from_slice(&overflow.to_le_bytes());
    header
}

fn meta_page(id: u64, root: u64, pages: u64) -> [u8; PAGE] {
    let mut meta = Vec::with_capacity(64);
    for number in [MAGIC, VERSION, PAGE_U32, 0] {
        meta.extend_from_slice(&number.to_le_bytes());
    }
    // The page's id is that of the transaction, modulo two; the higher of the two counts.
    for number in [root, 0, NO_FREELIST, pages, id] {
        meta.extend_from_slice(&number.to_le_bytes());
    }
    meta.extend_from_slice(&fnv1a(&meta).to_le_bytes());
    let mut page = [0; PAGE];
    page[..PAGE_HEADER].copy_from_slice(&page_header(id, META, 0, 0));
    page[PAGE_HEADER..PAGE_HEADER + meta.len()].copy_from_slice(&meta);
    page
}

fn fnv1a(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A bucket in the making.
#[derive(Debug)]
pub struct Bucket<'a, W: Write + Seek> {
    name: Vec<u8>,
    tree: Tree,
    database: &'a mut Database<W>,
}

impl<W: Write + Seek> Bucket<'_, W> {
    /// Adds a key, which must be above the last.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.tree.put(self.database, key, value)
    }

    /// Ends the bucket.
    pub fn finish(self) -> io::Result<()> {
        let root = self.tree.finish(self.database)?;
        self.database.buckets.push((self.name, root));
        Ok(())
    }
}

/// A page that fills.
#[derive(Debug, Default)]
struct Node {
    elements: Vec<u8>,
    data: Vec<u8>,
    /// Where each element's data begins.
    starts: Vec<usize>,
    first: Vec<u8>,
}

impl Node {
    fn len(&self) -> usize {
        self.starts.len()
    }

    fn is_full(&self, more: usize) -> bool {
        let size = PAGE_HEADER + self.elements.len() + ELEMENT + self.data.len() + more;
        self.len() >= MIN_KEYS && size > PAGE
    }

    fn add(&mut self, element: [u8; ELEMENT], key: &[u8], value: &[u8]) {
        if self.starts.is_empty() {
            self.first = key.to_vec();
        }
        self.starts.push(self.data.len());
        self.elements.extend_from_slice(&element);
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
    }

    /// The page's body; `position` is where in an element its position stands.
    fn body(mut self, position: usize) -> io::Result<Vec<u8>> {
        let elements = self.elements.len();
        for (i, start) in self.starts.iter().enumerate() {
            let at = i * ELEMENT;
            let distance = u32::try_from(elements - at + start).map_err(io::Error::other)?;
            self.elements[at + position..at + position + 4]
                .copy_from_slice(&distance.to_le_bytes());
        }
        self.elements.extend_from_slice(&self.data);
        Ok(self.elements)
    }
}

/// A B+ tree, built from the left.
#[derive(Debug)]
struct Tree {
    /// Flags of its leaves' elements.
    flags: u32,
    leaf: Node,
    /// Branches, the lowest first.
    branches: Vec<Node>,
    last: Vec<u8>,
}

impl Tree {
    fn new(flags: u32) -> Self {
        Self { flags, leaf: Node::default(), branches: Vec::new(), last: Vec::new() }
    }

    fn put<W: Write + Seek>(
        &mut self,
        database: &mut Database<W>,
        key: &[u8],
        value: &[u8],
    ) -> io::Result<()> {
        if key <= self.last.as_slice() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "keys out of order"));
        }
        self.last = key.to_vec();
        if self.leaf.is_full(key.len() + value.len()) {
            self.close_leaf(database)?;
        }
        let mut element = [0; ELEMENT];
        element[0..4].copy_from_slice(&self.flags.to_le_bytes());
        element[8..12].copy_from_slice(&length(key)?.to_le_bytes());
        element[12..16].copy_from_slice(&length(value)?.to_le_bytes());
        self.leaf.add(element, key, value);
        Ok(())
    }

    fn close_leaf<W: Write + Seek>(&mut self, database: &mut Database<W>) -> io::Result<u64> {
        let mut leaf = std::mem::take(&mut self.leaf);
        let (count, first) = (leaf.len(), std::mem::take(&mut leaf.first));
        let id = database.page(LEAF, count, &leaf.body(4)?)?;
        self.child(database, 0, &first, id)?;
        Ok(id)
    }

    /// Hangs a page below the branch of a level.
    fn child<W: Write + Seek>(
        &mut self,
        database: &mut Database<W>,
        level: usize,
        first: &[u8],
        id: u64,
    ) -> io::Result<()> {
        if self.branches.len() == level {
            self.branches.push(Node::default());
        }
        if self.branches[level].is_full(first.len()) {
            self.close_branch(database, level)?;
        }
        let mut element = [0; ELEMENT];
        element[4..8].copy_from_slice(&length(first)?.to_le_bytes());
        element[8..16].copy_from_slice(&id.to_le_bytes());
        self.branches[level].add(element, first, &[]);
        Ok(())
    }

    fn close_branch<W: Write + Seek>(
        &mut self,
        database: &mut Database<W>,
        level: usize,
    ) -> io::Result<()> {
        let mut branch = std::mem::take(&mut self.branches[level]);
        let (count, first) = (branch.len(), std::mem::take(&mut branch.first));
        let id = database.page(BRANCH, count, &branch.body(0)?)?;
        self.child(database, level + 1, &first, id)
    }

    /// Gives the root page.
    fn finish<W: Write + Seek>(mut self, database: &mut Database<W>) -> io::Result<u64> {
        if self.leaf.len() > 0 || self.branches.is_empty() {
            let id = self.close_leaf(database)?;
            if self.branches.len() == 1 && self.branches[0].len() == 1 {
                return Ok(id);
            }
        }
        let mut level = 0;
        loop {
            let top = level + 1 == self.branches.len();
            if top && self.branches[level].len() == 1 {
                let element = &self.branches[level].elements;
                let mut id = [0; 8];
                id.copy_from_slice(&element[8..16]);
                return Ok(u64::from_le_bytes(id));
            }
            self.close_branch(database, level)?;
            level += 1;
        }
    }
}

fn length(data: &[u8]) -> io::Result<u32> {
    u32::try_from(data.len()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn u64_at(data: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(data[at..at + 8].try_into().unwrap())
    }

    fn u32_at(data: &[u8], at: usize) -> usize {
        u32::from_le_bytes(data[at..at + 4].try_into().unwrap()) as usize
    }

    /// Reads what is below a page as bbolt does: key, value and flags of each leaf element.
    fn read(file: &[u8], id: u64, found: &mut Vec<(Vec<u8>, Vec<u8>, usize)>) {
        let page = &file[usize::try_from(id).unwrap() * PAGE..];
        assert_eq!(u64_at(page, 0), id);
        let (kind, count) = (page[8], u16::from_le_bytes([page[10], page[11]]));
        for i in 0..usize::from(count) {
            let element = &page[PAGE_HEADER + i * ELEMENT..];
            if u16::from(kind) == LEAF {
                let (at, k, v) = (u32_at(element, 4), u32_at(element, 8), u32_at(element, 12));
                let (key, value) = element[at..at + k + v].split_at(k);
                found.push((key.to_vec(), value.to_vec(), u32_at(element, 0)));
            } else {
                let before = found.len();
                read(file, u64_at(element, 8), found);
                let at = u32_at(element, 0);
                assert_eq!(found[before].0, element[at..at + u32_at(element, 4)]);
            }
        }
    }

    fn written(sizes: &[usize]) -> Vec<u8> {
        let mut database = Database::create(Cursor::new(Vec::new())).unwrap();
        let mut bucket = database.bucket(b"key");
        for (i, size) in sizes.iter().enumerate() {
            bucket.put(format!("{i:08}").as_bytes(), &vec![b'v'; *size]).unwrap();
        }
        bucket.finish().unwrap();
        database.bucket(b"empty").finish().unwrap();
        let (file, size) = database.finish().unwrap();
        assert_eq!(file.get_ref().len() as u64, size);
        file.into_inner()
    }

    #[test]
    fn what_is_written_is_read_in_order() {
        let many: Vec<usize> = (0..40_000).map(|i| i % 97).collect();
        let mixed: Vec<usize> = (0..300).map(|i| if i % 7 == 0 { 9_000 } else { 100 }).collect();
        for sizes in [&[][..], &[5], &[3, 200_000, 4], &many, &mixed] {
            let file = written(sizes);
            for (page, txid) in [(0, 0), (PAGE, 1)] {
                let meta = &file[page + PAGE_HEADER..];
                assert_eq!(u32_at(meta, 0), MAGIC as usize);
                assert_eq!(u64_at(meta, 48), txid);
                assert_eq!(u64_at(meta, 56), fnv1a(&meta[..56]));
                assert_eq!(u64_at(meta, 40) * PAGE as u64, file.len() as u64);
            }
            let mut buckets = Vec::new();
            read(&file, u64_at(&file, PAGE_HEADER + 16), &mut buckets);
            let names: Vec<_> =
                buckets.iter().map(|(name, _, flags)| (&name[..], *flags)).collect();
            assert_eq!(names, [(&b"empty"[..], 1), (&b"key"[..], 1)]);
            let mut keys = Vec::new();
            read(&file, u64_at(&buckets[1].1, 0), &mut keys);
            let found: Vec<usize> = keys.iter().map(|(_, value, _)| value.len()).collect();
            assert_eq!(found, sizes);
            assert!(keys.is_sorted_by(|a, b| a.0 < b.0));
        }
    }

    #[test]
    fn keys_out_of_order_are_refused() {
        let mut database = Database::create(Cursor::new(Vec::new())).unwrap();
        let mut bucket = database.bucket(b"key");
        bucket.put(b"b", b"").unwrap();
        assert!(bucket.put(b"b", b"").is_err());
    }
}

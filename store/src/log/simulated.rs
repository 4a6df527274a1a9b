//! A disk that loses what wasn't synced, tears writes and fails on demand.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;

use super::storage::{Source, Storage, StorageFile};

const SECTOR: usize = 512;

/// A generator of numbers that only a seed decides (splitmix64).
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In `0..bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    pub(super) fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

/// How the store went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crash {
    /// The process was killed: the kernel keeps what was written.
    Process,
    /// The power went: what wasn't synced may be gone, sector by sector.
    Power,
}

/// A fault to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An append writes a part and fails.
    Append,
    /// An append fails, and so does the truncation after it.
    AppendAndTruncate,
    /// A sync fails and drops what it should have written, as Linux does.
    Sync,
}

#[derive(Debug)]
pub(crate) struct Disk {
    state: Mutex<State>,
    me: Weak<Disk>,
}

#[derive(Debug)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending: Vec<NameOp>,
    random: Random,
    /// Operations until the crash.
    crash_in: Option<usize>,
    dead: bool,
    fault: Option<Fault>,
    /// Counts openings of the machine: a handle of the last life is dead.
    life: u64,
}

#[derive(Debug, Default, Clone)]
struct Inode {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// Ends of writes since the last sync.
    boundaries: Vec<usize>,
    truncated: bool,
}

#[derive(Debug, Clone)]
enum NameOp {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

fn apply(names: &mut BTreeMap<String, usize>, op: &NameOp) {
    match op {
        NameOp::Create(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        NameOp::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        NameOp::Remove(name) => {
            names.remove(name);
        }
    }
}

impl Inode {
    fn sync(&mut self) {
        self.durable.clone_from(&self.current);
        self.boundaries.clear();
        self.truncated = false;
    }

    fn lose_power(&mut self, random: &mut Random) {
        if self.truncated && random.chance(2) {
            // The truncation never reached the disk.
            self.current.clone_from(&self.durable);
        } else {
            let synced = if self.truncated {
                self.durable.len().min(self.current.len())
            } else {
                self.durable.len()
            };
            let len = synced + random.below(self.current.len() - synced + 1);
            let mut content = self.current[..len].to_vec();
            let mut from = synced;
            while from < len {
                let end = ((from / SECTOR + 1) * SECTOR).min(len);
                if random.chance(3) {
                    // The sector as it was after an earlier write, or before all of them.
                    let versions: Vec<usize> = self
                        .boundaries
                        .iter()
                        .copied()
                        .filter(|b| (from..end).contains(b))
                        .chain([from])
                        .collect();
                    let version = versions[random.below(versions.len())];
                    content[version..end].fill(0);
                }
                from = end;
            }
            self.current = content;
        }
        self.sync();
    }
}

fn gone() -> io::Error {
    io::Error::other("the machine is down")
}

impl State {
    /// Counts an operation; `Ok(true)` if it is the one in which the machine goes down.
    fn step(&mut self) -> io::Result<bool> {
        if self.dead {
            return Err(gone());
        }
        match &mut self.crash_in {
            Some(0) => {
                self.dead = true;
                Ok(true)
            }
            Some(left) => {
                *left -= 1;
                Ok(false)
            }
            None => Ok(false),
        }
    }

    /// As [`State::step`], for operations that happen whole or not at all.
    fn step_whole(&mut self) -> io::Result<bool> {
        let crash = self.step()?;
        if crash && self.random.chance(2) {
            return Err(gone());
        }
        Ok(crash)
    }

    fn name_op(&mut self, op: NameOp) -> io::Result<()> {
        let crash = self.step_whole()?;
        apply(&mut self.names, &op);
        self.pending.push(op);
        if crash { Err(gone()) } else { Ok(()) }
    }

    fn inode(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            state: Mutex::new(State {
                inodes: Vec::new(),
                names: BTreeMap::new(),
                durable_names: BTreeMap::new(),
                pending: Vec::new(),
                random: Random(seed),
                crash_in: None,
                dead: false,
                fault: None,
                life: 0,
            }),
            me: me.clone(),
        })
    }

    /// Goes down in the operation after `operations` more.
    pub(super) fn crash_in(&self, operations: usize) {
        self.state.lock().crash_in = Some(operations);
    }

    pub(crate) fn fail_next(&self, fault: Fault) {
        self.state.lock().fault = Some(fault);
    }

    /// Comes up again with what survived.
    pub(super) fn restart(&self, crash: Crash) {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.dead = false;
        state.crash_in = None;
        state.fault = None;
        state.life += 1;
        if crash == Crash::Power {
            let survived = state.random.below(state.pending.len() + 1);
            for op in state.pending.drain(..).take(survived) {
                apply(&mut state.durable_names, &op);
            }
            state.pending.clear();
            state.names.clone_from(&state.durable_names);
            for inode in &mut state.inodes {
                inode.lose_power(&mut state.random);
            }
        }
    }

    /// The content of a file, to look at or to damage.
    pub(super) fn content(&self, name: &str) -> Vec<u8> {
        let state = self.state.lock();
        state.inodes[state.names[name]].current.clone()
    }

    pub(super) fn set_content(&self, name: &str, content: Vec<u8>) {
        let mut state = self.state.lock();
        let inode = state.names[name];
        state.inodes[inode] =
            Inode { durable: content.clone(), current: content, ..Inode::default() };
    }

    fn handle(&self, state: &State, inode: usize) -> Arc<dyn StorageFile> {
        Arc::new(Handle { disk: self.me.upgrade().unwrap(), inode, life: state.life })
    }
}

impl Storage for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        if state.dead { Err(gone()) } else { Ok(state.names.keys().cloned().collect()) }
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let mut state = self.state.lock();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.name_op(NameOp::Create(name.to_owned(), inode))?;
        Ok(self.handle(&state, inode))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let state = self.state.lock();
        let inode = state.inode(name)?;
        Ok(self.handle(&state, inode))
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn Source>> {
        let state = self.state.lock();
        let inode = state.inode(name)?;
        Ok(Box::new(io::Cursor::new(state.inodes[inode].current.clone())))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.inode(from)?;
        state.name_op(NameOp::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.inode(name)?;
        state.name_op(NameOp::Remove(name.to_owned()))
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        let crash = state.step_whole()?;
        let state = &mut *state;
        for op in state.pending.drain(..) {
            apply(&mut state.durable_names, &op);
        }
        if crash { Err(gone()) } else { Ok(()) }
    }
}

#[derive(Debug)]
struct Handle {
    disk: Arc<Disk>,
    inode: usize,
    life: u64,
}

impl Handle {
    fn state(&self) -> io::Result<parking_lot::MutexGuard<'_, State>> {
        let state = self.disk.state.lock();
        if state.life == self.life { Ok(state) } else { Err(gone()) }
    }
}

impl StorageFile for Handle {
    fn append(&self, data: &[u8]) -> io::Result<()> {
        let mut state = self.state()?;
        let crash = state.step()?;
        let fails = matches!(state.fault, Some(Fault::Append | Fault::AppendAndTruncate));
        if state.fault == Some(Fault::Append) {
            state.fault = None;
        }
        let part = if crash || fails { state.random.below(data.len() + 1) } else { data.len() };
        let inode = &mut state.inodes[self.inode];
        inode.current.extend_from_slice(&data[..part]);
        let end = inode.current.len();
        inode.boundaries.push(end);
        if crash {
            Err(gone())
        } else if fails {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state()?;
        let crash = state.step_whole()?;
        if state.fault == Some(Fault::Sync) {
            state.fault = None;
            return Err(io::Error::other("I/O error"));
        }
        state.inodes[self.inode].sync();
        if crash { Err(gone()) } else { Ok(()) }
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.state()?;
        let crash = state.step_whole()?;
        if state.fault == Some(Fault::AppendAndTruncate) {
            state.fault = None;
            return Err(io::Error::other("I/O error"));
        }
        let inode = &mut state.inodes[self.inode];
        let len = usize::try_from(len).unwrap();
        inode.current.truncate(len);
        inode.boundaries.retain(|b| *b <= len);
        inode.truncated |= len < inode.durable.len();
        if crash { Err(gone()) } else { Ok(()) }
    }
}

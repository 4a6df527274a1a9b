//! A page of a list, made of objects that come one after the other in the order of keys: the same
//! page that [`Table::page`](super::table::Table::page) makes of what it holds.

use std::sync::Arc;

use super::filter::Filter;
use super::table::{Object, Page, Window};

/// A page that is being made.
#[derive(Debug)]
pub struct Paging<'a> {
    filter: &'a Filter,
    window: &'a Window,
    page: Page,
    /// It has all its objects; what comes says only whether there is more.
    full: bool,
}

impl<'a> Paging<'a> {
    /// Begins a page as of a revision.
    #[must_use]
    pub fn new(filter: &'a Filter, window: &'a Window, revision: u64) -> Self {
        Self { filter, window, page: Page { revision, ..Page::default() }, full: false }
    }

    /// Takes in the next object in the window and the namespace that is asked for, after which
    /// there are `left` more. Whether the page needs another.
    pub fn take(&mut self, object: Arc<Object>, left: usize) -> bool {
        if self.full {
            let index = self.filter.index.as_deref().filter(|_| self.window.by_index);
            self.page.more = index.is_none_or(|value| *object.index == *value);
            return !self.page.more;
        }
        if !self.filter.matches(&object) {
            return true;
        }
        self.page.objects.push(object);
        self.full = self.page.objects.len() == self.window.limit;
        if self.full && self.filter.is_plain() {
            self.page.more = left > 0;
            self.page.remaining = self.page.more.then_some(left);
            return false;
        }
        // Of one object there is no more.
        !self.full || self.filter.key.is_none()
    }

    /// How many objects it has.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.page.objects.len()
    }

    /// The page.
    #[must_use]
    pub fn end(self) -> Page {
        self.page
    }
}

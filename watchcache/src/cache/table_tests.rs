//! A model: every watch, replayed, is the list at its end.

use proptest::prelude::*;

use super::super::feed::{Found, Told};
use super::super::paging::Paging;
use super::super::selector::LabelSelector;
use super::super::{kinds, wire};
use super::*;

fn object(node: &str, label: &str, revision: u64) -> Stored {
    let pods = kinds::find("", "pods").unwrap();
    let value = wire::tests::stored("p", node, &[("l", label)]);
    let (message, labels) = wire::read(pods, &value).unwrap();
    Stored { message, labels, indexed: pods.field("spec.nodeName"), revision }
}

/// What a client knows.
#[derive(Default)]
struct Client(BTreeMap<Arc<str>, u64>);

impl Client {
    fn see(&mut self, event: &Event, filter: &Filter) {
        match event.told(filter) {
            None => {}
            Some(Told::Added(object)) => {
                assert!(self.0.insert(object.key.clone(), object.revision).is_none());
            }
            Some(Told::Modified(object)) => {
                assert!(self.0.insert(object.key.clone(), object.revision).is_some());
            }
            Some(Told::Deleted(object)) => assert!(self.0.remove(&object.key).is_some()),
        }
    }

    fn agrees(&self, table: &Table, filter: &Filter) {
        let list: Vec<_> =
            table.list(filter).iter().map(|one| (one.key.clone(), one.revision)).collect();
        let known: Vec<_> = self.0.iter().map(|(key, revision)| (key.clone(), *revision)).collect();
        assert_eq!(known, list);
    }
}

fn filters() -> Vec<Filter> {
    let node = |node: &str| Filter { index: Some(node.to_owned()), ..Filter::default() };
    let labels = |text| LabelSelector::parse(text).unwrap();
    vec![
        Filter::default(),
        node("n0"),
        node("n1"),
        Filter { labels: labels("l=x"), ..node("n0") },
        Filter { labels: labels("l!=x"), ..Filter::default() },
        Filter { namespace: Some("a".to_owned()), ..Filter::default() },
        Filter { namespace: Some("a".to_owned()), ..node("n1") },
        Filter { labels: labels("l=x"), namespace: Some("a".to_owned()), ..Filter::default() },
        Filter { key: Some("b/p1".to_owned()), ..Filter::default() },
    ]
}

proptest! {
    #[test]
    fn a_watch_ends_where_the_list_is(
        steps in proptest::collection::vec(
            (0usize..3, 0usize..4, 0usize..3, 0usize..2, any::<bool>(), 1u64..4), 1..120),
        starts in proptest::collection::vec((0usize..9, 0usize..100, any::<bool>()), 1..12),
    ) {
        let (mut table, filters, mut revision) = (Table::new([], 10), filters(), 10);
        let mut watches: Vec<(Filter, Client, Arc<Feed>, u64)> = Vec::new();
        for (number, (namespace, name, node, label, gone, skip)) in steps.iter().enumerate() {
            for (filter, at, resumed) in &starts {
                if *at == number {
                    let filter = filters[*filter].clone();
                    let mut client = Client::default();
                    let after = resumed.then(|| {
                        // A client that listed before, and resumes from there.
                        for object in table.list(&filter) {
                            client.0.insert(object.key.clone(), object.revision);
                        }
                        table.revision()
                    });
                    let start = table.watch(&filter, after).unwrap();
                    for object in &start.objects {
                        client.0.insert(object.key.clone(), object.revision);
                    }
                    client.agrees(&table, &filter);
                    watches.push((filter, client, start.feed, start.revision));
                }
            }
            revision += skip;
            let key = format!("{}/p{name}", ["a", "b", "ab"][*namespace]);
            let node = ["", "n0", "n1"][*node];
            let after = (!gone).then(|| object(node, ["x", "y"][*label], revision));
            table.apply(&key, after, revision);
            table.reach(revision);
        }
        for (filter, client, feed, cursor) in &mut watches {
            loop {
                let Found::Events(events, reached) = feed.read(*cursor, 3) else { panic!() };
                for event in &events {
                    client.see(event, filter);
                }
                *cursor = reached;
                if events.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(*cursor, revision);
            client.agrees(&table, filter);
        }
    }
}

#[test]
fn watches_begin_where_events_are_kept() {
    let mut table = Table::new([("a/p".into(), object("n", "x", 5))], 10);
    let all = Filter::default();
    assert_eq!(table.watch(&all, Some(9)).unwrap_err(), OutOfReach::TooOld);
    assert_eq!(table.watch(&all, Some(11)).unwrap_err(), OutOfReach::TooNew);
    table.reach(11);
    let start = table.watch(&all, Some(11)).unwrap();
    assert!(start.objects.is_empty() && start.events.is_empty());
    table.close();
    assert!(matches!(start.feed.read(11, 1), Found::Gone));
}

#[test]
fn a_slow_reader_is_left_behind_and_others_are_not() {
    let mut table = Table::new([], 1);
    let node = Filter { index: Some("n".to_owned()), ..Filter::default() };
    let slow = table.watch(&Filter::default(), None).unwrap();
    let quiet = table.watch(&node, None).unwrap();
    for revision in 2..20_000 {
        table.apply("a/p", Some(object("other", "x", revision)), revision);
        table.reach(revision);
    }
    assert!(matches!(slow.feed.read(slow.revision, 1), Found::Gone));
    let Found::Events(events, reached) = quiet.feed.read(quiet.revision, 1) else { panic!() };
    assert!(events.is_empty());
    assert_eq!(reached, 19_999);
}

#[test]
fn a_transaction_is_not_parted() {
    let mut table = Table::new([], 1);
    let start = table.watch(&Filter::default(), None).unwrap();
    for name in ["a/1", "a/2", "a/3"] {
        table.apply(name, Some(object("", "x", 2)), 2);
    }
    let Found::Events(events, reached) = start.feed.read(1, 1) else { panic!() };
    assert_eq!((events.len(), reached), (0, 1), "not before it is complete");
    table.reach(2);
    let Found::Events(events, reached) = start.feed.read(1, 1) else { panic!() };
    assert_eq!((events.len(), reached), (3, 2));
}

proptest! {
    /// Pages of any size, begun at any time, are the list as it was at their revision.
    #[test]
    fn pages_are_of_one_revision(
        steps in proptest::collection::vec(
            (0usize..3, 0usize..6, 0usize..3, 0usize..2, any::<bool>()), 1..80),
        filter in 0usize..9,
        limit in 1usize..6,
    ) {
        let (mut table, filter, mut revision) = (Table::new([], 10), &filters()[filter], 10);
        let mut seen = Vec::new();
        for (namespace, name, node, label, gone) in steps {
            revision += 2;
            let key = format!("{}/p{name}", ["a", "b", "ab"][namespace]);
            let after = (!gone).then(|| object(["", "n0", "n1"][node], ["x", "y"][label], revision));
            table.apply(&key, after, revision);
            table.reach(revision);
            // What does not depend on an index.
            let all = table.objects.values().filter(|object| filter.matches(object));
            let all: BTreeMap<_, _> = all.map(|one| (one.key.clone(), one.revision)).collect();
            seen.push((revision, all.into_iter().collect::<Vec<_>>()));
        }
        for (revision, expected) in seen {
            let names = |page: &Page| {
                page.objects.iter().map(|one| (one.key.clone(), one.revision)).collect::<Vec<_>>()
            };
            let whole = Window { at: Some(revision), ..Window::default() };
            prop_assert_eq!(names(&table.page(filter, &whole).unwrap()), expected.clone());
            let (mut read, mut window) = (Vec::new(), Window { limit, ..whole });
            loop {
                let page = table.page(filter, &window).unwrap();
                prop_assert!(page.objects.len() <= limit);
                read.extend(names(&page));
                if let Some(left) = page.remaining {
                    prop_assert_eq!(read.len() + left, expected.len());
                }
                let Some(last) = page.objects.last().filter(|_| page.more) else { break };
                window.from = format!("{}\0", last.key);
            }
            prop_assert_eq!(read, expected);
        }
        let now = Window { at: Some(revision), ..Window::default() };
        let names = |objects: Vec<Arc<Object>>| {
            objects.iter().map(|one| one.key.clone()).collect::<Vec<_>>()
        };
        prop_assert_eq!(names(table.list(filter)), names(table.page(filter, &now).unwrap().objects));
    }
}

#[test]
fn what_takes_a_look_at_many_objects_is_expensive() {
    let many = CHEAP + 1;
    let object = |at: usize| (format!("a/p{at:05}").into(), object(&format!("n{at}"), "x", 1));
    let table = Table::new((0..many).map(object), 1);
    let few = Table::new((1..many).map(object), 1);
    let limit = |limit| Window { limit, ..Window::default() };
    let labels = |text| Filter { labels: LabelSelector::parse(text).unwrap(), ..Filter::default() };
    let namespace = |name: &str| Filter { namespace: Some(name.to_owned()), ..Filter::default() };
    let node = Filter { index: Some("n7".to_owned()), ..Filter::default() };
    let key = Filter { key: Some("a/p00001".to_owned()), ..Filter::default() };
    for (filter, window, expected) in [
        (Filter::default(), limit(0), true),
        (Filter::default(), limit(500), false),
        (Filter::default(), Window { at: Some(1), ..limit(0) }, true),
        (labels("l=x"), limit(0), true),
        (labels("l=y"), limit(0), false),
        (labels("l!=x"), limit(5), true),
        (namespace("a"), limit(0), true),
        (namespace("b"), limit(0), false),
        (node, limit(0), false),
        (key, limit(0), false),
    ] {
        assert_eq!(table.is_expensive(&filter, &window), expected, "{filter:?} {window:?}");
        assert!(!few.is_expensive(&filter, &window));
    }
}

/// What one who asks for some objects is told.
fn told(events: &[Arc<Event>], filter: &Filter) -> Vec<(u64, &'static str, String, u64)> {
    let told = events.iter().filter_map(|event| {
        let told = event.told(filter)?;
        let (change, object) = told.parts();
        Some((event.revision, change.name(), object.key.to_string(), object.revision))
    });
    told.collect()
}

proptest! {
    /// Tables of some parts hold each its own objects, and hear of all that happens to any.
    #[test]
    fn parts_hear_what_the_whole_does(
        steps in proptest::collection::vec(
            (0usize..3, 0usize..4, 0usize..4, 0usize..2, any::<bool>()), 1..100),
    ) {
        let (filters, mut revision) = (filters(), 10);
        let mut tables = vec![Table::new([], revision)];
        for part in 0..3 {
            tables.push(Table::of(Parts::new(3, &[part]).unwrap(), [], revision));
        }
        let begin = |table: &mut Table| {
            let watch = |filter| table.watch(filter, Some(10)).unwrap().feed;
            filters.iter().map(watch).collect::<Vec<_>>()
        };
        let feeds: Vec<_> = tables.iter_mut().map(begin).collect();
        let mut known: BTreeMap<String, (usize, usize, u64)> = BTreeMap::new();
        for (namespace, name, node, label, gone) in steps {
            revision += 1;
            let key = format!("{}/p{name}", ["a", "b", "ab"][namespace]);
            let made = |(node, label, revision): (usize, usize, u64)| {
                object(["", "n0", "n1", "n2"][node], ["x", "y"][label], revision)
            };
            let now = (!gone).then_some((node, label, revision));
            let before = known.get(&key).copied();
            for table in &mut tables {
                table.apply_to(&key, before.map(made), now.map(made), revision);
                table.reach(revision);
            }
            match now {
                Some(now) => known.insert(key, now),
                None => known.remove(&key),
            };
        }
        let (whole, parts) = tables.split_first_mut().unwrap();
        prop_assert_eq!(whole.len(), parts.iter().map(Table::len).sum::<usize>());
        for (place, filter) in filters.iter().enumerate() {
            let expected = whole.watch(filter, Some(10)).unwrap();
            for (part, table) in parts.iter_mut().enumerate() {
                let seen = table.watch(filter, Some(10)).unwrap();
                prop_assert_eq!(told(&seen.events, filter), told(&expected.events, filter));
                let Found::Events(events, _) = feeds[part + 1][place].read(10, usize::MAX) else {
                    panic!()
                };
                prop_assert_eq!(told(&events, filter), told(&expected.events, filter));
                // Its own, with their indexes.
                let mine = |object: &&Arc<Object>| {
                    table.parts.holds(table.parts.of(&object.index))
                };
                let names = |one: &Arc<Object>| (one.key.clone(), one.revision);
                let all = whole.list(filter);
                let expected: Vec<_> = all.iter().filter(mine).map(names).collect();
                prop_assert_eq!(table.list(filter).iter().map(names).collect::<Vec<_>>(), expected);
            }
        }
        prop_assert!(parts.iter().all(|table| table.indexes.labels.len() <= 2));
    }

    /// A page made of what comes one by one is the page that the table makes.
    #[test]
    fn a_page_is_made_of_what_comes(
        objects in proptest::collection::btree_map((0usize..3, 0usize..9), (0usize..3, 0usize..2), 0..20),
        filter in 0usize..9,
        limit in 0usize..5,
        from in 0usize..4,
        by_index in any::<bool>(),
    ) {
        let objects = objects.iter().map(|((namespace, name), (node, label))| {
            let key = format!("{}/p{name}", ["a", "b", "ab"][*namespace]);
            (key.into(), object(["", "n0", "n1"][*node], ["x", "y"][*label], 5))
        });
        let (table, filter) = (Table::new(objects, 10), &filters()[filter]);
        // Pages of one object go on to kube-apiserver.
        let paged = filter.key.is_none();
        let from = ["", "a/p3", "ab/p1", "c"][if paged { from } else { 0 }].to_owned();
        let window = Window { from, limit: if paged { limit } else { 0 }, at: None, by_index };
        let in_range: Vec<_> = table
            .from(filter, &window.from)
            .filter(|key| filter.key.as_deref().is_none_or(|one| one == &***key))
            .collect();
        let mut paging = Paging::new(filter, &window, 10);
        for (place, key) in in_range.iter().enumerate() {
            let object = table.objects[&***key].clone();
            if !paging.take(object, in_range.len() - place - 1) {
                break;
            }
        }
        let (seen, expected) = (paging.end(), table.page(filter, &window).unwrap());
        let names = |page: &Page| page.objects.iter().map(|one| one.key.clone()).collect::<Vec<_>>();
        prop_assert_eq!(names(&seen), names(&expected));
        let said = |page: &Page| (page.revision, page.more, page.remaining);
        prop_assert_eq!(said(&seen), said(&expected));
    }
}

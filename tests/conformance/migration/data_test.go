package migration

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// fill makes keys of many sizes, some updated, some deleted, some on leases, and compacts. With a
// seed it does so the same each time.
func fill(t *testing.T, s *server, keys int) {
	t.Helper()
	ctx := deadline(t)
	random := rand.New(rand.NewPCG(1, 2))
	var leases []clientv3.LeaseID
	for _, ttl := range []int64{3600, 7200, 100000} {
		lease, err := s.client.Grant(ctx, ttl)
		if err != nil {
			t.Fatal(err)
		}
		leases = append(leases, lease.ID)
	}
	for from := 0; from < keys; from += 100 {
		var ops []clientv3.Op
		for i := from; i < min(from+100, keys); i++ {
			value := bytes.Repeat([]byte{byte(i)}, random.IntN(600))
			var options []clientv3.OpOption
			if i%10 == 0 {
				options = append(options, clientv3.WithLease(leases[i/10%3]))
			}
			ops = append(ops, clientv3.OpPut(name(i), string(value), options...))
		}
		if _, err := s.client.Txn(ctx).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	change(t, s, random, keys, keys/20)
	now, err := s.client.Get(ctx, "absent")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Compact(ctx, now.Header.Revision-int64(keys/40)); err != nil {
		t.Fatal(err)
	}
}

func name(i int) string { return fmt.Sprintf("/registry/things/%06d", i) }

// change puts and deletes keys, one or a few at a revision.
func change(t *testing.T, s *server, random *rand.Rand, keys, times int) {
	t.Helper()
	ctx := deadline(t)
	for range times {
		var err error
		i := random.IntN(keys)
		switch random.IntN(6) {
		case 0:
			_, err = s.client.Delete(ctx, name(i))
		case 1:
			_, err = s.client.Txn(ctx).Then(
				clientv3.OpDelete(name(i)), clientv3.OpPut(name(i+keys), "moved"),
			).Commit()
		default:
			_, err = s.client.Put(ctx, name(i), fmt.Sprintf("changed %d", random.IntN(1000)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// content is what a server holds: every key with its revisions, and every lease.
type content struct {
	revision int64
	keys     []*mvccpb.KeyValue
	leases   map[clientv3.LeaseID]int64
}

func read(t *testing.T, s *server) content {
	t.Helper()
	ctx := deadline(t)
	all, err := s.client.Get(ctx, "\x00", clientv3.WithFromKey())
	if err != nil {
		t.Fatal(err)
	}
	c := content{revision: all.Header.Revision, keys: all.Kvs, leases: map[clientv3.LeaseID]int64{}}
	leases, err := s.client.Leases(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, lease := range leases.Leases {
		view, err := s.client.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
		if err != nil {
			t.Fatal(err)
		}
		c.leases[lease.ID] = view.GrantedTTL
		attached := 0
		for _, kv := range c.keys {
			if clientv3.LeaseID(kv.Lease) == lease.ID {
				attached++
			}
		}
		if attached != len(view.Keys) {
			t.Errorf("lease %x has %d keys, and %d keys have it", lease.ID, len(view.Keys), attached)
		}
	}
	return c
}

// same compares keys by what a client can write and, if `exact`, by their revisions too.
func same(t *testing.T, want, got content, exact bool) {
	t.Helper()
	if len(want.keys) != len(got.keys) {
		t.Fatalf("%d keys, and %d are wanted", len(got.keys), len(want.keys))
	}
	for i, kv := range want.keys {
		other := got.keys[i]
		equal := bytes.Equal(kv.Key, other.Key) && bytes.Equal(kv.Value, other.Value) && kv.Lease == other.Lease
		if exact {
			equal = equal && kv.CreateRevision == other.CreateRevision &&
				kv.ModRevision == other.ModRevision && kv.Version == other.Version
		}
		if !equal {
			t.Fatalf("key %d:\n got %v\nwant %v", i, other, kv)
		}
	}
	if exact && want.revision != got.revision {
		t.Errorf("revision %d, and %d is wanted", got.revision, want.revision)
	}
	for id, ttl := range want.leases {
		if got.leases[id] != ttl {
			t.Errorf("lease %x for %d s, and %d s are wanted", id, got.leases[id], ttl)
		}
	}
	if len(want.leases) != len(got.leases) {
		t.Errorf("%d leases, and %d are wanted", len(got.leases), len(want.leases))
	}
}

// history is what a watch tells from a revision on, up to the newest.
func history(t *testing.T, s *server, from, to int64) []*clientv3.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var events []*clientv3.Event
	for answer := range s.client.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(from)) {
		if err := answer.Err(); err != nil {
			t.Fatalf("watch from %d: %v", from, err)
		}
		events = append(events, answer.Events...)
		if n := len(events); n > 0 && events[n-1].Kv.ModRevision >= to {
			return events
		}
	}
	t.Fatalf("watch from %d ended before %d", from, to)
	return nil
}

func sameHistory(t *testing.T, want, got []*clientv3.Event) {
	t.Helper()
	equal := func(a, b *clientv3.Event) bool {
		return a.Type == b.Type && bytes.Equal(a.Kv.Key, b.Kv.Key) && bytes.Equal(a.Kv.Value, b.Kv.Value) &&
			a.Kv.ModRevision == b.Kv.ModRevision && a.Kv.CreateRevision == b.Kv.CreateRevision &&
			a.Kv.Version == b.Kv.Version && a.Kv.Lease == b.Kv.Lease
	}
	if !slices.EqualFunc(want, got, equal) {
		t.Errorf("history differs: %d events, and %d are wanted", len(got), len(want))
	}
}

// load changes keys until it is told to stop.
func load(t *testing.T, s *server, keys int) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	client := s.client
	go func() {
		defer close(done)
		random := rand.New(rand.NewPCG(3, 4))
		for ctx.Err() == nil {
			if _, err := client.Put(ctx, name(random.IntN(keys)), "under load"); err != nil && ctx.Err() == nil {
				t.Errorf("load: %v", err)
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

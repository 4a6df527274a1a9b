package migration

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const keys = 20000

// TestImport copies an etcd under load, kills the import again and again, and compares at the end.
func TestImport(t *testing.T) {
	store := program(t, "STORE_BINARY")
	etcd := startEtcd(t, t.TempDir())
	fill(t, etcd, keys)
	dir := filepath.Join(t.TempDir(), "data")
	args := []string{"import", "--data-dir=" + dir, "--endpoints=" + etcd.url}

	stop := load(t, etcd, keys)
	random := rand.New(rand.NewPCG(5, 6))
	killAgainAndAgain(t, random, 25, "imported up to revision", store, args...)
	// What is not finished is not served.
	_, _ = runAndKill(t, func(string) bool { return true }, store, args...)
	mustRun(t, store, args...)
	stop()
	change(t, etcd, random, keys, 200)
	lease, err := etcd.client.Grant(deadline(t), 4000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := etcd.client.Put(deadline(t), "/late", "leased", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	output := mustRun(t, store, args...)
	if !strings.Contains(output, "verified: source and data directory both have") {
		t.Errorf("not verified:\n%s", output)
	}
	want := read(t, etcd)
	copied := startStore(t, dir)
	same(t, want, read(t, copied), true)
	// It is a store of its own now, and goes on above the source.
	put, err := copied.client.Put(deadline(t), "/own", "v")
	if err != nil || put.Header.Revision != want.revision+1 {
		t.Errorf("the first put of the copy: %v, %v", put, err)
	}
	copied.stop()
	if output, err := run(t, store, args...); err == nil || !strings.Contains(output, "neither empty nor an import") {
		t.Errorf("an import into a store that was served: %v\n%s", err, output)
	}
}

// killAgainAndAgain runs a program so many times, and kills it at any moment of the time that it
// takes. What ends by itself must say that it is done.
func killAgainAndAgain(t *testing.T, random *rand.Rand, times int, done, binary string, args ...string) {
	t.Helper()
	takes, kills := 500*time.Millisecond, 0
	for range times {
		began := time.Now()
		after := time.Duration(random.Int64N(int64(takes)))
		killed, output := runAndKill(t, func(string) bool { return time.Since(began) > after }, binary, args...)
		if killed {
			kills++
			continue
		}
		if !strings.Contains(output, done) {
			t.Fatalf("ended by itself:\n%s", output)
		}
		takes = time.Since(began)
	}
	t.Logf("%d of %d killed", kills, times)
	if kills < 3 {
		t.Errorf("only %d of %d were killed", kills, times)
	}
}

// TestUnfinishedImportIsNotServed kills an import in the middle and starts the store on what is there.
func TestUnfinishedImportIsNotServed(t *testing.T) {
	store := program(t, "STORE_BINARY")
	etcd := startEtcd(t, t.TempDir())
	fill(t, etcd, keys)
	dir := filepath.Join(t.TempDir(), "data")
	args := []string{"import", "--data-dir=" + dir, "--endpoints=" + etcd.url}
	killed, output := runAndKill(t, func(output string) bool {
		return strings.Contains(output, "log opened")
	}, store, args...)
	if !killed {
		t.Fatalf("the import was quicker than the test:\n%s", output)
	}
	url := freeURL(t)
	output, err := run(t, store, "--data-dir="+dir, "--listen-client-urls="+url)
	if err == nil || !strings.Contains(output, "import that is not finished") {
		t.Errorf("a store on half an import: %v\n%s", err, output)
	}
	// Another cluster's data doesn't mix with it.
	other := startEtcd(t, t.TempDir(), "--initial-cluster-token=other")
	output, err = run(t, store, "import", "--data-dir="+dir, "--endpoints="+other.url)
	if err == nil || !strings.Contains(output, "holds an import from cluster") {
		t.Errorf("an import from another cluster: %v\n%s", err, output)
	}
	// A compaction at the source while nobody looked: the copy begins anew.
	now, err := etcd.client.Put(deadline(t), "/later", "v")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := etcd.client.Compact(deadline(t), now.Header.Revision); err != nil {
		t.Fatal(err)
	}
	mustRun(t, store, args...)
	same(t, read(t, etcd), read(t, startStore(t, dir)), true)
}

// TestExport writes a store to an etcd, killed on the way, and once more after changes.
func TestExport(t *testing.T) {
	binary := program(t, "STORE_BINARY")
	store := startStore(t, t.TempDir(), "--durability=buffered")
	etcd := startEtcd(t, t.TempDir())
	fill(t, store, keys)
	args := []string{"export", "--endpoints=" + store.url, "--target-endpoints=" + etcd.url}
	random := rand.New(rand.NewPCG(7, 8))
	killAgainAndAgain(t, random, 15, "exported revision", binary, args...)
	mustRun(t, binary, args...)
	change(t, store, random, keys, 300)
	output := mustRun(t, binary, append(args, "--final")...)
	if !strings.Contains(output, "verified: source and target both have") {
		t.Errorf("not verified:\n%s", output)
	}
	want, got := read(t, store), read(t, etcd)
	same(t, want, got, false)
	if got.revision < want.revision {
		t.Errorf("the target is at %d, below %d", got.revision, want.revision)
	}
	for i, kv := range got.keys {
		if kv.ModRevision < want.keys[i].ModRevision {
			t.Fatalf("%s went back from revision %d to %d", kv.Key, want.keys[i].ModRevision, kv.ModRevision)
		}
	}
	// Without its mark the target is somebody's own.
	if output, err := run(t, binary, args...); err == nil || !strings.Contains(output, "keys that no export wrote") {
		t.Errorf("an export to an etcd in use: %v\n%s", err, output)
	}
}

// TestSnapshot saves a snapshot under load by etcdctl, and starts an etcd on it.
func TestSnapshot(t *testing.T) {
	etcdctl, etcdutl := program(t, "CTL_BINARY"), program(t, "ETCDUTL_BINARY")
	store := startStore(t, t.TempDir(), "--durability=buffered")
	save := func(file string) { mustRun(t, etcdctl, "--endpoints="+store.url, "snapshot", "save", file) }
	restore := func(file string) *server {
		dir := filepath.Join(t.TempDir(), "restored")
		mustRun(t, etcdutl, "snapshot", "restore", file, "--data-dir="+dir)
		return startEtcd(t, dir)
	}

	// Empty.
	file := filepath.Join(t.TempDir(), "empty.db")
	save(file)
	if empty := read(t, restore(file)); empty.revision != 1 || len(empty.keys) != 0 {
		t.Errorf("an empty store became %v", empty)
	}

	fill(t, store, keys)
	large := strings.Repeat("x", 1<<20)
	if _, err := store.client.Put(deadline(t), "/large", large); err != nil {
		t.Fatal(err)
	}
	want := read(t, store)
	status, err := store.client.Status(deadline(t), store.url)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "full.db")
	save(file)
	var report struct {
		Revision int64  `json:"revision"`
		TotalKey int    `json:"totalKey"`
		Version  string `json:"version"`
	}
	text := mustRun(t, etcdutl, "snapshot", "status", file, "--write-out=json")
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if report.Revision != want.revision || report.TotalKey != len(want.keys) || report.Version != "3.6.0" {
		t.Errorf("etcdutl finds %+v; the store has %d keys at %d", report, len(want.keys), want.revision)
	}
	etcd := restore(file)
	same(t, want, read(t, etcd), true)
	// The history since the compaction is there too, and what was before is refused.
	compacted := firstRevision(t, store, status.Header.Revision)
	sameHistory(t, history(t, store, compacted+1, want.revision), history(t, etcd, compacted+1, want.revision))
	if other := firstRevision(t, etcd, want.revision); other != compacted {
		t.Errorf("etcd is compacted at %d, the store at %d", other, compacted)
	}

	// Under load: some revision, whole.
	stop := load(t, store, keys)
	file = filepath.Join(t.TempDir(), "load.db")
	save(file)
	stop()
	etcd = restore(file)
	got := read(t, etcd)
	at, err := store.client.Get(deadline(t), "\x00", clientv3.WithFromKey(), clientv3.WithRev(got.revision))
	if err != nil {
		t.Fatal(err)
	}
	same(t, content{revision: got.revision, keys: at.Kvs, leases: want.leases}, got, true)
	// And the way back: an import of it is the same again.
	dir := filepath.Join(t.TempDir(), "data")
	mustRun(t, program(t, "STORE_BINARY"), "import", "--data-dir="+dir, "--endpoints="+etcd.url)
	same(t, got, read(t, startStore(t, dir)), true)
}

// firstRevision is the compacted revision: the least that can be read.
func firstRevision(t *testing.T, s *server, newest int64) int64 {
	t.Helper()
	low, high := int64(1), newest
	for low < high {
		middle := (low + high) / 2
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		_, err := s.client.Get(ctx, "absent", clientv3.WithRev(middle))
		cancel()
		if err == nil {
			high = middle
		} else {
			low = middle + 1
		}
	}
	return low
}

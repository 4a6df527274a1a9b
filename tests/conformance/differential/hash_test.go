package differential

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/status"
)

// hash gives HashKV's answer in a form that two servers can share.
func (s *server) hash(t *testing.T, revision int64) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	r, err := pb.NewMaintenanceClient(s.conn).HashKV(ctx, &pb.HashKVRequest{Revision: revision})
	if err != nil {
		return fmt.Sprintf("%s: %s", status.Code(err), status.Convert(err).Message())
	}
	strip(r.Header)
	return r.String()
}

// change is a request that keeps numbers within revisions known: after a compaction the store numbers
// what is left of a transaction anew, so several puts at once are of keys that are not compacted.
func (g *generator) change(step int, compacts bool) any {
	key := []byte(fmt.Sprintf("key-%02d", g.IntN(30)))
	put := func(key []byte) *pb.RequestOp {
		put := &pb.PutRequest{Key: key, Value: []byte(fmt.Sprint(step))}
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}}
	}
	switch {
	case g.one(4):
		return &pb.DeleteRangeRequest{Key: key}
	case !compacts && g.one(5):
		return &pb.DeleteRangeRequest{Key: key, RangeEnd: []byte("key-3")}
	case !compacts && g.one(4):
		return &pb.TxnRequest{Success: []*pb.RequestOp{put([]byte("z")), put(key), put([]byte("a"))}}
	case compacts && g.one(20):
		// Nothing is left.
		return &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}
	default:
		return &pb.PutRequest{Key: key, Value: []byte(strings.Repeat("v", g.IntN(50)))}
	}
}

// TestSameHashes compares HashKV at all revisions, also behind compactions and restarts.
func TestSameHashes(t *testing.T) {
	seed := number(t, "SEED", uint64(time.Now().UnixNano()))
	for _, compacts := range []bool{false, true} {
		t.Run(fmt.Sprintf("seed=%d,compacts=%v", seed, compacts), func(t *testing.T) {
			etcd, store := both(t)
			g := &generator{Rand: rand.New(rand.NewPCG(seed, 1)), revision: 1}
			// Of these etcd kept a checksum from when it compacted.
			kept := map[int64]bool{}
			compared := 0
			compare := func(revision int64) {
				t.Helper()
				if kept[revision] {
					return
				}
				compared++
				if want, got := etcd.hash(t, revision), store.hash(t, revision); want != got {
					t.Errorf("revision %d of %d, compacted %d:\n etcd: %s\nstore: %s",
						revision, g.revision, g.compacted, want, got)
				}
			}
			for step := range 600 {
				compareAnswers(t, g, step, etcd, store, g.change(step, compacts))
				if compacts && g.one(40) && g.revision > g.compacted {
					at := g.compacted + 1 + g.Int64N(g.revision-g.compacted)
					compareAnswers(t, g, step, etcd, store, &pb.CompactionRequest{Revision: at, Physical: true})
					kept[at] = true
				}
				if g.one(150) {
					restart(t, etcd, store, syscall.SIGKILL)
					clear(kept)
				}
				compare(0)
				if g.one(10) {
					compare(g.Int64N(g.revision + 3))
				}
				if t.Failed() {
					return
				}
			}
			for revision := int64(-2); revision < g.revision+2; revision++ {
				compare(revision)
			}
			t.Logf("%d checksums, the last of revision %d", compared, g.revision)
		})
	}
}

package differential

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/gogo/protobuf/proto"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/status"
)

// answer is what came back, in a form that two servers can share.
type answer struct {
	message proto.Message
	err     string
}

func (a answer) String() string {
	if a.err != "" {
		return a.err
	}
	return fmt.Sprintf("%T %v", a.message, a.message)
}

func (s *server) ask(t *testing.T, request any) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var message proto.Message
	var header *pb.ResponseHeader
	var err error
	switch request := request.(type) {
	case *pb.RangeRequest:
		var r *pb.RangeResponse
		r, err = s.kv.Range(ctx, request)
		message, header = r, r.GetHeader()
		orderEquals(request, r)
	case *pb.PutRequest:
		var r *pb.PutResponse
		r, err = s.kv.Put(ctx, request)
		message, header = r, r.GetHeader()
	case *pb.DeleteRangeRequest:
		var r *pb.DeleteRangeResponse
		r, err = s.kv.DeleteRange(ctx, request)
		message, header = r, r.GetHeader()
	case *pb.TxnRequest:
		var r *pb.TxnResponse
		r, err = s.kv.Txn(ctx, request)
		message, header = r, r.GetHeader()
		orderEqualsIn(request, r)
	case *pb.CompactionRequest:
		var r *pb.CompactionResponse
		r, err = s.kv.Compact(ctx, request)
		message, header = r, r.GetHeader()
	case *pb.LeaseGrantRequest:
		var r *pb.LeaseGrantResponse
		r, err = s.lease.LeaseGrant(ctx, request)
		message, header = r, r.GetHeader()
	case *pb.LeaseRevokeRequest:
		var r *pb.LeaseRevokeResponse
		r, err = s.lease.LeaseRevoke(ctx, request)
		message, header = r, r.GetHeader()
	case *pb.LeaseTimeToLiveRequest:
		var r *pb.LeaseTimeToLiveResponse
		r, err = s.lease.LeaseTimeToLive(ctx, request)
		message, header = r, r.GetHeader()
		if r != nil {
			// A clock's matter, and keys in no order.
			r.TTL = min(r.TTL, 0)
			slices.SortFunc(r.Keys, bytes.Compare)
		}
	case *pb.LeaseLeasesRequest:
		var r *pb.LeaseLeasesResponse
		r, err = s.lease.LeaseLeases(ctx, request)
		message, header = r, r.GetHeader()
		if r != nil {
			slices.SortFunc(r.Leases, func(a, b *pb.LeaseStatus) int { return cmp.Compare(a.ID, b.ID) })
		}
	default:
		t.Fatalf("no such request: %T", request)
	}
	if err != nil {
		return answer{err: fmt.Sprintf("%s: %s", status.Code(err), status.Convert(err).Message())}
	}
	strip(header)
	return answer{message: message}
}

// orderEquals brings keys that are equal by the order asked for into the order of keys: etcd's sort
// is not stable.
func orderEquals(request *pb.RangeRequest, response *pb.RangeResponse) {
	if request == nil || response == nil || request.SortTarget == pb.RangeRequest_KEY {
		return
	}
	equal := func(a, b *mvccpb.KeyValue) bool {
		switch request.SortTarget {
		case pb.RangeRequest_VERSION:
			return a.Version == b.Version
		case pb.RangeRequest_CREATE:
			return a.CreateRevision == b.CreateRevision
		case pb.RangeRequest_MOD:
			return a.ModRevision == b.ModRevision
		default:
			return bytes.Equal(a.Value, b.Value)
		}
	}
	byKey := func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) }
	for rest := response.Kvs; len(rest) > 0; {
		n := 1
		for n < len(rest) && equal(rest[0], rest[n]) {
			n++
		}
		slices.SortFunc(rest[:n], byKey)
		rest = rest[n:]
	}
}

func orderEqualsIn(request *pb.TxnRequest, response *pb.TxnResponse) {
	if response == nil {
		return
	}
	operations := request.Failure
	if response.Succeeded {
		operations = request.Success
	}
	for i, r := range response.Responses {
		if i >= len(operations) {
			return
		}
		orderEquals(operations[i].GetRequestRange(), r.GetResponseRange())
		if nested := operations[i].GetRequestTxn(); nested != nil {
			orderEqualsIn(nested, r.GetResponseTxn())
		}
	}
}

// strip takes away what names the server, not the data.
func strip(header *pb.ResponseHeader) {
	if header != nil {
		header.ClusterId, header.MemberId, header.RaftTerm = 0, 0, 0
	}
}

var long = regexp.MustCompile("x{20,}")

func shorten(text string) string { return long.ReplaceAllString(text, "x…x") }

// history is what a watch tells: its events in one row, or that it was cancelled.
type history struct {
	events    []*mvccpb.Event
	cancelled bool
	compacted int64
	reason    string
}

// watch collects events up to the one of the sentinel's key at the revision.
func (s *server) watch(t *testing.T, request *pb.WatchCreateRequest, last int64) history {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	stream, err := s.watches.Watch(ctx)
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	if err := stream.Send(&pb.WatchRequest{
		RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: request},
	}); err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	var h history
	for {
		r, err := stream.Recv()
		if err != nil {
			t.Fatalf("%s: watch %v after %d events: %v", s.name, request, len(h.events), err)
		}
		if r.Canceled {
			h.cancelled, h.compacted, h.reason = true, r.CompactRevision, r.CancelReason
			return h
		}
		h.events = append(h.events, r.Events...)
		if n := len(h.events); n > 0 && h.events[n-1].Kv.ModRevision >= last && !r.Fragment {
			return h
		}
	}
}

func (g *generator) watchRequest() *pb.WatchCreateRequest {
	// Open to the end, so that the sentinel is in it.
	r := &pb.WatchCreateRequest{Key: g.key(), RangeEnd: []byte{0}, PrevKv: g.one(2)}
	r.StartRevision = max(1, g.revision-int64(g.IntN(100)))
	if g.one(4) {
		r.StartRevision = max(1, g.compacted+int64(g.IntN(3))-1)
	}
	// Not above the sentinel's put.
	r.StartRevision = min(r.StartRevision, g.revision-1)
	switch g.IntN(6) {
	case 0:
		r.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}
	case 1:
		r.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}
	}
	r.Fragment = g.one(3)
	return r
}

// TestSameAnswers gives both the same requests, restarts both (and kills the store) now and then, and compares
// every answer, error text and watched history.
func TestSameAnswers(t *testing.T) {
	first := number(t, "SEED", uint64(time.Now().UnixNano()))
	for seed := first; seed < first+number(t, "SEEDS", 4); seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			etcd, store := both(t)
			g := &generator{Rand: rand.New(rand.NewPCG(seed, 0)), revision: 1}
			for step := range int(number(t, "STEPS", 3000)) {
				switch {
				case g.one(150):
					compareWatches(t, g, etcd, store)
				case g.one(1000):
					signal := []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM}[g.IntN(2)]
					g.last = append(g.last, fmt.Sprintf("restart by %s", signal))
					restart(t, etcd, store, signal)
				default:
					compareAnswers(t, g, step, etcd, store, g.request())
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}

func compareAnswers(t *testing.T, g *generator, step int, etcd, store *server, request any) {
	t.Helper()
	want, got := etcd.ask(t, request), store.ask(t, request)
	g.last = append(g.last[max(0, len(g.last)-3):], fmt.Sprintf("%T %v\n    gives %v", request, request, want))
	same := want.err == got.err && (want.err != "" || proto.Equal(want.message, got.message))
	if !same {
		for _, last := range g.last {
			t.Log(shorten(last))
		}
		t.Errorf("step %d, revision %d, compacted %d:\n etcd: %v\nstore: %v",
			step, g.revision, g.compacted, shorten(want.String()), shorten(got.String()))
	}
	if header, ok := want.message.(interface{ GetHeader() *pb.ResponseHeader }); ok && want.err == "" {
		g.revision = max(g.revision, header.GetHeader().GetRevision())
	}
	if compaction, ok := request.(*pb.CompactionRequest); ok && want.err == "" {
		g.compacted = compaction.Revision
	}
}

func compareWatches(t *testing.T, g *generator, etcd, store *server) {
	t.Helper()
	sentinel := []byte("zzz")
	for _, request := range []any{
		&pb.PutRequest{Key: sentinel}, &pb.DeleteRangeRequest{Key: sentinel},
	} {
		want, got := etcd.ask(t, request), store.ask(t, request)
		if want.err != "" || got.err != "" {
			t.Fatalf("sentinel: %v, %v", want, got)
		}
		g.revision++
	}
	g.last = append(g.last, "watches")
	for range 5 {
		request := g.watchRequest()
		last := g.revision
		if slices.Contains(request.Filters, pb.WatchCreateRequest_NODELETE) {
			last--
		}
		want, got := etcd.watch(t, request, last), store.watch(t, request, last)
		if want.cancelled != got.cancelled || want.compacted != got.compacted || want.reason != got.reason {
			t.Errorf("watch %v: etcd cancelled %v at %d (%s), store %v at %d (%s)", request,
				want.cancelled, want.compacted, want.reason, got.cancelled, got.compacted, got.reason)
			continue
		}
		if !slices.EqualFunc(want.events, got.events, func(a, b *mvccpb.Event) bool { return proto.Equal(a, b) }) {
			t.Errorf("watch %v, compacted %d:\n etcd: %v\nstore: %v", request, g.compacted, want.events, got.events)
		}
	}
}

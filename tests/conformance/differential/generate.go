// Package differential gives the same requests to etcd and to the store and compares the answers.
package differential

import (
	"bytes"
	"fmt"
	"math/rand/v2"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// generator makes requests over a few keys and leases, so that they meet each other often.
type generator struct {
	*rand.Rand
	// What the servers' newest and compacted revisions are, as far as the answers told.
	revision, compacted int64
	// The last requests and etcd's answers, to be shown with a difference.
	last []string
}

func (g *generator) one(in int) bool { return g.IntN(in) == 0 }

func (g *generator) key() []byte {
	if g.one(60) {
		return nil
	}
	key := fmt.Sprintf("%c", 'a'+g.IntN(3))
	for range g.IntN(3) {
		key += fmt.Sprintf("/%d", g.IntN(4))
	}
	if g.one(20) {
		key += "\x00"
	}
	if g.one(40) {
		key += "\xff\xff"
	}
	return []byte(key)
}

// span is a key and a range end: one key, a prefix, everything from the key on, or any two keys.
func (g *generator) span() (key, end []byte) {
	key = g.key()
	switch g.IntN(6) {
	case 0, 1:
		return key, nil
	case 2:
		return key, prefixEnd(key)
	case 3:
		return key, []byte{0}
	case 4:
		return []byte{0}, []byte{0}
	default:
		return key, g.key()
	}
}

func prefixEnd(key []byte) []byte {
	end := append([]byte(nil), key...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{0}
}

func (g *generator) value() []byte {
	switch g.IntN(10) {
	case 0:
		return nil
	case 1:
		return bytes.Repeat([]byte{'x'}, g.IntN(5000))
	default:
		return fmt.Appendf(nil, "value %d", g.IntN(1000))
	}
}

func (g *generator) lease() int64 {
	if g.one(3) {
		return int64(1 + g.IntN(5))
	}
	return 0
}

// pastRevision is mostly one that can be read; 0 is the newest.
func (g *generator) pastRevision() int64 {
	switch g.IntN(12) {
	case 0, 1, 2, 3:
		return g.revision - int64(g.IntN(20))
	case 4:
		return g.compacted + int64(g.IntN(3)) - 1
	case 5:
		return g.revision + int64(g.IntN(3))
	case 6:
		return -int64(g.IntN(2))
	default:
		return 0
	}
}

// bound is a revision to filter by; 0 filters nothing.
func (g *generator) bound() int64 {
	if g.one(8) {
		return max(0, g.revision-int64(g.IntN(30)))
	}
	return 0
}

func (g *generator) rangeRequest() *pb.RangeRequest {
	key, end := g.span()
	r := &pb.RangeRequest{Key: key, RangeEnd: end, Revision: g.pastRevision()}
	if g.one(3) {
		r.Limit = int64(g.IntN(4))
	}
	if g.one(40) {
		r.Limit = -1
	}
	if g.one(4) {
		r.SortOrder = pb.RangeRequest_SortOrder(g.IntN(3))
		r.SortTarget = pb.RangeRequest_SortTarget(g.IntN(5))
	}
	if r.SortTarget != pb.RangeRequest_KEY {
		// etcd's sort is not stable: which of two equal keys is within the limit is chance.
		r.Limit = 0
	}
	r.KeysOnly = g.one(8)
	r.CountOnly = g.one(8)
	r.Serializable = g.one(8)
	r.MinModRevision, r.MaxModRevision = g.bound(), g.bound()
	r.MinCreateRevision, r.MaxCreateRevision = g.bound(), g.bound()
	return r
}

func (g *generator) putRequest() *pb.PutRequest {
	r := &pb.PutRequest{Key: g.key(), Value: g.value(), Lease: g.lease(), PrevKv: g.one(3)}
	if g.one(10) {
		r.IgnoreValue = true
		if !g.one(4) {
			r.Value = nil
		}
	}
	if g.one(10) {
		r.IgnoreLease = true
		if !g.one(4) {
			r.Lease = 0
		}
	}
	return r
}

func (g *generator) deleteRequest() *pb.DeleteRangeRequest {
	key, end := g.span()
	if g.one(2) {
		end = nil
	}
	return &pb.DeleteRangeRequest{Key: key, RangeEnd: end, PrevKv: g.one(3)}
}

func (g *generator) compare() *pb.Compare {
	c := &pb.Compare{
		Key:    g.key(),
		Result: pb.Compare_CompareResult(g.IntN(4)),
		Target: pb.Compare_CompareTarget(g.IntN(5)),
	}
	if g.one(6) {
		c.Key, c.RangeEnd = g.span()
	}
	switch c.Target {
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: int64(g.IntN(3))}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: g.bound()}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: g.bound()}
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: g.value()}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: g.lease()}
	}
	return c
}

func (g *generator) txnRequest(depth int) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range g.IntN(3) {
		r.Compare = append(r.Compare, g.compare())
	}
	r.Success = g.operations(depth)
	r.Failure = g.operations(depth)
	return r
}

func (g *generator) operations(depth int) []*pb.RequestOp {
	var ops []*pb.RequestOp
	for range g.IntN(4) {
		op := &pb.RequestOp{}
		switch n := g.IntN(10); {
		case n < 4:
			op.Request = &pb.RequestOp_RequestPut{RequestPut: g.putRequest()}
		case n < 6:
			request := g.deleteRequest()
			if string(request.RangeEnd) == "\x00" {
				// With a put of a key in the range etcd 3.6 panics; the store refuses it.
				request.RangeEnd = nil
			}
			op.Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: request}
		case n < 9 || depth == 0:
			op.Request = &pb.RequestOp_RequestRange{RequestRange: g.rangeRequest()}
		default:
			op.Request = &pb.RequestOp_RequestTxn{RequestTxn: g.txnRequest(depth - 1)}
		}
		ops = append(ops, op)
	}
	return ops
}

// request is any request but a watch.
func (g *generator) request() any {
	switch n := g.IntN(100); {
	case n < 30:
		return g.putRequest()
	case n < 40:
		return g.deleteRequest()
	case n < 65:
		return g.rangeRequest()
	case n < 90:
		return g.txnRequest(2)
	case n < 93:
		return &pb.CompactionRequest{Revision: g.revision - int64(g.IntN(60)) + 2, Physical: true}
	case n < 96:
		return &pb.LeaseGrantRequest{ID: int64(1 + g.IntN(5)), TTL: int64(1000 + g.IntN(1000))}
	case n < 97:
		return &pb.LeaseRevokeRequest{ID: int64(1 + g.IntN(6))}
	case n < 99:
		return &pb.LeaseTimeToLiveRequest{ID: int64(1 + g.IntN(6)), Keys: g.one(2)}
	default:
		return &pb.LeaseLeasesRequest{}
	}
}

package robustness

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// bytesCodec sends bytes as they are, under the name of protobuf.
type bytesCodec struct{}

func (bytesCodec) Name() string                  { return "proto" }
func (bytesCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (bytesCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte{}, data...)
	return nil
}

type marshaler interface{ Marshal() ([]byte, error) }

// methods are all of etcd's, with a good request to begin from.
var methods = []struct {
	name    string
	stream  bool
	request marshaler
}{
	{"etcdserverpb.KV/Range", false, &pb.RangeRequest{Key: []byte("f/"), RangeEnd: []byte("f0"), Limit: 3, Revision: 2}},
	{"etcdserverpb.KV/RangeStream", true, &pb.RangeRequest{Key: []byte("f/"), RangeEnd: []byte("f0")}},
	{"etcdserverpb.KV/Put", false, &pb.PutRequest{Key: []byte("f/a"), Value: []byte("value"), PrevKv: true}},
	{"etcdserverpb.KV/DeleteRange", false, &pb.DeleteRangeRequest{Key: []byte("f/"), RangeEnd: []byte("f/b")}},
	{"etcdserverpb.KV/Txn", false, txn()},
	{"etcdserverpb.KV/Compact", false, &pb.CompactionRequest{Revision: 2}},
	{"etcdserverpb.Watch/Watch", true, watch()},
	{"etcdserverpb.Lease/LeaseGrant", false, &pb.LeaseGrantRequest{TTL: 60, ID: 5}},
	{"etcdserverpb.Lease/LeaseRevoke", false, &pb.LeaseRevokeRequest{ID: 5}},
	{"etcdserverpb.Lease/LeaseKeepAlive", true, &pb.LeaseKeepAliveRequest{ID: 5}},
	{"etcdserverpb.Lease/LeaseTimeToLive", false, &pb.LeaseTimeToLiveRequest{ID: 5, Keys: true}},
	{"etcdserverpb.Lease/LeaseLeases", false, &pb.LeaseLeasesRequest{}},
	{"etcdserverpb.Cluster/MemberList", false, &pb.MemberListRequest{Linearizable: true}},
	{"etcdserverpb.Cluster/MemberAdd", false, &pb.MemberAddRequest{PeerURLs: []string{"http://x:1"}}},
	{"etcdserverpb.Cluster/MemberRemove", false, &pb.MemberRemoveRequest{ID: 1}},
	{"etcdserverpb.Cluster/MemberUpdate", false, &pb.MemberUpdateRequest{ID: 1}},
	{"etcdserverpb.Cluster/MemberPromote", false, &pb.MemberPromoteRequest{ID: 1}},
	{"etcdserverpb.Maintenance/Alarm", false, &pb.AlarmRequest{MemberID: 1}},
	{"etcdserverpb.Maintenance/Status", false, &pb.StatusRequest{}},
	{"etcdserverpb.Maintenance/Defragment", false, &pb.DefragmentRequest{}},
	{"etcdserverpb.Maintenance/Hash", false, &pb.HashRequest{}},
	{"etcdserverpb.Maintenance/HashKV", false, &pb.HashKVRequest{Revision: 2}},
	{"etcdserverpb.Maintenance/Snapshot", true, &pb.SnapshotRequest{}},
	{"etcdserverpb.Maintenance/MoveLeader", false, &pb.MoveLeaderRequest{TargetID: 1}},
	{"etcdserverpb.Maintenance/Downgrade", false, &pb.DowngradeRequest{Version: "3.5"}},
	{"etcdserverpb.Auth/AuthStatus", false, &pb.AuthStatusRequest{}},
	{"etcdserverpb.Auth/Authenticate", false, &pb.AuthenticateRequest{Name: "a", Password: "b"}},
	{"etcdserverpb.Auth/UserAdd", false, &pb.AuthUserAddRequest{Name: "a", Password: "b"}},
	{"etcdserverpb.Auth/RoleList", false, &pb.AuthRoleListRequest{}},
}

func txn() *pb.TxnRequest {
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("f/b"), Value: []byte("v")}}}
	get := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("f/b")}}}
	nested := &pb.TxnRequest{Success: []*pb.RequestOp{get}}
	return &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("f/b"), TargetUnion: &pb.Compare_ModRevision{ModRevision: 3}, Target: pb.Compare_MOD}},
		Success: []*pb.RequestOp{put},
		Failure: []*pb.RequestOp{get, {Request: &pb.RequestOp_RequestTxn{RequestTxn: nested}}},
	}
}

func watch() *pb.WatchRequest {
	create := &pb.WatchCreateRequest{Key: []byte("f/"), RangeEnd: []byte("f0"), StartRevision: 2, PrevKv: true}
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}
}

// call sends one message to a method and gives the code of the answer.
func call(connection *grpc.ClientConn, method string, stream bool, message []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	option := grpc.ForceCodec(bytesCodec{})
	var answer []byte
	if !stream {
		return connection.Invoke(ctx, "/"+method, message, &answer, option)
	}
	description := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	opened, err := connection.NewStream(ctx, description, "/"+method, option)
	if err != nil {
		return err
	}
	if err := opened.SendMsg(message); err != nil && err != io.EOF {
		return err
	}
	if err := opened.CloseSend(); err != nil {
		return err
	}
	for range 20 {
		if err := opened.RecvMsg(&answer); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
	return nil
}

// garble changes a message as a broken client might.
func garble(random *rand.Rand, message, other []byte) []byte {
	garbled := append([]byte{}, message...)
	for range 1 + random.Intn(3) {
		at := random.Intn(len(garbled) + 1)
		switch random.Intn(6) {
		case 0:
			garbled = garbled[:at]
		case 1:
			if at < len(garbled) {
				garbled[at] ^= 1 << random.Intn(8)
			}
		case 2:
			// A length that goes far beyond the end, of a field of bytes.
			garbled = append(garbled[:at], 0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f)
		case 3:
			garbled = append(garbled, other...)
		case 4:
			// A field that nobody knows, one of a group, a number that does not end.
			odd := [][]byte{{0xfa, 0x3f, 1, 7}, {0x0b, 0x0c}, {0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, {0}}
			garbled = append(garbled, odd[random.Intn(len(odd))]...)
		default:
			for range random.Intn(8) {
				garbled = append(garbled, byte(random.Intn(256)))
			}
		}
	}
	return garbled
}

// answers are the codes that a request of a client's making may get. Unavailable, Unknown and a
// deadline that passed are not among them: they stand for a server that broke.
var answers = map[codes.Code]bool{
	codes.OK: true, codes.InvalidArgument: true, codes.Internal: true, codes.OutOfRange: true, codes.NotFound: true,
	codes.ResourceExhausted: true, codes.Unimplemented: true, codes.FailedPrecondition: true, codes.PermissionDenied: true,
	codes.Unauthenticated: true, codes.AlreadyExists: true,
}

func bare(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	connection, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(256<<20), grpc.MaxCallRecvMsgSize(256<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return connection
}

// Every method gets messages that are broken in every way; each is answered, and others are served on.
func TestBrokenMessages(t *testing.T) {
	random := newRandom(t)
	server := newServer(t, "--durability=buffered")
	client := started(t, server)
	connection := bare(t, server.Member().EndpointsGRPC()[0])
	good := make([][]byte, len(methods))
	for i, method := range methods {
		message, err := method.request.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		good[i] = message
	}
	// What is no protobuf at all is INTERNAL for grpc-go's server.
	for _, method := range methods {
		err := call(connection, method.name, method.stream, []byte{0x0a, 0x7f, 1})
		if code := status.Code(err); code != codes.Internal && code != codes.Unimplemented {
			t.Errorf("%s answers a truncated message with %v", method.name, err)
		}
		err = call(connection, method.name, method.stream, make([]byte, 8<<20))
		if code := status.Code(err); code != codes.ResourceExhausted && code != codes.Unimplemented {
			t.Errorf("%s answers a message of 8 MiB with %v", method.name, err)
		}
	}
	seen := map[codes.Code]int{}
	count := 0
	end := time.Now().Add(time.Duration(number(t, "FUZZ_SECONDS", 5)) * time.Second)
	for time.Now().Before(end) {
		i := random.Intn(len(methods))
		message := garble(random, good[i], good[random.Intn(len(good))])
		err := call(connection, methods[i].name, methods[i].stream, message)
		code := status.Code(err)
		if !answers[code] {
			t.Fatalf("%s answers %x with %v", methods[i].name, message, err)
		}
		seen[code]++
		if count++; count%100 == 0 {
			mustServe(t, client, count)
		}
	}
	mustServe(t, client, count)
	t.Logf("%d messages, answered with %v", count, seen)
	if seen[codes.OK] == 0 || seen[codes.Internal] == 0 {
		t.Error("the messages are not of both kinds")
	}
}

func mustServe(t *testing.T, client *clientv3.Client, n int) {
	t.Helper()
	key := fmt.Sprintf("s/%d", n)
	if _, err := client.Put(soon(t), key, "v"); err != nil {
		t.Fatalf("after %d messages: %v", n, err)
	}
	found, err := client.Get(soon(t), key)
	if err != nil || len(found.Kvs) != 1 {
		t.Fatalf("after %d messages: %v, %v", n, found, err)
	}
}

// frame is one of HTTP/2.
func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	header := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	return append(binary.BigEndian.AppendUint32(header, stream), payload...)
}

// headers of a call in HPACK without any compression.
func headers(path string) (block []byte) {
	for _, field := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "x"},
		{"te", "trailers"}, {"content-type", "application/grpc"},
	} {
		block = append(block, 0, byte(len(field[0])))
		block = append(block, field[0]...)
		block = append(block, byte(len(field[1])))
		block = append(block, field[1]...)
	}
	return block
}

// Connections that speak no, or broken, HTTP/2 and gRPC: they may be closed, and nobody else notices.
func TestBrokenConnections(t *testing.T) {
	random := newRandom(t)
	server := newServer(t, "--durability=buffered")
	client := started(t, server)
	preface := append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(4, 0, 0, nil)...)
	get, err := (&pb.RangeRequest{Key: []byte("a")}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	message := append([]byte{0, 0, 0, 0, byte(len(get))}, get...)
	good := append(append([]byte{}, preface...), frame(1, 4, 1, headers("/etcdserverpb.KV/Range"))...)
	good = append(good, frame(0, 1, 1, message)...)
	begins := [][]byte{
		good,
		append(append([]byte{}, preface...), frame(1, 5, 1, headers("/"))...),
		[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		[]byte(strings.Repeat("A", 70_000)),
		// A message that says it is compressed, one that says it is longer than all, one that is cut.
		append(good[:len(good)-len(message)-9:len(good)-len(message)-9], frame(0, 1, 1, append([]byte{1}, message[1:]...))...),
		append(good[:len(good)-len(message)-9:len(good)-len(message)-9], frame(0, 1, 1, []byte{0, 0xff, 0xff, 0xff, 0xff, 1})...),
		append(good[:len(good)-len(message)-9:len(good)-len(message)-9], frame(0, 1, 1, message[:3])...),
		// Headers that never end, a window of nothing, a reset of what is not there.
		append(append([]byte{}, preface...), frame(1, 0, 1, headers("/etcdserverpb.KV/Range"))...),
		append(append([]byte{}, preface...), frame(8, 0, 0, []byte{0, 0, 0, 0})...),
		append(append([]byte{}, preface...), frame(3, 0, 7, []byte{0, 0, 0, 1})...),
	}
	count := 0
	end := time.Now().Add(time.Duration(number(t, "FUZZ_SECONDS", 5)) * time.Second)
	for time.Now().Before(end) || count < 3*len(begins) {
		sent := append([]byte{}, begins[count%len(begins)]...)
		if count >= len(begins) {
			sent = garble(random, sent, good)
		}
		connection, err := net.Dial("tcp", server.Member().EndpointsGRPC()[0])
		if err != nil {
			t.Fatalf("after %d connections: %v", count, err)
		}
		// The answer is of no interest: an error is right, and so is silence.
		_, _ = connection.Write(sent)
		_ = connection.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_, _ = connection.Read(make([]byte, 4096))
		connection.Close()
		if count++; count%20 == 0 {
			mustServe(t, client, count)
		}
	}
	mustServe(t, client, count)
	t.Logf("%d connections", count)
}

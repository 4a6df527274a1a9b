package robustness

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"megacluster.io/tests/robustness/store"
)

func started(t *testing.T, server *store.Server) *clientv3.Client {
	t.Helper()
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	return connect(t, server)
}

func connect(t *testing.T, server *store.Server, options ...grpc.DialOption) *clientv3.Client {
	t.Helper()
	endpoints := server.Member().EndpointsGRPC()
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop(), DialOptions: options})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// told is what clients were told of, by key.
type told struct {
	sync.Mutex
	values map[string]string
}

func (a *told) add(key, value string) {
	a.Lock()
	defer a.Unlock()
	a.values[key] = value
}

// mustHave checks that every acknowledged write is there.
func mustHave(t *testing.T, client *clientv3.Client, acknowledged *told) {
	t.Helper()
	found, err := client.Get(soon(t), "k/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	for _, kv := range found.Kvs {
		values[string(kv.Key)] = string(kv.Value)
	}
	for key, value := range acknowledged.values {
		if values[key] != value {
			t.Errorf("%s was acknowledged with %q and is %q", key, value, values[key])
		}
	}
}

// SIGTERM comes while many clients write in groups: what was acknowledged is there after the restart.
func TestStoppedInTheMiddleOfGroupCommits(t *testing.T) {
	for _, class := range []string{"fsync", "buffered"} {
		t.Run(class, func(t *testing.T) {
			server := newServer(t, "--durability="+class, small)
			acknowledged := &told{values: map[string]string{}}
			for life := range 3 {
				client := started(t, server)
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				var writers sync.WaitGroup
				var count atomic.Int64
				for writer := range 16 {
					writers.Add(1)
					go func() {
						defer writers.Done()
						for n := 0; ; n++ {
							key, value := fmt.Sprintf("k/%d/%d/%d", life, writer, n%50), strconv.Itoa(n)
							_, err := client.Put(ctx, key, value)
							if err != nil {
								// It may have been done or not: nothing is said of this key.
								acknowledged.Lock()
								delete(acknowledged.values, key)
								acknowledged.Unlock()
								return
							}
							acknowledged.add(key, value)
							count.Add(1)
						}
					}()
				}
				for begin := time.Now(); count.Load() < 2000 && time.Since(begin) < 30*time.Second; {
					time.Sleep(time.Millisecond)
				}
				if err := server.Stop(); err != nil {
					t.Fatal(err)
				}
				// Clients would try again until then.
				cancel()
				writers.Wait()
				client.Close()
			}
			mustHave(t, started(t, server), acknowledged)
			t.Logf("%d keys", len(acknowledged.values))
		})
	}
}

// The disk refuses: from then on no write is acknowledged, the alarm says so, reads go on, and what was
// acknowledged before is there after a restart.
func TestADiskThatRefuses(t *testing.T) {
	for _, fault := range []struct{ name, inject, message, alarm string }{
		{"full", "write:error=ENOSPC:when=30+", "database space exceeded", "NOSPACE"},
		{"write fails", "write:error=EIO:when=30+", "database space exceeded", "NOSPACE"},
		{"sync fails", "fdatasync:error=EIO:when=30+", "corrupt cluster", "CORRUPT"},
	} {
		t.Run(fault.name, func(t *testing.T) {
			server := newServer(t)
			server.Only, server.Inject = "log-00000000000000000001", fault.inject
			client := started(t, server)
			acknowledged := &told{values: map[string]string{}}
			var failure error
			for n := range 200 {
				key := fmt.Sprintf("k/%d", n)
				if _, failure = client.Put(soon(t), key, "v"); failure != nil {
					break
				}
				acknowledged.add(key, "v")
			}
			if failure == nil || len(acknowledged.values) == 0 {
				t.Fatalf("%d writes, then %v", len(acknowledged.values), failure)
			}
			for range 3 {
				if _, err := client.Put(soon(t), "k/more", "v"); err == nil || !strings.Contains(err.Error(), fault.message) {
					t.Fatalf("a write was answered with %v", err)
				}
			}
			// Reads show what is durable, and no more.
			found, err := client.Get(soon(t), "k/", clientv3.WithPrefix())
			if err != nil || len(found.Kvs) != len(acknowledged.values) {
				t.Fatalf("%d keys were acknowledged, %d are read: %v", len(acknowledged.values), len(found.Kvs), err)
			}
			alarms, err := client.AlarmList(soon(t))
			if err != nil || len(alarms.Alarms) != 1 || alarms.Alarms[0].Alarm.String() != fault.alarm {
				t.Fatalf("alarms: %v, %v", alarms, err)
			}
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			server.Only, server.Inject = "", ""
			client = started(t, server)
			mustHave(t, client, acknowledged)
			if _, err := client.Put(soon(t), "k/after", "v"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A disk that is full for a while: writes go on by themselves when it has room.
func TestADiskThatIsFullForAWhile(t *testing.T) {
	server := newServer(t)
	server.Only, server.Inject = "log-00000000000000000001", "write:error=ENOSPC:when=20..21"
	client := started(t, server)
	acknowledged := &told{values: map[string]string{}}
	refused := false
	for begin := time.Now(); time.Since(begin) < 20*time.Second; {
		key := fmt.Sprintf("k/%d", len(acknowledged.values))
		if _, err := client.Put(soon(t), key, "v"); err != nil {
			refused = true
			time.Sleep(50 * time.Millisecond)
			continue
		}
		acknowledged.add(key, "v")
		if refused && len(acknowledged.values) > 60 {
			break
		}
	}
	if !refused || len(acknowledged.values) < 60 {
		t.Fatalf("refused: %v, %d writes", refused, len(acknowledged.values))
	}
	if alarms, err := client.AlarmList(soon(t)); err != nil || len(alarms.Alarms) != 0 {
		t.Fatalf("alarms: %v, %v", alarms, err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	server.Only, server.Inject = "", ""
	mustHave(t, started(t, server), acknowledged)
}

// usage gives a process's resident bytes and CPU time.
func usage(t *testing.T, pid int) (resident int64, cpu time.Duration) {
	t.Helper()
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(statm))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	// After the name: utime and stime are the 12th and 13th field, in hundredths of a second.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return pages * int64(os.Getpagesize()), time.Duration(user+system) * 10 * time.Millisecond
}

// deaf is a connection that stops to be read at some moment.
type deaf struct {
	net.Conn
	stopped *atomic.Bool
}

func (d deaf) Read(to []byte) (int, error) {
	for d.stopped.Load() {
		time.Sleep(100 * time.Millisecond)
	}
	return d.Conn.Read(to)
}

// A client with a hundred watches never reads: the store keeps nothing for it, and delays nobody.
func TestAClientThatNeverReads(t *testing.T) {
	server := newServer(t, "--durability=buffered")
	client := started(t, server)
	stopped := &atomic.Bool{}
	dial := grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		connection, err := (&net.Dialer{}).DialContext(ctx, "tcp", server.Member().EndpointsGRPC()[0])
		return deaf{connection, stopped}, err
	})
	slow := connect(t, server, dial)
	defer stopped.Store(false)
	for n := range 100 {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		// A stream of its own for each.
		ctx = clientv3.WithRequireLeader(context.WithValue(ctx, struct{ n int }{n}, n))
		stream, err := pb.NewWatchClient(slow.ActiveConnection()).Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		request := &pb.WatchCreateRequest{Key: []byte("k/"), RangeEnd: []byte("k0"), PrevKv: true}
		union := &pb.WatchRequest_CreateRequest{CreateRequest: request}
		if err := stream.Send(&pb.WatchRequest{RequestUnion: union}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	stopped.Store(true)
	before, _ := usage(t, server.Pid())
	quick := client.Watch(soon(t), "k/", clientv3.WithPrefix())
	value := strings.Repeat("x", 200_000)
	var longest time.Duration
	events := 0
	for n := range 100 {
		begin := time.Now()
		if _, err := client.Put(soon(t), fmt.Sprintf("k/%d", n), value); err != nil {
			t.Fatal(err)
		}
		for events <= n {
			answer, open := <-quick
			if !open {
				t.Fatal("the watch of the other client ended")
			}
			events += len(answer.Events)
		}
		longest = max(longest, time.Since(begin))
	}
	after, _ := usage(t, server.Pid())
	t.Logf("20 MB written and watched beside 100 watches that nobody reads: %d MB more resident, longest put with its event %v",
		(after-before)>>20, longest)
	// 100 × 20 MB would be two gigabytes.
	if after-before > 400<<20 {
		t.Errorf("the store keeps what a client does not read: %d MB", (after-before)>>20)
	}
}

// Ten thousand clients that connect and say nothing more.
func TestTenThousandIdleConnections(t *testing.T) {
	// Said aloud the limit is handed down to the store, too.
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	files.Cur = files.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	server := newServer(t)
	client := started(t, server)
	if _, err := client.Put(soon(t), "k/a", "v"); err != nil {
		t.Fatal(err)
	}
	count := number(t, "IDLE_CONNECTIONS", 10_000)
	before, _ := usage(t, server.Pid())
	// What begins every HTTP/2 connection: the preface, and settings that set nothing.
	hello := append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 0, 0, 0, 4, 0, 0, 0, 0, 0)
	var idle []net.Conn
	defer func() {
		for _, connection := range idle {
			connection.Close()
		}
	}()
	for range count {
		connection, err := net.Dial("tcp", server.Member().EndpointsGRPC()[0])
		if err != nil {
			t.Fatalf("connection %d: %v", len(idle), err)
		}
		idle = append(idle, connection)
		if _, err := connection.Write(hello); err != nil {
			t.Fatal(err)
		}
	}
	// All were taken: the settings of the store come back.
	for n, connection := range idle {
		if err := connection.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(connection, make([]byte, 9)); err != nil {
			t.Fatalf("connection %d: %v", n, err)
		}
	}
	after, cpu := usage(t, server.Pid())
	begin := time.Now()
	time.Sleep(3 * time.Second)
	_, later := usage(t, server.Pid())
	share := float64(later-cpu) / float64(time.Since(begin)) * 100
	begin = time.Now()
	if _, err := client.Get(soon(t), "k/a"); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d idle connections: %d KB each, %.1f%% of a core; a get beside them took %v",
		count, (after-before)/count>>10, share, time.Since(begin))
	if (after-before)/count > 100<<10 {
		t.Errorf("an idle connection takes %d bytes", (after-before)/count)
	}
}

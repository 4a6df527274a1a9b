package differential

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const timeout = 20 * time.Second

// server is one of the two, as a process.
type server struct {
	name    string
	binary  string
	cmd     *exec.Cmd
	dir     string
	flags   []string
	conn    *grpc.ClientConn
	kv      pb.KVClient
	lease   pb.LeaseClient
	watches pb.WatchClient
}

func program(t *testing.T, variable string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		t.Skipf("%s names no program", variable)
	}
	return path
}

func (s *server) start(t *testing.T) {
	t.Helper()
	for attempt := 0; ; attempt++ {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := listener.Addr().String()
		listener.Close()
		url := "http://" + address
		args := append([]string{
			"--data-dir=" + s.dir, "--listen-client-urls=" + url, "--advertise-client-urls=" + url,
		}, s.flags...)
		s.cmd = exec.Command(s.binary, args...)
		var output bytes.Buffer
		s.cmd.Stdout, s.cmd.Stderr = &output, &output
		s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := s.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		err = s.connect(address)
		if err == nil {
			return
		}
		s.stop(syscall.SIGKILL)
		if attempt == 4 {
			t.Fatalf("%s: %v\n%s", s.name, err, output.String())
		}
	}
}

func (s *server) connect(address string) error {
	limit := grpc.MaxCallRecvMsgSize(64 << 20)
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(limit, grpc.WaitForReady(true)))
	if err != nil {
		return err
	}
	s.conn = conn
	s.kv, s.lease, s.watches = pb.NewKVClient(conn), pb.NewLeaseClient(conn), pb.NewWatchClient(conn)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_, err = s.kv.Range(ctx, &pb.RangeRequest{Key: []byte("a")})
	return err
}

func (s *server) stop(signal syscall.Signal) {
	if s.conn != nil {
		s.conn.Close()
	}
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Signal(signal)
		_ = s.cmd.Wait()
	}
}

// both starts an etcd and a store, each on a directory of its own, for as long as the test runs.
func both(t *testing.T) (etcd, store *server) {
	t.Helper()
	etcd = &server{name: "etcd", binary: program(t, "ETCD_BINARY"), dir: t.TempDir(), flags: []string{
		"--listen-peer-urls=http://127.0.0.1:0", "--log-level=error", "--unsafe-no-fsync",
	}}
	store = &server{
		name: "store", binary: program(t, "STORE_BINARY"), dir: t.TempDir(),
		flags: strings.Fields(os.Getenv("STORE_FLAGS")),
	}
	for _, s := range []*server{etcd, store} {
		t.Cleanup(func() { s.stop(syscall.SIGKILL) })
		s.start(t)
	}
	return etcd, store
}

// restart ends both and starts them again, etcd always in order: killed, it may come back one revision further.
func restart(t *testing.T, etcd, store *server, signal syscall.Signal) {
	t.Helper()
	etcd.stop(syscall.SIGTERM)
	store.stop(signal)
	etcd.start(t)
	store.start(t)
}

func number(t *testing.T, variable string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

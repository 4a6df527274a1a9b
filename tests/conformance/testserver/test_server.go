// Package testserver runs the tests of k8s.io/apiserver against a store that is a process of its
// own. The script apiserver-storage puts this file in the place of the module's own
// pkg/storage/etcd3/testserver/test_server.go, which starts an etcd inside the test's process; all
// that the tests use of that package is here, with the same meaning.
//
// STORE_BINARY names the program. STORE_FLAGS holds further flags, separated by blanks.
package testserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"
)

const (
	startTimeout = 30 * time.Second
	stopTimeout  = 20 * time.Second
	// How often a start is tried again on a new port, if another process took the one we found.
	starts = 5
)

// NewTestConfig returns a configuration on a free port of the loopback and a directory of the test.
func NewTestConfig(t testing.TB) *embed.Config {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.UnsafeNoFsync = true
	cfg.Dir = t.TempDir()
	useFreePort(t, cfg)
	return cfg
}

func useFreePort(t testing.TB, cfg *embed.Config) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("no free port: %v", err)
	}
	defer listener.Close()
	client := url.URL{Scheme: "http", Host: listener.Addr().String()}
	cfg.ListenClientUrls = []url.URL{client}
	cfg.AdvertiseClientUrls = []url.URL{client}
}

// RunEtcd starts the store by the configuration (or by NewTestConfig, if nil) and returns a client
// for it. Both end with the test.
func RunEtcd(t testing.TB, cfg *embed.Config) *kubernetes.Client {
	t.Helper()
	ownPort := cfg == nil
	if ownPort {
		cfg = NewTestConfig(t)
	}
	for attempt := 1; ; attempt++ {
		client, err := run(t, cfg)
		if err == nil {
			record(client)
			return client
		}
		if !ownPort || !errors.Is(err, errExited) || attempt == starts {
			t.Fatal(err)
		}
		t.Logf("start %d of the store: %v", attempt, err)
		useFreePort(t, cfg)
	}
}

func run(t testing.TB, cfg *embed.Config) (*kubernetes.Client, error) {
	t.Helper()
	store, err := start(cfg)
	if err != nil {
		return nil, err
	}
	if err := store.waitForPort(cfg.ListenClientUrls[0].Host); err != nil {
		_ = store.cmd.Process.Kill()
		<-store.exited
		return nil, err
	}
	t.Cleanup(func() { store.stop(t) })

	tlsConfig, err := cfg.ClientTLSInfo.ClientConfig()
	if err != nil {
		return nil, err
	}
	var endpoints []string
	for _, endpoint := range cfg.AdvertiseClientUrls {
		endpoints = append(endpoints, endpoint.String())
	}
	client, err := kubernetes.New(clientv3.Config{
		TLS:         tlsConfig,
		Endpoints:   endpoints,
		DialTimeout: 10 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithBlock()},
		Logger:      zaptest.NewLogger(t, zaptest.Level(zapcore.ErrorLevel)).Named("etcd-client"),
	})
	if err != nil {
		return nil, fmt.Errorf("no connection to the store: %w\n%s", err, store.output.String())
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if _, err := client.Status(ctx, endpoints[0]); err != nil {
		return nil, fmt.Errorf("the store has no status: %w\n%s", err, store.output.String())
	}
	return client, nil
}

var errExited = errors.New("the store ended by itself")

type process struct {
	cmd    *exec.Cmd
	output *tail
	exited chan struct{}
}

func start(cfg *embed.Config) (*process, error) {
	binary := os.Getenv("STORE_BINARY")
	if binary == "" {
		return nil, errors.New("STORE_BINARY is not set")
	}
	args := []string{
		"--name=" + cfg.Name,
		"--data-dir=" + cfg.Dir,
		"--listen-client-urls=" + join(cfg.ListenClientUrls),
		"--advertise-client-urls=" + join(cfg.AdvertiseClientUrls),
	}
	if cfg.WatchProgressNotifyInterval != 0 {
		args = append(args, "--watch-progress-notify-interval="+cfg.WatchProgressNotifyInterval.String())
	}
	if tls := cfg.ClientTLSInfo; tls.CertFile != "" {
		args = append(args, "--cert-file="+tls.CertFile, "--key-file="+tls.KeyFile)
		if tls.TrustedCAFile != "" {
			args = append(args, "--trusted-ca-file="+tls.TrustedCAFile)
		}
		if tls.ClientCertAuth {
			args = append(args, "--client-cert-auth")
		}
	}
	args = append(args, strings.Fields(os.Getenv("STORE_FLAGS"))...)

	p := &process{cmd: exec.Command(binary, args...), output: &tail{}, exited: make(chan struct{})}
	p.cmd.Stdout = p.output
	p.cmd.Stderr = p.output
	// A test binary that is killed takes its stores along.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

func (p *process) waitForPort(address string) error {
	deadline := time.Now().Add(startTimeout)
	for {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			conn.Close()
			// Another process may have taken the port, and ours ended for it.
			select {
			case <-p.exited:
			case <-time.After(20 * time.Millisecond):
				return nil
			}
		}
		select {
		case <-p.exited:
			return fmt.Errorf("%w: %s\n%s", errExited, p.cmd.ProcessState, p.output.String())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the store does not listen on %s: %v\n%s", address, err, p.output.String())
		}
	}
}

func (p *process) stop(t testing.TB) {
	select {
	case <-p.exited:
		if !t.Failed() {
			t.Errorf("%v: %s\n%s", errExited, p.cmd.ProcessState, p.output.String())
		}
		return
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(stopTimeout):
		t.Errorf("the store did not stop within %s of SIGTERM\n%s", stopTimeout, p.output.String())
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
	if t.Failed() {
		t.Logf("the store's last output:\n%s", p.output.String())
	}
}

func join(urls []url.URL) string {
	var all []string
	for _, u := range urls {
		all = append(all, u.String())
	}
	return strings.Join(all, ",")
}

// tail keeps the end of a process's output.
type tail struct {
	mutex sync.Mutex
	data  []byte
}

const tailSize = 16 << 10

func (t *tail) Write(data []byte) (int, error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.data = append(t.data, data...)
	if len(t.data) > 2*tailSize {
		t.data = bytes.Clone(t.data[len(t.data)-tailSize:])
	}
	return len(data), nil
}

func (t *tail) String() string {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return string(t.data)
}

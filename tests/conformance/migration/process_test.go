// Package migration takes data from a real etcd to the store and back, with programs that are killed
// on the way, and opens what the store writes with etcd's own tools.
package migration

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const patience = time.Minute

// program is the path in an environment variable.
func program(t *testing.T, variable string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		t.Skipf("%s names no program", variable)
	}
	return path
}

// server is an etcd or a store, as a process.
type server struct {
	cmd    *exec.Cmd
	url    string
	output *buffer
	client *clientv3.Client
}

// buffer is a process's output, which is looked at while the process runs.
type buffer struct {
	mutex sync.Mutex
	data  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.data.Write(p)
}

func (b *buffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.data.String()
}

func freeURL(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return "http://" + listener.Addr().String()
}

// start runs a server until it answers; it ends with the test. Another process may take the port
// first: then it is tried again.
func start(t *testing.T, binary, dir string, flags ...string) *server {
	t.Helper()
	for attempt := 1; ; attempt++ {
		s, err := tryStart(t, binary, dir, flags...)
		if err == nil {
			t.Cleanup(s.stop)
			return s
		}
		if attempt == 3 {
			t.Fatal(err)
		}
	}
}

func tryStart(t *testing.T, binary, dir string, flags ...string) (*server, error) {
	url := freeURL(t)
	args := append([]string{
		"--data-dir=" + dir, "--listen-client-urls=" + url, "--advertise-client-urls=" + url,
	}, flags...)
	s := &server{cmd: exec.Command(binary, args...), url: url, output: &buffer{}}
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{url}, Logger: zap.NewNop(), DialTimeout: patience,
		MaxCallRecvMsgSize: 1 << 30,
	})
	if err == nil {
		s.client = client
		deadline := time.Now().Add(patience)
		for time.Now().Before(deadline) {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			_, err = client.Status(ctx, url)
			cancel()
			if err == nil || s.cmd.ProcessState != nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("%s does not answer: %w\n%s", binary, err, s.output)
	}
	return s, nil
}

func (s *server) stop() {
	if s.client != nil {
		s.client.Close()
		s.client = nil
	}
	if s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		done := make(chan struct{})
		go func() {
			_ = s.cmd.Wait()
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			_ = s.cmd.Process.Kill()
			<-done
		}
	}
}

func startEtcd(t *testing.T, dir string, flags ...string) *server {
	t.Helper()
	flags = append([]string{
		"--listen-peer-urls=http://127.0.0.1:0", "--log-level=error", "--unsafe-no-fsync",
	}, flags...)
	return start(t, program(t, "ETCD_BINARY"), dir, flags...)
}

func startStore(t *testing.T, dir string, flags ...string) *server {
	t.Helper()
	return start(t, program(t, "STORE_BINARY"), dir, flags...)
}

// run runs a program to its end and returns what it said.
func run(t *testing.T, binary string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	output, err := cmd.CombinedOutput()
	return string(output), err
}

func mustRun(t *testing.T, binary string, args ...string) string {
	t.Helper()
	output, err := run(t, binary, args...)
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", binary, args, err, output)
	}
	return output
}

// runAndKill runs a program and kills it when `when` says so, or lets it end. It says whether the
// program was killed.
func runAndKill(t *testing.T, when func(output string) bool, binary string, args ...string) (bool, string) {
	t.Helper()
	output := &buffer{}
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	deadline := time.After(2 * patience)
	for {
		select {
		case <-ended:
			return false, output.String()
		case <-deadline:
			_ = cmd.Process.Kill()
			<-ended
			t.Fatalf("%s %v takes too long:\n%s", binary, args, output)
		case <-time.After(2 * time.Millisecond):
			if when(output.String()) {
				_ = cmd.Process.Kill()
				<-ended
				return true, output.String()
			}
		}
	}
}

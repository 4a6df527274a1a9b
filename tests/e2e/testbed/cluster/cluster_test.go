package cluster

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func TestAProcessThatEndedIsNotTheOneThatHasItsPIDNow(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "pid")
	self, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := self.write(file); err != nil {
		t.Fatal(err)
	}
	if got, runs := readIdentity(file); got != self || !runs {
		t.Errorf("readIdentity = %v, %v; want %v, true", got, runs, self)
	}
	other := identity{pid: self.pid, start: self.start + "0"}
	if err := other.write(file); err != nil {
		t.Fatal(err)
	}
	if _, runs := readIdentity(file); runs {
		t.Error("another process with the same PID was taken for the one that ended")
	}
	for _, content := range []string{"", "x", "1", "-1 2", "99999999 1"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, runs := readIdentity(file); runs {
			t.Errorf("PID file %q names the running process %v", content, got)
		}
	}
}

func TestEndWaitsForTheProcess(t *testing.T) {
	t.Parallel()
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = sleep.Wait() }()
	process, err := identify(sleep.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := process.end(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	if process.runs() {
		t.Error("the process still runs")
	}
}

func TestOnlyCgroupsAreRemoved(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	if err := removeTree(directory); err == nil {
		t.Error("a directory that is no cgroup was removed")
	}
	if _, err := os.Stat(directory); err != nil {
		t.Error(err)
	}
}

func TestNamesThatCannotNameANode(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "A", "1a", "a/b", "a.b", "-a", "a-", "..", "a123456789012345678901234567890123456789012"} {
		config := Config{Name: name, State: "state"}
		if err := config.Validate(); err == nil {
			t.Errorf("%q was taken for a cluster's name", name)
		}
	}
}

func TestAForwardKeepsItsPortOverARestart(t *testing.T) {
	t.Parallel()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	file := filepath.Join(t.TempDir(), "forwards.json")
	forwards := newForwarder("/proc/self/ns/net", file)
	first, err := forwards.set("echo", Forward{Target: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	moved, err := forwards.set("echo", Forward{Target: server.Addr().String()})
	if err != nil || moved.Listen != first.Listen {
		t.Fatalf("set = %v, %v; want the port of %v", moved, err, first)
	}
	if os.Getuid() == 0 { // entering a network namespace needs root
		echo(t, first.Listen)
	}
	_ = forwards.listeners["echo"].Close()

	again := newForwarder("/proc/self/ns/net", file)
	if got := again.forwards["echo"]; got != moved {
		t.Errorf("after a restart = %v, want %v", got, moved)
	}
	if _, err := again.set("bad", Forward{Target: "no port"}); err == nil {
		t.Error("a target without a port was accepted")
	}
	_ = again.listeners["echo"].Close()
}

func echo(t *testing.T, address string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "hello" {
		t.Errorf("echo = %q, %v", got, err)
	}
}

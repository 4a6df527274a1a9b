package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	readinessPeriod = 200 * time.Millisecond
	restartDelay    = 500 * time.Millisecond
	restartDelayMax = 10 * time.Second
	stopGrace       = 5 * time.Second
)

// component is one program of the cluster.
type component struct {
	name    string
	command []string
	after   []string                    // components that must be ready before this one starts
	ready   func(context.Context) error // asked until it succeeds once after each start
}

// State of a component as status.json shows it.
type State string

const (
	StateWaiting    State = "waiting"    // for the components it starts after
	StateStarting   State = "starting"   // runs, not ready yet
	StateReady      State = "ready"      // was ready once and still runs
	StateRestarting State = "restarting" // ended by itself; starts again soon
	StateStopped    State = "stopped"
)

// ComponentStatus is one entry of status.json.
type ComponentStatus struct {
	State    State  `json:"state"`
	PID      int    `json:"pid,omitempty"` // in the cluster's process namespace
	Starts   int    `json:"starts"`
	LastExit string `json:"lastExit,omitempty"`
}

// supervisor keeps components running until its context ends.
type supervisor struct {
	reaper     *reaper
	logDir     string
	statusFile string

	mu     sync.Mutex
	status map[string]ComponentStatus
	ready  map[string]chan struct{} // closed when the component is ready for the first time
}

func newSupervisor(reaper *reaper, logDir, statusFile string, components []component) *supervisor {
	s := &supervisor{
		reaper: reaper, logDir: logDir, statusFile: statusFile,
		status: map[string]ComponentStatus{}, ready: map[string]chan struct{}{},
	}
	for _, c := range components {
		s.status[c.name] = ComponentStatus{State: StateWaiting}
		s.ready[c.name] = make(chan struct{})
	}
	return s
}

// run starts the components and returns when all have ended after ctx did.
func (s *supervisor) run(ctx context.Context, components []component) {
	var group sync.WaitGroup
	for _, c := range components {
		group.Go(func() { s.keep(ctx, c) })
	}
	group.Wait()
}

func (s *supervisor) keep(ctx context.Context, c component) {
	for _, name := range c.after {
		select {
		case <-s.ready[name]:
		case <-ctx.Done():
			return
		}
	}
	delay := restartDelay
	for ctx.Err() == nil {
		started := time.Now()
		exit, err := s.runOnce(ctx, c)
		if err != nil {
			exit = err.Error()
		}
		if ctx.Err() != nil {
			break
		}
		if time.Since(started) > time.Minute {
			delay = restartDelay
		}
		slog.Warn("component ended", "component", c.name, "exit", exit, "restart_in", delay)
		s.update(c.name, func(st *ComponentStatus) { st.State, st.PID, st.LastExit = StateRestarting, 0, exit })
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
		delay = min(2*delay, restartDelayMax)
	}
	s.update(c.name, func(st *ComponentStatus) { st.State, st.PID = StateStopped, 0 })
}

// runOnce runs the component until it ends and returns how it ended.
func (s *supervisor) runOnce(ctx context.Context, c component) (string, error) {
	pid, exited, err := s.reaper.start(c.command, filepath.Join(s.logDir, c.name+".log"))
	if err != nil {
		return "", err
	}
	s.update(c.name, func(st *ComponentStatus) { st.State, st.PID = StateStarting, pid; st.Starts++ })

	readyCtx, stopProbing := context.WithCancel(ctx)
	var probing sync.WaitGroup
	probing.Go(func() { s.probe(readyCtx, c) })
	defer probing.Wait()
	defer stopProbing()

	select {
	case status := <-exited:
		return status, nil
	case <-ctx.Done():
	}
	_ = syscall.Kill(pid, syscall.SIGTERM)
	select {
	case status := <-exited:
		return status, nil
	case <-time.After(stopGrace):
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	return <-exited, nil
}

func (s *supervisor) probe(ctx context.Context, c component) {
	ticker := time.NewTicker(readinessPeriod)
	defer ticker.Stop()
	for {
		if c.ready == nil || c.ready(ctx) == nil {
			break
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
	s.update(c.name, func(st *ComponentStatus) { st.State = StateReady })
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.ready[c.name]:
	default:
		close(s.ready[c.name])
	}
}

// update changes one status and writes status.json whole, so that a reader never sees half of it.
func (s *supervisor) update(name string, change func(*ComponentStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := s.status[name]
	change(&status)
	s.status[name] = status
	data, err := json.MarshalIndent(s.status, "", "  ")
	if err == nil {
		next := s.statusFile + ".next"
		if err = os.WriteFile(next, data, 0o644); err == nil {
			err = os.Rename(next, s.statusFile)
		}
	}
	if err != nil {
		slog.Error("write status", "error", err)
	}
}

// reaper starts processes and collects every one that ends: those it started and, being the
// first process of its namespace, those that others left behind.
type reaper struct {
	mu      sync.Mutex
	waiting map[int]chan string
}

func newReaper() *reaper {
	r := &reaper{waiting: map[int]chan string{}}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	go func() {
		for range ended {
			r.collect()
		}
	}()
	return r
}

func (r *reaper) start(command []string, logFile string) (int, <-chan string, error) {
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return 0, nil, err
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, nil, err
	}
	defer null.Close()
	fmt.Fprintf(out, "--- %s start %q\n", time.Now().UTC().Format(time.RFC3339), command)

	// Held over the fork, so that the process can't be collected before it is known.
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(command[0], command, &syscall.ProcAttr{
		Dir:   "/",
		Env:   componentEnvironment(),
		Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, nil, fmt.Errorf("start %s: %w", command[0], err)
	}
	exited := make(chan string, 1)
	r.waiting[pid] = exited
	return pid, exited, nil
}

func (r *reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if exited, ok := r.waiting[pid]; ok {
			delete(r.waiting, pid)
			exited <- describe(status)
		}
	}
}

func describe(status unix.WaitStatus) string {
	if status.Signaled() {
		return "signal: " + status.Signal().String()
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus())
}

func componentEnvironment() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/var/lib",
		"TMPDIR=/var/tmp",
		"LANG=C.UTF-8",
	}
}

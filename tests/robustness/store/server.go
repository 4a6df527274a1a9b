// Package store starts megacluster-store as a process that is killed and loses power, and reads what
// it had persisted.
package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/tests/v3/framework/e2e"
)

// patience is how long anything may take that takes milliseconds.
const patience = time.Minute

// Server is one store on one data directory, over many lives.
type Server struct {
	Binary string
	// Root holds the data directory, an archive of all segments there ever were, and traces.
	Root  string
	Flags []string
	// Traced: the system calls are recorded, so that LosePower knows what was synced.
	Traced bool
	// Inject is an argument of strace's --inject: a fault in some system calls. Needs Traced, or Only.
	Inject string
	// Only: the fault is in calls on this file of the data directory alone; nothing else is traced.
	Only string

	address string
	lives   int
	process *exec.Cmd
	tracer  int
	output  *os.File
	archive sync.WaitGroup
	ended   chan struct{}
	disk    *Disk
	starts  []Recovery
}

// Recovery is a start on what an earlier life left.
type Recovery struct {
	Began, Served time.Time
	// Compacted: history up to here is forgotten. A snapshot holds none, so a start from one
	// compacts, whether a client asked for it or not.
	Compacted int64
}

var recovered = regexp.MustCompile(`sequencer::run: recovered revision=\d+ compacted=(-?\d+)`)

// Recoveries are all starts so far.
func (s *Server) Recoveries() []Recovery { return s.starts }

// member is what etcd's packages know a server by; of all its methods they use one.
type member struct {
	e2e.EtcdProcess
	server *Server
}

func (m member) EndpointsGRPC() []string { return []string{m.server.address} }

// Member is the server as etcd's packages know it.
func (s *Server) Member() e2e.EtcdProcess { return member{server: s} }

// Data is the data directory.
func (s *Server) Data() string { return filepath.Join(s.Root, "data") }

func (s *Server) old() string { return filepath.Join(s.Root, "archive") }

// Output is what the last life said.
func (s *Server) Output() string {
	text, _ := os.ReadFile(filepath.Join(s.Root, fmt.Sprintf("output-%d", s.lives)))
	return string(text)
}

func (s *Server) tracePath() string {
	return filepath.Join(s.Root, fmt.Sprintf("trace-%d", s.lives))
}

// Start begins a life and waits until it serves.
func (s *Server) Start() error {
	if s.address == "" {
		// A port of its own for all lives, as clients expect. It may be taken by another process
		// between two of them only if nothing else binds it by number.
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		s.address = listener.Addr().String()
		listener.Close()
		if err := os.MkdirAll(s.old(), 0o700); err != nil {
			return err
		}
	}
	s.lives++
	command := []string{
		s.Binary, "--data-dir=" + s.Data(), "--listen-client-urls=http://" + s.address,
		"--advertise-client-urls=http://" + s.address, "--watch-progress-notify-interval=100ms",
	}
	command = append(command, s.Flags...)
	if s.Only != "" {
		file := filepath.Join(s.Data(), s.Only)
		strace := []string{"strace", "-D", "-f", "-q", "-o", os.DevNull, "-P", file}
		command = append(append(strace, "-e", "inject="+s.Inject, "--"), command...)
	} else if s.Traced {
		disk, err := ReadDisk(s.Data())
		if err != nil {
			return err
		}
		s.disk = disk
		strace := []string{
			// -D: the store is our child, strace its.
			"strace", "-D", "-f", "-q", "-y", "-s", "0", "--seccomp-bpf", "-o", s.tracePath(),
			"-e", "trace=" + tracedCalls,
		}
		if s.Inject != "" {
			strace = append(strace, "-e", "inject="+s.Inject)
		}
		command = append(append(strace, "--"), command...)
	}
	output, err := os.Create(filepath.Join(s.Root, fmt.Sprintf("output-%d", s.lives)))
	if err != nil {
		return err
	}
	s.output = output
	s.process = exec.Command(command[0], command[1:]...)
	s.process.Stdout, s.process.Stderr = output, output
	began := time.Now()
	if err := s.process.Start(); err != nil {
		return err
	}
	s.ended = make(chan struct{})
	go func(process *exec.Cmd, ended chan struct{}) {
		_ = process.Wait()
		close(ended)
	}(s.process, s.ended)
	s.archive.Add(1)
	go s.keepSegments(s.ended)
	if err := s.ready(); err != nil {
		return err
	}
	found := recovered.FindStringSubmatch(s.Output())
	if found == nil {
		return fmt.Errorf("the store does not say what it recovered:\n%s", s.Output())
	}
	compacted, err := strconv.ParseInt(found[1], 10, 64)
	if err != nil {
		return err
	}
	s.starts = append(s.starts, Recovery{Began: began, Served: time.Now(), Compacted: compacted})
	return nil
}

func (s *Server) ready() error {
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		select {
		case <-s.ended:
			return fmt.Errorf("the store ended by itself:\n%s", s.Output())
		default:
		}
		if connection, err := net.DialTimeout("tcp", s.address, time.Second); err == nil {
			connection.Close()
			if s.Traced {
				return s.findTracer()
			}
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("the store does not serve:\n%s", s.Output())
}

// Kill ends the life by kill -9.
func (s *Server) Kill() error { return s.end(syscall.SIGKILL) }

// Stop ends the life by SIGTERM.
func (s *Server) Stop() error { return s.end(syscall.SIGTERM) }

// Pid is the process of this life.
func (s *Server) Pid() int { return s.process.Process.Pid }

func (s *Server) end(signal os.Signal) error {
	if s.process == nil {
		return nil
	}
	if err := s.process.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.ended:
	case <-time.After(patience):
		return fmt.Errorf("the store does not end:\n%s", s.Output())
	}
	s.archive.Wait()
	s.output.Close()
	s.process = nil
	if strings.Contains(s.Output(), "panicked at") {
		return fmt.Errorf("the store panicked:\n%s", s.Output())
	}
	if !s.Traced {
		return nil
	}
	// strace writes what it still has, and ends.
	deadline := time.Now().Add(patience)
	for running(s.tracer) {
		if time.Now().After(deadline) {
			return errors.New("strace does not end")
		}
		time.Sleep(time.Millisecond)
	}
	trace, err := os.ReadFile(s.tracePath())
	if err != nil {
		return err
	}
	if len(trace) == 0 {
		return errors.New("the trace is empty")
	}
	return s.disk.Follow(string(trace))
}

// running: a process is there, and not only its exit status.
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

var tracerLine = regexp.MustCompile(`(?m)^TracerPid:\s+(\d+)$`)

// findTracer notes which strace traces this life.
func (s *Server) findTracer() error {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Pid()))
	if err != nil {
		return err
	}
	match := tracerLine.FindSubmatch(status)
	if match == nil {
		return errors.New("no TracerPid")
	}
	if s.tracer, err = strconv.Atoi(string(match[1])); err == nil && s.tracer == 0 {
		err = errors.New("the store is not traced")
	}
	return err
}

// LosePower takes back, after Kill, a random part of what the last life did not sync: an end of it,
// and with holes also sectors before. Gives what was taken.
func (s *Server) LosePower(random *rand.Rand, holes bool) (Loss, error) {
	loss, err := s.disk.Lose(random, holes)
	if err != nil {
		return loss, err
	}
	return loss, s.forgetLost()
}

// keepSegments links every log segment into the archive: what a snapshot makes needless is removed
// from the data directory, and the history is judged from its beginning. A segment lives as long as
// it takes to write a snapshot at least.
func (s *Server) keepSegments(ended chan struct{}) {
	defer s.archive.Done()
	for {
		s.link()
		select {
		case <-ended:
			s.link()
			return
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func segments(dir string) []string {
	names, _ := filepath.Glob(filepath.Join(dir, "log-*[0-9]"))
	return names
}

func (s *Server) link() {
	for _, segment := range segments(s.Data()) {
		kept := filepath.Join(s.old(), filepath.Base(segment))
		now, err := os.Stat(segment)
		if err != nil {
			continue
		}
		if before, err := os.Stat(kept); err == nil {
			if os.SameFile(now, before) {
				continue
			}
			os.Remove(kept)
		}
		// Gone again: then it was linked before.
		_ = os.Link(segment, kept)
	}
}

// forgetLost drops segments from the archive whose making was lost: they never were.
func (s *Server) forgetLost() error {
	last := ""
	for _, segment := range segments(s.Data()) {
		last = max(last, filepath.Base(segment))
	}
	for _, kept := range segments(s.old()) {
		if filepath.Base(kept) > last {
			if err := os.Remove(kept); err != nil {
				return err
			}
		}
	}
	return nil
}

// Dump gives the store's own account of all it ever persisted, by `megacluster-store dump` on the
// archived log.
func (s *Server) Dump(ctx context.Context) ([]Record, error) {
	command := exec.CommandContext(ctx, s.Binary, "dump", "--data-dir="+s.old())
	output, err := command.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return nil, fmt.Errorf("dump: %w: %s", err, exit.Stderr)
		}
		return nil, err
	}
	return parseDump(output)
}

package cluster

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// identity is a process that a PID alone doesn't name: PIDs are used again.
type identity struct {
	pid   int
	start string // clock ticks after boot, field 22 of /proc/PID/stat
}

func identify(pid int) (identity, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return identity{}, err
	}
	// The second field is the name in parentheses and may hold anything.
	_, rest, found := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')'):]), " ")
	fields := strings.Fields(rest)
	if !found || len(fields) < 20 {
		return identity{}, fmt.Errorf("unexpected /proc/%d/stat", pid)
	}
	if fields[0] == "Z" {
		return identity{}, fmt.Errorf("process %d has ended", pid)
	}
	return identity{pid: pid, start: fields[19]}, nil
}

func (i identity) write(file string) error {
	return os.WriteFile(file, fmt.Appendf(nil, "%d %s\n", i.pid, i.start), 0o644)
}

// readIdentity returns the process that a PID file names, and whether it still runs.
func readIdentity(file string) (identity, bool) {
	content, err := os.ReadFile(file)
	if err != nil {
		return identity{}, false
	}
	pid, start, _ := strings.Cut(strings.TrimSpace(string(content)), " ")
	number, err := strconv.Atoi(pid)
	if err != nil {
		return identity{}, false
	}
	i := identity{pid: number, start: start}
	return i, i.runs()
}

func (i identity) runs() bool {
	now, err := identify(i.pid)
	return err == nil && now == i
}

// end asks the process to end, waits, and ends it.
func (i identity) end(grace time.Duration) error {
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGTERM, grace}, {syscall.SIGKILL, 10 * time.Second}} {
		if !i.runs() {
			return nil
		}
		if err := syscall.Kill(i.pid, step.signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
		for deadline := time.Now().Add(step.wait); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if !i.runs() {
				return nil
			}
		}
	}
	return fmt.Errorf("process %d doesn't end", i.pid)
}

package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupParents are the directories under which the cluster has its cgroup: one for each
// controller of version 1, the one of version 2.
func cgroupParents() ([]string, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(cgroupMount, &stat); err != nil {
		return nil, fmt.Errorf("look at %s: %w", cgroupMount, err)
	}
	if stat.Type == unix.CGROUP2_SUPER_MAGIC {
		return []string{cgroupMount}, nil
	}
	entries, err := os.ReadDir(cgroupMount)
	if err != nil {
		return nil, err
	}
	var parents []string
	for _, entry := range entries {
		if entry.IsDir() { // symbolic links name controllers that share a mount
			parents = append(parents, filepath.Join(cgroupMount, entry.Name()))
		}
	}
	return parents, nil
}

func (c *Config) makeCgroups() error {
	parents, err := cgroupParents()
	if err != nil {
		return err
	}
	for _, parent := range parents {
		group := filepath.Join(parent, c.cgroup())
		enableControllers(parent)
		if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		enableControllers(group)
		// In version 1 a cpuset without CPUs and memory nodes takes no process.
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(parent, name))
			if err != nil {
				continue
			}
			if err := os.WriteFile(filepath.Join(group, name), value, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// enableControllers hands a version 2 group's controllers down to the groups below it: the kubelet
// refuses a root without them. What can't be handed down the kubelet names itself.
func enableControllers(group string) {
	controllers, err := os.ReadFile(filepath.Join(group, "cgroup.controllers"))
	if err != nil {
		return // version 1
	}
	for controller := range strings.FieldsSeq(string(controllers)) {
		_ = os.WriteFile(filepath.Join(group, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
	}
}

// removeCgroups removes the cluster's cgroups, whose processes have ended: the kernel may take a
// moment to notice.
func (c *Config) removeCgroups(deadline time.Time) error {
	parents, err := cgroupParents()
	if err != nil {
		return err
	}
	for _, parent := range parents {
		for {
			err := removeTree(filepath.Join(parent, c.cgroup()))
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("remove cgroup: %w", err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}

// removeTree removes a directory and those below it, and no file: a cgroup's files go with it.
func removeTree(directory string) error {
	if !strings.HasPrefix(directory, cgroupMount+"/") {
		return fmt.Errorf("%s is not a cgroup", directory)
	}
	entries, err := os.ReadDir(directory)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(filepath.Join(directory, entry.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return unix.Rmdir(directory)
}

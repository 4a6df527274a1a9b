package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const cgroupMount = "/sys/fs/cgroup"

// kernelTunables are what the kubelet wants of the kernel. They aren't namespaced: instead of
// setting them for the whole machine, files with these values cover them in the cluster's mount
// namespace, and the kubelet finds nothing to change.
var kernelTunables = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// RunNode is the first process of the cluster's namespaces: it prepares them and supervises the
// components until SIGTERM.
func (c *Config) RunNode() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	logDir, err := openPath(c.logDir())
	if err != nil {
		return err
	}
	state, err := openPath(c.State)
	if err != nil {
		return err
	}
	if err := c.prepareMounts(); err != nil {
		return fmt.Errorf("prepare mounts: %w", err)
	}
	if err := prepareNetwork(); err != nil {
		return fmt.Errorf("prepare network: %w", err)
	}
	if err := unix.Sethostname([]byte(c.nodeName())); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	components, err := c.components()
	if err != nil {
		return err
	}
	// By descriptor: the mounts may cover the paths.
	newSupervisor(newReaper(), logDir, filepath.Join(state, filepath.Base(c.statusFile())), components).
		run(ctx, components)
	slog.Info("node stopped")
	return nil
}

// openPath returns a path of the directory that no later mount covers.
func openPath(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY, 0) // not close-on-exec on purpose: held for life
	if err != nil {
		return "", fmt.Errorf("open %s: %w", path, err)
	}
	unix.CloseOnExec(fd)
	return fmt.Sprintf("/proc/self/fd/%d", fd), nil
}

// prepareMounts gives the cluster its own /run, /var and /proc. The rest of the machine's files
// are seen as they are; nothing mounted here is seen outside.
func (c *Config) prepareMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	variable, err := openPath(c.path("var"))
	if err != nil {
		return err
	}
	if err := c.mountRun(); err != nil {
		return err
	}
	if err := unix.Mount(variable, "/var", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount /var: %w", err)
	}
	if err := coverTunables(); err != nil {
		return err
	}
	// Shared among the cluster's own mount namespaces: volumes propagate into running pods.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return c.makeCgroups()
}

// mountRun builds the new /run beside the old one, which may hold the programs, and moves it there.
func (c *Config) mountRun() error {
	staging := c.path("run")
	if err := os.MkdirAll(staging, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", staging, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	programs := filepath.Join(staging, "programs")
	if err := os.Mkdir(programs, 0o755); err != nil {
		return err
	}
	for _, name := range c.programs() {
		source, err := filepath.EvalSymlinks(filepath.Join(c.Programs, name))
		if err != nil {
			return err
		}
		if err := bindFile(source, filepath.Join(programs, name)); err != nil {
			return err
		}
	}
	if err := unix.Mount(staging, "/run", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /run: %w", staging, err)
	}
	return nil
}

func coverTunables() error {
	// A fresh /proc of the new process namespace.
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	const directory = "/run/tunables"
	if err := os.Mkdir(directory, 0o755); err != nil {
		return err
	}
	for name, value := range kernelTunables {
		target := filepath.Join("/proc/sys", name)
		if _, err := os.Stat(target); errors.Is(err, os.ErrNotExist) {
			continue
		}
		source := filepath.Join(directory, strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(source, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover %s: %w", target, err)
		}
	}
	return nil
}

func bindFile(source, target string) error {
	if err := os.WriteFile(target, nil, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", source, err)
	}
	return nil
}

// prepareNetwork makes the node's one interface: an end of a pair whose other end leads nowhere.
func prepareNetwork() error {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", "node0", "type", "veth", "peer", "name", "nowhere0"},
		{"link", "set", "nowhere0", "up"},
		{"link", "set", "node0", "up"},
		{"address", "add", nodeAddress + "/" + nodePrefix, "dev", "node0"},
		// Service addresses need a route to be looked up before kube-proxy's rules translate them.
		{"route", "add", serviceSubnet, "dev", "node0"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

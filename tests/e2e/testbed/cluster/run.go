package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

const (
	nodeGrace   = 15 * time.Second
	cgroupGrace = 10 * time.Second
)

// Run starts the cluster's first process in namespaces of its own, serves the forwards into its
// network, and cleans up after it. The kernel ends the cluster with this process, however this
// process ends; it must be called on the main thread, which lives as long.
func (c *Config) Run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	self, err := identify(os.Getpid())
	if err != nil {
		return err
	}
	if err := self.write(c.clusterPIDFile()); err != nil {
		return err
	}
	executable, err := os.Executable()
	if err != nil {
		return err
	}
	node := exec.Command(executable, c.arguments("node")...)
	node.Stdout, node.Stderr = os.Stdout, os.Stderr
	node.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET |
			syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Pdeathsig: syscall.SIGKILL,
	}
	if err := node.Start(); err != nil {
		return fmt.Errorf("start node: %w", err)
	}
	defer func() {
		if err := c.removeCgroups(time.Now().Add(cgroupGrace)); err != nil {
			slog.Error("clean up", "error", err)
		}
	}()
	ended := make(chan error, 1)
	go func() { ended <- node.Wait() }()

	if err := c.serveNode(ctx, node.Process.Pid); err != nil {
		slog.Error("serve forwards", "error", err)
		stop()
	}
	select {
	case err := <-ended:
		return fmt.Errorf("node ended by itself: %w", errors.Join(err, errors.New("see the lines above")))
	case <-ctx.Done():
	}
	slog.Info("stopping")
	_ = node.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(nodeGrace):
		_ = node.Process.Kill()
		<-ended
	}
	slog.Info("stopped")
	return nil
}

func (c *Config) serveNode(ctx context.Context, pid int) error {
	node, err := identify(pid)
	if err != nil {
		return err
	}
	if err := node.write(c.nodePIDFile()); err != nil {
		return err
	}
	forwards := newForwarder(fmt.Sprintf("/proc/%d/ns/net", pid), c.forwardsFile())
	return forwards.serve(ctx, c.controlSocket())
}

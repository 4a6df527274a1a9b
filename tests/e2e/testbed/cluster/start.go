package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	apiForward    = "management"
	pollPeriod    = 200 * time.Millisecond
	logTailLength = 4096

	stopGraceTotal = nodeGrace + cgroupGrace + 5*time.Second
)

// Start brings the cluster up, or finds it up, and waits until its node is ready. Progress goes
// to out. A cluster that runs other programs than it should is restarted with its data.
func (c *Config) Start(ctx context.Context, out io.Writer) error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	programs, err := c.fingerprint()
	if err != nil {
		return err
	}
	running := false
	if _, runs := readIdentity(c.clusterPIDFile()); runs {
		current, err := os.ReadFile(c.programsFile())
		running = err == nil && string(current) == programs
		if !running {
			fmt.Fprintln(out, "programs have changed: restarting the cluster with its data")
		}
	}
	if !running {
		if err := c.stop(stopGraceTotal); err != nil {
			return err
		}
		if err := c.launch(programs); err != nil {
			return err
		}
	}
	if err := c.waitReady(ctx, out); err != nil {
		return errors.Join(err, errors.New(c.explain()))
	}
	return nil
}

// lock keeps two callers from starting or stopping one cluster at the same time.
func (c *Config) lock() (func(), error) {
	if err := os.MkdirAll(c.State, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(c.path("lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(pollPeriod) {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if time.Now().After(deadline) {
			file.Close()
			return nil, fmt.Errorf("another command is at work on cluster %s: %w", c.Name, err)
		}
	}
}

// launch writes the cluster's files and starts its two processes in the background.
func (c *Config) launch(programs string) error {
	for _, directory := range []string{
		c.logDir(), c.path("var", "log", "pods"), c.path("var", "lib", "volumes"), c.path("var", "tmp"),
	} {
		if err := os.MkdirAll(directory, 0o755); err != nil {
			return err
		}
	}
	if err := os.Symlink("/run", c.path("var", "run")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Written last: certificates half made by a command that was killed are made anew.
	complete := c.path("pki-complete")
	if _, err := os.Stat(complete); err != nil {
		if err := c.writePKI(); err != nil {
			return err
		}
		if err := os.WriteFile(complete, nil, 0o644); err != nil {
			return err
		}
	}
	if err := c.writeFiles(c.kubernetesDir()); err != nil {
		return err
	}
	if err := os.Remove(c.statusFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	log, err := os.OpenFile(filepath.Join(c.logDir(), "cluster.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	executable, err := os.Executable()
	if err != nil {
		return err
	}
	run := exec.Command(executable, c.arguments("run")...)
	run.Dir = "/"
	run.Stdout, run.Stderr = log, log
	run.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := run.Start(); err != nil {
		return err
	}
	self, err := identify(run.Process.Pid)
	if err != nil {
		return fmt.Errorf("the cluster ended at once: %w", err)
	}
	if err := self.write(c.clusterPIDFile()); err != nil {
		return err
	}
	// Collected here while this command runs, so that its end is seen.
	go func() { _ = run.Wait() }()
	return os.WriteFile(c.programsFile(), []byte(programs), 0o644)
}

// waitReady prints each component that becomes ready and returns when the node is.
func (c *Config) waitReady(ctx context.Context, out io.Writer) error {
	start := time.Now()
	seen := map[string]bool{}
	var last error = errors.New("nothing has started")
	for ; ; time.Sleep(pollPeriod) {
		if ctx.Err() != nil {
			return fmt.Errorf("the cluster isn't ready in time: %w", last)
		}
		if _, runs := readIdentity(c.clusterPIDFile()); !runs {
			return errors.New("the cluster's process has ended")
		}
		status, err := c.Status()
		if err != nil {
			last = err
			continue
		}
		var waiting []string
		for name, component := range status {
			if component.State != StateReady {
				waiting = append(waiting, fmt.Sprintf("%s is %s", name, component.State))
			} else if !seen[name] {
				seen[name] = true
				fmt.Fprintf(out, "%5.1fs  %s ready\n", time.Since(start).Seconds(), name)
			}
		}
		if len(waiting) > 0 || len(status) == 0 {
			last = errors.New(strings.Join(waiting, ", "))
			continue
		}
		forward, err := c.SetForward(ctx, apiForward, c.server())
		if err != nil {
			last = err
			continue
		}
		server := "https://" + forward.Listen
		if last = c.nodeReady(ctx, server); last == nil {
			fmt.Fprintf(out, "%5.1fs  node ready\n", time.Since(start).Seconds())
			return c.writeKubeconfig(c.Kubeconfig(), "admin", server)
		}
	}
}

// Status reads what the cluster's supervisor last wrote.
func (c *Config) Status() (map[string]ComponentStatus, error) {
	content, err := os.ReadFile(c.statusFile())
	if err != nil {
		return nil, err
	}
	var status map[string]ComponentStatus
	return status, json.Unmarshal(content, &status)
}

func (c *Config) nodeReady(ctx context.Context, server string) error {
	client, err := adminClient(c.kubernetesDir())
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server+"/api/v1/nodes/"+c.nodeName(), nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get node: %s", resp.Status)
	}
	var node struct {
		Status struct {
			Conditions []struct{ Type, Status, Message string }
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&node); err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == "Ready" && condition.Status == "True" {
			return nil
		} else if condition.Type == "Ready" {
			return fmt.Errorf("the node isn't ready: %s", condition.Message)
		}
	}
	return errors.New("the node has no Ready condition yet")
}

// explain returns the end of the log that most likely says why the cluster isn't ready.
func (c *Config) explain() string {
	culprit := "cluster"
	status, err := c.Status()
	if err == nil {
		for _, name := range []string{"kube-proxy", "kubelet", "kube-scheduler", "kube-controller-manager", doorProgram, "kube-apiserver", "containerd", "etcd"} {
			if state := status[name].State; state == StateStarting || state == StateRestarting {
				culprit = name
			}
		}
	}
	file := filepath.Join(c.logDir(), culprit+".log")
	content, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	if len(content) > logTailLength {
		content = content[len(content)-logTailLength:]
	}
	return fmt.Sprintf("the end of %s:\n%s", file, content)
}

// Stop ends the cluster and leaves its data for the next start.
func (c *Config) Stop() error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return c.stop(stopGraceTotal)
}

func (c *Config) stop(grace time.Duration) error {
	if cluster, runs := readIdentity(c.clusterPIDFile()); runs {
		if err := cluster.end(grace); err != nil {
			return err
		}
	}
	// Only when the former was killed: the kernel is ending the node's processes.
	if node, runs := readIdentity(c.nodePIDFile()); runs {
		if err := node.end(0); err != nil {
			return err
		}
	}
	for _, file := range []string{c.clusterPIDFile(), c.nodePIDFile(), c.controlSocket(), c.statusFile()} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return c.removeCgroups(time.Now().Add(cgroupGrace))
}

// Delete ends the cluster and removes everything it wrote.
func (c *Config) Delete() error {
	if _, err := os.Stat(c.State); errors.Is(err, fs.ErrNotExist) {
		return c.removeCgroups(time.Now().Add(cgroupGrace))
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.stop(0); err != nil { // nobody will read what a graceful end would save
		return err
	}
	return os.RemoveAll(c.State)
}

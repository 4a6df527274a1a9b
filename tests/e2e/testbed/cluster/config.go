// Package cluster runs a whole single-node Kubernetes cluster on one machine, in namespaces of
// its own: process, mount, network, IPC and UTS. The first process in them supervises the rest,
// so that the kernel ends every process, mount and network device of the cluster with it,
// however it ends.
package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Addresses within the cluster's own network namespace: the same for every cluster.
const (
	nodeAddress    = "192.168.248.2"
	nodePrefix     = "24"
	podSubnet      = "10.244.0.0/16"
	serviceSubnet  = "10.96.0.0/16"
	serviceAddress = "10.96.0.1"
	dnsAddress     = "10.96.0.10"
	apiPort        = "6443"
	doorPort       = "7443"
)

// Programs that a cluster runs, each expected in Config.Programs.
var programNames = []string{
	"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy",
}

const doorProgram = "megacluster-watchcache"

var validName = regexp.MustCompile(`^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$`)

// Config says which cluster it is and where its files are.
type Config struct {
	Name     string // a DNS label; names the node, the cgroup and nothing else on the machine
	State    string // directory of everything the cluster writes; removed when it is deleted
	Programs string // directory of the programs in programNames
	// Whether the components and the administrator reach the API server through a front door,
	// which answers their reads from its cache. It can't be changed once the cluster exists.
	FrontDoor bool
}

// programs are the names of those that the cluster runs.
func (c *Config) programs() []string {
	if c.FrontDoor {
		return append([]string{doorProgram}, programNames...)
	}
	return programNames
}

// server is where all but the front door reach the API server.
func (c *Config) server() string {
	if c.FrontDoor {
		return nodeAddress + ":" + doorPort
	}
	return nodeAddress + ":" + apiPort
}

// arguments are those by which a command of this program is about the same cluster.
func (c *Config) arguments(command string) []string {
	return []string{command, "--name", c.Name, "--state", c.State, "--programs", c.Programs, "--front-door=" + strconv.FormatBool(c.FrontDoor)}
}

// Validate checks the configuration and makes its paths absolute.
func (c *Config) Validate() error {
	if !validName.MatchString(c.Name) {
		return fmt.Errorf("cluster name %q: want a DNS label of at most 40 characters", c.Name)
	}
	if c.State == "" {
		return errors.New("no state directory given")
	}
	for _, path := range []*string{&c.State, &c.Programs} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = absolute
	}
	return nil
}

func (c *Config) path(elements ...string) string {
	return filepath.Join(append([]string{c.State}, elements...)...)
}

// Paths as seen from outside the cluster. Inside, `var` is /var and the same files are under
// /var/lib/kubernetes.
func (c *Config) logDir() string             { return c.path("logs") }
func (c *Config) statusFile() string         { return c.path("status.json") }
func (c *Config) controlSocket() string      { return c.path("control.sock") }
func (c *Config) forwardsFile() string       { return c.path("forwards.json") }
func (c *Config) clusterPIDFile() string     { return c.path("cluster.pid") }
func (c *Config) nodePIDFile() string        { return c.path("node.pid") }
func (c *Config) programsFile() string       { return c.path("programs") }
func (c *Config) kubernetesDir() string      { return c.path("var", "lib", "kubernetes") }
func (c *Config) kubernetes(f string) string { return filepath.Join(c.kubernetesDir(), f) }
func (c *Config) nodeName() string           { return c.Name }
func (c *Config) cgroup() string             { return "megacluster-" + c.Name }

// Kubeconfig is the administrator's kubeconfig for use on the machine.
func (c *Config) Kubeconfig() string { return c.path("kubeconfig") }

// fingerprint names the programs by their real paths, which a content-addressed cache changes
// with the content.
func (c *Config) fingerprint() (string, error) {
	names := c.programs()
	paths := make([]string, 0, len(names))
	for _, name := range names {
		path, err := filepath.EvalSymlinks(filepath.Join(c.Programs, name))
		if err != nil {
			return "", fmt.Errorf("program %s: %w", name, err)
		}
		paths = append(paths, path)
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	return strings.Join(append(paths, self), "\n") + "\n", nil
}

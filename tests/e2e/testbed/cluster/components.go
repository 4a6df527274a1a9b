package cluster

import (
	"context"
	"crypto/tls"
	"embed"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"
)

//go:embed files
var files embed.FS

const (
	programDir       = "/run/programs"
	kubernetesDir    = "/var/lib/kubernetes"
	containerdSocket = "/run/containerd/containerd.sock"
	probeTimeout     = 2 * time.Second
	doorAdmin        = "127.0.0.1:9443"
)

// cachedResources are what the front door answers itself: all that a node's programs, the
// controllers and the scheduler watch.
var cachedResources = []string{
	"pods", "nodes", "services", "configmaps", "secrets", "namespaces", "serviceaccounts", "events",
	"persistentvolumes", "leases.coordination.k8s.io", "endpointslices.discovery.k8s.io",
	"deployments.apps", "replicasets.apps", "csinodes.storage.k8s.io", "csidrivers.storage.k8s.io",
	"storageclasses.storage.k8s.io", "runtimeclasses.node.k8s.io",
}

// writeFiles renders the components' configuration files into directory.
func (c *Config) writeFiles(directory string) error {
	parsed, err := template.ParseFS(files, "files/*")
	if err != nil {
		return err
	}
	values := map[string]string{
		"Node": c.nodeName(), "NodeAddress": nodeAddress, "PodSubnet": podSubnet, "DNSAddress": dnsAddress,
		"APIPort": apiPort, "Cgroup": c.cgroup(), "Kubernetes": kubernetesDir, "ContainerdSocket": containerdSocket,
	}
	for _, t := range parsed.Templates() {
		out, err := os.Create(filepath.Join(directory, t.Name()))
		if err != nil {
			return err
		}
		err = t.Execute(out, values)
		if closeErr := out.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", t.Name(), err)
		}
	}
	return nil
}

// components are the programs of the cluster with their flags. Where kubeadm sets a flag, it is
// set here to the same effect.
func (c *Config) components() ([]component, error) {
	admin, err := adminClient(kubernetesDir)
	if err != nil {
		return nil, err
	}
	file := func(name string) string { return filepath.Join(kubernetesDir, name) }
	program := func(name string) string { return filepath.Join(programDir, name) }
	api := "kube-apiserver"
	if c.FrontDoor {
		api = doorProgram
	}
	all := []component{
		{
			name:  "etcd",
			ready: httpOK(http.DefaultClient, "http://127.0.0.1:2381/readyz"),
			command: []string{
				program("etcd"),
				"--name=" + c.nodeName(),
				"--data-dir=/var/lib/etcd",
				"--listen-client-urls=https://127.0.0.1:2379",
				"--advertise-client-urls=https://127.0.0.1:2379",
				"--listen-peer-urls=http://127.0.0.1:2380",
				"--listen-metrics-urls=http://127.0.0.1:2381",
				"--cert-file=" + file("etcd.crt"),
				"--key-file=" + file("etcd.key"),
				"--client-cert-auth",
				"--trusted-ca-file=" + file("etcd-ca.crt"),
				"--watch-progress-notify-interval=5s",
				// The cluster is a test's: it outlives kill -9, it needn't outlive a power cut.
				"--unsafe-no-fsync",
				"--log-level=warn",
			},
		},
		{
			name:  "kube-apiserver",
			after: []string{"etcd"},
			ready: httpOK(admin, "https://"+nodeAddress+":"+apiPort+"/readyz"),
			command: []string{
				program("kube-apiserver"),
				"--advertise-address=" + nodeAddress,
				"--secure-port=" + apiPort,
				"--service-cluster-ip-range=" + serviceSubnet,
				"--etcd-servers=https://127.0.0.1:2379",
				"--etcd-cafile=" + file("etcd-ca.crt"),
				"--etcd-certfile=" + file("etcd-client.crt"),
				"--etcd-keyfile=" + file("etcd-client.key"),
				"--tls-cert-file=" + file("kube-apiserver.crt"),
				"--tls-private-key-file=" + file("kube-apiserver.key"),
				"--client-ca-file=" + file("ca.crt"),
				"--authorization-mode=Node,RBAC",
				"--enable-admission-plugins=NodeRestriction",
				"--allow-privileged=true",
				"--kubelet-certificate-authority=" + file("ca.crt"),
				"--kubelet-client-certificate=" + file("kubelet-client.crt"),
				"--kubelet-client-key=" + file("kubelet-client.key"),
				"--kubelet-preferred-address-types=InternalIP",
				"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
				"--service-account-key-file=" + file("service-account.pub"),
				"--service-account-signing-key-file=" + file("service-account.key"),
				"--requestheader-client-ca-file=" + file("front-proxy-ca.crt"),
				"--requestheader-allowed-names=front-proxy-client",
				"--requestheader-username-headers=X-Remote-User",
				"--requestheader-group-headers=X-Remote-Group",
				"--requestheader-extra-headers-prefix=X-Remote-Extra-",
				"--proxy-client-cert-file=" + file("front-proxy-client.crt"),
				"--proxy-client-key-file=" + file("front-proxy-client.key"),
				"--shutdown-delay-duration=0s",
			},
		},
		{
			name:  "kube-controller-manager",
			after: []string{api},
			ready: httpOK(insecureClient(), "https://127.0.0.1:10257/healthz"),
			command: []string{
				program("kube-controller-manager"),
				"--kubeconfig=" + file("controller-manager.kubeconfig"),
				"--authentication-kubeconfig=" + file("controller-manager.kubeconfig"),
				"--authorization-kubeconfig=" + file("controller-manager.kubeconfig"),
				"--bind-address=127.0.0.1",
				"--use-service-account-credentials",
				"--root-ca-file=" + file("ca.crt"),
				"--service-account-private-key-file=" + file("service-account.key"),
				"--cluster-signing-cert-file=" + file("ca.crt"),
				"--cluster-signing-key-file=" + file("ca.key"),
				// One of each: an election would only slow a restart.
				"--leader-elect=false",
			},
		},
		{
			name:  "kube-scheduler",
			after: []string{api},
			ready: httpOK(insecureClient(), "https://127.0.0.1:10259/healthz"),
			command: []string{
				program("kube-scheduler"),
				"--kubeconfig=" + file("scheduler.kubeconfig"),
				"--authentication-kubeconfig=" + file("scheduler.kubeconfig"),
				"--authorization-kubeconfig=" + file("scheduler.kubeconfig"),
				"--bind-address=127.0.0.1",
				"--leader-elect=false",
			},
		},
		{
			name:    "containerd",
			ready:   socketOpen(containerdSocket),
			command: []string{"/usr/bin/containerd", "--config", file("containerd.toml")},
		},
		{
			name:  "kubelet",
			after: []string{api, "containerd"},
			ready: httpOK(http.DefaultClient, "http://127.0.0.1:10248/healthz"),
			command: []string{
				program("kubelet"),
				"--config=" + file("kubelet.yaml"),
				"--kubeconfig=" + file("node.kubeconfig"),
				"--hostname-override=" + c.nodeName(),
				"--node-ip=" + nodeAddress,
			},
		},
		{
			name:    "kube-proxy",
			after:   []string{api},
			ready:   httpOK(http.DefaultClient, "http://127.0.0.1:10256/livez"),
			command: []string{program("kube-proxy"), "--config=" + file("kube-proxy.yaml")},
		},
	}
	if c.FrontDoor {
		all = append(all, component{
			name:  doorProgram,
			after: []string{"kube-apiserver"},
			ready: httpOK(http.DefaultClient, "http://"+doorAdmin+"/readyz"),
			command: []string{
				program(doorProgram),
				"--listen-address=" + nodeAddress + ":" + doorPort,
				"--admin-listen-address=" + doorAdmin,
				"--config=" + file("front-door.yaml"),
				"--tls-cert-file=" + file("kube-apiserver.crt"),
				"--tls-private-key-file=" + file("kube-apiserver.key"),
				"--client-ca-file=" + file("ca.crt"),
				"--cache-resource=" + strings.Join(cachedResources, ","),
				"--cache-review-group=system:masters",
				"--etcd-servers=https://127.0.0.1:2379",
				"--etcd-cafile=" + file("etcd-ca.crt"),
				"--etcd-certfile=" + file("etcd-client.crt"),
				"--etcd-keyfile=" + file("etcd-client.key"),
			},
		})
	}
	return all, nil
}

func httpOK(client *http.Client, url string) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", url, resp.Status)
		}
		return nil
	}
}

// insecureClient asks health endpoints on loopback whose certificates sign themselves.
func insecureClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives: true,
	}}
}

func socketOpen(path string) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// Package journey is what users do with a MegaCluster, on a real management cluster: install,
// use, break, repair and delete it, by unmodified kubectl, client-go and the etcd client.
//
// `make test` starts it. It expects the sample MegaCluster to be Ready with its nodes.
package journey

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// The sample that `make up` applies.
const (
	namespace = "demo"
	name      = "demo"
)

var megaClusters = schema.GroupVersionResource{
	Group: "megacluster.io", Version: "v1alpha1", Resource: "megaclusters",
}

// cluster is one Kubernetes API as a user sees it.
type cluster struct {
	kubeconfig string
	config     *rest.Config
	client     *kubernetes.Clientset
	dynamic    *dynamic.DynamicClient
}

var management, mega *cluster

func TestMain(m *testing.M) {
	var err error
	if management, err = connect("MANAGEMENT_KUBECONFIG"); err == nil {
		mega, err = connect("MEGACLUSTER_KUBECONFIG")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "journey:", err)
		os.Exit(2)
	}
	os.Exit(m.Run())
}

func connect(variable string) (*cluster, error) {
	path := os.Getenv(variable)
	if path == "" {
		return nil, fmt.Errorf("%s is not set: run `make test`", variable)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", variable, err)
	}
	config.QPS, config.Burst = 500, 1000
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	dynamicClient, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &cluster{path, config, client, dynamicClient}, nil
}

// kubectl runs the stock kubectl against the cluster and gives what it printed.
func (c *cluster) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	kubectl := os.Getenv("KUBECTL")
	if kubectl == "" {
		kubectl = "kubectl"
	}
	command := exec.CommandContext(ctx, kubectl, append([]string{"--kubeconfig", c.kubeconfig}, args...)...)
	command.Stdin = strings.NewReader(stdin)
	output, err := command.CombinedOutput()
	return string(output), err
}

func (c *cluster) mustKubectl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	output, err := c.kubectl(t.Context(), stdin, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, output)
	}
	return output
}

// eventually asks until the answer is nil, and fails with the last one after the timeout.
func eventually(t *testing.T, timeout time.Duration, what string, ask func(context.Context) error) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		err := ask(ctx)
		cancel()
		if err == nil {
			return time.Since(start)
		}
		if time.Since(start) > timeout {
			t.Fatalf("%s: not within %s: %v", what, timeout, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// secret reads one value of a Secret of the sample's namespace in the management cluster.
func secret(t *testing.T, secretName, key string) []byte {
	t.Helper()
	object, err := management.client.CoreV1().Secrets(namespace).Get(t.Context(), secretName, getOptions)
	if err != nil {
		t.Fatal(err)
	}
	value, found := object.Data[key]
	if !found {
		t.Fatalf("Secret %s has no key %s", secretName, key)
	}
	return value
}

// repository gives a path below the repository's root.
func repository(t *testing.T, path string) string {
	t.Helper()
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	if fromEnv := os.Getenv("MEGACLUSTER_ROOT"); fromEnv != "" {
		root = fromEnv
	}
	return filepath.Join(root, path)
}

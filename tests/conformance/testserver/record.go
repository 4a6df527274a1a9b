package testserver

import (
	"go.etcd.io/etcd/client/v3/kubernetes"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
)

// record counts what goes through the client, for the tests that look at it. It is a file of its
// own because Kubernetes 1.37 needs another (kubernetes-1.37/testserver/record.go).
func record(client *kubernetes.Client) {
	client.KV = storagetesting.NewKVRecorder(client.KV)
	client.Kubernetes = storagetesting.NewKubernetesRecorder(client.Kubernetes)
}

//go:build tools

// Package tools pins the kube-apiserver of the next Kubernetes, which reads lists by etcd 3.7's
// RangeStream, for the test that starts it on the store.
package tools

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
)

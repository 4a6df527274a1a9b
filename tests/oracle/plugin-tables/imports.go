//go:build imports

// Package main is never built with this tag: these are what the tests of Kubernetes' plugins import
// and nothing else here does, so that go.mod and go.sum hold them.
package main

import (
	_ "github.com/google/go-cmp/cmp"
	_ "github.com/onsi/gomega"
	_ "github.com/stretchr/testify/require"
	_ "go.uber.org/goleak"
	_ "k8s.io/kubernetes/pkg/controller/volume/persistentvolume/testing"
	_ "k8s.io/kubernetes/pkg/scheduler/testing/framework"
	_ "k8s.io/kubernetes/test/utils/ktesting"
)

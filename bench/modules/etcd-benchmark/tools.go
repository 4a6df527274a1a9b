//go:build tools

// Package tools pins etcd's load generator.
package tools

import _ "go.etcd.io/etcd/v3/tools/benchmark"

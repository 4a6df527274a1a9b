package differential

import (
	"bufio"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// absent are etcd's metrics that have no meaning here, by the beginning of their names.
var absent = []string{
	// Of the Go runtime, and of the library that shows metrics.
	"go_", "promhttp_", "etcd_server_go_version",
	// Of the old API, of the proxy, of peers, of users.
	"etcd_debugging_store_", "etcd_grpc_proxy_", "etcd_network_known_peers", "etcd_debugging_auth_revision",
	"etcd_server_learner_promote_successes",
	// Of bbolt and of etcd's own snapshots and log files.
	"etcd_debugging_disk_backend_", "etcd_debugging_snap_", "etcd_disk_backend_defrag_", "etcd_disk_backend_snapshot_",
	"etcd_disk_wal_write_", "etcd_mvcc_db_open_read_transactions", "etcd_mvcc_hash_duration_seconds", "etcd_snap_",
	"etcd_server_snapshot_apply_in_progress_total",
	// Of how etcd works inside: pauses, retries, queues that do not exist here.
	"etcd_debugging_mvcc_db_compaction_", "etcd_debugging_mvcc_index_compaction_",
	"etcd_debugging_mvcc_pending_events_total", "etcd_debugging_mvcc_slow_watcher_total",
	"etcd_debugging_mvcc_total_put_size_in_bytes", "etcd_server_apply_duration_seconds",
	"etcd_server_slow_apply_total", "etcd_server_feature_enabled", "etcd_server_id",
	"etcd_server_range_duration_seconds",
	// By what the clients say of their version.
	"etcd_server_client_requests_total",
}

// series gives the names of what a server shows, without labels and buckets' bounds.
func series(t *testing.T, s *server) (names []string, grpc []string) {
	t.Helper()
	response, err := http.Get("http://" + s.conn.Target() + "/metrics")
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", s.name, response.Status)
	}
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		name, labels, _ := strings.Cut(line[:strings.LastIndexByte(line, ' ')], "{")
		names = append(names, name)
		if strings.HasPrefix(name, "grpc_server_") {
			parts := strings.Split(strings.TrimSuffix(labels, "}"), ",")
			slices.Sort(parts)
			grpc = append(grpc, fmt.Sprint(name, parts))
		}
	}
	slices.Sort(names)
	slices.Sort(grpc)
	return slices.Compact(names), grpc
}

// TestSameMetrics compares the names of what both servers show on their client ports, and the labels
// of what is counted of each call.
func TestSameMetrics(t *testing.T) {
	etcd, store := both(t)
	want, wantCalls := series(t, etcd)
	got, gotCalls := series(t, store)
	for _, name := range want {
		known := slices.ContainsFunc(absent, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
		if has := slices.Contains(got, name); has == known {
			t.Errorf("%s: store has it: %v, the list of absent ones names it: %v", name, has, known)
		}
	}
	for _, name := range got {
		if !slices.Contains(want, name) && !strings.HasPrefix(name, "megacluster_store_") {
			t.Errorf("%s: not a metric of etcd", name)
		}
	}
	for _, call := range wantCalls {
		if !slices.Contains(gotCalls, call) {
			t.Errorf("%s: absent", call)
		}
	}
	for _, call := range gotCalls {
		// Of etcd 3.7.
		if !slices.Contains(wantCalls, call) && !strings.Contains(call, "RangeStream") {
			t.Errorf("%s: not counted by etcd", call)
		}
	}
	t.Logf("%d of etcd's %d metrics, %d counters of calls", len(got), len(want), len(gotCalls))
}

package journey

import (
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestStoreSpeaksEtcd reads the sample's store by a stock etcd client, as an operator of etcd
// would by etcdctl.
func TestStoreSpeaksEtcd(t *testing.T) {
	client := storeClient(t)
	status, err := client.Status(t.Context(), client.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	counted, err := client.Get(t.Context(), "/registry/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	if counted.Count == 0 {
		t.Error("nothing under /registry/")
	}
	if _, err := client.Get(t.Context(), "a", clientv3.WithRev(counted.Header.Revision+1_000_000)); err == nil ||
		!strings.Contains(err.Error(), "required revision is a future revision") {
		t.Errorf("a future revision: %v", err)
	}
	if _, err := client.Put(t.Context(), "/journey/large", strings.Repeat("x", 2<<20)); err == nil ||
		!strings.Contains(err.Error(), "request is too large") {
		t.Errorf("a value of 2 MiB: %v", err)
	}
	t.Logf("etcd API %s, revision %d, %d keys", status.Version, counted.Header.Revision, counted.Count)
}

package journey

import (
	"context"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestStoreSpeaksEtcd reads the sample's store by a stock etcd client, as an operator of etcd
// would by etcdctl.
func TestStoreSpeaksEtcd(t *testing.T) {
	client := storeClient(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	status, err := client.Status(ctx, client.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	counted, err := client.Get(ctx, "/registry/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	if counted.Count == 0 {
		t.Error("nothing under /registry/")
	}
	if _, err := client.Get(ctx, "a", clientv3.WithRev(counted.Header.Revision+1_000_000)); err == nil ||
		!strings.Contains(err.Error(), "required revision is a future revision") {
		t.Errorf("a future revision: %v", err)
	}
	if _, err := client.Put(ctx, "/journey/large", strings.Repeat("x", 1_800_000)); err == nil ||
		!strings.Contains(err.Error(), "request is too large") {
		t.Errorf("a value of 1.8 MB: %v", err)
	}
	t.Logf("etcd API %s, revision %d, %d keys", status.Version, counted.Header.Revision, counted.Count)
}

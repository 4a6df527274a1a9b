package differential

import (
	"context"
	"fmt"
	"testing"

	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// health gives what gRPC's health service says of a service, asked and watched.
func (s *server) health(t *testing.T, service string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	client := grpc_health_v1.NewHealthClient(s.conn)
	request := &grpc_health_v1.HealthCheckRequest{Service: service}
	checked, err := client.Check(ctx, request)
	said := fmt.Sprintf("%v, %s: %s", checked.GetStatus(), status.Code(err), status.Convert(err).Message())
	watch, err := client.Watch(ctx, request)
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	first, err := watch.Recv()
	return fmt.Sprintf("%s; %v, %v", said, first.GetStatus(), err)
}

// TestSameHealth compares what both say of themselves as a whole, and of services that nobody registered.
func TestSameHealth(t *testing.T) {
	etcd, store := both(t)
	for _, service := range []string{"", "etcdserverpb.KV", "grpc.health.v1.Health", "else"} {
		if want, got := etcd.health(t, service), store.health(t, service); want != got {
			t.Errorf("%q:\n etcd: %s\nstore: %s", service, want, got)
		}
	}
}

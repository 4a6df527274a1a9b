package journey

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dialPod connects from inside the management cluster's network namespace, where pods have their
// addresses. A socket stays in the namespace that it was made in.
func dialPod(ctx context.Context, address string) (net.Conn, error) {
	// etcd's client hands over its endpoint with the scheme.
	if _, after, found := strings.Cut(address, "://"); found {
		address = after
	}
	type dialled struct {
		connection net.Conn
		err        error
	}
	result := make(chan dialled, 1)
	go func() {
		// Never unlocked: the thread, which is now in the other namespace, ends with the goroutine.
		runtime.LockOSThread()
		connection, err := func() (net.Conn, error) {
			namespace, err := os.Open(fmt.Sprintf("/proc/%s/ns/net", os.Getenv("NODE_PID")))
			if err != nil {
				return nil, fmt.Errorf("NODE_PID: %w", err)
			}
			defer namespace.Close()
			if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
				return nil, fmt.Errorf("setns: %w", err)
			}
			// Without an own resolver and with one address, Dial makes its socket on this thread.
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", address)
		}()
		result <- dialled{connection, err}
	}()
	got := <-result
	return got.connection, got.err
}

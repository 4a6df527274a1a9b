package journey

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Threads that make sockets in the management cluster's network namespace. A front door's death has
// hundreds of clients connect at once: a thread for each of them would slow all others down.
const dialThreads = 16

type dial struct {
	ctx     context.Context
	address string
	result  chan<- dialled
}

type dialled struct {
	connection net.Conn
	err        error
}

// dials starts the threads, once.
var dials = sync.OnceValue(func() chan<- dial {
	asked := make(chan dial)
	for range dialThreads {
		go func() {
			// Never unlocked: the thread, which is now in the other namespace, ends with the goroutine.
			runtime.LockOSThread()
			err := enterNode()
			for dial := range asked {
				if err != nil {
					dial.result <- dialled{err: err}
					continue
				}
				// Without an own resolver and with one address, Dial makes its socket on this thread.
				connection, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(dial.ctx, "tcp", dial.address)
				dial.result <- dialled{connection, err}
			}
		}()
	}
	return asked
})

// enterNode moves this thread to the network namespace of the management cluster's node.
func enterNode() error {
	namespace, err := os.Open(fmt.Sprintf("/proc/%s/ns/net", os.Getenv("NODE_PID")))
	if err != nil {
		return fmt.Errorf("NODE_PID: %w", err)
	}
	defer namespace.Close()
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("setns: %w", err)
	}
	return nil
}

// dialPod connects from inside the management cluster's network namespace, where pods have their
// addresses. A socket stays in the namespace that it was made in.
func dialPod(ctx context.Context, address string) (net.Conn, error) {
	// etcd's client hands over its endpoint with the scheme.
	if _, after, found := strings.Cut(address, "://"); found {
		address = after
	}
	result := make(chan dialled, 1)
	select {
	case dials() <- dial{ctx, address, result}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	got := <-result
	return got.connection, got.err
}

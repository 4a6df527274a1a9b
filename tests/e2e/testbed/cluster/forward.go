package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dialTimeout    = 5 * time.Second
	maxConnections = 4096 // for each forward; more wait in the listen queue
)

// Forward is a port of the machine's loopback that leads to an address in the cluster's network.
type Forward struct {
	Listen string `json:"listen"`
	Target string `json:"target"` // ADDRESS:PORT or NAME:PORT, a full name of the cluster's DNS
}

// forwarder serves the forwards of one cluster, and a small API on a Unix socket to change them:
// GET / lists them, PUT /NAME with a Forward's target sets one and returns it.
type forwarder struct {
	namespace string // path of the network namespace to dial in
	file      string // where the forwards are kept for the next start

	mu        sync.Mutex
	forwards  map[string]Forward
	listeners map[string]net.Listener
}

func newForwarder(namespace, file string) *forwarder {
	f := &forwarder{
		namespace: namespace, file: file, forwards: map[string]Forward{}, listeners: map[string]net.Listener{},
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return f
	}
	var known map[string]Forward
	if err := json.Unmarshal(content, &known); err != nil {
		slog.Error("read forwards", "error", err)
		return f
	}
	for name, forward := range known {
		if _, err := f.set(name, forward); err != nil {
			slog.Error("restore forward", "name", name, "error", err)
		}
	}
	return f
}

// set makes the forward NAME lead to its target. It keeps the port it had, while that is free.
func (f *forwarder) set(name string, forward Forward) (Forward, error) {
	if _, _, err := net.SplitHostPort(forward.Target); err != nil {
		return Forward{}, fmt.Errorf("target: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if old, ok := f.forwards[name]; ok && old.Target == forward.Target {
		return old, nil
	} else if ok {
		forward.Listen = old.Listen
		_ = f.listeners[name].Close()
	}
	listener, err := net.Listen("tcp", forward.Listen)
	if err != nil || forward.Listen == "" {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return Forward{}, err
	}
	forward.Listen = listener.Addr().String()
	f.forwards[name], f.listeners[name] = forward, listener
	go f.accept(listener, forward.Target)
	slog.Info("forward", "name", name, "listen", forward.Listen, "target", forward.Target)

	content, err := json.MarshalIndent(f.forwards, "", "  ")
	if err != nil {
		return Forward{}, err
	}
	return forward, os.WriteFile(f.file, content, 0o644)
}

func (f *forwarder) accept(listener net.Listener, target string) {
	slots := make(chan struct{}, maxConnections)
	for {
		slots <- struct{}{}
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			slog.Warn("accept", "error", err)
			time.Sleep(100 * time.Millisecond)
			<-slots
			continue
		}
		go func() {
			defer func() { <-slots }()
			if err := f.join(conn, target); err != nil {
				slog.Warn("forward", "target", target, "error", err)
			}
		}()
	}
}

// join copies bytes both ways until both ends are done.
func (f *forwarder) join(outer net.Conn, target string) error {
	defer outer.Close()
	inner, err := f.dial(target)
	if err != nil {
		return err
	}
	defer inner.Close()
	var done sync.WaitGroup
	for _, pair := range [][2]net.Conn{{outer, inner}, {inner, outer}} {
		done.Go(func() {
			_, err := io.Copy(pair[0], pair[1])
			if err != nil {
				_ = pair[0].Close()
				return
			}
			if half, ok := pair[0].(*net.TCPConn); ok {
				_ = half.CloseWrite()
			}
		})
	}
	done.Wait()
	return nil
}

// dial connects from within the cluster's network namespace. A name is asked of the cluster's DNS
// each time: a Service that was deleted and made again has another address.
func (f *forwarder) dial(target string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return nil, err
	}
	if net.ParseIP(host) == nil {
		resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return f.dialAddress(ctx, network, net.JoinHostPort(dnsAddress, "53"))
		}}
		// The dot at the end: the machine's own search list is none of the cluster's business.
		addresses, err := resolver.LookupHost(ctx, strings.TrimSuffix(host, ".")+".")
		if err != nil {
			return nil, err
		}
		host = addresses[0]
	}
	return f.dialAddress(ctx, "tcp", net.JoinHostPort(host, port))
}

// dialAddress connects from within the cluster's network namespace. A socket belongs to the
// namespace of the thread that makes it: the thread is used once and ends with its goroutine.
func (f *forwarder) dialAddress(ctx context.Context, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		namespace, err := os.Open(f.namespace)
		if err != nil {
			results <- result{err: err}
			return
		}
		defer namespace.Close()
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			results <- result{err: fmt.Errorf("enter network namespace: %w", err)}
			return
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		results <- result{conn, err}
	}()
	r := <-results
	return r.conn, r.err
}

// serve answers on the control socket until ctx ends.
func (f *forwarder) serve(ctx context.Context, socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		_ = json.NewEncoder(w).Encode(f.forwards)
	})
	mux.HandleFunc("PUT /{name}", func(w http.ResponseWriter, r *http.Request) {
		var forward Forward
		if err := json.NewDecoder(io.LimitReader(r.Body, 4096)).Decode(&forward); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		forward, err := f.set(r.PathValue("name"), forward)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(forward)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: dialTimeout}
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			slog.Error("control socket", "error", err)
		}
	}()
	return nil
}

// SetForward asks a running cluster for a forward to target, an address in its network.
func (c *Config) SetForward(ctx context.Context, name, target string) (Forward, error) {
	body, err := json.Marshal(Forward{Target: target})
	if err != nil {
		return Forward{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://cluster/"+name, strings.NewReader(string(body)))
	if err != nil {
		return Forward{}, err
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", c.controlSocket())
		},
		DisableKeepAlives: true,
	}}
	resp, err := client.Do(req)
	if err != nil {
		return Forward{}, err
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return Forward{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return Forward{}, fmt.Errorf("set forward %s: %s", name, strings.TrimSpace(string(content)))
	}
	var forward Forward
	return forward, json.Unmarshal(content, &forward)
}

// Command kwok-health says whether kwok still renews the leases of the nodes that it plays; the
// kubelet asks it as kwok's liveness probe.
//
// kwok watches from resourceVersion 0 and never lists anew. When the store restarts, the leases,
// kept in memory only, are gone; kwok goes on updating what isn't there, where a kubelet would
// make its lease again. A new start of kwok does that.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"sigs.k8s.io/yaml"
)

const (
	listen  = ":10248"
	period  = 5 * time.Second
	timeout = 4 * time.Second
	// Node leases are missing for so long: longer than a start of kwok takes to make them, shorter
	// than a node may be silent before it counts as unreachable.
	patience = 15 * time.Second
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: kwok-health KUBECONFIG")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "kwok-health:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kubeconfig string) error {
	api, err := connect(kubeconfig)
	if err != nil {
		return err
	}
	var missingSince atomic.Pointer[time.Time]
	server := &http.Server{
		Addr: listen, ReadHeaderTimeout: timeout,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if since := missingSince.Load(); since != nil && time.Since(*since) > patience {
				http.Error(w, "kwok doesn't make the nodes' leases", http.StatusServiceUnavailable)
			}
		}),
	}
	go func() {
		for ctx.Err() == nil {
			missing, err := api.leasesMissing(ctx)
			switch {
			case err != nil:
				// Nothing is known of kwok while its API doesn't answer.
				missingSince.Store(nil)
				slog.Warn("ask", "error", err)
			case !missing:
				missingSince.Store(nil)
			case missingSince.Load() == nil:
				now := time.Now()
				missingSince.Store(&now)
			case time.Since(*missingSince.Load()) > 2*patience:
				// The probe has failed by now, and kwok has a new chance.
				missingSince.Store(nil)
			}
			select {
			case <-time.After(period):
			case <-ctx.Done():
			}
		}
		_ = server.Close()
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

type api struct {
	server string
	client *http.Client
}

// connect reads a kubeconfig with one cluster and one client certificate.
func connect(kubeconfig string) (*api, error) {
	content, err := os.ReadFile(kubeconfig)
	if err != nil {
		return nil, err
	}
	var config struct {
		Clusters []struct {
			Cluster struct {
				Server string `json:"server"`
				CA     []byte `json:"certificate-authority-data"`
			} `json:"cluster"`
		} `json:"clusters"`
		Users []struct {
			User struct {
				Certificate []byte `json:"client-certificate-data"`
				Key         []byte `json:"client-key-data"`
			} `json:"user"`
		} `json:"users"`
	}
	if err := yaml.Unmarshal(content, &config); err != nil {
		return nil, err
	}
	if len(config.Clusters) != 1 || len(config.Users) != 1 {
		return nil, errors.New("want a kubeconfig with one cluster and one user")
	}
	certificate, err := tls.X509KeyPair(config.Users[0].User.Certificate, config.Users[0].User.Key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(config.Clusters[0].Cluster.CA)
	return &api{
		server: config.Clusters[0].Cluster.Server,
		client: &http.Client{
			Timeout: timeout,
			Transport: &http.Transport{
				TLSClientConfig: &tls.Config{
					RootCAs: roots, Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12,
				},
				DisableKeepAlives: true,
			},
		},
	}, nil
}

// leasesMissing says whether less than half of the nodes have a lease.
func (a *api) leasesMissing(ctx context.Context) (bool, error) {
	nodes, err := a.count(ctx, "/api/v1/nodes")
	if err != nil {
		return false, err
	}
	leases, err := a.count(ctx, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases")
	return leases < nodes/2, err
}

// count asks for one object and how many there are behind it.
func (a *api) count(ctx context.Context, path string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.server+path+"?limit=1", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")
	resp, err := a.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s: %s", path, resp.Status)
	}
	var list struct {
		Metadata struct {
			RemainingItemCount int64 `json:"remainingItemCount"`
		} `json:"metadata"`
		Items []json.RawMessage `json:"items"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&list); err != nil {
		return 0, err
	}
	return int64(len(list.Items)) + list.Metadata.RemainingItemCount, nil
}

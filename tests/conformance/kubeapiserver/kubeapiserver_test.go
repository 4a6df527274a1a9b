// Package kubeapiserver starts a real kube-apiserver on the store and uses it.
package kubeapiserver

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	patience = 3 * time.Minute
	token    = "token-of-the-test"
)

// buffer is a process's output, which is looked at while the process runs.
type buffer struct {
	mutex sync.Mutex
	data  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.data.Write(p)
}

// end is the last of it.
func (b *buffer) end() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	text := b.data.String()
	return text[max(0, len(text)-8000):]
}

func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

// start runs a program for as long as the test runs.
func start(t *testing.T, variable string, args ...string) *buffer {
	t.Helper()
	binary := os.Getenv(variable)
	if binary == "" {
		t.Skipf("%s names no program", variable)
	}
	output := &buffer{}
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		done := make(chan struct{})
		go func() {
			_ = cmd.Wait()
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			<-done
		}
	})
	return output
}

type client struct {
	t    *testing.T
	base string
	http *http.Client
}

func (c *client) do(method, path string, body any) (int, []byte) {
	c.t.Helper()
	status, text, err := c.try(method, path, body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return status, text
}

// try is do for others than the test's own goroutine.
func (c *client) try(method, path string, body any) (int, []byte, error) {
	response, err := c.send(context.Background(), method, path, body)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, text, err
}

func (c *client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var reader io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, reader)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Content-Type", "application/json")
	return c.http.Do(request)
}

// must is do, with a status that is wanted, and the answer decoded.
func (c *client) must(status int, method, path string, body, into any) {
	c.t.Helper()
	got, text := c.do(method, path, body)
	if got != status {
		c.t.Fatalf("%s %s: status %d, and %d is wanted\n%s", method, path, got, status, text)
	}
	if into != nil {
		if err := json.Unmarshal(text, into); err != nil {
			c.t.Fatalf("%s %s: %v", method, path, err)
		}
	}
}

type object struct {
	Kind       string            `json:"kind,omitempty"`
	APIVersion string            `json:"apiVersion,omitempty"`
	Metadata   metadata          `json:"metadata"`
	Data       map[string]string `json:"data,omitempty"`
}

type metadata struct {
	Name            string `json:"name,omitempty"`
	ResourceVersion string `json:"resourceVersion,omitempty"`
	Continue        string `json:"continue,omitempty"`
}

type list struct {
	Metadata metadata `json:"metadata"`
	Items    []object `json:"items"`
}

// event is what a watch tells.
type event struct {
	Type   string `json:"type"`
	Object object `json:"object"`
}

// startAPIServer starts a store and a kube-apiserver on it, with further flags.
func startAPIServer(t *testing.T, flags ...string) *client {
	t.Helper()
	dir := t.TempDir()
	store := fmt.Sprintf("http://127.0.0.1:%d", freePort(t))
	start(t, "STORE_BINARY", "--data-dir="+filepath.Join(dir, "store"), "--durability=buffered",
		"--listen-client-urls="+store, "--advertise-client-urls="+store,
		"--watch-progress-notify-interval=5s")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"sa.key": string(pem.EncodeToMemory(&pem.Block{
			Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key),
		})),
		"tokens": token + ",admin,admin,system:masters\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	port := freePort(t)
	output := start(t, "APISERVER_BINARY", append(flags,
		"--etcd-servers="+store, "--cert-dir="+filepath.Join(dir, "certs"),
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", port),
		"--service-account-key-file="+filepath.Join(dir, "sa.key"),
		"--service-account-signing-key-file="+filepath.Join(dir, "sa.key"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-cluster-ip-range=10.0.0.0/24", "--authorization-mode=RBAC",
		"--token-auth-file="+filepath.Join(dir, "tokens"), "--endpoint-reconciler-type=none",
	)...)
	c := &client{t: t, base: fmt.Sprintf("https://127.0.0.1:%d", port), http: &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
	}}
	deadline := time.Now().Add(patience)
	for {
		response, err := c.send(context.Background(), http.MethodGet, "/readyz", nil)
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return c
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("kube-apiserver is not ready: %v\n%s", err, output.end())
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// TestServes creates, reads, lists, watches, updates and deletes through kube-apiserver.
func TestServes(t *testing.T) {
	c := startAPIServer(t)
	var version struct{ GitVersion string }
	c.must(http.StatusOK, http.MethodGet, "/version", nil, &version)
	t.Logf("kube-apiserver %s", version.GitVersion)
	if want := os.Getenv("APISERVER_VERSION"); version.GitVersion != want {
		t.Errorf("version %s, and %s is wanted", version.GitVersion, want)
	}

	c.must(http.StatusCreated, http.MethodPost, "/api/v1/namespaces",
		object{Metadata: metadata{Name: "test"}}, nil)
	maps := "/api/v1/namespaces/test/configmaps"
	var first object
	c.must(http.StatusCreated, http.MethodPost, maps,
		object{Metadata: metadata{Name: "first"}, Data: map[string]string{"n": "0"}}, &first)
	c.must(http.StatusConflict, http.MethodPost, maps, object{Metadata: metadata{Name: "first"}}, nil)

	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	watch, err := c.send(ctx, http.MethodGet, maps+"?watch=1&resourceVersion="+first.Metadata.ResourceVersion, nil)
	if err != nil || watch.StatusCode != http.StatusOK {
		t.Fatalf("watch: %v %v", watch, err)
	}
	defer watch.Body.Close()

	const many = 1200
	for i := range many {
		c.must(http.StatusCreated, http.MethodPost, maps, object{
			Metadata: metadata{Name: fmt.Sprintf("many-%04d", i)},
			Data:     map[string]string{"text": strings.Repeat("x", 500)},
		}, nil)
	}
	// From the cache, from the store as a whole, in pages.
	for _, query := range []string{"?resourceVersion=0", "", "?limit=500"} {
		found, next := 0, ""
		for {
			var page list
			path := maps + query
			if next != "" {
				path += "&continue=" + next
			}
			c.must(http.StatusOK, http.MethodGet, path, nil, &page)
			found += len(page.Items)
			if next = page.Metadata.Continue; next == "" {
				break
			}
		}
		// The root certificates' map is the controller manager's, which does not run.
		if found != many+1 && query != "?resourceVersion=0" || found < 1 {
			t.Errorf("list %q finds %d", query, found)
		}
	}

	// An update with an old resourceVersion is refused.
	updated := first
	updated.Data = map[string]string{"n": "1"}
	c.must(http.StatusOK, http.MethodPut, maps+"/first", updated, &updated)
	c.must(http.StatusConflict, http.MethodPut, maps+"/first", first, nil)
	c.must(http.StatusOK, http.MethodDelete, maps+"/first", nil, nil)
	c.must(http.StatusNotFound, http.MethodGet, maps+"/first", nil, nil)

	added := 0
	lines := bufio.NewScanner(watch.Body)
	lines.Buffer(nil, 1<<20)
	var changes []string
	for lines.Scan() && len(changes) < 2 {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		switch {
		case e.Type == "ADDED" && strings.HasPrefix(e.Object.Metadata.Name, "many-"):
			added++
		case e.Type != "BOOKMARK":
			changes = append(changes, e.Type+" "+e.Object.Metadata.Name)
		}
		if len(changes) == 2 {
			break
		}
	}
	if added != many || strings.Join(changes, ", ") != "MODIFIED first, DELETED first" {
		t.Errorf("the watch saw %d of %d, then %v (%v)", added, many, changes, lines.Err())
	}

	// A collection is deleted, and the namespace's own list is empty then.
	c.must(http.StatusOK, http.MethodDelete, maps, nil, nil)
	var left list
	c.must(http.StatusOK, http.MethodGet, maps, nil, &left)
	if len(left.Items) != 0 {
		t.Errorf("%d are left", len(left.Items))
	}

	// How lists were read: kube-apiserver finds out by trying.
	_, metrics := c.do(http.MethodGet, "/metrics", nil)
	streams := strings.Contains(string(metrics), `operation="listStream"`)
	if want := os.Getenv("APISERVER_STREAMS") == "1"; streams != want {
		t.Errorf("lists by RangeStream: %v, and %v is wanted", streams, want)
	}
}

package journey

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestFrontDoorAlone puts the front door, without the operator, before the management cluster's
// own kube-apiserver, behind which there are a real kubelet and containerd: exec, port-forward and
// logs go through it as upgraded and as streamed requests.
func TestFrontDoorAlone(t *testing.T) {
	server := startFrontDoor(t)
	running, err := pods(t.Context(), "store")
	if err != nil {
		t.Fatal(err)
	}
	pod := running[0].Name
	args := func(more ...string) []string {
		return append([]string{"--kubeconfig=/dev/null", "--server=" + server, "--insecure-skip-tls-verify",
			"--token=" + adminToken(t), "-n", namespace}, more...)
	}
	kubectl := func(more ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		output, err := exec.CommandContext(ctx, os.Getenv("KUBECTL"), args(more...)...).CombinedOutput()
		return string(output), err
	}

	if output, err := kubectl("get", "pods"); err != nil || !strings.Contains(output, pod) {
		t.Fatalf("get pods: %v\n%s", err, output)
	}
	if output, err := kubectl("exec", pod, "--", "/usr/local/bin/megacluster-store", "--version"); err != nil ||
		!strings.Contains(output, "megacluster-store") {
		t.Errorf("exec: %v\n%s", err, output)
	}
	if output, err := kubectl("exec", pod, "--", "/no-such-program"); err == nil {
		t.Errorf("exec of nothing succeeded: %s", output)
	}
	if output, err := kubectl("logs", pod, "--tail=5"); err != nil || output == "" {
		t.Errorf("logs: %v\n%s", err, output)
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	forward := exec.CommandContext(ctx, os.Getenv("KUBECTL"), args("port-forward", pod, ":2381")...)
	stdout, err := forward.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := forward.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = forward.Wait() }()
	line := make([]byte, 256)
	count, err := stdout.Read(line)
	if err != nil {
		t.Fatalf("port-forward: %v", err)
	}
	var port int
	if _, err := fmt.Sscanf(string(line[:count]), "Forwarding from 127.0.0.1:%d", &port); err != nil {
		t.Fatalf("port-forward said %q", line[:count])
	}
	response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || !bytes.Contains(body, []byte("etcd_")) {
		t.Errorf("metrics by port-forward: %v, %d bytes", err, len(body))
	}
}

// startFrontDoor runs the program on loopback with the management cluster's apiserver as its only
// backend, and gives its URL.
func startFrontDoor(t *testing.T) string {
	t.Helper()
	program := os.Getenv("MEGACLUSTER_WATCHCACHE")
	if program == "" {
		t.Fatal("MEGACLUSTER_WATCHCACHE is not set: run `make test`")
	}
	dir := t.TempDir()
	write := func(file string, content []byte) string {
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	backend, err := url.Parse(management.config.Host)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key := servingCertificate(t)
	certFile, keyFile := write("tls.crt", certificate), write("tls.key", key)
	caFile := write("ca.crt", management.config.CAData)
	// Stands in for the front-proxy certificate, by which the front door also asks for health. What
	// users send here goes with their own tokens.
	proxyCertFile := write("proxy.crt", management.config.CertData)
	proxyKeyFile := write("proxy.key", management.config.KeyData)
	listen, admin := freeAddress(t), freeAddress(t)
	config := write("config.yaml", fmt.Appendf(nil, `apiVersion: watchcache.megacluster.io/v1alpha1
kind: RouterConfiguration
backendTLS: {caFile: %q, proxyClientCertFile: %q, proxyClientKeyFile: %q}
pools:
- {name: default, host: %s, port: %s}
`, caFile, proxyCertFile, proxyKeyFile, backend.Hostname(), backend.Port()))
	door := exec.Command(program, "--listen-address", listen, "--tls-cert-file", certFile, "--tls-private-key-file", keyFile,
		"--client-ca-file", caFile, "--config", config, "--admin-listen-address", admin)
	var log bytes.Buffer
	door.Stdout, door.Stderr = &log, &log
	door.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := door.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = door.Process.Signal(syscall.SIGTERM)
		done := make(chan error, 1)
		go func() { done <- door.Wait() }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			_ = door.Process.Kill()
			t.Error("the front door does not drain")
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	eventually(t, 20*time.Second, "the front door is ready", func(ctx context.Context) error {
		response, err := http.Get("http://" + admin + "/readyz")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz: %s", response.Status)
		}
		return nil
	})
	return "https://" + listen
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func servingCertificate(t *testing.T) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "front-door"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})
}

// adminToken is a bearer token of the management cluster that may do all, for as long as the test.
func adminToken(t *testing.T) string {
	t.Helper()
	const account = "journey-admin"
	ctx := t.Context()
	_, _ = management.client.CoreV1().ServiceAccounts(namespace).Create(ctx,
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{})
	_, _ = management.client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: account},
		RoleRef:    rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: account, Namespace: namespace}},
	}, metav1.CreateOptions{})
	t.Cleanup(func() {
		_ = management.client.RbacV1().ClusterRoleBindings().Delete(context.Background(), account, metav1.DeleteOptions{})
		_ = management.client.CoreV1().ServiceAccounts(namespace).Delete(context.Background(), account, metav1.DeleteOptions{})
	})
	token, err := management.client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account,
		&authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return token.Status.Token
}

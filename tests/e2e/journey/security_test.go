package journey

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// strangersCertificate is one of an admin, by an authority that nobody here trusts.
func strangersCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		IsCA:        true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// pods gives the sample's running pods of one component.
func pods(ctx context.Context, component string) ([]corev1.Pod, error) {
	list, err := management.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: "megacluster.io/name=" + name + ",app.kubernetes.io/component=" + component,
	})
	if err != nil {
		return nil, err
	}
	if len(list.Items) == 0 {
		return nil, fmt.Errorf("no pod of component %q", component)
	}
	return list.Items, nil
}

// TestStrangersAreRefused shows a wrong client certificate, and none, to each port that speaks
// mutual TLS.
func TestStrangersAreRefused(t *testing.T) {
	for component, port := range map[string]string{"store": "2379", "scheduler-shard": "7443", "scheduler-relay": "7443"} {
		running, err := pods(t.Context(), component)
		if err != nil {
			t.Error(err)
			continue
		}
		address := net.JoinHostPort(running[0].Status.PodIP, port)
		for who, certificates := range map[string][]tls.Certificate{
			"a stranger": {strangersCertificate(t)}, "nobody": nil,
		} {
			if err := handshake(address, certificates); err == nil {
				t.Errorf("%s: %s was let in", component, who)
			} else if !strings.Contains(err.Error(), "tls") && !strings.Contains(err.Error(), "reset") {
				t.Errorf("%s: %s: refused, but not by TLS: %v", component, who, err)
			}
		}
	}
}

// show gives the certificate whatever authorities the server asks for: with Certificates alone, Go
// keeps back one that the server would not like.
func show(certificates []tls.Certificate) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if len(certificates) == 0 {
			return &tls.Certificate{}, nil
		}
		return &certificates[0], nil
	}
}

func tlsToPod(address string, config *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	plain, err := dialPod(ctx, address)
	if err != nil {
		return nil, err
	}
	connection := tls.Client(plain, config)
	if err := connection.HandshakeContext(ctx); err != nil {
		_ = plain.Close()
		return nil, err
	}
	return connection, nil
}

// handshake goes on to read: in TLS 1.3 the server's refusal comes after the client's last word.
func handshake(address string, certificates []tls.Certificate) error {
	connection, err := tlsToPod(address, &tls.Config{
		// The server's own name is not what is tested here.
		InsecureSkipVerify:   true, //nolint:gosec
		GetClientCertificate: show(certificates), NextProtos: []string{"h2"},
	})
	if err != nil {
		return err
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := connection.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		return err
	}
	// A server that lets us in sends its SETTINGS first.
	_, err = connection.Read(make([]byte, 9))
	return err
}

// TestWrongCertificateAtTheFrontDoor: the apiserver's answer to a certificate of another authority.
func TestWrongCertificateAtTheFrontDoor(t *testing.T) {
	running, err := pods(t.Context(), "watchcache")
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort(running[0].Status.PodIP, "6443")
	connection, err := tlsToPod(address, &tls.Config{
		InsecureSkipVerify:   true, //nolint:gosec
		GetClientCertificate: show([]tls.Certificate{strangersCertificate(t)}), NextProtos: []string{"http/1.1"},
	})
	if err != nil {
		return // refused in the handshake: as good
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = connection.Write([]byte("GET /api/v1/secrets HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
	buffer := make([]byte, 64)
	count, err := connection.Read(buffer)
	if err == nil && !strings.HasPrefix(string(buffer[:count]), "HTTP/1.1 401") {
		t.Errorf("got %q", buffer[:count])
	}
}

// storeClient is a stock etcd client at the sample's store, with the apiserver's certificate.
func storeClient(t *testing.T) *clientv3.Client {
	t.Helper()
	running, err := pods(t.Context(), "store")
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := tls.X509KeyPair(secret(t, name+"-apiserver-store-client-tls", "tls.crt"), secret(t, name+"-apiserver-store-client-tls", "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(secret(t, name+"-store-ca", "tls.crt"))
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{"https://" + net.JoinHostPort(running[0].Status.PodIP, "2379")},
		DialTimeout: 10 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(dialPod), grpc.WithAuthority(name + "-store." + namespace + ".svc")},
		TLS: &tls.Config{Certificates: []tls.Certificate{certificate}, RootCAs: roots,
			ServerName: name + "-store." + namespace + ".svc"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

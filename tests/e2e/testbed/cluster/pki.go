package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// The test cluster lives for hours; certificates are made anew with each new cluster.
const validity = 365 * 24 * time.Hour

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// leaf describes one certificate to issue: the files are NAME.crt and NAME.key.
type leaf struct {
	file          string
	commonName    string
	organizations []string
	names         []string
	addresses     []string
	server        bool
	client        bool
}

func newAuthority(dir, file, commonName string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := certificate(pkix.Name{CommonName: commonName})
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if err := writePair(dir, file, der, key); err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key, pem: certificatePEM(der)}, nil
}

func (a *authority) issue(dir string, l leaf) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := certificate(pkix.Name{CommonName: l.commonName, Organization: l.organizations})
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.DNSNames = l.names
	for _, address := range l.addresses {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(address))
	}
	if l.server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if l.client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return err
	}
	return writePair(dir, l.file, der, key)
}

func certificate(subject pkix.Name) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic(err) // crypto/rand never fails on Linux
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		NotBefore:    now.Add(-time.Minute),
		NotAfter:     now.Add(validity),
	}
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func writePair(dir, file string, der []byte, key any) error {
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	if err := os.WriteFile(filepath.Join(dir, file+".key"), keyPEM, 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, file+".crt"), certificatePEM(der), 0o644)
}

// writePKI makes every certificate, key and kubeconfig of the cluster.
func (c *Config) writePKI() error {
	dir := c.kubernetesDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	cluster, err := newAuthority(dir, "ca", "kubernetes")
	if err != nil {
		return err
	}
	frontProxy, err := newAuthority(dir, "front-proxy-ca", "front-proxy")
	if err != nil {
		return err
	}
	etcd, err := newAuthority(dir, "etcd-ca", "etcd")
	if err != nil {
		return err
	}
	local := []string{"127.0.0.1", nodeAddress}
	for _, issue := range []struct {
		by   *authority
		leaf leaf
	}{
		{etcd, leaf{file: "etcd", commonName: "etcd", names: []string{"localhost"}, addresses: local, server: true, client: true}},
		{etcd, leaf{file: "etcd-client", commonName: "kube-apiserver", client: true}},
		{frontProxy, leaf{file: "front-proxy-client", commonName: "front-proxy-client", client: true}},
		{cluster, leaf{
			file: "kube-apiserver", commonName: "kube-apiserver", server: true,
			names: []string{
				"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
				"kubernetes.default.svc.cluster.local",
			},
			addresses: append([]string{serviceAddress}, local...),
		}},
		{cluster, leaf{file: "kubelet", commonName: "system:node:" + c.nodeName(), names: []string{c.nodeName()}, addresses: local, server: true}},
		// The group that may reach a kubelet's whole API, as kubeadm gives it since 1.29.
		{cluster, leaf{file: "kubelet-client", commonName: "kube-apiserver-kubelet-client", organizations: []string{"system:masters"}, client: true}},
	} {
		if err := issue.by.issue(dir, issue.leaf); err != nil {
			return fmt.Errorf("issue %s: %w", issue.leaf.file, err)
		}
	}
	serviceAccount, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	if err := writeServiceAccountKeys(dir, serviceAccount); err != nil {
		return err
	}
	for _, user := range []leaf{
		{file: "admin", commonName: "kubernetes-admin", organizations: []string{"system:masters"}},
		{file: "controller-manager", commonName: "system:kube-controller-manager"},
		{file: "scheduler", commonName: "system:kube-scheduler"},
		{file: "node", commonName: "system:node:" + c.nodeName(), organizations: []string{"system:nodes"}},
		{file: "proxy", commonName: "system:kube-proxy"},
	} {
		user.client = true
		if err := cluster.issue(dir, user); err != nil {
			return fmt.Errorf("issue %s: %w", user.file, err)
		}
		if err := c.writeKubeconfig(c.kubernetes(user.file+".kubeconfig"), user.file, "https://"+c.server()); err != nil {
			return err
		}
	}
	return nil
}

func writeServiceAccountKeys(dir string, key *rsa.PrivateKey) error {
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "service-account.key"),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "service-account.pub"),
		pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o644)
}

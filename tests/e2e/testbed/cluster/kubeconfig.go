package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"text/template"
	"time"
)

var kubeconfigTemplate = template.Must(template.New("kubeconfig").Parse(`apiVersion: v1
kind: Config
clusters:
- name: {{.Cluster}}
  cluster:
    server: {{.Server}}
    certificate-authority-data: {{.CA}}
contexts:
- name: {{.Cluster}}
  context: {cluster: {{.Cluster}}, user: {{.User}}}
current-context: {{.Cluster}}
users:
- name: {{.User}}
  user:
    client-certificate-data: {{.Certificate}}
    client-key-data: {{.Key}}
`))

// writeKubeconfig writes the kubeconfig of a user whose certificate has been issued.
func (c *Config) writeKubeconfig(file, user, server string) error {
	data := map[string]string{"Cluster": c.Name, "User": user, "Server": server}
	for field, source := range map[string]string{"CA": "ca.crt", "Certificate": user + ".crt", "Key": user + ".key"} {
		content, err := os.ReadFile(c.kubernetes(source))
		if err != nil {
			return err
		}
		data[field] = base64.StdEncoding.EncodeToString(content)
	}
	next := file + ".next"
	out, err := os.OpenFile(next, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(kubeconfigTemplate.Execute(out, data), out.Close()); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return os.Rename(next, file)
}

// adminClient talks to the API server as the administrator, with the files found in dir.
func adminClient(dir string) (*http.Client, error) {
	ca, err := os.ReadFile(dir + "/ca.crt")
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	cert, err := tls.LoadX509KeyPair(dir+"/admin.crt", dir+"/admin.key")
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{
				RootCAs: roots, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12,
			},
			DisableKeepAlives: true,
		},
	}, nil
}

package journey

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// scratch makes a namespace in the MegaCluster that goes with the test.
func scratch(t *testing.T) string {
	t.Helper()
	created, err := mega.client.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "journey-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = mega.client.CoreV1().Namespaces().Delete(context.Background(), created.Name, metav1.DeleteOptions{})
	})
	return created.Name
}

// TestEverydayKubectl is a user's first hour: create, get, patch, watch, delete.
func TestEverydayKubectl(t *testing.T) {
	ns := scratch(t)
	mega.mustKubectl(t, "", "-n", ns, "create", "configmap", "settings", "--from-literal=colour=green")
	mega.mustKubectl(t, "", "-n", ns, "patch", "configmap", "settings", "-p", `{"data":{"colour":"blue"}}`)
	if got := mega.mustKubectl(t, "", "-n", ns, "get", "configmap", "settings", "-o", "jsonpath={.data.colour}"); got != "blue" {
		t.Errorf("read %q after the patch", got)
	}
	mega.mustKubectl(t, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"applied"},"data":{"a":"b"}}`,
		"-n", ns, "apply", "--server-side", "-f", "-")
	for _, args := range [][]string{
		{"version"}, {"api-resources"}, {"cluster-info"}, {"get", "nodes", "--chunk-size=100"},
		{"-n", ns, "get", "all"}, {"explain", "pods.spec"}, {"get", "--raw", "/readyz?verbose"},
		{"auth", "can-i", "create", "pods"}, {"-n", ns, "get", "configmaps", "-w", "--request-timeout=2s"},
	} {
		if output, err := mega.kubectl(t.Context(), "", args...); err != nil && !strings.Contains(strings.Join(args, " "), "-w") {
			t.Errorf("kubectl %s: %v\n%s", strings.Join(args, " "), err, output)
		}
	}
	if got := mega.mustKubectl(t, "", "auth", "whoami"); !strings.Contains(got, "system:masters") {
		t.Errorf("whoami:\n%s", got)
	}
	mega.mustKubectl(t, "", "-n", ns, "delete", "configmap", "settings", "applied")
}

// TestInformerSeesEveryChange follows objects through the front door by a stock informer.
func TestInformerSeesEveryChange(t *testing.T) {
	ns := scratch(t)
	const objects = 50
	seen := make(chan string, 10*objects)
	factory := informers.NewSharedInformerFactoryWithOptions(mega.client, 0, informers.WithNamespace(ns))
	informer := factory.Core().V1().Secrets().Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { seen <- "add " + o.(*corev1.Secret).Name },
		UpdateFunc: func(_, o any) { seen <- "update " + o.(*corev1.Secret).Name },
		DeleteFunc: func(o any) { seen <- "delete " + o.(*corev1.Secret).Name },
	}); err != nil {
		t.Fatal(err)
	}
	factory.Start(t.Context().Done())
	factory.WaitForCacheSync(t.Context().Done())
	want := map[string]bool{}
	secrets := mega.client.CoreV1().Secrets(ns)
	for i := range objects {
		object := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("s-%d", i)}}
		if _, err := secrets.Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		patch := []byte(`{"stringData":{"k":"v"}}`)
		if _, err := secrets.Patch(t.Context(), object.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := secrets.Delete(t.Context(), object.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, event := range []string{"add ", "update ", "delete "} {
			want[event+object.Name] = true
		}
	}
	deadline := time.After(20 * time.Second)
	for len(want) > 0 {
		select {
		case event := <-seen:
			delete(want, event)
		case <-deadline:
			t.Fatalf("%d events were not seen, such as %v", len(want), want)
		}
	}
}

// TestServiceAccountToken uses a bearer token through the front door: its rights and no more.
func TestServiceAccountToken(t *testing.T) {
	ns := scratch(t)
	client := mega.client
	if _, err := client.CoreV1().ServiceAccounts(ns).Create(t.Context(),
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "reader"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "reader"},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"list"}}}}
	if _, err := client.RbacV1().Roles(ns).Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "reader"},
		RoleRef:  rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "Role", Name: "reader"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "reader", Namespace: ns}}}
	if _, err := client.RbacV1().RoleBindings(ns).Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	token, err := client.CoreV1().ServiceAccounts(ns).CreateToken(t.Context(), "reader",
		&authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(mega.config)
	config.BearerToken = token.Status.Token
	reader, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the role is in force", func(ctx context.Context) error {
		_, err := reader.CoreV1().ConfigMaps(ns).List(ctx, metav1.ListOptions{})
		return err
	})
	if _, err := reader.CoreV1().Secrets(ns).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("secrets: want Forbidden, got %v", err)
	}
	config.BearerToken = "not-a-token"
	stranger, _ := kubernetes.NewForConfig(config)
	if _, err := stranger.CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("bad token: want Unauthorized, got %v", err)
	}
}

// TestSpoofedIdentityIsIgnored sends the headers by which the front door itself speaks.
func TestSpoofedIdentityIsIgnored(t *testing.T) {
	config := rest.AnonymousClientConfig(mega.config)
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range []string{"X-Remote-User", "x-remote-user", "X-REMOTE-USER"} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet,
			config.Host+"/api/v1/namespaces/kube-system/secrets", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header[header] = []string{"admin"}
		request.Header["X-Remote-Group"] = []string{"system:masters"}
		response, err := (&http.Client{Transport: transport}).Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusForbidden && response.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: got %s", header, response.Status)
		}
	}
}

// TestLargeRequests: 2 MiB reach the apiserver, which refuses an object past the store's bound;
// what is past the front door's own bound never gets there.
func TestLargeRequests(t *testing.T) {
	ns := scratch(t)
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "large"},
		BinaryData: map[string][]byte{"data": bytes.Repeat([]byte("x"), 2<<20)}}
	_, err := mega.client.CoreV1().ConfigMaps(ns).Create(t.Context(), object, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) && !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("2 MiB ConfigMap: want a clear refusal, got %v", err)
	}
	object.BinaryData["data"] = bytes.Repeat([]byte("x"), 8<<20)
	_, err = mega.client.CoreV1().ConfigMaps(ns).Create(t.Context(), object, metav1.CreateOptions{})
	if !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("8 MiB ConfigMap: want 413, got %v", err)
	}
	// The door still stands.
	if _, err := mega.client.CoreV1().Namespaces().Get(t.Context(), ns, getOptions); err != nil {
		t.Error(err)
	}
}

// TestImpersonation passes through to the apiserver, which decides.
func TestImpersonation(t *testing.T) {
	output, err := mega.kubectl(t.Context(), "", "get", "secrets", "-A", "--as=nobody")
	if err == nil || !strings.Contains(output, `User "nobody" cannot list resource "secrets"`) {
		t.Errorf("got %v\n%s", err, output)
	}
}

// TestUpgradeThroughTheFrontDoor: exec, logs and port-forward end at the node, here kwok's.
func TestUpgradeThroughTheFrontDoor(t *testing.T) {
	// An upgrade that the apiserver answers itself, whatever plays the nodes: the error for a pod
	// that isn't there must come back through the front door as the apiserver's own words.
	output, err := mega.kubectl(t.Context(), "", "-n", "default", "exec", "no-such-pod", "--", "true")
	if err == nil || !strings.Contains(output, `pods "no-such-pod" not found`) {
		t.Errorf("exec: %v\n%s", err, output)
	}
}

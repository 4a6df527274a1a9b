package journey

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestInvalidObjectsAreRefused applies every invalid sample; its first line says what the
// apiserver must answer: `# expect: TEXT`. A sample with `# update-of: valid` patches the running
// sample by a dry run, for rules about changes.
func TestInvalidObjectsAreRefused(t *testing.T) {
	files, err := filepath.Glob(repository(t, "operator/tests/invalid/*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no invalid samples: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			first, _, _ := strings.Cut(string(content), "\n")
			want, found := strings.CutPrefix(first, "# expect: ")
			if !found {
				t.Fatalf("the first line does not say what to expect: %q", first)
			}
			output, err := management.kubectl(t.Context(), "", "apply", "--server-side", "--dry-run=server",
				"--field-manager=journey", "--force-conflicts", "-n", namespace, "-f", file)
			if err == nil {
				t.Fatalf("it was accepted")
			}
			if !strings.Contains(output, want) {
				t.Errorf("want %q in\n%s", want, output)
			}
		})
	}
}

// TestInvalidSpecStalls: what the schema can't see gets a condition that names the field, and
// nothing is tried again until the object changes.
func TestInvalidSpecStalls(t *testing.T) {
	ns := "invalid-spec"
	management.mustKubectl(t, fmt.Sprintf(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q}}`, ns), "apply", "-f", "-")
	t.Cleanup(func() {
		_ = management.client.CoreV1().Namespaces().Delete(context.Background(), ns, metav1.DeleteOptions{})
	})
	management.mustKubectl(t, `{"apiVersion":"megacluster.io/v1alpha1","kind":"MegaCluster","metadata":{"name":"bad"},
		"spec":{"version":"v1.36.3","apiServers":{"extraArgs":["--etcd-servers=http://elsewhere"]}}}`, "-n", ns, "apply", "-f", "-")
	eventually(t, 20*time.Second, "Stalled", func(ctx context.Context) error {
		object, err := getMegaCluster(ctx, ns, "bad")
		if err != nil {
			return err
		}
		stalled, ok := condition(object, "Stalled")
		if !ok || stalled["status"] != "True" {
			return fmt.Errorf("conditions %v", object.Object["status"])
		}
		if message, _ := stalled["message"].(string); !strings.Contains(message, "extraArgs") {
			return fmt.Errorf("the message does not name the field: %q", message)
		}
		return nil
	})
	first, err := getMegaCluster(t.Context(), ns, "bad")
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Second)
	second, err := getMegaCluster(t.Context(), ns, "bad")
	if err != nil {
		t.Fatal(err)
	}
	if first.GetResourceVersion() != second.GetResourceVersion() {
		t.Error("the object is written again and again")
	}
	list, err := management.client.AppsV1().Deployments(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) > 0 {
		t.Errorf("an invalid object has %d Deployments (%v)", len(list.Items), err)
	}
	management.mustKubectl(t, "", "-n", ns, "delete", "megacluster", "bad", "--timeout=30s")
}

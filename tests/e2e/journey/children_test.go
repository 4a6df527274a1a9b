package journey

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// childKinds are the kinds that the operator makes, without those that hold what can't be made
// again (volumes) or what others make of them (pods, endpoints).
var childKinds = []schema.GroupVersionResource{
	{Group: "apps", Version: "v1", Resource: "deployments"},
	{Group: "apps", Version: "v1", Resource: "statefulsets"},
	{Group: "", Version: "v1", Resource: "services"},
	{Group: "", Version: "v1", Resource: "configmaps"},
	{Group: "", Version: "v1", Resource: "secrets"},
	{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"},
	{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"},
}

var owned = metav1.ListOptions{LabelSelector: "megacluster.io/name=" + name}

// TestChildrenComeBack deletes one child of each kind and edits another; each is made good within
// seconds. Secrets of authorities are left alone: they can't be made again.
func TestChildrenComeBack(t *testing.T) {
	for _, kind := range childKinds {
		children := management.dynamic.Resource(kind).Namespace(namespace)
		list, err := children.List(t.Context(), owned)
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Items) == 0 {
			t.Errorf("the sample has no child of kind %s", kind.Resource)
			continue
		}
		victim := ""
		for i := range list.Items {
			childName := list.Items[i].GetName()
			if !strings.HasSuffix(childName, "-ca") && !strings.HasSuffix(childName, "-service-account") &&
				!strings.HasSuffix(childName, "-store") && !strings.Contains(childName, "store-") {
				victim = childName
				break
			}
		}
		if victim == "" {
			continue
		}
		before, err := children.Get(t.Context(), victim, getOptions)
		if err != nil {
			t.Fatal(err)
		}
		// An edit of a field that the operator owns.
		patch := []byte(`{"metadata":{"labels":{"app.kubernetes.io/managed-by":"somebody-else"}}}`)
		if _, err := children.Patch(t.Context(), victim, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		took := eventually(t, 10*time.Second, kind.Resource+" "+victim+" is as before", func(ctx context.Context) error {
			now, err := children.Get(ctx, victim, getOptions)
			if err != nil {
				return err
			}
			if label := now.GetLabels()["app.kubernetes.io/managed-by"]; label == "somebody-else" {
				return fmt.Errorf("label is still %q", label)
			}
			return nil
		})
		if err := children.Delete(t.Context(), victim, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		back := eventually(t, 10*time.Second, kind.Resource+" "+victim+" is back", func(ctx context.Context) error {
			now, err := children.Get(ctx, victim, getOptions)
			if err != nil {
				return err
			}
			if now.GetUID() == before.GetUID() {
				return fmt.Errorf("it is not gone yet")
			}
			return nil
		})
		t.Logf("%s %s: edit undone in %s, deletion in %s", kind.Resource, victim,
			took.Round(10*time.Millisecond), back.Round(10*time.Millisecond))
	}
	waitReady(t, 3*time.Minute)
}

// TestReadyFollowsTheChildren: Ready must not stay true once a component is gone.
func TestReadyFollowsTheChildren(t *testing.T) {
	waitReady(t, 2*time.Minute)
	running, err := pods(t.Context(), "store")
	if err != nil {
		t.Fatal(err)
	}
	if err := management.client.CoreV1().Pods(namespace).Delete(t.Context(), running[0].Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "Ready turns false", func(ctx context.Context) error {
		if err := ready(ctx, namespace, name); err == nil {
			return fmt.Errorf("still Ready")
		}
		return nil
	})
	took := waitReady(t, 3*time.Minute)
	t.Logf("Ready again after %s", took.Round(100*time.Millisecond))
}

// TestScaleSubresource scales the default pool of apiservers by kubectl.
func TestScaleSubresource(t *testing.T) {
	before := management.mustKubectl(t, "", "-n", namespace, "get", "megacluster", name, "-o", "jsonpath={.spec.apiServers.replicas}")
	if before == "" {
		before = "1"
	}
	management.mustKubectl(t, "", "-n", namespace, "scale", "megacluster", name, "--replicas=2")
	t.Cleanup(func() {
		_, _ = management.kubectl(context.Background(), "", "-n", namespace, "scale", "megacluster", name, "--replicas="+before)
	})
	eventually(t, 3*time.Minute, "two apiservers ready", func(ctx context.Context) error {
		got, err := management.kubectl(ctx, "", "-n", namespace, "get", "megacluster", name, "-o", "jsonpath={.status.apiServers.ready}")
		if err != nil || got != "2" {
			return fmt.Errorf("status.apiServers.ready is %q (%v)", got, err)
		}
		return ready(ctx, namespace, name)
	})
	management.mustKubectl(t, "", "-n", namespace, "scale", "megacluster", name, "--replicas="+before)
	waitReady(t, 3*time.Minute)
}

// TestPausedAppliesNothing: a paused MegaCluster's child stays as the user left it.
func TestPausedAppliesNothing(t *testing.T) {
	patch := func(paused string) {
		management.mustKubectl(t, "", "-n", namespace, "patch", "megacluster", name, "--type=merge", "-p", `{"spec":{"paused":`+paused+`}}`)
	}
	patch("true")
	t.Cleanup(func() {
		_, _ = management.kubectl(context.Background(), "", "-n", namespace, "patch", "megacluster", name, "--type=merge", "-p", `{"spec":{"paused":false}}`)
	})
	eventually(t, 20*time.Second, "condition Paused", func(ctx context.Context) error {
		object, err := getMegaCluster(ctx, namespace, name)
		if err != nil {
			return err
		}
		if found, ok := condition(object, "Paused"); !ok || found["status"] != "True" {
			return fmt.Errorf("Paused is %v", found)
		}
		return nil
	})
	budgets := management.client.PolicyV1().PodDisruptionBudgets(namespace)
	list, err := budgets.List(t.Context(), owned)
	if err != nil || len(list.Items) == 0 {
		t.Fatalf("no PodDisruptionBudget: %v", err)
	}
	victim := list.Items[0].Name
	if err := budgets.Delete(t.Context(), victim, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	if _, err := budgets.Get(t.Context(), victim, getOptions); !apierrors.IsNotFound(err) {
		t.Errorf("paused, and yet the child came back: %v", err)
	}
	patch("false")
	eventually(t, 20*time.Second, "the child is back", func(ctx context.Context) error {
		_, err := budgets.Get(ctx, victim, getOptions)
		return err
	})
	waitReady(t, time.Minute)
}

type schemaGVR = schema.GroupVersionResource

// setNested sets one field, making the maps on the way.
func setNested(object map[string]any, value any, path ...string) {
	for _, key := range path[:len(path)-1] {
		next, ok := object[key].(map[string]any)
		if !ok {
			next = map[string]any{}
			object[key] = next
		}
		object = next
	}
	object[path[len(path)-1]] = value
}

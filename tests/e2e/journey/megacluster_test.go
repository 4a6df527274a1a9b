package journey

import (
	"context"
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

var getOptions = metav1.GetOptions{}

func getMegaCluster(ctx context.Context, ns, cluster string) (*unstructured.Unstructured, error) {
	return management.dynamic.Resource(megaClusters).Namespace(ns).Get(ctx, cluster, getOptions)
}

// condition gives the condition's status, reason, message and observedGeneration.
func condition(object *unstructured.Unstructured, kind string) (map[string]any, bool) {
	conditions, _, _ := unstructured.NestedSlice(object.Object, "status", "conditions")
	for _, entry := range conditions {
		fields, ok := entry.(map[string]any)
		if ok && fields["type"] == kind {
			return fields, true
		}
	}
	return nil, false
}

// ready says why the MegaCluster is not Ready for its newest generation.
func ready(ctx context.Context, ns, cluster string) error {
	object, err := getMegaCluster(ctx, ns, cluster)
	if err != nil {
		return err
	}
	found, ok := condition(object, "Ready")
	if !ok {
		return fmt.Errorf("no Ready condition")
	}
	if observed, _ := found["observedGeneration"].(int64); observed != object.GetGeneration() {
		return fmt.Errorf("Ready observed generation %d of %d", observed, object.GetGeneration())
	}
	if found["status"] != "True" {
		return fmt.Errorf("Ready is %v: %v: %v", found["status"], found["reason"], found["message"])
	}
	return nil
}

func waitReady(t *testing.T, timeout time.Duration) time.Duration {
	t.Helper()
	return eventually(t, timeout, "MegaCluster Ready", func(ctx context.Context) error {
		return ready(ctx, namespace, name)
	})
}

// TestStatusIsTruthful holds the sample's status against what runs.
func TestStatusIsTruthful(t *testing.T) {
	waitReady(t, 2*time.Minute)
	object, err := getMegaCluster(t.Context(), namespace, name)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{
		"StoreReady", "APIServersReady", "WatchCacheReady", "ControllerManagerReady",
		"SchedulerReady", "CertificatesReady", "EndpointReady",
	} {
		found, ok := condition(object, kind)
		if !ok || found["status"] != "True" {
			t.Errorf("condition %s: %v", kind, found)
		}
	}
	for _, kind := range []string{"Reconciling", "Stalled"} {
		if found, ok := condition(object, kind); ok && found["status"] == "True" {
			t.Errorf("condition %s is True on a Ready cluster: %v", kind, found)
		}
	}
	observed, _, _ := unstructured.NestedInt64(object.Object, "status", "observedGeneration")
	if observed != object.GetGeneration() {
		t.Errorf("status.observedGeneration is %d, generation %d", observed, object.GetGeneration())
	}
	if endpoint, _, _ := unstructured.NestedString(object.Object, "status", "endpoint"); endpoint == "" {
		t.Error("status.endpoint is empty")
	}
	t.Log("\n" + management.mustKubectl(t, "", "get", "megaclusters", "-A", "-o", "wide"))
}

package journey

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// slot is a resource that three nodes have one of, so that nothing else in the cluster matters.
const slot = "example.com/journey-slot"

// TestImportantPodsGetRoom: three nodes are full, two of them with pods that a budget protects. An
// important pod takes the third one's place; one that may not preempt waits.
func TestImportantPodsGetRoom(t *testing.T) {
	ns := scratch(t)
	nodes, err := mega.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{Limit: 3})
	if err != nil || len(nodes.Items) < 3 {
		t.Fatalf("nodes: %v", err)
	}
	escaped := strings.ReplaceAll(slot, "/", "~1")
	for i := range nodes.Items {
		name := nodes.Items[i].Name
		patch := func(ctx context.Context, op string) error {
			patch := fmt.Sprintf(`[{"op":%q,"path":"/status/capacity/%s","value":"1"},{"op":%q,"path":"/status/allocatable/%s","value":"1"}]`,
				op, escaped, op, escaped)
			_, err := mega.client.CoreV1().Nodes().Patch(ctx, name, types.JSONPatchType, []byte(patch), metav1.PatchOptions{}, "status")
			return err
		}
		if err := patch(t.Context(), "add"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = patch(context.Background(), "remove") })
	}
	never := corev1.PreemptNever
	for _, object := range []*schedulingv1.PriorityClass{
		{ObjectMeta: metav1.ObjectMeta{Name: ns + "-low"}, Value: 10},
		{ObjectMeta: metav1.ObjectMeta{Name: ns + "-high"}, Value: 1000},
		{ObjectMeta: metav1.ObjectMeta{Name: ns + "-patient"}, Value: 1000, PreemptionPolicy: &never},
	} {
		if _, err := mega.client.SchedulingV1().PriorityClasses().Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = mega.client.SchedulingV1().PriorityClasses().Delete(context.Background(), object.Name, metav1.DeleteOptions{})
		})
	}
	create := func(podName, class, guarded string) {
		t.Helper()
		spec := podSpec("10m")
		spec.Containers[0].Resources.Requests[slot] = resource.MustParse("1")
		spec.Containers[0].Resources.Limits = corev1.ResourceList{slot: resource.MustParse("1")}
		spec.PriorityClassName = ns + "-" + class
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: podName, Labels: map[string]string{"guarded": guarded}}, Spec: spec}
		if _, err := mega.client.CoreV1().Pods(ns).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	running := func(podName string) *corev1.Pod {
		t.Helper()
		var found *corev1.Pod
		took := eventually(t, time.Minute, podName+" Running", func(ctx context.Context) error {
			pod, err := mega.client.CoreV1().Pods(ns).Get(ctx, podName, getOptions)
			if err != nil {
				return err
			}
			if found = pod; pod.Status.Phase != corev1.PodRunning || pod.DeletionTimestamp != nil {
				return fmt.Errorf("%s, %+v", pod.Status.Phase, pod.Status.Conditions)
			}
			return nil
		})
		t.Logf("%s Running after %s", podName, took.Round(100*time.Millisecond))
		return found
	}
	create("low-a", "low", "yes")
	create("low-b", "low", "no")
	create("low-c", "low", "yes")
	victim := running("low-b")
	guarded := map[string]types.UID{}
	for _, podName := range []string{"low-a", "low-c"} {
		guarded[podName] = running(podName).UID
	}
	none := intstr.FromInt32(0)
	budget := &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "guard"},
		Spec: policyv1.PodDisruptionBudgetSpec{
			MaxUnavailable: &none,
			Selector:       &metav1.LabelSelector{MatchLabels: map[string]string{"guarded": "yes"}},
		},
	}
	if _, err := mega.client.PolicyV1().PodDisruptionBudgets(ns).Create(t.Context(), budget, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// What counts for a budget is its status: nothing is allowed before there is one.
	create("patient", "patient", "no")
	eventually(t, 20*time.Second, "patient says why it waits", func(ctx context.Context) error {
		pod, err := mega.client.CoreV1().Pods(ns).Get(ctx, "patient", getOptions)
		if err != nil {
			return err
		}
		for _, cond := range pod.Status.Conditions {
			if cond.Type == corev1.PodScheduled && strings.Contains(cond.Message, "preemptionPolicy=Never") {
				return nil
			}
		}
		return fmt.Errorf("conditions %+v", pod.Status.Conditions)
	})
	if err := mega.client.CoreV1().Pods(ns).Delete(t.Context(), "patient", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	create("high", "high", "no")
	if pod := running("high"); pod.Spec.NodeName != victim.Spec.NodeName {
		t.Errorf("on %s, not in the place of %s on %s", pod.Spec.NodeName, victim.Name, victim.Spec.NodeName)
	}
	for podName, uid := range guarded {
		if pod := running(podName); pod.UID != uid {
			t.Errorf("%s is another pod than before", podName)
		}
	}
	eventually(t, 20*time.Second, "the victim has its event", func(ctx context.Context) error {
		events, err := mega.client.CoreV1().Events(ns).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=low-b"})
		if err != nil {
			return err
		}
		for i := range events.Items {
			if events.Items[i].Reason == "Preempted" {
				return nil
			}
		}
		return fmt.Errorf("%d events", len(events.Items))
	})
}

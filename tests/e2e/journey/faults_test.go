package journey

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// processes gives the host's ids of the pod's processes but its pause container's.
func processes(t *testing.T, pod *corev1.Pod) []int {
	t.Helper()
	groups, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	// cgroupfs names keep the dashes; systemd's turn them to underscores.
	uid := string(pod.UID)
	found := []int{}
	for _, path := range groups {
		content, err := os.ReadFile(path)
		if err != nil || !(strings.Contains(string(content), uid) || strings.Contains(string(content), strings.ReplaceAll(uid, "-", "_"))) {
			continue
		}
		command, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if err != nil || len(command) == 0 || strings.HasPrefix(string(command), "/pause") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			found = append(found, pid)
		}
	}
	return found
}

// signalAll sends the signal to every one of the processes, and gives to how many it could.
func signalAll(pids []int, signal syscall.Signal) int {
	reached := 0
	for _, pid := range pids {
		if syscall.Kill(pid, signal) == nil {
			reached++
		}
	}
	return reached
}

// kill9 ends every process of the pod but its pause container's by SIGKILL, as the kernel's OOM
// killer would, and gives how many those were.
func kill9(t *testing.T, pod *corev1.Pod) int {
	t.Helper()
	return signalAll(processes(t, pod), syscall.SIGKILL)
}

// TestKillEachComponent kills each component in turn while pods are created: what was
// acknowledged is there afterwards, every pod runs, none was bound twice.
func TestKillEachComponent(t *testing.T) {
	waitReady(t, 2*time.Minute)
	ns := scratch(t)
	check := followBindings(t, ns)

	// A writer notes what the API acknowledged.
	ctx, stop := context.WithCancel(t.Context())
	acknowledged := []string{}
	var writer sync.WaitGroup
	writer.Add(1)
	go func() {
		defer writer.Done()
		for i := 0; ctx.Err() == nil; i++ {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p-%d", i), Labels: map[string]string{"app": "faults"}}, Spec: podSpec("10m")}
			if _, err := mega.client.CoreV1().Pods(ns).Create(ctx, pod, metav1.CreateOptions{}); err == nil || apierrors.IsAlreadyExists(err) {
				acknowledged = append(acknowledged, pod.Name)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}()

	for _, component := range []string{"scheduler-shard", "scheduler-relay", "watchcache", "apiserver", "controller-manager", "store"} {
		running, err := pods(t.Context(), component)
		if err != nil {
			t.Error(err)
			continue
		}
		victim := &running[0]
		if killed := kill9(t, victim); killed == 0 {
			t.Errorf("%s: nothing to kill in pod %s", component, victim.Name)
			continue
		}
		// The kubelet notices within a second; until then the pod still looks well.
		time.Sleep(2 * time.Second)
		took := waitReady(t, 3*time.Minute)
		marker := "after-" + component
		created := eventually(t, time.Minute, "a pod is created after the kill of "+component, func(ctx context.Context) error {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: marker, Labels: map[string]string{"app": "faults"}}, Spec: podSpec("10m")}
			_, err := mega.client.CoreV1().Pods(ns).Create(ctx, pod, metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) {
				return nil
			}
			return err
		})
		bound := eventually(t, time.Minute, "it is bound", func(ctx context.Context) error {
			pod, err := mega.client.CoreV1().Pods(ns).Get(ctx, marker, getOptions)
			if err != nil {
				return err
			}
			if pod.Spec.NodeName == "" {
				return fmt.Errorf("pending: %+v", pod.Status.Conditions)
			}
			return nil
		})
		t.Logf("%s (%s): Ready %s after the kill, create %s, bind %s", component, victim.Name,
			(took + 2*time.Second).Round(100*time.Millisecond), created.Round(10*time.Millisecond), bound.Round(10*time.Millisecond))
	}
	stop()
	writer.Wait()

	eventually(t, 2*time.Minute, "every acknowledged pod runs", func(ctx context.Context) error {
		list, err := mega.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		found := map[string]*corev1.Pod{}
		for i := range list.Items {
			found[list.Items[i].Name] = &list.Items[i]
		}
		waiting, example := 0, ""
		for _, podName := range acknowledged {
			pod, there := found[podName]
			if !there {
				return fmt.Errorf("acknowledged pod %s is lost", podName)
			}
			if pod.Status.Phase != corev1.PodRunning {
				waiting++
				example = fmt.Sprintf("%s on node %q: %s, %+v", podName, pod.Spec.NodeName, pod.Status.Phase, pod.Status.Conditions)
			}
		}
		if waiting > 0 {
			return fmt.Errorf("%d of %d do not run, such as %s", waiting, len(acknowledged), example)
		}
		return nil
	})
	check()
	checkNodes(t)
	t.Logf("%d pods were acknowledged under the kills, all run", len(acknowledged))
}

// TestOperatorKilledInAReconcile kills the operator while it makes a second MegaCluster's
// children; the next one finishes the work.
func TestOperatorKilledInAReconcile(t *testing.T) {
	const ns = "second"
	sample, err := getMegaCluster(t.Context(), namespace, name)
	if err != nil {
		t.Fatal(err)
	}
	management.mustKubectl(t, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"`+ns+`"}}`, "apply", "-f", "-")
	t.Cleanup(func() {
		_ = management.client.CoreV1().Namespaces().Delete(context.Background(), ns, metav1.DeleteOptions{})
	})
	second := sample.DeepCopy()
	second.Object = map[string]any{
		"apiVersion": "megacluster.io/v1alpha1", "kind": "MegaCluster",
		"metadata": map[string]any{"name": "second", "namespace": ns},
		"spec":     second.Object["spec"],
	}
	setNested(second.Object, "Delete", "spec", "deletionPolicy")
	setNested(second.Object, map[string]any{"type": "ClusterIP"}, "spec", "networking", "endpoint")
	clusters := management.dynamic.Resource(megaClusters).Namespace(ns)
	if _, err := clusters.Create(t.Context(), second, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	operators, err := management.client.CoreV1().Pods("megacluster-system").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(operators.Items) == 0 {
		t.Fatalf("no operator: %v", err)
	}
	for round := range 3 {
		time.Sleep(time.Duration(round*300) * time.Millisecond)
		for i := range operators.Items {
			kill9(t, &operators.Items[i])
		}
	}
	took := eventually(t, 5*time.Minute, "the second MegaCluster is Ready", func(ctx context.Context) error {
		return ready(ctx, ns, "second")
	})
	t.Logf("Ready %s after the kills", took.Round(100*time.Millisecond))

	// Deleted with deletionPolicy Delete it leaves nothing.
	management.mustKubectl(t, "", "-n", ns, "delete", "megacluster", "second", "--timeout=120s")
	eventually(t, 2*time.Minute, "nothing is left", func(ctx context.Context) error {
		kinds := append([]schemaGVR{}, childKinds...)
		kinds = append(kinds, schemaGVR{Version: "v1", Resource: "persistentvolumeclaims"}, schemaGVR{Version: "v1", Resource: "pods"})
		for _, kind := range kinds {
			list, err := management.dynamic.Resource(kind).Namespace(ns).List(ctx, metav1.ListOptions{LabelSelector: "megacluster.io/name=second"})
			if err != nil {
				return err
			}
			if len(list.Items) > 0 {
				return fmt.Errorf("%d %s are left, such as %s", len(list.Items), kind.Resource, list.Items[0].GetName())
			}
		}
		return nil
	})
}
